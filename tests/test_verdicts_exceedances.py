"""Claims on exceedances as predictors, on records with a known answer."""

import numpy as np

from experiments import verdicts
from experiments.verdicts import exceedances
from tests.small_records import FIG5, finding_of, record, verdict_of


def test_exceedance_predicts_rise():
    before = np.ones((1, 20))
    critical = np.where(np.arange(20) % 2, 0.5, 2.0)
    rises = np.where(np.arange(20) % 2, 2.0, 0.5)[None]

    check = lambda critical, after: verdict_of(
        exceedances.exceedance_predicts_rise, record(before, 1.0, critical, loss_batch_after=after), FIG5
    )

    assert check(critical, rises) == verdicts.REPRODUCED
    assert check(critical, 1 / rises) == verdicts.NOT_REPRODUCED
    assert check(9.0, before * 0.5) == verdicts.NOT_MEASURABLE  # never critical


def test_exceedance_predicts_rise_has_a_row_for_each_lr_and_loss():
    critical = np.where(np.arange(20) % 2, 0.5, 2.0)
    data = record(np.ones((1, 20)), 1.0, critical, loss_batch_after=np.where(np.arange(20) % 2, 2.0, 0.5)[None])

    header, first, *rest = finding_of(exceedances.exceedance_predicts_rise, data, FIG5).table

    assert header[:3] == ("setting", "what rises", "precision (range over seeds)") and len(rest) == 2
    assert first[1:] == ("batch loss", "1 (1 to 1)", "1 (1 to 1)", "0.5 (0.5 to 0.5)")
