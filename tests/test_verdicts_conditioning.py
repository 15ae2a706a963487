"""Claims on the kernel in the course of a run, on records with a known answer."""

import numpy as np

from experiments import verdicts
from experiments.verdicts import conditioning
from tests.small_records import ADAGRAD, DROPS, FIG3, adagrad_record, finding_of, record, verdict_of, with_schedule


def test_catapults_condition_the_kernel():
    loss = np.tile([1.0, 2.0, 4.0, 1.0, 0.9, 0.8], (12, 1))
    condition = np.tile([9.0, 9, 9, 4, 4, 4], (12, 1))

    check = lambda critical, condition: verdict_of(
        conditioning.catapults_condition_the_kernel, record(loss, 1.5, critical, condition_number_batch=condition), FIG3
    )

    assert check(DROPS, condition) == verdicts.REPRODUCED
    assert check(DROPS, 1 / condition) == verdicts.NOT_REPRODUCED
    assert check(1.0, condition) == verdicts.NOT_REPRODUCED  # the norm stays
    assert check(9.0, condition) == verdicts.NOT_TESTED
    assert check(DROPS, np.full((12, 6), np.inf)) == verdicts.NOT_TESTED  # not known
    assert check(DROPS, np.where(condition == 4, np.inf, condition)) == verdicts.NOT_REPRODUCED  # singular after it
    assert check(DROPS, np.where(condition == 9, np.inf, condition)) == verdicts.REPRODUCED  # singular before it


def test_adagrad_outgrows_its_lr():
    config = with_schedule(ADAGRAD, period=4)
    grows = np.array([1.0, 1, 1, 3, 3, 3, 3, 3])

    check = lambda *a: finding_of(conditioning.adagrad_outgrows_its_lr, adagrad_record(*a), config)

    assert check(grows, 0.8 * grows).verdict == verdicts.REPRODUCED
    assert check(grows, 0.1).verdict == verdicts.NOT_REPRODUCED  # the bound never predicts it
    assert check(1.0, 0.8).verdict == verdicts.NOT_REPRODUCED  # critical to the end
    assert check(9.0, 0.8).verdict == verdicts.NOT_TESTED  # never critical


def test_adagrad_outgrows_its_lr_names_the_steps():
    config = with_schedule(ADAGRAD, period=4)
    grows = np.array([1.0, 1, 1, 3, 3, 3, 3, 3])

    effect = lambda *a: finding_of(conditioning.adagrad_outgrows_its_lr, adagrad_record(*a), config).effect

    observed = (
        "any more in 5 of 5 seeds, step median 3 (from 3 to 3, n = 5); "
        "nor would one be at the largest lr in 5 of 5 seeds, step median 3"
    )
    assert observed in effect(grows, 0.8 * grows)
    assert "the bound in 5 of 5 seeds, step median 3" in effect(grows, 0.8 * grows)
    never = (
        "any more in 0 of 5 seeds; nor would one be at the largest lr in 0 of 5 seeds; predicted by the bound in 0 of 5 seeds;"
    )
    assert never in effect(1.0, 0.8)
    assert "40 of 40 steps with the bound above" in effect(1.0, 1.1)
