"""Work-arounds for XLA: convolutions in loops, the order of computations, precision, and the threads of LAPACK."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree


def loops_are_slow(apply_fn: Callable, params, x) -> bool:
    """Whether a model has convolutions and runs on the CPU: inside loops and branches XLA runs them 40 to 60 times slower there.

    Source: jax issue 12868, open for every version of JAX that is allowed (0.9.2 to 0.12); measured in ``benchmarks --only loops``.
    """
    if jax.default_backend() != "cpu":
        return False
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), (params, x[:1]))
    return "conv_general_dilated" in str(jax.make_jaxpr(apply_fn)(*shapes))


def after(done: Array, tree: PyTree) -> PyTree:
    """Identity on ``tree`` that depends on ``done``, so that XLA computes it later and reuses the buffers.

    On the CPU XLA runs independent computations at the same time, and drops ``lax.optimization_barrier`` before it schedules them. There
    the arrays are multiplied by a one that XLA can't simplify away. On other devices it is the barrier.

    Args:
      done: An array of one entry or more that must be computed first.
      tree: Arrays.

    Returns:
      ``tree``, with the same values.

    >>> after(jnp.ones(3), {"a": jnp.arange(2.0)})["a"].tolist()
    [0.0, 1.0]
    """
    if jax.default_backend() != "cpu":
        return lax.optimization_barrier((done, tree))[1]
    one = _one(done.reshape(-1)[0])
    later = lambda a: a * one.astype(a.dtype) if jnp.issubdtype(a.dtype, jnp.number) else a
    return jax.tree.map(later, tree)


@jax.custom_batching.custom_vmap
def _one(number: Array) -> Array:
    return jnp.where(number * number < -1, 0, 1)  # no square is below -1, and NaN is not either


@_one.def_vmap
def _one_for_all(size, batched, numbers):
    """Under vmap the one is not batched: it is the same for all members."""
    del size, batched
    return _one(numbers[0]), False


def at_least_float32(dtype) -> jnp.dtype:
    """The dtype of sums: ``float64`` for ``float64``, ``float32`` for every other. Works under strict dtype promotion too.

    >>> at_least_float32(jnp.bfloat16)
    dtype('float32')
    """
    return jnp.dtype(dtype) if jnp.dtype(dtype) == jnp.float64 else jnp.dtype(jnp.float32)


@functools.cache
def warn_of_lapack_threads() -> None:
    """Warns once if LAPACK may run threads of its own beside XLA's: the two slow each other down.

    LAPACK reads the variable when NumPy or SciPy is first imported, so it must be set before Python starts.
    """
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
    if jax.default_backend() == "cpu" and (os.cpu_count() or 1) > 1 and not any(os.environ.get(name) == "1" for name in names):
        warnings.warn(
            "LAPACK runs threads of its own beside XLA's, which can make eigendecompositions many times slower; set "
            "OPENBLAS_NUM_THREADS=1 before Python starts",
            stacklevel=3,
        )
