"""Bounds on eigenvalues, against dense matrices in float64 and as rates over random starts."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catapult_jax.tangent import bounds
from catapult_jax.testing import symmetric_with_spectrum


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.floats(0, 1), min_size=5, max_size=9), st.integers(1, 4), st.integers(0, 100))
def test_upper_bounds_hold_for_every_rank(spectrum, m, seed):
    """For any space, from the largest eigenvalue outside of it."""
    K, _ = symmetric_with_spectrum(spectrum, seed)
    basis, outside = np.split(np.linalg.qr(np.random.default_rng(seed).standard_normal(K.shape))[0], [m], axis=1)
    values, rotation = np.linalg.eigh(basis.T @ K @ basis)
    values, vectors = values[::-1], (basis @ rotation)[:, ::-1]
    sizes = np.linalg.norm(K @ vectors - vectors * values, axis=0)
    c = np.linalg.eigvalsh(outside.T @ K @ outside)[-1]

    arguments = (jnp.asarray(a, jnp.float32) for a in (values, sizes))
    above = bounds.upper_bounds(*arguments, jnp.ones(m, bool), jnp.float32(c))

    truth = np.sort(spectrum)[::-1]

    assert (truth[: m + 1] <= np.asarray(above) + 1e-5).all()


@pytest.mark.parametrize("dimension", [1, 2, 3, 5, 40])
def test_log_least_component_is_rarely_undercut(dimension):
    failure, samples = 0.1, 20_000
    least = float(jnp.exp(bounds.log_least_component(jnp.float32(dimension), failure)))
    starts = np.random.default_rng(0).standard_normal((samples, dimension))
    first = np.abs(starts[:, 0]) / np.linalg.norm(starts, axis=1)
    rate = (first < least).mean()
    assert rate <= failure + 4 * (failure / samples) ** 0.5
    if dimension > 1:  # in one dimension the component is always one
        assert rate >= failure / 2  # the bound is not far too small
