"""Figures of a run, from its record alone.

Each ``*_figure`` takes a record, its settings and a title. Each setting of the members has a panel, in which the first member is drawn in
full. :func:`write_all` writes the figures whose series are on record.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from catapult_jax import records
from catapult_jax.events import Event
from catapult_jax.report.analysis import catapult_counts, run_events, uncertain_steps
from catapult_jax.report.members import Settings, by_setting, dead_steps, finished, is_stochastic, last, spike_series
from catapult_jax.report.panels import (
    COLORS,
    add_legend,
    cut_top,
    log_scale,
    make_panels,
    mark_events,
    plot_finite,
    plot_members,
    positive,
)
from catapult_jax.report.statistics import interval

if TYPE_CHECKING:
    import xarray

# Series at the end of training that are drawn against the number of catapults, with their labels.
METRICS = {
    "agop_alignment": "AGOP alignment",
    "loss_test": "test loss",
    "error_test": "test error",
}


# The figures.


def loss_figure(record: xarray.Dataset, settings: Settings, title: str, events: list[list[Event]] | None = None) -> Figure:
    """The loss, with its parts inside and outside the top eigenspace, and its events.

    Args:
      record: with ``loss_train`` or ``loss_batch``.
      settings: of the run.
      title: of the figure.
      events: of the record; None: they are found here.

    Returns:
      The figure.

    >>> import xarray
    >>> record = xarray.Dataset({"loss_batch": (("member", "step"), [[1.0, 3.0, 1.0]])})
    >>> loss_figure(record, Settings(), "mine").axes[0].get_ylabel()
    'loss'
    """
    events = run_events(record, settings) if events is None else events
    series, dead = spike_series(record), dead_steps(record, settings)
    prefix = "loss_train" if is_stochastic(settings) else "loss"
    top = f"in top-{settings.top_k}" if settings.top_k else "in the top eigenspace"
    figure, columns = make_panels(record, settings, title, "loss")
    for (axis,), members in columns:
        m = members[0]
        for other in members[1:]:
            axis.plot(record.step.values, positive(record[series].values[other]), color="0.8", lw=0.8, zorder=1)
        axis.plot(
            record.step.values, positive(record[series].values[m]), color="tab:blue", label=series.replace("_", " "), lw=1.6
        )
        for part, color, label in (("top", "tab:orange", top), ("rest", "tab:green", "outside")):
            if f"{prefix}_{part}" in record:
                values = positive(record[f"{prefix}_{part}"].values[m])
                plot_finite(axis, record, values, color=color, label=label, lw=1.1)
        stages = record["stage"].values[m] if "stage" in record else np.zeros(0)
        for step in np.flatnonzero(np.diff(stages)) + 1:
            axis.axvline(float(step), color="0.3", ls=":", lw=1, label="lr raised")
        if dead[m] >= 0:
            axis.axvline(float(dead[m]), color=COLORS["death"], lw=1.5, label="dead from here")
        mark_events(axis, events[m], record)
        log_scale(axis)
        cut_top(axis, record[series].values[m])
        add_legend(axis, fontsize=7, loc="lower left")
    return figure


def lambda_figure(record: xarray.Dataset, settings: Settings, title: str) -> Figure:
    """Top eigenvalue of the loss-weighted kernel of the batch, and the value above which the lr is critical.

    Args:
      record: with ``lambda_max_batch``; the critical value needs ``lr`` and ``critical_lr_batch``.
      settings: of the run.
      title: of the figure.

    Returns:
      The figure.

    >>> import xarray
    >>> record = xarray.Dataset({"lambda_max_batch": (("member", "step"), [[1.0, 2.0]])})
    >>> len(lambda_figure(record, Settings(), "mine").axes)
    1
    """
    figure, columns = make_panels(record, settings, title, r"$\lambda_{\max}$ of the loss-weighted kernel")
    style: dict[str, Any] = dict(ls="", marker=".", ms=2) if is_stochastic(settings) else dict(lw=1.6)
    values = record["lambda_max_batch"].values
    steps = np.isfinite(values).any(0)  # it may not be measured at every step
    drawn = positive(values)
    for (axis,), members in columns:
        for other in members[1:] if not is_stochastic(settings) else ():
            axis.plot(record.step.values[steps], drawn[other, steps], color="0.8", lw=0.8)
        m = members[0]
        axis.plot(record.step.values[steps], drawn[m, steps], color="tab:blue", label="batch", **style)
        for name in ("lambda_max_train", "lambda_max_probe"):
            if name in record and is_stochastic(settings):
                plot_finite(axis, record, record[name].values[m], color="tab:green", label=name.removeprefix("lambda_max_"))
        if {"lr", "critical_lr_batch"} <= set(record):
            lr, critical_lr = (record[name].values[m] for name in ("lr", "critical_lr_batch"))
            with np.errstate(divide="ignore", invalid="ignore"):  # a kernel of zero is never critical
                line = values[m] * (2 / lr - settings.weight_decay) / (2 / critical_lr - settings.weight_decay)
            axis.plot(record.step.values[steps], line[steps], color="tab:red", ls="--", lw=1.2, label="critical at this lr")
        log_scale(axis)
        add_legend(axis, fontsize=7)
    return figure


def ratio_figure(record: xarray.Dataset, settings: Settings, title: str) -> Figure:
    """Learning rate over critical learning rate.

    Args:
      record: with ``lr`` and ``critical_lr_batch``.
      settings: of the run.
      title: of the figure.

    Returns:
      The figure.

    >>> import xarray
    >>> series = {"lr": [[2.0, 2.0]], "critical_lr_batch": [[1.0, 4.0]]}
    >>> record = xarray.Dataset({name: (("member", "step"), values) for name, values in series.items()})
    >>> ratio_figure(record, Settings(), "mine").axes[0].lines[0].get_ydata().tolist()
    [2.0, 0.5]
    """
    figure, columns = make_panels(record, settings, title, "lr / critical lr of the batch")
    style: dict[str, Any] = dict(ls="", marker=".", ms=2) if is_stochastic(settings) else dict(lw=1.6)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = positive(record["lr"].values / record["critical_lr_batch"].values)
    uncertain, steps = uncertain_steps(record), np.isfinite(ratio).any(0)
    for (axis,), members in columns:
        for other in members[1:] if not is_stochastic(settings) else ():
            axis.plot(record.step.values[steps], ratio[other, steps], color="0.8", lw=0.8)
        m = members[0]
        axis.plot(record.step.values[steps], ratio[m, steps], color="tab:blue", **style)
        axis.axhline(1, color="tab:red", ls="--", lw=1.2)
        axis.plot(record.step.values[uncertain[m]], ratio[m, uncertain[m]], color="black", ls="", marker="x", ms=5)
        log_scale(axis)
    return figure


def conditioning_figure(
    record: xarray.Dataset, settings: Settings, title: str, events: list[list[Event]] | None = None
) -> Figure:
    """Spectral norm and condition number of the kernel of the training set, with the events of the first seed.

    Args:
      record: with ``lambda_max_train`` and ``condition_number_train``.
      settings: of the run.
      title: of the figure.
      events: of the record; None: they are found here.

    Returns:
      The figure.

    >>> import xarray
    >>> record = xarray.Dataset({f"{name}_train": (("member", "step"), [[2.0]]) for name in ("lambda_max", "condition_number")})
    >>> len(conditioning_figure(record, Settings(), "mine").axes)
    2
    """
    events = run_events(record, settings) if events is None else events
    ylabels = r"$\lambda_{\max}$ of the loss-weighted kernel", "condition number"
    figure, columns = make_panels(record, settings, title, *ylabels, width=4.4, height=5.4)
    for axes, members in columns:
        for axis, name in zip(axes, ("lambda_max_train", "condition_number_train"), strict=True):
            plot_finite(axis, record, record[name].values[members[0]], color="tab:blue", lw=1.2)
            mark_events(axis, events[members[0]], record)
            log_scale(axis)
    add_legend(columns[0][0][0], fontsize=7)
    return figure


def preconditioner_figure(record: xarray.Dataset, settings: Settings, title: str) -> Figure:
    """Critical lr of the optimizer, its bound from the smallest entry of the preconditioner, and that entry.

    Args:
      record: with ``lr``, ``critical_lr_batch``, ``critical_lr_bound_batch`` and ``preconditioner_min``.
      settings: of the run.
      title: of the figure.

    Returns:
      The figure.

    >>> import xarray
    >>> names = ("lr", "critical_lr_batch", "critical_lr_bound_batch", "preconditioner_min")
    >>> record = xarray.Dataset({name: (("member", "step"), [[2.0]]) for name in names})
    >>> len(preconditioner_figure(record, Settings(), "mine").axes)
    2
    """
    figure, columns = make_panels(record, settings, title, "learning rate", "smallest entry of P", width=4.4, height=5.4)
    series = (
        ("critical_lr_batch", "critical lr of the batch, exact", "tab:blue"),
        ("critical_lr_bound_batch", "the bound", "tab:green"),
        ("lr", "lr", "tab:red"),
    )
    for (top, bottom), members in columns:
        for name, label, color in series:
            plot_finite(top, record, record[name].values[members[0]], color=color, lw=1, label=label)
        log_scale(top)
        plot_members(bottom, record, "preconditioner_min", members)
    add_legend(columns[0][0][0], fontsize=7)
    return figure


def scores_figure(record: xarray.Dataset, settings: Settings, title: str) -> Figure:
    """Loss of the batch, and test error, along training.

    Args:
      record: with ``loss_batch`` and ``error_test``.
      settings: of the run.
      title: of the figure.

    Returns:
      The figure.

    >>> import xarray
    >>> record = xarray.Dataset({name: (("member", "step"), [[0.5]]) for name in ("loss_batch", "error_test")})
    >>> len(scores_figure(record, Settings(), "mine").axes)
    2
    """
    figure, columns = make_panels(record, settings, title, "loss of the batch", "test error", width=4.4, height=5.4)
    for axes, members in columns:
        for axis, name in zip(axes, ("loss_batch", "error_test"), strict=True):
            plot_members(axis, record, name, members)
        log_scale(axes[0])
    return figure


def alignment_figure(record: xarray.Dataset, settings: Settings, title: str, events: list[list[Event]] | None = None) -> Figure:
    """Alignment of the network's AGOP with that of the reference along training, with the events.

    Args:
      record: with ``agop_alignment``.
      settings: of the run.
      title: of the figure.
      events: of the record; None: they are found here.

    Returns:
      The figure.

    >>> import xarray
    >>> record = xarray.Dataset({"agop_alignment": (("member", "step"), [[0.5]])})
    >>> len(alignment_figure(record, Settings(), "mine").axes)
    1
    """
    events = run_events(record, settings) if events is None else events
    figure, columns = make_panels(record, settings, title, "AGOP alignment")
    values = record["agop_alignment"].values
    steps = np.isfinite(values).any(0)
    for (axis,), members in columns:
        for other in members[1:]:
            axis.plot(record.step.values[steps], values[other, steps], color="0.8", lw=0.8, zorder=1)
        axis.plot(record.step.values[steps], values[members[0], steps], color="tab:blue", lw=1.6)
        mark_events(axis, events[members[0]], record)
    return figure


def against_catapults_figure(
    record: xarray.Dataset, settings: Settings, title: str, events: list[list[Event]] | None = None
) -> Figure:
    """Where training ended, against the number of catapults, with the mean of each setting and its interval over seeds.

    Args:
      record: with one of the series of :data:`METRICS` at least.
      settings: of the run.
      title: of the figure.
      events: of the record; None: they are found here.

    Returns:
      The figure.

    >>> import xarray
    >>> record = xarray.Dataset({"loss_test": (("member", "step"), [[0.5]])})
    >>> len(against_catapults_figure(record, Settings(), "mine").axes)
    1
    """
    events = run_events(record, settings) if events is None else events
    ok, counts = finished(record, settings), catapult_counts(events)
    metrics = [name for name in METRICS if name in record]
    figure = Figure(figsize=(1 + 3.6 * len(metrics), 3.4))
    axes = figure.subplots(1, len(metrics), squeeze=False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    for axis, name in zip(axes[0], metrics, strict=True):
        values = last(record, settings, name)
        axis.plot(counts[ok], values[ok], ls="", marker=".", color="0.7")
        for label, members in by_setting(record, settings):
            members = members[ok[members]]
            if len(members):
                mean, low, high = interval(values[members])
                error = [[mean - low], [high - mean]] if np.isfinite(low) else None
                axis.errorbar(counts[members].mean(), mean, yerr=error, marker="o", capsize=3, label=label)
        axis.set_xlabel("catapults")
        axis.set_ylabel(METRICS[name])
    add_legend(axes[0, 0], fontsize=6)
    return figure


# The files.


class Drawing(NamedTuple):
    """A figure, what it needs, and its caption."""

    draw: Callable[..., Figure]  # (record, settings, title) -> figure
    series: tuple[tuple[str, ...], ...]  # one series of each group must be on record
    caption: str
    with_events: bool = False  # whether draw takes the events too


FIGURES = {
    "loss": Drawing(
        loss_figure,
        (("loss_train", "loss_batch"),),
        "The loss, with its parts inside and outside the top eigenspace. Spikes are shaded, open ones hatched. A line marks the step from which "
        "the network is dead. The other seeds are grey; one that leaves the panel at its top diverged.",
        with_events=True,
    ),
    "lambda_max": Drawing(
        lambda_figure,
        (("lambda_max_batch",),),
        "Top eigenvalue of the loss-weighted kernel of the batch. Above the dashed line the lr is critical.",
    ),
    "lr_over_critical_lr": Drawing(
        ratio_figure,
        (("lr",), ("critical_lr_batch",)),
        "Learning rate over critical learning rate. Above one the step is critical. Crosses: too near one to tell.",
    ),
    "conditioning": Drawing(
        conditioning_figure,
        (("lambda_max_train",), ("condition_number_train",)),
        "Spectral norm and condition number of the tangent kernel of the training set, for the first seed of each setting. Catapults are red.",
        with_events=True,
    ),
    "preconditioner": Drawing(
        preconditioner_figure,
        (("lr",), ("critical_lr_batch",), ("critical_lr_bound_batch",), ("preconditioner_min",)),
        "Above: critical lr of the optimizer, the bound from the smallest entry of its preconditioner, and the lr. Below: that entry.",
    ),
    "scores": Drawing(
        scores_figure,
        (("loss_batch",), ("error_test",)),
        "Loss of the batch, and test error, along training. The other seeds are grey.",
    ),
    "agop_alignment": Drawing(
        alignment_figure,
        (("agop_alignment",),),
        "Alignment of the network's AGOP with that of the reference, along training. Spikes are shaded. The other seeds are grey.",
        with_events=True,
    ),
    "against_catapults": Drawing(
        against_catapults_figure,
        (("agop_alignment",), ("loss_test",)),
        "Where training ended, against the number of catapults. Each member that finished is a dot. Each setting has its mean with its 95 % "
        "interval over seeds.",
        with_events=True,
    ),
}


def write_all(
    record: xarray.Dataset, settings: Settings, title: str, folder: Path, events: list[list[Event]] | None = None
) -> dict[str, tuple[Path, str]]:
    """Writes every figure whose series are on record, as PNG and PDF.

    Args:
      record: series over (member, step).
      settings: of the run.
      title: of the figures.
      folder: for the files; it is created.
      events: of the record; None: they are found here.

    Returns:
      For each figure the path of its PNG, and its caption.

    >>> import tempfile, xarray
    >>> record = xarray.Dataset({"agop_alignment": (("member", "step"), [[0.5]])})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     list(write_all(record, Settings(), "mine", Path(folder)))
    ['agop_alignment']
    """
    folder.mkdir(parents=True, exist_ok=True)
    events = run_events(record, settings) if events is None else events
    files = {}
    for name, drawing in FIGURES.items():
        if all(any(series in record for series in group) for group in drawing.series):
            more = {"events": events} if drawing.with_events else {}
            files[name] = (save(drawing.draw(record, settings, title, **more), folder / name), drawing.caption)
    return files


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG and PDF.

    Args:
      figure: the figure.
      path: without a suffix.

    Returns:
      The path of the PNG.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Figure(), Path(folder, "empty")).name
    'empty.png'
    """
    figure.tight_layout()
    for suffix in ("pdf", "png"):
        buffer = io.BytesIO()
        # Into memory: on a full disk Matplotlib does not raise OSError, and write_bytes does.
        figure.savefig(buffer, format=suffix, dpi=130)
        records.write_bytes(path.with_suffix(f".{suffix}"), buffer.getbuffer())
    return path.with_suffix(".png")
