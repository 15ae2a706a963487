"""Sections for the loop of a user: what to doubt, which steps were critical, which layer made a spike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from catapult_jax import records
from catapult_jax.events import Event
from catapult_jax.report.analysis import uncertain_steps
from catapult_jax.report.chance import exceedance_by_chance, spikes_of_noise
from catapult_jax.report.members import Settings
from catapult_jax.report.page import Block, Section, table, text
from catapult_jax.report.statistics import counted

if TYPE_CHECKING:
    import xarray

_MOST_RANGES = 20  # of steps, in a sentence
_MOST_WINDOWS = 200  # catapults whose chance is counted
_DOUBTFUL = 0.1  # a larger fraction of uncertain steps is worth a warning
_DOUBTFUL_CHANCE = 0.5  # the same for the fraction of windows that have an exceedance
_DOUBTFUL_NOISE = 0.3  # the same for the fraction of the spikes that noise makes


def doubts(record: xarray.Dataset, settings: Settings, events: Sequence[Sequence[Event]]) -> Section:
    """What makes the numbers of a record doubtful: steps that are not on record, no critical lr at any step, one that is not certain or not
    measured, another loss than that of the training step, spikes that the scatter of batches makes alone, catapults by chance.

    Args:
      record: series over (member, step).
      settings: of the run.
      events: of the record.

    Returns:
      A section; empty where there is nothing to doubt.

    >>> import xarray
    >>> series = {"loss_batch": [[1.0, 1.0]], "loss_of_watch": [[1.0, 2.0]]}
    >>> record = xarray.Dataset({name: (("member", "step"), values) for name, values in series.items()})
    >>> doubts(record, Settings(), [[]]).blocks[0].content["words"][:53]
    'At 1 of 2 measured steps the watch found another loss'
    """
    blocks = [*_missing_steps(record)]
    if "critical_lr_batch" in record and not record["critical_lr_batch"].notnull().any():
        blocks.append(
            text(
                "The critical lr is not known at any step, so no spike has a known cause. The optimizer has no rule, or the step did not give "
                "what its rule needs (gradient, opt_state_before): a warning at the first step says which. Or updates, opt_state and gradient were "
                "not those of one step of the optimizer."
            )
        )
    if {"lr", "critical_lr_batch"} <= set(record):
        uncertain, measured = uncertain_steps(record), record["critical_lr_batch"].notnull().values
        if uncertain.sum() > _DOUBTFUL * measured.sum():
            blocks.append(
                text(
                    f"At {int(uncertain.sum())} of {int(measured.sum())} measured steps it is not certain whether the lr is above its critical value, "
                    "since the search for the eigenvalue ended early. A step above is certain. A spike that is called unexplained may be a catapult. "
                    "More products (max_products=8) or the exact kernel (method='exact') make it certain."
                )
            )
    if {"loss_batch", "loss_of_watch"} <= set(record):
        of_step, of_watch = record["loss_batch"].values, record["loss_of_watch"].values
        measured = np.isfinite(of_step) & np.isfinite(of_watch)
        with np.errstate(invalid="ignore"):  # two infinite losses
            differs = measured & (np.abs(of_watch - of_step) > records.LOSS_TOLERANCE * np.abs(of_step))
        if differs.any():
            blocks.append(
                text(
                    f"At {int(differs.sum())} of {int(measured.sum())} measured steps the watch found another loss than the training step gave: "
                    "it saw other parameters, another batch, another loss or another state of the model. All numbers of these steps are those of "
                    "what it saw."
                )
            )
    blocks += [*_of_kinds(record, settings, events)]
    number = sum(len(row) for row in events)
    if (
        number
        and (by_noise := sum(spikes_of_noise(record, settings, m) for m in range(len(events)))) >= _DOUBTFUL_NOISE * number
    ):
        blocks.append(
            text(
                f"The record has {counted(number, 'spike')}. The scatter of batches alone would make about {by_noise:.2g}: that many are on a flat loss "
                f"which changes as much from step to step. More smoothing than {settings.smoothing:g}, such as watch(smoothing=0.98), leaves fewer."
            )
        )
    return Section("Read with care" if blocks else "", blocks)


def _missing_steps(record: xarray.Dataset) -> Iterator[Block]:
    """Steps of a watched loop that are not on record."""
    if not {"event", "loss_batch"} <= set(record):
        return
    missing = np.asarray((record["event"].isnull() & record["loss_batch"].isnull()).values.all(0))
    if missing.any():
        steps = record["step"].values if "step" in record.coords else np.arange(len(missing))
        yield text(
            f"{counted(int(missing.sum()), 'step')} of {len(missing)} {'is' if missing.sum() == 1 else 'are'} not on record, the first is step "
            f"{steps[missing][0]}. Spikes are looked for in the others, so they may differ from those of the watch."
        )


def _of_kinds(record: xarray.Dataset, settings: Settings, events: Sequence[Sequence[Event]]) -> Iterator[Block]:
    """Spikes whose cause is not known since steps were not measured, and catapults that chance alone would give."""
    kinds = [event.kind for row in events for event in row]
    is_known = "critical_lr_batch" in record and bool(record["critical_lr_batch"].notnull().any())
    if is_known and (number := kinds.count("unknown")):
        yield text(
            f"{counted(number, 'spike')} of {len(kinds)} {'has' if number == 1 else 'have'} no known cause: at some steps from onset to peak, or within "
            "the momentum horizon before, the critical lr was not measured. With every=1 it is."
        )
    catapults = [(m, event) for m, row in enumerate(events) for event in row if event.kind == "catapult"]
    by_chance = [exceedance_by_chance(record, settings, m, event) for m, event in catapults[:_MOST_WINDOWS]]
    if by_chance and (chance := float(np.mean(by_chance))) >= _DOUBTFUL_CHANCE:
        yield text(
            f"A step above the critical lr lies in {chance:.0%} of all windows as long as a catapult here: so many spikes would be catapults, whatever "
            "made them."
        )


def critical_steps(record: xarray.Dataset) -> Section:
    """Which measured steps had an lr above the critical lr, and which raised the loss of their batch, for a record of one member.

    Args:
      record: series over (member, step).

    Returns:
      A section; empty for several members, or where neither was measured.

    >>> import xarray
    >>> series = {"lr": [[2.0] * 4], "critical_lr_batch": [[1.0, 0.5, 3.0, 1.0]]}
    >>> record = xarray.Dataset({name: (("member", "step"), values) for name, values in series.items()}, {"step": range(4)})
    >>> critical_steps(record).blocks[0].content["words"]
    'The lr is above the critical lr at 3 of 4 measured steps: 0 to 1, 3. The largest ratio is 4, at step 1.'
    """
    if record.sizes["member"] > 1:
        return Section("", [])
    blocks = []
    steps = record["step"].values if "step" in record.coords else np.arange(record.sizes["step"])
    if {"lr", "critical_lr_batch"} <= set(record):
        ratio = record["lr"].values[0] / record["critical_lr_batch"].values[0]
        if (measured := np.isfinite(ratio)).any():
            top = int(np.nanargmax(np.where(measured, ratio, np.nan)))
            words = f"The lr is above the critical lr {_where(ratio > 1, measured, steps)}"
            blocks.append(text(f"{words} The largest ratio is {ratio[top]:.3g}, at step {steps[top]}."))
    if "directional_batch" in record and (measured := ~np.isnan(record["directional_batch"].values[0])).any():
        below = record["directional_batch"].values[0] < 1
        blocks.append(
            text(f"The update raises the loss of its batch, in the quadratic model, {_where(below, measured, steps)}")
        )
    return Section("Critical steps" if blocks else "", blocks)


def _where(chosen: np.ndarray, measured: np.ndarray, steps: np.ndarray) -> str:
    """At how many measured steps, and at which: ranges run over steps that were measured one after the other."""
    inside = (chosen & measured)[measured]
    places = steps[measured]
    number = f"at {int(inside.sum())} of {len(places)} measured steps"
    if not inside.any():
        return number + "."
    starts = np.flatnonzero(inside & ~np.r_[False, inside[:-1]])
    ends = np.flatnonzero(inside & ~np.r_[inside[1:], False])
    ranges = [_range(places[a : b + 1]) for a, b in zip(starts, ends, strict=True)]
    more = f" and {len(ranges) - _MOST_RANGES} more ranges" if len(ranges) > _MOST_RANGES else ""
    return f"{number}: {', '.join(ranges[:_MOST_RANGES])}{more}."


def _range(places: np.ndarray) -> str:
    """Steps that were measured one after the other; with their number where steps between them were not."""
    if len(places) == 1:
        return str(places[0])
    number = "" if places[-1] - places[0] + 1 == len(places) else f" ({len(places)} measured)"
    return f"{places[0]} to {places[-1]}{number}"


def layers(record: xarray.Dataset, events: Sequence[Sequence[Event]]) -> list[Section]:
    """Which layer makes steps unstable, from the series ``directional.LAYER`` of :func:`catapult_jax.watch`.

    Args:
      record: series over (member, step).
      events: of the record.

    Returns:
      A section for the run and one for its spikes; none without such a series.

    >>> import xarray
    >>> record = xarray.Dataset({"directional.out": (("member", "step"), [[0.5, 2.0, 0.0, float("nan")]])})
    >>> layers(record, [[]])[0].blocks[0].content["rows"]
    [['out', '2 of 3', '1', '0.5', '0.5 (step 0)']]
    """
    names = [str(name) for name in record if str(name).startswith("directional.")]
    series = {name.partition(".")[2]: record[name].values[0] for name in names}
    rows = []
    for layer, values in series.items():
        known = values[~np.isnan(values)]
        if len(known):
            least = _least(values)
            words = "–" if least is None else f"{values[least]:.3g} (step {least})"
            raising = f"{int((known < 1).sum())} of {len(known)}"
            rows.append((layer, raising, str(int((known == 0).sum())), float(np.median(known)), words))
    if not rows:
        return []
    header = (
        "layer",
        "steps in which its update alone raises the loss",
        "of them no descent direction",
        "median multiple",
        "least multiple above 0",
    )
    words = (
        "Multiple of a layer's part of the update at which the loss of the batch stops falling, while the other layers stay. It is 0 where that "
        "part is no descent direction, at any size, as with momentum after a turn; so zeros say nothing of the lr and are left out below. Among the "
        "others the layer with the least multiple is nearest to instability. For a spike only its way up counts, from onset to peak; "
        "a layer is named where that multiple is below 1."
    )
    return [Section("Layers", [table(header, rows), text(words)]), *_layers_of_spikes(series, events)]


def _layers_of_spikes(series: dict[str, np.ndarray], events: Sequence[Sequence[Event]]) -> list[Section]:
    """For each spike the layer with the least multiple on the way up, if that is below 1: its update alone raises the loss."""
    rows = []
    for event in events[0] if events else ():
        window = slice(int(event.onset), int(event.peak) + 1)
        parts = {layer: values[window] for layer, values in series.items()}
        least = {layer: float(values[i]) for layer, values in parts.items() if (i := _least(values)) is not None}
        if not least:
            rows.append((event.kind, event.onset, event.peak, "not measured", "–"))
        else:
            order = sorted(least, key=least.__getitem__)
            name = order[0] if least[order[0]] < 1 else "none alone"
            rows.append(
                (event.kind, event.onset, event.peak, name, ", ".join(f"{layer} {least[layer]:.3g}" for layer in order))
            )
    if not any(row[3] != "not measured" for row in rows):
        return []
    header = ("spike", "onset", "peak", "layer", "least multiple above 0, onset to peak")
    return [Section("The layer of each spike", [table(header, rows)], level=3)]


def _least(values: np.ndarray) -> int | None:
    """Place of the smallest value above 0; None: there is none."""
    positive = np.where(values > 0, values, np.inf)
    return int(positive.argmin()) if np.isfinite(positive).any() else None
