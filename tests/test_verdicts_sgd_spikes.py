"""Claims on the spikes of SGD, on records with a known answer."""

import numpy as np
import pytest

from experiments import verdicts
from experiments.verdicts import read_run, sgd_spikes
from tests.small_records import AFTER, BEFORE, SGD, finding_of, sgd_record, verdict_of, with_lambda, with_ordinary_rises


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (sgd_record(BEFORE, 0.95), verdicts.REPRODUCED),
        (sgd_record(AFTER, 0.95), verdicts.NOT_REPRODUCED),  # critical after the peak only
        (sgd_record(1.0, 0.95), verdicts.NOT_REPRODUCED),  # every step is critical: no better than chance
        (sgd_record(BEFORE, 0.95, seeds=4, spikes=3), verdicts.NOT_MEASURABLE),
        (sgd_record(BEFORE, 0.95, spikes=1), verdicts.NOT_MEASURABLE),
    ],
)
def test_spikes_have_exceedances(data, verdict):
    assert verdict_of(sgd_spikes.spikes_have_exceedances, data, SGD) == verdict
    assert verdict_of(sgd_spikes.spikes_have_exceedances_at_batch_one, data, SGD) == verdict


def test_spikes_have_exceedances_in_part_where_some_have_none():
    data = sgd_record(BEFORE, 0.95, spikes=3).copy(deep=True)
    data["critical_lr_batch"][:, 16:] = 9.0  # the last of three spikes has none

    finding = finding_of(sgd_spikes.spikes_have_exceedances, data, SGD)

    assert finding.verdict == verdicts.PARTLY and finding.effect.startswith("67% of 15 spikes; above chance by ")
    assert ("1.5", "15", "67%") in [row[:3] for row in finding.table]


def test_exceedances_of_spikes_have_the_base_rate_of_the_steps_before_a_member_diverged():
    """Every step up to there is critical: the windows of its spikes are no better than any other."""
    data = sgd_record(1.0, 0.95).copy(deep=True)
    data["diverged"][:, 12:] = True
    data["critical_lr_batch"][:, 12:] = np.nan
    data["loss_train"][:, 12:] = np.nan

    exceedances = sgd_spikes._exceedances_of_spikes(read_run(data, SGD), 1.5)

    assert len(exceedances.gain) == 5 and all(gain == [0.0, 0.0] for gain in exceedances.gain)


@pytest.mark.parametrize(
    ("inside", "outside", "lie_there", "more_than_others"),
    [
        (0.95, 0.5, verdicts.REPRODUCED, verdicts.REPRODUCED),
        (0.5, 0.2, verdicts.NOT_REPRODUCED, verdicts.REPRODUCED),
        (0.95, 0.99, verdicts.REPRODUCED, verdicts.NOT_REPRODUCED),
        (0.5, 0.8, verdicts.NOT_REPRODUCED, verdicts.NOT_REPRODUCED),
    ],
)
def test_spikes_lie_in_the_top_space_and_more_than_other_rises(inside, outside, lie_there, more_than_others):
    data = with_ordinary_rises(inside, outside)
    alone = finding_of(sgd_spikes.spikes_lie_in_the_top_space, data, SGD)
    compared = finding_of(sgd_spikes.spikes_lie_there_more_than_other_rises, data, SGD)

    assert (alone.verdict, compared.verdict) == (lie_there, more_than_others)
    assert alone.effect == f"{inside:.3g} [{inside:.3g}, {inside:.3g}] of the rise"
    assert compared.effect == f"{alone.effect}; other rises {outside:.3g} [{outside:.3g}, {outside:.3g}]"


def test_spikes_lie_there_more_than_other_rises_says_how_many_seeds_have_spikes():
    data = with_ordinary_rises(0.95, 0.5, seeds=6).copy(deep=True)
    data["loss_train"][0] = 1.0  # the first seed has no spike

    finding = finding_of(sgd_spikes.spikes_lie_there_more_than_other_rises, data, SGD)

    assert finding.details.endswith("only 5 of 6 seeds have such spikes")


def test_spikes_lie_in_the_top_space_needs_five_seeds_with_spikes():
    data = with_ordinary_rises(0.95, 0.5, seeds=6).copy(deep=True)
    data["loss_train"][0] = 1.0  # the first seed has no spike
    data["seed"] = ("member", [0, 1, 1, 2, 3, 4])

    finding = finding_of(sgd_spikes.spikes_lie_in_the_top_space, data, SGD)

    assert finding.verdict == verdicts.NOT_MEASURABLE and "only 4 of 5 seeds have such spikes" in finding.details


def test_spikes_lie_in_the_top_space_needs_the_split_of_the_training_loss():
    data = sgd_record(BEFORE, 0.95).drop_vars(["loss_train_top", "loss_train_rest"])

    assert verdict_of(sgd_spikes.spikes_lie_in_the_top_space, data, SGD) == verdicts.NOT_MEASURABLE
    assert verdict_of(sgd_spikes.spikes_lie_there_more_than_other_rises, data, SGD) == verdicts.NOT_MEASURABLE


def test_spikes_lower_lambda_max():
    check = lambda data: finding_of(sgd_spikes.spikes_lower_lambda_max, data, SGD)

    falls = check(with_lambda(0.95, 1.0))
    assert falls.verdict == verdicts.REPRODUCED
    assert falls.effect.startswith(f"log lambda_max, minus controls: {np.log(0.95):.3g}")
    assert check(with_lambda(1.0, 1.0)).verdict == verdicts.NOT_REPRODUCED
    assert check(with_lambda(0.99, 0.98)).verdict == verdicts.NOT_REPRODUCED  # it falls faster elsewhere


def test_spikes_lower_lambda_max_needs_control_windows():
    finding = finding_of(sgd_spikes.spikes_lower_lambda_max, with_lambda(0.1, 1.0, calm=0), SGD)

    assert finding.verdict == verdicts.NOT_MEASURABLE
