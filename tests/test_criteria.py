"""Criteria for spikes, against explicit matrices, moment maps and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catapult_jax import (
    FCN,
    batch_loss,
    criteria,
    critical_lr,
    directional_critical_lr,
    loss_weighted_kernel,
    spike_score,
    tangent_kernel,
)
from catapult_jax.criteria import SPIKE_SCORE
from catapult_jax.losses import weighted_residual
from catapult_jax.preconditioners import Preconditioner

MODEL = FCN(depth=3, width=16, activation="tanh")
X = jax.random.normal(jax.random.key(0), (12, 6))
Y = jax.random.normal(jax.random.key(2), (12, 1))
PARAMS = MODEL.init(jax.random.key(1), X)
loss_of = lambda params, rows=slice(None): batch_loss(MODEL.apply(params, X[rows]), Y[rows], loss="mse")


def scaled(tree, factor):
    return jax.tree.map(lambda a: factor * a, tree)


def flat(tree):
    return np.asarray(jax.flatten_util.ravel_pytree(tree)[0], np.float64)


@functools.cache
def hessian():
    w, unravel = jax.flatten_util.ravel_pytree(PARAMS)
    return np.asarray(jax.hessian(lambda w: loss_of(unravel(w)))(w), np.float64)


def weighted_kernel():
    return loss_weighted_kernel(tangent_kernel(MODEL.apply, PARAMS, X), MODEL.apply(PARAMS, X), Y, loss="mse")


def test_spectral_score_is_lr_over_critical_lr():
    kernel = weighted_kernel()
    score = criteria.spectral_score(jnp.linalg.eigvalsh(kernel)[-1], lr=0.3)
    assert float(score) == pytest.approx(0.3 / float(critical_lr(MODEL.apply, PARAMS, (X, Y), loss="mse")), rel=1e-5)
    heavy = criteria.spectral_score(jnp.float32(4.0), lr=0.95, preconditioner=Preconditioner(gain=1 / 1.9))
    assert float(heavy) == pytest.approx(1.0)  # 2 (1 + beta) / lambda


@pytest.mark.parametrize(
    ("loss", "targets", "outputs"),
    [("mse", Y, 1), ("logistic", (Y > 0).astype(jnp.float32), 1), ("softmax_cross_entropy", jnp.arange(12) % 3, 3)],
)
def test_directional_kernel_score_is_the_directional_one_of_gradient_descent(loss, targets, outputs):
    model = FCN(depth=2, width=16, outputs=outputs)
    params, lr = model.init(jax.random.key(3), X), 0.7
    gradient = jax.grad(lambda p: batch_loss(model.apply(p, X), targets, loss=loss))(params)
    step = directional_critical_lr(model.apply, params, (X, targets), scaled(gradient, -lr), loss=loss)

    out = model.apply(params, X)
    kernel = loss_weighted_kernel(tangent_kernel(model.apply, params, X), out, targets, loss=loss)
    residual = weighted_residual(out, targets, loss=loss).reshape(-1)
    score = criteria.directional_kernel_score(kernel, residual, lr=lr)
    assert float(score) == pytest.approx(float(criteria.directional_score(step)), rel=1e-4)


def test_directional_hessian_of_an_explicit_hessian():
    updates = jax.tree.map(lambda p: -0.1 * jnp.cos(3 * jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), PARAMS)
    step = criteria.directional_hessian(loss_of, PARAMS, updates)
    d, g = flat(updates), flat(jax.grad(loss_of)(PARAMS))
    assert float(step.slope) == pytest.approx(g @ d, rel=1e-4)
    assert float(step.curvature) == pytest.approx(d @ hessian() @ d, rel=1e-3)


def test_directional_hessian_of_downward_curvature():
    step = criteria.directional_hessian(lambda w: -(w**2), jnp.float32(1.0), jnp.float32(0.5))
    assert step.text == "falls" and float(criteria.directional_score(step)) == 0


@pytest.mark.parametrize("preconditioned", [False, True])
def test_hessian_lambda_max_of_an_explicit_hessian(preconditioned):
    diagonal = jax.tree.map(lambda p: 1 + jnp.abs(jnp.sin(jnp.arange(p.size, dtype=p.dtype))).reshape(p.shape), PARAMS)
    size = len(flat(PARAMS))
    start = jax.random.normal(jax.random.key(0), (size, 2))
    value, vectors = criteria.hessian_lambda_max(
        loss_of, PARAMS, start, diagonal=diagonal if preconditioned else None, iterations=30
    )
    root = flat(diagonal) ** -0.5 if preconditioned else np.ones(size)
    exact = np.linalg.eigvalsh(root[:, None] * hessian() * root)[-1]
    assert float(value) == pytest.approx(exact, rel=1e-3)

    again, _ = criteria.hessian_lambda_max(
        loss_of, PARAMS, vectors, diagonal=diagonal if preconditioned else None, iterations=2
    )
    assert float(again) == pytest.approx(exact, rel=1e-3)  # a warm start keeps it


def test_batch_sharpness_score_of_explicit_batches():
    batches, lr = jnp.array([[0, 3, 5, 9], [1, 2, 4, 8], [11, 10, 7, 6]]), 0.3
    residual = (MODEL.apply(PARAMS, X) - Y).reshape(-1)
    score = criteria.batch_sharpness_score(weighted_kernel(), residual, batches, lr=lr)

    J = np.asarray(jax.jacobian(lambda w: MODEL.apply(jax.flatten_util.ravel_pytree(PARAMS)[1](w), X)[:, 0])(flat(PARAMS)))
    ratios = []
    for rows in np.asarray(batches):
        g, G = flat(jax.grad(loss_of)(PARAMS, rows)), 2 * J[rows].T @ J[rows] / len(rows)
        ratios.append(g @ G @ g / (g @ g))
    assert float(score) == pytest.approx(lr / 2 * np.mean(ratios), rel=1e-3)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=6), st.floats(0.02, 1.9), st.integers(1, 7), st.integers(8, 40))
def test_noise_score_is_above_one_where_the_second_moments_grow(ratios, top, b, n):
    """With the squares of the residual spread evenly: E[(r r^T)_BB] gives the matrix M below, whose radius decides."""
    h = np.array(ratios) / max(ratios)
    lr = top  # lr h is at most 1.9
    noise = lr**2 / b * (1 - b / n)
    moments = np.diag((1 - lr * h) ** 2) + noise * np.outer(h**2, np.ones(len(h)))
    radius = np.abs(np.linalg.eigvals(moments)).max()
    score = float(criteria.noise_score(jnp.asarray(h, jnp.float32), lr=lr, batch_size=b, examples=n))
    if abs(radius - 1) > 1e-4:
        assert (score > 1) == (radius > 1)


def test_noise_score_of_a_critical_mode_is_infinite():
    assert np.isinf(criteria.noise_score(jnp.array([2.0, 0.1]), lr=1.0, batch_size=2, examples=8))


def test_noise_score_of_gradient_descent_is_zero():
    assert float(criteria.noise_score(jnp.array([1.0, 0.1]), lr=1.0, batch_size=8, examples=8)) == 0


def test_trace_score_is_the_noise_score_of_a_small_lr():
    h, lr, b, n = jnp.array([1.0, 0.3, 0.1]), 1e-4, 4, 4000
    noise = criteria.noise_score(h, lr=lr, batch_size=b, examples=n)
    assert float(criteria.trace_score(h.sum(), lr=lr, batch_size=b)) == pytest.approx(float(noise), rel=2e-3)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.floats(0.1, 10.0), st.floats(0.1, 3.0))
def test_line_search_score_of_a_parabola(curvature, lr):
    """Gradient descent on c w^2 / 2 is back at its loss at the multiple 2 / (lr c)."""
    loss = lambda w: curvature * w**2 / 2
    score = criteria.line_search_score(loss, jnp.float32(1.0), jnp.float32(-lr * curvature), halvings=14)
    assert float(score) == pytest.approx(lr * curvature / 2, rel=1e-3)


def test_line_search_score_of_a_network_near_the_directional_one():
    model = FCN(depth=2, width=2048, activation="tanh")
    params = model.init(jax.random.key(5), X)
    loss = lambda p: batch_loss(model.apply(p, X), Y, loss="mse")
    updates = scaled(jax.grad(loss)(params), -0.1)
    step = directional_critical_lr(model.apply, params, (X, Y), updates, loss="mse")
    score = criteria.line_search_score(loss, params, updates)
    assert float(score) == pytest.approx(float(criteria.directional_score(step)), rel=0.05)  # the network is not quite linear


def test_line_search_score_at_the_ends():
    start = jnp.float32(1.0)
    assert float(criteria.line_search_score(lambda w: -w, start, start)) == 0  # falls for ever
    assert np.isinf(criteria.line_search_score(lambda w: w, start, start))  # rises at once
    assert np.isinf(criteria.line_search_score(lambda w: jnp.where(w == 1, 1.0, jnp.nan), start, start))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_heavy_ball_score_without_noise_has_its_threshold_at_two_times_one_plus_momentum(momentum):
    at = 2 * (1 + momentum)
    score = lambda lr: float(criteria.heavy_ball_score(jnp.array([0.2, 1.0]), lr=lr, momentum=momentum))
    assert score(0.999 * at) < 1 < score(1.001 * at)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.floats(0.01, 5.0), st.floats(0.0, 0.95), st.integers(1, 8))
def test_heavy_ball_score_is_the_spectral_radius_of_the_moment_map(lr, momentum, b):
    h, n = 0.9, 16
    noise, a = (1 - b / n) / b * (lr * h) ** 2, 1 + momentum - lr * h
    moments = np.array([[a**2 + noise, -2 * a * momentum, momentum**2], [a, -momentum, 0], [1, 0, 0]])
    score = criteria.heavy_ball_score(jnp.array([h]), lr=lr, momentum=momentum, batch_size=b, examples=n)
    assert float(score) == pytest.approx(np.abs(np.linalg.eigvals(moments)).max(), rel=2e-3)


def test_heavy_ball_score_of_simulated_second_moments():
    """The mean of z^2 over many runs of the noisy recursion grows with the rate that the score says."""
    lr, beta, b, n, h = 0.9, 0.5, 2, 16, 1.0
    rng, runs = np.random.default_rng(0), 400_000
    sigma, z, before = ((1 - b / n) / b) ** 0.5 * lr * h, np.ones(runs), np.ones(runs)
    sizes = []
    for _ in range(12):
        z, before = (1 + beta - lr * h + sigma * rng.standard_normal(runs)) * z - beta * before, z
        sizes.append(np.mean(z**2))
    growth = (sizes[-1] / sizes[-5]) ** (1 / 4)
    score = float(criteria.heavy_ball_score(jnp.array([h]), lr=lr, momentum=beta, batch_size=b, examples=n))
    assert growth == pytest.approx(score, rel=0.1)


def test_directional_score_of_sgd_predicts_the_next_loss_of_the_linear_model():
    """c5 on the training set says which steps of a linear model raise its loss, all of them."""
    rng = np.random.default_rng(1)
    x, y, w = rng.standard_normal((32, 8)), rng.standard_normal(32), np.zeros(8)
    linear, full = (lambda w, x: x @ w), []
    with jax.enable_x64(True):
        loss = lambda w: float(np.mean((x @ w - y) ** 2))
        for _ in range(60):
            rows = rng.choice(32, 4, replace=False)
            update = -0.15 * 2 * x[rows].T @ (x[rows] @ w - y[rows]) / 4
            step = directional_critical_lr(
                linear, jnp.asarray(w), (jnp.asarray(x), jnp.asarray(y)), jnp.asarray(update), loss="mse"
            )
            predicted = loss(w) + float(step.slope) + float(step.curvature) / 2
            full.append((float(criteria.directional_score(step)) > 1, loss(w + update) > loss(w)))
            assert predicted == pytest.approx(loss(w + update), abs=1e-6 * loss(w))
            w = w + update
    assert all(says == rose for says, rose in full) and 5 < sum(rose for _, rose in full) < 55


def test_directional_critical_lr_on_the_training_set_against_the_kernel_form_of_sgd():
    """c5 without a pass: the next training loss of the linearised network is ``|r - (2 lr / b) K[:, B] r_B|^2 / n``."""
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), tree)
        params, x, y = wide(PARAMS), wide(X), wide(Y)
        lr, rows = 0.3, np.array([0, 3, 5, 9])
        gradient = jax.grad(lambda p: batch_loss(MODEL.apply(p, x[rows]), y[rows], loss="mse"))(params)
        step = directional_critical_lr(MODEL.apply, params, (x, y), scaled(gradient, -lr), loss="mse")
        J = np.asarray(jax.jacobian(lambda w: MODEL.apply(jax.flatten_util.ravel_pytree(params)[1](w), x)[:, 0])(flat(params)))
        r = np.asarray(MODEL.apply(params, x) - y)[:, 0]
        after = np.mean((r - 2 * lr / len(rows) * (J @ J[rows].T) @ r[rows]) ** 2)
        predicted = np.mean(r**2) + float(step.slope) + float(step.curvature) / 2
    assert predicted == pytest.approx(after, rel=1e-12)


def test_hessian_lambda_max_with_more_iterations_than_dimensions():
    quadratic = lambda w: jnp.sum(jnp.arange(1.0, 5) * w**2)
    value, vectors = criteria.hessian_lambda_max(quadratic, jnp.ones(4), jnp.ones((4, 1)), iterations=9)
    assert float(value) == pytest.approx(8.0, rel=1e-5)
    np.testing.assert_allclose(np.abs(vectors[:, 0]), [0, 0, 0, 1], atol=1e-3)


def test_hessian_lambda_max_of_a_concave_loss_is_negative():
    start = jax.random.normal(jax.random.key(0), (4, 1))
    value, _ = criteria.hessian_lambda_max(lambda w: -jnp.sum(jnp.arange(1.0, 5) * w**2), jnp.ones(4), start, iterations=8)
    assert float(value) == pytest.approx(-2.0, rel=1e-4)


@pytest.mark.parametrize(("curvature", "is_above"), [(1.99, False), (2.01, True)])
def test_line_search_score_with_few_halvings_has_its_threshold_at_one(curvature, is_above):
    """A step -w on c w^2 / 2 with lr 1: the loss rises from c = 2 on."""
    loss = lambda w: curvature * w**2 / 2
    score = criteria.line_search_score(loss, jnp.float32(1.0), jnp.float32(-curvature), doublings=3, halvings=4)
    assert (float(score) > 1) == is_above


def test_spectral_score_with_hessian_lambda_max_on_a_quadratic():
    quadratic = lambda w: jnp.sum(jnp.arange(1.0, 9) * w**2)
    start = jax.random.normal(jax.random.key(0), (8, 1))
    value, _ = criteria.hessian_lambda_max(quadratic, jnp.ones(8), start, iterations=20)
    assert float(criteria.spectral_score(value, lr=0.125)) == pytest.approx(1.0, rel=1e-3)


def test_spike_score_against_its_formula():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(300)
    values[200] = 20
    score = spike_score(values)
    assert np.isnan(score[:128]).all()
    for t in (128, 200, 299):
        assert score[t] == pytest.approx((values[t] - np.mean(values[t - 128 : t])) / np.std(values[t - 128 : t], ddof=1))
    assert np.flatnonzero(score > SPIKE_SCORE).tolist() == [200]


def test_spike_score_of_constants_and_infinities():
    assert spike_score([1.0, 1.0, 1.0, 2.0], window=2).tolist()[2:] == [0.0, np.inf]
    assert spike_score([1.0, 2.0, np.inf], window=2)[2] == np.inf
    assert np.isnan(spike_score([1.0, 2.0, np.inf, 1.0, 2.0], window=2)[3:]).all()


@pytest.mark.parametrize(
    ("values", "window", "message"),
    [
        (np.ones((3, 1)), 2, r"values has shape \(3, 1\); allowed: one-dimensional"),
        (np.ones(3), 1, "window=1; allowed: 2 or more"),
    ],
)
def test_spike_score_refuses_bad_arguments(values, window, message):
    with pytest.raises(ValueError, match=message):
        spike_score(values, window=window)
