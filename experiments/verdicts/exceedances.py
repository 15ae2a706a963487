"""A learning rate above its critical value as a predictor of a rise of the loss."""

from __future__ import annotations

import numpy as np

from catapult_jax.metrics import Prediction, scores
from catapult_jax.report.analysis import CONFUSION, pooled, rise_predictions
from catapult_jax.report.members import active, by_setting
from catapult_jax.report.statistics import BEYOND, beyond_zero, finite_text, number_text
from experiments.verdicts.registry import NOT_REPRODUCED, NOT_TESTED, REPRODUCED, RUN, SWEEP, Finding, Run, claim, decide
from experiments.verdicts.sweep_rows import ONLY_OPTIMIZERS, rows_by_arm


@claim(of=RUN, title="TITLE", every_step=("measure.lambda_max_batch_every", "measure.loss_batch_after_every", "measure.loss_train_every"))
def exceedance_predicts_rise(run: Run) -> Finding:
    """Fig. 5: with batch size one, the loss of a batch rises in the steps with lr above the critical lr of that batch."""
    statement = (
        "lr > critical_lr_batch predicts a rise of that batch's loss in the step: for each learning rate, over its seeds, "
        "precision at least 0.9 and recall at least 0.95"
    )
    record, settings = run.record, run.settings
    tables = rise_predictions(record, settings, run.events(settings.factor))
    is_active = active(record, settings)[:, -1]
    parts, holds, is_known = [], True, True
    for label, members in by_setting(record, settings):
        members = [m for m in members if is_active[m]]
        batch, full, spikes = ([tables[kind][m] for m in members] for kind in tables)
        batch_sum, full_sum, spikes_sum = pooled(batch), pooled(full), pooled(spikes)
        parts.append(
            f"{label}, {len(members)} members: batch loss precision "
            f"{_pooled_spread(batch, 'precision')}, recall {_pooled_spread(batch, 'recall')}, base rate {number_text(batch_sum.base_rate)}; "
            f"full training loss {_scores_text(full_sum)}; its spikes {_scores_text(spikes_sum)}"
        )
        holds &= batch_sum.precision >= 0.9 and batch_sum.recall >= 0.95
        is_known &= not (np.isnan(batch_sum.precision) or np.isnan(batch_sum.recall))
    inactive = int((~is_active).sum())
    effect = "; ".join(parts) + (f"; {inactive} members diverged or are dead, and are left out" if inactive else "")
    if not is_known:
        return Finding(statement, NOT_TESTED, "a learning rate without exceedances or without rises; " + effect)
    return Finding(statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


def _pooled_spread(tables: list[Prediction], score: str) -> str:
    """A score over all members together, and its range over the members."""
    values = [getattr(t, score) for t in tables if not np.isnan(getattr(t, score))]
    return number_text(getattr(pooled(tables), score)) + (f" (seeds {min(values):.3g} to {max(values):.3g})" if values else "")


def _scores_text(table: Prediction) -> str:
    """Precision, recall and base rate, as text."""
    return ", ".join(
        f"{name.replace('_', ' ')} {number_text(getattr(table, name))}" for name in ("precision", "recall", "base_rate")
    )


@claim(of=SWEEP, title="TITLE", every_step=("measure.lambda_max_batch_every", "measure.loss_batch_after_every"), columns=CONFUSION)
def exceedance_predicts_for_every_optimizer(rows: list[dict], config) -> Finding:
    """For every optimizer, lr above its own critical lr predicts a rise of the loss of the batch better than chance."""
    axis = "optimizer.name"
    statement = (
        "For every optimizer, the precision of lr > critical_lr_batch as a predictor of a rise of that batch's loss in the step is above chance "
        f"({BEYOND}). The steps of all learning rates of a seed count together, those of a member until it diverged or stopped. Chance: as many "
        "predictions in each member, at random, so that a learning rate at which all steps are critical gains nothing"
    )
    names = {row.get(axis) for row in rows}
    if len(names) < 3 or len({row["run"] for row in rows}) > len(names):
        return Finding(statement, NOT_TESTED, ONLY_OPTIMIZERS)
    table = [("optimizer", "members", "diverged or dead", "steps", "precision", "by chance", "recall", "base rate")]
    parts, tests = [], []
    for (optimizer,), members in rows_by_arm(rows, (axis,)).items():
        of_seed = [_against_chance(seeds) for seeds in rows_by_arm(members, ("seed",)).values()]
        predictions, chance = [pair[0] for pair in of_seed], [pair[1] for pair in of_seed]
        gain = [prediction.precision - by_chance for prediction, by_chance in of_seed]
        tests.append(beyond_zero(gain, 1))
        parts.append(f"{optimizer} {finite_text(gain)}")
        precision, recall, base = ([getattr(p, score) for p in predictions] for score in ("precision", "recall", "base_rate"))
        inactive, steps = sum(not row["active"] for row in members), sum(row[count] for row in members for count in CONFUSION)
        numbers = (str(optimizer), str(len(members)), str(inactive), str(steps))
        table.append((*numbers, *map(finite_text, (precision, chance, recall, base))))
    return Finding(statement, decide(*tests), "precision above chance: " + ", ".join(parts), tuple(table))


def _against_chance(rows: list[dict]) -> tuple[Prediction, float]:
    """The table of all members of a seed together, and the precision that as many predictions in each member have by chance."""
    tables = [scores(*(row[count] for count in CONFUSION)) for row in rows]
    predicted = [table.true_positive + table.false_positive for table in tables]
    expected = sum(number * table.base_rate for number, table in zip(predicted, tables, strict=True) if number)
    return pooled(tables), expected / sum(predicted) if sum(predicted) else np.nan
