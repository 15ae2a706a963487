"""Records and rows of sweeps with a known answer, and the configs of their runs."""

import numpy as np
import xarray as xr

from catapult_jax.training import criteria_instrument
from configs import (
    batch_size,
    catapults_agop,
    causes,
    cifar_cyclic,
    cifar_gd,
    cifar_gd_multi,
    cifar_sgd,
    mnist_adagrad,
    mnist_optimizers,
    optimizers_agop,
    predictors,
    synthetic_sgd_b1,
)
from experiments.arms import ARMS
from experiments.settings import settings_of
from experiments.verdicts import read_run

# Configs.

FIG3, FIG4, FIG5 = (module.get_config().to_dict() for module in (cifar_gd, cifar_gd_multi, synthetic_sgd_b1))
OPTIMIZERS, MNIST, ADAGRAD, PREDICTORS = (
    module.get_config().to_dict() for module in (optimizers_agop, mnist_optimizers, mnist_adagrad, predictors)
)
SGD, CYCLIC, AGOP, BATCH, CAUSES = (
    module.get_config(variant).to_dict()
    for module, variant in (
        (cifar_sgd, "fcn"),
        (cifar_cyclic, "sgd"),
        (catapults_agop, "rank2"),
        (batch_size, "rank2"),
        (causes, "rank2"),
    )
)
SMALL_BATCHES = FIG3 | {"optimizer": FIG3["optimizer"] | {"batch_size": FIG3["data"]["train_size"] // 2}}  # two steps an epoch


def with_schedule(config, **fields):
    """The config with other fields of its schedule."""
    return config | {"schedule": config["schedule"] | fields}


# Settings of a report, of the configs above.
FULL, BATCHES, TWO_BATCHES, TO_A_LOSS = map(settings_of, (FIG3, SGD, SMALL_BATCHES, AGOP))

# Series of one member.

SPIKE, FALLING = [1.0, 2.0, 4.0, 1.5, 0.9, 0.8], [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
DROPS = [1.0, 1.0, 2.0, 4.0, 4.0, 4.0]  # a critical lr: lambda_max drops
BEFORE, AFTER = [1.0, 1.0, 9.0, 9, 9, 9, 9, 9], [9.0, 9.0, 9, 1.0, 1, 1, 1, 1]  # a critical lr of 1 before and after the peak
DIES, DEAD_KERNEL = [1.0, 20.0, 2e7, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, np.inf, np.inf, np.inf]  # the kernel is zero to the end


# Records.


def record(loss, lr, critical, *, top=None, lr0=1.67, **more):
    """A record of these series, each of shape (member, step) or one that broadcasts to it; ``lr0``: over the critical lr."""
    loss, lr, critical = (np.atleast_2d(np.asarray(v, float)) for v in (loss, lr, critical))
    lr, critical = np.broadcast_to(lr, loss.shape), np.broadcast_to(critical, loss.shape)
    arrays = {"loss_batch": loss, "loss_train": loss, "lr": lr, "critical_lr_batch": critical, "lambda_max_batch": 2 / critical}
    top = loss * 0.99 if top is None else np.atleast_2d(top)
    arrays |= {"loss_top": top, "loss_rest": loss - top, "stage": np.zeros(loss.shape, int)}
    arrays |= {"diverged": ~np.isfinite(loss)} | more
    members = {"lr0_over_critical": ("member", np.full(len(loss), lr0)), "seed": ("member", np.arange(len(loss)))}
    members["lr_given"] = members["lr0_over_critical"]
    members["raises"] = ("member", np.full(len(loss), 2))
    return xr.Dataset({name: (("member", "step"), values) for name, values in arrays.items()}, members)


def verdict_of(check, data, config):
    """The verdict of the function of a claim on a record."""
    return finding_of(check, data, config).verdict


def finding_of(check, data, config):
    """The finding of the function of a claim on a record."""
    return check(read_run(data, config))


def sgd_record(critical, fraction, seeds=5, spikes=2):
    """In each seed that many spikes, one after the other, in eight steps each; ``fraction`` of the loss is in the top eigenspace."""
    loss = np.tile([1.0, 2.0, 4.0, 1.0, 0.9, 0.8, 0.7, 0.6], (seeds, spikes)) * np.repeat(0.5 ** np.arange(spikes), 8)
    critical = np.tile(np.broadcast_to(critical, 8), (seeds, spikes))
    parts = {"loss_train_top": loss * fraction, "loss_train_rest": loss * (1 - fraction)}
    return record(loss, 1.5, critical, loss_batch_after=loss, **parts)


def with_ordinary_rises(inside, outside, seeds=5):
    """Spikes with this fraction of their rise in the top space, and after each of them a small rise with that fraction."""
    data = sgd_record(BEFORE, inside, seeds=seeds)
    loss, top = data["loss_train"].values, data["loss_train_top"].values
    for start in (0, 8):
        step = start + 6
        rise = 0.1 * loss[:, step]
        loss[:, step + 1] = loss[:, step] + rise
        top[:, step + 1] = top[:, step] + outside * rise
    data["loss_train_rest"][:] = loss - top
    data["loss_batch"][:] = loss
    return data


def with_lambda(over_spikes, elsewhere, calm=12):
    """Two spikes and then quiet steps in each seed; lambda_max changes by these factors from onset to close, and over as many quiet steps."""
    rows = sgd_record(BEFORE, 0.95)
    padded = rows.pad(step=(0, calm), mode="edge")
    padded["diverged"] = padded["diverged"].astype(bool)
    steps = padded.sizes["step"]
    log_lambda, level = np.zeros(steps), 0.0
    events = read_run(padded, SGD).events(1.5)[0]
    for step in range(1, steps):
        inside = [e for e in events if e.onset < step <= e.end]
        length = events[0].end - events[0].onset
        level += np.log(over_spikes) / (inside[0].end - inside[0].onset) if inside else np.log(elsewhere) / length
        log_lambda[step] = level
    values = np.exp(np.tile(log_lambda, (padded.sizes["member"], 1)))
    return padded.assign(lambda_max_train=(("member", "step"), values))


def with_modes(of_spikes, of_others, modes=8):
    """Spikes that rise in so many equal modes, and after each of them a small rise in so many."""
    data = with_ordinary_rises(1.0, 1.0)
    loss = data["loss_train"].values
    parts = np.zeros((*loss.shape, modes))
    parts[:, 0, 0] = loss[:, 0]
    for step in range(1, loss.shape[1]):
        change = loss[:, step] - loss[:, step - 1]
        number = of_others if step % 8 == 7 else of_spikes
        parts[:, step] = parts[:, step - 1]
        parts[:, step, :number] += change[:, None] / number
    return data.assign(loss_train_modes=(("member", "step", "mode"), parts))


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
    """Members with so many catapults each, which end at the loss to stop at and at the given values of other series."""
    loss, critical = (np.stack(values) for values in zip(*(spikes(count) for count in counts), strict=True))
    more = {name: series for final, values in finals.items() for name, series in ends(final, values).items()}
    data = record(loss, 1.5, critical, **more)
    data["loss_train"][:, -1] = 0.01
    stopped = np.zeros(loss.shape, bool)
    stopped[:, -1] = True
    return data.assign(stopped=(("member", "step"), stopped)).assign_coords(seed=("member", np.asarray(seeds)))


def adagrad_record(exact, bound):
    """Two cycles of an lr between 0.5 and 2."""
    lr = np.tile([0.5, 1.25, 2.0, 1.25], 2)
    exact, bound = (np.tile(np.broadcast_to(v, 8), (5, 1)).astype(float) for v in (exact, bound))
    return record(np.ones((5, 8)), lr, exact, critical_lr_bound_batch=bound, preconditioner_min=np.ones((5, 8)))


def capped_record(gain, critical=(1.0, 9.0)):
    """Two learning rates, of which the second is better, each with and without a cap, over five seeds; an lr of 1.5."""
    axes = [(lr, cap, seed) for lr in (1.0, 2.0) for cap in (np.inf, 0.9) for seed in range(5)]
    lr, cap, seed = np.array(axes).T
    errors = 0.2 - 0.05 * lr - gain * np.isinf(cap)
    above = np.where(np.isinf(cap), *critical)[:, None]
    data = record(np.ones((20, 8)), 1.5, above, **ends("error_val", errors), **ends("error_test", errors + 1e-4 * seed))
    return data.assign_coords(lr_given=("member", lr), cap=("member", cap.astype(np.float32)), seed=("member", seed))


# Rows of sweeps.


def measurable(ceiling=0.9, floor=0.1):
    """The columns by which an alignment can be judged."""
    return {"agop_ceiling": ceiling, "agop_alignment_start": floor}


def raise_rows(alignment, test, twin=0.0, seeds=5, **more):
    """Members with 0 to 3 raises above and below the critical lr; ``alignment``, ``test``: change for each catapult, ``twin``: for each raise below."""
    rows, rng = [], np.random.default_rng(0)
    for to in (1.2, 0.98):
        for raises in range(4):
            for seed in range(seeds):
                catapults, noise = raises * (to > 1), rng.uniform(0, 1e-3)
                row = {
                    "schedule.raise_to": to,
                    "raises": raises,
                    "seed": seed,
                    "finished": True,
                    "steps": 100,
                    "catapults": catapults,
                }
                row |= {"agop_alignment": 0.5 + alignment * catapults + noise, "loss_test": 1 + test * catapults + noise}
                row["loss_test"] += twin * raises * (to < 1)
                rows.append(row | measurable() | more)
    return rows


def width_rows(peaks):
    return [
        {"model.width": width, "first_peak_ratio": peak + 0.01 * seed, "critical_lr0": 4.0, "seed": seed}
        for width, peak in zip((16, 32, 64), peaks, strict=True)
        for seed in range(5)
    ]


def critical_rows(zero, tenth):
    """Fractions of critical steps of SGD, and of AdaGrad with an accumulator from 0 and from 0.1."""
    names = ("optimizer.name", "optimizer.initial_accumulator_value")
    arms = [("sgd", None, 0.5), ("adagrad", 0.0, zero), ("adagrad", 0.1, tenth)]
    return [
        dict(zip(names, arm, strict=True)) | {"seed": seed, "critical_steps": value + 0.01 * seed}
        for *arm, value in arms
        for seed in range(5)
    ]


def batch_rows(effect_shared, effect_tuned, catapults=-1):
    """Batches 4, 8, 16 at lr 0.1 (shared, all finish), and at one lr each at which only this batch size finishes."""
    rows, rng = [], np.random.default_rng(0)
    for i, size in enumerate((4, 8, 16)):
        for lr in (0.1, 0.2 + i):
            for seed in range(5):
                gain = (effect_shared if lr == 0.1 else effect_tuned) * i + rng.uniform(0, 1e-3)
                row = {"optimizer.batch_size": size, "lr_given": lr, "seed": seed, "finished": True, "run": f"b{size}"}
                row |= {name: 3 + catapults * i for name in ("catapults", "spikes")} | measurable()
                row |= {"loss_val": 1.0 if lr == 0.1 else 0.5, "loss_test": 1 + gain, "agop_alignment": 0.9 - gain}
                rows.append(row)
                if lr != 0.1:  # the other batch sizes do not come down at this lr
                    others = [other for other in (4, 8, 16) if other != size]
                    rows += [row | {"optimizer.batch_size": o, "run": f"b{o}", "finished": False} for o in others]
    return rows


def optimizer_rows(slope, unfinished=(), rival=0.0, unrelated=False):
    """Five optimizers, each at three learning rates, of which the second has the smallest validation loss.

    ``rival``: 1 orders the rivals of the alignment as it does; ``unrelated``: they have no correlation with the test loss at all.
    """
    rows, rng = [], np.random.default_rng(0)
    for i, name in enumerate(("sgd", "adagrad", "adam", "rmsprop", "nesterov")):
        for lr in (0.3, 1.0, 3.0):
            for seed in range(5):
                aligned = 0.5 + 0.1 * i + rng.uniform(0, 1e-3)
                row = {"optimizer.name": name, "lr_given": lr, "seed": seed, "run": name}
                row |= {"active": True, "finished": name not in unfinished}
                row |= {"agop_alignment": aligned, "loss_test": 1 + slope * aligned, "loss_val": 1.0 if lr < 1 else lr / 10}
                others = {
                    name: rival * aligned + (1 - rival) * rng.uniform()
                    for name in ("loss_train", "lambda_max_train", "weight_norm")
                }
                others["steps"] = int(rng.integers(100))
                if unrelated:
                    others = dict.fromkeys(others, float((1, 4, 2, 0, 3)[i]))
                rows.append(row | measurable() | others)
    return rows


def accuracy_rows(errors, critical=0.2, epochs=30, off=0.0):
    """Errors in percent of each arm at the better of two learning rates; ``off``: points more for each epoch away from the twelfth."""
    epoch = np.arange(epochs + 1)
    rows = []
    for (name, schedule), error in errors.items():
        for lr in (1.0, 3.0):
            for seed in range(5):
                curve = (error + 0.01 * seed + off * np.abs(epoch - 12)) / 100 + 0.1 * (lr - 1)
                row = {"optimizer.name": name, "schedule.name": schedule, "lr_given": lr, "seed": seed}
                row |= {"active": True, "finished": True, "error_val": float(curve[-1]), "error_test": float(curve[-1])}
                row["curves"] = {"epoch": epoch, "error_val": curve, "error_test": curve}
                rows.append(row | {"critical_steps": critical if schedule == "cyclic" else 0.0})
    return rows


def arms_record(seeds=8, steps=8, **effects):
    """Arms of a causal test that all end at the last step but one; ``effects``: what is added to the test loss of the free arm at the end."""
    arms = [name for name in ARMS if name not in ("force", "sham")]
    numbers = [(name, seed) for name in arms for seed in range(seeds)]
    shape = (len(numbers), steps)
    loss = np.broadcast_to(np.linspace(1.0, 0.0095, steps), shape).copy()
    data = record(loss, 1.2, np.ones(steps), lr0=1.2)
    test = np.full(shape, np.nan)
    test[:, ::2] = [
        [0.8, 0.6, 0.4, 0.2 + effects.get(name, 0.0) + 0.01 * seed - 0.01 * (seeds - 1) / 2] for name, seed in numbers
    ]
    stopped = np.zeros(shape, bool)
    stopped[:, -1] = True
    test[:, -1] = test[:, -2]
    series = {
        "loss_test": test, "agop_alignment": 1 - test, "stopped": stopped, "overshoot": np.ones(shape), "removed_fraction": np.zeros(shape),
    }  # fmt: skip
    data = data.assign({name: (("member", "step"), values) for name, values in series.items()})
    return data.assign_coords(
        intervention=("member", np.array([ARMS.index(name) for name, _ in numbers], np.int32)),
        seed=("member", np.array([seed for _, seed in numbers])),
        lr0=("member", np.full(len(numbers), 1.2)),
    )


def forced_rows(force, sham=0.0, seeds=8):
    """Rows of a sweep over doses and times, in which force and sham add these numbers to the test loss at dose 2."""
    effect = {"none": 0.0, "force": force, "sham": sham}
    return [
        {
            "intervention.dose": dose, "schedule.cap_from": time, "intervention": ARMS.index(arm), "seed": seed, "finished": True,
            "loss_test": 1 + 0.1 * seed + effect[arm] * (dose - 1), "lr_given": 0.5,
        }
        for dose in (1.5, 2.0) for time in (10, 40) for arm in effect for seed in range(seeds)
    ]  # fmt: skip


def predictors_record(members=6, steps=60, spectral=False):
    """Steps that rise at random; the directional criteria are above 1 exactly there, the spectral one only with ``spectral``."""
    rng = np.random.default_rng(0)
    rises = rng.random((members, steps)) < 0.4
    loss = np.cumprod(np.where(rises, 1.2, 0.85), 1)
    loss_train = np.concatenate([np.ones((members, 1)), loss[:, :-1]], 1)
    multiple = np.where(rises, 0.8, 1.25)
    critical = np.where(rises, 0.8, 1.25) if spectral else np.exp(rng.standard_normal((members, steps)))
    return record(
        loss_train,
        1.0,
        critical,
        loss_batch_after=loss_train * np.where(rises, 1.2, 0.85),
        directional_batch=multiple,
        directional_train=multiple,
    )


def horizon_record(members=6, steps=100, informative="criterion_c7_trace"):
    """Spikes of factor 3 over three steps, at random intervals; one series is high at the onset and in the four steps before it.

    Every other criterion is random. The attribute ``onsets`` holds the onsets of each member.
    """
    rng = np.random.default_rng(0)
    loss, near, onsets = np.ones((members, steps)), np.zeros((members, steps)), []
    for m in range(members):
        onsets.append(np.cumsum(rng.integers(12, 17, 6)).tolist())
        for onset in onsets[m]:
            loss[m, onset + 1 : onset + 3] = 2.0, 3.0
            near[m, onset - 4 : onset + 1] = 1.0
    random = lambda: np.exp(0.3 * rng.standard_normal((members, steps)))
    series = {name: random() for name in (*criteria_instrument.SERIES, "directional_batch", "directional_train")}
    series["loss_train_top5_fraction"] = rng.random((members, steps))
    series[informative] = 0.5 + near + 0.1 * rng.random((members, steps))
    data = record(loss, 1.0, random(), loss_batch_after=loss * random(), **series)
    return data.assign_attrs(onsets=onsets)
