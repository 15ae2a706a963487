"""Figures of series along training. Each takes a record and its settings, has a panel for each setting, and draws all seeds alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from catapult_jax.events import Event
from catapult_jax.report.analysis import run_events, uncertain_steps
from catapult_jax.report.members import Settings, is_stochastic, own_series, spike_series
from catapult_jax.report.panels import cut_top, log_scale, make_panels, plot_dots, plot_members, positive
from catapult_jax.report.style import BLACK, BLUE, GREEN, SKY, VERMILION, add_legend

if TYPE_CHECKING:
    import xarray

RATIO = r"learning rate over critical lr, $\eta/\eta_\mathrm{crit}$"
DIRECTIONAL = "multiple of the update at which the loss stops falling"
_MOST_OWN = 6  # panels
LAMBDA = r"largest kernel eigenvalue, $\lambda_{max}$"


def loss_figure(record: xarray.Dataset, settings: Settings, events: list[list[Event]] | None = None) -> Figure:
    """The loss, with its parts inside and outside the top eigenspace, and the events.

    Args:
      record: with ``loss_train`` or ``loss_batch``.
      settings: of the run.
      events: of the record; None: they are found here.

    Returns:
      The figure.

    >>> import xarray
    >>> record = xarray.Dataset({"loss_batch": (("member", "step"), [[1.0, 3.0, 1.0]])})
    >>> loss_figure(record, Settings()).axes[0].get_ylabel()
    'training loss, L'
    """
    events = run_events(record, settings) if events is None else events
    series, stochastic = spike_series(record), is_stochastic(settings)
    name = "loss of the batch" if stochastic and series == "loss_batch" else "training loss"
    parts = "loss_train" if stochastic else "loss"
    inside = f"in the top-{settings.top_k} eigenspace" if settings.top_k else "in the top eigenspace"
    figure, columns = make_panels(record, settings, f"{name}, L", events=events)
    lines: Any = (
        (series, dict(color=BLUE, label=name)),
        (f"{parts}_top", dict(color=VERMILION, ls="--", label=inside)),
        (f"{parts}_rest", dict(color=GREEN, ls=":", lw=0.9, label="outside it")),
    )
    for (axis,), members in columns:
        for part, style in lines:
            if part in record:
                plot_members(axis, record, positive(record[part].values), members, **style)
        log_scale(axis)
    cut_top(columns[0][0][0], record, record[series].values)
    add_legend(figure)
    return figure


def lambda_figure(record: xarray.Dataset, settings: Settings) -> Figure:
    """Top eigenvalue of the loss-weighted kernel of the batch, and the value above which the lr is critical.

    Args:
      record: with ``lambda_max_batch``; the critical value needs ``lr`` and ``critical_lr_batch``.
      settings: of the run.

    Returns:
      The figure.

    >>> import xarray
    >>> record = xarray.Dataset({"lambda_max_batch": (("member", "step"), [[1.0, 2.0]])})
    >>> len(lambda_figure(record, Settings()).axes)
    1
    """
    figure, columns = make_panels(record, settings, LAMBDA)
    values = record["lambda_max_batch"].values
    critical = np.full(values.shape, np.nan)
    if {"lr", "critical_lr_batch"} <= set(record):
        lr, critical_lr = (record[name].values for name in ("lr", "critical_lr_batch"))
        with np.errstate(divide="ignore", invalid="ignore"):  # a kernel of zero is never critical
            critical = values * (2 / lr - settings.weight_decay) / (2 / critical_lr - settings.weight_decay)
    for (axis,), members in columns:
        if is_stochastic(settings):
            plot_dots(axis, record, positive(values), members, color=SKY, label="of the batch")
            for name in ("lambda_max_train", "lambda_max_probe"):
                if name in record:
                    label = {"lambda_max_train": "of the training set", "lambda_max_probe": "of the probe"}[name]
                    plot_members(axis, record, record[name].values, members, color=BLUE, label=label)
        else:
            plot_members(axis, record, positive(values), members, color=BLUE, label="of the batch")
        if np.isfinite(critical).any():
            # an lr that changes in most steps makes a band, which must not hide the dots
            changes = np.diff(record["lr"].values[members])
            is_band = (np.abs(changes) > 0).sum() > np.isfinite(changes).sum() / 2
            style: Any = dict(color=VERMILION, ls="--", zorder=1 if is_band else 3)
            plot_members(axis, record, critical, members, label="critical at this lr", **style)
        log_scale(axis)
    cut_top(columns[0][0][0], record, values)
    add_legend(figure)
    return figure


def ratio_figure(record: xarray.Dataset, settings: Settings, events: list[list[Event]] | None = None) -> Figure:
    """Learning rate over critical learning rate, with the steps in which the loss of the batch rises, and the events.

    Args:
      record: with ``lr`` and ``critical_lr_batch``; the rises need ``loss_batch_after``, or the loss of all examples where these are
        the batch.
      settings: of the run.
      events: of the record; None: they are found here.

    Returns:
      The figure.

    >>> import xarray
    >>> series = {"lr": [[2.0, 2.0]], "critical_lr_batch": [[1.0, 4.0]]}
    >>> record = xarray.Dataset({name: (("member", "step"), values) for name, values in series.items()})
    >>> ratio_figure(record, Settings()).axes[0].lines[0].get_ydata().tolist()
    [2.0, 0.5]
    """
    events = run_events(record, settings) if events is None else events
    figure, columns = make_panels(record, settings, RATIO, events=events if any(events) else None)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = positive(record["lr"].values / record["critical_lr_batch"].values)
    rises, uncertain = batch_rises(record, settings), uncertain_steps(record)
    for (axis,), members in columns:
        if is_stochastic(settings):
            plot_dots(axis, record, np.where(rises, np.nan, ratio), members, color=SKY, label="a step")
        else:
            plot_members(axis, record, ratio, members, color=BLUE, label="a seed")
        style = dict(color=VERMILION, marker="^", ms=2.5)
        plot_dots(
            axis, record, np.where(rises, ratio, np.nan), members, label="the loss of the batch rises in the step", **style
        )
        axis.axhline(1, color=BLACK, ls="--", lw=0.7)
        style = dict(color=BLACK, marker="x", ms=4, mew=0.7)
        plot_dots(axis, record, np.where(uncertain, ratio, np.nan), members, label="not certain on which side of 1", **style)
        log_scale(axis)
    cut_top(columns[0][0][0], record, ratio)
    add_legend(figure)
    return figure


def directional_figure(record: xarray.Dataset, settings: Settings) -> Figure:
    """Multiple of the update of each step at which the loss of the batch stops falling: below 1 the loss rises in this step.

    Args:
      record: with ``directional_batch``. A step without a descent direction is left out.
      settings: of the run.

    Returns:
      The figure.

    >>> import xarray
    >>> record = xarray.Dataset({"directional_batch": (("member", "step"), [[0.5, 2.0]])})
    >>> directional_figure(record, Settings()).axes[0].lines[0].get_ydata().tolist()
    [0.5, 2.0]
    """
    figure, columns = make_panels(record, settings, DIRECTIONAL)
    ratio = positive(record["directional_batch"].values)
    rises = batch_rises(record, settings)
    for (axis,), members in columns:
        plot_dots(axis, record, np.where(rises, np.nan, ratio), members, color=SKY, label="a step")
        style = dict(color=VERMILION, marker="^", ms=2.5)
        plot_dots(
            axis, record, np.where(rises, ratio, np.nan), members, label="the loss of the batch rises in the step", **style
        )
        axis.axhline(1, color=BLACK, ls="--", lw=0.7)
        log_scale(axis)
    cut_top(columns[0][0][0], record, ratio)
    add_legend(figure)
    return figure


def batch_rises(record: xarray.Dataset, settings: Settings) -> np.ndarray:
    """Steps in which the loss of the batch rises.

    Args:
      record: with ``loss_batch`` and ``loss_batch_after``, or with the loss of all examples where these are the batch.
      settings: of the run.

    Returns:
      Booleans, ``(member, step)``; False where it is not known.

    >>> import xarray
    >>> record = xarray.Dataset({"loss_train": (("member", "step"), [[1.0, 3.0, 2.0]])})
    >>> batch_rises(record, Settings()).tolist()
    [[True, False, False]]
    """
    if {"loss_batch", "loss_batch_after"} <= set(record):
        return record["loss_batch_after"].values > record["loss_batch"].values
    rises = np.zeros((record.sizes["member"], record.sizes["step"]), bool)
    if not is_stochastic(settings) and spike_series(record) in record:
        rises[:, :-1] = np.diff(record[spike_series(record)].values, axis=1) > 0
    return rises


def conditioning_figure(record: xarray.Dataset, settings: Settings, events: list[list[Event]] | None = None) -> Figure:
    """Spectral norm and condition number of the kernel of the training set, with the events.

    Args:
      record: with ``lambda_max_train`` and ``condition_number_train``.
      settings: of the run.
      events: of the record; None: they are found here.

    Returns:
      The figure.

    >>> import xarray
    >>> record = xarray.Dataset({f"{name}_train": (("member", "step"), [[2.0]]) for name in ("lambda_max", "condition_number")})
    >>> len(conditioning_figure(record, Settings()).axes)
    2
    """
    events = run_events(record, settings) if events is None else events
    figure, columns = make_panels(record, settings, LAMBDA, "condition number of the kernel, κ", events=events)
    names = ("lambda_max_train", "condition_number_train")
    for axes, members in columns:
        for axis, name in zip(axes, names, strict=True):
            plot_members(axis, record, record[name].values, members, color=BLUE)
            log_scale(axis)
    for axis, name in zip(columns[0][0], names, strict=True):
        cut_top(axis, record, record[name].values)
    add_legend(figure)
    return figure


def preconditioner_figure(record: xarray.Dataset, settings: Settings) -> Figure:
    """Critical lr of the optimizer, its bound from the smallest entry of the preconditioner, and that entry.

    Args:
      record: with ``lr``, ``critical_lr_batch``, ``critical_lr_bound_batch`` and ``preconditioner_min``.
      settings: of the run.

    Returns:
      The figure.

    >>> import xarray
    >>> names = ("lr", "critical_lr_batch", "critical_lr_bound_batch", "preconditioner_min")
    >>> record = xarray.Dataset({name: (("member", "step"), [[2.0]]) for name in names})
    >>> len(preconditioner_figure(record, Settings()).axes)
    2
    """
    figure, columns = make_panels(record, settings, "learning rate, η", "smallest entry of P")
    series: Any = (
        ("critical_lr_batch", dict(color=SKY, label="critical lr of the batch, exact")),
        ("critical_lr_bound_batch", dict(color=GREEN, ls="--", label="the bound")),
        ("lr", dict(color=BLACK, ls=":", lw=1, label="lr")),
    )
    for (top, bottom), members in columns:
        for name, style in series:
            plot_members(top, record, positive(record[name].values), members, **style)
        plot_members(bottom, record, record["preconditioner_min"].values, members, color=BLUE)
        bottom.locator_params(axis="y", nbins=3)  # few and short labels: an entry may be 0.0003
        bottom.yaxis.set_major_formatter("{x:.3g}")
        log_scale(top)
    add_legend(figure)
    return figure


def scores_figure(record: xarray.Dataset, settings: Settings) -> Figure:
    """Loss of the batch, and test error, along training.

    Args:
      record: with ``loss_batch`` and ``error_test``.
      settings: of the run.

    Returns:
      The figure.

    >>> import xarray
    >>> record = xarray.Dataset({name: (("member", "step"), [[0.5]]) for name in ("loss_batch", "error_test")})
    >>> len(scores_figure(record, Settings()).axes)
    2
    """
    figure, columns = make_panels(record, settings, "loss of the batch, L", "test error")
    for (top, bottom), members in columns:
        plot_members(top, record, positive(record["loss_batch"].values), members, color=BLUE)
        plot_members(bottom, record, record["error_test"].values, members, color=BLUE)
        log_scale(top)
    return figure


def own_figure(record: xarray.Dataset, settings: Settings) -> Figure:
    """The metrics of the user in a watched loop, the first six.

    Args:
      record: with such series, see :func:`catapult_jax.report.members.own_series`.
      settings: of the run.

    Returns:
      The figure.

    >>> import xarray
    >>> series = {"accuracy": (("member", "step"), [[0.5, 0.75]])}
    >>> record = xarray.Dataset(series, {"step": [0, 1]}, attrs={"own_metrics": ["accuracy"]})
    >>> own_figure(record, Settings()).axes[0].get_ylabel()
    'accuracy'
    """
    names = own_series(record)[:_MOST_OWN]
    figure, columns = make_panels(record, settings, *names)
    for axes, members in columns:
        for axis, name in zip(axes, names, strict=True):
            plot_members(axis, record, record[name].values, members, color=BLUE)
    return figure


def alignment_figure(record: xarray.Dataset, settings: Settings, events: list[list[Event]] | None = None) -> Figure:
    """Alignment of the network's AGOP with that of the reference along training, with the events.

    Args:
      record: with ``agop_alignment``.
      settings: of the run.
      events: of the record; None: they are found here.

    Returns:
      The figure.

    >>> import xarray
    >>> record = xarray.Dataset({"agop_alignment": (("member", "step"), [[0.5]])})
    >>> len(alignment_figure(record, Settings()).axes)
    1
    """
    events = run_events(record, settings) if events is None else events
    figure, columns = make_panels(record, settings, "AGOP alignment", events=events)
    for (axis,), members in columns:
        plot_members(axis, record, record["agop_alignment"].values, members, color=BLUE)
    add_legend(figure)
    return figure
