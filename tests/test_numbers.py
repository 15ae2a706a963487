"""Degenerate numbers, across modules: each has a defined result.

Kernels, losses and learning rates of zero, duplicate examples, integers, half precision.
"""

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
from catapult_jax.testing import explicit_kernel, relative_error
from tests.zoo import build


def linear(w, x):
    return x @ w


@pytest.mark.parametrize(
    ("spectrum", "k"),
    [((3.0, 0.0, 0.0, 0.0), 3), ((2.0, 2.0, 2.0, 1.0), 2), ((0.0, 0.0, 0.0, 0.0), 2), ((5.0, 5.0 - 1e-6, 1.0, 0.0), 1)],
    ids=["rank one", "clustered", "zero", "nearly equal"],
)
@pytest.mark.parametrize("loss", ["mse", "logistic"])
def test_split_loss_of_degenerate_spectra(spectrum, k, loss):
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    kernel = jnp.float32(rotation @ np.diag(spectrum) @ rotation.T)
    outputs, targets = jnp.arange(4.0) / 4, jnp.array([1.0, 0.0, 1.0, 0.0])

    split = split_loss(kernel, outputs, targets, loss=loss, k=k)

    np.testing.assert_allclose(split.eigenvectors.T @ split.eigenvectors, np.eye(k), atol=1e-5)
    assert np.isfinite(split.top) and np.isfinite(split.rest)
    assert 0 <= split.top and -1e-6 <= split.rest
    if loss == "mse":
        np.testing.assert_allclose(float(split.top + split.rest), np.mean((np.arange(4) / 4 - [1, 0, 1, 0]) ** 2), rtol=1e-6)
        np.testing.assert_allclose(split.lambda_max, 2 * max(spectrum) / 4, rtol=1e-5, atol=1e-7)
    if spectrum[-1] == 0:
        assert np.isinf(split.condition_number)  # the smallest is rounding
    if max(spectrum) == 0:
        assert np.isinf(critical_lr_from_lambda(split.lambda_max))  # nothing grows at any lr


def test_split_loss_of_more_vectors_than_there_are_takes_all():
    split = split_loss(jnp.eye(2), jnp.ones(2), jnp.zeros(2), loss="mse", k=5)

    assert split.eigenvalues.shape == (2,) and float(split.rest) == pytest.approx(0, abs=1e-6)


def test_top_eigenpairs_refuses_more_vectors_than_there_are():
    with pytest.raises(ValueError, match="k=3; allowed: 1 to 2"):
        top_eigenpairs(linear, jnp.zeros(3), (jnp.eye(3)[:2], jnp.zeros(2)), k=3, loss="mse")


def test_top_eigenpairs_of_more_vectors_than_the_rank_are_zero():
    batch = jnp.array([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]), jnp.zeros(3)  # rank one

    pairs = top_eigenpairs(linear, jnp.zeros(2), batch, k=3, loss="mse", tol=1e-3)

    np.testing.assert_allclose(pairs.eigenvalues, [2 / 3 * 14, 0, 0], rtol=1e-3, atol=1e-5)
    assert bool(pairs.converged)


@pytest.mark.parametrize("method", ["auto", "jacobian"])
def test_critical_lr_of_duplicate_examples_is_that_of_one_copy(method):
    x, y = jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.zeros(2)
    twice = jnp.concatenate([x, x]), jnp.concatenate([y, y])

    once, doubled = (critical_lr(linear, jnp.zeros(2), batch, loss="mse", method=method) for batch in ((x, y), twice))

    np.testing.assert_allclose(once, doubled, rtol=1e-6)


@pytest.mark.parametrize("loss", ["mse", "logistic"])
def test_critical_lr_and_top_eigenpairs_of_a_batch_of_one(loss):
    x, y = jnp.array([[3.0, 4.0]]), jnp.array([1.0])
    curvature = {"mse": 2.0, "logistic": 0.25}[loss]  # at an output of zero
    expected = 2 / (curvature * 25)

    critical = critical_lr(linear, jnp.zeros(2), (x, y), loss=loss)
    pairs = top_eigenpairs(linear, jnp.zeros(2), (x, y), k=1, loss=loss)

    assert float(critical) == pytest.approx(expected, rel=1e-6)
    assert float(pairs.eigenvalues[0]) == pytest.approx(2 / expected, rel=1e-5)


def test_critical_lr_of_dead_units_is_infinite():
    model, batch = FCN(depth=2, width=4), (jnp.ones((3, 2)), jnp.zeros((3, 1)))
    params = jax.tree.map(lambda p: -jnp.abs(p), model.init(jax.random.key(0), batch[0]))

    critical = critical_lr(model.apply, params, batch, loss="mse")
    pairs = top_eigenpairs(model.apply, params, batch, k=1, loss="mse")

    assert np.isinf(critical)
    assert float(pairs.eigenvalues[0]) == 0 and np.isinf(critical_lr_from_lambda(pairs.eigenvalues[0]))


def test_split_loss_of_a_loss_of_zero_has_a_kernel_and_no_parts():
    outputs = jnp.array([[0.5], [-1.0], [0.0]])

    split = split_loss(jnp.eye(3), outputs, outputs, loss="mse", k=1)

    assert (float(split.top), float(split.rest)) == (0.0, 0.0) and float(split.lambda_max) > 0


@pytest.mark.parametrize(("lr", "critical"), [(0.0, 0.5), (1e9, np.inf)], ids=["lr of zero", "infinite critical lr"])
def test_find_events_without_an_exceedance_is_unexplained(lr, critical):
    (event,) = find_events(np.array([1.0, 5.0, 1.0]), np.full(3, lr), np.full(3, critical))

    assert event.kind == "unexplained"


@pytest.mark.parametrize("value", [0.0, 1.0, 1e30])
def test_find_events_of_a_constant_loss_finds_none(value):
    assert find_events(np.full(50, value), np.ones(50), np.full(50, 0.5)) == []


def test_find_events_from_a_loss_of_exactly_zero():
    (event,) = find_events(np.array([1.0, 0.0, 0.0, 2.0, 0.0]), np.ones(5), np.full(5, 0.5))

    assert (event.kind, event.onset, event.peak, event.end) == ("catapult", 2, 3, 4) and np.isinf(event.peak_ratio)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_tangent_kernel_of_half_precision_is_in_single_precision(dtype):
    apply_fn, params, x = build("fcn")
    half = jax.tree.map(lambda p: p.astype(dtype), params)

    kernel = tangent_kernel(apply_fn, half, x.astype(dtype))

    assert kernel.dtype == jnp.float32
    # Weights and activations have 8 or 11 bits. The kernel is that of the rounded network; its own sums are in float32.
    assert relative_error(kernel, explicit_kernel(apply_fn, params, x)) <= 20 * float(jnp.finfo(dtype).eps)
    assert critical_lr(apply_fn, half, (x.astype(dtype), jnp.zeros((len(x), 1), dtype)), loss="mse").dtype == jnp.float32


@pytest.mark.parametrize("preconditioned", [False, True])
def test_top_eigenpairs_of_half_precision_are_in_single_precision(preconditioned):
    """The warm start takes one product. Its weights have 8 bits; the sums of its norms are in float32."""
    x, y = jnp.diag(jnp.array([1.0, 2.0, 3.0])).astype(jnp.bfloat16), jnp.zeros(3, jnp.bfloat16)
    params = jnp.zeros(3, jnp.bfloat16)
    scale = jnp.full(3, 0.5) if preconditioned else None

    cold = top_eigenpairs(linear, params, (x, y), k=1, loss="mse", preconditioner=scale)
    warm = top_eigenpairs(linear, params, (x, y), k=1, loss="mse", preconditioner=scale, warm_start=cold.directions)

    for pairs in (cold, warm):
        assert pairs.eigenvalues.dtype == jnp.float32
        assert float(pairs.eigenvalues[0]) == pytest.approx(6 * (2 if preconditioned else 1), rel=0.02)


def test_tangent_kernel_of_integer_inputs_is_that_of_the_same_floats():
    apply_fn, params, x = build("fcn")
    whole = jnp.round(4 * x).astype(jnp.int32)

    kernel = tangent_kernel(apply_fn, params, whole)

    np.testing.assert_allclose(kernel, tangent_kernel(apply_fn, params, whole.astype(jnp.float32)), rtol=1e-6)


def test_tangent_kernel_refuses_integer_parameters():
    with pytest.raises(ValueError, match="dtype int32; allowed: real floating-point parameters"):
        tangent_kernel(linear, jnp.zeros(2, jnp.int32), jnp.ones((2, 2)))


@pytest.mark.parametrize("name", ["fcn", "cnn"])
def test_the_margin_covers_the_rounding_of_single_precision(name):
    """|d lambda| <= n max |d K| and lambda_max >= max |K|, so n times the relative error of an entry bounds that of the critical lr."""
    apply_fn, params, x = build(name)
    rows = len(x) * int(np.prod(jax.eval_shape(apply_fn, params, x).shape[1:]))
    exact = explicit_kernel(apply_fn, params, x)  # float64
    outputs = jax.eval_shape(apply_fn, params, x)

    kernel = np.asarray(tangent_kernel(apply_fn, params, x), np.float64)
    few = rows // len(x) * 3  # rows of three examples: a run measures the error on a few
    margin = rows * np.abs(kernel - exact)[:few, :few].max() / np.abs(kernel[:few, :few]).max()
    critical = float(critical_lr(apply_fn, params, (x, jnp.zeros(outputs.shape)), loss="mse"))

    assert abs(critical * np.linalg.eigvalsh(exact)[-1] / len(x) - 1) <= max(margin, 1e-6) < 1e-4  # 2 / (2 lambda / b)
