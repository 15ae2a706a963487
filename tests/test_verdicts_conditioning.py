"""Claims on the kernel in the course of a run, on records with a known answer."""

import numpy as np
import pytest

from experiments import verdicts
from experiments.verdicts import conditioning
from tests.small_records import (
    ADAGRAD,
    DROPS,
    FIG3,
    adagrad_record,
    critical_rows,
    finding_of,
    record,
    verdict_of,
    with_schedule,
)


def test_catapults_lower_the_norm():
    loss = np.tile([1.0, 2.0, 4.0, 1.0, 0.9, 0.8], (12, 1))
    condition = np.tile([9.0, 9, 9, 4, 4, 4], (12, 1))

    check = lambda critical, condition: verdict_of(
        conditioning.catapults_lower_the_norm, record(loss, 1.5, critical, condition_number_batch=condition), FIG3
    )

    assert check(DROPS, condition) == verdicts.REPRODUCED
    assert check(DROPS, 1 / condition) == verdicts.REPRODUCED  # the condition number is described, and decides nothing
    assert check(1.0, condition) == verdicts.NOT_REPRODUCED  # the norm stays
    assert check(9.0, condition) == verdicts.NOT_MEASURABLE


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (9.0, 4.0, "after 12 of 12"),
        (4.0, 9.0, "after 0 of 12"),
        (9.0, np.inf, "after 0 of 12"),
        (np.inf, np.inf, "after 0 of 0"),
    ],
)
def test_catapults_lower_the_norm_describes_the_condition_number(before, after, words):
    """Infinite: the smallest eigenvalue is below its rounding error."""
    condition = np.tile([before, before, before, after, after, after], (12, 1))
    loss = np.tile([1.0, 2.0, 4.0, 1.0, 0.9, 0.8], (12, 1))
    data = record(loss, 1.5, DROPS, condition_number_batch=condition)

    assert (
        f"condition number (float64) smaller {words} where it is known"
        in finding_of(conditioning.catapults_lower_the_norm, data, FIG3).details
    )


def test_adagrad_outgrows_its_lr():
    config = with_schedule(ADAGRAD, period=4)
    grows = np.array([1.0, 1, 1, 3, 3, 3, 3, 3])

    check = lambda *a: finding_of(conditioning.adagrad_outgrows_its_lr, adagrad_record(*a), config)

    assert check(grows, 0.8 * grows).verdict == verdicts.PARTLY  # that of SGD grows as much
    assert check(grows, 0.1).verdict == verdicts.REPRODUCED
    assert check(1.0, 0.8).verdict == verdicts.NOT_REPRODUCED  # critical to the end
    assert check(9.0, 0.8).verdict == verdicts.NOT_MEASURABLE  # never critical


def test_adagrad_outgrows_its_lr_names_the_steps():
    config = with_schedule(ADAGRAD, period=4)
    grows = np.array([1.0, 1, 1, 3, 3, 3, 3, 3])

    details = lambda *a: finding_of(conditioning.adagrad_outgrows_its_lr, adagrad_record(*a), config).details

    assert (
        "any more in 5 of 5 seeds, step median 3 (from 3 to 3, n = 5); "
        "nor would one be at the largest lr in 5 of 5 seeds, step median 3"
    ) in details(grows, 0.8 * grows)
    assert "any more in 0 of 5 seeds; nor would one be at the largest lr in 0 of 5 seeds" in details(1.0, 0.8)


def test_smallest_entry_grows():
    config = with_schedule(ADAGRAD, period=4)
    grows, flat = np.array([1.0, 1, 1, 3, 3, 3, 3, 3]), np.ones(8)

    def check(least, exact, bound):
        data = adagrad_record(exact, bound)
        return finding_of(conditioning.smallest_entry_grows, data.assign(preconditioner_min=data["lr"] * 0 + least), config)

    assert check(grows, grows, 0.8 * grows).verdict == verdicts.REPRODUCED
    assert check(flat, grows, 0.8 * grows).verdict == verdicts.NOT_REPRODUCED  # the critical lr grows, the entry does not
    broken = check(grows, 1.0, 1.1)
    assert broken.verdict == verdicts.NOT_REPRODUCED and "40 of 40 steps with the bound above" in broken.details
    assert "the bound is above the largest lr in 5 of 5 seeds, step median 3" in check(grows, grows, 0.8 * grows).details


def test_adagrad_has_fewer_critical_steps():
    check = lambda *a: conditioning.adagrad_has_fewer_critical_steps(critical_rows(*a), ADAGRAD)

    assert check(0.1, 0.2).verdict == verdicts.REPRODUCED
    assert check(0.1, 0.2).effect == "from 0: 0.4 [0.4, 0.4] fewer, from 0.1: 0.3 [0.3, 0.3] fewer"
    assert check(0.1, 0.5).verdict == verdicts.NOT_REPRODUCED
    few = [row for row in critical_rows(0.1, 0.2) if row["optimizer.initial_accumulator_value"] != 0.1]
    assert conditioning.adagrad_has_fewer_critical_steps(few, ADAGRAD).verdict == verdicts.NOT_TESTED
