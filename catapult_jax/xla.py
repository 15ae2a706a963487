"""What the compiler does not do by itself: when loops are to be avoided, and how one thing is made after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree


def loops_are_slow(apply_fn: Callable, params, x) -> bool:
    """XLA runs convolutions inside loops and branches 40 to 60 times slower on the CPU (jax issue 12868)."""
    if jax.default_backend() != "cpu":
        return False
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), (params, x[:1]))
    return "conv_general_dilated" in str(jax.make_jaxpr(apply_fn)(*shapes))


def after(done: Array, tree: PyTree) -> PyTree:
    """The floating-point arrays of ``tree`` as they are, but not before ``done`` is there: what is made of them then takes the same memory
    as what ``done`` was made of.

    On the CPU XLA works on what is independent at the same time, and drops ``lax.optimization_barrier`` before it orders the program. It does
    not see that no square is below minus one.

    >>> after(jnp.ones(3), {"a": jnp.arange(2.0)})["a"].tolist()
    [0.0, 1.0]
    """
    first = done.reshape(-1)[0]
    one = jnp.where(first * first < -1, 0, 1)
    later = lambda a: a * one.astype(a.dtype) if jnp.issubdtype(a.dtype, jnp.inexact) else a
    return jax.tree.map(later, tree)
