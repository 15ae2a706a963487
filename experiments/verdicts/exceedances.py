"""A learning rate above its critical value as a predictor of a rise of the loss, with batch size one."""

from __future__ import annotations

import numpy as np

from catapult_jax.metrics import Prediction
from catapult_jax.report.analysis import pooled, rise_predictions
from catapult_jax.report.members import active, by_setting
from catapult_jax.report.statistics import number_text
from experiments.verdicts.registry import (
    NOT_MEASURABLE,
    NOT_REPRODUCED,
    REPRODUCED,
    RUN,
    ZHU,
    Finding,
    Run,
    claim,
)

_SCORES = ("precision", "recall", "base_rate")


@claim(
    of=RUN,
    every_step=("measure.lambda_max_batch_every", "measure.loss_batch_after_every", "measure.loss_train_every"),
    title="With batch size one, a batch's loss rises exactly where lr > critical lr",
    published="With batch size one the loss of the example rises in a step exactly where the lr exceeds its critical lr",
    source=f"{ZHU}, Fig. 5",
)
def exceedance_predicts_rise(run: Run) -> Finding:
    """Fig. 5: with batch size one, the loss of a batch rises in the steps with lr above the critical lr of that batch."""
    statement = (
        "lr > critical_lr_batch predicts a rise of that batch's loss in the step: for each learning rate, over its seeds, "
        "precision at least 0.9 and recall at least 0.95. For one example and a linear model this holds by algebra; here the network is not linear"
    )
    record, settings = run.record, run.settings
    tables = rise_predictions(record, settings, run.events(settings.factor))
    is_active = active(record, settings)[:, -1]
    table = [("setting", "what rises", *(f"{score.replace('_', ' ')} (range over seeds)" for score in _SCORES))]
    sums = []
    for label, numbers in by_setting(record, settings):
        members = [m for m in numbers if is_active[m]]
        for kind in tables:
            table.append((label, kind, *(_spread([tables[kind][m] for m in members], score) for score in _SCORES)))
        sums.append(pooled([tables[next(iter(tables))][m] for m in members]))
    inactive = int((~is_active).sum())
    details = f"{inactive} members diverged or are dead, and are left out" if inactive else ""
    precision, recall = ([getattr(s, score) for s in sums] for score in ("precision", "recall"))
    if np.isnan([*precision, *recall]).any():
        return Finding(statement, NOT_MEASURABLE, "a learning rate without exceedances or without rises", tuple(table), details)
    holds = min(precision) >= 0.9 and min(recall) >= 0.95
    effect = f"precision at least {min(precision):.4g}, recall at least {min(recall):.4g}, at every lr"
    return Finding(statement, REPRODUCED if holds else NOT_REPRODUCED, effect, tuple(table), details)


def _spread(tables: list[Prediction], score: str) -> str:
    """A score over all members together, and its range over the members."""
    values = [getattr(t, score) for t in tables if not np.isnan(getattr(t, score))]
    return number_text(getattr(pooled(tables), score)) + (f" ({min(values):.3g} to {max(values):.3g})" if values else "")
