"""Criteria for a rise of the loss, side by side: what each says of this step, and of the next ones, within one run."""

from __future__ import annotations

import numpy as np

from catapult_jax.metrics import Prediction, average_precision, prediction
from catapult_jax.report.analysis import pooled
from catapult_jax.report.statistics import beyond_zero, number_text, text_of
from experiments.verdicts.predictor_scores import (
    C1,
    C3,
    C5,
    C7_TRACE,
    CRITERIA,
    FACTOR,
    MIN_OF_EACH,
    T1,
    T2,
    T3,
    T4,
    Member,
    difference,
    members_of,
    within_runs,
)
from experiments.verdicts.registry import NOT_TESTED, RUN, Finding, Run, claim, decide

HORIZON = 5  # steps, of H6
_DIRECTIONAL = (
    "measure.lambda_max_batch_every", "measure.loss_train_every", "measure.loss_batch_after_every", "measure.directional_batch_every",
    "measure.directional_train_every",
)  # fmt: skip


@claim(of=RUN, every_step=_DIRECTIONAL, title="Directional beats spectral as a predictor of this step")
def directional_predicts_the_step(run: Run) -> Finding:
    """The directional criteria against the spectral one, as predictors of what happens in this very step."""
    statement = (
        "Within a run (one member: lr and seed constant), (H4) the area under the ROC curve of the directional criterion of the batch (c3) for a "
        "rise of the batch's loss in the step is above that of the spectral one (c1), and (H5) that of the directional criterion of the training set "
        f"(c5) for a rise of the training loss is above that of c1, by the 95 % interval of the paired differences over seeds (the mean of the members of a "
        f"seed that have {MIN_OF_EACH} rises and falls), and a sign test"
    )
    members = members_of(run)
    targets = (T1, T2, T3)
    rows = [
        (name, *(cell(within_runs(members, name, target)) for target in targets), *_threshold_cells(members, name))
        for name in members[0].scores
    ]
    header = ("criterion", *(f"AUROC, {target}" for target in targets), "precision above 1", "recall above 1", "base rate")
    first, second = difference(members, C3, C1, T1), difference(members, C5, C1, T2)
    effect = f"AUROC, c3 minus c1 on T1 {text_of(first)} ({len(first)} seeds); c5 minus c1 on T2 {text_of(second)} ({len(second)} seeds)"
    return Finding(statement, decide(beyond_zero(first, 1), beyond_zero(second, 1)), effect, (header, *rows))


@claim(
    of=RUN,
    every_step=(*_DIRECTIONAL, "measure.criteria_every"),
    title="Spectral beats directional as a predictor of the next five steps",
)
def spectral_predicts_the_horizon(run: Run) -> Finding:
    """The trace of the noise kernel against the directional criteria, as predictors of a spike in the next steps."""
    target = T4[HORIZON]
    statement = (
        f"Within a run (one member: lr and seed constant), (H6) the area under the ROC curve of the trace of the noise kernel (c7) for the onset of a "
        f"spike of factor {FACTOR} within the next {HORIZON} steps is above that of the directional criterion of the batch (c3) and above that of the "
        f"training set (c5), by the 95 % interval of the paired differences over seeds (the mean of the members of a seed that have {MIN_OF_EACH} steps of "
        "each kind), and a sign test. Steps inside an open spike are left out"
    )
    members = members_of(run)
    if C7_TRACE not in members[0].scores:
        return Finding(statement, NOT_TESTED, "the criteria are not on record")
    rows = [
        (
            name,
            *(cell(within_runs(members, name, target)) for target in T4.values()),
            cell(within_runs(members, name, target, average_precision)),
        )
        for name in members[0].scores
    ]
    header = ("criterion", *(f"AUROC, {name}" for name in T4.values()), f"AUPRC, {target}")
    of_batch, of_training = (difference(members, C7_TRACE, other, target) for other in (C3, C5))
    effect = f"AUROC on T4 ({HORIZON} steps), trace of c7 minus c3 {text_of(of_batch)}, minus c5 {text_of(of_training)} ({len(of_batch)} seeds)"
    return Finding(statement, decide(beyond_zero(of_batch, 1), beyond_zero(of_training, 1)), effect, (header, *rows))


def cell(values: np.ndarray) -> str:
    """The mean over the runs that count, its interval, and their number if some do not count.

    Args:
      values: one for each run; NaN: it does not count.

    >>> cell(np.array([0.5, 0.5, np.nan]))
    '0.5 [0.5, 0.5] (2 of 3)'
    """
    known = values[np.isfinite(values)]
    return text_of(known) + (f" ({len(known)} of {len(values)})" if 0 < len(known) < len(values) else "")


def above_one(members: list[Member], name: str, target: str) -> Prediction:
    """The confusion table of a criterion above 1, over the steps of all runs.

    Args:
      members: from :func:`members_of`.
      name: of the criterion.
      target: what it should predict.
    """
    steps = [(member, member.counts[target]) for member in members]
    return pooled([prediction(member.scores[name][counts] > 1, member.happens[target][counts]) for member, counts in steps])


def _threshold_cells(members: list[Member], name: str) -> tuple[str, str, str]:
    """Precision, recall and base rate of a criterion above 1, for its target; empty for a baseline, which has no threshold."""
    if name not in CRITERIA:
        return "", "", ""
    table = above_one(members, name, CRITERIA[name].target)
    return number_text(table.precision), number_text(table.recall), number_text(table.base_rate)
