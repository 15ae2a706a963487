"""Figures of what a record does not hold: the directions of the AGOPs of a run, and the runs of a sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from catapult_jax.report.figures import METRICS
from catapult_jax.report.panels import add_legend
from catapult_jax.report.statistics import interval

DIRECTIONS_CAPTION = (
    "Top eigenvectors of the AGOP: of the reference, and of the first seed of each setting. They are images where the inputs are images. "
    "Their signs are arbitrary. Each vector has its own scale of colours."
)
SWEEP_CAPTION = (
    "Where the runs of a sweep ended, against the axes of the sweep: the mean with its 95 % interval over seeds, for each setting of the "
    "members."
)


def directions_figure(path: Path, title: str) -> Figure:
    """Top eigenvectors of the AGOPs of a run.

    Args:
      path: of its agop.npz.
      title: of the figure.
    """
    with np.load(path, allow_pickle=False) as stored:
        names, vectors, shape = stored["names"], stored["vectors"], tuple(stored["shape"])
    count, k = vectors.shape[:2]
    is_image = len(shape) == 3
    figure = Figure(figsize=(1.6 * k + 1.6, (1.7 if is_image else 0.7) * count + 0.8))
    axes = figure.subplots(count, k, squeeze=False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    for row in range(count):
        axes[row, 0].set_ylabel(str(names[row]), fontsize=6, rotation=0, ha="right", va="center")
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


def sweep_figure(rows: list[dict], names: tuple[str, ...], title: str) -> Figure:
    """Where the runs of a sweep ended, against its axes.

    Args:
      rows: of the summary of the sweep.
      names: of its axes.
      title: of the figure.
    """
    place_of = lambda row: row[names[0]] if len(names) == 1 else " ".join(str(row[name]) for name in names)
    metrics = [name for name in ("catapults", *METRICS) if any(name in row for row in rows)]
    places = list(dict.fromkeys(map(place_of, rows)))
    is_numeric = all(isinstance(place, (int, float)) for place in places)
    figure = Figure(figsize=(1 + 3.6 * len(metrics), 3.6))
    axes = figure.subplots(1, len(metrics), squeeze=False)
    figure.suptitle(title, fontsize=10, parse_math=False)
    for axis, name in zip(axes[0], metrics, strict=True):
        _plot_settings(axis, rows, name, places, place_of, is_numeric)
        if is_numeric and min(places) > 0:
            axis.set_xscale("log", base=2)
        elif not is_numeric:
            axis.set_xticks(
                range(len(places)), [str(place).replace(" ", "\n") for place in places], fontsize=7, parse_math=False,
                rotation=40, rotation_mode="anchor", horizontalalignment="right",
            )  # fmt: skip
        axis.set_xlabel(", ".join(names))
        axis.set_ylabel(METRICS.get(name, name))
    add_legend(axes[0, 0], fontsize=6)  # it has no labels if no member finished
    return figure


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
            line = "-" if is_numeric else "none"
            axis.errorbar(x, mean, yerr=error, marker="o", ms=3, capsize=2, ls=line, lw=1, elinewidth=1, label=setting)
