"""Claims on spikes, on records with a known answer."""

import numpy as np
import pytest

from experiments import verdicts
from experiments.verdicts import catapults, read_run
from tests.small_records import (
    AFTER,
    BEFORE,
    CYCLIC,
    DROPS,
    FALLING,
    FIG3,
    FIG4,
    SGD,
    SPIKE,
    finding_of,
    record,
    sgd_record,
    verdict_of,
    with_schedule,
)


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (record(SPIKE, 1.5, DROPS), verdicts.REPRODUCED),
        (record(SPIKE, 1.5, 1.0), verdicts.NOT_REPRODUCED),  # lambda_max does not fall
        (record(SPIKE, 1.5, DROPS, top=np.array(SPIKE) * 0.5), verdicts.NOT_REPRODUCED),  # half of the rise is elsewhere
        (record(FALLING, 1.5, DROPS), verdicts.NOT_REPRODUCED),
        (record([SPIKE, FALLING], 1.5, DROPS), verdicts.NOT_REPRODUCED),  # only one of two members
        (record(SPIKE, 1.5, DROPS, lr0=0.5), verdicts.NOT_TESTED),
    ],
)
def test_first_catapult(data, verdict):
    assert verdict_of(catapults.first_catapult, data, FIG3) == verdict


@pytest.mark.parametrize(
    ("critical", "verdict"),
    [(DROPS, verdicts.REPRODUCED), ([9.0, 1, 1, 9, 9, 9], verdicts.NOT_REPRODUCED), ([9.0] * 6, verdicts.NOT_REPRODUCED)],
)
def test_spikes_are_catapults(critical, verdict):
    assert verdict_of(catapults.spikes_are_catapults, record(SPIKE, 1.5, critical), FIG3) == verdict
    assert verdict_of(catapults.spikes_are_catapults, record(FALLING, 1.5, critical), FIG3) == verdicts.NOT_TESTED


def test_spikes_are_catapults_counts_them():
    loss, critical = [SPIKE, SPIKE, FALLING], [[1.0] * 6, [9.0, 9, 9, 1, 1, 1], [1.0] * 6]

    finding = finding_of(catapults.spikes_are_catapults, record(loss, 1.5, critical), FIG3)

    assert finding.effect.startswith("1 of 2 spikes are catapults, 1 of them with an exceedance at the onset")
    assert (
        "onset of the others median 0.167 (from 0.167 to 0.167, n = 1); 0 divergences, 0 deaths; 1 start before"
        in finding.effect
    )


def test_catapult_follows_raise():
    loss = [1.0, 0.5, 0.4, 2.0, 0.4, 0.3, 0.2, 2.0, 0.2]
    quiet = [1.0, 0.5, 0.4, 2.0, 0.4, 0.3, 0.2, 0.1, 0.1]
    lr = [0.5, 0.5, 3, 3, 3, 3, 6, 6, 6]
    stage = np.array([[0, 0, 1, 1, 1, 1, 2, 2, 2]])
    critical = [2.0, 2, 2, 4, 4, 4, 4, 9, 9]

    check = lambda data: verdict_of(catapults.catapult_follows_raise, data, FIG4)

    assert check(record(loss, lr, critical, stage=stage)) == verdicts.REPRODUCED
    assert check(record(quiet, lr, critical, stage=stage)) == verdicts.NOT_REPRODUCED
    assert check(record(quiet, lr, critical)) == verdicts.NOT_TESTED


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (sgd_record(BEFORE, 0.95), verdicts.REPRODUCED),
        (sgd_record(BEFORE, 0.5), verdicts.NOT_REPRODUCED),  # half of the rise is elsewhere
        (sgd_record(AFTER, 0.95), verdicts.NOT_REPRODUCED),  # critical after the peak only
        (sgd_record(1.0, 0.95), verdicts.NOT_REPRODUCED),  # every step is critical: no better than the base rate
        (sgd_record(BEFORE, 0.95, seeds=4, spikes=3), verdicts.NOT_TESTED),
        (sgd_record(BEFORE, 0.95, spikes=1), verdicts.NOT_TESTED),
        (sgd_record(BEFORE, 0.95).drop_vars(["loss_train_top", "loss_train_rest"]), verdicts.NOT_TESTED),
    ],
)
def test_sgd_spikes_are_catapults(data, verdict):
    assert verdict_of(catapults.sgd_spikes_are_catapults, data, SGD) == verdict


def test_exceedances_of_spikes_have_the_base_rate_of_the_steps_before_a_member_diverged():
    """Every step up to there is critical: the windows of its spikes are no better than any other."""
    data = sgd_record(1.0, 0.95).copy(deep=True)
    data["diverged"][:, 12:] = True
    data["critical_lr_batch"][:, 12:] = np.nan
    data["loss_train"][:, 12:] = np.nan

    exceedances = catapults._exceedances_of_spikes(read_run(data, SGD), 1.5)

    assert len(exceedances.base) == 5 and all(np.mean(base) == 1 for base in exceedances.base)


def test_cycles_cause_catapults():
    config = with_schedule(CYCLIC, period=4)
    loss = np.tile([1.0, 3.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5], (10, 1))
    critical = [1.0, 1, 9, 9, 9, 9, 9, 9]

    check = lambda data: verdict_of(catapults.cycles_cause_catapults, data, config)

    assert check(record(loss, 1.5, critical)) == verdicts.REPRODUCED
    assert check(record(loss, 1.5, critical[::-1])) == verdicts.NOT_REPRODUCED
    assert check(record(loss, 1.5, 1.0)) == verdicts.NOT_TESTED
    assert check(record(loss[:9], 1.5, critical)) == verdicts.NOT_TESTED
