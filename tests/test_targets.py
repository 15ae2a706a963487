"""Synthetic targets and their gradients, against the formulas term by term."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catapult_jax.data import TARGETS, synthetic, target_function


def by_terms(target, rank, x):
    """The target and its gradient, (n,) and (n, d), term by term."""
    y, gradient = np.zeros(len(x)), np.zeros_like(x)
    for n, z in enumerate(x):
        if target == "product":
            y[n] = math.prod(z[:rank])
            for i in range(rank):
                gradient[n, i] = math.prod(z[j] for j in range(rank) if j != i)
        elif target == "squares":
            y[n] = sum(z[i] ** 2 - 1 for i in range(rank)) / math.sqrt(2 * rank)
            gradient[n, :rank] = 2 * z[:rank] / math.sqrt(2 * rank)
        else:
            terms = [(i, i + 1) if i + 1 < rank else (i,) for i in range(0, rank, 2)]
            for term in terms:
                y[n] += math.prod(z[i] for i in term) / math.sqrt(len(terms))
                for i in term:
                    gradient[n, i] = math.prod(z[j] for j in term if j != i) / math.sqrt(len(terms))
    return y, gradient


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("target", TARGETS)
def test_target_function_and_its_gradient(target, rank, strict):
    x = synthetic(dimension=6, rank=rank, target=target, noise=0.5, train_size=7, test_size=5, seed=rank).x_test.copy()
    x[0, :2] = 0  # a factor of the product, or two of them

    value, gradient = jax.vmap(jax.value_and_grad(target_function(target, rank)))(jnp.asarray(x))

    expected = by_terms(target, rank, x)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-5, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(TARGETS), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_target_function_depends_on_the_first_coordinates_only(target, rank, seed):
    x, other = np.random.default_rng(seed).standard_normal((2, 6)).astype(np.float32)
    other[:rank] = x[:rank]
    function = target_function(target, rank)

    gradient = np.asarray(jax.grad(function)(jnp.asarray(x)))

    assert (gradient[rank:] == 0).all() and (gradient[:rank] != 0).all()
    assert function(x) == function(other)


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("target", TARGETS)
def test_synthetic_targets_are_the_function_and_noise(target, rank):
    sizes = dict(dimension=6, rank=rank, target=target, train_size=7, test_size=5, seed=rank)

    noisy, noiseless = synthetic(noise=0.5, **sizes), synthetic(noise=0.0, **sizes)

    assert noisy.y_test.shape == (5,) and noisy.y_test.dtype == noisy.y_train.dtype == np.float32
    np.testing.assert_allclose(noisy.y_test, by_terms(target, rank, noisy.x_test)[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(noiseless.x_train, noisy.x_train)
    np.testing.assert_allclose(noiseless.y_train, by_terms(target, rank, noisy.x_train)[0], rtol=1e-5, atol=1e-6)
    assert (noiseless.y_train != noisy.y_train).all()


def test_synthetic_noise_has_its_standard_deviation():
    arrays = synthetic(dimension=5, rank=3, noise=0.5, train_size=2000, test_size=10, seed=1)

    np.testing.assert_allclose(arrays.y_test, arrays.x_test[:, :3].prod(1))
    assert np.std(arrays.y_train - arrays.x_train[:, :3].prod(1)) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("target", TARGETS)
def test_synthetic_targets_have_mean_zero_and_variance_one(target, rank):
    y = synthetic(dimension=5, rank=rank, target=target, noise=0.0, train_size=1, test_size=200_000, seed=0).y_test

    assert y.mean() == pytest.approx(0, abs=0.02)
    assert y.std() == pytest.approx(1, rel=0.05)


def test_synthetic_keeps_its_random_stream():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 3)).astype(np.float32)
    noise = np.float32(0.5) * rng.standard_normal(2).astype(np.float32)

    arrays = synthetic(dimension=3, rank=2, noise=0.5, train_size=2, test_size=1, seed=0)

    np.testing.assert_array_equal(np.concatenate([arrays.x_train, arrays.x_test]), x)
    np.testing.assert_array_equal(arrays.y_train, x[:2, 0] * x[:2, 1] + noise)


BAD_TARGETS = [
    ({"target": "cubes"}, "target='cubes'; allowed: product, pairs, squares"),
    ({"rank": 0}, "rank=0; allowed: 1 or more"),
    ({"rank": 6, "target": "pairs"}, "rank=6; allowed: 1 to dimension=5"),
    ({"rank": 6}, "rank=6; allowed: 1 to dimension=5"),
]


@pytest.mark.parametrize(("changed", "message"), BAD_TARGETS)
def test_synthetic_refuses_bad_targets(changed, message):
    arguments = dict(dimension=5, rank=2, noise=0.0, train_size=2, test_size=2, seed=0) | changed
    with pytest.raises(ValueError, match=message):
        synthetic(**arguments)


@pytest.mark.parametrize(("changed", "message"), BAD_TARGETS)
def test_target_function_refuses_bad_targets(changed, message):
    arguments = {"target": "product", "rank": 2} | changed
    with pytest.raises(ValueError, match=message):
        target_function(**arguments)(jnp.ones(5))


def test_synthetic_with_two_seeds_is_drawn_from_both():
    draw = lambda seed: synthetic(dimension=3, rank=2, noise=0.5, train_size=4, test_size=2, seed=seed)

    arrays = draw((1, 3))

    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([1, 3])))
    x, noise = rng.standard_normal((6, 3)), rng.standard_normal(4)
    np.testing.assert_allclose(np.concatenate([arrays.x_train, arrays.x_test]), x, rtol=1e-6)
    np.testing.assert_allclose(arrays.y_train, x[:4, 0] * x[:4, 1] + 0.5 * noise, rtol=1e-5)
    assert all(not np.array_equal(draw(seed).x_train, arrays.x_train) for seed in ((1, 4), (2, 3), (3, 1)))
