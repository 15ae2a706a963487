"""The split of the loss over the top eigenspace, on kernels with prescribed spectra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax import FCN, batch_loss, critical_lr, critical_lr_from_lambda, split_loss, tangent_kernel
from catapult_jax.critical import weighted_tangent_kernel
from catapult_jax.eigenspace import split_weighted_loss
from catapult_jax.testing import symmetric_with_spectrum
from tests.test_losses import CASES


@pytest.mark.parametrize("spectrum", [(9, 4, 2, 1), (9, 9, 2, 1), (5, 5 - 1e-3, 1, 0), (3, 0, 0, 0)], ids=str)
@pytest.mark.parametrize("k", [2, 4, 7])
def test_split_of_a_known_residual(spectrum, k, strict):
    kernel, vectors = symmetric_with_spectrum(spectrum)
    residual = vectors @ np.array([1.0, 2.0, 3.0, 4.0])
    split = split_loss(jnp.float32(kernel), jnp.float32(residual), jnp.zeros(4), loss="mse", k=k)
    total = float(batch_loss(jnp.float32(residual), jnp.zeros(4), loss="mse"))
    assert float(split.top + split.rest) == pytest.approx(total, rel=1e-5)
    assert float(split.lambda_max) == pytest.approx(2 / 4 * spectrum[0], rel=1e-5)
    assert split.eigenvectors.shape == (4, min(k, 4))
    gap = k >= 4 or spectrum[k - 1] - spectrum[k] > 1e-2
    if gap:  # otherwise the top-k space is not defined
        expected = sum(c**2 for c in (1.0, 2.0, 3.0, 4.0)[:k]) / 4
        assert float(split.top) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", CASES)
def test_top_and_rest_are_the_newton_decrement(loss):
    f, y = CASES[loss]
    n = f.size
    kernel, _ = symmetric_with_spectrum(np.linspace(3, 1, n))
    split = split_loss(jnp.float32(kernel), f, y, loss=loss, k=n)
    mean = lambda f: batch_loss(f, y, loss=loss)
    gradient = np.asarray(jax.grad(mean)(f), np.float64).reshape(-1)
    hessian = np.asarray(jax.hessian(mean)(f), np.float64).reshape(n, n)
    decrement = gradient @ np.linalg.pinv(hessian, rcond=1e-5) @ gradient / 2
    assert float(split.top) == pytest.approx(decrement, rel=1e-4)
    assert float(split.rest) <= 1e-5 * decrement


def test_vectors_keep_their_sign_and_order_through_a_crossing(strict):
    _, vectors = symmetric_with_spectrum((3, 2, 1))
    previous, followed = None, []
    for t in np.linspace(0, 1, 11):
        spectrum = np.array([3 - t, 2 + t, 1.0])  # the first two cross in the middle
        kernel = (vectors * spectrum) @ vectors.T
        split = split_loss(jnp.float32(kernel), jnp.ones(3), jnp.zeros(3), loss="mse", k=2, previous=previous)
        if abs(t - 0.5) > 1e-9:  # at the crossing any basis is right
            previous = split.eigenvectors
            followed.append(np.asarray(split.eigenvalues) * 3 / 2)
            assert float(split.lambda_max) * 3 / 2 == pytest.approx(spectrum.max(), rel=1e-5)
    followed = np.array(followed)
    assert (np.diff(followed[:, 0]) < 0).all() and (np.diff(followed[:, 1]) > 0).all()


def test_first_step_has_no_previous_vectors():
    kernel, _ = symmetric_with_spectrum((3, 2, 1))
    fresh = split_loss(jnp.float32(kernel), jnp.ones(3), jnp.zeros(3), loss="mse", k=2)
    zero = split_loss(jnp.float32(kernel), jnp.ones(3), jnp.zeros(3), loss="mse", k=2, previous=jnp.zeros((3, 2)))
    assert (fresh.eigenvalues == zero.eigenvalues).all()


def test_condition_number_of_a_prescribed_spectrum():
    split = lambda spectrum: (
        split_loss(
            jnp.float32(symmetric_with_spectrum(spectrum)[0]), jnp.ones(3), jnp.zeros(3), loss="mse", k=1
        ).condition_number
    )
    assert float(split((8, 4, 2))) == pytest.approx(4, rel=1e-5)
    assert np.isinf(split((8, 4, 0))) and np.isnan(
        split_loss(jnp.full((3, 3), jnp.nan), jnp.ones(3), jnp.zeros(3), loss="mse").condition_number
    )


def test_k_below_one():
    with pytest.raises(ValueError, match="k=0; allowed: 1 or more"):
        split_loss(jnp.eye(2), jnp.ones(2), jnp.ones(2), loss="mse", k=0)


@pytest.mark.parametrize("loss", CASES)
def test_split_of_a_batch_is_that_of_its_kernel(loss):
    """Also for the softmax, whose kernel is taken in one direction less for each example."""
    f, y = CASES[loss]
    model, x = FCN(depth=2, width=16, outputs=f.shape[1]), jax.random.normal(jax.random.key(5), (len(f), 7))
    params = model.init(jax.random.key(6), x)
    outputs = model.apply(params, x)
    whole = split_loss(tangent_kernel(model.apply, params, x), outputs, y, loss=loss, k=3)
    previous = whole.eigenvectors[:, ::-1] * jnp.array([[1, -1, 1]])
    weighted = weighted_tangent_kernel(model.apply, params, (x, y), outputs, loss=loss)
    of_batch = split_weighted_loss(weighted, outputs, y, loss=loss, k=3, previous=previous)
    for name in ("top", "rest", "lambda_max", "condition_number"):
        # The smallest eigenvalue has the rounding of the largest.
        rtol = 1e-6 * float(whole.condition_number) if name == "condition_number" else 1e-4
        np.testing.assert_allclose(getattr(of_batch, name), getattr(whole, name), rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(of_batch.eigenvalues, whole.eigenvalues[::-1], rtol=1e-4)  # in the order of those before
    np.testing.assert_allclose(of_batch.eigenvectors, previous, atol=2e-3)
    critical = critical_lr(model.apply, params, (x, y), loss=loss)
    np.testing.assert_allclose(critical, critical_lr_from_lambda(whole.lambda_max), rtol=1e-5)
