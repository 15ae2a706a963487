"""Claims on spikes, on records with a known answer."""

import numpy as np
import pytest
import scipy.stats
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import verdicts
from experiments.verdicts import catapults
from tests.small_records import (
    CYCLIC,
    DROPS,
    FALLING,
    FIG3,
    FIG4,
    SPIKE,
    finding_of,
    record,
    verdict_of,
    width_rows,
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
    [(DROPS, verdicts.REPRODUCED), ([9.0, 1, 1, 9, 9, 9], verdicts.PARTLY), ([9.0] * 6, verdicts.NOT_REPRODUCED)],
)
def test_spikes_are_catapults(critical, verdict):
    check = lambda *losses: verdict_of(catapults.spikes_are_catapults, record(losses, 1.5, [critical] * len(losses)), FIG3)

    assert check(*[SPIKE] * 10) == verdict
    assert check(*[SPIKE] * 9) == check(*[FALLING] * 10) == verdicts.NOT_MEASURABLE


def test_spikes_are_catapults_is_not_measurable_where_chance_makes_each_spike_one():
    finding = finding_of(catapults.spikes_are_catapults, record([SPIKE] * 10, 1.5, [[1.0] * 6] * 10), FIG3)

    assert finding.verdict == verdicts.NOT_MEASURABLE
    assert finding.effect.startswith("nearly every window has an exceedance: 10 of 10 spikes are catapults (100% by chance)")


def test_spikes_are_catapults_counts_those_that_exceed_on_the_way_up():
    finding = finding_of(catapults.spikes_are_catapults, record([SPIKE] * 10, 1.5, [[9.0, 1.0, 9.0, 9.0, 9.0, 9.0]] * 10), FIG3)

    assert finding.effect.startswith(
        "10 of 10 spikes are catapults (50% by chance), 10 start before the first exceedance of the run; 10 catapults start below"
    )


def test_spikes_are_catapults_counts_them():
    loss, critical = [SPIKE, SPIKE, FALLING], [[1.0] * 6, [9.0, 9, 9, 1, 1, 1], [1.0] * 6]

    finding = finding_of(catapults.spikes_are_catapults, record(loss, 1.5, critical), FIG3)

    assert (
        finding.effect
        == "fewer than 10 spikes: 1 of 2 spikes are catapults (88% by chance), 1 start before the first exceedance of the run"
    )
    assert "onset of the others median 0.167 (from 0.167 to 0.167, n = 1); 0 divergences, 0 deaths" in finding.details


def test_first_catapult_of_a_run_that_is_too_short_is_not_measurable():
    whole, not_measurable = record(SPIKE, 1.5, DROPS), verdicts.NOT_MEASURABLE
    is_open = record([1.0, 2.0, 4.0, 4.0, 4.0, 4.0], 1.5, DROPS)

    assert verdict_of(catapults.first_catapult, whole.isel(step=slice(0, 5)), FIG3) == not_measurable
    finding = finding_of(catapults.first_catapult, is_open, FIG3)
    assert finding.verdict == not_measurable and finding.effect == "1 of 1 catapults are still open at the last step"


def test_catapult_follows_raise():
    loss = [1.0, 0.5, 0.4, 2.0, 0.4, 0.3, 0.2, 2.0, 0.2]
    quiet = [1.0, 0.5, 0.4, 2.0, 0.4, 0.3, 0.2, 0.1, 0.1]
    lr = [0.5, 0.5, 3, 3, 3, 3, 6, 6, 6]
    stage = np.array([[0, 0, 1, 1, 1, 1, 2, 2, 2]])
    critical = [2.0, 2, 2, 4, 4, 4, 4, 9, 9]

    check = lambda data: verdict_of(catapults.catapult_follows_raise, data, FIG4)

    assert check(record(loss, lr, critical, stage=stage)) == verdicts.REPRODUCED
    assert check(record(quiet, lr, critical, stage=stage)) == verdicts.NOT_REPRODUCED
    assert check(record(quiet, lr, critical)) == verdicts.NOT_MEASURABLE


def test_peak_grows_with_width():
    check = lambda peaks: catapults.peak_grows_with_width(width_rows(peaks), FIG3)

    assert check((1.0, 2.0, 3.0)).verdict == verdicts.REPRODUCED
    assert check((3.0, 2.0, 1.0)).verdict == verdicts.NOT_REPRODUCED
    assert check((2.0, 2.0, 2.0)).verdict == verdicts.NOT_REPRODUCED
    assert check((1.0, 2.0, 3.0)).table[1] == ("16", "1.02 [1.01, 1.03]", "4 [4, 4]")
    assert catapults.peak_grows_with_width(width_rows((1.0, 2.0, 3.0))[:10], FIG3).verdict == verdicts.NOT_TESTED


def cycles_record(critical, members=10):
    """Two cycles of four steps in each member; the first has a spike, the second has none."""
    loss = np.tile([1.0, 3.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5], (members, 1))
    return record(loss, 1.5, critical).assign_coords(seed=("member", np.arange(members) // 2))


def test_cycles_cause_catapults():
    first, config = [1.0, 1, 9, 9, 9, 9, 9, 9], with_schedule(CYCLIC, period=4)
    check = lambda data: verdict_of(catapults.cycles_cause_catapults, data, config)

    assert check(cycles_record(first)) == verdicts.REPRODUCED
    assert check(cycles_record(first[::-1])) == verdicts.NOT_REPRODUCED
    assert check(cycles_record(1.0)) == verdicts.NOT_MEASURABLE
    assert check(cycles_record(first, members=9)) == verdicts.NOT_MEASURABLE


def test_cycles_that_differ_by_their_peak_are_in_part():
    """High peaks have exceedances and spikes, low ones have neither: the spikes may come from the peak."""
    high = record([[1.0, 3.0, 1.0, 0.9, 1.0, 3.0, 1.0, 0.9]] * 10, 1.5, [1.0] * 8)
    low = record([[1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]] * 10, 0.5, [1.0] * 8)
    data = xarray.concat([high, low], "member").assign_coords(
        seed=("member", np.tile(np.arange(10) // 2, 2)), lr_given=("member", [1.5] * 10 + [0.5] * 10)
    )

    finding = finding_of(catapults.cycles_cause_catapults, data, with_schedule(CYCLIC, period=4))

    assert finding.verdict == verdicts.PARTLY and "among cycles of equal peak 1;" in finding.details
    assert finding.effect.endswith("too few cycles of equal peak and other kind to tell the exceedance from the peak")
    assert finding.details.endswith("no outcome could give p below 1 among cycles of equal peak")


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_exact_test_of_one_group_is_that_of_fisher(seed):
    spiked, chosen = np.random.default_rng(seed).random((2, 30)) < 0.4
    counts = [[(spiked & chosen).sum(), (~spiked & chosen).sum()], [(spiked & ~chosen).sum(), (~spiked & ~chosen).sum()]]

    expected = scipy.stats.fisher_exact(counts, alternative="greater").pvalue

    p, least = catapults._fisher(spiked, chosen, np.zeros(30))
    best = np.zeros(30, bool)  # as many spiked cycles, as far as possible among the chosen ones
    best[np.argsort(~chosen, kind="stable")[: spiked.sum()]] = True
    assert p == pytest.approx(expected) and catapults._fisher(best, chosen, np.zeros(30)) == pytest.approx((least, least))


def test_cycles_cause_catapults_sums_the_log_gain_of_a_cycle():
    """At 1.5 times the critical lr the top mode is multiplied by -2 in a step."""
    config = with_schedule(CYCLIC, period=4)
    finding = finding_of(catapults.cycles_cause_catapults, cycles_record([1.0, 1, 9, 9, 9, 9, 9, 9]), config)

    assert finding.table[1] == ("0, no exceedance", "10", "0%")
    assert f"{4 * np.log(2):.2g} to {4 * np.log(2):.2g}" == finding.table[-1][0]
    assert finding.effect == "spikes in 10 of 10 cycles with an exceedance, in 0 of 10 without"
