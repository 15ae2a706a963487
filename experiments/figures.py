"""Figures of a run, from its record alone."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from catapult_jax import records
from experiments import optimizers
from experiments.analysis import (
    by_setting,
    catapult_counts,
    dead_steps,
    finished,
    is_stochastic,
    last,
    run_events,
    spike_series,
    uncertain_steps,
)
from experiments.statistics import interval

plt.rcParams["axes.titley"] = 1.0  # where it is anyway; else Matplotlib measures every label again to find out

_COLORS = {"catapult": "tab:red", "unexplained": "tab:purple", "divergence": "black", "unknown": "0.5", "death": "tab:brown"}


_PANELS = 4


def _first_settings(record, config, title: str):
    """The settings that are drawn, and the title, which says where those are not all."""
    groups = by_setting(record, config)
    more = f" (the first {_PANELS} of {len(groups)} settings)" if len(groups) > _PANELS else ""
    return groups[:_PANELS], title + more


def _axes(record, config, title: str, ylabel: str):
    """One panel for each setting: [(axis, members)], the first member to be drawn in full."""
    groups, title = _first_settings(record, config, title)
    figure, axes = plt.subplots(1, len(groups), figsize=(1.5 + 4.2 * len(groups), 3.6), sharey=True, squeeze=False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    axes[0, 0].set_ylabel(ylabel)
    for axis, (label, _) in zip(axes[0], groups, strict=True):
        axis.set_title(label, fontsize=9)
        axis.set_xlabel("step")
    return figure, [(axis, members) for axis, (_, members) in zip(axes[0], groups, strict=True)]


def _positive(values):
    values = np.asarray(values, float)
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _mark_events(axis, events, record):
    """Shades each event from onset to close. A spike that is still open at the end is hatched, to the last step; a divergence or a death that
    never closes is shaded to its peak."""
    seen = set()
    for event in events:
        is_open = event.end < 0 and event.kind not in ("divergence", "death")
        end = event.end if event.end >= 0 else int(record.step[-1]) if is_open else event.peak
        name = f"{event.kind}, open" if is_open else event.kind
        style = dict(hatch="///", fill=False) if is_open else dict(lw=0)
        label = None if name in seen else name
        axis.axvspan(
            event.onset, max(end, event.onset + 1), color=_COLORS[event.kind], alpha=0.12, label=label, **style
        )  # fmt: skip
        seen.add(name)


class _PlainLabels(LogFormatter):
    """0.01 in place of 10^-2: mathematics in the labels takes a quarter of the time of a figure."""

    def __call__(self, x, pos=None):
        return super().__call__(x, pos) and f"{x:g}"


def _log_scale(axis):
    """Where there is something to draw on it: a critical lr may be infinite throughout."""
    if any((np.asarray(line.get_ydata(), float) > 0).any() for line in axis.lines):
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(_PlainLabels())
        axis.yaxis.set_minor_formatter(_PlainLabels(labelOnlyBase=False))


def loss_figure(record, config, title) -> Figure:
    """The loss with its parts inside and outside the top eigenspace; spikes shaded, open ones hatched; a line where the network dies; the
    other seeds in grey."""
    series, dead = spike_series(record), dead_steps(record, config)
    events = run_events(record, config)
    figure, axes = _axes(record, config, title, "loss")
    for axis, members in axes:
        for m in members[1:]:
            axis.plot(record.step, _positive(record[series].values[m]), color="0.8", lw=0.8, zorder=1)
        m = members[0]
        axis.plot(record.step, _positive(record[series].values[m]), color="tab:blue", label=series.replace("_", " "), lw=1.6)
        prefix = "loss_train" if is_stochastic(config) else "loss"
        if f"{prefix}_top" in record:
            k = config["measure"]["top_k"]
            for part, color, label in (("top", "tab:orange", f"in top-{k}"), ("rest", "tab:green", "outside")):
                values = _positive(record[f"{prefix}_{part}"].values[m])
                known = np.isfinite(values)  # it may be measured at some of the steps alone
                axis.plot(record.step[known], values[known], color=color, label=label, lw=1.1)
        for step in np.flatnonzero(np.diff(record["stage"].values[m])) + 1:
            axis.axvline(step, color="0.3", ls=":", lw=1, label="lr raised")
        if dead[m] >= 0:
            axis.axvline(dead[m], color=_COLORS["death"], lw=1.5, label="dead from here")
        _mark_events(axis, events[m], record)
        _log_scale(axis)
        handles, labels = axis.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        axis.legend(unique.values(), unique.keys(), fontsize=7, loc="lower left")
    return figure


def lambda_figure(record, config, title) -> Figure:
    """Top eigenvalue of the loss-weighted kernel of the batch, with the line that it must cross for the lr to be critical."""
    decay = optimizers.setting(config["optimizer"], "weight_decay")
    figure, axes = _axes(record, config, title, r"$\lambda_{\max}$ of the loss-weighted kernel")
    style = dict(ls="", marker=".", ms=2) if is_stochastic(config) else dict(lw=1.6)
    for axis, members in axes:
        known = np.isfinite(record["lambda_max_batch"].values).any(0)  # it may be measured at some of the steps alone
        values = _positive(record["lambda_max_batch"].values)
        for m in members[1:] if not is_stochastic(config) else ():
            axis.plot(record.step[known], values[m, known], color="0.8", lw=0.8)
        m = members[0]
        axis.plot(record.step[known], values[m, known], color="tab:blue", label="batch", **style)
        for name in ("lambda_max_train", "lambda_max_probe"):
            if name in record and is_stochastic(config):
                values = record[name].values[m]
                axis.plot(record.step[np.isfinite(values)], values[np.isfinite(values)], color="tab:green", label=name[11:])
        lr, critical_lr = (record[name].values[m] for name in ("lr", "critical_lr_batch"))
        with np.errstate(divide="ignore", invalid="ignore"):  # a kernel of zero is never critical
            line = record["lambda_max_batch"].values[m] * (2 / lr - decay) / (2 / critical_lr - decay)
        axis.plot(record.step[known], line[known], color="tab:red", ls="--", lw=1.2, label="critical at this lr")
        _log_scale(axis)
        axis.legend(fontsize=7)
    return figure


def ratio_figure(record, config, title) -> Figure:
    """Learning rate over critical learning rate; above one the step is critical. Crosses: too near to one to tell."""
    figure, axes = _axes(record, config, title, "lr / critical lr of the batch")
    style = dict(ls="", marker=".", ms=2) if is_stochastic(config) else dict(lw=1.6)
    for axis, members in axes:
        ratio = _positive(record["lr"].values / record["critical_lr_batch"].values)
        known = np.isfinite(ratio).any(0)
        for m in members[1:] if not is_stochastic(config) else ():
            axis.plot(record.step[known], ratio[m, known], color="0.8", lw=0.8)
        axis.plot(record.step[known], ratio[members[0], known], color="tab:blue", **style)
        axis.axhline(1, color="tab:red", ls="--", lw=1.2)
        steps = np.flatnonzero(uncertain_steps(record)[members[0]])
        axis.plot(record.step.values[steps], ratio[members[0], steps], color="black", ls="", marker="x", ms=5)
        _log_scale(axis)
    return figure


def _pairs_of_axes(record, config, title: str, above: str, below: str):
    """Two panels, one above the other, for each setting: [((top, bottom), members)], the first member to be drawn in full."""
    groups, title = _first_settings(record, config, title)
    figure, axes = plt.subplots(
        2, len(groups), figsize=(1.5 + 4.4 * len(groups), 5.4), sharex=True, sharey="row", squeeze=False
    )
    figure.suptitle(title, fontsize=10, parse_math=False)
    axes[0, 0].set_ylabel(above)
    axes[1, 0].set_ylabel(below)
    for column, (label, _) in enumerate(groups):
        axes[0, column].set_title(label, fontsize=9)
        axes[1, column].set_xlabel("step")
    return figure, [(axes[:, column], members) for column, (_, members) in enumerate(groups)]


def _plot_known(axis, record, name: str, m: int, **style):
    """A series that may be measured at some of the steps alone."""
    values = np.asarray(record[name].values[m], float)
    known = np.isfinite(values)
    axis.plot(record.step[known], values[known], **style)


def _plot_members(axis, record, name: str, members):
    for m in members[::-1]:
        _plot_known(axis, record, name, m, color="tab:blue" if m == members[0] else "0.8", lw=0.8)


def conditioning_figure(record, config, title) -> Figure:
    """Spectral norm and condition number of the tangent kernel of the training set; catapults in red; the first seed of each setting."""
    events = run_events(record, config)
    figure, panels = _pairs_of_axes(record, config, title, r"$\lambda_{\max}$ of the loss-weighted kernel", "condition number")
    for axes, members in panels:
        for axis, name in zip(axes, ("lambda_max_train", "condition_number_train"), strict=True):
            _plot_known(axis, record, name, members[0], color="tab:blue", lw=1.2)
            _mark_events(axis, events[members[0]], record)
            _log_scale(axis)
    first = panels[0][0][0]
    if first.get_legend_handles_labels()[0]:
        first.legend(fontsize=7)
    return figure


def preconditioner_figure(record, config, title) -> Figure:
    """Critical lr of the optimizer, the bound from the smallest entry of its preconditioner, and the lr; below, that entry."""
    figure, panels = _pairs_of_axes(record, config, title, "learning rate", "smallest entry of P")
    series = (
        ("critical_lr_batch", "critical lr of the batch, exact", "tab:blue"),
        ("critical_lr_bound_batch", "the bound", "tab:green"),
        ("lr", "lr", "tab:red"),
    )
    for (top, bottom), members in panels:
        for name, label, color in series:
            _plot_known(top, record, name, members[0], color=color, lw=1, label=label)
        _log_scale(top)
        _plot_members(bottom, record, "preconditioner_min", members)
    panels[0][0][0].legend(fontsize=7)
    return figure


def scores_figure(record, config, title) -> Figure:
    """Loss of the batch, and test error, along training; the other seeds in grey."""
    figure, panels = _pairs_of_axes(record, config, title, "loss of the batch", "test error")
    for axes, members in panels:
        for axis, name in zip(axes, ("loss_batch", "error_test"), strict=True):
            _plot_members(axis, record, name, members)
        _log_scale(axes[0])
    return figure


def alignment_figure(record, config, title) -> Figure:
    """Alignment of the network's AGOP with that of the reference along training; spikes shaded; the other seeds in grey."""
    events = run_events(record, config)
    figure, axes = _axes(record, config, title, "AGOP alignment")
    known = np.isfinite(record["agop_alignment"].values).any(0)
    for axis, members in axes:
        for m in members[1:]:
            axis.plot(record.step[known], record["agop_alignment"].values[m, known], color="0.8", lw=0.8, zorder=1)
        axis.plot(record.step[known], record["agop_alignment"].values[members[0], known], color="tab:blue", lw=1.6)
        _mark_events(axis, events[members[0]], record)
    return figure


_METRICS = {
    "agop_alignment": "AGOP alignment",
    "loss_test": "test loss",
    "error_test": "test error",
}


def against_catapults_figure(record, config, title) -> Figure:
    """Where training ended, against the number of catapults on the way: each member a dot, the mean of each setting with its
    95 % interval over seeds. Only members that came down to the loss to stop at."""
    ok, counts = finished(record, config), catapult_counts(record, config)
    metrics = [name for name in _METRICS if name in record]
    figure, axes = plt.subplots(1, len(metrics), figsize=(1 + 3.6 * len(metrics), 3.4), squeeze=False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    for axis, name in zip(axes[0], metrics, strict=True):
        values = last(record, config, name)
        axis.plot(counts[ok], values[ok], ls="", marker=".", color="0.7")
        for label, members in by_setting(record, config):
            members = members[ok[members]]
            if len(members):
                mean, low, high = interval(values[members])
                error = [[mean - low], [high - mean]] if np.isfinite(low) else None
                axis.errorbar(counts[members].mean(), mean, yerr=error, marker="o", capsize=3, label=label)
        axis.set_xlabel("catapults")
        axis.set_ylabel(_METRICS[name])
    if axes[0, 0].get_legend_handles_labels()[0]:  # none where no member came to its end
        axes[0, 0].legend(fontsize=6)
    return figure


def directions_figure(directory: Path, title: str) -> Figure:
    """Top eigenvectors of the AGOP: of the reference, and of the first seed of each setting, as images where the inputs are
    images. Signs are free; colours are scaled for each vector."""
    with np.load(directory / "agop.npz", allow_pickle=False) as stored:
        names, vectors, shape = stored["names"], stored["vectors"], tuple(stored["shape"])
    count, k = vectors.shape[:2]
    image = len(shape) == 3
    figure, axes = plt.subplots(count, k, figsize=(1.6 * k + 1.6, (1.7 if image else 0.7) * count + 0.8), squeeze=False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    for row in range(count):
        axes[row, 0].set_ylabel(str(names[row]), fontsize=6, rotation=0, ha="right", va="center")
        for column in range(k):
            axis, vector = axes[row, column], vectors[row, column]
            vector = vector / np.abs(vector).max()
            if image and shape[-1] == 3:
                axis.imshow((vector.reshape(shape) + 1) / 2)
            else:
                flat = vector.reshape(shape[:2] if image else (1, -1))
                axis.imshow(flat, cmap="RdBu", vmin=-1, vmax=1, aspect="equal" if image else "auto")
            axis.set_xticks([])
            axis.set_yticks([])
    return figure


def sweep_figure(rows: list[dict], names: tuple[str, ...], title: str) -> Figure:
    """Where the runs of a sweep ended, against the axes that make its runs: the mean with its 95 % interval over seeds, for each setting of
    the members."""
    place_of = lambda row: row[names[0]] if len(names) == 1 else " ".join(str(row[name]) for name in names)
    metrics = [name for name in ("catapults", *_METRICS) if any(name in row for row in rows)]
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    figure, axes = plt.subplots(1, len(metrics), figsize=(1 + 3.6 * len(metrics), 3.6), squeeze=False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    places = list(dict.fromkeys(map(place_of, rows)))
    numeric = all(isinstance(place, (int, float)) for place in places)
    for axis, name in zip(axes[0], metrics, strict=True):
        for s, setting in enumerate(settings):
            x, y = [], []
            beside = 0.6 * ((s + 0.5) / len(settings) - 0.5)  # places that are no numbers are not joined by lines
            for i, place in enumerate(places):
                own = [
                    r[name] for r in rows if place_of(r) == place and r["setting"] == setting and r["finished"] and name in r
                ]
                if own:
                    x.append(place if numeric else i + beside)
                    y.append(interval(own))
            if x:
                mean, low, high = np.array(y).T
                error = np.stack([mean - low, high - mean])  # none is drawn where it is not known
                line = "-" if numeric else "none"
                axis.errorbar(x, mean, yerr=error, marker="o", ms=3, capsize=2, ls=line, lw=1, elinewidth=1, label=setting)
        if numeric and min(places) > 0:
            axis.set_xscale("log", base=2)
        elif not numeric:
            axis.set_xticks(
                range(len(places)), [str(place).replace(" ", "\n") for place in places], fontsize=7, parse_math=False,
                rotation=40, rotation_mode="anchor", horizontalalignment="right",
            )  # fmt: skip
        axis.set_xlabel(", ".join(names))
        axis.set_ylabel(_METRICS.get(name, name))
    if axes[0, 0].get_legend_handles_labels()[0]:  # none where no member came to its end
        axes[0, 0].legend(fontsize=6)
    return figure


# name -> (function, what the record must hold)
FIGURES = {
    "loss": (loss_figure, ()),
    "lambda_max": (lambda_figure, ("lambda_max_batch",)),
    "lr_over_critical_lr": (ratio_figure, ("lambda_max_batch",)),
    "conditioning": (conditioning_figure, ("condition_number_train",)),
    "preconditioner": (preconditioner_figure, ("preconditioner_min", "critical_lr_batch")),
    "scores": (scores_figure, ("error_test",)),
    "agop_alignment": (alignment_figure, ("agop_alignment",)),
    "against_catapults": (against_catapults_figure, ("agop_alignment", "loss_test")),
}


def write_all(record, config: dict[str, Any], title: str, directory: Path) -> dict[str, tuple[Path, str]]:
    """Writes every figure as PNG and PDF; returns name -> (png, caption)."""
    directory.mkdir(exist_ok=True)
    drawn = {name: partial(draw, record, config, title) for name, (draw, needs) in FIGURES.items() if set(needs) <= set(record)}
    captions = {name: FIGURES[name][0].__doc__ for name in drawn}
    if (directory.parent / "agop.npz").is_file():
        drawn["agop_directions"] = partial(directions_figure, directory.parent, title)
        captions["agop_directions"] = directions_figure.__doc__
    return {name: (save(draw(), directory / name), captions[name]) for name, draw in drawn.items()}


def save(figure, path: Path) -> Path:
    """Writes a figure as PNG and PDF, closes it, and returns the path of the PNG."""
    figure.tight_layout()
    for suffix in ("pdf", "png"):
        written, buffer = path.with_suffix(f".{suffix}"), io.BytesIO()
        figure.savefig(buffer, format=suffix, dpi=130)  # what Matplotlib raises on a full disk is no OSError
        records.write_bytes(written, buffer.getbuffer())
    plt.close(figure)
    return written
