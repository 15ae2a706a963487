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


@pytest.mark.long
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
            q = rr.next_vector(space, v, key, jnp.asarray(i > 0))
            space = rr.insert(space, q, K @ q, jax.random.fold_in(key, 1), yes, jnp.ones(1) * (i > 0))
            v = space.remainders[0]
        return rr.ritz(space, jnp.int32(1), failure).above[0]

    bounds = np.asarray(jax.jit(jax.vmap(bound))(jax.random.split(jax.random.key(1), samples)))

    rate = (bounds < 1 - 1e-5).mean()
    assert rate <= failure + 4 * (failure / samples) ** 0.5
    if steps == 6:
        assert np.median(bounds) <= {"one just above": 1.5}.get(name, 1.05)  # the bound is not far too large


@pytest.mark.parametrize("is_large", [False, True])
def test_ritz_sizes_are_the_norms_of_the_residuals(is_large, monkeypatch):
    """After two directions, a random start, Lanczos steps and residuals. Of large vectors they are rounded up."""
    compiled = (rr.next_vector, rr.insert, rr.ritz)
    if is_large:
        monkeypatch.setattr(rr, "LARGE_VECTOR", 0)
        [function.clear_cache() for function in compiled]
    matrix, vectors = symmetric_with_spectrum(np.geomspace(1, 1e-4, 30))
    K, keys = jnp.asarray(matrix, jnp.float32), iter(jax.random.split(jax.random.key(0), 40))
    near = [jnp.asarray(vectors[:, i] + 0.1 * vectors[:, 9 - i], jnp.float32) for i in range(2)]
    space, none, pairs = rr.empty(jnp.zeros(30), 12, 4, jnp.float32), jnp.zeros(4), None
    for kind in ("direction", "direction", "residual", "random", "lanczos", "lanczos", "residual", "residual"):
        lanczos = jnp.asarray(kind in ("random", "lanczos"))
        of_remainders = none.at[space.last].set(1) if kind == "lanczos" else none
        if kind == "residual":
            of_remainders = rr.residual(space, pairs, jnp.int32(0))
        v = near.pop() if kind == "direction" else of_remainders @ space.remainders
        q = rr.next_vector(space, v, next(keys), jnp.asarray(kind == "lanczos"))
        space = rr.insert(space, q, K @ q, next(keys), lanczos, of_remainders)
        pairs = rr.ritz(space, jnp.int32(1), 0.01)
        Q = np.asarray(rr.ritz_vectors(space, pairs, 12), np.float64)[: int(space.count)]
        residuals = np.linalg.norm(Q @ matrix - np.asarray(pairs.values)[: len(Q), None] * Q, axis=1)

        sizes = np.asarray(pairs.sizes)[: len(Q)]
        assert (np.abs(Q @ Q.T - np.eye(len(Q))) <= 1e-5).all()
        assert (sizes >= residuals - 2e-6).all() and (sizes <= residuals + (5e-3 if is_large else 2e-6)).all(), kind
    assert int(space.starts) == 3
    [function.clear_cache() for function in compiled if is_large]


def test_ritz_sizes_of_a_matrix_that_is_not_symmetric():
    """As products in half precision are."""
    matrix = symmetric_with_spectrum(np.geomspace(1, 1e-2, 20))[0]
    matrix += 0.01 * np.random.default_rng(0).standard_normal(matrix.shape)
    K, yes, space, v = (
        jnp.asarray(matrix, jnp.float32),
        jnp.asarray(True),
        rr.empty(jnp.zeros(20), 8, 1, jnp.float32),
        jnp.zeros(20),
    )
    for i, key in enumerate(jax.random.split(jax.random.key(0), 8)):
        q = rr.next_vector(space, v, key, jnp.asarray(i > 0))
        space = rr.insert(space, q, K @ q, key, yes, jnp.ones(1) * (i > 0))
        v = space.remainders[0]

    pairs = rr.ritz(space, jnp.int32(1), 0.01)

    V = np.asarray(rr.ritz_vectors(space, pairs, 8), np.float64)
    residuals = np.linalg.norm(V @ matrix.T - np.asarray(pairs.values)[:, None] * V, axis=1)
    np.testing.assert_allclose(pairs.sizes, residuals, rtol=1e-3, atol=1e-5)
    assert np.linalg.norm(space.asymmetry) > 0.01


def test_norm_neither_over_nor_underflows():
    for size in (1e-30, 1.0, 1e30):
        assert float(norm(jnp.array([3.0, 4.0]) * size)) == pytest.approx(5 * size, rel=1e-6)
    assert float(norm(jnp.zeros(3))) == 0
