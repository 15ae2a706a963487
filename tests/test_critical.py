"""Critical learning rates against closed forms, the Gauss-Newton matrix, and descent itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from catapult_jax import FCN, Preconditioner, critical_lr, critical_lr_from_lambda, loss_weighted_kernel, tangent_kernel
from catapult_jax.critical import weighted_kernel_and_gradient, weighted_tangent_kernel
from catapult_jax.losses import batch_loss
from catapult_jax.testing import explicit_jacobian, relative_error
from tests.test_losses import CASES


@pytest.mark.parametrize("loss", CASES)
def test_spectrum_is_that_of_the_gauss_newton_matrix(loss):
    f, y = CASES[loss]
    b, o = f.shape
    rng = np.random.default_rng(0)
    jacobian = rng.standard_normal((b * o, 7))
    hessian = np.asarray(jax.hessian(lambda f: batch_loss(f, y, loss=loss))(f)).reshape(b * o, b * o)
    gauss_newton = jacobian.T @ hessian @ jacobian
    weighted = loss_weighted_kernel(jnp.float32(jacobian @ jacobian.T), f, y, loss=loss)
    ours, theirs = np.linalg.eigvalsh(np.asarray(weighted)), np.linalg.eigvalsh(gauss_newton)
    k = min(len(ours), len(theirs))
    assert np.abs(ours[::-1][:k] - theirs[::-1][:k]).max() <= 1e-5 * theirs[-1]


def test_one_example_with_a_scalar_output():
    """1 / |grad_w f|^2."""
    model = FCN(depth=3, width=9)
    x = jax.random.normal(jax.random.key(0), (1, 4))
    params = model.init(jax.random.key(1), x)
    gradient = explicit_jacobian(model.apply, params, x)
    value = critical_lr(model.apply, params, (x, jnp.ones((1, 1))), loss="mse")
    assert float(value) == pytest.approx(1 / np.sum(gradient**2), rel=1e-5)


@pytest.mark.parametrize("spectrum", [(5.0, 1.0, 0.1), (2.0, 2.0, 2.0), (3.0, 1e-4, 0.0), (4.0,)], ids=str)
@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_descent_decays_just_below_and_grows_just_above(spectrum, factor):
    """Linear regression with a prescribed spectrum: the top mode follows (1 - lr * lambda)."""
    n = len(spectrum)
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))
    x = jnp.float32(q * np.sqrt(spectrum) * np.sqrt(n / 2))  # (2/n) x x^T has the spectrum
    y = x @ jnp.ones((n, 1))
    linear = lambda w, x: x @ w
    lr = factor * critical_lr(linear, jnp.zeros((n, 1)), (x, y), loss="mse")
    assert float(lr) == pytest.approx(factor * 2 / max(spectrum), rel=1e-5)
    w = jnp.zeros((n, 1))
    gradient = jax.jit(jax.grad(lambda w: batch_loss(linear(w, x), y, loss="mse")))
    errors = []
    for _ in range(60):
        w = w - lr * gradient(w)
        errors.append(float(jnp.abs(w - 1)[0, 0]))  # the top mode, by construction
    assert (errors[-1] < errors[0]) == (factor < 1)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_heavy_ball_decays_just_below_and_grows_just_above(momentum, factor):
    """On a quadratic with a prescribed spectrum, with optax's own momentum."""
    spectrum = jnp.array([3.0, 1.0, 0.1])
    lr = factor * critical_lr_from_lambda(spectrum[0], Preconditioner(gain=1 / (1 + momentum)))
    optimizer = optax.sgd(lr, momentum=momentum)

    def step(carry, _):
        w, state = carry
        updates, state = optimizer.update(spectrum * w, state)
        return (w + updates, state), jnp.abs(w[0])

    w = jnp.ones(3)
    _, size = jax.lax.scan(step, (w, optimizer.init(w)), length=3000)
    assert (float(size[-1]) < float(size[1000])) == (factor < 1)


def test_critical_lr_of_a_network_is_two_over_lambda_max():
    model = FCN(depth=3, width=16, outputs=3)
    x = jax.random.normal(jax.random.key(0), (6, 4))
    params = model.init(jax.random.key(1), x)
    y = jnp.arange(6) % 3
    jacobian = explicit_jacobian(model.apply, params, x)
    hessian = jax.hessian(lambda f: batch_loss(f, y, loss="softmax_cross_entropy"))(model.apply(params, x)).reshape(18, 18)
    top = np.linalg.eigvalsh(jacobian.T @ np.asarray(hessian, np.float64) @ jacobian)[-1]
    value = jax.jit(lambda p: critical_lr(model.apply, p, (x, y), loss="softmax_cross_entropy"))(params)
    assert float(value) == pytest.approx(2 / top, rel=1e-4)


@pytest.mark.parametrize("loss", CASES)
def test_gradient_with_the_kernel_is_the_gradient(loss):
    _, y = CASES[loss]
    y = jnp.concatenate([y, y[:1]])
    model, x = FCN(depth=3, width=16, outputs=CASES[loss][0].shape[1]), jax.random.normal(jax.random.key(5), (len(y), 7))
    params = model.init(jax.random.key(6), x)
    outputs, weighted, gradient = jax.jit(lambda p: weighted_kernel_and_gradient(model.apply, p, (x, y), loss=loss))(params)
    np.testing.assert_allclose(outputs, model.apply(params, x), rtol=1e-5, atol=1e-6)
    assert (
        relative_error(weighted, np.asarray(weighted_tangent_kernel(model.apply, params, (x, y), outputs, loss=loss))) <= 1e-5
    )
    plain = jax.grad(lambda p: batch_loss(model.apply(p, x), y, loss=loss))(params)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain), strict=True):
        assert relative_error(ours, np.asarray(theirs)) <= 1e-5


def test_gradient_with_the_kernel_where_the_softmax_has_no_curvature_left():
    """Wrong and sure of it: the Hessian is zero, the gradient is not."""
    linear, x, y = lambda w, x: x @ w, jnp.eye(2), jnp.array([1, 0])
    w = jnp.array([[1e3, -1e3], [-1e3, 1e3]])
    _, weighted, gradient = weighted_kernel_and_gradient(linear, w, (x, y), loss="softmax_cross_entropy")
    assert not weighted.any()
    np.testing.assert_allclose(gradient, [[0.5, -0.5], [-0.5, 0.5]], rtol=1e-6)


def test_zero_kernel_is_never_critical():
    assert critical_lr_from_lambda(jnp.array([0.0, 4.0])).tolist() == [np.inf, 0.5]
    assert np.isnan(critical_lr_from_lambda(jnp.array(jnp.nan)))


def test_kernel_of_the_wrong_size():
    with pytest.raises(ValueError, match=r"kernel has shape \(3, 3\); allowed for outputs \(2,\): \(2, 2\)"):
        loss_weighted_kernel(jnp.eye(3), jnp.ones(2), jnp.ones(2), loss="mse")


def test_lambda_bounds_the_kernel_of_a_sub_batch():
    """Interlacing: a sub-batch of the kernel has no larger top eigenvalue (unweighted)."""
    model = FCN(depth=3, width=16)
    x = jax.random.normal(jax.random.key(0), (8, 4))
    kernel = np.asarray(tangent_kernel(model.apply, model.init(jax.random.key(1), x), x))
    assert np.linalg.eigvalsh(kernel[:5, :5])[-1] <= np.linalg.eigvalsh(kernel)[-1] * (1 + 1e-6)
    assert relative_error(kernel.T, kernel) <= 1e-6
