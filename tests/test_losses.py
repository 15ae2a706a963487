"""Losses, their gradients and curvature factors, against automatic differentiation and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax.losses import (
    Logistic,
    SquaredError,
    batch_loss,
    curvature_columns,
    curvature_factor,
    hessian_range,
    output_gradient,
    weighted_residual,
)
from catapult_jax.testing import relative_error
from tests.helpers_losses import LOSS_CASES, B

NAIVE = {
    "mse": lambda f, y: np.sum((f - y) ** 2),
    "softmax_cross_entropy": lambda f, y: np.log(np.exp(f).sum()) - f[y],
    "logistic": lambda f, y: np.log1p(np.exp(-f[0] if y else f[0])),
}


def hessians(f, y, loss):
    """``S`` of each example in float64, by automatic differentiation."""
    with jax.enable_x64():
        mean = lambda f: batch_loss(f, jnp.asarray(np.asarray(y)), loss=loss)
        hessian = np.asarray(jax.hessian(mean)(jnp.asarray(np.asarray(f), jnp.float64))) * len(f)
    return np.stack([hessian[i, :, i, :] for i in range(len(f))])


@pytest.mark.parametrize("loss", LOSS_CASES)
def test_batch_loss_is_the_mean_of_the_textbook_loss(loss, strict):
    f, y = LOSS_CASES[loss]
    naive = np.mean([NAIVE[loss](np.asarray(a, np.float64), np.asarray(b)) for a, b in zip(f, y, strict=True)])

    value = batch_loss(f, y, loss=loss)

    assert float(value) == pytest.approx(naive, rel=1e-6)


@pytest.mark.parametrize(
    ("outputs", "targets", "loss", "message"),
    [
        (jnp.ones((2, 1)), jnp.ones(2), "hinge", "loss='hinge'; allowed: mse"),
        (jnp.ones((2, 3)), jnp.ones(2), "mse", r"targets has shape \(2,\)"),
        (
            jnp.ones((2, 3)),
            jnp.ones(2),
            "softmax_cross_entropy",
            r"dtype float32; allowed .* integers \(2,\), or probabilities \(2, 3\)",
        ),
        (jnp.ones((2, 3)), jnp.ones(2), "logistic", "one number per output"),
        (jnp.ones((2, 3, 1)), jnp.ones(2), "mse", r"targets has shape \(2,\)"),
        (jnp.float32(1), jnp.ones(1), "mse", r"outputs has shape \(\)"),
        (jnp.ones((2, 1)) * 1j, jnp.ones((2, 1)), "mse", "outputs has dtype complex64; allowed: real"),
        (jnp.ones((2, 1)), jnp.ones((2, 1)) * 1j, "mse", "targets has dtype complex64; allowed: real"),
    ],
)
def test_batch_loss_refuses_bad_arguments(outputs, targets, loss, message):
    with pytest.raises(ValueError, match=message) as raised:
        batch_loss(outputs, targets, loss=loss)

    assert "allowed" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("loss", LOSS_CASES)
def test_output_gradient_is_the_gradient_of_the_mean_times_b(loss):
    f, y = LOSS_CASES[loss]
    expected = jax.grad(lambda f: batch_loss(f, y, loss=loss))(f)

    gradient = output_gradient(f, y, loss=loss)

    assert relative_error(gradient / B, np.asarray(expected)) <= 1e-6


@pytest.mark.parametrize("loss", LOSS_CASES)
def test_curvature_factor_squared_is_the_hessian(loss, strict):
    f, y = LOSS_CASES[loss]
    factor = curvature_factor(f, y, loss=loss)

    matrix = lambda linear: np.stack([np.asarray(linear(jnp.tile(e, (B, 1)))) for e in jnp.eye(f.shape[1])], 2)
    times, transposed = matrix(factor.times), matrix(factor.transposed)

    np.testing.assert_allclose(np.swapaxes(times, 1, 2), transposed, atol=1e-6)
    assert relative_error(times @ transposed, hessians(f, y, loss)) <= 2e-6


@pytest.mark.parametrize("loss", LOSS_CASES)
def test_curvature_columns_squared_are_the_hessian(loss, strict):
    f, y = LOSS_CASES[loss]
    rank = f.shape[1] - (loss == "softmax_cross_entropy")

    columns, Q = (np.asarray(a, np.float64) for a in curvature_columns(f, y, loss=loss))

    assert columns.shape == Q.shape == (B, f.shape[1], rank)
    np.testing.assert_allclose(np.swapaxes(Q, 1, 2) @ Q, np.broadcast_to(np.eye(rank), (B, rank, rank)), atol=1e-6)
    assert relative_error(columns @ np.swapaxes(columns, 1, 2), hessians(f, y, loss)) <= 2e-6
    factor = curvature_factor(f, y, loss=loss)
    for r in range(rank):
        np.testing.assert_allclose(factor.times(jnp.float32(Q[:, :, r])), columns[:, :, r], atol=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_curvature_columns_under_jit_at_many_positions(classes):
    """With a gather in them the process ended at 32 positions of 3 classes: XLA for the CPU."""
    f = jax.random.normal(jax.random.key(0), (64, classes))
    y = jnp.zeros(64, jnp.int32)

    columns, _ = jax.jit(lambda f: curvature_columns(f, y, loss="softmax_cross_entropy"))(f)

    F = np.asarray(columns, np.float64)
    assert relative_error(F @ np.swapaxes(F, 1, 2), hessians(f, y, "softmax_cross_entropy")) <= 2e-6


@pytest.mark.parametrize("gap", [0.0, 10.0, 18.0, 25.0, 40.0])
@pytest.mark.parametrize("top", [0, 1, 2])
def test_curvature_columns_of_a_certain_softmax_keep_their_digits(gap, top):
    """The largest eigenvalue, where one probability is one in floating point."""
    f = np.roll(np.array([gap, 0.0, -1.0]), top)
    p = np.exp(f - f.max()) / np.exp(f - f.max()).sum()
    pairs = [(i, j, np.eye(3)[i] - np.eye(3)[j]) for i in range(3) for j in range(i)]
    hessian = sum(p[i] * p[j] * np.outer(e, e) for i, j, e in pairs)  # no difference of near numbers

    columns, _ = curvature_columns(jnp.asarray(f, jnp.float32)[None], jnp.array([0]), loss="softmax_cross_entropy")

    ours = np.linalg.svd(np.asarray(columns[0], np.float64), compute_uv=False)[0] ** 2
    assert ours == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-5)


def test_curvature_columns_have_a_derivative_at_equal_logits():
    """An eigendecomposition of the Hessian has none there."""
    size = lambda f: jnp.sum(curvature_columns(f, jnp.array([0]), loss="softmax_cross_entropy")[0] ** 2)

    gradient = np.asarray(jax.grad(size)(jnp.zeros((1, 3))))

    np.testing.assert_allclose(gradient, 0, atol=1e-6)  # trace S = 1 - |p|^2 is largest there


@pytest.mark.parametrize("loss", LOSS_CASES)
def test_weighted_residual_squared_is_half_the_newton_decrement(loss, strict):
    f, y = LOSS_CASES[loss]
    gradient = np.asarray(output_gradient(f, y, loss=loss), np.float64)
    half = [g @ np.linalg.pinv(S, rcond=1e-10) @ g / 2 for g, S in zip(gradient, hessians(f, y, loss), strict=True)]

    residual = weighted_residual(f, y, loss=loss)

    np.testing.assert_allclose(jnp.sum(residual**2, 1), half, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSS_CASES)
def test_hessian_range_contains_every_hessian(loss):
    f, y = LOSS_CASES[loss]

    basis = np.asarray(hessian_range(f.shape[1], loss=loss), np.float64)

    assert basis.shape == (f.shape[1], f.shape[1] - (loss == "softmax_cross_entropy"))
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-6)
    np.testing.assert_allclose(basis @ basis.T @ hessians(f, y, loss), hessians(f, y, loss), atol=1e-6)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_logistic_targets_outside_of_0_to_1_are_an_error_or_nan_under_jit(shape):
    outputs, targets = jnp.ones(shape), jnp.ones(shape).at[2].set(-1)
    of = lambda outputs, targets: batch_loss(outputs, targets, loss="logistic")

    with pytest.raises(ValueError, match=r"targets has the value -1.0; allowed for loss=Logistic\(weighted=False\): 0 to 1"):
        of(outputs, targets)
    assert np.isnan(jax.jit(of)(outputs, targets))
    weighted = Logistic(weighted=True)
    weights = jnp.ones(4).at[2].set(0)
    np.testing.assert_allclose(batch_loss(outputs, (targets, weights), loss=weighted), np.log1p(np.exp(-1)), rtol=1e-6)
    assert np.isfinite(of(outputs.astype(jnp.bfloat16), jnp.full(shape, 1 + 2**-7, jnp.bfloat16)))  # rounding


@pytest.mark.parametrize("loss", [SquaredError(weighted=True), Logistic(weighted=True)])
def test_negative_weights_are_an_error(loss):
    weights = jnp.ones(4).at[1].set(-0.5)
    with pytest.raises(ValueError, match=r"weights has the value -0.5; allowed for loss=.*: 0 or more"):
        batch_loss(jnp.ones((4, 1)), (jnp.ones((4, 1)), weights), loss=loss)
