"""The loss-weighted kernel as a linear map, against NumPy and a float64 Jacobian."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax import top_eigenpairs
from catapult_jax.losses import SoftmaxCrossEntropy
from catapult_jax.tangent import products
from catapult_jax.tangent.products import linear_map, loop_kind
from tests.zoo import batch_of, weighted_kernel


@pytest.mark.parametrize("shape", [(), (1,), (13,), (0,), (3, 0), (5, 7), (200, 3), (3, 3, 40, 8)])
def test_square_agrees_with_numpy(shape):
    u = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_allclose(products._square(None, [u]), np.sum(u.astype(np.float64) ** 2), rtol=1e-6)
    np.testing.assert_allclose(products._square([u**2 + 1], [u]), np.sum(u**2 / (u**2.0 + 1)), rtol=1e-5)


@pytest.mark.parametrize("loop", ["compiled", "python", "unrolled"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_linear_map_agrees_with_jacobian(loop, chunk_size):
    """``K v`` and ``||P^(-1/2) A^T v||^2 = v^T K v``, with a preconditioner, also in chunks that do not divide the batch."""
    apply_fn, params, batch = batch_of("fcn bias, ten outputs", "softmax_cross_entropy")
    rng = np.random.default_rng(0)
    preconditioner = jax.tree.map(lambda p: rng.uniform(0.5, 2, p.shape).astype(np.float32), params)
    K = weighted_kernel(apply_fn, params, batch, "softmax_cross_entropy", preconditioner)
    v = rng.standard_normal(len(K))

    A = linear_map(
        apply_fn, params, batch, loss=SoftmaxCrossEntropy(), preconditioner=lambda: preconditioner,
        chunk_size=chunk_size, loop=loop,
    )  # fmt: skip

    image = A.backward(jnp.asarray(v, jnp.float32))

    np.testing.assert_allclose(A.forward(image), K @ v, rtol=1e-4, atol=1e-5 * np.abs(K @ v).max())
    assert float(A.square(image)) == pytest.approx(v @ K @ v, rel=1e-4)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="loops are slow on the CPU only")
@pytest.mark.parametrize(
    ("name", "inside", "outside"), [("fcn", "compiled", "compiled"), ("cnn strided, average, outputs", "unrolled", "python")]
)
def test_loop_kind_inside_and_outside_of_jit(name, inside, outside):
    apply_fn, params, (x, _) = batch_of(name, "mse")
    kinds = []

    jax.eval_shape(lambda p: kinds.append(loop_kind(apply_fn, p, x, p)), params)

    kinds.append(loop_kind(apply_fn, params, x, params))

    assert kinds == [inside, outside]


def test_linear_map_in_chunks_driven_by_python_is_compiled_once():
    """Other weights find the programs of the first call."""
    apply_fn, params, batch = batch_of("cnn strided, average, outputs", "mse")
    compiled = []

    for scale in (1.0, 1.1, 1.2):
        scaled = jax.tree.map(lambda p, scale=scale: scale * p, params)
        top_eigenpairs(apply_fn, scaled, batch, k=1, loss="mse", chunk_size=2, max_products=3)
        compiled.append([run.programs._cache_size() for run in products._COMPILED])

    assert compiled[0] == compiled[1] == compiled[2] and all(compiled[0])


def test_linear_map_of_a_function_without_a_hash():
    apply_fn, params, batch = batch_of("cnn strided, average, outputs", "mse")

    class Unhashable:
        __hash__ = None

        def __call__(self, params, x):
            return apply_fn(params, x)

    search = partial(top_eigenpairs, params=params, batch=batch, k=1, loss="mse", max_products=3)

    np.testing.assert_allclose(search(Unhashable()).eigenvalues, search(apply_fn).eigenvalues, rtol=1e-6)
