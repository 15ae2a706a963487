"""Losses, their gradients and Hessian roots, against automatic differentiation and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax.losses import batch_loss, hessian_range, hessian_root, output_gradient
from catapult_jax.testing import relative_error

B, OUTPUTS = 4, 3
CASES = {
    "mse": (jax.random.normal(jax.random.key(0), (B, OUTPUTS)), jax.random.normal(jax.random.key(1), (B, OUTPUTS))),
    "softmax_cross_entropy": (jax.random.normal(jax.random.key(0), (B, OUTPUTS)), jnp.array([0, 2, 1, 1])),
    "logistic": (jax.random.normal(jax.random.key(0), (B, 1)), jnp.array([0.0, 1.0, 1.0, 0.0])),
}
NAIVE = {
    "mse": lambda f, y: np.sum((f - y) ** 2),
    "softmax_cross_entropy": lambda f, y: np.log(np.exp(f).sum()) - f[y],
    "logistic": lambda f, y: np.log1p(np.exp(-f[0] if y else f[0])),
}


@pytest.mark.parametrize("loss", CASES)
def test_value_is_the_mean_of_the_textbook_loss(loss, strict):
    f, y = CASES[loss]
    naive = np.mean([NAIVE[loss](np.asarray(a, np.float64), np.asarray(b)) for a, b in zip(f, y, strict=True)])
    assert float(batch_loss(f, y, loss=loss)) == pytest.approx(naive, rel=1e-6)


@pytest.mark.parametrize("loss", CASES)
def test_gradient_and_hessian_root(loss):
    f, y = CASES[loss]
    mean = lambda f: batch_loss(f, y, loss=loss)
    assert relative_error(output_gradient(f, y, loss=loss) / B, np.asarray(jax.grad(mean)(f))) <= 1e-6
    hessian = np.asarray(jax.hessian(mean)(f)) * B
    root = np.asarray(hessian_root(f, y, loss=loss))
    assert relative_error(root @ root, np.stack([hessian[i, :, i, :] for i in range(B)])) <= 2e-6
    assert relative_error(np.swapaxes(root, 1, 2), root) <= 1e-6
    inverse = np.asarray(hessian_root(f, y, loss=loss, inverse=True))
    projector = root @ inverse  # onto the range: identity, or without the ones vector
    expected = np.eye(f.shape[1]) - (np.ones((OUTPUTS, OUTPUTS)) / OUTPUTS if loss == "softmax_cross_entropy" else 0)
    assert np.abs(projector - expected).max() <= 1e-5


@pytest.mark.parametrize(
    ("outputs", "targets", "loss", "message"),
    [
        (jnp.ones((2, 1)), jnp.ones(2), "hinge", "loss='hinge'; allowed: mse"),
        (jnp.ones((2, 3)), jnp.ones(2), "mse", r"targets has shape \(2,\)"),
        (jnp.ones((2, 3)), jnp.ones(2), "softmax_cross_entropy", "integers"),
        (jnp.ones((2, 3)), jnp.ones(2), "logistic", "one output per example"),
        (jnp.ones((2, 3, 1)), jnp.ones(2), "mse", r"outputs has shape \(2, 3, 1\)"),
    ],
)
def test_bad_arguments(outputs, targets, loss, message):
    with pytest.raises(ValueError, match=message):
        batch_loss(outputs, targets, loss=loss)


@pytest.mark.parametrize("loss", CASES)
def test_basis_of_the_range_of_the_hessian(loss):
    f, y = CASES[loss]
    basis = np.asarray(hessian_range(f.shape[1], loss=loss), np.float64)
    assert basis.shape == (f.shape[1], f.shape[1] - (loss == "softmax_cross_entropy"))
    np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-6)
    root = np.asarray(hessian_root(f, y, loss=loss), np.float64)
    np.testing.assert_allclose(basis @ basis.T @ root, root, atol=1e-6)
