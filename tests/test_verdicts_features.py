"""Claims on AGOP alignment and test loss, on records and rows with a known answer."""

import numpy as np
import pytest

from experiments import verdicts
from experiments.verdicts import features
from tests.small_records import (
    AGOP,
    BATCH,
    FORBIDDEN,
    OPTIMIZERS,
    batch_rows,
    finding_of,
    members_with,
    optimizer_rows,
    verdict_of,
    with_schedule,
)

COUNTS, SEEDS = np.array([0, 1, 2, 3] * 5), np.repeat(np.arange(5), 4)
RNG = np.random.default_rng(0)
BETTER = COUNTS * 0.1 + RNG.uniform(0, 0.01, 20)
NOISE = RNG.permuted(BETTER.reshape(5, 4), axis=1).ravel()
CAPS = np.array([np.inf, 0.9] * 5, np.float32)
FORBIDDEN_EARLY = with_schedule(FORBIDDEN, cap_from=0)


def aligned(**finals):
    return verdict_of(features.catapults_raise_alignment, members_with(COUNTS, SEEDS, **finals), AGOP)


def test_catapults_raise_alignment():
    one_seed_against = np.where(SEEDS == 0, -BETTER, BETTER)

    assert aligned(agop_alignment=BETTER, loss_test=-BETTER) == verdicts.REPRODUCED
    assert aligned(agop_alignment=BETTER, loss_test=BETTER) == verdicts.NOT_REPRODUCED
    assert aligned(agop_alignment=NOISE, loss_test=-NOISE) == verdicts.NOT_REPRODUCED
    assert aligned(agop_alignment=BETTER, loss_test=np.ones(20)) == verdicts.NOT_REPRODUCED
    assert aligned(agop_alignment=one_seed_against, loss_test=-BETTER) == verdicts.NOT_REPRODUCED


def test_catapults_raise_alignment_does_not_rest_on_the_test_error():
    assert aligned(agop_alignment=BETTER, loss_test=-BETTER, error_test=np.ones(20)) == verdicts.REPRODUCED


def test_catapults_raise_alignment_needs_five_seeds():
    few = members_with(COUNTS[:16], SEEDS[:16], agop_alignment=BETTER[:16], loss_test=-BETTER[:16])

    assert verdict_of(features.catapults_raise_alignment, few, AGOP) == verdicts.NOT_TESTED


@pytest.mark.parametrize(("name", "value"), [("loss_train", 0.005), ("stopped", False)])  # past the loss; not down to it
def test_catapults_raise_alignment_needs_members_that_finished(name, value):
    data = members_with(COUNTS, SEEDS, agop_alignment=BETTER, loss_test=-BETTER)
    data[name][:5, -1] = value

    assert verdict_of(features.catapults_raise_alignment, data, AGOP) == verdicts.NOT_TESTED


def capped(gain, counts=(2, 0) * 5, config=FORBIDDEN_EARLY, keep=slice(None)):
    free = np.isinf(CAPS)
    data = members_with(counts, np.repeat(np.arange(5), 2), agop_alignment=0.5 + gain * free, loss_test=0.5 - gain * free)
    data = data.assign_coords(cap=("member", CAPS)).isel(member=keep)
    return finding_of(features.forbidding_catapults_hurts, data, config)


def test_forbidding_catapults_hurts():
    assert capped(0.1).verdict == verdicts.REPRODUCED
    assert "catapults 2 [2, 2], agop_alignment 0.1 [0.1, 0.1], loss_test -0.1" in capped(0.1).effect
    assert capped(-0.1).verdict == verdicts.NOT_REPRODUCED
    assert capped(0.0).verdict == verdicts.NOT_REPRODUCED


def test_forbidding_catapults_hurts_is_not_tested_without_more_catapults():
    assert capped(0.1, counts=(1, 1) * 5).verdict == verdicts.NOT_TESTED
    assert capped(0.1, counts=(1, 3) * 5).verdict == verdicts.NOT_TESTED
    assert capped(0.1, config=FORBIDDEN).verdict == verdicts.NOT_TESTED  # all of them before the cap begins
    assert capped(0.1, keep=slice(8)).verdict == verdicts.NOT_TESTED  # four seeds


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ((0.1, 0.1), verdicts.REPRODUCED),
        ((0.1, -0.1), verdicts.NOT_REPRODUCED),
        ((-0.1, 0.1), verdicts.NOT_REPRODUCED),
        ((0.1, 0.1, 0), verdicts.NOT_REPRODUCED),  # no more catapults with smaller batches
        ((0.1, 0.1, 1), verdicts.NOT_REPRODUCED),
    ],
)
def test_small_batches_help(effects, verdict):
    finding = features.small_batches_help(batch_rows(*effects), BATCH)

    assert finding.verdict == verdict
    assert "(a) shared lr, batch 16 (0.1)" in finding.effect
    assert "(b) tuned lr, batch 16 (2.2, an end of the grid)" in finding.effect


def test_small_batches_help_needs_a_sweep_over_three_batch_sizes():
    rows = batch_rows(0.1, 0.1)
    two_sizes = [row for row in rows if row["optimizer.batch_size"] < 16]
    two_axes = rows + [row | {"run": row["run"] + "wide"} for row in rows]
    other_axis = [{name: value for name, value in row.items() if name != "optimizer.batch_size"} for row in rows]

    for other in (two_sizes, two_axes, other_axis):
        assert features.small_batches_help(other, BATCH).verdict == verdicts.NOT_TESTED


def test_small_batches_help_needs_every_batch_size_at_a_shared_lr():
    rows = [row | {"finished": row["finished"] and row["optimizer.batch_size"] != 16} for row in batch_rows(0.1, 0.1)]

    finding = features.small_batches_help(rows, BATCH)

    assert finding.verdict == verdicts.NOT_TESTED
    assert "(a) shared lr: only 0 of 3 batch sizes came to that loss" in finding.effect
    assert "(b) tuned lr: only 2 of 3 batch sizes came to that loss" in finding.effect


def test_alignment_over_optimizers():
    check = lambda *a, **k: features.alignment_over_optimizers(optimizer_rows(*a, **k), OPTIMIZERS)

    assert check(-1.0).verdict == verdicts.REPRODUCED
    assert check(-1.0).effect == "rank correlation -1 [-1, -1] over 3 optimizers"
    assert check(1.0).verdict == check(0.0).verdict == verdicts.NOT_REPRODUCED
    assert features.alignment_over_optimizers(batch_rows(0.1, 0.1), OPTIMIZERS).verdict == verdicts.NOT_TESTED


def test_alignment_over_optimizers_has_a_row_for_each():
    rows = optimizer_rows(-1.0)
    alignments = {row["agop_alignment"] for row in rows if row["optimizer.name"] == "sgd" and row["lr_given"] == 1.0}

    header, first, *_ = features.alignment_over_optimizers(rows, OPTIMIZERS).table

    assert header[2:] == ("agop alignment", "loss test", "catapults", "critical steps") and first[:2] == ("sgd", "1")
    assert float(first[2].split()[0]) == pytest.approx(np.mean([*alignments]), abs=1e-3)


def test_alignment_over_optimizers_leaves_out_one_that_did_not_finish():
    finding = features.alignment_over_optimizers(optimizer_rows(-1.0, unfinished=("adam",)), OPTIMIZERS)

    assert finding.verdict == verdicts.NOT_TESTED  # two are too few
    assert finding.table[-1][:2] == ("adam", "none at which every seed came to that loss")


def test_alignment_over_optimizers_without_the_critical_lr():
    columns = ("catapults", "critical_steps")
    rows = [{name: value for name, value in row.items() if name not in columns} for row in optimizer_rows(-1.0)]

    finding = features.alignment_over_optimizers(rows, OPTIMIZERS)

    assert finding.verdict == verdicts.REPRODUCED and len(finding.table[0]) == 4
