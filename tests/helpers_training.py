"""A small trainer on toy data, its members, and its runs."""

import functools

import numpy as np
import optax

from catapult_jax import FCN, data, detector, schedules
from catapult_jax.training import Members, instruments, make_trainer


@functools.cache  # tests of one trainer share its compiled programs
def build(model=None, *, batch_size=None, every=1, scale=1.0, n=8, probe=None, schedule=None, **settings):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2 * n, 4, 4, 1)).astype(np.float32)
    y = np.sign(x.sum((1, 2)) + 0.1).astype(np.float32) * scale
    arrays = data.Data(x[:n], y[:n], x[n:], y[n:], 1, "toy", "test", "")
    model = model or FCN(depth=2, width=32)
    f = model.apply
    chosen = {
        "lambda_max_batch": instruments.lambda_max_batch(f, loss="mse", every=every, k=2),
        "loss_batch_after": instruments.loss_batch_after(f, loss="mse", every=1),
        "test": instruments.loss_test(f, loss="mse", every=3, target_encoding="sign"),
    }
    if batch_size:
        chosen["loss_train"] = instruments.loss_train(f, loss="mse", every=1)
        chosen["lambda_max_train"] = instruments.lambda_max_train(f, loss="mse", every=4, probe_size=probe, k=2)
    trainer = make_trainer(
        model, arrays, loss="mse", optimizer=optax.sgd, schedule=schedule or schedules.following(optax.constant_schedule(1.0)), detector=detector(),
        instruments=chosen, batch_size=batch_size, **settings,
    )  # fmt: skip
    return trainer, arrays


def members(seeds=(0, 1), rates=(0.4, 1.5)):
    pairs = [(s, r) for r in rates for s in seeds]
    return Members(
        np.array([s for s, _ in pairs], np.int32), np.array([r for _, r in pairs], np.float32), lr_unit="critical_lr0"
    )


def run(trainer, of, steps):
    state, _ = trainer.init(of)
    return trainer.run(state, steps)


def trained(chosen, batch_size=3, steps=4):
    """Series of one member, trained with these instruments."""
    trainer = make_trainer(
        FCN(depth=2, width=16), build()[1], loss="mse", optimizer=optax.sgd, schedule=schedules.following(optax.constant_schedule(1.0)),
        detector=detector(horizon=2), instruments=chosen, batch_size=batch_size,
    )  # fmt: skip
    return run(trainer, members((0,), (0.5,)), steps)[1]
