"""The claims on causes, on made-up arms with a known effect."""

import numpy as np
import pytest

from experiments.arms import ARMS
from experiments.verdicts import NOT_MEASURABLE, NOT_REPRODUCED, PARTLY, REPRODUCED, of_run, of_sweep, read_run
from tests.small_records import CAUSES, arms_record, forced_rows, with_schedule

CONFIG = with_schedule(CAUSES, cap_from=1)


def verdict_of(**effects):
    return of_run("overshoot_is_the_cause", read_run(arms_record(**effects), CONFIG))


def test_overshoot_is_the_cause():
    verdict = verdict_of(remove_overshoot=0.1)

    assert verdict.verdict == REPRODUCED
    assert verdict.effect == "test loss without overshoot minus with it: 0.1 [0.1, 0.1]"
    assert verdict.details.startswith("B above A in 8 of 8 seeds; E - A 0 [0, 0], C - A ")
    header, *rows = verdict.table
    assert header[:2] == ("arm", "test loss") and [row[0][0] for row in rows] == list("ABCDEFG")


@pytest.mark.parametrize("control", ["placebo", "low_bulk"])
def test_overshoot_is_the_cause_in_part_where_a_control_does_the_same(control):
    assert verdict_of(remove_overshoot=0.1, **{control: 0.06}).verdict == PARTLY
    assert verdict_of(remove_overshoot=0.1, **{control: 0.04}).verdict == REPRODUCED


def test_overshoot_is_the_cause_needs_an_effect_in_every_seed():
    assert verdict_of(remove_overshoot=0.0).verdict == NOT_REPRODUCED
    assert verdict_of(remove_overshoot=-0.1).verdict == NOT_REPRODUCED


def test_overshoot_is_the_cause_is_not_measurable_with_few_seeds():
    record = arms_record(remove_overshoot=0.1)
    few = record.isel(member=record["seed"].values < 4)
    assert of_run("overshoot_is_the_cause", read_run(few, CONFIG)).verdict == NOT_MEASURABLE


def test_overshoot_is_the_cause_leaves_out_seeds_that_did_not_end_in_every_arm():
    record = arms_record(remove_overshoot=0.1)
    lost = int(np.flatnonzero(record["intervention"].values == ARMS.index("placebo"))[0])
    record["stopped"][lost] = False

    verdict = of_run("overshoot_is_the_cause", read_run(record, CONFIG))

    assert verdict.details.endswith("7 of 8 seeds ended in every arm")


def test_overshoot_is_the_cause_is_not_measurable_without_overshoot():
    record = arms_record(remove_overshoot=0.1)
    record["overshoot"][:] = 0.1

    for name in ("overshoot_is_the_cause", "overshoot_helps_at_equal_effort"):
        verdict = of_run(name, read_run(record, CONFIG))
        assert verdict.verdict == NOT_MEASURABLE and "free arm without overshoot: 0.6" in verdict.effect


def test_overshoot_helps_at_equal_effort():
    check = lambda record: of_run("overshoot_helps_at_equal_effort", read_run(record, CONFIG))
    record = arms_record(remove_overshoot=0.1)
    assert check(record).verdict == REPRODUCED
    assert check(arms_record(remove_overshoot=-0.1)).verdict == NOT_REPRODUCED

    fast = record["intervention"].values == ARMS.index("cap")
    record["stopped"][fast, 4:] = True  # at step 4 the arms are equal
    assert check(record).verdict == NOT_REPRODUCED


def test_overshoot_is_the_cause_at_equal_steps():
    """An arm that stops at step 4 is compared with the others at step 4."""
    record = arms_record(remove_overshoot=0.1)
    fast = record["intervention"].values == ARMS.index("cap")
    record["stopped"][fast, 4:] = True

    header, *rows = of_run("overshoot_is_the_cause", read_run(record, CONFIG)).table

    free = dict(zip(header, rows[0], strict=True))
    assert free["test loss at equal steps"].startswith("0.6 ")  # the measurement at step 2, the last one before step 4
    assert free["test loss"].startswith("0.2 ")


def test_forced_overshoot_helps():
    verdict = of_sweep("forced_overshoot_helps", forced_rows(-0.2), CONFIG)

    assert verdict.verdict == REPRODUCED and verdict.effect == "dose 2: test loss -0.2 [-0.2, -0.2] against the sham"
    assert [row[0] for row in verdict.table] == ["dose", "1.5", "2"]


@pytest.mark.parametrize(("force", "sham"), [(0.0, 0.0), (-0.2, -0.2), (0.2, 0.0)])
def test_forced_overshoot_helps_is_not_reproduced_without_a_gain_over_the_sham(force, sham):
    assert of_sweep("forced_overshoot_helps", forced_rows(force, sham), CONFIG).verdict == NOT_REPRODUCED


def test_forced_overshoot_helps_is_not_measurable_with_few_seeds():
    assert of_sweep("forced_overshoot_helps", forced_rows(-0.2, seeds=4), CONFIG).verdict == NOT_MEASURABLE
