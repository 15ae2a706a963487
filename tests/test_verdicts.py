"""Verdicts on records with a known answer, and the registry of claims."""

import re

import numpy as np
import pytest
import xarray as xr

from configs import default
from experiments import analysis, verdicts
from experiments import config as configs
from experiments.verdicts import accuracies, catapults, conditioning, exceedances, features, registry
from tests.small_records import (
    ADAGRAD,
    AFTER,
    AGOP,
    BATCH,
    BEFORE,
    CYCLIC,
    DEAD_KERNEL,
    DIES,
    DROPS,
    FALLING,
    FIG3,
    FIG4,
    FIG5,
    FORBIDDEN,
    MNIST,
    OPTIMIZERS,
    SGD,
    SPIKE,
    accuracy_rows,
    adagrad_record,
    batch_rows,
    ends_of_pairs,
    held_record,
    members_with,
    optimizer_rows,
    record,
    sgd_record,
)


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        (record(SPIKE, 1.5, DROPS), verdicts.REPRODUCED),
        (record(SPIKE, 1.5, 1.0), verdicts.NOT_REPRODUCED),  # lambda_max does not fall
        (record(SPIKE, 1.5, DROPS, top=np.array(SPIKE) * 0.5), verdicts.NOT_REPRODUCED),  # half of the rise is elsewhere
        (record(FALLING, 1.5, DROPS), verdicts.NOT_REPRODUCED),
        (record([SPIKE, FALLING], 1.5, DROPS), verdicts.NOT_REPRODUCED),  # one of two members
        (record(SPIKE, 1.5, DROPS, rate=0.5), verdicts.NOT_TESTED),
    ],
)
def test_first_catapult(made, verdict):
    assert catapults.first_catapult(made, FIG3).verdict == verdict


@pytest.mark.parametrize(
    ("critical", "verdict"),
    [(DROPS, verdicts.REPRODUCED), ([9.0, 1, 1, 9, 9, 9], verdicts.NOT_REPRODUCED), ([9.0] * 6, verdicts.NOT_REPRODUCED)],
)
def test_spikes_are_catapults(critical, verdict):
    found = catapults.spikes_are_catapults(record(SPIKE, 1.5, critical), FIG3)
    assert found.verdict == verdict
    assert catapults.spikes_are_catapults(record(FALLING, 1.5, critical), FIG3).verdict == verdicts.NOT_TESTED


def test_catapult_follows_raise():
    loss = [1.0, 0.5, 0.4, 2.0, 0.4, 0.3, 0.2, 2.0, 0.2]
    lr = [0.5, 0.5, 3, 3, 3, 3, 6, 6, 6]
    stage = np.array([[0, 0, 1, 1, 1, 1, 2, 2, 2]])
    critical = [2.0, 2, 2, 4, 4, 4, 4, 9, 9]
    assert catapults.catapult_follows_raise(record(loss, lr, critical, stage=stage), FIG4).verdict == verdicts.REPRODUCED
    quiet = [1.0, 0.5, 0.4, 2.0, 0.4, 0.3, 0.2, 0.1, 0.1]
    assert catapults.catapult_follows_raise(record(quiet, lr, critical, stage=stage), FIG4).verdict == verdicts.NOT_REPRODUCED
    assert catapults.catapult_follows_raise(record(quiet, lr, critical), FIG4).verdict == verdicts.NOT_TESTED


def test_exceedance_predicts_rise():
    before = np.ones((1, 20))
    critical = np.where(np.arange(20) % 2, 0.5, 2.0)
    rises = np.where(np.arange(20) % 2, 2.0, 0.5)[None]
    same = record(before, 1.0, critical, loss_batch_after=rises)
    assert exceedances.exceedance_predicts_rise(same, FIG5).verdict == verdicts.REPRODUCED
    opposite = record(before, 1.0, critical, loss_batch_after=1 / rises)
    assert exceedances.exceedance_predicts_rise(opposite, FIG5).verdict == verdicts.NOT_REPRODUCED
    never = record(before, 1.0, 9.0, loss_batch_after=before * 0.5)
    assert exceedances.exceedance_predicts_rise(never, FIG5).verdict == verdicts.NOT_TESTED


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        (sgd_record(BEFORE, 0.95), verdicts.REPRODUCED),
        (sgd_record(BEFORE, 0.5), verdicts.NOT_REPRODUCED),  # half of the rise is elsewhere
        (sgd_record(AFTER, 0.95), verdicts.NOT_REPRODUCED),  # critical after the peak alone
        (sgd_record(1.0, 0.95), verdicts.NOT_REPRODUCED),  # every step is critical: no better than the base rate
        (sgd_record(BEFORE, 0.95, seeds=4, spikes=3), verdicts.NOT_TESTED),
        (sgd_record(BEFORE, 0.95, spikes=1), verdicts.NOT_TESTED),
        (sgd_record(BEFORE, 0.95).drop_vars(["loss_train_top", "loss_train_rest"]), verdicts.NOT_TESTED),
    ],
)
def test_spikes_of_sgd(made, verdict):
    assert catapults.sgd_spikes_are_catapults(made, SGD).verdict == verdict


def test_the_base_rate_is_that_of_the_steps_before_a_member_was_lost():
    """Critical at every step that it lived: the windows of its spikes are no better than any other."""
    made = sgd_record(1.0, 0.95).copy(deep=True)
    made["diverged"][:, 12:] = True
    made["critical_lr_batch"][:, 12:] = np.nan
    made["loss_train"][:, 12:] = np.nan
    found = catapults._on_the_way(made, SGD, 1.5)
    assert all(np.mean(base) == 1 for base in found.base)


def test_cycles_cause_catapults():
    config = CYCLIC | {"schedule": CYCLIC["schedule"] | {"period": 4}}
    loss = np.tile([1.0, 3.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5], (10, 1))
    where = [1.0, 1, 9, 9, 9, 9, 9, 9]
    assert catapults.cycles_cause_catapults(record(loss, 1.5, where), config).verdict == verdicts.REPRODUCED
    assert catapults.cycles_cause_catapults(record(loss, 1.5, where[::-1]), config).verdict == verdicts.NOT_REPRODUCED
    assert catapults.cycles_cause_catapults(record(loss, 1.5, 1.0), config).verdict == verdicts.NOT_TESTED
    assert catapults.cycles_cause_catapults(record(loss[:9], 1.5, where), config).verdict == verdicts.NOT_TESTED


def test_catapults_raise_alignment():
    counts, seeds = np.array([0, 1, 2, 3] * 5), np.repeat(np.arange(5), 4)
    rng = np.random.default_rng(0)
    better = counts * 0.1 + rng.uniform(0, 0.01, 20)
    made = lambda **finals: members_with(counts, seeds, **finals)
    check = lambda found: features.catapults_raise_alignment(found, AGOP).verdict
    assert check(made(agop_alignment=better, loss_test=-better)) == verdicts.REPRODUCED
    assert check(made(agop_alignment=better, loss_test=better)) == verdicts.NOT_REPRODUCED
    noise = rng.permuted(better.reshape(5, 4), axis=1).ravel()
    assert check(made(agop_alignment=noise, loss_test=-noise)) == verdicts.NOT_REPRODUCED
    constant = made(agop_alignment=better, loss_test=-better, error_test=np.ones(20))
    assert check(constant) == verdicts.REPRODUCED  # what the statement does not name does not decide
    assert check(made(agop_alignment=better, loss_test=np.ones(20))) == verdicts.NOT_REPRODUCED
    one_seed_against = np.where(seeds == 0, -better, better)
    assert check(made(agop_alignment=one_seed_against, loss_test=-better)) == verdicts.NOT_REPRODUCED
    few = members_with(counts[:16], seeds[:16], agop_alignment=better[:16], loss_test=-better[:16])
    assert check(few) == verdicts.NOT_TESTED
    for name, value in (("loss_train", 0.005), ("stopped", False)):  # went past the loss, or did not come to it
        spoilt = made(agop_alignment=better, loss_test=-better)
        spoilt[name][:5, -1] = value
        assert check(spoilt) == verdicts.NOT_TESTED


def test_forbidding_catapults():
    seeds, caps = np.repeat(np.arange(5), 2), np.array([np.inf, 0.9] * 5, np.float32)
    free = np.isinf(caps)
    early = FORBIDDEN | {"schedule": FORBIDDEN["schedule"] | {"cap_from": 0}}

    def check(gain, counts=(2, 0) * 5, config=early, keep=slice(None)):
        made = members_with(counts, seeds, agop_alignment=0.5 + gain * free, loss_test=0.5 - gain * free)
        return features.forbidding_catapults_hurts(made.assign_coords(cap=("member", caps)).isel(member=keep), config)

    assert check(0.1).verdict == verdicts.REPRODUCED
    assert "catapults 2 [2, 2], agop_alignment 0.1 [0.1, 0.1], loss_test -0.1" in check(0.1).effect
    assert check(-0.1).verdict == verdicts.NOT_REPRODUCED
    assert check(0.0).verdict == verdicts.NOT_REPRODUCED
    assert check(0.1, counts=(1, 1) * 5).verdict == verdicts.NOT_TESTED
    assert check(0.1, counts=(1, 3) * 5).verdict == verdicts.NOT_TESTED
    assert check(0.1, config=FORBIDDEN).verdict == verdicts.NOT_TESTED  # all were before the fork
    assert check(0.1, keep=slice(8)).verdict == verdicts.NOT_TESTED  # four seeds


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
def test_small_batches(effects, verdict):
    rows = batch_rows(*effects)
    found = features.small_batches_help(rows, BATCH)
    assert found.verdict == verdict
    assert (
        "(a) shared lr, batch 16 (0.1)" in found.effect and "(b) tuned lr, batch 16 (2.2, an end of the grid)" in found.effect
    )
    few = [row for row in rows if row["optimizer.batch_size"] < 16]
    assert features.small_batches_help(few, BATCH).verdict == verdicts.NOT_TESTED
    two_axes = rows + [row | {"run": row["run"] + "wide"} for row in rows]
    assert features.small_batches_help(two_axes, BATCH).verdict == verdicts.NOT_TESTED
    other_axis = [{k: v for k, v in row.items() if k != "optimizer.batch_size"} for row in rows]
    assert features.small_batches_help(other_axis, BATCH).verdict == verdicts.NOT_TESTED


def test_alignment_over_optimizers():
    check = lambda *a, **k: features.alignment_over_optimizers(optimizer_rows(*a, **k), OPTIMIZERS)
    assert check(-1.0).verdict == verdicts.REPRODUCED
    assert check(-1.0).effect == "rank correlation -1 [-1, -1] over 3 optimizers"
    header, first, *_ = check(-1.0).table
    assert header[2:] == ("agop alignment", "loss test", "catapults", "critical steps") and first[:2] == ("sgd", "1")
    aligned = {row["agop_alignment"] for row in optimizer_rows(-1.0) if row["optimizer.name"] == "sgd"}
    assert float(first[2].split()[0]) == pytest.approx(np.mean([*aligned]), abs=1e-3)
    assert check(1.0).verdict == check(0.0).verdict == verdicts.NOT_REPRODUCED
    assert check(-1.0, lost=("adam",)).verdict == verdicts.NOT_TESTED  # two are too few
    assert check(-1.0, lost=("adam",)).table[-1][:2] == ("adam", "none at which every seed came to that loss")
    bare = [{k: v for k, v in row.items() if k not in ("catapults", "critical_steps")} for row in optimizer_rows(-1.0)]
    found = features.alignment_over_optimizers(bare, OPTIMIZERS)
    assert found.verdict == verdicts.REPRODUCED and len(found.table[0]) == 4  # where the critical lr was not measured
    assert features.alignment_over_optimizers(batch_rows(0.1, 0.1), OPTIMIZERS).verdict == verdicts.NOT_TESTED


def test_exceedance_of_every_optimizer():
    check = lambda rows: exceedances.exceedance_predicts_for_every_optimizer(rows, OPTIMIZERS).verdict
    header, first, *_ = exceedances.exceedance_predicts_for_every_optimizer(optimizer_rows(0.0), OPTIMIZERS).table
    assert header == ("optimizer", "members", "diverged or dead", "steps", "precision", "by chance", "recall", "base rate")
    assert first[0] == "sgd" and first[4:] == ("0.9 [0.9, 0.9]", "0.3 [0.3, 0.3]", "0.5 [0.5, 0.5]", "0.3 [0.3, 0.3]")
    assert check(optimizer_rows(0.0)) == verdicts.REPRODUCED
    assert check(optimizer_rows(0.0, precision=0.3)) == verdicts.NOT_REPRODUCED
    # All steps of the larger rates are critical, and half of them rise, as chance has it; none of the smallest.
    shares = {0.3: (0, 0, 5, 95), 1.0: (50, 50, 0, 0), 3.0: (50, 50, 0, 0)}
    by_rate = [row | dict(zip(analysis.CONFUSION, shares[row["lr_given"]], strict=True)) for row in optimizer_rows(0.0)]
    assert check(by_rate) == verdicts.NOT_REPRODUCED
    assert check([row for row in optimizer_rows(0.0) if row["optimizer.name"] != "sgd"]) == verdicts.NOT_TESTED  # two
    assert (
        check([row | {"run": f"{row['run']}{row['lr_given']}"} for row in optimizer_rows(0.0)]) == verdicts.NOT_TESTED
    )  # another axis
    none = {"true_positive": 0, "false_positive": 0}
    never = [row | (none if row["optimizer.name"] == "sgd" else {}) for row in optimizer_rows(0.0)]
    assert check(never) == verdicts.NOT_TESTED


def test_accuracies_of_the_mnist_study():
    published = {arm: 100 - value for arm, value in accuracies.PUBLISHED.items()}
    close = accuracy_rows(published)
    assert accuracies.published_accuracies(close, MNIST).verdict == verdicts.REPRODUCED
    assert accuracies.catapults_help_sgd(close, MNIST).verdict == verdicts.REPRODUCED
    assert "accuracy 2.27 [2.27, 2.27] points higher" in accuracies.catapults_help_sgd(close, MNIST).effect
    far = accuracy_rows(published | {("adam", "constant"): 5.0, ("sgd", "cyclic"): 6.0})
    assert accuracies.published_accuracies(far, MNIST).verdict == verdicts.NOT_REPRODUCED
    assert accuracies.catapults_help_sgd(far, MNIST).verdict == verdicts.NOT_REPRODUCED
    assert accuracies.catapults_help_sgd(accuracy_rows(published, critical=0.0), MNIST).verdict == verdicts.NOT_REPRODUCED
    other_data = MNIST | {"data": MNIST["data"] | {"name": "fashion_mnist"}}
    assert accuracies.published_accuracies(close, other_data).verdict == verdicts.NOT_TESTED
    hurt = accuracies.catapults_hurt_adagrad(close, MNIST)
    assert hurt.verdict == verdicts.REPRODUCED and "accuracy 1.18 [1.18, 1.18] points lower" in hurt.effect
    better = accuracy_rows(published | {("adagrad", "cyclic"): 1.0})
    assert accuracies.catapults_hurt_adagrad(better, MNIST).verdict == verdicts.NOT_REPRODUCED
    few = [row for row in close if row["seed"] < 4]
    assert accuracies.published_accuracies(few, MNIST).verdict == verdicts.NOT_TESTED
    lost = [row | {"active": row["optimizer.name"] != "adam"} for row in close]
    assert accuracies.published_accuracies(lost, MNIST).verdict == verdicts.NOT_TESTED
    assert ("adam", "constant", "98.12", "-", "a seed diverged at every lr", "-") in accuracies.published_accuracies(
        lost, MNIST
    ).table
    without = [{k: v for k, v in row.items() if k != "schedule.name"} for row in close]
    assert "not measured in every run: schedule.name" in verdicts.of_sweep("published_accuracies", without, MNIST).effect


def test_adagrad_outgrows_its_lr():
    config = ADAGRAD | {"schedule": ADAGRAD["schedule"] | {"period": 4}}
    grows = np.array([1.0, 1, 1, 3, 3, 3, 3, 3])
    check = lambda *a: conditioning.adagrad_outgrows_its_lr(adagrad_record(*a), config)
    assert check(grows, 0.8 * grows).verdict == verdicts.REPRODUCED
    told = "any more in 5 of 5 seeds, step median 3 (from 3 to 3, n = 5); nor would one be at the largest lr in 5 of 5 seeds, step median 3"
    assert (
        told in check(grows, 0.8 * grows).effect
        and "the bound in 5 of 5 seeds, step median 3" in check(grows, 0.8 * grows).effect
    )
    assert (
        "any more in 0 of 5 seeds; nor would one be at the largest lr in 0 of 5 seeds; predicted by the bound in 0 of 5 seeds;"
        in check(1.0, 0.8).effect
    )
    assert check(grows, 0.1).verdict == verdicts.NOT_REPRODUCED  # the bound never tells
    assert check(1.0, 0.8).verdict == verdicts.NOT_REPRODUCED  # critical to the end
    assert check(9.0, 0.8).verdict == verdicts.NOT_TESTED  # never critical
    assert "40 of 40 steps with the bound above" in check(1.0, 1.1).effect


def test_catapults_condition_the_kernel():
    loss = np.tile([1.0, 2.0, 4.0, 1.0, 0.9, 0.8], (12, 1))
    condition = np.tile([9.0, 9, 9, 4, 4, 4], (12, 1))
    check = lambda critical, condition: (
        conditioning.catapults_condition_the_kernel(record(loss, 1.5, critical, condition_number_batch=condition), FIG3).verdict
    )
    assert check(DROPS, condition) == verdicts.REPRODUCED
    assert check(DROPS, 1 / condition) == verdicts.NOT_REPRODUCED
    assert check(1.0, condition) == verdicts.NOT_REPRODUCED  # the norm stays
    assert check(9.0, condition) == verdicts.NOT_TESTED
    assert check(DROPS, np.full((12, 6), np.inf)) == verdicts.NOT_TESTED  # not known
    singular = np.where(condition == 4, np.inf, condition)
    assert check(DROPS, singular) == verdicts.NOT_REPRODUCED  # the smallest eigenvalue is lost
    assert check(DROPS, np.where(condition == 9, np.inf, condition)) == verdicts.REPRODUCED


def reproducing():
    """For each claim a record, or the rows of a sweep, that reproduces it."""
    seeds, counts = np.repeat(np.arange(5), 4), np.array([0, 1, 2, 3] * 5)
    raised = np.array([[0, 0, 1, 1, 1, 1, 2, 2, 2]])
    before, rises = np.ones((5, 20)), np.where(np.arange(20) % 2, 2.0, 0.5)
    cycles = np.tile([1.0, 3.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5], (10, 1))
    free = np.array([np.inf, 0.9] * 5, np.float32)
    pairs = members_with((2, 0) * 5, np.repeat(np.arange(5), 2), **ends_of_pairs(np.isinf(free)))
    falling = np.tile([1.0, 2.0, 4.0, 1.0, 0.9, 0.8], (12, 1))
    published = {arm: 100 - value for arm, value in accuracies.PUBLISHED.items()}
    with_schedule = lambda config, **fields: config | {"schedule": config["schedule"] | fields}
    return {
        "first_catapult": (record(SPIKE, 1.5, DROPS), FIG3),
        "spikes_are_catapults": (record(SPIKE, 1.5, DROPS), FIG3),
        "catapult_follows_raise": (
            record([1.0, 0.5, 0.4, 2, 0.4, 0.3, 0.2, 2, 0.2], [0.5, 0.5, 3, 3, 3, 3, 6, 6, 6], [2.0, 2, 2, 4, 4, 4, 4, 9, 9], stage=raised),
            FIG4,
        ),
        "exceedance_predicts_rise": (
            record(before, 1.0, np.where(np.arange(20) % 2, 0.5, 2.0), loss_batch_after=np.tile(rises, (5, 1))),
            FIG5,
        ),
        "sgd_spikes_are_catapults": (sgd_record(BEFORE, 0.95), SGD),
        "cycles_cause_catapults": (record(cycles, 1.5, [1.0, 1, 9, 9, 9, 9, 9, 9]), with_schedule(CYCLIC, period=4)),
        "catapults_raise_alignment": (members_with(counts, seeds, agop_alignment=counts * 0.1, loss_test=-counts * 0.1), AGOP),
        "forbidding_catapults_hurts": (pairs.assign_coords(cap=("member", free)), with_schedule(FORBIDDEN, cap_from=0)),
        "adagrad_outgrows_its_lr": (
            adagrad_record(*(scale * np.array([1.0, 1, 1, 3, 3, 3, 3, 3]) for scale in (1.0, 0.8))),
            with_schedule(ADAGRAD, period=4),
        ),
        "catapults_condition_the_kernel": (
            record(falling, 1.5, DROPS, condition_number_batch=np.tile([9.0, 9, 9, 4, 4, 4], (12, 1))),
            FIG3,
        ),
        "catapults_help_beyond_cycles": (held_record(0.01), MNIST),
        "small_batches_help": (batch_rows(0.1, 0.1), BATCH),
        "alignment_over_optimizers": (optimizer_rows(-1.0), OPTIMIZERS),
        "exceedance_predicts_for_every_optimizer": (optimizer_rows(0.0), OPTIMIZERS),
        **{
            name: (accuracy_rows(published), MNIST)
            for name in ("catapults_help_sgd", "published_accuracies", "catapults_hurt_adagrad")
        },
    }  # fmt: skip


def test_catapults_beyond_their_cycles():
    check = lambda *a: accuracies.catapults_help_beyond_cycles(held_record(*a), MNIST)
    assert check(0.01).verdict == verdicts.REPRODUCED and "allowed: 91 [91, 91] %, 2 x critical lr" in check(0.01).effect
    assert check(-0.01).verdict == check(0.0).verdict == verdicts.NOT_REPRODUCED
    assert check(0.01, (9.0, 9.0)).verdict == verdicts.NOT_REPRODUCED  # no more critical steps
    few = held_record(0.01).isel(member=held_record(0.01)["seed"].values < 4)
    assert accuracies.catapults_help_beyond_cycles(few, MNIST).verdict == verdicts.NOT_TESTED


def no_number_is_none(effect):
    assert not re.search(r"\b(nan|inf)\b", effect, re.IGNORECASE), effect


@pytest.mark.parametrize("name", verdicts.OF_RUN)
def test_what_is_not_known_decides_no_claim_on_a_run(name):
    made, config = reproducing()[name]
    assert verdicts.of_run(name, made, config).verdict == verdicts.REPRODUCED
    given = ("loss_batch", "loss_train", "lr")  # a member without these diverged
    for series in [key for key in made.data_vars if made[key].dtype.kind == "f" and key not in given]:
        unknown = made.copy(deep=True)
        unknown[series][:] = np.nan
        found = verdicts.of_run(name, unknown, config)
        assert found.verdict in (verdicts.NOT_TESTED, verdicts.REPRODUCED), (
            series
        )  # the latter where the claim does not rest on it
        no_number_is_none(found.effect)
        if series == "critical_lr_batch":
            assert found.verdict == verdicts.NOT_TESTED


@pytest.mark.parametrize("name", verdicts.OF_RUN)
def test_a_lost_member_is_no_number_in_a_claim(name):
    made, config = reproducing()[name]
    lost = made.isel(member=[0]).copy(deep=True)
    for series in ("loss_batch", "loss_train"):
        lost[series][:, 2] = np.inf
    lost["diverged"][:, 2:] = True
    if "stopped" in lost:
        lost["stopped"][:] = False
    lost["seed"] = lost["seed"] + 100
    both = xr.concat([made, analysis.until_diverged(lost)], "member")
    no_number_is_none(verdicts.of_run(name, both, config).effect)


@pytest.mark.parametrize("name", verdicts.OF_SWEEP)
def test_what_is_not_known_decides_no_claim_on_a_sweep(name):
    rows, config = reproducing()[name]
    decide = verdicts.OF_SWEEP[name]
    assert decide(rows, config).verdict == verdicts.REPRODUCED
    for column in [key for key, value in rows[0].items() if isinstance(value, float) and key != "lr_given"]:
        for which in (lambda row: True, lambda row: row["seed"] == 1):
            found = decide([row | ({column: np.nan} if which(row) else {}) for row in rows], config)
            assert found.verdict in (verdicts.NOT_TESTED, verdicts.REPRODUCED), (column, found)
            no_number_is_none(" ".join([found.effect, *(cell for line in found.table for cell in line)]))


@pytest.mark.parametrize("name", ["first_catapult", "spikes_are_catapults"])
def test_a_death_reproduces_nothing_and_is_named(name):
    found = verdicts.of_run(name, record([SPIKE, DIES], 1.5, [DROPS, DEAD_KERNEL]), FIG3)
    assert found.verdict == verdicts.NOT_REPRODUCED
    assert found.effect.endswith("; dead: 1 (member 1 from step 3) of 2 members")
    assert "dead" not in verdicts.of_run(name, record([SPIKE, SPIKE], 1.5, DROPS), FIG3).effect


def test_all_members_that_die_are_in_no_claim_on_a_sweep():
    rows = [row | {"active": False, "finished": False, "dead_from": 3} for row in optimizer_rows(-1.0)]
    found = verdicts.of_sweep("alignment_over_optimizers", rows, OPTIMIZERS)
    assert found.verdict == verdicts.NOT_TESTED and found.effect.endswith(f"dead: {len(rows)} of {len(rows)} members")


@pytest.fixture
def own_registry(monkeypatch):
    """A copy of the registry, for this test alone."""
    monkeypatch.setattr(registry, "CLAIMS", dict(registry.CLAIMS))


def test_claim_is_registered_in_one_place(own_registry):
    @verdicts.claim(of=verdicts.RUN, every_step=("measure.lambda_max_batch_every",), given=("run.stop_loss",))
    def lr_is_positive(record, config):
        """The lr is positive."""
        holds = bool((record["lr"].values > 0).all())
        return verdicts.Finding("lr > 0", verdicts.REPRODUCED if holds else verdicts.NOT_REPRODUCED, "all steps")

    assert verdicts.VERDICTS["lr_is_positive"] is verdicts.OF_RUN["lr_is_positive"] is lr_is_positive
    assert "lr_is_positive" not in verdicts.OF_SWEEP and len(verdicts.OF_RUN) + len(verdicts.OF_SWEEP) == len(verdicts.VERDICTS)
    assert verdicts.NEEDS["lr_is_positive"] == ("measure.lambda_max_batch_every",)
    assert verdicts.NEEDS_SOME["lr_is_positive"] == ("run.stop_loss",)

    verdict = verdicts.of_run("lr_is_positive", record(SPIKE, 1.5, DROPS), FIG3)
    assert verdict == verdicts.Verdict("lr_is_positive", "lr > 0", verdicts.REPRODUCED, "all steps")
    assert verdicts.of_run("lr_is_positive", record(SPIKE, -1.5, DROPS), FIG3).verdict == verdicts.NOT_REPRODUCED
    unknown = verdicts.of_run("lr_is_positive", record(SPIKE, 1.5, [np.nan] * 6), FIG3)
    assert unknown.verdict == verdicts.NOT_TESTED  # it needs the critical lr of every step


def test_claim_on_a_sweep_names_its_columns(own_registry):
    @verdicts.claim(of=verdicts.SWEEP, columns=("loss_test",))
    def sweep_has_rows(rows, config):
        """The sweep has rows."""
        return verdicts.Finding("rows", verdicts.REPRODUCED, f"{len(rows)} rows")

    assert verdicts.OF_SWEEP["sweep_has_rows"] is sweep_has_rows and "sweep_has_rows" not in verdicts.NEEDS
    assert verdicts.of_sweep("sweep_has_rows", [{"loss_test": 1.0}], FIG3).effect == "1 rows"
    missing = verdicts.of_sweep("sweep_has_rows", [{}], FIG3)
    assert missing == verdicts.Verdict(
        "sweep_has_rows", "The sweep has rows", verdicts.NOT_TESTED, "not measured in every run: loss_test"
    )


def test_claim_refuses_a_second_one_of_that_name(own_registry):
    def first_catapult(record, config):
        """Another one."""

    with pytest.raises(ValueError, match="claim='first_catapult' is registered already"):
        verdicts.claim(of=verdicts.RUN)(first_catapult)
    assert verdicts.VERDICTS["first_catapult"] is catapults.first_catapult


def test_claim_refuses_what_it_cannot_be_of():
    with pytest.raises(ValueError, match="of='member'; allowed: 'run' or 'sweep'"):
        verdicts.claim(of="member")
    with pytest.raises(ValueError, match="allowed: none for a claim of a run"):
        verdicts.claim(of=verdicts.RUN, columns=("loss_test",))


@pytest.mark.parametrize("name", verdicts.VERDICTS)
def test_claim_needs_fields_that_exist_and_says_what_it_is(name):
    fields, registered = configs.flat(default.get_config()), registry.CLAIMS[name]
    assert registered.every_step or registered.given
    assert {*registered.every_step, *registered.given} <= set(fields)
    assert registered.check.__name__ == name and registered.check.__doc__
    assert bool(registered.columns) == (registered.of == verdicts.SWEEP)
