"""The style of all figures: sizes of a printed page, colours that colour-blind readers tell apart, and lines that grey print keeps apart."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

NARROW, WIDE = 3.25, 6.75  # width of a figure in inches: one column of a page, or two
DPI = 200  # of a PNG

# The colours of Okabe and Ito (2008).
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#999999"

# For settings side by side: the colours repeat after eight, the markers after seven, so that 56 settings differ.
PALETTE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK, YELLOW)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

RC: Any = {
    # A serif font as in a paper. It is embedded in half the time of DejaVu Sans, which has the characters that it lacks.
    "font.family": ["STIXGeneral", "DejaVu Sans"],
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "lines.linewidth": 0.8,
    "lines.markersize": 3,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,  # fonts that a publisher can read and edit
    "savefig.dpi": DPI,
}


def in_style() -> Any:
    """A context in which Matplotlib has the style of the figures.

    Returns:
      A context manager.

    >>> with in_style():
    ...     matplotlib.rcParams["pdf.fonttype"]
    42
    """
    return matplotlib.rc_context(RC)


def new_figure(
    rows: int = 1,
    columns: int = 1,
    *,
    height: float,
    width: float = WIDE,
    left: float = 0.6,
    top: float = 0.22,
    bottom: float = 0.38,
    gaps: tuple[float, float] = (0.15, 0.3),
    **options: Any,
) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of axes. All lengths are in inches: Matplotlib's own layout measures every label, which takes a third of the time.

    Args:
      rows: of axes.
      columns: of axes.
      height: of an axis.
      width: of the figure.
      left: margin for the labels of the y axis.
      top: margin for letters and titles.
      bottom: margin for the labels of the x axis.
      gaps: between columns, and between rows.
      **options: of :meth:`matplotlib.figure.Figure.subplots`.

    Returns:
      The figure and its axes, ``(rows, columns)``.

    >>> figure, axes = new_figure(2, 3, height=2.0)
    >>> axes.shape, figure.get_size_inches().round(2).tolist()
    ((2, 3), [6.75, 4.9])
    """
    right = 0.16
    total = top + rows * height + (rows - 1) * gaps[1] + bottom
    of_axis = (width - left - right - (columns - 1) * gaps[0]) / columns
    with in_style():
        figure = Figure(figsize=(width, total))
        axes = figure.subplots(rows, columns, squeeze=False, **options)
    figure.subplots_adjust(
        left / width, bottom / total, 1 - right / width, 1 - top / total, wspace=gaps[0] / of_axis, hspace=gaps[1] / height
    )
    return figure, axes


def letter(axis: Axes, number: int | None, words: str = "", y: float = 1.0) -> None:
    """Writes the letter of a panel, and what the panel shows, above it.

    Args:
      axis: the panel.
      number: of the panel, from 0; None: no letter.
      words: what it shows.
      y: lower end of the text; 1 is the top of the axes.

    >>> _, axes = new_figure(height=2.0)
    >>> letter(axes[0, 0], 1, "lr 0.5")
    >>> axes[0, 0].get_title(loc="left")
    '(b) lr 0.5'
    """
    name = "" if number is None else f"({chr(ord('a') + number)})"
    with in_style():  # with a place given, Matplotlib does not measure every label to find one
        axis.set_title(f"{name} {words}".strip(), loc="left", y=y, parse_math=False)


def add_legend(figure: Figure) -> None:
    """Adds one legend for all panels below them, with each label once, if there are labels. The figure gets higher by the legend.

    Args:
      figure: from :func:`new_figure`, with its lines.

    >>> figure, axes = new_figure(height=2.0)
    >>> add_legend(figure)
    >>> figure.legends
    []
    """
    unique: dict[str, Any] = {}
    for axis in figure.axes:
        parts: Any = (axis, *axis.child_axes)
        for part in parts:
            for handle, label in zip(*part.get_legend_handles_labels(), strict=True):
                unique.setdefault(label, handle)
    if not unique:
        return
    width, height = figure.get_size_inches()
    columns = _columns(list(unique), width)
    extra = 0.08 + 0.14 * -(-len(unique) // columns)
    with in_style():
        options: dict[str, Any] = dict(ncols=columns, columnspacing=1.2, handlelength=2.2, borderaxespad=0.2)
        legend = figure.legend(list(unique.values()), list(unique), loc="lower center", **options)
    for text in legend.get_texts():
        text.set_parse_math(False)
    for handle in legend.legend_handles:
        if isinstance(handle, Line2D):
            handle.set_markersize(max(handle.get_markersize(), 3.5))  # a small dot can't be seen alone
    place = figure.subplotpars
    figure.set_size_inches(width, height + extra)
    figure.subplots_adjust(
        bottom=(place.bottom * height + extra) / (height + extra), top=(place.top * height + extra) / (height + extra)
    )


def _columns(labels: list[str], width: float) -> int:
    """The most columns of a legend that fit into a width in inches."""
    for columns in range(len(labels), 1, -1):
        longest = [max(map(len, part)) for part in np.array_split(np.array(labels, object), columns)]
        if sum(0.55 + 0.05 * length for length in longest) <= width:
            return columns
    return 1
