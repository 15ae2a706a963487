"""Figures of what a record does not hold: the directions of the AGOPs of a run, and the runs of a sweep."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from catapult_jax.records import DamagedFile
from catapult_jax.report.outcomes import CRITICAL_STEPS, METRICS
from catapult_jax.report.statistics import interval
from catapult_jax.report.style import DASHES, MARKERS, NARROW, PALETTE, add_legend, letter, new_figure

DIRECTIONS_CAPTION = (
    "Top eigenvectors of the AGOP: of the reference, and of the first seed of each setting. They are images where the inputs are images. "
    "Their signs are arbitrary. Each vector has its own scale of colours."
)
SWEEP_CAPTION = (
    "Where the runs of a sweep ended, against the axes of the sweep: the mean with its 95 % bootstrap interval over seeds, for each "
    "setting of the members."
)


_LABELS = METRICS | {"critical_steps": CRITICAL_STEPS, "first_peak_ratio": "peak of the first spike over its level"}


def directions_figure(path: Path) -> Figure:
    """Top eigenvectors of the AGOPs of a run.

    Args:
      path: of its agop.npz.

    Raises:
      DamagedFile: it can't be read.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            names, vectors, shape = stored["names"], stored["vectors"], tuple(stored["shape"])
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError) as error:
        raise DamagedFile(f"{path} is damaged; the command of the run writes it again") from error
    count, k = vectors.shape[:2]
    is_image = len(shape) == 3
    left = 0.15 + 0.05 * max(len(str(name)) for name in names)
    size = (NARROW - left - 0.1 * k) / k  # of an image
    figure, axes = new_figure(
        count, k, height=size if is_image else 0.25, width=NARROW, left=left, top=0.08, bottom=0.08, gaps=(0.08, 0.08)
    )
    for row in range(count):
        axes[row, 0].set_ylabel(str(names[row]), fontsize=7, rotation=0, ha="right", va="center", parse_math=False)
        for column in range(k):
            axis, vector = axes[row, column], vectors[row, column]
            vector = vector / np.abs(vector).max()
            if is_image and shape[-1] == 3:
                axis.imshow((vector.reshape(shape) + 1) / 2)
            else:
                pixels = vector.reshape(shape[:2] if is_image else (1, -1))
                axis.imshow(pixels, cmap="RdBu", vmin=-1, vmax=1, aspect="equal" if is_image else "auto")
            axis.set_xticks([])
            axis.set_yticks([])
    return figure


def sweep_figure(rows: list[dict], names: tuple[str, ...]) -> Figure:
    """Where the runs of a sweep ended, against its axes.

    Args:
      rows: of the summary of the sweep.
      names: of its axes.
    """
    names = _deciding(rows, names)
    place_of = lambda row: (
        row[names[0]] if len(names) == 1 else " ".join(str(row[name]) for name in names if row[name] is not None)
    )
    measured = [name for name in METRICS if any(name in row for row in rows)] or ["first_peak_ratio"]
    cause = "catapults" if any("catapults" in row for row in rows) else "critical_steps"  # catapults need the training loss
    metrics = [name for name in (cause, *measured) if any(name in row for row in rows)]
    places = list(dict.fromkeys(map(place_of, rows)))
    is_numeric = all(isinstance(place, (int, float)) for place in places)
    are_many = len(places) > 8
    words = [] if is_numeric else [str(place).replace(" ", ", " if are_many else "\n") for place in places]
    longest = max((len(line) for word in words for line in word.split("\n")), default=0)
    bottom = 0.38 + (0.04 * longest + 0.06 * max(word.count("\n") for word in words) if words else 0.0)
    figure, axes = new_figure(1, len(metrics), height=1.7, left=0.62, bottom=bottom, gaps=(0.7, 0))
    for i, (axis, name) in enumerate(zip(axes[0], metrics, strict=True)):
        _plot_settings(axis, rows, name, places, place_of, is_numeric)
        if is_numeric and min(places) > 0:
            axis.set_xscale("log", base=2)
            axis.set_xticks(sorted(places), _apart(sorted(places)) if len(places) < 9 else None)
        elif words:
            axis.set_xticks(
                range(len(places)), words, parse_math=False,
                rotation=90 if are_many else 40, rotation_mode="anchor", horizontalalignment="right",
                verticalalignment="center" if are_many else "top",
            )  # fmt: skip
        axis.locator_params(axis="y", nbins=5)
        axis.set_xlabel(", ".join(map(_words_of, names)), parse_math=False)
        axis.set_ylabel(_LABELS.get(name, name))
        letter(axis, None if len(metrics) == 1 else i)
    add_legend(figure)  # it has no labels if no member finished
    return figure


def _apart(places: list[float]) -> list[str]:
    """Labels on a logarithmic axis; none for a place so near to the last one that the two would meet.

    >>> _apart([5, 10, 20, 25])
    ['5', '10', '20', '']
    """
    labels, last = [], 0.0
    for place in places:
        labels.append(f"{place:g}" if place > 1.4 * last else "")
        last = place if labels[-1] else last
    return labels


def _deciding(rows: list[dict], names: tuple[str, ...]) -> tuple[str, ...]:
    """The axes without those that follow from the others, such as a method that goes with each batch size.

    >>> _deciding([{"size": 5, "method": "exact"}, {"size": 10, "method": "exact"}], ("size", "method"))
    ('size',)

    An axis that is not given everywhere can't stand for the others.

    >>> _deciding([{"optimizer": "sgd", "start": None}, {"optimizer": "adagrad", "start": 0.1}, {"optimizer": "adagrad", "start": 0.0}], ("optimizer", "start"))
    ('optimizer', 'start')
    """
    count = lambda kept: len({tuple(row[name] for name in kept) for row in rows})
    for name in reversed(names):
        rest = tuple(other for other in names if other != name)
        is_given = all(row[other] is not None for row in rows for other in rest)
        if rest and is_given and count(rest) == count(names):
            names = rest
    return names


def _words_of(name: str) -> str:
    """The name of a field in words.

    >>> _words_of("optimizer.batch_size"), _words_of("optimizer.name")
    ('batch size', 'optimizer')
    """
    *_, group, field = ("", *name.split("."))
    return group if field == "name" else field.replace("_", " ")


def _plot_settings(
    axis, rows: list[dict], name: str, places: list, place_of: Callable[[dict], object], is_numeric: bool
) -> None:
    """One line for each setting of the members: means and intervals of the column ``name`` over the members that finished."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    finished = [row for row in rows if row["finished"] and name in row]
    for s, setting in enumerate(settings):
        x, y = [], []
        shift = 0.6 * ((s + 0.5) / len(settings) - 0.5)  # side by side, where places are words
        for i, place in enumerate(places):
            values = [row[name] for row in finished if place_of(row) == place and row["setting"] == setting]
            if values:
                x.append(place if is_numeric else i + shift)
                y.append(interval(values))
        if x:
            mean, low, high = np.array(y).T
            error = np.stack([mean - low, high - mean])  # none is drawn where it is NaN
            line = DASHES[s % len(DASHES)] if is_numeric else "none"
            style = {"color": PALETTE[s % len(PALETTE)], "marker": MARKERS[s % len(MARKERS)], "label": setting}
            axis.errorbar(x, mean, yerr=error, ms=3, capsize=2, ls=line, lw=0.8, elinewidth=0.8, **style)
