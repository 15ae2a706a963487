"""The sections of a run's report that need its record alone: one function each, from the record to a section of blocks.

A section without blocks is left out of the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from catapult_jax.criteria import SPIKE_SCORE, spike_score
from catapult_jax.events import DEFINITION, Event
from catapult_jax.report.analysis import (
    alignment_around,
    catapult_counts,
    rise_predictions,
    spike_counts,
    uncertain_steps,
)
from catapult_jax.report.chance import exceedance_by_chance
from catapult_jax.report.members import (
    Settings,
    by_setting,
    dead_members,
    diverged_members,
    finished,
    has_events,
    last,
    spike_series,
)
from catapult_jax.report.opening import opening
from catapult_jax.report.page import Block, Section, image, table, text
from catapult_jax.report.statistics import counted, text_of
from catapult_jax.report.watched import critical_steps, doubts, layers
from catapult_jax.spikes import FACTORS

if TYPE_CHECKING:
    import xarray

END_SERIES = ("loss_train", "loss_test", "error_test", "loss_val", "error_val", "agop_alignment", "agop_pearson")
_MOST_EVENTS = 200  # rows of the table of spikes
COLUMNS = (
    "overshoot: the growth of the top mode's loss from onset to peak as a logarithm, from lr and critical lr. fraction in top space: part of "
    "the rise inside the top eigenvectors. lr and critical lr: at the onset. lambda before and after: the top eigenvalue of the same examples."
)


def all_sections(
    record: xarray.Dataset, settings: Settings, events: list[list[Event]], figures: Mapping[str, tuple[Path, str]]
) -> list[Section]:
    """All sections of this module in their order.

    Args:
      record: series over (member, step), at least one step.
      settings: of the run.
      events: of the record.
      figures: as :func:`catapult_jax.report.figures.write_all` returns them.

    Returns:
      Sections.

    >>> import xarray
    >>> record = xarray.Dataset({"loss_train": (("member", "step"), [[1.0, 3.0, 1.0]])})
    >>> [section.heading for section in all_sections(record, Settings(), [[]], {}) if section.blocks]
    ['', 'Spikes above 1.5 times the level', 'Number of spikes for each factor']
    """
    return [
        opening(record, settings, events),
        doubts(record, settings, events),
        diverged(record, settings),
        dead(record, settings),
        initialisation(record),
        certainty(record),
        critical_steps(record),
        pictures(figures),
        ends(record, settings, events),
        spikes(record, settings, events),
        counts(record, settings),
        *predictions(record, settings, events),
        *layers(record, events),
    ]


def diverged(record: xarray.Dataset, settings: Settings) -> Section:
    """Members that diverged.

    Args:
      record: series over (member, step).
      settings: of the run.

    Returns:
      A section.

    >>> import xarray
    >>> diverged(xarray.Dataset({"diverged": (("member", "step"), [[False, True]])}), Settings()).heading
    'Members that diverged'
    """
    rows = [tuple(row.values()) for row in diverged_members(record, settings)]
    words = "Each keeps its weights from its step on. Later steps are in no figure and no table."
    return Section("Members that diverged", [text(words), table(("member", "step", "cause"), rows)] if rows else [])


def dead(record: xarray.Dataset, settings: Settings) -> Section:
    """Members whose network is dead.

    Args:
      record: series over (member, step).
      settings: of the run.

    Returns:
      A section.

    >>> import xarray
    >>> dead(xarray.Dataset({"loss_train": (("member", "step"), [[1.0]])}), Settings()).blocks
    []
    """
    rows = [tuple(row.values()) for row in dead_members(record, settings)]
    words = "From its step on the kernel of each is exactly zero. It does not learn after that, and does not count as finished."
    return Section("Members whose network is dead", [text(words), table(("member", "step"), rows)] if rows else [])


def initialisation(record: xarray.Dataset) -> Section:
    """Learning rates of the members, beside the critical ones at initialisation.

    Args:
      record: its coordinates ``seed``, ``raises``, ``cap``, ``lr0_over_critical``, ``lr0`` and ``critical_lr0``, where present.

    Returns:
      A section.

    >>> import xarray
    >>> record = xarray.Dataset(coords={"lr0": ("member", [0.5])})
    >>> initialisation(record).blocks[0].content["header"]
    ('member', 'initial lr')
    """
    names = ("seed", "raises", "cap", "lr0_over_critical", "lr0", "critical_lr0")
    axes = [axis for axis in names if axis in record.coords]
    if not axes:
        return Section("", [])
    members_of: dict[tuple, list[int]] = {}  # members with equal values share a row
    for m in range(record.sizes["member"]):
        members_of.setdefault(tuple(record[axis].values[m].item() for axis in axes), []).append(m)
    rows = [(f"{m[0]} and {len(m) - 1} more" if len(m) > 1 else m[0], *values) for values, m in members_of.items()]
    labels = {"lr0_over_critical": "initial lr / critical lr", "lr0": "initial lr", "critical_lr0": "critical lr"}
    header = ("member", *(labels.get(axis, axis) for axis in axes))
    return Section("Critical learning rate at initialisation", [table(header, rows)])


def certainty(record: xarray.Dataset) -> Section:
    """At how many steps the side of the critical lr is not certain, and how often an eigenvalue search reached its tolerance.

    Args:
      record: series over (member, step).

    Returns:
      A section without heading.

    >>> import xarray
    >>> series = {"lr": [[1.0, 1.0]], "critical_lr_batch": [[1.0, 2.0]]}
    >>> record = xarray.Dataset({name: (("member", "step"), values) for name, values in series.items()})
    >>> "1 of 2 measured steps" in certainty(record).blocks[0].content["words"]
    True
    """
    blocks = []
    if {"lr", "critical_lr_batch"} <= set(record) and record["critical_lr_batch"].notnull().any():
        uncertain, measured = uncertain_steps(record), ~np.isnan(record["critical_lr_batch"].values)
        words = f"It is certain at all {int(measured.sum())} measured steps whether the lr is above its critical value."
        if uncertain.any():
            words = (
                f"It is not certain whether the lr is above its critical value at {int(uncertain.sum())} of {int(measured.sum())} measured steps: the "
                "crosses in the figure of the ratio."
            )
        if uncertain.any() and {"eigenvalue_bounds", "lambda_max_batch_bound"} & set(record):
            words += (
                " An eigenvalue from kernel-vector products is a lower bound. So a step that is above is so for certain; one that is below may be above, "
                "if the bound of its search reaches that far."
            )
        if "critical_lr_margin" in record.attrs:
            words += (
                f" No side is certain within {record.attrs['critical_lr_margin']:.1e} of the critical lr. This is the rounding of the kernel: n times the "
                "largest error of an entry."
            )
        blocks.append(text(words))
    for name in [str(name) for name in record if str(name).startswith("converged")]:
        values = record[name].values[~np.isnan(record[name].values)]
        words = f"{name}: the eigenvalue search reached its tolerance at {int(values.sum())} of {values.size} measured steps."
        blocks.append(text(words))
    return Section("", blocks)


def pictures(figures: Mapping[str, tuple[Path, str]]) -> Section:
    """The figures.

    Args:
      figures: for each the path of its PNG, and its caption.

    Returns:
      A section without heading.

    >>> pictures({}).blocks
    []
    """
    return Section("", [image(path, caption) for path, caption in figures.values()])


def ends(record: xarray.Dataset, settings: Settings, events: list[list[Event]]) -> Section:
    """The last measured values, as means over the seeds of each setting.

    Args:
      record: with two series of :data:`END_SERIES` at least.
      settings: of the run.
      events: of the record.

    Returns:
      A section.

    >>> import xarray
    >>> record = xarray.Dataset({name: (("member", "step"), [[0.5]]) for name in ("loss_train", "loss_test")})
    >>> ends(record, Settings(), [[]]).blocks[0].content["rows"]
    [['all members', '1 of 1', '0.5', '0.5']]
    """
    names = [name for name in END_SERIES if name in record]
    if len(names) < 2:
        return Section("", [])
    values, ok = {name: last(record, settings, name) for name in names}, finished(record, settings)
    if has_events(record, settings) and "critical_lr_batch" in record:
        values = {"catapults": catapult_counts(events)} | values
    rows = [
        (label, f"{ok[m].sum()} of {len(m)}", *(text_of(column[m[ok[m]]]) for column in values.values()))
        for label, m in by_setting(record, settings)
    ]
    means = table(("setting", "members that finished", *values), rows)
    return Section("Where training ended", [means, text("Mean over seeds with its 95 % bootstrap interval.")])


def spikes(record: xarray.Dataset, settings: Settings, events: list[list[Event]]) -> Section:
    """The events of all members.

    Args:
      record: series over (member, step).
      settings: of the run.
      events: of the record.

    Returns:
      A section.

    >>> import xarray
    >>> section = spikes(xarray.Dataset({"loss_train": (("member", "step"), [[1.0]])}), Settings(), [[]])
    >>> section.heading, section.blocks[1].content["words"]
    ('Spikes above 1.5 times the level', 'None.')
    """
    if spike_series(record) not in record:
        return Section("", [])
    around = ("alignment before", "alignment after") if "agop_alignment" in record else ()
    header = (
        "member", "kind", "onset", "peak", "end", "returned", "peak / level", "overshoot", "fraction in top space", "lr", "critical lr",
        "lambda before", "lambda after", *around,
    )  # fmt: skip
    pairs = [(m, event) for m, row in enumerate(events) for event in row]
    rows = [(m, *_event_row(event), *alignment_around(record, m, event).values()) for m, event in pairs[:_MOST_EVENTS]]
    nothing = (
        "None."
        if has_events(record, settings)
        else "Not looked for: this needs the training loss of every step, and none that is negative."
    )
    blocks = [text(DEFINITION), table(header, rows) if rows else text(nothing)]
    if len(pairs) > len(rows):
        blocks.append(text(f"The first {len(rows)} of {len(pairs)}; all are in events.jsonl."))
    if pairs:
        blocks.append(text(f"The first one: {pairs[0][1]}"))
        blocks += _by_chance(record, settings, pairs)
        blocks.append(text(COLUMNS))
    if settings.smoothing is not None and "loss_train" not in record:
        delay = round(1 / (1 - settings.smoothing))
        blocks.append(
            text(
                f"The losses of these spikes are moving averages (weight of the past {settings.smoothing:g}), so that the noise of batches is no "
                f"spike. They are lower and later than single losses, and an exceedance up to {delay} steps before the onset counts."
            )
        )
    return Section(f"Spikes above {settings.factor} times the level", blocks)


def _by_chance(record: xarray.Dataset, settings: Settings, pairs: list[tuple[int, Event]]) -> list[Block]:
    """How many spikes are catapults, and how many would be if the steps above the critical lr had nothing to do with them."""
    known = [(m, event) for m, event in pairs if event.kind in ("catapult", "unexplained")]
    if not known or "critical_lr_batch" not in record:
        return []
    chance = np.nanmean([exceedance_by_chance(record, settings, m, event) for m, event in known])
    number = sum(event.kind == "catapult" for _, event in known)
    return [
        text(
            f"{number} of {counted(len(known), 'spike')} of known kind {'is a catapult' if number == 1 else 'are catapults'}. By chance it would be "
            f"{chance:.0%}: so many windows of the same length have a step above the critical lr, wherever they lie."
        )
    ]


def _event_row(event: Event) -> tuple[Any, ...]:
    """Cells of one event."""
    end = event.end if event.end >= 0 else "-" if event.kind in ("divergence", "death") else "open"
    returned = event.returned if event.returned >= 0 else "-"
    sizes = (event.peak_ratio, event.overshoot, event.fraction_top, event.lr, event.critical_lr)
    return (event.kind, event.onset, event.peak, end, returned, *sizes, event.lambda_max_before, event.lambda_max_after)


def counts(record: xarray.Dataset, settings: Settings) -> Section:
    """Number of spikes on a grid of factors, so that no result depends on one threshold.

    Args:
      record: with the loss of :func:`catapult_jax.report.members.spike_series`.
      settings: of the run.

    Returns:
      A section.

    >>> import xarray
    >>> counts(xarray.Dataset({"loss_train": (("member", "step"), [[1.0, 1.8, 1.0]])}), Settings()).blocks[0].content["rows"]
    [['0', '1', '1', '0', '0', '0', '0']]
    """
    if spike_series(record) not in record or not has_events(record, settings):
        return Section("", [])
    numbers = spike_counts(record, settings)
    above = [int((spike_score(row) > SPIKE_SCORE).sum()) for row in record[spike_series(record)].values]
    header = ("member", *(f"above {factor}" for factor in FACTORS), f"steps with a score above {SPIKE_SCORE:g}")
    rows = [(m, *(numbers[m][factor] for factor in FACTORS), score) for m, score in enumerate(above)]
    words = "Score: standard deviations above the mean of the last 128 values of the loss. The first 128 steps have none."
    return Section("Number of spikes for each factor", [table(header, rows), text(words)])


def predictions(record: xarray.Dataset, settings: Settings, events: list[list[Event]]) -> list[Section]:
    """An lr above the critical lr as a predictor of a rise, for each loss that may rise.

    Args:
      record: with the series of :func:`catapult_jax.report.analysis.rise_predictions`.
      settings: of the run.
      events: of the record.

    Returns:
      Sections; none if a series is missing.

    >>> import xarray
    >>> predictions(xarray.Dataset({"loss_train": (("member", "step"), [[1.0]])}), Settings(), [[]])
    []
    """
    if not {"lr", "critical_lr_batch", "loss_batch", "loss_batch_after", "loss_train"} <= set(record):
        return []
    header = ("member", "above, rose", "above, fell", "below, rose", "below, fell", "precision", "recall", "F1", "base rate")
    words = text("Above: the lr is above the critical lr of the batch.")
    return [
        Section("Exceedance as a predictor of a rise in the step", [words]),
        *(
            Section(name, [table(header, [(m, *row) for m, row in enumerate(tables)])], level=3)
            for name, tables in rise_predictions(record, settings, events).items()
        ),
    ]
