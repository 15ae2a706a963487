"""Linear algebra of vectors that are pytrees. Several vectors are stacked along a first axis.

No array is reshaped: a reshape of an axis that is cut over devices would bring all of it to each device.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree


def norm(v: PyTree) -> Float[Array, ""]:
    """Euclidean norm without overflow or underflow; zero for zeros.

    Args:
      v: Any vector.

    Returns:
      A scalar.

    >>> round(float(norm(jnp.array([3e30, 4e30]))) / 1e30, 4)
    5.0
    """
    leaves = [leaf for leaf in jax.tree.leaves(v) if leaf.size]
    size = functools.reduce(jnp.maximum, (jnp.max(jnp.abs(leaf)) for leaf in leaves))
    scale = jnp.where(size > 0, size, 1)
    sizes = [jnp.sqrt(jnp.sum(jnp.square(leaf / scale))) for leaf in leaves]
    return size * (sizes[0] if len(sizes) == 1 else jnp.linalg.norm(jnp.stack(sizes)))


def random_vector(key: Array, like: PyTree, dtype) -> PyTree:
    """A normal random vector.

    Args:
      key: A JAX key.
      like: Shapes of a vector.
      dtype: Of the vector.

    Returns:
      A vector.

    >>> random_vector(jax.random.key(0), jnp.zeros(2), jnp.float32).shape
    (2,)
    """
    leaves, structure = jax.tree.flatten(like)
    keys = [key] if len(leaves) == 1 else jax.random.split(key, len(leaves))
    numbers = [jax.random.normal(key, leaf.shape, dtype) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, numbers)


def dots(vectors: PyTree, v: PyTree) -> Float[Array, " m"]:
    """Inner products of each of ``m`` vectors with ``v``.

    Args:
      vectors: ``m`` vectors.
      v: A vector.

    Returns:
      ``(m,)``.

    >>> dots(jnp.eye(2), jnp.array([3.0, 4.0])).tolist()
    [3.0, 4.0]
    """
    of_leaf = lambda a, b: jnp.tensordot(a, b, b.ndim)
    return functools.reduce(jnp.add, map(of_leaf, jax.tree.leaves(vectors), jax.tree.leaves(v)))


def combine(vectors: PyTree, coefficients: Array) -> PyTree:
    """Linear combinations of vectors.

    Args:
      vectors: ``m`` vectors.
      coefficients: ``(m,)``, or ``(m, k)`` for ``k`` combinations.

    Returns:
      A vector, or ``k`` vectors.

    >>> combine(jnp.eye(2), jnp.array([3.0, 4.0])).tolist()
    [3.0, 4.0]
    """
    return jax.tree.map(lambda v: jnp.tensordot(coefficients.T, v, 1), vectors)


def divided(v: PyTree, size: Array) -> PyTree:
    """``v / size``, or ``v`` if the size is zero.

    Args:
      v: A vector.
      size: A scalar.

    Returns:
      A vector.

    >>> divided(jnp.array([2.0]), jnp.float32(2)).tolist()
    [1.0]
    """
    return jax.tree.map(lambda leaf: leaf / jnp.where(size > 0, size, 1), v)


def where(condition: Array, new: PyTree, old: PyTree) -> PyTree:
    """``new`` if the condition holds, otherwise ``old``.

    Args:
      condition: A boolean scalar.
      new, old: Vectors.

    Returns:
      A vector.

    >>> where(jnp.asarray(True), jnp.ones(1), jnp.zeros(1)).tolist()
    [1.0]
    """
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
