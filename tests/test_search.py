"""The search on a dense matrix, in each kind of loop, against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax.losses import SquaredError
from catapult_jax.tangent.operators import Operator, of_outputs
from catapult_jax.tangent.products import LinearMap
from catapult_jax.tangent.rayleigh_ritz import empty
from catapult_jax.tangent.search import Search, Settings, add_directions, if_needed, search_from
from catapult_jax.testing import symmetric_with_spectrum

SPECTRUM = np.array([5.0, 4.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.01])


def dense_search(loop: str, above=None, tol: float = 1e-3, max_products: int = 8) -> tuple[Search, np.ndarray]:
    """A search on a matrix of that spectrum, and its eigenvectors."""
    K, vectors = symmetric_with_spectrum(SPECTRUM)
    root = jnp.asarray(vectors * np.sqrt(SPECTRUM) @ vectors.T, jnp.float32)
    K = of_outputs(LinearMap(lambda u: root @ u, lambda v: root.T @ v, lambda u: u @ u, len(K), loop))
    settings = Settings(SquaredError(), 1, 3, tol, 0.001, max_products, 0, None, loop)
    return Search(K, None, settings, above, jnp.int32(0), True, lambda largest: jnp.full_like(largest, jnp.inf)), vectors


@pytest.mark.parametrize("loop", ["compiled", "python", "unrolled"])
@pytest.mark.parametrize(("above", "tracked"), [(None, 1), (3.0, 3)])
def test_search_from_an_empty_space(loop, above, tracked):
    search, _ = dense_search(loop, above)

    state = search_from(search, empty(jnp.zeros(8), 8, 8, jnp.float32), 0.0)

    assert int(state.tracked) == tracked and not bool(state.open.any())
    np.testing.assert_allclose(state.ritz.values[:tracked], SPECTRUM[:tracked], rtol=1e-3)
    assert (np.asarray(state.ritz.above[:tracked]) >= SPECTRUM[:tracked] * (1 - 1e-5)).all()
    assert float(state.products) == 8 if loop == "unrolled" else 2 <= float(state.products) <= 8


@pytest.mark.parametrize("loop", ["compiled", "python", "unrolled"])
def test_search_from_stops_after_max_products(loop):
    search, _ = dense_search(loop, tol=1e-9, max_products=2)

    state = search_from(search, empty(jnp.zeros(8), 8, 8, jnp.float32), 1.0)

    assert bool(state.open[0]) and float(state.products) == 1 + 2


@pytest.mark.parametrize(("loop", "products"), [("compiled", 2), ("python", 2), ("unrolled", 3)])
def test_add_directions_of_eigenvectors(loop, products):
    """Two of three directions are in use."""
    search, vectors = dense_search(loop)

    space, count = add_directions(
        search, empty(jnp.zeros(8), 8, 8, jnp.float32), jnp.asarray(vectors[:, :3].T, jnp.float32), jnp.int32(2)
    )

    assert int(space.count) == 2 and float(count) == products
    overlaps = np.abs(np.asarray(space.basis)[:2] @ vectors[:, :3])
    np.testing.assert_allclose(overlaps, np.eye(2, 3), atol=1e-5)


@pytest.mark.parametrize(
    ("loop", "needed", "expected"),
    [("compiled", True, 2), ("compiled", False, 1), ("python", True, 2), ("python", False, 1), ("unrolled", False, 2)],
)
def test_if_needed_in_each_loop(loop, needed, expected):
    search, _ = dense_search(loop)

    assert float(if_needed(search, jnp.asarray(needed), jnp.float32(1), lambda have: 2 * have)) == expected


@pytest.mark.parametrize("k", [1, 2, 3])
def test_search_without_directions_bounds_several_eigenvalues(k):
    """A recursion that deflates nothing bounds none but the largest; one that begins anew bounds all."""
    spectrum = np.concatenate([[9.0, 4.0, 3.5, 2.5], np.linspace(2, 0.01, 116)])
    matrix, _ = symmetric_with_spectrum(spectrum)
    K = jnp.asarray(matrix, jnp.float32)
    identity = lambda v: v
    operator = Operator(lambda v: K @ v, identity, identity, jnp.zeros(120), 120, "compiled", True)
    settings = Settings(SquaredError(), k, k, 1e-3, 0.001, 60, 0, None, "compiled")
    search = Search(operator, None, settings, None, jnp.int32(0), True, lambda largest: jnp.full_like(largest, jnp.inf))

    state = search_from(search, empty(jnp.zeros(120), 63, 5, jnp.float32), 0.0)

    assert not bool(state.open.any()) and float(state.products) < 45
    np.testing.assert_allclose(state.ritz.values[:k], spectrum[:k], rtol=1e-3)
    assert (np.asarray(state.ritz.above[:k]) >= spectrum[:k] * (1 - 1e-5)).all()
