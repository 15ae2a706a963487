"""The loss-weighted kernel and the gradient beside it, against the Gauss-Newton matrix and ``jax.grad``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax import FCN, batch_loss, loss_weighted_kernel
from catapult_jax.tangent.weighted import weighted_kernel_and_gradient, weighted_tangent_kernel
from catapult_jax.testing import explicit_jacobian, relative_error
from tests.helpers_losses import LOSS_CASES


@pytest.mark.parametrize("loss", LOSS_CASES)
def test_loss_weighted_kernel_has_the_eigenvalues_of_gauss_newton(loss):
    f, y = LOSS_CASES[loss]
    b, o = f.shape
    jacobian = np.random.default_rng(0).standard_normal((b * o, 7))
    hessian = np.asarray(jax.hessian(lambda f: batch_loss(f, y, loss=loss))(f)).reshape(b * o, b * o)

    weighted = loss_weighted_kernel(jnp.float32(jacobian @ jacobian.T), f, y, loss=loss)

    ours, theirs = np.linalg.eigvalsh(np.asarray(weighted)), np.linalg.eigvalsh(jacobian.T @ hessian @ jacobian)
    k = min(len(ours), len(theirs))
    assert np.abs(ours[::-1][:k] - theirs[::-1][:k]).max() <= 1e-5 * theirs[-1]


def test_loss_weighted_kernel_refuses_another_size():
    with pytest.raises(ValueError, match=r"kernel has shape \(3, 3\); allowed for outputs \(2,\): \(2, 2\)"):
        loss_weighted_kernel(jnp.eye(3), jnp.ones(2), jnp.ones(2), loss="mse")


@pytest.mark.parametrize("loss", LOSS_CASES)
def test_weighted_tangent_kernel_has_the_eigenvalues_of_gauss_newton(loss):
    """From the explicit Jacobian in float64: the non-zero eigenvalues, in as many rows as the loss has curvature."""
    f, y = LOSS_CASES[loss]
    model, x = FCN(depth=2, width=8, outputs=f.shape[1]), jax.random.normal(jax.random.key(5), (len(f), 7))
    params = model.init(jax.random.key(6), x)
    outputs = model.apply(params, x)
    jacobian = explicit_jacobian(model.apply, params, x)
    hessian = np.asarray(jax.hessian(lambda f: batch_loss(f, y, loss=loss))(outputs), np.float64).reshape(f.size, f.size)

    weighted = weighted_tangent_kernel(model.apply, params, (x, y), outputs, loss=loss)

    rank = f.shape[1] - (loss == "softmax_cross_entropy")
    assert weighted.shape == (len(f) * rank,) * 2
    expected = np.linalg.eigvalsh(jacobian.T @ hessian @ jacobian)[::-1][: len(weighted)]
    np.testing.assert_allclose(np.linalg.eigvalsh(np.asarray(weighted))[::-1], expected, atol=1e-5 * expected[0])


@pytest.mark.parametrize("loss", LOSS_CASES)
def test_weighted_kernel_and_gradient_is_the_kernel_and_jax_grad(loss):
    _, y = LOSS_CASES[loss]
    y = jnp.concatenate([y, y[:1]])
    model, x = FCN(depth=3, width=16, outputs=LOSS_CASES[loss][0].shape[1]), jax.random.normal(jax.random.key(5), (len(y), 7))
    params = model.init(jax.random.key(6), x)

    outputs, weighted, gradient = jax.jit(lambda p: weighted_kernel_and_gradient(model.apply, p, (x, y), loss=loss))(params)

    np.testing.assert_allclose(outputs, model.apply(params, x), rtol=1e-5, atol=1e-6)
    expected = np.asarray(weighted_tangent_kernel(model.apply, params, (x, y), outputs, loss=loss))
    assert relative_error(weighted, expected) <= 1e-5
    plain = jax.grad(lambda p: batch_loss(model.apply(p, x), y, loss=loss))(params)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain), strict=True):
        assert relative_error(ours, np.asarray(theirs)) <= 1e-5


def test_weighted_kernel_and_gradient_of_a_softmax_without_curvature():
    """The outputs are wrong and certain: the Hessian is zero, the gradient is not."""
    linear, x, y = lambda w, x: x @ w, jnp.eye(2), jnp.array([1, 0])
    w = jnp.array([[1e3, -1e3], [-1e3, 1e3]])

    _, weighted, gradient = weighted_kernel_and_gradient(linear, w, (x, y), loss="softmax_cross_entropy")

    assert not weighted.any()
    np.testing.assert_allclose(gradient, [[0.5, -0.5], [-0.5, 0.5]], rtol=1e-6)
