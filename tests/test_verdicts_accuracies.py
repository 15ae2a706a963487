"""Claims on test accuracies, on records and rows with a known answer."""

from experiments import verdicts
from experiments.verdicts import accuracies
from tests.small_records import MNIST, accuracy_rows, capped_record, finding_of

ERRORS = {arm: 100 - value for arm, value in accuracies.PUBLISHED.items()}


def test_published_accuracies():
    close, far = accuracy_rows(ERRORS), accuracy_rows(ERRORS | {("adam", "constant"): 5.0})
    few_seeds = [row for row in close if row["seed"] < 4]
    other_data = MNIST | {"data": MNIST["data"] | {"name": "fashion_mnist"}}

    assert accuracies.published_accuracies(close, MNIST).verdict == verdicts.REPRODUCED
    assert accuracies.published_accuracies(far, MNIST).verdict == verdicts.NOT_REPRODUCED
    assert accuracies.published_accuracies(few_seeds, MNIST).verdict == verdicts.NOT_TESTED
    assert accuracies.published_accuracies(close, other_data).verdict == verdicts.NOT_TESTED


def test_published_accuracies_of_an_arm_that_diverged():
    rows = [row | {"active": row["optimizer.name"] != "adam"} for row in accuracy_rows(ERRORS)]

    finding = accuracies.published_accuracies(rows, MNIST)

    assert finding.verdict == verdicts.NOT_TESTED
    assert ("adam", "constant", "98.12", "-", "a seed diverged at every lr", "-") in finding.table


def test_published_accuracies_need_the_column_of_the_schedule():
    rows = [{name: value for name, value in row.items() if name != "schedule.name"} for row in accuracy_rows(ERRORS)]

    verdict = verdicts.of_sweep("published_accuracies", rows, MNIST)

    assert "not measured in every run: schedule.name" in verdict.effect


def test_catapults_help_sgd():
    finding = accuracies.catapults_help_sgd(accuracy_rows(ERRORS), MNIST)
    assert finding.verdict == verdicts.REPRODUCED
    assert "accuracy 2.27 [2.27, 2.27] points higher" in finding.effect

    worse = accuracy_rows(ERRORS | {("sgd", "cyclic"): 6.0})
    assert accuracies.catapults_help_sgd(worse, MNIST).verdict == verdicts.NOT_REPRODUCED

    never_critical = accuracy_rows(ERRORS, critical=0.0)
    assert accuracies.catapults_help_sgd(never_critical, MNIST).verdict == verdicts.NOT_REPRODUCED


def test_catapults_hurt_adagrad():
    finding = accuracies.catapults_hurt_adagrad(accuracy_rows(ERRORS), MNIST)
    assert finding.verdict == verdicts.REPRODUCED and "accuracy 1.18 [1.18, 1.18] points lower" in finding.effect

    better = accuracy_rows(ERRORS | {("adagrad", "cyclic"): 1.0})
    assert accuracies.catapults_hurt_adagrad(better, MNIST).verdict == verdicts.NOT_REPRODUCED


def test_catapults_help_beyond_cycles():
    check = lambda data: finding_of(accuracies.catapults_help_beyond_cycles, data, MNIST)
    data = capped_record(0.01)

    assert check(data).verdict == verdicts.REPRODUCED and "allowed: 91 [91, 91] %, 2 x critical lr" in check(data).effect
    assert check(capped_record(-0.01)).verdict == check(capped_record(0.0)).verdict == verdicts.NOT_REPRODUCED
    assert check(capped_record(0.01, (9.0, 9.0))).verdict == verdicts.NOT_REPRODUCED  # no more critical steps
    assert check(data.isel(member=data["seed"].values < 4)).verdict == verdicts.NOT_TESTED
