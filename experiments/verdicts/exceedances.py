"""A learning rate above its critical value as a predictor of a rise of the loss."""

from __future__ import annotations

import numpy as np

from catapult_jax.metrics import Prediction, scores
from experiments.analysis import CONFUSION, active, by_setting, pooled, rise_predictions
from experiments.statistics import BEYOND, beyond_zero, known_text, number_text
from experiments.verdicts.registry import NOT_REPRODUCED, NOT_TESTED, REPRODUCED, RUN, SWEEP, Finding, claim, decide
from experiments.verdicts.sweep_rows import ONLY_OPTIMIZERS


@claim(of=RUN, every_step=("measure.lambda_max_batch_every", "measure.loss_batch_after_every", "measure.loss_train_every"))
def exceedance_predicts_rise(record, config) -> Finding:
    """Fig. 5: with batch size one, the loss of a batch rises in the steps with lr above the critical lr of that batch."""
    statement = (
        "lr > critical_lr_batch predicts a rise of that batch's loss in the step: for each learning rate, over its seeds, "
        "precision at least 0.9 and recall at least 0.95"
    )
    tables, is_active = rise_predictions(record, config), active(record, config)[:, -1]
    parts, holds, told = [], True, True
    for label, members in by_setting(record, config):
        members = [m for m in members if is_active[m]]
        batch, full, spikes = ([tables[kind][m] for m in members] for kind in tables)
        batch_sum, full_sum, spikes_sum = pooled(batch), pooled(full), pooled(spikes)
        parts.append(
            f"{label}, {len(members)} members: batch loss precision "
            f"{_pooled_spread(batch, 'precision')}, recall {_pooled_spread(batch, 'recall')}, base rate {number_text(batch_sum.base_rate)}; "
            f"full training loss {_scores_text(full_sum)}; its spikes {_scores_text(spikes_sum)}"
        )
        holds &= batch_sum.precision >= 0.9 and batch_sum.recall >= 0.95
        told &= not (np.isnan(batch_sum.precision) or np.isnan(batch_sum.recall))
    inactive = int((~is_active).sum())
    effect = "; ".join(parts) + (f"; {inactive} members diverged or are dead, and are left out" if inactive else "")
    if not told:
        return Finding(statement, NOT_TESTED, "a rate without exceedances or without rises; " + effect)
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


@claim(of=SWEEP, every_step=("measure.lambda_max_batch_every", "measure.loss_batch_after_every"), columns=CONFUSION)
def exceedance_predicts_for_every_optimizer(rows: list[dict], config) -> Finding:
    """For every optimizer, lr above its own critical lr predicts a rise of the loss of the batch better than chance."""
    axis = "optimizer.name"
    statement = (
        "For every optimizer, over all steps of its grid of learning rates, each member until it diverged or stopped: the precision of lr > "
        f"critical_lr_batch as a predictor of a rise of that batch's loss in the step is above what chance gives ({BEYOND}; the steps of a seed are "
        "counted together; chance: the same number of predictions in each member, at random, so that rates at which all steps are critical gain nothing)"
    )
    names = list(dict.fromkeys(row.get(axis) for row in rows))
    if len(names) < 3 or len({row["run"] for row in rows}) > len(names):
        return Finding(statement, NOT_TESTED, ONLY_OPTIMIZERS)
    table, parts, tests = (
        [("optimizer", "members", "diverged or dead", "steps", "precision", "by chance", "recall", "base rate")],
        [],
        [],
    )
    for optimizer in names:
        own = [row for row in rows if row[axis] == optimizer]
        found, chance = [], []
        for seed in dict.fromkeys(row["seed"] for row in own):
            members = [scores(*(row[count] for count in CONFUSION)) for row in own if row["seed"] == seed]
            predicted = [m.true_positive + m.false_positive for m in members]
            by_chance = sum(p * m.base_rate for p, m in zip(predicted, members, strict=True) if p)
            found.append(pooled(members))
            chance.append(by_chance / sum(predicted) if sum(predicted) else np.nan)
        gain = [one.precision - by_chance for one, by_chance in zip(found, chance, strict=True)]
        tests.append(beyond_zero(gain, 1))
        parts.append(f"{optimizer} {known_text(gain)}")
        precision, recall, base = ([getattr(one, score) for one in found] for score in ("precision", "recall", "base_rate"))
        inactive, steps = sum(not row["active"] for row in own), sum(row[count] for row in own for count in CONFUSION)
        numbers = (str(optimizer), str(len(own)), str(inactive), str(steps))
        table.append((*numbers, *map(known_text, (precision, chance, recall, base))))
    return Finding(statement, decide(*tests), "precision above chance: " + ", ".join(parts), tuple(table))
