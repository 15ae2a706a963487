"""Claims on the batch size, on rows with a known answer."""

from experiments import verdicts
from experiments.verdicts import batch_sizes
from tests.small_records import BATCH, batch_rows


def shared(*effects, **more):
    return batch_sizes.small_batches_help([row | more for row in batch_rows(*effects)], BATCH)


def tuned(*effects, **more):
    return batch_sizes.small_batches_help_at_tuned_lrs([row | more for row in batch_rows(*effects)], BATCH)


def test_small_batches_help_at_a_shared_lr():
    assert shared(0.1, -0.1).verdict == verdicts.REPRODUCED
    assert shared(-0.1, 0.1).verdict == verdicts.PARTLY  # more spikes, and that is all
    assert shared(-0.1, 0.1, spikes=2).verdict == verdicts.NOT_REPRODUCED
    assert shared(0.1, 0.1).table[1][:2] == ("4", "0.1, an end of the grid")
    assert shared(0.1, -0.1).effect == "correlation with size: spikes -1, yes; features -1, yes; test loss 1, yes"
    assert shared(-0.1, 0.1).effect == "correlation with size: spikes -1, yes; features 1, no; test loss -1, no"


def test_small_batches_help_at_tuned_lrs():
    assert tuned(-0.1, 0.1).verdict == verdicts.REPRODUCED
    assert tuned(0.1, -0.1).verdict == verdicts.PARTLY


def test_small_batches_help_leaves_out_an_alignment_that_says_nothing():
    wrong_way = [row | {"agop_alignment": -row["agop_alignment"]} for row in batch_rows(0.1, 0.1)]

    assert batch_sizes.small_batches_help(wrong_way, BATCH).verdict == verdicts.PARTLY
    finding = batch_sizes.small_batches_help([row | {"agop_ceiling": 0.01} for row in wrong_way], BATCH)

    assert finding.verdict == verdicts.REPRODUCED and "the alignment does not count: two references" in finding.details
    assert "features 1, not measurable" in finding.effect


def test_small_batches_help_needs_an_lr_at_which_all_finish():
    rows = [row | {"finished": row["optimizer.batch_size"] != 8} for row in batch_rows(0.1, 0.1)]

    assert batch_sizes.small_batches_help(rows, BATCH).verdict == verdicts.NOT_MEASURABLE
    assert batch_sizes.small_batches_help_at_tuned_lrs(rows, BATCH).verdict == verdicts.NOT_MEASURABLE


def test_small_batches_help_of_another_sweep():
    rows = [row for row in batch_rows(0.1, 0.1) if row["optimizer.batch_size"] < 16]

    assert batch_sizes.small_batches_help(rows, BATCH).verdict == verdicts.NOT_TESTED


def test_small_batches_help_without_catapults():
    calm = [row | {"catapults": 0} for row in batch_rows(0.1, 0.1)]

    assert batch_sizes.small_batches_help_without_catapults(calm, BATCH).verdict == verdicts.REPRODUCED
    assert batch_sizes.small_batches_help_without_catapults(batch_rows(0.1, 0.1), BATCH).verdict == verdicts.NOT_MEASURABLE
