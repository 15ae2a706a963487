"""Claims on catapults, AGOP alignment and test loss of gradient descent, on rows with a known answer."""

import pytest

from experiments import verdicts
from experiments.verdicts import features
from tests.small_records import AGOP, measurable, raise_rows


def test_catapults_raise_alignment():
    check = lambda *a, **k: features.catapults_raise_alignment(raise_rows(*a, **k), AGOP)

    assert check(0.1, -0.1).verdict == verdicts.REPRODUCED
    assert check(0.1, -0.1).effect == "0.1 [0.0999, 0.1] per catapult"
    assert check(-0.1, -0.1).verdict == verdicts.NOT_REPRODUCED
    assert check(0.0, -0.1).verdict == verdicts.NOT_REPRODUCED
    assert check(0.1, -0.1, seeds=4).verdict == verdicts.NOT_MEASURABLE


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (measurable(ceiling=0.007), "two references have an alignment of 0.007 only"),
        (measurable(floor=0.6), "untrained networks have an alignment of 0.6, two references 0.9"),
        ({"agop_ceiling": float("nan")}, "the ceiling is not known"),
    ],
)
def test_catapults_raise_alignment_where_the_alignment_says_nothing(columns, reason):
    finding = features.catapults_raise_alignment(raise_rows(0.1, -0.1, **columns), AGOP)

    assert finding.verdict == verdicts.NOT_MEASURABLE and reason in finding.effect


def test_not_measurable_of_a_good_reference():
    assert features.not_measurable(raise_rows(0.1, -0.1)) is None


def test_catapults_lower_the_test_loss():
    check = lambda *a, **k: features.catapults_lower_the_test_loss(raise_rows(*a, **k), AGOP).verdict

    assert check(0.0, -0.1) == verdicts.REPRODUCED
    assert check(0.1, 0.1) == verdicts.NOT_REPRODUCED
    assert check(0.0, -0.1, agop_ceiling=0.001) == verdicts.REPRODUCED  # it does not rest on the alignment


def test_catapults_lower_the_test_loss_needs_members_that_finished():
    rows = [row | {"finished": row["raises"] < 3} for row in raise_rows(0.1, -0.1)]

    finding = features.catapults_lower_the_test_loss(rows, AGOP)

    assert finding.verdict == verdicts.NOT_MEASURABLE and "5 of 20 members did not end at that loss" in finding.effect


def test_catapults_lower_the_test_loss_whatever_the_twins_do():
    rows = [row | {"finished": row["schedule.raise_to"] > 1} for row in raise_rows(0.1, -0.1)]

    assert features.catapults_lower_the_test_loss(rows, AGOP).verdict == verdicts.REPRODUCED
    finding = features.raises_below_critical_do_little(rows, AGOP)
    assert finding.verdict == verdicts.NOT_MEASURABLE and finding.effect == "twins: 20 of 20 members did not end at that loss"


def test_raises_below_critical_do_little():
    check = lambda *a, **k: features.raises_below_critical_do_little(raise_rows(*a, **k), AGOP).verdict

    assert check(0.1, -0.1) == verdicts.REPRODUCED
    assert check(0.1, -0.1, twin=-0.02) == verdicts.REPRODUCED
    assert check(0.1, -0.1, twin=-0.09) == verdicts.NOT_REPRODUCED
    assert check(0.1, -0.1, twin=-0.049) == verdicts.REPRODUCED and check(0.1, -0.1, twin=-0.051) == verdicts.NOT_REPRODUCED
    assert check(0.1, 0.1) == verdicts.NOT_MEASURABLE  # catapults do nothing that the twins could lack
