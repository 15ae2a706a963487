"""Claims on exceedances as predictors, on records and rows with a known answer."""

import numpy as np

from catapult_jax.report.analysis import CONFUSION
from experiments import verdicts
from experiments.verdicts import exceedances
from tests.small_records import FIG5, OPTIMIZERS, optimizer_rows, record, verdict_of


def test_exceedance_predicts_rise():
    before = np.ones((1, 20))
    critical = np.where(np.arange(20) % 2, 0.5, 2.0)
    rises = np.where(np.arange(20) % 2, 2.0, 0.5)[None]

    check = lambda critical, after: verdict_of(
        exceedances.exceedance_predicts_rise, record(before, 1.0, critical, loss_batch_after=after), FIG5
    )

    assert check(critical, rises) == verdicts.REPRODUCED
    assert check(critical, 1 / rises) == verdicts.NOT_REPRODUCED
    assert check(9.0, before * 0.5) == verdicts.NOT_TESTED  # never critical


def test_exceedance_predicts_for_every_optimizer():
    check = lambda rows: exceedances.exceedance_predicts_for_every_optimizer(rows, OPTIMIZERS).verdict
    rows = optimizer_rows(0.0)
    none = {"true_positive": 0, "false_positive": 0}

    assert check(rows) == verdicts.REPRODUCED
    assert check(optimizer_rows(0.0, precision=0.3)) == verdicts.NOT_REPRODUCED
    assert check([row for row in rows if row["optimizer.name"] != "sgd"]) == verdicts.NOT_TESTED  # two
    assert check([row | {"run": f"{row['run']}{row['lr_given']}"} for row in rows]) == verdicts.NOT_TESTED  # another axis
    assert check([row | (none if row["optimizer.name"] == "sgd" else {}) for row in rows]) == verdicts.NOT_TESTED


def test_exceedance_predicts_for_every_optimizer_has_a_row_for_each():
    header, first, *_ = exceedances.exceedance_predicts_for_every_optimizer(optimizer_rows(0.0), OPTIMIZERS).table

    assert header == ("optimizer", "members", "diverged or dead", "steps", "precision", "by chance", "recall", "base rate")
    assert first[0] == "sgd" and first[4:] == ("0.9 [0.9, 0.9]", "0.3 [0.3, 0.3]", "0.5 [0.5, 0.5]", "0.3 [0.3, 0.3]")


def test_exceedance_predicts_for_every_optimizer_gains_nothing_where_all_steps_are_critical():
    """All steps of the larger learning rates are critical, and half of them rise; none of the smallest."""
    counts = {0.3: (0, 0, 5, 95), 1.0: (50, 50, 0, 0), 3.0: (50, 50, 0, 0)}
    rows = [row | dict(zip(CONFUSION, counts[row["lr_given"]], strict=True)) for row in optimizer_rows(0.0)]

    finding = exceedances.exceedance_predicts_for_every_optimizer(rows, OPTIMIZERS)

    assert finding.verdict == verdicts.NOT_REPRODUCED
