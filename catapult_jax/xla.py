"""What the compiler does not do by itself: when loops are to be avoided, and how one thing is made after another."""

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
    """XLA runs convolutions inside loops and branches 40 to 60 times slower on the CPU (jax issue 12868)."""
    if jax.default_backend() != "cpu":
        return False
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), (params, x[:1]))
    return "conv_general_dilated" in str(jax.make_jaxpr(apply_fn)(*shapes))


def after(done: Array, tree: PyTree) -> PyTree:
    """The arrays of ``tree`` as they are, but not before ``done`` (of one entry or more) is there: what is made of them then takes the same
    memory as what ``done`` was made of.

    On the CPU XLA works on what is independent at the same time, and drops ``lax.optimization_barrier`` before it orders the program; there
    the arrays are multiplied by a one of which it does not see that it is one. Elsewhere it is a barrier.

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
    return jnp.where(number * number < -1, 0, 1)  # no square is, nor is one that is not a number


@_one.def_vmap
def _one_for_all(size, batched, numbers):
    """What is the same for all members stays so."""
    del size, batched
    return _one(numbers[0]), False


def at_least_float32(dtype) -> jnp.dtype:
    """``float64`` for itself, ``float32`` for any other: the precision of sums. Right under strict dtype promotion too.

    >>> at_least_float32(jnp.bfloat16)
    dtype('float32')
    """
    return jnp.dtype(dtype) if jnp.dtype(dtype) == jnp.float64 else jnp.dtype(jnp.float32)


@functools.cache
def warn_of_lapack_threads() -> None:
    """Warns once if LAPACK may run threads of its own beside XLA's, which slow each other down. The variable is read when NumPy or SciPy is
    first imported."""
    names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
    if jax.default_backend() == "cpu" and (os.cpu_count() or 1) > 1 and not any(os.environ.get(name) == "1" for name in names):
        warnings.warn(
            "LAPACK runs threads of its own beside XLA's, which can make eigendecompositions many times slower; set "
            "OPENBLAS_NUM_THREADS=1 before Python starts",
            stacklevel=3,
        )
