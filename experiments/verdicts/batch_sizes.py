"""Batch size: catapults, AGOP alignment and test loss of runs that end at the same training loss."""

from __future__ import annotations

import numpy as np

from catapult_jax.report.members import SAME_LOSS
from catapult_jax.report.statistics import BEYOND, beyond_zero, number_text, rank_correlation, text_of
from experiments.verdicts.features import not_measurable
from experiments.verdicts.registry import (
    NOT_MEASURABLE,
    NOT_TESTED,
    SWEEP,
    ZHU,
    Finding,
    claim,
    decide,
    grade,
)
from experiments.verdicts.sweep_rows import at_the_edge, rows_by_arm, tuned_arms

_AXIS = "optimizer.batch_size"
_GIVEN = (
    "run.stop_loss", "measure.loss_test_every", "measure.agop_alignment_every", "measure.lambda_max_batch_every", "data.validation_size",
)  # fmt: skip
_COLUMNS = ("catapults", "spikes", "loss_val", "loss_test", "agop_alignment", "agop_alignment_start")
_SIGNS = {"spikes": -1, "agop_alignment": -1, "loss_test": 1}  # of the correlation with the batch size
_WORDS = {"spikes": "spikes", "agop_alignment": "features", "loss_test": "test loss"}


def _is_other_sweep(rows: list[dict]) -> bool:
    sizes = {row.get(_AXIS) for row in rows}
    return len(sizes) < 3 or len({row["run"] for row in rows}) > len(sizes)


_ONLY = "allowed: a sweep over three or more batch sizes and nothing else but members"


def _correlations(rows: list[dict], column: str) -> list[float]:
    """The rank correlation of the batch size with a column within each seed."""
    return [
        rank_correlation([row[_AXIS] for row in members], [row[column] for row in members])
        for members in rows_by_arm(rows, ("seed",)).values()
    ]


def _finding(rows: list[dict], statement: str, lrs: dict[int, float], all_rows: list[dict]) -> Finding:
    """Three correlations of the batch size, at one lr for each size; the alignment counts only where it can be judged."""
    reason = not_measurable(all_rows)
    signs = {name: sign for name, sign in _SIGNS.items() if name != "agop_alignment" or not reason}
    rho = {name: _correlations(rows, name) for name in _SIGNS}
    table = [("batch size", "lr / critical lr at start", "spikes", "catapults", "AGOP alignment", "test loss")]
    for size, lr in lrs.items():
        members = [row for row in rows if row[_AXIS] == size]
        means = (text_of([row[name] for row in members]) for name in ("spikes", "catapults", "agop_alignment", "loss_test"))
        table.append((str(size), f"{lr:.3g}{at_the_edge(all_rows, lr)}", *means))
    holds = {name: beyond_zero(rho[name], sign) for name, sign in signs.items()}
    yes_or_no = {True: "yes", False: "no", None: "not measurable"}
    effect = "correlation with size: " + "; ".join(
        f"{_WORDS[name]} {number_text(float(np.mean(values)))}, {yes_or_no[holds.get(name)]}" for name, values in rho.items()
    )
    details = "rank correlation with the batch size: " + ", ".join(
        f"{name.replace('_', ' ').replace('agop', 'AGOP')} {text_of(values)}" for name, values in rho.items()
    )
    details += f"; catapults, which do not count here, {text_of(_correlations(rows, 'catapults'))}"
    details += f"; the alignment does not count: {reason}" if reason else ""
    return Finding(statement, grade(*holds.values()), effect, tuple(table), details)


def _statement(config, at: str) -> str:
    return (
        f"Among members trained to the same loss ({SAME_LOSS} to 1 times {config['run']['stop_loss']:g}), the rank correlation, within a seed, "
        f"of the batch size with the test loss is positive, and with the AGOP alignment and the number of spikes negative ({BEYOND}), {at}. "
        "Partly: some of the three. The alignment counts only where it is measurable. Spikes count, with or without an exceedance; the table has the catapults among them"
    )


@claim(
    of=SWEEP,
    given=_GIVEN,
    columns=_COLUMNS,
    title="Smaller batches, same lr: more spikes, better features and test loss",
    published="At the same lr, smaller batches give more catapults, a higher AGOP alignment and a better test performance",
    source=f"{ZHU}, abstract",
)
def small_batches_help(rows: list[dict], config) -> Finding:
    """Smaller batches at one shared lr: more spikes, higher alignment, lower test loss."""
    statement = _statement(config, "at the largest lr of the grid at which every seed of every batch size ends there")
    if _is_other_sweep(rows):
        return Finding(statement, NOT_TESTED, _ONLY)
    shared = [lr for (lr,), members in rows_by_arm(rows, ("lr_given",)).items() if all(row["finished"] for row in members)]
    if not shared:
        return Finding(statement, NOT_MEASURABLE, "no lr at which every batch size comes to that loss")
    chosen = [row for row in rows if row["lr_given"] == max(shared)]
    return _finding(chosen, statement, dict.fromkeys(dict.fromkeys(row[_AXIS] for row in rows), max(shared)), rows)


@claim(of=SWEEP, given=_GIVEN, columns=_COLUMNS, title="Smaller batches, tuned lrs: more spikes, better features and test loss")
def small_batches_help_at_tuned_lrs(rows: list[dict], config) -> Finding:
    """Smaller batches, each size at its own tuned lr: more spikes, higher alignment, lower test loss."""
    statement = _statement(config, "each batch size at the lr of one grid with the smallest mean validation loss")
    if _is_other_sweep(rows):
        return Finding(statement, NOT_TESTED, _ONLY)
    tuned = tuned_arms(rows, (_AXIS,), "loss_val", finished=True)
    sizes = dict.fromkeys(row[_AXIS] for row in rows)
    if len(tuned) < len(sizes):
        return Finding(statement, NOT_MEASURABLE, f"only {len(tuned)} of {len(sizes)} batch sizes come to that loss")
    lrs = {size: members[0]["lr_given"] for (size,), members in tuned.items()}
    return _finding([row for members in tuned.values() for row in members], statement, lrs, rows)


@claim(
    of=SWEEP,
    given=_GIVEN,
    columns=_COLUMNS,
    title="With momentum, smaller batches help without a step above the deterministic critical lr",
)
def small_batches_help_without_catapults(rows: list[dict], config) -> Finding:
    """The effect of the batch size in runs that have no catapult at all: it needs another cause."""
    statement = (
        f"Among members trained to the same loss ({SAME_LOSS} to 1 times {config['run']['stop_loss']:g}), at the largest lr of the grid at which every seed of "
        "every batch size ends there and none has a catapult, the rank correlation, within a seed, of the batch size with the test loss is positive "
        f"({BEYOND})"
    )
    if _is_other_sweep(rows):
        return Finding(statement, NOT_TESTED, _ONLY)
    calm = [
        lr
        for (lr,), members in rows_by_arm(rows, ("lr_given",)).items()
        if all(row["finished"] and not row["catapults"] for row in members)
    ]
    if not calm:
        return Finding(statement, NOT_MEASURABLE, "no lr without a catapult at which every batch size comes to that loss")
    rho = _correlations([row for row in rows if row["lr_given"] == max(calm)], "loss_test")
    effect = f"rank correlation of size with test loss {text_of(rho)}, no catapult"
    return Finding(
        statement, decide(beyond_zero(rho, 1)), effect, details=f"lr {max(calm):g} times the critical lr at the start"
    )
