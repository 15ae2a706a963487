"""Bounds of Rayleigh-Ritz, against dense matrices in float64 and as rates over random starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax.tangent import rayleigh_ritz as rr
from catapult_jax.tangent.vectors import norm
from catapult_jax.testing import symmetric_with_spectrum

SPECTRA = {
    "one far above": [1.0, *np.linspace(0.3, 0, 19)],
    "one just above": [1.0, *np.linspace(0.95, 0, 19)],
    "rank one": [1.0] + [0.0] * 19,
    "equal": [1.0] * 20,
}


@pytest.mark.parametrize("steps", [1, 3, 6])
@pytest.mark.parametrize("name", SPECTRA)
def test_outside_bound_fails_as_rarely_as_it_says(name, steps):
    """The rate over random starts. The probability of failure is large, so that failures occur."""
    failure, samples = 0.2, 1000
    K = jnp.asarray(symmetric_with_spectrum(SPECTRA[name])[0], jnp.float32)

    def bound(key):
        space, yes = rr.empty(jnp.zeros(20), steps, 1, jnp.float32), jnp.asarray(True)
        v, *keys = jnp.zeros(20), *jax.random.split(key, steps)
        for i, key in enumerate(keys):
            q = rr.next_vector(space, v, key)
            space = rr.insert(space, q, K @ q, jax.random.fold_in(key, 1), yes, jnp.ones(1) * (i > 0))
            v = space.remainders[0]
        return rr.ritz(space, jnp.int32(1), failure).above[0]

    bounds = np.asarray(jax.jit(jax.vmap(bound))(jax.random.split(jax.random.key(1), samples)))

    rate = (bounds < 1 - 1e-5).mean()
    assert rate <= failure + 4 * (failure / samples) ** 0.5
    if steps == 6:
        assert np.median(bounds) <= {"one just above": 1.5}.get(name, 1.05)  # the bound is not far too large


def test_norm_neither_over_nor_underflows():
    for size in (1e-30, 1.0, 1e30):
        assert float(norm(jnp.array([3.0, 4.0]) * size)) == pytest.approx(5 * size, rel=1e-6)
    assert float(norm(jnp.zeros(3))) == 0
