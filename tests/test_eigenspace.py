"""The split of the loss over the top eigenspace, on kernels with prescribed spectra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax import FCN, batch_loss, critical_lr, critical_lr_from_lambda, split_loss, tangent_kernel
from catapult_jax.eigenspace import fraction_of, split_weighted_loss
from catapult_jax.tangent.weighted import loss_weighted_kernel, weighted_tangent_kernel
from catapult_jax.testing import symmetric_with_spectrum
from tests.helpers_losses import LOSS_CASES


@pytest.mark.parametrize("spectrum", [(9, 4, 2, 1), (9, 9, 2, 1), (5, 5 - 1e-3, 1, 0), (3, 0, 0, 0)], ids=str)
@pytest.mark.parametrize("k", [2, 4, 7])
def test_split_loss_of_a_prescribed_residual(spectrum, k, strict):
    kernel, vectors = symmetric_with_spectrum(spectrum)
    residual = vectors @ np.array([1.0, 2.0, 3.0, 4.0])

    split = split_loss(jnp.float32(kernel), jnp.float32(residual), jnp.zeros(4), loss="mse", k=k)

    total = float(batch_loss(jnp.float32(residual), jnp.zeros(4), loss="mse"))
    assert float(split.top + split.rest) == pytest.approx(total, rel=1e-5)
    assert float(split.lambda_max) == pytest.approx(2 / 4 * spectrum[0], rel=1e-5)
    assert split.eigenvectors.shape == (4, min(k, 4))
    has_gap = k >= 4 or spectrum[k - 1] - spectrum[k] > 1e-2
    if has_gap:  # otherwise the top-k space is not defined
        expected = sum(c**2 for c in (1.0, 2.0, 3.0, 4.0)[:k]) / 4
        assert float(split.top) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", LOSS_CASES)
def test_split_loss_sums_to_the_newton_decrement(loss):
    f, y = LOSS_CASES[loss]
    n = f.size
    kernel, _ = symmetric_with_spectrum(np.linspace(3, 1, n))

    split = split_loss(jnp.float32(kernel), f, y, loss=loss, k=n)

    mean = lambda f: batch_loss(f, y, loss=loss)
    gradient = np.asarray(jax.grad(mean)(f), np.float64).reshape(-1)
    hessian = np.asarray(jax.hessian(mean)(f), np.float64).reshape(n, n)
    decrement = gradient @ np.linalg.pinv(hessian, rcond=1e-5) @ gradient / 2
    assert float(split.top) == pytest.approx(decrement, rel=1e-4)
    assert float(split.rest) <= 1e-5 * decrement


def test_split_loss_follows_eigenvectors_through_a_crossing(strict):
    _, vectors = symmetric_with_spectrum((3, 2, 1))

    previous, eigenvalues = None, []
    for t in np.linspace(0, 1, 11):
        spectrum = np.array([3 - t, 2 + t, 1.0])  # the first two cross in the middle
        kernel = (vectors * spectrum) @ vectors.T
        split = split_loss(jnp.float32(kernel), jnp.ones(3), jnp.zeros(3), loss="mse", k=2, previous=previous)
        if abs(t - 0.5) > 1e-9:  # at the crossing any basis is right
            previous = split.eigenvectors
            eigenvalues.append(np.asarray(split.eigenvalues) * 3 / 2)
            assert float(split.lambda_max) * 3 / 2 == pytest.approx(spectrum.max(), rel=1e-5)

    eigenvalues = np.array(eigenvalues)
    assert (np.diff(eigenvalues[:, 0]) < 0).all() and (np.diff(eigenvalues[:, 1]) > 0).all()


def test_split_loss_with_previous_vectors_of_zero_is_that_without():
    kernel, _ = symmetric_with_spectrum((3, 2, 1))

    without = split_loss(jnp.float32(kernel), jnp.ones(3), jnp.zeros(3), loss="mse", k=2)
    zero = split_loss(jnp.float32(kernel), jnp.ones(3), jnp.zeros(3), loss="mse", k=2, previous=jnp.zeros((3, 2)))

    assert (without.eigenvalues == zero.eigenvalues).all()


@pytest.mark.parametrize(("spectrum", "expected"), [((8, 4, 2), 4), ((8, 4, 0), np.inf)], ids=str)
def test_split_loss_gives_the_condition_number(spectrum, expected):
    kernel, _ = symmetric_with_spectrum(spectrum)

    split = split_loss(jnp.float32(kernel), jnp.ones(3), jnp.zeros(3), loss="mse", k=1)

    assert float(split.condition_number) == pytest.approx(expected, rel=1e-5)


def test_split_loss_of_nan_has_a_condition_number_of_nan():
    split = split_loss(jnp.full((3, 3), jnp.nan), jnp.ones(3), jnp.zeros(3), loss="mse")

    assert np.isnan(split.condition_number)


@pytest.mark.parametrize("k", [0, -1, 2.5, True, "2"])
def test_split_loss_refuses_a_k_that_is_no_whole_number_above_zero(k):
    with pytest.raises(ValueError, match=f"k={k!r}; allowed: a whole number, 1 or more"):
        split_loss(jnp.eye(2), jnp.ones(2), jnp.ones(2), loss="mse", k=k)


@pytest.mark.parametrize("previous", [jnp.eye(8)[:, :3], jnp.eye(4)[:, :2]], ids=["batch size", "k"])
def test_split_loss_refuses_eigenvectors_of_another_shape(previous):
    with pytest.raises(
        ValueError, match=r"previous has shape .*; allowed: \(4, 3\), eigenvectors of the same batch size and k$"
    ):
        split_loss(jnp.eye(4), jnp.ones(4), jnp.zeros(4), loss="mse", k=3, previous=previous)


@pytest.mark.parametrize("loss", LOSS_CASES)
def test_split_weighted_loss_is_split_loss_of_the_whole_kernel(loss):
    """For the softmax too, whose weighted kernel has one row less per example."""
    f, y = LOSS_CASES[loss]
    model, x = FCN(depth=2, width=16, outputs=f.shape[1]), jax.random.normal(jax.random.key(5), (len(f), 7))
    params = model.init(jax.random.key(6), x)
    outputs = model.apply(params, x)
    whole = split_loss(tangent_kernel(model.apply, params, x), outputs, y, loss=loss, k=3)
    previous = whole.eigenvectors[:, ::-1] * jnp.array([[1, -1, 1]])

    weighted = weighted_tangent_kernel(model.apply, params, (x, y), outputs, loss=loss)
    split = split_weighted_loss(weighted, outputs, y, loss=loss, k=3, previous=previous)

    for name in ("top", "rest", "lambda_max", "condition_number"):
        # The smallest eigenvalue has the rounding of the largest.
        rtol = 1e-6 * float(whole.condition_number) if name == "condition_number" else 1e-4
        np.testing.assert_allclose(getattr(split, name), getattr(whole, name), rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(split.eigenvalues, whole.eigenvalues[::-1], rtol=1e-4)  # in the order of the previous ones
    np.testing.assert_allclose(split.eigenvectors, previous, atol=2e-3)
    critical = critical_lr(model.apply, params, (x, y), loss=loss)
    np.testing.assert_allclose(critical, critical_lr_from_lambda(whole.lambda_max), rtol=1e-5)


def test_split_weighted_loss_carries_each_part_through_a_crossing():
    """Two eigenvalues cross: the part of the loss along each vector is constant, the order of the eigenvalues flips."""
    outputs, targets = jnp.array([3.0, 1.0, 0.5]), jnp.zeros(3)

    previous, parts, gaps = None, [], []
    for t in np.linspace(0.1, 0.9, 9)[[0, 1, 2, 3, 5, 6, 7, 8]]:
        weighted = jnp.diag(jnp.array([1 + t, 2 - t, 0.1], jnp.float32))
        split = split_weighted_loss(weighted, outputs, targets, loss="mse", k=2, previous=previous)
        previous = split.eigenvectors
        parts.append(np.abs(np.asarray(split.eigenvectors.T @ outputs)))
        gaps.append(float(split.eigenvalues[0] - split.eigenvalues[1]))

    assert np.ptp(np.array(parts), axis=0).max() < 1e-5
    assert gaps[0] > 0 > gaps[-1]  # by direction, not by size


def test_fraction_of_keeps_the_digits_of_a_small_rest():
    top, rest = fraction_of(jnp.eye(3)[:, :1], jnp.array([1e3, 1e-3, 0.0]), 2)

    assert float(top) == pytest.approx(1e6 / 2, rel=1e-6)
    assert float(rest) == pytest.approx(1e-6 / 2, rel=1e-5)  # below the rounding of the sum


def test_split_weighted_loss_gives_each_mode_in_descending_order():
    kernel, vectors = symmetric_with_spectrum((1, 9, 4, 2))
    residual = vectors @ np.array([1.0, 2.0, 3.0, 4.0])
    previous = jnp.float32(vectors[:, [2, 1]])  # asks for another order of the eigenvectors, not of the modes

    split = split_weighted_loss(
        jnp.float32(kernel / 2), jnp.float32(residual), jnp.zeros(4), loss="mse", k=2, previous=previous, modes=3
    )

    np.testing.assert_allclose(split.modes, np.array([2.0, 3.0, 4.0]) ** 2 / 4, rtol=1e-4)
    assert split.eigenvalues.tolist() == pytest.approx([2, 4.5], rel=1e-5)
    assert float(split.modes[:2].sum()) == pytest.approx(float(split.top), rel=1e-5)


def test_split_weighted_loss_of_softmax_has_modes_that_sum_to_the_newton_decrement():
    f, y = LOSS_CASES["softmax_cross_entropy"]
    kernel, _ = symmetric_with_spectrum(np.linspace(3, 1, f.size))
    weighted = loss_weighted_kernel(jnp.float32(kernel), f, y, loss="softmax_cross_entropy")

    split = split_weighted_loss(weighted, f, y, loss="softmax_cross_entropy", k=3, modes=f.size)

    assert float(split.modes[:3].sum()) == pytest.approx(float(split.top), rel=1e-4)
    assert float(split.modes.sum()) == pytest.approx(float(split.top + split.rest), rel=1e-4)


@pytest.mark.parametrize("modes", [-1, 5])
def test_split_weighted_loss_refuses_modes_that_the_kernel_does_not_have(modes):
    with pytest.raises(ValueError, match=rf"modes={modes}; allowed for a kernel of 4 rows: 0 to 4"):
        split_weighted_loss(jnp.eye(4), jnp.ones(4), jnp.zeros(4), loss="mse", modes=modes)
