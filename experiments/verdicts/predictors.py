"""Criteria for a rise of the loss, side by side: what each says of this step, within one run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from catapult_jax.metrics import auroc, prediction
from catapult_jax.report.analysis import pooled
from catapult_jax.report.members import running
from catapult_jax.report.statistics import beyond_zero, number_text, text_of
from experiments.verdicts.registry import RUN, Finding, Run, claim, decide

_MIN_OF_EACH = 5  # rises and falls that a member must have for its area under the curve to count

_SPECTRAL = "c1 lr / critical lr of the batch"
_BATCH, _TRAIN = "c3 directional, batch", "c5 directional, training set"
# Criterion -> its score; theory expects a rise above 1. The baselines have no threshold.
_CRITERIA: dict[str, Callable] = {
    _SPECTRAL: lambda series: series["lr"] / series["critical_lr_batch"],
    _BATCH: lambda series: _inverse(series["directional_batch"]),
    _TRAIN: lambda series: _inverse(series["directional_train"]),
}
_BASELINES: dict[str, Callable] = {
    "loss of the batch": lambda series: series["loss_batch"],
    "training loss": lambda series: series["loss_train"],
    "rise of the training loss in the last step": lambda series: np.append(np.nan, np.diff(np.log(series["loss_train"]))),
}
# Target -> whether it happens in each step.
_TARGETS: dict[str, Callable] = {
    "T1 batch loss rises": lambda series: series["loss_batch_after"] > series["loss_batch"],
    "T2 training loss rises": lambda series: np.append(np.diff(series["loss_train"]) > 0, False),
    "T3 training loss rises by a tenth": lambda series: np.append(
        series["loss_train"][1:] > 1.1 * series["loss_train"][:-1], False
    ),
}
_SERIES = ("lr", "critical_lr_batch", "directional_batch", "directional_train", "loss_batch", "loss_batch_after", "loss_train")


@claim(
    of=RUN, title="Directional beats spectral as a predictor of this step",
    every_step=(
        "measure.lambda_max_batch_every", "measure.loss_train_every", "measure.loss_batch_after_every", "measure.directional_batch_every",
        "measure.directional_train_every",
    ),
)  # fmt: skip
def directional_predicts_the_step(run: Run) -> Finding:
    """The directional criteria against the spectral one, as predictors of what happens in this very step."""
    statement = (
        "Within a run (one member: lr and seed constant), (H4) the area under the ROC curve of the directional criterion of the batch (c3) for a "
        "rise of the batch's loss in the step is above that of the spectral one (c1), and (H5) that of the directional criterion of the training set "
        f"(c5) for a rise of the training loss is above that of c1, by the 95 % interval of the paired differences over the members that have {_MIN_OF_EACH} "
        "rises and falls, and a sign test"
    )
    areas, tables = _areas(run), {}
    for name, target in ((_SPECTRAL, 0), (_BATCH, 0), (_TRAIN, 1)):
        tables[name] = pooled([prediction(*_at_threshold(run, m, name, target)) for m in range(run.record.sizes["member"])])
    rows = [
        (name, *(text_of(values[np.isfinite(values)]) for values in per_target))
        + (
            (number_text(tables[name].precision), number_text(tables[name].recall), number_text(tables[name].base_rate))
            if name in tables
            else ("",) * 3
        )
        for name, per_target in areas.items()
    ]
    header = ("criterion", *(f"AUROC, {target}" for target in _TARGETS), "precision above 1", "recall above 1", "base rate")
    first = _difference(areas, _BATCH, 0)
    second = _difference(areas, _TRAIN, 1)
    effect = f"AUROC, c3 minus c1 on T1 {text_of(first)} ({len(first)} members); c5 minus c1 on T2 {text_of(second)} ({len(second)} members)"
    return Finding(statement, decide(beyond_zero(first, 1), beyond_zero(second, 1)), effect, (header, *rows))


def _inverse(multiple: np.ndarray) -> np.ndarray:
    """The score of a multiple; infinite where there is no descent direction."""
    with np.errstate(divide="ignore"):
        return np.where(multiple > 0, 1 / np.where(multiple > 0, multiple, 1), np.where(np.isnan(multiple), np.nan, np.inf))


def _steps(run: Run, m: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The series of a member, and the steps at which all are known and the next training loss is."""
    series = {name: run.record[name].values[m].astype(float) for name in _SERIES}
    is_usable = np.all([~np.isnan(values) for values in series.values()], 0) & running(run.record, run.settings, m)
    is_usable[:-1] &= np.isfinite(series["loss_train"][1:])
    is_usable[-1] = False
    return series, is_usable


def _areas(run: Run) -> dict[str, list[np.ndarray]]:
    """Criterion -> for each target the area under the ROC curve of each member; NaN with few rises or falls."""
    areas: dict[str, list[np.ndarray]] = {}
    scores = _CRITERIA | _BASELINES
    for name, score in scores.items():
        areas[name] = []
        for happens in _TARGETS.values():
            of_members = []
            for m in range(run.record.sizes["member"]):
                series, is_usable = _steps(run, m)
                values, happened = score(series)[is_usable], happens(series)[is_usable]
                has_both = min(happened.sum(), (~happened).sum()) >= _MIN_OF_EACH
                of_members.append(auroc(values, happened) if has_both else np.nan)
            areas[name].append(np.array(of_members))
    return areas


def _difference(areas: dict[str, list[np.ndarray]], name: str, target: int) -> np.ndarray:
    """The area of a criterion minus that of c1, of the members that have both."""
    difference = areas[name][target] - areas[_SPECTRAL][target]
    return difference[np.isfinite(difference)]


def _at_threshold(run: Run, m: int, name: str, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether the criterion is above 1, and whether the target happens, at each step of a member."""
    series, is_usable = _steps(run, m)
    return _CRITERIA[name](series)[is_usable] > 1, list(_TARGETS.values())[target](series)[is_usable]
