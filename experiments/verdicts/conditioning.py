"""How the kernel and the critical learning rate change in the course of a run."""

from __future__ import annotations

import numpy as np

from catapult_jax.report.members import active
from catapult_jax.report.statistics import BEYOND, beyond_zero, spread_text, text_of
from experiments.verdicts.registry import (
    MIN_SPIKES,
    NOT_MEASURABLE,
    NOT_REPRODUCED,
    NOT_TESTED,
    REPRODUCED,
    RUN,
    STUDY,
    SWEEP,
    Finding,
    Run,
    claim,
    decide,
    grade,
)
from experiments.verdicts.sweep_rows import rows_by_arm


@claim(
    of=RUN,
    every_step=("measure.lambda_max_batch_every",),
    title="The norm of the NTK falls in catapult phases",
    published="In catapult phases of a cyclic lr the spectral norm of the NTK falls (the study says so of its condition number, too, which is described only)",
    source=f"{STUDY}, NTK figures",
)
def catapults_lower_the_norm(run: Run) -> Finding:
    """A catapult leaves a kernel of smaller norm; its condition number is described."""
    statement = (
        "At least 90 % of the catapults that close leave a tangent kernel of the training set with a smaller spectral norm than at their onset. The "
        "condition number is described and decides nothing"
    )
    norms, before, after, still_open = [], [], [], 0
    for m, events in enumerate(run.events(run.settings.factor)):
        values = run.record["condition_number_batch"].values[m].astype(float)
        for event in events:
            if event.kind == "catapult" and event.end >= 0:
                norms.append(event.lambda_max_after / event.lambda_max_before)
                before.append(values[event.onset])
                after.append(values[event.end])
            still_open += event.kind == "catapult" and event.end < 0
    norms, before, after = np.array(norms), np.array(before), np.array(after)
    norms = norms[~np.isnan(norms)]
    # Infinite: the smallest eigenvalue is below its rounding error. It is larger than any finite one; two infinite ones do not compare.
    comparable = ~(np.isnan(before) | np.isnan(after) | (np.isinf(before) & np.isinf(after)))
    both = np.isfinite(before) & np.isfinite(after)
    smaller = after[comparable] < before[comparable]
    effect = f"after {int((norms < 1).sum())} of {len(norms)} catapults, after / before {spread_text(norms)}"
    details = (
        f"condition number ({run.record['condition_number_batch'].dtype}) smaller after {int(smaller.sum())} of {int(comparable.sum())} where it is known, after / before "
        f"{spread_text(after[both] / before[both])}; {still_open} do not close"
    )
    if len(norms) < MIN_SPIKES:
        return Finding(statement, NOT_MEASURABLE, f"fewer than {MIN_SPIKES} catapults: {len(norms)}", details=details)
    return Finding(statement, REPRODUCED if (norms < 1).mean() >= 0.9 else NOT_REPRODUCED, effect, details=details)


def _growth(values: np.ndarray, period: int) -> np.ndarray:
    """The median over the last cycle, over that over the first."""
    return np.median(values[:, -period:], 1) / np.median(values[:, :period], 1)


def _growth_of_sgd(record, period: int) -> np.ndarray | None:
    """The growth of the critical lr that SGD would have on the same path: the part that is not due to the preconditioner. None: not known."""
    if not {"critical_lr_bound_batch", "preconditioner_min"} <= set(record):
        return None
    growth = _growth(record["critical_lr_bound_batch"].values / record["preconditioner_min"].values, period)
    return None if np.isnan(growth).any() else growth


def _from_on(holds: np.ndarray) -> list[int]:
    """For each row the first step from which on it holds; the number of steps if it does not at the end."""
    return [int(np.flatnonzero(~row)[-1]) + 1 if not row.all() else 0 for row in holds]


def _in_time(first_steps: list[int], steps: int) -> str:
    early = [step for step in first_steps if step < steps]
    return f"{len(early)} of {len(first_steps)} seeds" + (f", step {spread_text(early)}" if early else "")


@claim(
    of=RUN,
    every_step=("measure.lambda_max_batch_every",),
    title="The critical lr of AdaGrad grows until no lr of the schedule is critical",
    published="With AdaGrad under a cyclic lr catapults end, since its critical lr outgrows the lr of the schedule",
    source=f"{STUDY}, AdaGrad figures",
)
def adagrad_outgrows_its_lr(run: Run) -> Finding:
    """With AdaGrad under a cyclic lr the critical lr grows until no lr of the schedule is critical."""
    statement = (
        "In every seed the exact critical lr of AdaGrad grows (its median over the last cycle is above that over the first), no step of the last "
        f"quarter is critical, and it grows more than that of SGD on the same path ({BEYOND}). Partly: without the last part"
    )
    record, period = run.record, run.config["schedule"]["period"]
    lr, exact = record["lr"].values, record["critical_lr_batch"].values
    ok, steps = active(record, run.settings)[:, -1], lr.shape[1]
    above = lr > exact
    growth = _growth(exact, period)
    late = above[:, -steps // 4 :].mean(1)
    peak = lr.max(1, keepdims=True)  # the lr of a step depends on its place in the cycle
    of_sgd = _growth_of_sgd(record, period)
    words = "" if of_sgd is None else f"; that of SGD on the same path {text_of(of_sgd)}"
    effect = f"critical lr of the last cycle over the first {text_of(growth)}{words}; critical steps late {text_of(late)}"
    details = (
        f"critical steps {text_of(above.mean(1))} of all; no step is critical any more in {_in_time(_from_on(~above), steps)}; nor would one be at "
        f"the largest lr in {_in_time(_from_on(exact > peak), steps)}"
    )
    if not ok.all():
        return Finding(statement, NOT_MEASURABLE, f"{(~ok).sum()} members diverged or are dead", details=details)
    if not above.any(1).all():
        return Finding(statement, NOT_MEASURABLE, "a seed without a critical step", details=details)
    if not ((growth > 1).all() and not late.any()):
        return Finding(statement, NOT_REPRODUCED, effect, details=details)
    verdict = NOT_MEASURABLE if of_sgd is None else grade(True, beyond_zero(np.log(growth / of_sgd), 1))
    return Finding(statement, verdict, effect, details=details)


@claim(
    of=RUN,
    every_step=("measure.lambda_max_batch_every", "measure.preconditioner_min_every"),
    title="The smallest entry of AdaGrad's accumulator grows",
    published="The smallest entry of AdaGrad's accumulator grows; times the critical lr of SGD it bounds the critical lr of AdaGrad from below",
    source=f"{STUDY}, AdaGrad figures",
)
def smallest_entry_grows(run: Run) -> Finding:
    """The smallest entry of AdaGrad's preconditioner grows, and the bound that it gives explains the growth of the critical lr."""
    statement = (
        "In every seed the median of the smallest entry of P over the last cycle is at least 1.1 times that over the first; and the bound, the smallest "
        "entry times the critical lr of SGD, is at most the exact critical lr at every step"
    )
    record, period = run.record, run.config["schedule"]["period"]
    exact, bound, least = (
        record[name].values for name in ("critical_lr_batch", "critical_lr_bound_batch", "preconditioner_min")
    )
    growth = _growth(least, period)
    violations = int((bound > exact * 1.01).sum())  # the exact one may come from kernel-vector products, to one percent
    peak = record["lr"].values.max(1, keepdims=True)
    effect = f"smallest entry of the last cycle over the first {text_of(growth)}"
    details = (
        f"{violations} of {exact.size} steps with the bound above the exact one; exact over bound {spread_text(np.median(exact / bound, 1))}; the bound "
        f"is above the largest lr in {_in_time(_from_on(bound > peak), exact.shape[1])}; smallest entry {text_of(least[:, 0])} at first, "
        f"{text_of(least[:, -1])} at last"
    )
    if not active(record, run.settings)[:, -1].all():
        return Finding(statement, NOT_MEASURABLE, "a member diverged or is dead", details=details)
    if np.isnan(bound).any() or np.isnan(least).any():
        return Finding(
            statement, NOT_MEASURABLE, f"the bound is not known at {int(np.isnan(bound).sum())} steps", details=details
        )
    return Finding(statement, decide(bool((growth >= 1.1).all()), not violations), effect, details=details)


@claim(
    of=SWEEP,
    every_step=("measure.lambda_max_batch_every",),
    columns=("optimizer.name", "optimizer.initial_accumulator_value", "critical_steps"),
    title="Under the same cycles AdaGrad has fewer critical steps than SGD",
)
def adagrad_has_fewer_critical_steps(rows: list[dict], config) -> Finding:
    """The fraction of critical steps of AdaGrad against that of SGD, under cycles of the same height over their own critical lr."""
    del config
    statement = (
        "Under cycles up to the same multiple of its own critical lr at initialisation, AdaGrad has a smaller fraction of critical steps than SGD, "
        f"with an accumulator from 0 and from 0.1 ({BEYOND} on the paired differences)"
    )
    arms = rows_by_arm(rows, ("optimizer.name", "optimizer.initial_accumulator_value"))
    of_seed = {arm: {row["seed"]: row["critical_steps"] for row in members} for arm, members in arms.items()}
    sgd = next((values for (name, _), values in of_seed.items() if name == "sgd"), None)
    adagrad = {accumulator: values for (name, accumulator), values in of_seed.items() if name == "adagrad"}
    if sgd is None or len(adagrad) < 2:
        return Finding(statement, NOT_TESTED, "no SGD, or fewer than two accumulators of AdaGrad")
    fewer = {start: [sgd[seed] - values[seed] for seed in sgd if seed in values] for start, values in adagrad.items()}
    table = [("optimizer", "accumulator at first", "critical steps", "fewer than SGD")]
    table.append(("sgd", "-", text_of([*sgd.values()]), "-"))
    table += [("adagrad", f"{start:g}", text_of([*adagrad[start].values()]), text_of(fewer[start])) for start in adagrad]
    effect = ", ".join(f"from {start:g}: {text_of(values)} fewer" for start, values in fewer.items())
    return Finding(statement, decide(*(beyond_zero(values, 1) for values in fewer.values())), effect, tuple(map(tuple, table)))
