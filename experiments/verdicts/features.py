"""Catapults, AGOP alignment and test loss of runs that end at the same training loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from catapult_jax.report.analysis import catapult_counts
from catapult_jax.report.members import SAME_LOSS, by_setting, finished, last
from catapult_jax.report.statistics import BEYOND, beyond_zero, rank_correlation, text_of
from experiments.verdicts.registry import NOT_TESTED, RUN, SWEEP, Finding, Run, claim, decide
from experiments.verdicts.sweep_rows import ONLY_OPTIMIZERS, at_the_edge, rows_by_arm, tuned_arms

_ENDS = ("agop_alignment", "loss_test", "error_test", "loss_train")


@claim(
    of=RUN, title="TITLE", given=("run.stop_loss", "measure.loss_test_every", "measure.agop_alignment_every", "measure.lambda_max_batch_every")
)
def catapults_raise_alignment(run: Run) -> Finding:
    """More catapults, trained to the same loss: higher AGOP alignment, lower test loss."""
    record, settings = run.record, run.settings
    statement = (
        f"Among members trained to the same loss ({SAME_LOSS} to 1 times {settings.stop_loss:g}), the rank correlation, within a "
        f"seed, of the number of catapults with the AGOP alignment is positive and with the test loss negative ({BEYOND}), and at "
        "most one member in five did not end there"
    )
    counts, ok = catapult_counts(run.events(settings.factor)), finished(record, settings)
    seeds = record["seed"].values
    series = {name: last(record, settings, name) for name in _ENDS if name in record}
    parts = []
    for label, members in by_setting(record, settings):
        ended = members[ok[members]]
        means = ", ".join(f"{name} {text_of(values[ended])}" for name, values in series.items())
        parts.append(f"{label}: {len(ended)} of {len(members)} members, {text_of(counts[ended])} catapults, {means}")
    of_seed = [(seeds == seed) & ok for seed in np.unique(seeds)]
    correlations = {
        name: [rank_correlation(counts[members], series[name][members]) for members in of_seed]
        for name in ("agop_alignment", "loss_test", "error_test")
        if name in series
    }
    effect = ", ".join(f"rank correlation of catapults with {name} {text_of(rho)}" for name, rho in correlations.items())
    effect += "; " + "; ".join(parts)
    if (~ok).mean() > 0.2:
        return Finding(statement, NOT_TESTED, f"{(~ok).sum()} of {len(ok)} members did not end at that loss; " + effect)
    tests = beyond_zero(correlations["agop_alignment"], 1), beyond_zero(correlations["loss_test"], -1)
    return Finding(statement, decide(*tests), effect)


@claim(
    of=RUN, title="TITLE",
    every_step=("measure.lambda_max_batch_every", "measure.loss_train_every"),
    given=("run.stop_loss", "measure.loss_test_every", "measure.agop_alignment_every", "members.cap"),
)
def forbidding_catapults_hurts(run: Run) -> Finding:
    """The causal test: the same run with catapults forbidden from one step on, compared at equal training loss."""
    record, settings, start = run.record, run.settings, run.config["schedule"]["cap_from"]
    statement = (
        f"At equal training loss ({SAME_LOSS} to 1 times {settings.stop_loss:g}), a member that may have catapults has more of them "
        f"from step {start} on, a higher AGOP alignment and a lower test loss than the same member (seed, batches, first {start} steps) held "
        f"below the critical lr ({BEYOND} on the paired differences)"
    )
    ok = finished(record, settings)
    late_catapults = lambda events: sum(event.kind == "catapult" and event.onset >= start for event in events)
    counts = np.array([late_catapults(events) for events in run.events(settings.factor)])
    ratio, moves = record["lr"].values / record["critical_lr_batch"].values, ~record["stopped"].values
    ratios = np.array([row[steps].mean() if steps.any() else np.nan for row, steps in zip(ratio, moves, strict=True)])
    series = {"catapults": counts} | {name: last(record, settings, name) for name in _ENDS if name in record}
    series["lr / critical lr"] = ratios
    by_seed = _pairs_by_seed(record, ok)
    differences = {
        name: [np.mean([values[free] - values[capped] for free, capped in pairs]) for pairs in by_seed.values()]
        for name, values in series.items()
    }
    sides = {word: [pair[i] for pairs in by_seed.values() for pair in pairs] for i, word in enumerate(("allowed", "held"))}
    means = {
        word: ", ".join(f"{name} {text_of(values[members])}" for name, values in series.items())
        for word, members in sides.items()
    }
    effect = (
        "allowed minus held: "
        + ", ".join(f"{name} {text_of(values)}" for name, values in differences.items())
        + "; "
        + "; ".join(f"{word}: {text}" for word, text in means.items())
        + f"; {len(by_seed)} seeds; {int((~ok).sum())} of {len(ok)} members did not end at that loss"
    )
    if not beyond_zero(differences["catapults"], 1):
        return Finding(statement, NOT_TESTED, "too few seeds, or no more catapults where they are allowed; " + effect)
    tests = beyond_zero(differences["agop_alignment"], 1), beyond_zero(differences["loss_test"], -1)
    return Finding(statement, decide(*tests), effect)


def _pairs_by_seed(record, ok: np.ndarray) -> dict[Any, list[tuple[int, int]]]:
    """For each seed the pairs (member without cap, member below the critical lr) at one lr; both must have finished.

    The pairs of one seed are not independent of each other.
    """
    coordinates = (record[name].values for name in ("seed", "lr_given", "cap"))
    members = {key: m for m, key in enumerate(zip(*coordinates, strict=True))}
    pairs: dict[Any, list[tuple[int, int]]] = {}
    for (seed, lr, cap), capped in members.items():
        free = members.get((seed, lr, np.float32(np.inf)))
        if cap < 1 and free is not None and ok[free] and ok[capped]:
            pairs.setdefault(seed, []).append((free, capped))
    return pairs


@claim(
    of=SWEEP, title="TITLE",
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
        f"Among members trained to the same loss ({SAME_LOSS} to 1 times {config['run']['stop_loss']:g}), the rank correlation, within a seed, "
        f"of the batch size with the test loss is positive, and with the AGOP alignment and the number of catapults negative ({BEYOND}). This "
        "holds (a) at the largest lr of the grid at which every seed of every batch size ends there, and (b) at the lr of the same grid at "
        "which this batch size has the smallest mean validation loss over seeds"
    )
    sizes = list(dict.fromkeys(row.get(axis) for row in rows))
    if len(sizes) < 3 or len({row["run"] for row in rows}) > len(sizes):
        return Finding(statement, NOT_TESTED, "allowed: a sweep over three or more batch sizes and nothing else but members")
    by_lr = rows_by_arm(rows, ("lr_given",))
    shared = [lr for (lr,), members in by_lr.items() if all(row["finished"] for row in members)]
    tuned = tuned_arms(rows, (axis,), "loss_val", finished=True)
    arms = {
        "(a) shared lr": {size: max(shared) for size in sizes} if shared else {},
        "(b) tuned lr": {size: members[0]["lr_given"] for (size,), members in tuned.items()},
    }
    signs = {"loss_test": 1, "agop_alignment": -1, "catapults": -1}
    heads, parts, tests = [], [], []
    for label, lrs in arms.items():
        if len(lrs) < len(sizes):
            heads.append(f"{label}: only {len(lrs)} of {len(sizes)} batch sizes came to that loss")
            tests.append(None)
            continue
        chosen = [row for row in rows if lrs[row[axis]] == row["lr_given"]]
        rho = {name: _correlations(chosen, axis, name) for name in signs}
        tests += [beyond_zero(rho[name], sign) for name, sign in signs.items()]
        words = ", ".join(f"{name} {text_of(values)}" for name, values in rho.items())
        heads.append(f"{label}: rank correlation of batch size with {words}")
        for size, lr in lrs.items():
            members = [row for row in chosen if row[axis] == size]
            names = [name for name in (*signs, "error_test") if name in members[0]]
            means = ", ".join(f"{name} {text_of([row[name] for row in members])}" for name in names)
            edge = at_the_edge(rows, lr) if label.startswith("(b)") else ""
            parts.append(f"{label}, batch {size} ({lr:.3g}{edge}): {means}")
    return Finding(statement, decide(*tests), ", ".join(heads) + "; " + "; ".join(parts))


def _correlations(rows: list[dict], x: str, y: str) -> list[float]:
    """The rank correlation of two columns within each seed."""
    return [
        rank_correlation([row[x] for row in members], [row[y] for row in members])
        for members in rows_by_arm(rows, ("seed",)).values()
    ]


@claim(
    of=SWEEP, title="TITLE",
    given=("run.stop_loss", "measure.loss_test_every", "measure.agop_alignment_every", "data.validation_size"),
    columns=("loss_val", "loss_test", "agop_alignment"),
)
def alignment_over_optimizers(rows: list[dict], config) -> Finding:
    """Over optimizers, each at its own tuned lr: a higher AGOP alignment, a lower test loss."""
    axis = "optimizer.name"
    statement = (
        f"Over the optimizers, three or more, of which every seed comes to the same loss ({SAME_LOSS} to 1 times "
        f"{config['run']['stop_loss']:g}) at an lr of the grid, each at the lr with the smallest mean validation loss, the rank correlation, "
        f"within a seed, of the AGOP alignment with the test loss is negative ({BEYOND})"
    )
    names = list(dict.fromkeys(row.get(axis) for row in rows))
    if len(names) < 3 or len({row["run"] for row in rows}) > len(names):
        return Finding(statement, NOT_TESTED, ONLY_OPTIMIZERS)
    arms = tuned_arms(rows, (axis,), "loss_val", finished=True)
    counts = ("catapults", "critical_steps") if "critical_steps" in rows[0] else ()  # only if the critical lr was measured
    columns = ("agop_alignment", "loss_test", *(["error_test"] if "error_test" in rows[0] else []), *counts)
    table = [("optimizer", "lr / critical lr at start", *(column.replace("_", " ") for column in columns))]
    for (name,), members in rows_by_arm(rows, (axis,)).items():
        if (name,) not in arms:
            table.append((name, "none at which every seed came to that loss", *("-" for _ in columns)))
            continue
        chosen = arms[name,]
        lr = chosen[0]["lr_given"]
        means = (text_of([row[column] for row in chosen]) for column in columns)
        table.append((name, f"{lr:.3g}{at_the_edge(members, lr)}", *means))
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    of_seed = [[row for members in arms.values() for row in members if row["seed"] == seed] for seed in seeds]
    pick = lambda members, column: [row[column] for row in members]
    rho = [rank_correlation(pick(members, "agop_alignment"), pick(members, "loss_test")) for members in of_seed]
    effect = f"rank correlation {text_of(rho)} over {len(arms)} optimizers"
    verdict = decide(beyond_zero(rho, -1)) if len(arms) >= 3 else NOT_TESTED
    return Finding(statement, verdict, effect, tuple(table))
