"""Figures of a run, from its record alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from experiments.claims import by_rate, is_stochastic, run_events, spike_series

_COLORS = {"catapult": "tab:red", "unexplained": "tab:purple", "divergence": "black", "unknown": "0.5"}


_PANELS = 4


def _axes(record, config, title: str, ylabel: str):
    """One panel for each learning rate: [(axis, members)], the first member to be drawn in full."""
    groups = by_rate(record, config)
    if len(groups) > _PANELS:
        title += f" (the first {_PANELS} of {len(groups)} learning rates)"
    groups = groups[:_PANELS]
    figure, axes = plt.subplots(1, len(groups), figsize=(1.5 + 4.2 * len(groups), 3.6), sharey=True, squeeze=False)
    figure.suptitle(title, fontsize=10)
    axes[0, 0].set_ylabel(ylabel)
    for axis, (label, _) in zip(axes[0], groups, strict=True):
        axis.set_title(label, fontsize=9)
        axis.set_xlabel("step")
    return figure, [(axis, members) for axis, (_, members) in zip(axes[0], groups, strict=True)]


def _positive(values):
    values = np.asarray(values, float)
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _mark_events(axis, events, label=True):
    seen = set()
    for event in events:
        end = event.end if event.end >= 0 else event.peak
        name = event.kind if label and event.kind not in seen else None
        axis.axvspan(event.onset, max(end, event.onset + 1), color=_COLORS[event.kind], alpha=0.12, lw=0, label=name)
        seen.add(event.kind)


def loss_figure(record, config, title):
    """The loss with its parts inside and outside the top eigenspace; spikes shaded; the other seeds in grey."""
    series = spike_series(record)
    events = run_events(record, config)
    figure, axes = _axes(record, config, title, "loss")
    for axis, members in axes:
        for m in members[1:]:
            axis.plot(record.step, _positive(record[series].values[m]), color="0.8", lw=0.8, zorder=1)
        m = members[0]
        axis.plot(record.step, _positive(record[series].values[m]), color="tab:blue", label="loss", lw=1.6)
        if "loss_top" in record and not is_stochastic(config):
            k = config["measure"]["top_k"]
            axis.plot(record.step, _positive(record["loss_top"].values[m]), color="tab:orange", label=f"in top-{k}", lw=1.1)
            axis.plot(record.step, _positive(record["loss_rest"].values[m]), color="tab:green", label="outside", lw=1.1)
        for step in np.flatnonzero(np.diff(record["stage"].values[m])) + 1:
            axis.axvline(step, color="0.3", ls=":", lw=1, label="lr raised")
        _mark_events(axis, events[m])
        axis.set_yscale("log")
        handles, labels = axis.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        axis.legend(unique.values(), unique.keys(), fontsize=7, loc="lower left")
    return figure


def lambda_figure(record, config, title):
    """Top eigenvalue of the loss-weighted kernel of the batch, with the line 2 / lr that it must cross."""
    figure, axes = _axes(record, config, title, r"$\lambda_{\max}$ of the loss-weighted kernel")
    style = dict(ls="", marker=".", ms=2) if is_stochastic(config) else dict(lw=1.6)
    for axis, members in axes:
        for m in members[1:] if not is_stochastic(config) else ():
            axis.plot(record.step, _positive(record["lambda_max_batch"].values[m]), color="0.8", lw=0.8)
        m = members[0]
        axis.plot(record.step, _positive(record["lambda_max_batch"].values[m]), color="tab:blue", label="batch", **style)
        for name in ("lambda_max_train", "lambda_max_probe"):
            if name in record and is_stochastic(config):
                values = record[name].values[m]
                axis.plot(record.step[np.isfinite(values)], values[np.isfinite(values)], color="tab:green", label=name[11:])
        axis.plot(record.step, 2 / record["lr"].values[m], color="tab:red", ls="--", lw=1.2, label="2 / lr")
        axis.set_yscale("log")
        axis.legend(fontsize=7)
    return figure


def ratio_figure(record, config, title):
    """Learning rate over critical learning rate; above one the step is critical."""
    figure, axes = _axes(record, config, title, "lr / critical lr of the batch")
    style = dict(ls="", marker=".", ms=2) if is_stochastic(config) else dict(lw=1.6)
    for axis, members in axes:
        ratio = _positive(record["lr"].values * record["lambda_max_batch"].values / 2)
        for m in members[1:] if not is_stochastic(config) else ():
            axis.plot(record.step, ratio[m], color="0.8", lw=0.8)
        axis.plot(record.step, ratio[members[0]], color="tab:blue", **style)
        axis.axhline(1, color="tab:red", ls="--", lw=1.2)
        axis.set_yscale("log")
    return figure


FIGURES = {"loss": loss_figure, "lambda_max": lambda_figure, "lr_over_critical_lr": ratio_figure}


def write_all(record, config: dict[str, Any], title: str, directory: Path) -> dict[str, tuple[Path, str]]:
    """Writes every figure as PNG and PDF; returns name -> (png, caption)."""
    directory.mkdir(exist_ok=True)
    written = {}
    for name, draw in FIGURES.items():
        if name != "loss" and "lambda_max_batch" not in record:
            continue
        figure = draw(record, config, title)
        figure.tight_layout()
        for suffix in ("png", "pdf"):
            figure.savefig(directory / f"{name}.{suffix}", dpi=130)
        plt.close(figure)
        written[name] = directory / f"{name}.png", draw.__doc__
    return written
