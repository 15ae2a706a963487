"""AGOP alignment and test loss over optimizers, each at its own tuned learning rate."""

from __future__ import annotations

import numpy as np

from catapult_jax.report.members import SAME_LOSS
from catapult_jax.report.statistics import BEYOND, beyond_zero, rank_correlation, text_of
from experiments.verdicts.features import not_measurable
from experiments.verdicts.registry import (
    NOT_MEASURABLE,
    NOT_TESTED,
    SWEEP,
    ZHU,
    Finding,
    claim,
    grade,
)
from experiments.verdicts.sweep_rows import ONLY_OPTIMIZERS, at_the_edge, rows_by_arm, tuned_arms

_AXIS = "optimizer.name"
_GIVEN = ("run.stop_loss", "measure.loss_test_every", "measure.agop_alignment_every", "data.validation_size")
# Column -> words, of what may predict the test loss as well as the alignment does.
_RIVALS = {
    "loss_train": "training loss",
    "lambda_max_train": "lambda_max of the kernel with P",
    "weight_norm": "norm of the weights",
    "steps": "steps",
}


def _tuned(rows: list[dict]) -> tuple[dict[tuple, list[dict]], tuple[str, str] | None]:
    """The optimizers of which every seed ended at the loss to stop at, each at its tuned lr; and if they can't be compared, the verdict and why."""
    names = list(dict.fromkeys(row.get(_AXIS) for row in rows))
    if len(names) < 3 or len({row["run"] for row in rows}) > len(names):
        return {}, (NOT_TESTED, ONLY_OPTIMIZERS)
    arms = tuned_arms(rows, (_AXIS,), "loss_val", finished=True)
    return arms, None if len(arms) >= 4 else (NOT_MEASURABLE, f"only {len(arms)} optimizers end at that loss with every seed")


def _rho(arms: dict[tuple, list[dict]], column: str, without: tuple | None = None) -> list[float]:
    """The rank correlation of a column with the test loss over the optimizers, within each seed."""
    rows = [row for arm, members in arms.items() if arm != without for row in members]
    return [
        rank_correlation([row[column] for row in members], [row["loss_test"] for row in members])
        for members in rows_by_arm(rows, ("seed",)).values()
    ]


def _table(rows: list[dict], arms: dict[tuple, list[dict]]) -> tuple[tuple[str, ...], ...]:
    columns = [
        name
        for name in ("agop_alignment", "loss_test", "error_test", "catapults", "critical_steps", *_RIVALS)
        if name in rows[0]
    ]
    table = [("optimizer", "lr / critical lr at start", *(column.replace("_", " ") for column in columns))]
    for (name,), members in rows_by_arm(rows, (_AXIS,)).items():
        if (name,) not in arms:
            table.append((str(name), "none at which every seed came to that loss", *("-" for _ in columns)))
            continue
        chosen = arms[name,]
        lr = chosen[0]["lr_given"]
        means = (text_of([row[column] for row in chosen]) for column in columns)
        table.append((str(name), f"{lr:.3g}{at_the_edge(members, lr)}", *means))
    return tuple(table)


@claim(
    of=SWEEP,
    given=_GIVEN,
    columns=("loss_val", "loss_test", "agop_alignment", "agop_alignment_start"),
    title="Over optimizers, a higher AGOP alignment goes with a lower test loss",
    published="Over optimizers, a higher AGOP alignment with the true model goes with a better test performance",
    source=f"{ZHU}, section on optimizers",
)
def alignment_over_optimizers(rows: list[dict], config) -> Finding:
    """Over optimizers, each at its own tuned lr: a higher AGOP alignment, a lower test loss, whichever optimizer is left out."""
    statement = (
        "Over the optimizers, four or more, of which every seed comes to the same loss "
        f"({SAME_LOSS} to 1 times {config['run']['stop_loss']:g}) at an lr of the grid, each at the lr with the smallest mean validation loss, the rank "
        f"correlation, within a seed, of the AGOP alignment with the test loss is negative ({BEYOND}), and stays so with any one optimizer left out. "
        "Partly: with all of them only"
    )
    if reason := not_measurable(rows):
        return Finding(statement, NOT_MEASURABLE, reason)
    arms, problem = _tuned(rows)
    table = _table(rows, arms)
    if problem:
        return Finding(statement, *problem, table)
    rho = _rho(arms, "agop_alignment")
    without = {arm[0]: _rho(arms, "agop_alignment", arm) for arm in arms}
    worst = max(without, key=lambda name: np.mean(without[name]))
    verdict = grade(beyond_zero(rho, -1), all(beyond_zero(values, -1) for values in without.values()))
    effect = f"rank correlation {text_of(rho)} over {len(arms)} optimizers"
    return Finding(statement, verdict, effect, table, f"without {worst}: {text_of(without[worst])}")


@claim(
    of=SWEEP,
    given=(*_GIVEN, "measure.weight_norm_every"),
    columns=("loss_val", "loss_test", "agop_alignment", "agop_alignment_start", *_RIVALS),
    title="Over optimizers, AGOP alignment predicts the test loss best",
)
def alignment_is_the_best_predictor(rows: list[dict], config) -> Finding:
    """AGOP alignment against training loss, lambda_max, weight norm and steps, as predictors of the test loss over optimizers."""
    del config
    statement = (
        "Over the optimizers of the row above, the absolute rank correlation with the test loss, within a seed, is larger for the AGOP alignment than for "
        f"each of {', '.join(_RIVALS.values())} ({BEYOND} on the paired differences). Partly: than for some of them"
    )
    if reason := not_measurable(rows):
        return Finding(statement, NOT_MEASURABLE, reason)
    arms, problem = _tuned(rows)
    if problem:
        return Finding(statement, *problem)
    size = {name: np.abs(_rho(arms, name)) for name in ("agop_alignment", *_RIVALS)}
    more = {name: size["agop_alignment"] - size[name] for name in _RIVALS}
    table = [("predictor", "absolute rank correlation with the test loss", "alignment minus it")]
    table.append(("AGOP alignment", text_of(size["agop_alignment"]), "-"))
    table += [(words, text_of(size[name]), text_of(more[name])) for name, words in _RIVALS.items()]
    best = max(_RIVALS, key=lambda name: size[name].mean())
    effect = f"{text_of(size['agop_alignment'])}; {_RIVALS[best]} {text_of(size[best])}"
    return Finding(statement, grade(*(beyond_zero(values, 1) for values in more.values())), effect, tuple(table))
