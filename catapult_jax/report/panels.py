"""Panels, lines, strips of events and scales that the figures share."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, LogLocator

from catapult_jax.events import Event
from catapult_jax.report.members import ALL, Settings, by_setting, dead_steps, flags
from catapult_jax.report.style import BLACK, GREY, NARROW, ORANGE, PURPLE, SKY, VERMILION, WIDE, in_style, letter, new_figure

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from numpy.typing import ArrayLike

# Kind of an event -> colour and hatching of its bar.
BARS = {
    "catapult": (VERMILION, None),
    "unexplained": (SKY, None),
    "unknown": (GREY, None),
    "divergence": (BLACK, None),
    "death": (PURPLE, None),
    "dead from here": (ORANGE, "xxxxxx"),
}
MOST_PANELS = 12  # settings that are drawn
_IN_A_ROW = 4  # panels
_CHARACTER = 0.056  # mean width of a character in inches


def make_panels(
    record: xarray.Dataset,
    settings: Settings,
    *ylabels: str,
    height: float = 1.55,
    events: list[list[Event]] | None = None,
) -> tuple[Figure, list[tuple[list[Axes], np.ndarray]]]:
    """For each setting of the members one panel, or one below the other if there are several y labels.

    Args:
      record: its members make the settings; the first twelve are drawn.
      settings: of the run.
      *ylabels: from top to bottom.
      height: of a panel, in inches.
      events: of the record, for a strip of events above the first panel of each setting; None: no strip.

    Returns:
      The figure, and for each setting its axes from top to bottom and its members.

    >>> import xarray
    >>> figure, columns = make_panels(xarray.Dataset(coords={"lr_given": ("member", [0.5, 1.5])}), Settings(), "loss")
    >>> [(len(axes), members.tolist()) for axes, members in columns]
    [(1, [0]), (1, [1])]
    """
    groups = by_setting(record, settings)[:MOST_PANELS]
    in_a_row = min(len(groups), _IN_A_ROW)
    blocks, rows = -(-len(groups) // in_a_row), len(ylabels)
    dead = [] if events is None else dead_steps(record, settings)
    strip = 0.0 if events is None else _strip_height(max(len(members) for _, members in groups))
    width = NARROW if len(groups) == 1 else WIDE
    ylabels = tuple(_wrapped(ylabel, height + 0.1) for ylabel in ylabels)
    left = 0.5 + 0.13 * (1 + max(ylabel.count("\n") for ylabel in ylabels))
    shown = [] if record.sizes.get("member") == 1 and groups[0][0] == ALL else [label for label, _ in groups]
    titles = [_wrapped(label, (width - left) / in_a_row - 0.2, 4) for label in shown] or [""]
    top = 0.14 + (strip + 0.04 if strip else 0) + 0.13 * (1 + max(title.count("\n") for title in titles))
    figure, axes = new_figure(
        blocks * rows, in_a_row, height=height, width=width, left=left, top=top, gaps=(0.15, top + 0.12 if blocks > 1 else 0.25),
        sharex=True, sharey=True if rows == 1 else "row",
    )  # fmt: skip
    columns = []
    for i, ((_, members), title) in enumerate(zip(groups, titles, strict=True)):
        row, column = divmod(i, in_a_row)
        mine = list(axes[row * rows : (row + 1) * rows, column])
        for j, axis in enumerate(mine):
            number = None if len(groups) * rows == 1 else i + j * len(groups)
            letter(axis, number, title if j == 0 else "", y=1.0 + (strip / height + 0.04 if strip and j == 0 else 0.0))
        if i + in_a_row >= len(groups):
            mine[-1].tick_params(labelbottom=True)
            mine[-1].set_xlabel("step")
        if column == 0:
            for axis, ylabel in zip(mine, ylabels, strict=True):
                axis.set_ylabel(ylabel)
        if events is not None:
            mark_events(mine[0], record, events, members, dead, height=strip / height)
        columns.append((mine, members))
    for axis in axes[-rows:, (len(groups) - 1) % in_a_row + 1 :].flat:
        figure.delaxes(axis)
    return figure, columns


def _wrapped(words: str, inches: float, extra: int = 0) -> str:
    """The words in lines of that width, of which the first has room for ``extra`` more characters."""
    return textwrap.fill("x" * extra + words, int(inches / _CHARACTER), break_long_words=False)[extra:]


def _strip_height(members: int) -> float:
    """Height in inches of the strip of events of so many members."""
    return min(0.06 * members, 0.5)


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


def plot_members(
    axis: Axes, record: xarray.Dataset, values: ArrayLike, members: Iterable[int], *, label: str | None = None, **style: Any
) -> None:
    """Draws a series of several members, all in the same way, each up to the step at which it stopped.

    Args:
      axis: to draw on.
      record: its steps are the x axis.
      values: ``(member, step)``.
      members: their numbers.
      label: of all lines together, for the legend.
      **style: of the lines.

    >>> import xarray
    >>> axis = Figure().subplots()
    >>> record = xarray.Dataset(coords={"member": [0, 1], "step": [0]})
    >>> plot_members(axis, record, [[1.0], [2.0]], [0, 1], color="black", label="lr")
    >>> [(line.get_color(), line.get_linewidth()) for line in axis.lines]
    [('black', 0.7), ('black', 0.7)]
    """
    values = np.where(flags(record, "stopped"), np.nan, values)
    for i, m in enumerate(members):
        plot_finite(axis, record, values[m], **{"lw": 0.7, "label": label if i == 0 else None} | style)


def plot_dots(axis: Axes, record: xarray.Dataset, values: ArrayLike, members: np.ndarray, **style: Any) -> None:
    """Draws the values of several members as dots, each up to the step at which it stopped. A PDF has them as pixels: there may be many.

    Args:
      axis: to draw on.
      record: its steps are the x axis.
      values: ``(member, step)``; NaN: no dot.
      members: their numbers.
      **style: of the dots.

    >>> import xarray
    >>> axis, record = Figure().subplots(), xarray.Dataset(coords={"member": [0, 1], "step": [0, 1]})
    >>> plot_dots(axis, record, [[3.0, float("nan")], [4.0, 5.0]], np.array([0, 1]))
    >>> axis.lines[0].get_xydata().tolist()
    [[0.0, 3.0], [0.0, 4.0], [1.0, 5.0]]
    """
    values = np.where(flags(record, "stopped"), np.nan, values)[members]
    rows, steps = np.nonzero(np.isfinite(values))
    if len(rows):
        style = {"ls": "", "marker": ".", "ms": 1.5 if len(rows) > 1000 else 3, "mew": 0, "rasterized": True} | style
        axis.plot(record.step.values[steps], values[rows, steps], **style)


_GAP = 0.4  # steps


def mark_events(
    axis: Axes,
    record: xarray.Dataset,
    events: list[list[Event]],
    members: Sequence[int] | np.ndarray,
    dead: Sequence[int] | np.ndarray,
    *,
    height: float = 0.1,
) -> None:
    """Adds a strip above a panel, with one row for each member, from the first at the top to the last.

    A bar goes from the onset of an event to its close. A spike that is still open at the end is hatched to the last step, without a fill.
    A divergence or a death that never closes goes to its peak. A tick marks a step at which the schedule raises the lr. The steps at
    which the network is dead are hatched.

    Args:
      axis: the panel.
      record: series over (member, step).
      events: of all members of the record.
      members: that have a row.
      dead: step from which on the network of each member of the record is dead; -1: it is not.
      height: of the strip; 1 is that of the panel.

    >>> import xarray
    >>> axis, record = Figure().subplots(), xarray.Dataset({"loss_train": (("member", "step"), [[1.0, 2.0, 1.0]])})
    >>> mark_events(axis, record, [[Event("catapult", 0, 1, 2, *[0] * 11)]], [0], [-1])
    >>> axis.child_axes[0].get_legend_handles_labels()[1]
    ['catapult']
    """
    with in_style():
        strip = axis.inset_axes((0, 1.03, 1, height), sharex=axis)
    strip.set_axis_off()
    strip.set_ylim(len(members), 0)
    strip.hlines(np.arange(len(members)) + 0.5, 0, 1, transform=strip.get_yaxis_transform(), color="0.85", lw=0.4, zorder=0)
    end, bars = int(record.step[-1]), {}
    for row, m in enumerate(members):
        onsets = {int(event.onset) for event in events[m]}
        for event in events[m]:
            close, is_open = extent(event, end)
            gap = _GAP if close in onsets and close > event.onset else 0  # parts a spike from one that opens where it closes
            # one step at least, so that it can be seen
            bars.setdefault((str(event.kind), is_open), []).append(
                (row, int(event.onset), max(close, int(event.onset) + 1) - gap)
            )
        if dead[m] >= 0:
            bars.setdefault(("dead from here", False), []).append((row, int(dead[m]), max(end, int(dead[m]) + 1)))
    for (kind, is_open), places in sorted(bars.items(), key=lambda bar: (list(BARS).index(bar[0][0]), bar[0][1])):
        color, hatch = BARS[kind]
        style: dict[str, Any] = dict(facecolor=color, linewidth=0, hatch=hatch, label=kind)
        if is_open or hatch:
            style |= dict(facecolor="none", edgecolor=color, linewidth=0.5, hatch=hatch or "//////")
        style |= {"label": f"{kind}, open"} if is_open else {}
        corners = lambda row, onset, close: [(x, row + y) for x, y in ((onset, 0.1), (close, 0.1), (close, 0.9), (onset, 0.9))]
        bars_of_kind = [corners(*place) for place in places]
        strip.add_collection(PolyCollection(bars_of_kind, **style), autolim=False)
    if "stage" in record:
        rows, steps = np.nonzero(np.diff(record["stage"].values[members], axis=1) > 0)
        if len(rows):
            strip.plot(record.step.values[steps + 1], rows + 0.5, color=BLACK, ls="", marker="|", ms=4, label="lr raised")


def extent(event: Event, last: int) -> tuple[int, bool]:
    """Where the bar of an event ends.

    Args:
      event: one event.
      last: step of the record.

    Returns:
      The step, and whether the spike is still open there. A divergence or a death that never closes ends at its peak.

    >>> extent(Event("catapult", 3, 4, -1, *[0] * 11), 9), extent(Event("death", 3, 4, -1, *[0] * 11), 9)
    ((9, True), (4, False))
    """
    is_open = event.end < 0 and str(event.kind) not in ("divergence", "death")
    return int(last if is_open else event.end if event.end >= 0 else event.peak), bool(is_open)


class _PlainLabels(LogFormatter):
    """0.01 in place of 10^-2: mathematics in the labels takes a quarter of the time of a figure."""

    def __call__(self, x, pos=None):
        return super().__call__(x, pos) and f"{x:g}"


class _FewMinorTicks(LogLocator):
    """Minor ticks on less than three decades only: on more they have no labels, and take half of the time of a figure."""

    def tick_values(self, vmin, vmax):
        return np.zeros(0) if vmax > 1e3 * vmin else super().tick_values(vmin, vmax)


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
        plain_labels(axis.yaxis)


def plain_labels(axis: Axis) -> None:
    """Labels the ticks of a logarithmic axis with plain numbers, and leaves out minor ticks on three decades or more.

    Args:
      axis: the x or y axis of a panel.

    >>> axis = Figure().subplots()
    >>> axis.set_xscale("log")
    >>> plain_labels(axis.xaxis)
    >>> axis.xaxis.get_major_formatter()(0.01)
    '0.01'
    """
    axis.set_major_formatter(_PlainLabels())
    digits: Any = np.arange(2.0, 10.0)
    axis.set_minor_locator(_FewMinorTicks(subs=digits))
    axis.set_minor_formatter(_PlainLabels(labelOnlyBase=False))


def cut_top(axis: Axes, record: xarray.Dataset, values: np.ndarray, factor: float = 3) -> None:
    """Ends the y axis at ``factor`` times the largest value of the members that did not diverge: the others do not squeeze them.

    Args:
      axis: with its lines, and a logarithmic scale.
      record: of the members.
      values: that are drawn, ``(member, step)``.
      factor: above 1.

    >>> import xarray
    >>> axis, record = Figure().subplots(), xarray.Dataset({"diverged": (("member", "step"), [[False] * 2, [True] * 2])})
    >>> line = axis.plot([1.0, 1e30])
    >>> cut_top(axis, record, np.array([[1.0, 2.0], [1.0, 1e30]]))
    >>> float(axis.get_ylim()[1])
    6.0
    """
    values = np.where(flags(record, "diverged")[:, -1:], np.nan, values)
    largest = np.max(values, initial=0, where=np.isfinite(values))
    if 0 < factor * largest < axis.get_ylim()[1]:
        lowest = min(other.dataLim.ymin for other in axis.get_shared_y_axes().get_siblings(axis))
        axis.set_ylim(lowest / 1.2 if lowest > 0 else None, factor * largest)
