"""The loss-weighted kernel as a linear map, against NumPy and a float64 Jacobian."""

from functools import partial

import jax
import numpy as np
import pytest

from catapult_jax import top_eigenpairs
from catapult_jax.tangent import products
from tests.zoo import batch_of


@pytest.mark.parametrize("shape", [(), (1,), (13,), (0,), (3, 0), (5, 7), (200, 3), (3, 3, 40, 8)])
def test_square_agrees_with_numpy(shape):
    u = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_allclose(products._square(None, [u]), np.sum(u.astype(np.float64) ** 2), rtol=1e-6)
    np.testing.assert_allclose(products._square([u**2 + 1], [u]), np.sum(u**2 / (u**2.0 + 1)), rtol=1e-5)


def test_linear_map_in_chunks_driven_by_python_is_compiled_once():
    """Convolutions in chunks are driven by Python: other weights find the programs of the first call."""
    apply_fn, params, batch = batch_of("cnn strided, average, outputs", "mse")
    compiled = []
    for scale in (1.0, 1.1, 1.2):
        scaled = jax.tree.map(lambda p, scale=scale: scale * p, params)
        top_eigenpairs(apply_fn, scaled, batch, k=1, loss="mse", chunk_size=2, max_products=3)
        compiled.append([program._cache_size() for program in products._COMPILED])
    assert compiled[0] == compiled[1] == compiled[2]


def test_linear_map_of_a_function_without_a_hash():
    apply_fn, params, batch = batch_of("cnn strided, average, outputs", "mse")

    class Unhashable:
        __hash__ = None

        def __call__(self, params, x):
            return apply_fn(params, x)

    search = partial(top_eigenpairs, params=params, batch=batch, k=1, loss="mse", max_products=3)
    np.testing.assert_allclose(search(Unhashable()).eigenvalues, search(apply_fn).eigenvalues, rtol=1e-6)
