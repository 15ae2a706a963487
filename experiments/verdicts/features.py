"""Catapults, AGOP alignment and test loss of runs that end at the same training loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.analysis import SAME_LOSS, by_setting, catapult_counts, finished, last, run_events
from experiments.statistics import BEYOND, beyond_zero, rank_correlation, text_of
from experiments.verdicts.registry import NOT_TESTED, RUN, SWEEP, Finding, claim, decide
from experiments.verdicts.sweep_rows import ONLY_OPTIMIZERS, at_the_edge, tuned_arms


@claim(
    of=RUN, given=("run.stop_loss", "measure.loss_test_every", "measure.agop_alignment_every", "measure.lambda_max_batch_every")
)
def catapults_raise_alignment(record, config) -> Finding:
    """More catapults, trained to the same loss: higher AGOP alignment, lower test loss."""
    statement = (
        f"Among runs trained to the same loss ({SAME_LOSS} to 1 times {config['run']['stop_loss']:g}), the rank correlation, within a "
        f"seed, of the number of catapults with the AGOP alignment is positive and with the test loss negative ({BEYOND}), and at "
        "most one member in five did not end there"
    )
    counts, ok, seeds = catapult_counts(record, config), finished(record, config), record["seed"].values
    series = {
        key: last(record, config, key) for key in ("agop_alignment", "loss_test", "error_test", "loss_train") if key in record
    }
    parts = []
    for label, members in by_setting(record, config):
        ended = members[ok[members]]
        shown = ", ".join(f"{key} {text_of(values[ended])}" for key, values in series.items())
        parts.append(f"{label}: {len(ended)} of {len(members)} members, {text_of(counts[ended])} catapults, {shown}")
    correlations = {
        key: [rank_correlation(counts[own], series[key][own]) for seed in np.unique(seeds) for own in [(seeds == seed) & ok]]
        for key in ("agop_alignment", "loss_test", "error_test")
        if key in series
    }
    effect = ", ".join(f"rank correlation of catapults with {key} {text_of(rho)}" for key, rho in correlations.items())
    effect += "; " + "; ".join(parts)
    if (~ok).mean() > 0.2:
        return Finding(statement, NOT_TESTED, f"{(~ok).sum()} of {len(ok)} members did not end at that loss; " + effect)
    tests = beyond_zero(correlations["agop_alignment"], 1), beyond_zero(correlations["loss_test"], -1)
    return Finding(statement, decide(*tests), effect)


@claim(
    of=RUN,
    every_step=("measure.lambda_max_batch_every", "measure.loss_train_every"),
    given=("run.stop_loss", "measure.loss_test_every", "measure.agop_alignment_every", "members.cap"),
)
def forbidding_catapults_hurts(record, config) -> Finding:
    """The causal test: the same run with catapults forbidden from one step on, compared at equal training loss."""
    start = config["schedule"]["cap_from"]
    statement = (
        f"At equal training loss ({SAME_LOSS} to 1 times {config['run']['stop_loss']:g}), a run that may have catapults has more of them "
        f"from step {start} on, a higher AGOP alignment and a lower test loss than the same run (seed, batches, first {start} steps) held "
        f"below the critical lr: {BEYOND} on the paired differences"
    )
    caps, ok = record["cap"].values, finished(record, config)
    events = run_events(record, config)
    counts = np.array([sum(e.kind == "catapult" and e.onset >= start for e in found) for found in events])
    ratio, going = record["lr"].values / record["critical_lr_batch"].values, ~record["stopped"].values
    ratios = np.array([row[own].mean() if own.any() else np.nan for row, own in zip(ratio, going, strict=True)])
    series = {"catapults": counts} | {
        key: last(record, config, key) for key in ("agop_alignment", "loss_test", "error_test", "loss_train") if key in record
    }
    series["lr / critical lr"] = ratios
    members = {
        (seed, rate, cap): m
        for m, (seed, rate, cap) in enumerate(zip(record["seed"].values, record["lr_given"].values, caps, strict=True))
    }
    by_seed: dict[Any, list[tuple[int, int]]] = {}  # pairs of one seed are no independent ones
    for (seed, rate, cap), held in members.items():
        free = members.get((seed, rate, np.float32(np.inf)))
        if cap < 1 and free is not None and ok[free] and ok[held]:
            by_seed.setdefault(seed, []).append((free, held))
    differences = {
        key: [np.mean([values[free] - values[held] for free, held in pairs]) for pairs in by_seed.values()]
        for key, values in series.items()
    }
    sides = {word: [pair[i] for pairs in by_seed.values() for pair in pairs] for i, word in enumerate(("allowed", "held"))}
    effect = (
        "allowed minus held: "
        + ", ".join(f"{key} {text_of(found)}" for key, found in differences.items())
        + "; "
        + "; ".join(f"{word}: " + ", ".join(f"{k} {text_of(v[own])}" for k, v in series.items()) for word, own in sides.items())
        + f"; {len(by_seed)} seeds; {int((~ok).sum())} of {len(ok)} members did not end at that loss"
    )
    more = beyond_zero(differences["catapults"], 1)
    if not more:
        return Finding(statement, NOT_TESTED, "too few seeds, or no more catapults where they are allowed; " + effect)
    tests = beyond_zero(differences["agop_alignment"], 1), beyond_zero(differences["loss_test"], -1)
    return Finding(statement, decide(*tests), effect)


@claim(
    of=SWEEP,
    given=(
        "run.stop_loss",
        "measure.loss_test_every",
        "measure.agop_alignment_every",
        "measure.lambda_max_batch_every",
        "data.validation_size",
    ),
    columns=("catapults", "loss_val", "loss_test", "agop_alignment"),
)
def small_batches_help(rows: list[dict], config) -> Finding:
    """Smaller batches: more catapults, higher alignment, lower test loss; at one shared lr, and at lrs tuned on validation."""
    axis = "optimizer.batch_size"
    statement = (
        f"Trained to the same loss ({SAME_LOSS} to 1 times {config['run']['stop_loss']:g}), the rank correlation, within a seed, of the "
        f"batch size with the test loss is positive, with the AGOP alignment and the number of catapults negative ({BEYOND}), (a) at "
        "the largest lr of the grid at which every seed of every batch size ends there, and (b) at the lr of each batch size that has "
        "the smallest mean validation loss over seeds, the same grid for all"
    )
    sizes = list(dict.fromkeys(row.get(axis) for row in rows))
    if len(sizes) < 3 or len({row["run"] for row in rows}) > len(sizes):
        return Finding(statement, NOT_TESTED, "allowed: a sweep over three or more batch sizes and nothing else but members")
    rates = list(dict.fromkeys(row["lr_given"] for row in rows))
    shared = [rate for rate in rates if all(row["finished"] for row in rows if row["lr_given"] == rate)]
    arms = {
        "(a) shared lr": {size: max(shared) for size in sizes} if shared else {},
        "(b) tuned lr": {
            arm[0]: own[0]["lr_given"] for arm, own in tuned_arms(rows, (axis,), "loss_val", finished=True).items()
        },
    }
    signs = {"loss_test": 1, "agop_alignment": -1, "catapults": -1}
    heads, parts, tests = [], [], []
    for label, chosen in arms.items():
        own = [row for row in rows if chosen.get(row[axis]) == row["lr_given"]]
        seeds = [[row for row in own if row["seed"] == seed] for seed in dict.fromkeys(row["seed"] for row in own)]
        rho = {key: [rank_correlation([r[axis] for r in mine], [r[key] for r in mine]) for mine in seeds] for key in signs}
        if len(chosen) < len(sizes):
            heads.append(f"{label}: only {len(chosen)} of {len(sizes)} batch sizes came to that loss")
            tests.append(None)
            continue
        tests += [beyond_zero(rho[key], sign) for key, sign in signs.items()]
        heads.append(f"{label}: rank correlation of batch size with " + ", ".join(f"{k} {text_of(v)}" for k, v in rho.items()))
        for size, rate in chosen.items():
            mine = [row for row in own if row[axis] == size]
            shown = ", ".join(f"{k} {text_of([row[k] for row in mine])}" for k in (*signs, "error_test") if k in mine[0])
            edge = at_the_edge(rows, rate) if label.startswith("(b)") else ""
            parts.append(f"{label}, batch {size} ({rate:.3g}{edge}): {shown}")
    return Finding(statement, decide(*tests), ", ".join(heads) + "; " + "; ".join(parts))


@claim(
    of=SWEEP,
    given=("run.stop_loss", "measure.loss_test_every", "measure.agop_alignment_every", "data.validation_size"),
    columns=("loss_val", "loss_test", "agop_alignment"),
)
def alignment_over_optimizers(rows: list[dict], config) -> Finding:
    """Over optimizers, each at its own tuned lr: a higher AGOP alignment, a lower test loss."""
    axis = "optimizer.name"
    statement = (
        f"Over three or more optimizers, those of the sweep of which every seed comes to the same loss ({SAME_LOSS} to 1 times "
        f"{config['run']['stop_loss']:g}) at some lr, each at the lr of the grid with the smallest mean validation loss, the rank correlation, within a seed, of the AGOP alignment with the "
        f"test loss is negative ({BEYOND})"
    )
    names = list(dict.fromkeys(row.get(axis) for row in rows))
    if len(names) < 3 or len({row["run"] for row in rows}) > len(names):
        return Finding(statement, NOT_TESTED, ONLY_OPTIMIZERS)
    arms = tuned_arms(rows, (axis,), "loss_val", finished=True)
    counted = ("catapults", "critical_steps") if "critical_steps" in rows[0] else ()  # where the critical lr was measured
    shown = ("agop_alignment", "loss_test", *(["error_test"] if "error_test" in rows[0] else []), *counted)
    table = [("optimizer", "lr / critical lr at start", *(k.replace("_", " ") for k in shown))]
    for other in names:
        own = arms.get((other,))
        if own is None:
            table.append((other, "none at which every seed came to that loss", *("-" for _ in shown)))
            continue
        edge = at_the_edge([row for row in rows if row[axis] == other], own[0]["lr_given"])
        table.append((other, f"{own[0]['lr_given']:.3g}{edge}", *(text_of([row[k] for row in own]) for k in shown)))
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    of_seed = [[row for own in arms.values() for row in own if row["seed"] == seed] for seed in seeds]
    rho = [rank_correlation([r["agop_alignment"] for r in own], [r["loss_test"] for r in own]) for own in of_seed]
    effect = f"rank correlation {text_of(rho)} over {len(arms)} optimizers"
    verdict = decide(beyond_zero(rho, -1)) if len(arms) >= 3 else NOT_TESTED
    return Finding(statement, verdict, effect, tuple(table))
