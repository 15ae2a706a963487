"""Critical learning rates against closed forms, the Gauss-Newton matrix, and descent itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from catapult_jax import FCN, Preconditioner, batch_loss, critical_lr, critical_lr_from_lambda, tangent_kernel
from catapult_jax.testing import explicit_jacobian, relative_error


def test_critical_lr_of_one_example_with_a_scalar_output():
    """1 / |grad_w f|^2."""
    model = FCN(depth=3, width=9)
    x = jax.random.normal(jax.random.key(0), (1, 4))
    params = model.init(jax.random.key(1), x)
    gradient = explicit_jacobian(model.apply, params, x)

    value = critical_lr(model.apply, params, (x, jnp.ones((1, 1))), loss="mse")

    assert float(value) == pytest.approx(1 / np.sum(gradient**2), rel=1e-5)


def test_critical_lr_of_a_network_is_two_over_lambda_max():
    model = FCN(depth=3, width=16, outputs=3)
    x = jax.random.normal(jax.random.key(0), (6, 4))
    params = model.init(jax.random.key(1), x)
    y = jnp.arange(6) % 3
    jacobian = explicit_jacobian(model.apply, params, x)
    hessian = jax.hessian(lambda f: batch_loss(f, y, loss="softmax_cross_entropy"))(model.apply(params, x)).reshape(18, 18)

    value = jax.jit(lambda p: critical_lr(model.apply, p, (x, y), loss="softmax_cross_entropy"))(params)

    lambda_max = np.linalg.eigvalsh(jacobian.T @ np.asarray(hessian, np.float64) @ jacobian)[-1]
    assert float(value) == pytest.approx(2 / lambda_max, rel=1e-4)


@pytest.mark.parametrize("spectrum", [(5.0, 1.0, 0.1), (2.0, 2.0, 2.0), (3.0, 1e-4, 0.0), (4.0,)], ids=str)
@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_critical_lr_is_where_descent_starts_to_grow(spectrum, factor):
    """Linear regression with a prescribed spectrum: the top mode follows (1 - lr * lambda)."""
    n = len(spectrum)
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))
    x = jnp.float32(q * np.sqrt(spectrum) * np.sqrt(n / 2))  # (2/n) x x^T has the spectrum
    y = x @ jnp.ones((n, 1))
    linear = lambda w, x: x @ w
    gradient = jax.jit(jax.grad(lambda w: batch_loss(linear(w, x), y, loss="mse")))
    lr = factor * critical_lr(linear, jnp.zeros((n, 1)), (x, y), loss="mse")

    w, errors = jnp.zeros((n, 1)), []
    for _ in range(60):
        w = w - lr * gradient(w)
        errors.append(float(jnp.abs(w - 1)[0, 0]))  # the top mode, by construction

    assert float(lr) == pytest.approx(factor * 2 / max(spectrum), rel=1e-5)
    assert (errors[-1] < errors[0]) == (factor < 1)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("factor", [0.99, 1.01])
def test_critical_lr_from_lambda_is_where_heavy_ball_starts_to_grow(momentum, factor):
    """On a quadratic with a prescribed spectrum, with Optax's own momentum."""
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


def test_critical_lr_from_lambda_of_zero_and_nan():
    assert critical_lr_from_lambda(jnp.array([0.0, 4.0])).tolist() == [np.inf, 0.5]
    assert np.isnan(critical_lr_from_lambda(jnp.array(jnp.nan)))


@pytest.mark.parametrize(("checked", "expected"), [(True, 0.5), (False, np.nan), (None, 0.5)])
def test_critical_lr_from_lambda_of_a_failed_check_is_nan(checked, expected):
    value = critical_lr_from_lambda(jnp.array(4.0), Preconditioner(checked=checked))

    np.testing.assert_equal(float(value), expected)


def test_lambda_max_bounds_that_of_a_sub_batch():
    """Interlacing: the kernel of a sub-batch has no larger top eigenvalue (unweighted)."""
    model = FCN(depth=3, width=16)
    x = jax.random.normal(jax.random.key(0), (8, 4))

    kernel = np.asarray(tangent_kernel(model.apply, model.init(jax.random.key(1), x), x))

    assert np.linalg.eigvalsh(kernel[:5, :5])[-1] <= np.linalg.eigvalsh(kernel)[-1] * (1 + 1e-6)
    assert relative_error(kernel.T, kernel) <= 1e-6


@pytest.mark.long
@pytest.mark.parametrize("loss", ["mse", "softmax_cross_entropy"])
def test_critical_lr_has_a_derivative(loss):
    """Where the largest eigenvalue is simple: against central differences along a random direction."""
    with jax.enable_x64():
        rng = np.random.default_rng(0)
        params = {"a": jnp.asarray(rng.standard_normal((4, 5))), "b": jnp.asarray(rng.standard_normal((5, 2)))}
        model = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
        x = jnp.asarray(rng.standard_normal((6, 4)))
        batch = (x, x[:, :2] if loss == "mse" else jnp.arange(6) % 2)
        D = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape)), params)
        at = lambda a: critical_lr(model, jax.tree.map(lambda p, d: p + a * d, params, D), batch, loss=loss)
        h = 1e-5
        difference = float(at(h) - at(-h)) / (2 * h)

        reverse, forward = float(jax.grad(at)(0.0)), float(jax.jvp(at, (0.0,), (1.0,))[1])

    assert abs(difference) > 1e-4
    np.testing.assert_allclose([reverse, forward], difference, rtol=1e-6)
