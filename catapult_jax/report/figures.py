"""Figures of a run, from its record alone: which are written, from which series, with which caption."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.figure import Figure

from catapult_jax import records
from catapult_jax.events import Event
from catapult_jax.report import curves, outcomes
from catapult_jax.report.analysis import run_events
from catapult_jax.report.members import Settings, by_setting, finished, has_events, own_series
from catapult_jax.report.panels import MOST_PANELS
from catapult_jax.report.statistics import counted
from catapult_jax.report.style import VERMILION, in_style

if TYPE_CHECKING:
    import xarray

STRIP = (
    "The bars above a panel are the events, one row for each seed: from the onset of a spike to its close; a spike that is open at the "
    "end is hatched."
)


# Captions.


def sizes(record: xarray.Dataset, settings: Settings) -> str:
    """How many members, settings and seeds a figure shows, as the end of its caption.

    Args:
      record: series over (member, step).
      settings: of the run.

    Returns:
      One or two sentences.

    >>> import xarray
    >>> record = xarray.Dataset(coords={"lr_given": ("member", [0.5, 0.5]), "seed": ("member", [0, 1])})
    >>> sizes(record, Settings())
    'n = 2 members: 1 setting, 2 seeds.'
    """
    groups = by_setting(record, settings)
    seeds = [counted(len(set(record["seed"].values.tolist())), "seed")] if "seed" in record.coords else []
    parts = ", ".join([counted(len(groups), "setting"), *seeds])
    more = f" The first {MOST_PANELS} settings are drawn." if len(groups) > MOST_PANELS else ""
    return f"n = {counted(record.sizes['member'], 'member')}: {parts}.{more}"


def _sizes_of_ends(record: xarray.Dataset, settings: Settings) -> str:
    """How many members a figure of where training ended shows."""
    numbers = finished(record, settings).sum(), len(by_setting(record, settings))
    return f"n = {counted(int(numbers[0]), 'member')} that finished, of {record.sizes['member']}; {counted(numbers[1], 'setting')}."


def _sizes_of_arms(record: xarray.Dataset, settings: Settings) -> str:
    """Over how many seeds the figure of the arms goes."""
    of_arms = outcomes.members_of_arms(record)
    complete, most = len(outcomes.complete_seeds(record, settings)), max(map(len, of_arms.values()))
    words = f"n = {counted(complete, 'seed')} that finished in every arm, of {most}."
    return words if complete else f"{words} Panel (a) shows all members."


# The figures.


class Drawing(NamedTuple):
    """A figure, what it needs, and its caption."""

    draw: Callable[..., Figure]  # (record, settings) -> figure
    series: tuple[tuple[str, ...], ...]  # one series of each group must be on record
    caption: str
    with_events: bool = False  # whether draw takes the events too
    sizes: Callable[..., str] = sizes  # what n is, for the caption
    when: Callable[..., bool] | None = None  # (record, settings) -> whether it is drawn; None: wherever its series are


FIGURES = {
    "loss": Drawing(
        curves.loss_figure,
        (("loss_train", "loss_batch"),),
        f"The loss; dashed and dotted, where they are measured, its parts inside and outside the top eigenspace. {STRIP} A line that leaves the panel at its top diverged.",
        with_events=True,
    ),
    "lambda_max": Drawing(
        curves.lambda_figure,
        (("lambda_max_batch",),),
        "Largest eigenvalue of the loss-weighted kernel. Above the dashed line, drawn where the critical lr is known, the lr is critical; clipping and momentum move it.",
    ),
    "lr_over_critical_lr": Drawing(
        curves.ratio_figure,
        (("lr",), ("critical_lr_batch",)),
        "Learning rate over critical learning rate of the batch. Above one (dashed) the step is critical. Triangles, if any: the loss of the "
        "batch rises in this step, as far as it is known. Crosses, if any: it is not certain on which side of one. "
        "Bars above a panel, if any, are the spikes of each seed, from onset to close.",
        with_events=True,
    ),
    "directional": Drawing(
        curves.directional_figure,
        (("directional_batch",),),
        "Multiple of the update at which the loss of the batch stops falling, in the quadratic model. Below one (dashed) the loss rises in "
        "this step. Triangles, if any: it does, as far as it is known. Steps without a descent direction are left out.",
    ),
    "conditioning": Drawing(
        curves.conditioning_figure,
        (("lambda_max_train",), ("condition_number_train",)),
        f"Spectral norm and condition number of the tangent kernel of the training set. {STRIP}",
        with_events=True,
    ),
    "preconditioner": Drawing(
        curves.preconditioner_figure,
        (("lr",), ("critical_lr_batch",), ("critical_lr_bound_batch",), ("preconditioner_min",)),
        "Above: critical lr of the optimizer, the bound from the smallest entry of its preconditioner, and the lr. Below: that entry.",
    ),
    "scores": Drawing(
        curves.scores_figure,
        (("loss_batch",), ("error_test",)),
        "Loss of the batch, and test error, along training.",
    ),
    "own_metrics": Drawing(
        curves.own_figure,
        (),
        "Metrics of your own, along training.",
        when=lambda record, _: bool(own_series(record)),
    ),
    "agop_alignment": Drawing(
        curves.alignment_figure,
        (("agop_alignment",),),
        f"Alignment of the network's AGOP with that of the reference, along training. {STRIP}",
        with_events=True,
    ),
    "against_catapults": Drawing(
        outcomes.against_catapults_figure,
        (("agop_alignment",), ("loss_test",)),
        "Where training ended, against the number of catapults. Small: the members. Large: the mean of a setting with its 95 % bootstrap "
        "interval over seeds.",
        with_events=True,
        sizes=_sizes_of_ends,
        when=has_events,
    ),
    "against_critical_steps": Drawing(
        outcomes.against_critical_steps_figure,
        (("lr",), ("critical_lr_batch",), ("agop_alignment", "loss_test", "error_test")),
        "Where training ended, against the fraction of steps above the critical lr. Small: the members. Large: the mean of a setting with its "
        "95 % bootstrap interval over seeds.",
        sizes=_sizes_of_ends,
        when=lambda record, settings: not has_events(record, settings),  # else against_catapults says more
    ),
    "alignment_against_test_loss": Drawing(
        outcomes.alignment_against_test_loss_figure,
        (("agop_alignment",), ("loss_test",)),
        "AGOP alignment against test loss where training ended. Each mark is a member.",
        sizes=_sizes_of_ends,
    ),
    "arms": Drawing(
        outcomes.arms_figure,
        (("intervention",), ("loss_train",), ("loss_test",)),
        "The arms of the causal test. (a) Test loss where the training loss first comes down to a level; mean over seeds with its 95 % "
        "bootstrap interval. The other panels: differences to the arm none where training ended, paired by seed. Ticks: the seeds. "
        "Marks: their mean with its 95 % bootstrap interval.",
        sizes=_sizes_of_arms,
    ),
}


def write_all(
    record: xarray.Dataset,
    settings: Settings,
    title: str,
    folder: Path,
    events: list[list[Event]] | None = None,
    note: str = "",
) -> dict[str, tuple[Path, str]]:
    """Writes every figure whose series are on record, as PNG and PDF.

    Args:
      record: series over (member, step).
      settings: of the run.
      title: the captions begin with it.
      folder: for the files; it is created.
      events: of the record; None: they are found here.
      note: in the corner of every figure.

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
    is_measured = lambda series: series in record and bool(record[series].notnull().any())
    files = {}
    for name, drawing in FIGURES.items():
        is_for_it = drawing.when is None or drawing.when(record, settings)
        if is_for_it and all(any(map(is_measured, group)) for group in drawing.series):
            more = {"events": events} if drawing.with_events else {}
            picture = save(drawing.draw(record, settings, **more), folder / name, note)
            files[name] = picture, f"{title}. {drawing.caption} {drawing.sizes(record, settings)}"
    return files


def save(figure: Figure, path: Path, note: str = "") -> Path:
    """Writes a figure as PNG and PDF. The same figure has the same bytes.

    Args:
      figure: the figure.
      path: without a suffix.
      note: in the corner at the top right.

    Returns:
      The path of the PNG.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Figure(), Path(folder, "empty")).name
    'empty.png'
    """
    with in_style():
        if note:
            figure.text(0.995, 0.995, note, ha="right", va="top", color=VERMILION, parse_math=False)
        for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", None)):
            buffer = io.BytesIO()
            # Into memory: on a full disk Matplotlib does not raise OSError, and write_bytes does.
            figure.savefig(buffer, format=suffix, metadata=metadata)
            records.write_bytes(path.with_suffix(f".{suffix}"), buffer.getbuffer())
    return path.with_suffix(".png")
