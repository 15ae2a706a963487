"""Verdicts on records with a known answer."""

import re

import numpy as np
import pytest
import xarray as xr

from configs import (
    batch_size,
    catapults_agop,
    cifar_cyclic,
    cifar_gd,
    cifar_gd_multi,
    cifar_sgd,
    mnist_adagrad,
    mnist_optimizers,
    optimizers_agop,
    suppressed,
    synthetic_sgd_b1,
)
from experiments import verdicts


def record(loss, lr, critical, *, top=None, rate=1.67, **more):
    loss, lr, critical = (np.atleast_2d(np.asarray(v, float)) for v in (loss, lr, critical))
    lr, critical = np.broadcast_to(lr, loss.shape), np.broadcast_to(critical, loss.shape)
    arrays = {"loss_batch": loss, "loss_train": loss, "lr": lr, "critical_lr_batch": critical, "lambda_max_batch": 2 / critical}
    top = loss * 0.99 if top is None else np.atleast_2d(top)
    arrays |= {"loss_top": top, "loss_rest": loss - top, "stage": np.zeros(loss.shape, int)}
    arrays |= {"alive": np.isfinite(loss)} | more
    members = {"lr_relative": ("member", np.full(len(loss), rate)), "seed": ("member", np.arange(len(loss)))}
    members["rate"] = members["lr_relative"]
    members["raises"] = ("member", np.full(len(loss), 2))
    return xr.Dataset({k: (("member", "step"), v) for k, v in arrays.items()}, members)


FIG3, FIG4, FIG5 = (m.get_config().to_dict() for m in (cifar_gd, cifar_gd_multi, synthetic_sgd_b1))
SPIKE, FALLING = [1.0, 2.0, 4.0, 1.5, 0.9, 0.8], [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
DROPS = [1.0, 1.0, 2.0, 4.0, 4.0, 4.0]


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
    assert verdicts.first_catapult(made, FIG3).verdict == verdict


@pytest.mark.parametrize(
    ("critical", "verdict"),
    [(DROPS, verdicts.REPRODUCED), ([9.0, 1, 1, 9, 9, 9], verdicts.NOT_REPRODUCED), ([9.0] * 6, verdicts.NOT_REPRODUCED)],
)
def test_spikes_are_catapults(critical, verdict):
    found = verdicts.spikes_are_catapults(record(SPIKE, 1.5, critical), FIG3)
    assert found.verdict == verdict
    assert verdicts.spikes_are_catapults(record(FALLING, 1.5, critical), FIG3).verdict == verdicts.NOT_TESTED


def test_catapult_follows_raise():
    loss = [1.0, 0.5, 0.4, 2.0, 0.4, 0.3, 0.2, 2.0, 0.2]
    lr = [0.5, 0.5, 3, 3, 3, 3, 6, 6, 6]
    stage = np.array([[0, 0, 1, 1, 1, 1, 2, 2, 2]])
    critical = [2.0, 2, 2, 4, 4, 4, 4, 9, 9]
    assert verdicts.catapult_follows_raise(record(loss, lr, critical, stage=stage), FIG4).verdict == verdicts.REPRODUCED
    quiet = [1.0, 0.5, 0.4, 2.0, 0.4, 0.3, 0.2, 0.1, 0.1]
    assert verdicts.catapult_follows_raise(record(quiet, lr, critical, stage=stage), FIG4).verdict == verdicts.NOT_REPRODUCED
    assert verdicts.catapult_follows_raise(record(quiet, lr, critical), FIG4).verdict == verdicts.NOT_TESTED


def test_exceedance_predicts_rise():
    before = np.ones((1, 20))
    critical = np.where(np.arange(20) % 2, 0.5, 2.0)
    rises = np.where(np.arange(20) % 2, 2.0, 0.5)[None]
    same = record(before, 1.0, critical, loss_batch_after=rises)
    assert verdicts.exceedance_predicts_rise(same, FIG5).verdict == verdicts.REPRODUCED
    opposite = record(before, 1.0, critical, loss_batch_after=1 / rises)
    assert verdicts.exceedance_predicts_rise(opposite, FIG5).verdict == verdicts.NOT_REPRODUCED
    never = record(before, 1.0, 9.0, loss_batch_after=before * 0.5)
    assert verdicts.exceedance_predicts_rise(never, FIG5).verdict == verdicts.NOT_TESTED


OPTIMIZERS, MNIST, ADAGRAD = (m.get_config().to_dict() for m in (optimizers_agop, mnist_optimizers, mnist_adagrad))
SGD, CYCLIC, AGOP, FORBIDDEN, BATCH = (
    m.get_config(v).to_dict()
    for m, v in (
        (cifar_sgd, "fcn"),
        (cifar_cyclic, "fcn"),
        (catapults_agop, "rank2"),
        (suppressed, "rank2"),
        (batch_size, "rank2"),
    )
)


def sgd_record(critical, share, seeds=5, spikes=2):
    """In each seed that many spikes, one after the other, in eight steps each."""
    loss = np.tile([1.0, 2.0, 4.0, 1.0, 0.9, 0.8, 0.7, 0.6], (seeds, spikes)) * np.repeat(0.5 ** np.arange(spikes), 8)
    critical = np.tile(np.broadcast_to(critical, 8), (seeds, spikes))
    parts = {"loss_train_top": loss * share, "loss_train_rest": loss * (1 - share)}
    return record(loss, 1.5, critical, loss_batch_after=loss, **parts)


BEFORE, AFTER = [1.0, 1.0, 9.0, 9, 9, 9, 9, 9], [9.0, 9.0, 9, 1.0, 1, 1, 1, 1]


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
    assert verdicts.sgd_spikes_are_catapults(made, SGD).verdict == verdict


def test_the_base_rate_is_that_of_the_steps_before_a_member_was_lost():
    """Critical at every step that it lived: the windows of its spikes are no better than any other."""
    made = sgd_record(1.0, 0.95).copy(deep=True)
    made["alive"][:, 12:] = False
    made["critical_lr_batch"][:, 12:] = np.nan
    made["loss_train"][:, 12:] = np.nan
    found = verdicts._on_the_way(made, SGD, 1.5)
    assert all(np.mean(base) == 1 for base in found.base)


def test_shares_of_other_losses_are_of_the_split_itself():
    """The parts of a loss that is no mse add up to half the Newton decrement, here ten times the loss."""
    loss = np.array([SPIKE])
    made = record(loss, 1.5, DROPS, top=loss * 3.0).assign(loss_rest=(("member", "step"), loss * 7.0))
    (event,) = verdicts.run_events(made, FIG3)[0]
    assert event.share_top == pytest.approx(0.3)


def test_no_events_without_the_training_loss():
    """The noise of the batch loss is no spike."""
    made = record(SPIKE, 1.5, DROPS).drop_vars("loss_train")
    assert verdicts.run_events(made, SGD) == [[]] and len(verdicts.run_events(made, FIG3)[0]) == 1


def test_cycles_cause_catapults():
    config = CYCLIC | {"schedule": CYCLIC["schedule"] | {"period": 4}}
    loss = np.tile([1.0, 3.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5], (10, 1))
    where = [1.0, 1, 9, 9, 9, 9, 9, 9]
    assert verdicts.cycles_cause_catapults(record(loss, 1.5, where), config).verdict == verdicts.REPRODUCED
    assert verdicts.cycles_cause_catapults(record(loss, 1.5, where[::-1]), config).verdict == verdicts.NOT_REPRODUCED
    assert verdicts.cycles_cause_catapults(record(loss, 1.5, 1.0), config).verdict == verdicts.NOT_TESTED
    assert verdicts.cycles_cause_catapults(record(loss[:9], 1.5, where), config).verdict == verdicts.NOT_TESTED


def ends(name, values, steps=8):
    """A series that ends at the given value of each member."""
    return {name: np.repeat(np.asarray(values, float)[:, None], steps, 1)}


def spikes(count):
    """A loss with that many catapults of factor 3, and the critical lr that makes them so."""
    loss, critical = np.ones(8), np.full(8, 9.0)
    for i in range(count):
        loss[2 * i + 1], critical[2 * i] = 3.0, 1.0
    return loss, critical


def members_with(counts, seeds, **finals):
    loss, critical = (np.stack(found) for found in zip(*(spikes(c) for c in counts), strict=True))
    more = {k: v for name, values in finals.items() for k, v in ends(name, values).items()}
    made = record(loss, 1.5, critical, **more)
    made["loss_train"][:, -1] = 0.01
    done = np.zeros(loss.shape, bool)
    done[:, -1] = True
    return made.assign(done=(("member", "step"), done)).assign_coords(seed=("member", np.asarray(seeds)))


def test_catapults_raise_alignment():
    counts, seeds = np.array([0, 1, 2, 3] * 5), np.repeat(np.arange(5), 4)
    rng = np.random.default_rng(0)
    better = counts * 0.1 + rng.uniform(0, 0.01, 20)
    made = lambda **finals: members_with(counts, seeds, **finals)
    check = lambda found: verdicts.catapults_raise_alignment(found, AGOP).verdict
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
    for name, value in (("loss_train", 0.005), ("done", False)):  # went past the loss, or did not come to it
        spoilt = made(agop_alignment=better, loss_test=-better)
        spoilt[name][:5, -1] = value
        assert check(spoilt) == verdicts.NOT_TESTED


def test_the_last_value_of_a_member_that_stopped_is_one_of_its_end():
    made = members_with([0, 0], [0, 1], loss_test=[1.0, 2.0])
    made["loss_test"][0, -1] = np.nan  # measured before its end alone
    assert np.isnan(verdicts.last(made, AGOP, "loss_test")[0]) and verdicts.last(made, AGOP, "loss_test")[1] == 2


def test_forbidding_catapults():
    seeds, caps = np.repeat(np.arange(5), 2), np.array([np.inf, 0.9] * 5, np.float32)
    free = np.isinf(caps)
    early = FORBIDDEN | {"schedule": FORBIDDEN["schedule"] | {"cap_from": 0}}

    def check(gain, counts=(2, 0) * 5, config=early, keep=slice(None)):
        made = members_with(counts, seeds, agop_alignment=0.5 + gain * free, loss_test=0.5 - gain * free)
        return verdicts.forbidding_catapults_hurts(made.assign_coords(cap=("member", caps)).isel(member=keep), config)

    assert check(0.1).verdict == verdicts.REPRODUCED
    assert "catapults 2 [2, 2], agop_alignment 0.1 [0.1, 0.1], loss_test -0.1" in check(0.1).effect
    assert check(-0.1).verdict == verdicts.NOT_REPRODUCED
    assert check(0.0).verdict == verdicts.NOT_REPRODUCED
    assert check(0.1, counts=(1, 1) * 5).verdict == verdicts.NOT_TESTED
    assert check(0.1, counts=(1, 3) * 5).verdict == verdicts.NOT_TESTED
    assert check(0.1, config=FORBIDDEN).verdict == verdicts.NOT_TESTED  # all were before the fork
    assert check(0.1, keep=slice(8)).verdict == verdicts.NOT_TESTED  # four seeds


def batch_rows(effect_shared, effect_tuned, catapults=-1):
    """Batches 4, 8, 16 at lr 0.1 (shared, all finish) and at lrs that only one of them stands, best on validation."""
    rows, rng = [], np.random.default_rng(0)
    for i, size in enumerate((4, 8, 16)):
        for rate in (0.1, 0.2 + i):
            for seed in range(5):
                gain = (effect_shared if rate == 0.1 else effect_tuned) * i + rng.uniform(0, 1e-3)
                row = {"optimizer.batch_size": size, "rate": rate, "seed": seed, "finished": True, "run": f"b{size}"}
                row |= {"catapults": 3 + catapults * i, "loss_val": 1.0 if rate == 0.1 else 0.5}
                rows.append(row | {"loss_test": 1 + gain, "agop_alignment": 0.9 - gain})
                if rate != 0.1:  # the other batch sizes do not come down at this lr
                    others = [other for other in (4, 8, 16) if other != size]
                    rows += [row | {"optimizer.batch_size": o, "run": f"b{o}", "finished": False} for o in others]
    return rows


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
    found = verdicts.small_batches_help(rows, BATCH)
    assert found.verdict == verdict
    assert (
        "(a) shared lr, batch 16 (0.1)" in found.effect and "(b) tuned lr, batch 16 (2.2, an end of the grid)" in found.effect
    )
    few = [row for row in rows if row["optimizer.batch_size"] < 16]
    assert verdicts.small_batches_help(few, BATCH).verdict == verdicts.NOT_TESTED
    two_axes = rows + [row | {"run": row["run"] + "wide"} for row in rows]
    assert verdicts.small_batches_help(two_axes, BATCH).verdict == verdicts.NOT_TESTED
    other_axis = [{k: v for k, v in row.items() if k != "optimizer.batch_size"} for row in rows]
    assert verdicts.small_batches_help(other_axis, BATCH).verdict == verdicts.NOT_TESTED


def optimizer_rows(slope, precision=0.9, lost=()):
    """Three optimizers, each at two rates of which the second has the smaller validation loss."""
    right, rises = round(30 * precision), round(60 * precision)  # of 30 that were predicted; half of the rises are
    counts = (right, 30 - right, rises - right, round(rises / 0.3) - 30 - rises + right)
    rows, rng = [], np.random.default_rng(0)
    for i, name in enumerate(("sgd", "adagrad", "adam")):
        for rate in (0.3, 1.0, 3.0):
            for seed in range(5):
                aligned = 0.5 + 0.1 * i + rng.uniform(0, 1e-3)
                row = {
                    "optimizer.name": name,
                    "rate": rate,
                    "seed": seed,
                    "alive": True,
                    "finished": name not in lost,
                    "run": name,
                }
                row |= {"agop_alignment": aligned, "loss_test": 1 + slope * aligned, "loss_val": 1.0 if rate < 1 else rate / 10}
                rows.append(row | {"catapults": 0, "critical_steps": 0.1} | dict(zip(verdicts.CONFUSION, counts, strict=True)))
    return rows


def test_alignment_over_optimizers():
    check = lambda *a, **k: verdicts.alignment_over_optimizers(optimizer_rows(*a, **k), OPTIMIZERS)
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
    found = verdicts.alignment_over_optimizers(bare, OPTIMIZERS)
    assert found.verdict == verdicts.REPRODUCED and len(found.table[0]) == 4  # where the critical lr was not measured
    assert verdicts.alignment_over_optimizers(batch_rows(0.1, 0.1), OPTIMIZERS).verdict == verdicts.NOT_TESTED


def test_exceedance_of_every_optimizer():
    check = lambda rows: verdicts.exceedance_predicts_for_every_optimizer(rows, OPTIMIZERS).verdict
    header, first, *_ = verdicts.exceedance_predicts_for_every_optimizer(optimizer_rows(0.0), OPTIMIZERS).table
    assert header == ("optimizer", "members", "lost", "steps", "precision", "by chance", "recall", "base rate")
    assert first[0] == "sgd" and first[4:] == ("0.9 [0.9, 0.9]", "0.3 [0.3, 0.3]", "0.5 [0.5, 0.5]", "0.3 [0.3, 0.3]")
    assert check(optimizer_rows(0.0)) == verdicts.REPRODUCED
    assert check(optimizer_rows(0.0, precision=0.3)) == verdicts.NOT_REPRODUCED
    # All steps of the larger rates are critical, and half of them rise, as chance has it; none of the smallest.
    shares = {0.3: (0, 0, 5, 95), 1.0: (50, 50, 0, 0), 3.0: (50, 50, 0, 0)}
    by_rate = [row | dict(zip(verdicts.CONFUSION, shares[row["rate"]], strict=True)) for row in optimizer_rows(0.0)]
    assert check(by_rate) == verdicts.NOT_REPRODUCED
    assert check([row for row in optimizer_rows(0.0) if row["optimizer.name"] != "sgd"]) == verdicts.NOT_TESTED  # two
    assert (
        check([row | {"run": f"{row['run']}{row['rate']}"} for row in optimizer_rows(0.0)]) == verdicts.NOT_TESTED
    )  # another axis
    none = {"true_positive": 0, "false_positive": 0}
    never = [row | (none if row["optimizer.name"] == "sgd" else {}) for row in optimizer_rows(0.0)]
    assert check(never) == verdicts.NOT_TESTED


def accuracy_rows(errors, critical=0.2):
    """Errors in percent of each arm at its better rate."""
    rows = []
    for (name, schedule), error in errors.items():
        for rate in (1.0, 3.0):
            for seed in range(5):
                value = (error + 0.01 * seed) / 100 + (rate - 1)
                row = {
                    "optimizer.name": name,
                    "schedule.name": schedule,
                    "rate": rate,
                    "seed": seed,
                    "alive": True,
                    "finished": True,
                }
                rows.append(
                    row | {"error_val": value, "error_test": value, "critical_steps": critical if schedule == "cyclic" else 0.0}
                )
    return rows


def test_accuracies_of_the_mnist_study():
    published = {arm: 100 - value for arm, value in verdicts.PUBLISHED.items()}
    close = accuracy_rows(published)
    assert verdicts.published_accuracies(close, MNIST).verdict == verdicts.REPRODUCED
    assert verdicts.catapults_help_sgd(close, MNIST).verdict == verdicts.REPRODUCED
    assert "accuracy 2.27 [2.27, 2.27] points higher" in verdicts.catapults_help_sgd(close, MNIST).effect
    far = accuracy_rows(published | {("adam", "constant"): 5.0, ("sgd", "cyclic"): 6.0})
    assert verdicts.published_accuracies(far, MNIST).verdict == verdicts.NOT_REPRODUCED
    assert verdicts.catapults_help_sgd(far, MNIST).verdict == verdicts.NOT_REPRODUCED
    assert verdicts.catapults_help_sgd(accuracy_rows(published, critical=0.0), MNIST).verdict == verdicts.NOT_REPRODUCED
    other_data = MNIST | {"data": MNIST["data"] | {"name": "fashion_mnist"}}
    assert verdicts.published_accuracies(close, other_data).verdict == verdicts.NOT_TESTED
    hurt = verdicts.catapults_hurt_adagrad(close, MNIST)
    assert hurt.verdict == verdicts.REPRODUCED and "accuracy 1.18 [1.18, 1.18] points lower" in hurt.effect
    better = accuracy_rows(published | {("adagrad", "cyclic"): 1.0})
    assert verdicts.catapults_hurt_adagrad(better, MNIST).verdict == verdicts.NOT_REPRODUCED
    few = [row for row in close if row["seed"] < 4]
    assert verdicts.published_accuracies(few, MNIST).verdict == verdicts.NOT_TESTED
    lost = [row | {"alive": row["optimizer.name"] != "adam"} for row in close]
    assert verdicts.published_accuracies(lost, MNIST).verdict == verdicts.NOT_TESTED
    assert ("adam", "constant", "98.12", "-", "a seed was lost at every lr", "-") in verdicts.published_accuracies(
        lost, MNIST
    ).table
    without = [{k: v for k, v in row.items() if k != "schedule.name"} for row in close]
    assert "not measured in every run: schedule.name" in verdicts.of_sweep("published_accuracies", without, MNIST).effect


def adagrad_record(exact, bound):
    """Two cycles of an lr between 0.5 and 2."""
    lr = np.tile([0.5, 1.25, 2.0, 1.25], 2)
    exact, bound = (np.tile(np.broadcast_to(v, 8), (5, 1)).astype(float) for v in (exact, bound))
    return record(np.ones((5, 8)), lr, exact, critical_lr_bound_batch=bound, preconditioner_min=np.ones((5, 8)))


def test_adagrad_outgrows_its_lr():
    config = ADAGRAD | {"schedule": ADAGRAD["schedule"] | {"period": 4}}
    grows = np.array([1.0, 1, 1, 3, 3, 3, 3, 3])
    check = lambda *a: verdicts.adagrad_outgrows_its_lr(adagrad_record(*a), config)
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
        verdicts.catapults_condition_the_kernel(record(loss, 1.5, critical, condition_number_batch=condition), FIG3).verdict
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
    published = {arm: 100 - value for arm, value in verdicts.PUBLISHED.items()}
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


def held_record(gain, critical=(1.0, 9.0)):
    """Two rates, of which the second is better, each with and without a cap, over five seeds; an lr of 1.5."""
    axes = [(rate, cap, seed) for rate in (1.0, 2.0) for cap in (np.inf, 0.9) for seed in range(5)]
    rate, cap, seed = np.array(axes).T
    errors = 0.2 - 0.05 * rate - gain * np.isinf(cap)
    above = np.where(np.isinf(cap), *critical)[:, None]
    made = record(np.ones((20, 8)), 1.5, above, **ends("error_val", errors), **ends("error_test", errors + 1e-4 * seed))
    return made.assign_coords(rate=("member", rate), cap=("member", cap.astype(np.float32)), seed=("member", seed))


def test_catapults_beyond_their_cycles():
    check = lambda *a: verdicts.catapults_help_beyond_cycles(held_record(*a), MNIST)
    assert check(0.01).verdict == verdicts.REPRODUCED and "allowed: 91 [91, 91] %, 2 x critical lr" in check(0.01).effect
    assert check(-0.01).verdict == check(0.0).verdict == verdicts.NOT_REPRODUCED
    assert check(0.01, (9.0, 9.0)).verdict == verdicts.NOT_REPRODUCED  # no more critical steps
    few = held_record(0.01).isel(member=held_record(0.01)["seed"].values < 4)
    assert verdicts.catapults_help_beyond_cycles(few, MNIST).verdict == verdicts.NOT_TESTED


def ends_of_pairs(free):
    return {"agop_alignment": 0.5 + 0.1 * free, "loss_test": 0.5 - 0.1 * free}


def no_number_is_none(effect):
    assert not re.search(r"\b(nan|inf)\b", effect, re.IGNORECASE), effect


@pytest.mark.parametrize("name", verdicts.OF_RUN)
def test_what_is_not_known_decides_no_claim_on_a_run(name):
    made, config = reproducing()[name]
    assert verdicts.of_run(name, made, config).verdict == verdicts.REPRODUCED
    given = ("loss_batch", "loss_train", "lr")  # a member without these is lost
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
    lost["alive"][:, 2:] = False
    if "done" in lost:
        lost["done"][:] = False
    lost["seed"] = lost["seed"] + 100
    both = xr.concat([made, verdicts.until_lost(lost)], "member")
    no_number_is_none(verdicts.of_run(name, both, config).effect)


@pytest.mark.parametrize("name", verdicts.OF_SWEEP)
def test_what_is_not_known_decides_no_claim_on_a_sweep(name):
    rows, config = reproducing()[name]
    decide = verdicts.OF_SWEEP[name]
    assert decide(rows, config).verdict == verdicts.REPRODUCED
    for column in [key for key, value in rows[0].items() if isinstance(value, float) and key != "rate"]:
        for which in (lambda row: True, lambda row: row["seed"] == 1):
            found = decide([row | ({column: np.nan} if which(row) else {}) for row in rows], config)
            assert found.verdict in (verdicts.NOT_TESTED, verdicts.REPRODUCED), (column, found)
            no_number_is_none(" ".join([found.effect, *(cell for line in found.table for cell in line)]))


def test_interval_holds_the_mean_and_is_the_same_every_time():
    values = np.random.default_rng(1).standard_normal(20)
    mean, low, high = verdicts.interval(values)
    assert low < mean < high and verdicts.interval(values) == (mean, low, high)
    assert 0.5 < (high - low) / (2 * 1.96 * values.std() / 20**0.5) < 1.5
    assert np.isnan(verdicts.interval([1.0])[1]) and np.isnan(verdicts.interval([])[0])


# Networks that die: the kernel is exactly zero to the end.
DIES, DEAD_KERNEL = [1.0, 20.0, 2e7, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, np.inf, np.inf, np.inf]
SMALL_BATCHES = FIG3 | {"optimizer": FIG3["optimizer"] | {"batch_size": FIG3["data"]["train_size"] // 2}}  # two steps an epoch


def kinds(made, config):
    return [[e.kind for e in found] for found in verdicts.run_events(made, config)]


def test_a_death_is_no_catapult():
    made = record([SPIKE, DIES], 1.5, [DROPS, DEAD_KERNEL])
    assert kinds(made, FIG3) == [["catapult"], ["death"]]
    assert verdicts.catapult_counts(made, FIG3).tolist() == [1, 0]
    assert verdicts.dead_members(made, FIG3) == [{"member": 1, "step": 3}]
    assert verdicts.finished(made, FIG3).tolist() == [True, False]
    assert np.isnan(verdicts.last(made, FIG3, "loss_train")[1]) and verdicts.last(made, FIG3, "loss_train")[0] == 0.8


@pytest.mark.parametrize("name", ["first_catapult", "spikes_are_catapults"])
def test_a_death_reproduces_nothing_and_is_named(name):
    found = verdicts.of_run(name, record([SPIKE, DIES], 1.5, [DROPS, DEAD_KERNEL]), FIG3)
    assert found.verdict == verdicts.NOT_REPRODUCED
    assert found.effect.endswith("; dead: 1 (member 1 from step 3) of 2 members")
    assert "dead" not in verdicts.of_run(name, record([SPIKE, SPIKE], 1.5, DROPS), FIG3).effect


@pytest.mark.parametrize(
    ("loss", "critical", "dead_from", "kind"),
    [
        ([1, 20, 30, 30, 30, 30], [1, 1, np.inf, np.inf, np.inf, np.inf], 2, ["death"]),  # the spike never closes
        ([1, 0.9, 0.8, 0.8, 0.8, 0.8], [9, 9, np.inf, np.inf, np.inf, np.inf], 2, []),  # without a spike
        ([1, 1, 1, 1, 1, 1], [np.inf] * 6, 0, []),  # from the start
        (DIES, [1, 1, 1, np.inf, 1, 1], -1, ["catapult"]),  # a kernel of zero at one step alone
    ],
)
def test_ways_to_die(loss, critical, dead_from, kind):
    made = record(np.array([loss, SPIKE], float), 1.5, np.array([critical, DROPS], float))
    assert kinds(made, FIG3)[0] == kind
    assert verdicts.dead_steps(made, FIG3).tolist() == [dead_from, -1]


@pytest.mark.parametrize(
    ("critical", "dead_from", "kind"),
    [
        ([1, 1, 1, np.inf, np.inf, np.inf], 3, "death"),
        ([1, 1, 1, np.inf, 1, 1], -1, "catapult"),  # one batch
        ([1, 1, 1, 1, 1, np.inf], -1, "catapult"),  # one batch, the last: less than an epoch
    ],
)
def test_random_batches_are_dead_after_an_epoch_without_a_kernel(critical, dead_from, kind):
    made = record(DIES, 1.5, critical)
    assert verdicts.lambda_series(made, SMALL_BATCHES) is None
    assert kinds(made, SMALL_BATCHES) == [[kind]]
    assert verdicts.dead_steps(made, SMALL_BATCHES).tolist() == [dead_from]


def test_lambda_max_of_an_event_is_never_that_of_two_batches():
    made = record(SPIKE, 1.5, DROPS)
    (event,) = verdicts.run_events(made, SMALL_BATCHES)[0]
    assert np.isnan(event.lambda_max_before) and np.isnan(event.lambda_max_after)
    probe = made.assign(lambda_max_probe=(("member", "step"), [[5.0, 4.0, 3.0, 2.0, 1.0, 1.0]]))
    (event,) = verdicts.run_events(probe, SMALL_BATCHES)[0]
    assert (event.lambda_max_before, event.end, event.lambda_max_after) == (5.0, 3, 2.0)


def test_a_weight_decay_does_not_hide_a_death_in_random_batches():
    """With it the critical lr of a kernel of zero is finite."""
    made = record(DIES, 1.5, [1, 1, 1, 4, 4, 4])
    made["lambda_max_batch"][:, 3:] = 0.0
    assert kinds(made, SMALL_BATCHES) == [["death"]]


def test_all_members_that_die_are_in_no_claim_on_a_sweep():
    rows = [row | {"alive": False, "finished": False, "dead_from": 3} for row in optimizer_rows(-1.0)]
    found = verdicts.of_sweep("alignment_over_optimizers", rows, OPTIMIZERS)
    assert found.verdict == verdicts.NOT_TESTED and found.effect.endswith(f"dead: {len(rows)} of {len(rows)} members")
