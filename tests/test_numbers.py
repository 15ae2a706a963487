"""Numbers that can't mislead: degenerate kernels, losses and rates have results that are defined, and precision is what it should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax import (
    FCN,
    critical_lr,
    critical_lr_from_lambda,
    find_events,
    split_loss,
    tangent_kernel,
    top_eigenpairs,
)
from catapult_jax.eigenspace import split_weighted_loss
from catapult_jax.testing import explicit_kernel, relative_error
from tests.zoo import build


def linear(w, x):
    return x @ w


def outputs_of(b, o=1):
    return jnp.zeros((b, o)) if o > 1 else jnp.zeros(b)


@pytest.mark.parametrize(
    ("spectrum", "k"),
    [((3.0, 0.0, 0.0, 0.0), 3), ((2.0, 2.0, 2.0, 1.0), 2), ((0.0, 0.0, 0.0, 0.0), 2), ((5.0, 5.0 - 1e-6, 1.0, 0.0), 1)],
    ids=["rank one", "clustered", "zero", "nearly equal"],
)
@pytest.mark.parametrize("loss", ["mse", "logistic"])
def test_degenerate_spectra(spectrum, k, loss):
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    kernel = jnp.float32(rotation @ np.diag(spectrum) @ rotation.T)
    outputs, targets = jnp.arange(4.0) / 4, jnp.array([1.0, 0.0, 1.0, 0.0])
    found = split_loss(kernel, outputs, targets, loss=loss, k=k)
    np.testing.assert_allclose(found.eigenvectors.T @ found.eigenvectors, np.eye(k), atol=1e-5)
    assert np.isfinite(found.top) and np.isfinite(found.rest)
    assert 0 <= found.top and -1e-6 <= found.rest
    if loss == "mse":
        np.testing.assert_allclose(float(found.top + found.rest), np.mean((np.arange(4) / 4 - [1, 0, 1, 0]) ** 2), rtol=1e-6)
        np.testing.assert_allclose(found.lambda_max, 2 * max(spectrum) / 4, rtol=1e-5, atol=1e-7)
    if spectrum[-1] == 0:
        assert np.isinf(found.condition_number)  # lost in rounding
    if max(spectrum) == 0:
        assert np.isinf(critical_lr_from_lambda(found.lambda_max))  # nothing grows, whatever the rate


def test_more_vectors_than_there_are():
    found = split_loss(jnp.eye(2), jnp.ones(2), jnp.zeros(2), loss="mse", k=5)
    assert found.eigenvalues.shape == (2,) and float(found.rest) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="k=3; allowed: 1 to 2"):
        top_eigenpairs(linear, jnp.zeros(3), (jnp.eye(3)[:2], jnp.zeros(2)), k=3, loss="mse")


def test_more_vectors_than_the_rank():
    batch = jnp.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]), jnp.zeros(3)  # rank one
    found = top_eigenpairs(linear, jnp.zeros(2), batch, k=3, loss="mse", tol=1e-3)
    np.testing.assert_allclose(found.eigenvalues, [2 / 3 * 14, 0, 0], rtol=1e-3, atol=1e-5)
    assert bool(found.converged)


def test_duplicate_examples_count_as_often_as_they_are_there():
    x, y = jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.zeros(2)
    twice = jnp.concatenate([x, x]), jnp.concatenate([y, y])
    for method in ("auto", "jacobian"):
        one, two = (critical_lr(linear, jnp.zeros(2), batch, loss="mse", method=method) for batch in ((x, y), twice))
        np.testing.assert_allclose(one, two, rtol=1e-6)


@pytest.mark.parametrize("loss", ["mse", "logistic"])
def test_a_batch_of_one(loss):
    x, y = jnp.array([[3.0, 4.0]]), jnp.array([1.0])
    curvature = {"mse": 2.0, "logistic": 0.25}[loss]  # at an output of zero
    expected = 2 / (curvature * 25)
    assert float(critical_lr(linear, jnp.zeros(2), (x, y), loss=loss)) == pytest.approx(expected, rel=1e-6)
    assert float(top_eigenpairs(linear, jnp.zeros(2), (x, y), k=1, loss=loss).eigenvalues[0]) == pytest.approx(
        2 / expected, rel=1e-5
    )


def test_gradients_of_zero_and_a_loss_of_zero():
    """Dead units: no kernel, an infinite critical lr. Targets that are met: a kernel, and nothing of the loss in any space."""
    model, x = FCN(depth=2, width=4), jnp.ones((3, 2))
    params = jax.tree.map(lambda p: -jnp.abs(p), model.init(jax.random.key(0), x))
    outputs = model.apply(params, x)
    assert np.isinf(critical_lr(model.apply, params, (x, jnp.zeros((3, 1))), loss="mse"))
    found = top_eigenpairs(model.apply, params, (x, jnp.zeros((3, 1))), k=1, loss="mse")
    assert float(found.eigenvalues[0]) == 0 and np.isinf(critical_lr_from_lambda(found.eigenvalues[0]))
    split = split_loss(jnp.eye(3), outputs, outputs, loss="mse", k=1)
    assert (float(split.top), float(split.rest)) == (0.0, 0.0) and float(split.lambda_max) > 0


def test_a_rate_of_zero_is_never_critical():
    loss = np.array([1.0, 5.0, 1.0])
    (event,) = find_events(loss, np.zeros(3), np.full(3, 0.5))
    assert event.kind == "unexplained"
    (event,) = find_events(loss, np.full(3, 1e9), np.full(3, np.inf))  # nor is any rate, where nothing grows
    assert event.kind == "unexplained"


@pytest.mark.parametrize("value", [0.0, 1.0, 1e30])
def test_a_constant_loss_has_no_spikes(value):
    assert find_events(np.full(50, value), np.ones(50), np.full(50, 0.5)) == []


def test_a_loss_of_exactly_zero_is_a_level_that_is_left():
    (event,) = find_events(np.array([1.0, 0.0, 0.0, 2.0, 0.0]), np.ones(5), np.full(5, 0.5))
    assert (event.kind, event.onset, event.peak, event.end) == ("catapult", 2, 3, 4) and np.isinf(event.peak_ratio)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_worked_on_in_single_precision(dtype):
    apply_fn, params, x = build("fcn")
    half = jax.tree.map(lambda p: p.astype(dtype), params)
    kernel = tangent_kernel(apply_fn, half, x.astype(dtype))
    assert kernel.dtype == jnp.float32
    # Weights and activations have 8 or 11 bits: the kernel is that of the rounded network, its own sums are not rounded further.
    assert relative_error(kernel, explicit_kernel(apply_fn, params, x)) <= 20 * float(jnp.finfo(dtype).eps)
    assert critical_lr(apply_fn, half, (x.astype(dtype), jnp.zeros((len(x), 1), dtype)), loss="mse").dtype == jnp.float32


@pytest.mark.parametrize("preconditioned", [False, True])
def test_products_in_half_precision(preconditioned):
    """From a warm start, one product: its norms are sums in single precision, of weights of 8 bits."""
    x, y = jnp.diag(jnp.array([1.0, 2.0, 3.0])).astype(jnp.bfloat16), jnp.zeros(3, jnp.bfloat16)
    params = jnp.zeros(3, jnp.bfloat16)
    scale = jnp.full(3, 0.5) if preconditioned else None
    cold = top_eigenpairs(linear, params, (x, y), k=1, loss="mse", preconditioner=scale)
    warm = top_eigenpairs(linear, params, (x, y), k=1, loss="mse", preconditioner=scale, warm_start=cold.directions)
    for found in (cold, warm):
        assert found.eigenvalues.dtype == jnp.float32
        assert float(found.eigenvalues[0]) == pytest.approx(6 * (2 if preconditioned else 1), rel=0.02)


def test_whole_numbers_as_inputs_are_the_same_numbers_and_as_parameters_refused():
    apply_fn, params, x = build("fcn")
    whole = jnp.round(4 * x).astype(jnp.int32)
    np.testing.assert_allclose(
        tangent_kernel(apply_fn, params, whole), tangent_kernel(apply_fn, params, whole.astype(jnp.float32)), rtol=1e-6
    )
    with pytest.raises(ValueError, match="dtype int32; allowed: real floating-point parameters"):
        tangent_kernel(linear, jnp.zeros(2, jnp.int32), jnp.ones((2, 2)))


@pytest.mark.parametrize("name", ["fcn", "cnn"])
def test_the_margin_covers_the_rounding_of_single_precision(name):
    """|d lambda| <= n max |d K| and lambda_max >= max |K|, so n times the relative error of an entry bounds that of the critical lr."""
    apply_fn, params, x = build(name)
    rows = len(x) * int(np.prod(jax.eval_shape(apply_fn, params, x).shape[1:]))
    exact = explicit_kernel(apply_fn, params, x)  # float64
    kernel = np.asarray(tangent_kernel(apply_fn, params, x), np.float64)
    some = rows // len(x) * 3  # of three examples, as a run knows it of a few
    margin = rows * np.abs(kernel - exact)[:some, :some].max() / np.abs(kernel[:some, :some]).max()
    outputs = jax.eval_shape(apply_fn, params, x)
    found = float(critical_lr(apply_fn, params, (x, jnp.zeros(outputs.shape)), loss="mse"))
    assert abs(found * np.linalg.eigvalsh(exact)[-1] / len(x) - 1) <= max(margin, 1e-6) < 1e-4  # 2 / (2 lambda / b)


def test_a_crossing_of_eigenvalues_moves_no_loss_from_one_vector_to_another():
    """Two eigenvalues cross; the part of the loss that each vector carries goes on smoothly, that of the largest alone jumps."""
    outputs, targets = jnp.array([3.0, 1.0, 0.5]), jnp.zeros(3)
    previous, shares, jumps = None, [], []
    for t in np.linspace(0.1, 0.9, 9)[[0, 1, 2, 3, 5, 6, 7, 8]]:
        weighted = jnp.diag(jnp.array([1 + t, 2 - t, 0.1], jnp.float32))
        split = split_weighted_loss(weighted, outputs, targets, loss="mse", k=2, previous=previous)
        previous = split.eigenvectors
        shares.append(np.abs(np.asarray(split.eigenvectors.T @ outputs)))
        jumps.append(float(split.eigenvalues[0] - split.eigenvalues[1]))
    assert np.ptp(np.array(shares), axis=0).max() < 1e-5
    assert jumps[0] > 0 > jumps[-1]  # by direction, not by size
