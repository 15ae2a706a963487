"""How the kernel and the critical learning rate change in the course of a run."""

from __future__ import annotations

import numpy as np

from experiments.analysis import active, run_events
from experiments.statistics import spread_text, text_of
from experiments.verdicts.registry import MIN_SPIKES, NOT_REPRODUCED, NOT_TESTED, REPRODUCED, RUN, Finding, claim


@claim(of=RUN, every_step=("measure.lambda_max_batch_every",))
def catapults_condition_the_kernel(record, config) -> Finding:
    """A catapult leaves a kernel of smaller norm and smaller condition number."""
    statement = (
        "Of the catapults that close, at least 90 % leave a smaller spectral norm, and of those whose condition numbers can be compared at least 90 % a smaller "
        "condition number, of the tangent kernel of the training set than at their onset"
    )
    norms, before, after, lost = [], [], [], 0
    for m, found in enumerate(run_events(record, config)):
        values = record["condition_number_batch"].values[m].astype(float)
        for e in found:
            if e.kind == "catapult" and e.end >= 0:
                norms.append(e.lambda_max_after / e.lambda_max_before)
                before.append(values[e.onset])
                after.append(values[e.end])
            lost += e.kind == "catapult" and e.end < 0
    norms, before, after = np.array(norms), np.array(before), np.array(after)
    norms = norms[~np.isnan(norms)]
    # Infinite: lost in the rounding of the smallest eigenvalue; larger than any that is known, and not comparable with itself.
    known = ~(np.isnan(before) | np.isnan(after) | (np.isinf(before) & np.isinf(after)))
    both = np.isfinite(before) & np.isfinite(after)
    smaller = after[known] < before[known]
    effect = (
        f"norm smaller after {int((norms < 1).sum())} of {len(norms)} catapults, after / before {spread_text(norms)}; condition number smaller after "
        f"{int(smaller.sum())} of {int(known.sum())} where it is known, after / before {spread_text(after[both] / before[both])}; {lost} do not close"
    )
    if len(norms) < MIN_SPIKES or known.sum() < MIN_SPIKES:
        return Finding(statement, NOT_TESTED, f"fewer than {MIN_SPIKES} catapults; " + effect)
    holds = (norms < 1).mean() >= 0.9 and smaller.mean() >= 0.9
    return Finding(statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


@claim(of=RUN, every_step=("measure.lambda_max_batch_every", "measure.preconditioner_min_every"))
def adagrad_outgrows_its_lr(record, config) -> Finding:
    """With AdaGrad under a cyclic lr the critical lr grows until no lr of the schedule is critical."""
    statement = (
        "In every seed the exact critical lr of AdaGrad, as the median of the last cycle over that of the first, has grown, no step of the last quarter is "
        "critical, and the bound s_min * critical_lr(sgd) is above the largest lr from some step of the run on, as predicted by the study"
    )
    period = config["schedule"]["period"]
    lr, exact, bound = (record[key].values for key in ("lr", "critical_lr_batch", "critical_lr_bound_batch"))
    least, ok = record["preconditioner_min"].values, active(record, config)[:, -1]
    above, steps = lr > exact, lr.shape[1]
    growth = np.median(exact[:, -period:], 1) / np.median(exact[:, :period], 1)
    late = above[:, -steps // 4 :].mean(1)
    # Steps from which on it holds; at the largest lr of the schedule, since the lr of a step hangs on its place in the cycle.
    from_on = lambda holds: [int(np.flatnonzero(~row)[-1]) + 1 if not row.all() else 0 for row in holds]
    peak = lr.max(1, keepdims=True)
    observed, largest, predicted = from_on(~above), from_on(exact > peak), from_on(bound > peak)
    told = [p for p in predicted if p < steps]

    def in_time(found):
        known = [f for f in found if f < steps]
        return f"{len(known)} of {len(found)} seeds" + (f", step {spread_text(known)}" if known else "")

    violations = int((bound > exact * 1.01).sum())  # the exact one may come from products, to one percent
    effect = (
        f"critical lr of the last cycle over the first {text_of(growth)}, critical steps {text_of(above.mean(1))} of all, {text_of(late)} of the last quarter; "
        f"no step is critical any more in {in_time(observed)}; nor would one be at the largest lr in {in_time(largest)}; predicted by the bound "
        f"in {in_time(predicted)}; exact over bound {spread_text(np.median(exact / bound, 1))}; {violations} of {exact.size} steps with the bound above the exact one; smallest "
        f"entry of P {text_of(least[:, 0])} at first, {text_of(least[:, -1])} at last"
    )
    if not ok.all():
        return Finding(statement, NOT_TESTED, f"{(~ok).sum()} members diverged or are dead; " + effect)
    if not above.any(1).all():
        return Finding(statement, NOT_TESTED, "a seed without a critical step; " + effect)
    if np.isnan(bound).any():
        return Finding(statement, NOT_TESTED, f"the bound is not known at {int(np.isnan(bound).sum())} steps; " + effect)
    holds = bool((growth > 1).all() and not late.any() and len(told) == len(predicted))
    return Finding(statement, REPRODUCED if holds else NOT_REPRODUCED, effect)
