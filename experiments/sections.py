"""The sections of a run's report, one function each: from what was read to a section of blocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from catapult_jax.criteria import SPIKE_SCORE, spike_score
from catapult_jax.events import DEFINITION, Event
from catapult_jax.report.page import Block, Section, image, items, preformatted, table, text, verdict, warning
from catapult_jax.spikes import FACTORS
from experiments.analysis import (
    by_setting,
    catapult_counts,
    dead_members,
    diverged_members,
    finished,
    has_events,
    last,
    rise_predictions,
    spike_counts,
    spike_series,
    uncertain_steps,
)
from experiments.reproduce import differences
from experiments.statistics import text_of
from experiments.verdicts import Verdict

ENDS = ("loss_train", "loss_test", "error_test", "loss_val", "error_val", "agop_alignment", "agop_pearson")
_MOST_EVENTS = 200  # rows of the table of spikes


class Read(NamedTuple):
    """What is known of a run when its report is written."""

    record: Any  # xarray.Dataset, NaN after a member diverged
    config: dict[str, Any]
    run: dict[str, Any]  # run.json
    events: list[list[Event]]  # of each member
    untested: list[str]  # claims that the cadences of a preset do not test
    verdicts: list[Verdict]
    figures: dict[str, tuple[Path, str]]  # name -> (png, caption)


def sections(read: Read) -> list[Section]:
    """All sections in their order; one without blocks is left out of the page."""
    made = [
        overview(read),
        diverged(read),
        dead(read),
        claims(read),
        initialisation(read),
        certainty(read),
        drawn(read),
        ends(read),
        reference(read),
        spikes(read),
        counts(read),
    ]
    return [*made, *predictions(read), provenance(read), Section("Config", [preformatted(json.dumps(read.config, indent=2))])]


def fallback(about: dict[str, Any]) -> list[Block]:
    """The warning that a run is on other data than its config names, if it is."""
    name, wanted = about["name"], about["fallback_for"]
    words = f"This is on {name}, the fallback data for {wanted}, which could not be had. It says nothing about {wanted}."
    return [warning(words)] if wanted else []


def verdict_block(v: Verdict) -> Block:
    """A verdict with its statement, effect and table."""
    return verdict(v.verdict, v.statement, v.effect, v.table)


def overview(read: Read) -> Section:
    """How many members and steps, and how the run ended."""
    record = read.record
    gone = ((diverged_members(record, read.config), "diverged"), (dead_members(record, read.config), "dead"))
    words = "".join(f", {len(found)} {word}" for found, word in gone if found)
    steps = f"{record.sizes['step']} of {read.config['steps']} steps"
    summary = text(f"{record.sizes['member']} members, {steps}, status: {read.run['status']}{words}")
    return Section("", [*fallback(read.run["data"]), summary])


def diverged(read: Read) -> Section:
    """Members that diverged."""
    rows = [tuple(row.values()) for row in diverged_members(read.record, read.config)]
    words = "Each is frozen from its step on, and is in no figure or claim after it."
    return Section("Members that diverged", [text(words), table(("member", "step", "cause"), rows)] if rows else [])


def dead(read: Read) -> Section:
    """Members whose network is dead."""
    rows = [tuple(row.values()) for row in dead_members(read.record, read.config)]
    words = "From its step on the kernel of each is exactly zero: it does not learn any more, and is in no claim."
    return Section("Members whose network is dead", [text(words), table(("member", "step"), rows)] if rows else [])


def claims(read: Read) -> Section:
    """Verdicts on the claims of the config."""
    missing = [warning(f"Not tested at the cadences of this preset: {', '.join(read.untested)}")] if read.untested else []
    return Section("Claims", [*missing, *map(verdict_block, read.verdicts)])


def initialisation(read: Read) -> Section:
    """Learning rates of the members, beside the critical ones."""
    record = read.record
    # raises and cap only where the schedule has them
    axes = [axis for axis in ("seed", "raises", "cap", "lr0_over_critical", "lr0", "critical_lr0") if axis in record.coords]
    rows = [(m, *(record[axis].values[m].item() for axis in axes)) for m in range(record.sizes["member"])]
    header = {"lr0_over_critical": "lr asked for / critical lr", "lr0": "lr asked for", "critical_lr0": "critical lr"}
    blocks = [table(("member", *(header.get(axis, axis) for axis in axes)), rows)]
    if published := read.config["published_critical_lr"]:
        blocks.append(text(f"Published for the network of this figure: {published} (Zhu et al. 2024)."))
    return Section("Critical learning rate at initialisation", blocks)


def certainty(read: Read) -> Section:
    """How many steps are too near to their critical lr to tell, and how often a search reached its tolerance."""
    record, blocks = read.record, []
    if "critical_lr_batch" in record:
        uncertain, known = uncertain_steps(record), ~np.isnan(record["critical_lr_batch"].values)
        blocks.append(
            text(
                f"Whether a step is critical is not significant within {record.attrs.get('critical_lr_margin', 0):.1e} of the critical lr "
                "(rounding of the kernel, n times the largest error of an entry), or within the bound of its eigenvalue where that is larger: "
                f"{int(uncertain.sum())} of {int(known.sum())} measured steps, crosses in the figure of the ratio."
            )
        )
    for name in [name for name in record if name.startswith("converged")]:
        values = record[name].values[~np.isnan(record[name].values)]
        reached = f"{int(values.sum())} of {values.size}"
        blocks.append(text(f"{name}: kernel-vector products came to their tolerance at {reached} measured steps."))
    return Section("", blocks)


def drawn(read: Read) -> Section:
    """The figures."""
    return Section("", [image(path, caption) for path, caption in read.figures.values()])


def ends(read: Read) -> Section:
    """What was measured last, by setting."""
    record, config = read.record, read.config
    names = [name for name in ENDS if name in record]
    if len(names) < 2:
        return Section("", [])
    values, ok = {name: last(record, config, name) for name in names}, finished(record, config)
    if has_events(record, config) and "critical_lr_batch" in record:
        values = {"catapults": catapult_counts(record, config)} | values
    rows = [
        (label, f"{ok[m].sum()} of {len(m)}", *(text_of(found[m[ok[m]]]) for found in values.values()))
        for label, m in by_setting(record, config)
    ]
    means = table(("setting", "members that finished", *values), rows)
    return Section("Where training ended", [means, text("Mean over seeds with its 95 % bootstrap interval.")])


def reference(read: Read) -> Section:
    """What the AGOPs are compared with."""
    about = read.run.get("agop_reference") or {}
    return Section("AGOP reference", [table(("", ""), about.items(), of_text=True)] if about else [])


def spikes(read: Read) -> Section:
    """The events of all members."""
    with_alignment = "agop_alignment" in read.record
    header = (
        "member", "kind", "onset", "peak", "end", "returned", "peak / level", "overshoot", "fraction in top space", "lr", "critical lr",
        "lambda before", "lambda after", *(("alignment before", "alignment after") if with_alignment else ()),
    )  # fmt: skip
    every = [(m, e) for m, found in enumerate(read.events) for e in found]
    rows = [(m, *_event_row(e), *alignment(read.record, m, e).values()) for m, e in every[:_MOST_EVENTS]]
    blocks = [text(DEFINITION), table(header, rows) if rows else text("None.")]
    if len(every) > len(rows):
        blocks.append(text(f"The first {len(rows)} of {len(every)}; all are in events.jsonl."))
    if every:
        blocks.append(text(f"The first one: {every[0][1]}"))
    return Section(f"Spikes above {read.config['events']['factor']} times the level", blocks)


def _event_row(e: Event) -> tuple[Any, ...]:
    end = e.end if e.end >= 0 else "-" if e.kind in ("divergence", "death") else "open"
    returned = e.returned if e.returned >= 0 else "-"
    sizes = (e.peak_ratio, e.overshoot, e.fraction_top, e.lr, e.critical_lr, e.lambda_max_before, e.lambda_max_after)
    return (e.kind, e.onset, e.peak, end, returned, *sizes)


def alignment(record, m: int, event: Event) -> dict[str, float]:
    """AGOP alignment before and after a spike: the last value measured at its onset, the first one at its end or later."""
    if "agop_alignment" not in record:
        return {}
    values = record["agop_alignment"].values[m]
    before, after = values[: event.onset + 1], values[event.end :] if event.end >= 0 else values[:0]
    pick = lambda found, i: float(found[np.isfinite(found)][i]) if np.isfinite(found).any() else float("nan")
    return {"alignment_before": pick(before, -1), "alignment_after": pick(after, 0)}


def counts(read: Read) -> Section:
    """Number of spikes on a grid of factors, so that no result hangs on one threshold."""
    record = read.record
    found = spike_counts(record, read.config)
    scored = [int((spike_score(row) > SPIKE_SCORE).sum()) for row in record[spike_series(record)].values]
    header = ("member", *(f"above {f}" for f in FACTORS), f"steps with a score above {SPIKE_SCORE:g}")
    rows = [(m, *(found[m][f] for f in FACTORS), score) for m, score in enumerate(scored)]
    words = "Score: standard deviations above the mean of the last 128 values of the loss; none in the first 128 steps."
    return Section("Number of spikes for each factor", [table(header, rows), text(words)])


def predictions(read: Read) -> Sequence[Section]:
    """Exceedance as a predictor of a rise, for each series that may rise."""
    if not {"loss_batch_after", "loss_train"} <= set(read.record):
        return []
    header = ("member", "above, rose", "above, fell", "below, rose", "below, fell", "precision", "recall", "F1", "base rate")
    made = [
        Section(
            "Exceedance as a predictor of a rise in the step", [text("Above: the lr is above the critical lr of the batch.")]
        )
    ]
    for name, tables in rise_predictions(read.record, read.config).items():
        made.append(Section(name, [table(header, [(m, *row) for m, row in enumerate(tables)])], level=3))
    return made


def provenance(read: Read) -> Section:
    """Data, check of the kernel, environment, and what changed when the run was resumed."""
    run, check = read.run, read.run["kernel_check"]
    blocks = [
        table(("", ""), run["data"].items(), of_text=True),
        text(f"Kernel against neural_tangents on {check['examples']} examples: {check['text']}."),
        preformatted(json.dumps(run["environment"], indent=2)),
    ]
    if resumed := run.get("resumed_with"):
        changes = [differences(run["environment"], other) for other in resumed]
        lines = [
            f"{name}: {then} then, {now} in sitting {i + 2}"
            for i, change in enumerate(changes)
            for name, (then, now) in change.items()
        ]
        how = "the environment differed in" if lines else "in the same environment"
        blocks += [text(f"Resumed {len(changes)} times; {how}"), *([items(lines)] if lines else [])]
    return Section("Data, kernel check, environment", blocks)
