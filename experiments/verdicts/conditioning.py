"""How the kernel and the critical learning rate change in the course of a run."""

from __future__ import annotations

import numpy as np

from catapult_jax.report.members import active
from catapult_jax.report.statistics import spread_text, text_of
from experiments.verdicts.registry import MIN_SPIKES, NOT_REPRODUCED, NOT_TESTED, REPRODUCED, RUN, Finding, Run, claim


@claim(of=RUN, title="TITLE", every_step=("measure.lambda_max_batch_every",))
def catapults_condition_the_kernel(run: Run) -> Finding:
    """A catapult leaves a kernel of smaller norm and smaller condition number."""
    statement = (
        "At least 90 % of the catapults that close leave a tangent kernel of the training set with a smaller spectral norm than at their onset, "
        "and at least 90 % of those whose condition numbers can be compared leave a smaller condition number"
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
    effect = (
        f"norm smaller after {int((norms < 1).sum())} of {len(norms)} catapults, after / before {spread_text(norms)}; condition number smaller after "
        f"{int(smaller.sum())} of {int(comparable.sum())} where it is known, after / before {spread_text(after[both] / before[both])}; {still_open} do not close"
    )
    if len(norms) < MIN_SPIKES or comparable.sum() < MIN_SPIKES:
        return Finding(statement, NOT_TESTED, f"fewer than {MIN_SPIKES} catapults; " + effect)
    holds = (norms < 1).mean() >= 0.9 and smaller.mean() >= 0.9
    return Finding(statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


@claim(of=RUN, title="TITLE", every_step=("measure.lambda_max_batch_every", "measure.preconditioner_min_every"))
def adagrad_outgrows_its_lr(run: Run) -> Finding:
    """With AdaGrad under a cyclic lr the critical lr grows until no lr of the schedule is critical."""
    statement = (
        "In every seed: the exact critical lr of AdaGrad grows (its median over the last cycle is above that over the first); no step of the "
        "last quarter is critical; and the bound s_min * critical_lr(sgd) is above the largest lr from a step of the run on, as the study predicts"
    )
    record, period = run.record, run.config["schedule"]["period"]
    lr, exact, bound = (record[name].values for name in ("lr", "critical_lr_batch", "critical_lr_bound_batch"))
    least, ok = record["preconditioner_min"].values, active(record, run.settings)[:, -1]
    above, steps = lr > exact, lr.shape[1]
    growth = np.median(exact[:, -period:], 1) / np.median(exact[:, :period], 1)
    late = above[:, -steps // 4 :].mean(1)
    # The lr of a step depends on its place in the cycle, so it is the largest one that is compared.
    from_on = lambda holds: [int(np.flatnonzero(~row)[-1]) + 1 if not row.all() else 0 for row in holds]
    peak = lr.max(1, keepdims=True)
    observed, largest, predicted = from_on(~above), from_on(exact > peak), from_on(bound > peak)

    def in_time(first_steps):
        early = [step for step in first_steps if step < steps]
        return f"{len(early)} of {len(first_steps)} seeds" + (f", step {spread_text(early)}" if early else "")

    violations = int((bound > exact * 1.01).sum())  # the exact one may come from kernel-vector products, to one percent
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
    holds = bool((growth > 1).all() and not late.any() and all(step < steps for step in predicted))
    return Finding(statement, REPRODUCED if holds else NOT_REPRODUCED, effect)
