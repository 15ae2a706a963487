"""The instrument of the criteria, against explicit Jacobians and Hessians in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from catapult_jax import FCN, Preconditioner, batch_loss, detector, schedules
from catapult_jax.testing import explicit_jacobian
from catapult_jax.training import criteria_instrument, instruments, make_trainer
from catapult_jax.training.measurement import Moment
from tests.helpers_training import build, members, run

MODEL = FCN(depth=3, width=8, activation="tanh")
N, B, LR, GAIN, MOMENTUM = 9, 3, 0.4, 0.7, 0.5
DRAW = np.random.default_rng(0)
X, Y = DRAW.standard_normal((N, 5)).astype(np.float32), DRAW.choice([-1.0, 1.0], (N, 1)).astype(np.float32)
PARAMS = MODEL.init(jax.random.key(0), X[:1])
UPDATES = jax.tree.map(lambda g: -4 * LR * g, jax.grad(lambda p: batch_loss(MODEL.apply(p, X[:B]), Y[:B], loss="mse"))(PARAMS))
DIAGONAL = jax.tree.map(lambda a: 0.5 + jnp.abs(a), PARAMS)


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0], np.float64)


@functools.cache
def measured(preconditioned, times=8):
    """The series after so many measurements at the same weights, and how many measurements there were before the last."""
    rule = jax.tree_util.Partial(lambda d: Preconditioner(d, gain=GAIN), DIAGONAL if preconditioned else None)
    data = {"x_train": X, "y_train": Y}
    now = Moment(PARAMS, PARAMS, (X[:B], Y[:B]), MODEL.apply(PARAMS, X[:B]), data, rule, lr=jnp.float32(LR), updates=UPDATES)
    instrument = criteria_instrument.criteria(MODEL.apply, loss="mse", every=1, momentum=MOMENTUM)
    carried, take = instrument.start(now), jax.jit(instrument.measure)
    for _ in range(times):
        values, carried = take(now, carried)
    assert set(values) == set(instrument.series)
    return {name: float(value) for name, value in values.items()}, times - 1


class Explicit:
    """Jacobian of the training outputs, gradient and Hessian of the batch, in float64."""

    def __init__(self, preconditioned):
        self.jacobian = explicit_jacobian(MODEL.apply, PARAMS, X)
        self.residual = np.asarray(MODEL.apply(PARAMS, X), np.float64)[:, 0] - Y[:, 0]
        self.p = flat(DIAGONAL) if preconditioned else np.ones(self.jacobian.shape[1])
        self.updates = flat(UPDATES)
        with jax.enable_x64():
            w, unravel = ravel_pytree(jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float64)), PARAMS))
            x, y = X[:B].astype(np.float64), Y[:B].astype(np.float64)
            loss = jax.jit(lambda w: jnp.mean((MODEL.apply(unravel(w), x) - y) ** 2))
            self.gradient, self.hessian = np.asarray(jax.grad(loss)(w)), np.asarray(jax.hessian(loss)(w))
            # The loss along the update, on a fine grid of multiples.
            self.multiples = np.linspace(0, 8, 4001)
            self.losses = np.asarray(jax.vmap(lambda a: loss(w + a * self.updates))(self.multiples))

    def spectrum(self):
        weighted = 2 / N * (self.jacobian / self.p) @ self.jacobian.T
        return np.linalg.eigh(weighted)


@pytest.fixture(params=[False, True], ids=["plain", "preconditioned"])
def preconditioned(request):
    return request.param


def test_criteria_c2_is_lr_over_critical_lr_of_the_hessian(preconditioned):
    explicit = Explicit(preconditioned)
    root = explicit.p**-0.5
    top = np.linalg.eigvalsh(root[:, None] * explicit.hessian * root)[-1]
    assert measured(preconditioned)[0]["criterion_c2"] == pytest.approx(LR * GAIN * top / 2, rel=1e-3)


def test_criteria_c4_and_c9_against_the_hessian(preconditioned):
    explicit = Explicit(preconditioned)
    g, H, u, d = explicit.gradient, explicit.hessian, explicit.updates, explicit.gradient / explicit.p
    values, _ = measured(preconditioned)
    assert values["criterion_c4"] == pytest.approx(u @ H @ u / (-2 * g @ u), rel=1e-3)
    assert values["criterion_c9"] == pytest.approx(LR * GAIN * d @ H @ d / (2 * g @ d), rel=1e-3)
    assert values["gradient_norm2_batch"] == pytest.approx(g @ g, rel=1e-5)


def test_criteria_c6_is_the_mean_over_random_batches(preconditioned):
    explicit, (values, before) = Explicit(preconditioned), measured(preconditioned)
    key = jax.random.fold_in(jax.random.key(criteria_instrument._SEED), before)
    batches = np.asarray(criteria_instrument.random_batches(key, examples=N, batch_size=B, epochs=criteria_instrument.EPOCHS))

    ratios = []
    for rows in batches:
        J, r = explicit.jacobian[rows], explicit.residual[rows]
        g = 2 * J.T @ r / B
        d = g / explicit.p
        ratios.append(2 / B * np.sum((J @ d) ** 2) / (g @ d))
    assert values["criterion_c6"] == pytest.approx(LR * GAIN / 2 * np.mean(ratios), rel=1e-4)


def test_criteria_c7_against_the_spectrum(preconditioned):
    h, _ = Explicit(preconditioned).spectrum()
    lr = LR * GAIN
    values, _ = measured(preconditioned)
    assert lr * h[-1] < 2
    assert values["criterion_c7"] == pytest.approx(lr / B * (1 - B / N) * np.sum(h / (2 - lr * h)), rel=1e-4)
    assert values["criterion_c7_trace"] == pytest.approx(lr * h.sum() / (2 * B), rel=1e-5)


def test_criteria_c8_is_where_the_loss_is_back_along_the_update():
    explicit, (values, before) = Explicit(False), measured(False)
    crossing = explicit.multiples[1:][explicit.losses[1:] >= explicit.losses[0]][0]
    assert values["criterion_c8"] == pytest.approx(1 / crossing, rel=0.045)  # the search halves down to 4 %

    key = jax.random.fold_in(jax.random.key(criteria_instrument._SEED), before)
    rows = criteria_instrument.random_batches(key, examples=N, batch_size=B, epochs=criteria_instrument.EPOCHS)[0]
    along = lambda a: float(
        batch_loss(MODEL.apply(jax.tree.map(lambda p, u: p + a * u, PARAMS, UPDATES), X[rows]), Y[rows], loss="mse")
    )
    score = values["criterion_c8_other"]
    assert 1 / 8 < score < 8 and along(0.95 / score) < along(0) < along(1.05 / score)


def test_criteria_c10_against_the_moment_map_of_each_mode(preconditioned):
    h, _ = Explicit(preconditioned).spectrum()
    lr, noise = LR * GAIN * (1 + MOMENTUM), (1 - B / N) / B
    radius = 0.0
    for mode in h:
        a = 1 + MOMENTUM - lr * mode
        moments = [[a**2 + noise * (lr * mode) ** 2, -2 * a * MOMENTUM, MOMENTUM**2], [a, -MOMENTUM, 0], [1, 0, 0]]
        radius = max(radius, np.abs(np.linalg.eigvals(np.array(moments))).max())
    assert measured(preconditioned)[0]["criterion_c10"] == pytest.approx(radius, rel=1e-3)


def test_criteria_top_fraction_against_the_spectrum(preconditioned):
    explicit = Explicit(preconditioned)
    _, vectors = explicit.spectrum()
    fraction = np.sum((vectors[:, -5:].T @ explicit.residual) ** 2) / np.sum(explicit.residual**2)
    assert measured(preconditioned)[0]["loss_train_top5_fraction"] == pytest.approx(fraction, rel=1e-4)


def test_random_batches_cover_each_epoch_once():
    batches = criteria_instrument.random_batches(jax.random.key(1), examples=9, batch_size=3, epochs=4)
    epochs = np.asarray(batches).reshape(4, 9)
    assert (np.sort(epochs, 1) == np.arange(9)).all() and len(np.unique(epochs, axis=0)) == 4


def test_criteria_refuse_several_outputs_and_a_missing_lr():
    model = FCN(depth=2, width=4, outputs=2)
    params = model.init(jax.random.key(0), X[:1])
    now = Moment(params, params, (X[:B], Y[:B]), None, {"x_train": X, "y_train": Y}, updates=params)
    instrument = criteria_instrument.criteria(model.apply, loss="mse", every=1, momentum=0.0)
    with pytest.raises(ValueError, match=r"Moment.lr=None; allowed with the instrument criteria"):
        instrument.measure(now, instrument.start(now))
    with pytest.raises(ValueError, match="outputs of an example=2; allowed with the instrument criteria: 1"):
        instrument.measure(now._replace(lr=1.0), instrument.start(now))


@pytest.mark.long
@pytest.mark.parametrize("optimizer", [optax.sgd, functools.partial(optax.adam, eps=1e-3)], ids=["sgd", "adam"])
def test_criteria_in_a_run_take_the_lr_and_preconditioner_of_the_step(optimizer):
    """At batch size n: the trace over the top eigenvalue of the kernel is that of the instrument of the batch, whatever the lr."""
    model, arrays = FCN(depth=2, width=8), build()[1]
    falling = optax.exponential_decay(1.0, 1, 0.5)
    chosen = {
        "lambda_max_batch": instruments.lambda_max_batch(model.apply, loss="mse", every=1, k=8),
        "criteria": criteria_instrument.criteria(model.apply, loss="mse", every=1, momentum=0.0),
    }
    trainer = make_trainer(
        model, arrays, loss="mse", optimizer=optimizer, schedule=schedules.following(falling), detector=detector(),
        instruments=chosen, batch_size=None,
    )  # fmt: skip
    series = run(trainer, members((0, 1), (0.3,)), 3)[1]

    gain = 2 / (series["critical_lr_batch"] * series["lambda_max_batch"])
    trace = series["eigenvalues"].sum(-1)
    np.testing.assert_allclose(series["criterion_c7_trace"], series["lr"] * gain * trace / (2 * 8), rtol=1e-4)
    assert (series["lr"][:, 1] < 0.6 * series["lr"][:, 0]).all()
