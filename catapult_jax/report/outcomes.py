"""Figures of where training ended, and of the arms of a causal test. Each takes a record and its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from catapult_jax.events import Event
from catapult_jax.report.analysis import catapult_counts, critical_fraction, run_events
from catapult_jax.report.members import Settings, active, by_setting, finished, last
from catapult_jax.report.panels import log_scale, plain_labels
from catapult_jax.report.statistics import interval
from catapult_jax.report.style import BLACK, DASHES, GREY, MARKERS, NARROW, PALETTE, WIDE, add_legend, letter, new_figure

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes

# Series at the end of training that are drawn, with their labels.
METRICS = {
    "agop_alignment": "AGOP alignment",
    "loss_test": "test loss",
    "error_test": "test error",
}
CRITICAL_STEPS = "fraction of critical steps"
DECIDING_ARMS = ("none", "remove_overshoot", "placebo", "low_bulk")  # the other arms of a causal test lower the lr of all modes
_LEVELS = 12  # of the training loss


# Settings.


def against_catapults_figure(record: xarray.Dataset, settings: Settings, events: list[list[Event]] | None = None) -> Figure:
    """Where training ended, against the number of catapults, with the mean of each setting and its interval over seeds.

    Args:
      record: with one of the series of :data:`METRICS` at least.
      settings: of the run.
      events: of the record; None: they are found here.

    Returns:
      The figure.

    >>> import xarray
    >>> record = xarray.Dataset({"loss_test": (("member", "step"), [[0.5]])})
    >>> len(against_catapults_figure(record, Settings()).axes)
    1
    """
    events = run_events(record, settings) if events is None else events
    figure = _ends_figure(record, settings, catapult_counts(events), "catapults")
    for axis in figure.axes:
        axis.locator_params(axis="x", integer=True)
    return figure


def against_critical_steps_figure(record: xarray.Dataset, settings: Settings) -> Figure:
    """Where training ended, against the fraction of steps above the critical lr.

    It needs no training loss, so a run without events has it, too.

    Args:
      record: with ``lr``, ``critical_lr_batch`` and one of the series of :data:`METRICS` at least.
      settings: of the run.

    Returns:
      The figure.

    >>> import xarray
    >>> series = {"lr": [[2.0]], "critical_lr_batch": [[1.0]], "error_test": [[0.5]]}
    >>> record = xarray.Dataset({name: (("member", "step"), values) for name, values in series.items()})
    >>> against_critical_steps_figure(record, Settings()).axes[0].get_xlabel()
    'fraction of critical steps'
    """
    fractions = np.array([critical_fraction(record, settings, m) for m in range(record.sizes["member"])])
    return _ends_figure(record, settings, fractions, CRITICAL_STEPS)


def _ends_figure(record: xarray.Dataset, settings: Settings, x: np.ndarray, x_label: str) -> Figure:
    """Where training ended, against a number of each member: the members, and the mean of each setting with its interval."""
    ok = finished(record, settings)
    metrics = [name for name in METRICS if name in record]
    figure, axes = new_figure(1, len(metrics), height=1.8, gaps=(0.55, 0), width=NARROW if len(metrics) == 1 else WIDE)
    for i, (axis, name) in enumerate(zip(axes[0], metrics, strict=True)):
        values = last(record, settings, name)
        for j, (label, members) in enumerate(by_setting(record, settings)):
            members = members[ok[members]]
            if not len(members):
                continue
            style = _style(j) | {"ls": ""}
            axis.plot(x[members], values[members], ms=2, mew=0, alpha=0.5, **style)
            more: Any = {"ms": 4.5, "mec": BLACK, "mew": 0.4, "label": label}
            _mean(axis, float(x[members].mean()), values[members], **style | more)
        axis.set_xlabel(x_label)
        axis.set_ylabel(METRICS[name])
        letter(axis, None if len(metrics) == 1 else i)
    add_legend(figure)
    return figure


def _mean(axis: Axes, x: float, values: np.ndarray, *, horizontal: bool = False, **style) -> None:
    """Draws the mean with its interval."""
    mean, low, high = interval(values)
    error = [[mean - low], [high - mean]] if np.isfinite(low) else None
    style = {"capsize": 2, "elinewidth": 0.8, "capthick": 0.8} | style
    if horizontal:
        axis.errorbar(mean, x, xerr=error, **style)
    else:
        axis.errorbar(x, mean, yerr=error, **style)


def alignment_against_test_loss_figure(record: xarray.Dataset, settings: Settings) -> Figure:
    """Final AGOP alignment against final test loss, one dot for each member that finished.

    Args:
      record: with ``agop_alignment`` and ``loss_test``.
      settings: of the run.

    Returns:
      The figure.

    >>> import xarray
    >>> record = xarray.Dataset({name: (("member", "step"), [[0.5]]) for name in ("agop_alignment", "loss_test")})
    >>> figure = alignment_against_test_loss_figure(record, Settings())
    >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
    ('test loss', 'AGOP alignment')
    """
    ok = finished(record, settings)
    x, y = (last(record, settings, name) for name in ("loss_test", "agop_alignment"))
    figure, ((axis,),) = new_figure(height=2.2, top=0.1, width=NARROW)
    for i, (label, members) in enumerate(by_setting(record, settings)):
        members = members[ok[members]]
        if len(members):
            axis.plot(x[members], y[members], label=label, **_style(i) | {"ls": "", "ms": 3.5, "mec": BLACK, "mew": 0.3})
    axis.set_xlabel(METRICS["loss_test"])
    axis.set_ylabel(METRICS["agop_alignment"])
    add_legend(figure)
    return figure


# Arms of a causal test.


def arms_figure(record: xarray.Dataset, settings: Settings) -> Figure:
    """The arms of a causal test: test loss against training loss, and paired differences to the arm none where training ended.

    Args:
      record: with the coordinate ``intervention``, ``loss_train`` and ``loss_test``; the attribute ``interventions`` names the arms.
      settings: of the run.

    Returns:
      The figure.

    >>> import xarray
    >>> loss = [[1.0, 0.1], [1.0, 0.1]]
    >>> series = {name: (("member", "step"), loss) for name in ("loss_train", "loss_test")}
    >>> record = xarray.Dataset(series, {"intervention": ("member", [0, 1])}, {"interventions": ["none", "placebo"]})
    >>> [axis.get_xlabel() for axis in arms_figure(record, Settings()).axes]
    ['training loss, L', 'test loss,\\nminus the arm none']
    """
    arms, seeds = members_of_arms(record), complete_seeds(record, settings)
    names = [name for name in DECIDING_ARMS if name in arms]
    names = names if len(names) > 1 else list(arms)
    others = [name for name in dict.fromkeys([*names, *arms]) if name != "none"]
    styles = {name: _style(i) for i, name in enumerate(["none", *others])}
    metrics = [name for name in ("loss_test", "agop_alignment") if name in record]
    room = 0.055 * max((len(name) for name in others), default=0)  # for the names of the arms
    ratios = [0.5 * (5.5 - room), room, *[0.5 * (5.5 - room) / len(metrics)] * len(metrics)]
    figure, axes = new_figure(1, len(ratios), height=1.9, bottom=0.6, gaps=(0.15, 0), width_ratios=ratios)
    figure.delaxes(axes[0, 1])
    is_active = active(record, settings)[:, -1]  # of a run that is too short for its loss to stop at, all
    chosen = {name: [m for key, m in arms[name].items() if (key in seeds if seeds else is_active[m])] for name in names}
    _plot_against_training_loss(axes[0, 0], record, chosen, styles)
    for axis, metric in zip(axes[0, 2:], metrics, strict=True):
        values = last(record, settings, metric)
        for row, name in enumerate(others if seeds else ()):
            pairs = np.array([values[arms[name][key]] - values[arms["none"][key]] for key in seeds])
            axis.plot(pairs, np.full(len(pairs), row), ls="", marker="|", ms=5, color=GREY, mew=0.6)
            _mean(axis, row, pairs, horizontal=True, **styles[name] | {"ls": "", "ms": 4, "mec": BLACK, "mew": 0.4})
        axis.axvline(0, color=BLACK, ls="--", lw=0.7)
        axis.set_yticks(range(len(others)), others if metric == metrics[0] else [""] * len(others), parse_math=False)
        axis.set_ylim(max(len(others), 1) - 0.5, -0.5)
        axis.locator_params(axis="x", nbins=4)
        axis.set_xlabel(f"{METRICS[metric]},\nminus the arm none")
    for i, axis in enumerate(figure.axes):
        letter(axis, i)
    add_legend(figure)
    return figure


def _style(i: int) -> dict[str, Any]:
    """Colour, line and marker of setting ``i``."""
    return {"color": PALETTE[i % len(PALETTE)], "ls": DASHES[i % len(DASHES)], "marker": MARKERS[i % len(MARKERS)]}


def complete_seeds(record: xarray.Dataset, settings: Settings) -> list[tuple]:
    """What tells apart the members of an arm, as in :func:`members_of_arms`, for those that finished in every arm.

    Args:
      record: with the coordinate ``intervention``.
      settings: of the run.

    Returns:
      Keys of :func:`members_of_arms`; none if there is no arm none.

    >>> import xarray
    >>> axes = {"intervention": ("member", [0, 0, 1]), "seed": ("member", [5, 6, 5]), "step": [0]}
    >>> complete_seeds(xarray.Dataset(coords=axes, attrs={"interventions": ["none", "placebo"]}), Settings())
    [(5,)]
    """
    arms, ok = members_of_arms(record), finished(record, settings)
    return [key for key in arms.get("none", ()) if all(key in arm and ok[arm[key]] for arm in arms.values())]


def members_of_arms(record: xarray.Dataset) -> dict[str, dict[tuple, int]]:
    """The members of each arm of a causal test.

    Args:
      record: with the coordinate ``intervention``; the attribute ``interventions`` names the arms.

    Returns:
      Arm -> what tells the members of an arm apart (seed, learning rate, raises) -> number of the member.

    >>> import xarray
    >>> axes = {"intervention": ("member", [0, 0, 1]), "seed": ("member", [5, 6, 5])}
    >>> members_of_arms(xarray.Dataset(coords=axes, attrs={"interventions": ["none", "placebo"]}))
    {'none': {(5,): 0, (6,): 1}, 'placebo': {(5,): 2}}
    """
    axes = [record[name].values for name in ("seed", "lr_given", "raises") if name in record.coords]
    arms: dict[str, dict[tuple, int]] = {}
    for m, code in enumerate(record["intervention"].values):
        key = tuple(values[m].item() for values in axes)
        arms.setdefault(record.attrs["interventions"][int(code)], {})[key] = m
    return arms


def _plot_against_training_loss(
    axis: Axes, record: xarray.Dataset, members_of: dict[str, list[int]], styles: dict[str, dict[str, Any]]
) -> None:
    """One line for each arm: mean test loss with its interval, where the training loss first comes down to each level."""
    curves = {m: _falling_curve(record, m) for members in members_of.values() for m in members}
    curves = {m: curve for m, curve in curves.items() if len(curve[0])}
    axis.set_xlabel("training loss, L")
    axis.set_ylabel(METRICS["loss_test"])
    if not curves:
        return
    # Every member comes down to every level: the mean of each level is over the same seeds.
    highest, lowest = min(train[0] for train, _ in curves.values()), max(train[-1] for train, _ in curves.values())
    levels = np.geomspace(highest, lowest, _LEVELS) if lowest < highest else np.array([lowest])
    for name, members in members_of.items():
        at_levels = [_at_levels(*curves[m], levels) for m in members if m in curves]
        if not at_levels:
            continue
        mean, low, high = np.array([interval(column) for column in np.transpose(at_levels)]).T
        axis.plot(levels, mean, label=name, lw=1.0, ms=2.5, **styles[name])
        axis.fill_between(levels, low, high, color=styles[name]["color"], alpha=0.2, lw=0)
    axis.set_xscale("log")
    axis.invert_xaxis()
    plain_labels(axis.xaxis)
    log_scale(axis)


def _falling_curve(record: xarray.Dataset, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Smallest training loss so far and test loss, at the steps at which both are measured."""
    train, test = record["loss_train"].values[m], record["loss_test"].values[m]
    steps = np.isfinite(train) & (train > 0) & np.isfinite(test)
    return np.minimum.accumulate(train[steps]) if steps.any() else train[steps], test[steps]


def _at_levels(lowest: np.ndarray, test: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Test loss at the first step at which the training loss is at or below each level."""
    return test[np.searchsorted(-lowest, -levels * (1 + 1e-9), side="left").clip(max=len(test) - 1)]
