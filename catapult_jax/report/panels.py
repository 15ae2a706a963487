"""Panels, lines and scales that the figures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from catapult_jax.events import Event
from catapult_jax.report.members import Settings, by_setting

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

COLORS = {"catapult": "tab:red", "unexplained": "tab:purple", "divergence": "black", "unknown": "0.5", "death": "tab:brown"}
_PANELS = 4  # settings that are drawn


def make_panels(
    record: xarray.Dataset, settings: Settings, title: str, *ylabels: str, width: float = 4.2, height: float = 3.6
) -> tuple[Figure, list[tuple[list[Axes], np.ndarray]]]:
    """One column for each setting of the members, with one panel for each y label.

    Args:
      record: its members make the columns; the first four are drawn, and the title says if there are more.
      settings: of the run.
      title: of the figure.
      *ylabels: from top to bottom.
      width: of a column, in inches.
      height: of the figure, in inches.

    Returns:
      The figure, and for each column its axes from top to bottom and its members.

    >>> import xarray
    >>> figure, columns = make_panels(xarray.Dataset(coords={"lr_given": ("member", [0.5, 1.5])}), Settings(), "mine", "loss")
    >>> [(len(axes), members.tolist()) for axes, members in columns]
    [(1, [0]), (1, [1])]
    """
    groups = by_setting(record, settings)
    more = f" (the first {_PANELS} of {len(groups)} settings)" if len(groups) > _PANELS else ""
    groups = groups[:_PANELS]
    figure = Figure(figsize=(1.5 + width * len(groups), height))
    axes = figure.subplots(len(ylabels), len(groups), sharex=len(ylabels) > 1, sharey="row", squeeze=False)
    figure.suptitle(title + more, fontsize=10, parse_math=False)
    for axis, ylabel in zip(axes[:, 0], ylabels, strict=True):
        axis.set_ylabel(ylabel)
    for column, (label, _) in zip(axes.T, groups, strict=True):
        column[0].set_title(label, fontsize=9, y=1.0)  # with a place given, Matplotlib does not measure every label to find one
        column[-1].set_xlabel("step")
    return figure, [(list(column), members) for column, (_, members) in zip(axes.T, groups, strict=True)]


def positive(values: ArrayLike) -> np.ndarray:
    """The values, with NaN for those that a log scale can't show.

    Args:
      values: numbers.

    Returns:
      Numbers of the same shape.

    >>> positive([1.0, 0.0, float("inf")]).tolist()
    [1.0, nan, nan]
    """
    values = np.asarray(values, float)
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def plot_finite(axis: Axes, record: xarray.Dataset, values: ArrayLike, **style: Any) -> None:
    """Draws a series over the steps at which it is finite: it may not be measured at every step.

    Args:
      axis: to draw on.
      record: its steps are the x axis.
      values: ``(step,)``.
      **style: of the line.

    >>> import xarray
    >>> axis = Figure().subplots()
    >>> plot_finite(axis, xarray.Dataset(coords={"step": [0, 1]}), [3.0, float("nan")])
    >>> axis.lines[0].get_ydata().tolist()
    [3.0]
    """
    values = np.asarray(values, float)
    steps = np.isfinite(values)
    axis.plot(record.step.values[steps], values[steps], **style)


def plot_members(axis: Axes, record: xarray.Dataset, name: str, members: Sequence[int] | np.ndarray) -> None:
    """Draws a series of several members: the first in blue, the others in grey.

    Args:
      axis: to draw on.
      record: with the series.
      name: of the series.
      members: their numbers.

    >>> import xarray
    >>> axis = Figure().subplots()
    >>> plot_members(axis, xarray.Dataset({"lr": (("member", "step"), [[1.0], [2.0]])}), "lr", [0, 1])
    >>> [line.get_color() for line in axis.lines]
    ['0.8', 'tab:blue']
    """
    for m in members[::-1]:
        plot_finite(axis, record, record[name].values[m], color="tab:blue" if m == members[0] else "0.8", lw=0.8)


def mark_events(axis: Axes, events: Sequence[Event], record: xarray.Dataset) -> None:
    """Shades each event from onset to close.

    A spike that is still open at the end is hatched to the last step. A divergence or a death that never closes is shaded to its peak.

    Args:
      axis: to draw on.
      events: of one member.
      record: its last step ends an open spike.

    >>> import xarray
    >>> axis = Figure().subplots()
    >>> mark_events(axis, [Event("catapult", 0, 1, 2, *[0] * 11)], xarray.Dataset(coords={"step": [0, 1, 2]}))
    >>> axis.get_legend_handles_labels()[1]
    ['catapult']
    """
    labels = set()
    for event in events:
        kind = str(event.kind)
        is_open = event.end < 0 and kind not in ("divergence", "death")
        end = event.end if event.end >= 0 else int(record.step[-1]) if is_open else event.peak
        label = f"{kind}, open" if is_open else kind
        style: dict[str, Any] = dict(hatch="///", fill=False) if is_open else dict(lw=0)
        style |= {} if label in labels else {"label": label}
        axis.axvspan(int(event.onset), max(int(end), int(event.onset) + 1), color=COLORS[kind], alpha=0.12, **style)
        labels.add(label)


class _PlainLabels(LogFormatter):
    """0.01 in place of 10^-2: mathematics in the labels takes a quarter of the time of a figure."""

    def __call__(self, x, pos=None):
        return super().__call__(x, pos) and f"{x:g}"


def log_scale(axis: Axes) -> None:
    """Makes the y axis logarithmic, if there is something to draw on it: a critical lr may be infinite throughout.

    Args:
      axis: with its lines.

    >>> axis = Figure().subplots()
    >>> log_scale(axis)
    >>> axis.get_yscale()
    'linear'
    """
    if any((np.asarray(line.get_ydata(), float) > 0).any() for line in axis.lines):
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(_PlainLabels())
        axis.yaxis.set_minor_formatter(_PlainLabels(labelOnlyBase=False))


def cut_top(axis: Axes, values: np.ndarray, factor: float = 1e3) -> None:
    """Ends the y axis at ``factor`` times the largest value: a member that diverged does not squeeze the others.

    Args:
      axis: with its lines, and a logarithmic scale.
      values: of the member that is drawn in full.
      factor: above 1.

    >>> axis = Figure().subplots()
    >>> line = axis.plot([1.0, 1e30])
    >>> cut_top(axis, np.array([1.0, 2.0]))
    >>> float(axis.get_ylim()[1])
    2000.0
    """
    largest = np.max(values, initial=0, where=np.isfinite(values))
    if 0 < factor * largest < axis.get_ylim()[1]:
        axis.set_ylim(top=factor * largest)


def add_legend(axis: Axes, **options: Any) -> None:
    """Adds a legend with each label once, if there are labels.

    Args:
      axis: with its lines.
      **options: of the legend.

    >>> axis = Figure().subplots()
    >>> add_legend(axis)
    >>> axis.get_legend() is None
    True
    """
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        axis.legend(list(unique.values()), list(unique), **options)
