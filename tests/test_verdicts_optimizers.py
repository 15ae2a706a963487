"""Claims on AGOP alignment over optimizers, on rows with a known answer."""

from experiments import verdicts
from experiments.verdicts import optimizers
from tests.small_records import OPTIMIZERS, optimizer_rows


def test_alignment_over_optimizers():
    assert optimizers.alignment_over_optimizers(optimizer_rows(-1.0), OPTIMIZERS).verdict == verdicts.REPRODUCED
    assert optimizers.alignment_over_optimizers(optimizer_rows(1.0), OPTIMIZERS).verdict == verdicts.NOT_REPRODUCED


def test_alignment_over_optimizers_in_part_where_it_rests_on_one_optimizer():
    """In the order of their alignment; without the last one the rank correlation is 0."""
    loss = {"sgd": 3.0, "adagrad": 5.0, "adam": 2.0, "rmsprop": 4.0, "nesterov": 1.0}
    rows = [row | {"loss_test": loss[row["optimizer.name"]]} for row in optimizer_rows(0.0)]

    finding = optimizers.alignment_over_optimizers(rows, OPTIMIZERS)

    assert finding.verdict == verdicts.PARTLY
    assert finding.effect == "rank correlation -0.5 [-0.5, -0.5] over 5 optimizers"
    assert finding.details == "without nesterov: 0 [0, 0]"


def test_alignment_over_optimizers_needs_four_that_finished():
    rows = optimizer_rows(-1.0, unfinished=("adam", "rmsprop"))

    finding = optimizers.alignment_over_optimizers(rows, OPTIMIZERS)

    assert finding.verdict == verdicts.NOT_MEASURABLE and "only 3 optimizers" in finding.effect
    assert ("adam", "none at which every seed came to that loss") in [row[:2] for row in finding.table]


def test_alignment_over_optimizers_of_another_sweep():
    rows = [row | {"run": f"{row['run']}{row['lr_given']}"} for row in optimizer_rows(-1.0)]

    assert optimizers.alignment_over_optimizers(rows, OPTIMIZERS).verdict == verdicts.NOT_TESTED


def test_alignment_over_optimizers_where_the_alignment_says_nothing():
    rows = [row | {"agop_ceiling": 0.01} for row in optimizer_rows(-1.0)]

    assert optimizers.alignment_over_optimizers(rows, OPTIMIZERS).verdict == verdicts.NOT_MEASURABLE


def test_alignment_is_the_best_predictor():
    best = optimizers.alignment_is_the_best_predictor(optimizer_rows(-1.0, unrelated=True), OPTIMIZERS)
    as_good = optimizers.alignment_is_the_best_predictor(optimizer_rows(-1.0, rival=1.0), OPTIMIZERS)

    assert best.verdict == verdicts.REPRODUCED
    assert as_good.verdict in (verdicts.PARTLY, verdicts.NOT_REPRODUCED)  # the steps are no rival in either
    assert best.table[1][1].startswith("1 [")
