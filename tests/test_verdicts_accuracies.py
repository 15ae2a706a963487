"""Claims on test accuracies, on records and rows with a known answer."""

import pytest

from experiments import verdicts
from experiments.verdicts import accuracies
from tests.small_records import MNIST, accuracy_rows, capped_record, finding_of

ERRORS = {arm: 100 - value for arm, value in accuracies.PUBLISHED.items()}


@pytest.mark.parametrize(
    ("far", "verdict", "within"),
    [((), verdicts.REPRODUCED, 5), (("adam",), verdicts.PARTLY, 4), (("adam", "sgd"), verdicts.NOT_REPRODUCED, 2)],
)
def test_published_accuracies(far, verdict, within):
    rows = accuracy_rows({arm: error + 3 * (arm[0] in far) for arm, error in ERRORS.items()}, off=0.3)

    finding = accuracies.published_accuracies(rows, MNIST)

    assert finding.verdict == verdict
    assert finding.effect == f"{within} of 5 arms within 1 point, after 12 epochs"


def test_published_accuracies_show_the_epochs():
    header, first, *_ = accuracies.published_accuracies(accuracy_rows(ERRORS, off=0.3), MNIST).table

    assert header[2:] == ("published, %", "12 epochs", "1 epochs", "5 epochs", "10 epochs", "20 epochs", "30 epochs")
    assert first == ("sgd", "constant", "95.38", "95.36", "92.06", "93.26", "94.76", "92.96", "89.96")


def test_published_accuracies_are_not_tested_on_other_data_or_without_an_arm():
    other_data = MNIST | {"data": MNIST["data"] | {"name": "fashion_mnist"}}
    no_adam = accuracy_rows({arm: error for arm, error in ERRORS.items() if arm[0] != "adam"})
    diverged = [row | {"active": row["optimizer.name"] != "adam"} for row in accuracy_rows(ERRORS)]

    assert accuracies.published_accuracies(accuracy_rows(ERRORS), other_data).verdict == verdicts.NOT_TESTED
    assert accuracies.published_accuracies(no_adam, MNIST).verdict == verdicts.NOT_TESTED
    assert accuracies.published_accuracies(diverged, MNIST).verdict == verdicts.NOT_MEASURABLE


def test_published_accuracies_need_the_column_of_the_schedule():
    rows = [{name: value for name, value in row.items() if name != "schedule.name"} for row in accuracy_rows(ERRORS)]

    verdict = verdicts.of_sweep("published_accuracies", rows, MNIST)

    assert "not measured in every run: schedule.name" in verdict.effect


def test_catapults_help_sgd():
    finding = accuracies.catapults_help_sgd(accuracy_rows(ERRORS), MNIST)
    assert finding.verdict == verdicts.REPRODUCED
    assert (
        finding.effect
        == "at 2 of 2 peaks; smallest gain 2.27 [2.27, 2.27] points from 75.4 %, largest 2.27 [2.27, 2.27] points from 95.4 %"
    )

    worse = accuracy_rows(ERRORS | {("sgd", "cyclic"): 6.0})
    assert accuracies.catapults_help_sgd(worse, MNIST).verdict == verdicts.NOT_REPRODUCED

    never_critical = accuracy_rows(ERRORS, critical=0.0)
    assert accuracies.catapults_help_sgd(never_critical, MNIST).verdict == verdicts.NOT_MEASURABLE


def test_catapults_help_sgd_in_part_at_one_peak():
    rows = accuracy_rows(ERRORS)
    for row in rows:
        if (row["schedule.name"], row["lr_given"]) == ("cyclic", 3.0):
            row["error_test"] += 0.1

    finding = accuracies.catapults_help_sgd(rows, MNIST)

    assert finding.verdict == verdicts.PARTLY and finding.effect.startswith("at 1 of 2 peaks")


def test_catapults_help_sgd_leaves_out_a_peak_at_which_a_seed_diverged():
    rows = [row | {"active": row["lr_given"] < 3 or row["seed"] > 0} for row in accuracy_rows(ERRORS)]

    finding = accuracies.catapults_help_sgd(rows, MNIST)

    assert finding.effect.startswith("at 1 of 1 peaks")
    assert ("3", "a seed diverged, or no run", "", "", "") in finding.table


def test_catapults_help_sgd_leaves_out_a_peak_that_is_critical_in_some_seeds_only():
    rows = [
        row | ({"critical_steps": 0.0} if row["lr_given"] == 3 and row["seed"] == 1 else {}) for row in accuracy_rows(ERRORS)
    ]

    assert accuracies.catapults_help_sgd(rows, MNIST).effect.startswith("at 1 of 1 peaks")


def test_catapults_hurt_adagrad():
    finding = accuracies.catapults_hurt_adagrad(accuracy_rows(ERRORS), MNIST)
    assert finding.verdict == verdicts.REPRODUCED and finding.effect.endswith("largest 1.18 [1.18, 1.18] points from 77.1 %")

    better = accuracy_rows(ERRORS | {("adagrad", "cyclic"): 1.0})
    assert accuracies.catapults_hurt_adagrad(better, MNIST).verdict == verdicts.NOT_REPRODUCED

    never_critical = accuracy_rows(ERRORS, critical=0.0)
    assert accuracies.catapults_hurt_adagrad(never_critical, MNIST).verdict == verdicts.NOT_MEASURABLE


@pytest.mark.parametrize("name", ["cycles_help_tuned_sgd", "cycles_help_beyond_decay"])
def test_cycles_help_against_a_tuned_control(name):
    control = ("sgd", "constant" if name == "cycles_help_tuned_sgd" else "decay")
    check = lambda error: getattr(accuracies, name)(accuracy_rows({("sgd", "cyclic"): 3.0, control: error}), MNIST)

    assert check(4.0).verdict == verdicts.REPRODUCED and check(4.0).effect == "1 [1, 1] points higher"
    assert check(3.0).verdict == verdicts.NOT_REPRODUCED
    assert check(2.0).verdict == verdicts.NOT_REPRODUCED
    assert getattr(accuracies, name)(accuracy_rows({("sgd", "cyclic"): 3.0}), MNIST).verdict == verdicts.NOT_TESTED


def test_catapults_help_beyond_cycles():
    check = lambda data: finding_of(accuracies.catapults_help_beyond_cycles, data, MNIST)
    data = capped_record(0.01)

    assert check(data).verdict == verdicts.REPRODUCED and "free: 91 [91, 91] %, 2 x critical lr" in check(data).details
    assert check(capped_record(-0.01)).verdict == check(capped_record(0.0)).verdict == verdicts.NOT_REPRODUCED
    assert check(capped_record(0.01, (9.0, 9.0))).verdict == verdicts.NOT_REPRODUCED  # no more critical steps
    assert check(data.isel(member=data["seed"].values < 4)).verdict == verdicts.NOT_MEASURABLE
