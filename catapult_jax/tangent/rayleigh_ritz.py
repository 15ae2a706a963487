"""Rayleigh-Ritz in a growing space, with upper bounds on the eigenvalues of a symmetric ``K``.

It needs products with ``K`` only. A vector is an array or a pytree of arrays; several are stacked along a first axis.

Three steps give an upper bound on each of the largest eigenvalues:

1. **Outside the space.** A random start is uniform on the unit sphere of what is orthogonal to the first vectors of the
   space. The Lanczos recursion of ``K``, deflated by these vectors (``C``), begins there. After ``j`` steps the next
   Lanczos vector is ``p_j(C) z``, with a polynomial ``p_j`` of the recursion, and has norm one. Take an eigenvalue
   ``c`` of ``C``, and the component ``g`` of the start along its eigenvector: ``|g| p_j(c) <= 1``. With probability
   ``1 - failure`` the component is at least ``d = failure / density``. Hence ``p_j(c) <= 1 / d``:
   :func:`outside_bound`.
2. **From the outside in.** The space is the sum of its Ritz vectors. These join the outside one after the other,
   smallest first. If no eigenvalue outside exceeds ``c``, then none in the sum with a Ritz vector (value ``theta``,
   residual norm ``r``) exceeds the larger eigenvalue of ``[[theta, r], [r, c]]``: :func:`upper_bounds`.
3. **Ranks.** ``lambda_i`` is at most the largest eigenvalue on the complement of any ``i - 1`` vectors (Courant and
   Fischer). So it is at most the bound after the ``i``-th Ritz vector has joined.

Each Ritz value is at most the eigenvalue of its rank (Cauchy). So ``bound - theta`` bounds the error.

Sources: Parlett, The Symmetric Eigenvalue Problem (1998), chapters 10 to 13. Kuczynski and Wozniakowski (1992) and van
Dorsselaer, Hochstenbach and van der Vorst (2000) for bounds from a random start.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from catapult_jax.tangent.vectors import combine, divided, dots, gram, norm, where
from catapult_jax.xla import LARGE_VECTOR, eigh

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree


class Space(NamedTuple):
    """An orthonormal basis and its images. Vectors from ``count`` on are zero."""

    basis: PyTree  # m vectors
    images: PyTree  # m vectors, K times the basis
    rest: PyTree  # unit vector: the part of the last image that is orthogonal to the space
    count: Array  # number of vectors
    start: Array  # number of the random start of the Lanczos recursion; m: not yet begun
    steps: Array  # number of Lanczos steps; their vectors follow the start
    alpha: Array  # (m,) diagonal of the recursion
    beta: Array  # (m,) norm of the part of each image that was orthogonal to the space


class Ritz(NamedTuple):
    """Ritz pairs of a space, with their residuals and upper bounds."""

    values: Array  # (m,) largest first; zero from count on
    rotation: Array  # (m, m) column j: the basis times it is the vector of value j
    sizes: Array  # (m,) norms of the residuals
    above: Array  # (m + 1,) upper bound on the eigenvalue of each rank; the last: on all eigenvalues outside the space
    smallest: Array  # smallest value


def empty(like: PyTree, m: int, dtype) -> Space:
    """A space without vectors.

    Args:
      like: Shapes of a vector.
      m: Vectors that it has room for.
      dtype: Of the vectors.

    Returns:
      The space.

    >>> empty(jnp.zeros(5), 2, jnp.float32).basis.shape
    (2, 5)
    """
    zeros = jax.tree.map(lambda leaf: jnp.zeros((m, *leaf.shape), dtype), like)
    rest, column = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), like), jnp.zeros(m, dtype)
    return Space(zeros, zeros, rest, jnp.int32(0), jnp.int32(m), jnp.int32(0), column, column)


def _beyond(space: Space, v: PyTree, spare: PyTree) -> tuple[PyTree, Array]:
    """Part of ``v`` that is orthogonal to the space: its unit vector and its norm.

    If that part is only rounding, the norm is a bound on the rounding, and the unit vector is that of ``spare``.
    """

    def rest_of(v):
        size = norm(v)
        v = divided(v, size)
        for _ in range(2):  # after one projection, rounding leaves a part in the space
            v = jax.tree.map(jnp.subtract, v, combine(space.basis, dots(space.basis, v)))
        return v, size

    eps = jnp.finfo(space.alpha.dtype).eps
    (q, size), (other, _) = rest_of(v), rest_of(spare)
    fraction = norm(q)
    is_rounding = ~(fraction > 100 * eps)
    q, fraction = where(is_rounding, other, q), jnp.where(is_rounding, eps, fraction)
    return divided(q, norm(q)), size * fraction


def runs_on(space: Space) -> Array:
    """Whether the Lanczos recursion can go on, because its last step is the last vector of the space.

    Args:
      space: The space.

    Returns:
      A boolean scalar.

    >>> bool(runs_on(empty(jnp.zeros(5), 2, jnp.float32)))
    False
    """
    return (space.steps > 0) & (space.start + space.steps == space.count)


@jax.jit
def next_vector(space: Space, v: PyTree, spare: PyTree, lanczos: Array) -> PyTree:
    """The next basis vector, orthogonal to the space.

    Args:
      space: The space.
      v: The vector to add.
      spare: A vector that is taken if ``v`` is in the space.
      lanczos: Whether it is a Lanczos step. If the recursion can go on, the last image is taken instead of ``v``.

    Returns:
      A unit vector.

    >>> next_vector(empty(jnp.zeros(2), 1, jnp.float32), jnp.array([0.0, 2.0]), jnp.ones(2), jnp.asarray(False)).tolist()
    [0.0, 1.0]
    """
    return where(lanczos & runs_on(space), space.rest, _beyond(space, v, spare)[0])


@jax.jit
def insert(space: Space, q: PyTree, image: PyTree, spare: PyTree, lanczos: Array) -> Space:
    """The space with one more vector and its image.

    Args:
      space: A space with room.
      q: The vector from :func:`next_vector`.
      image: ``K q``.
      spare: A vector that is taken for ``rest`` if the image is in the space.
      lanczos: Whether it is a Lanczos step. If the recursion can't go on, a new one begins at ``q``.

    Returns:
      The larger space.

    >>> q, image = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.5])
    >>> space = insert(empty(jnp.zeros(2), 1, jnp.float32), q, image, jnp.ones(2), jnp.asarray(True))
    >>> space.alpha.tolist(), space.beta.tolist()
    ([3.0], [0.5])
    """
    at, goes_on = space.count, lanczos & runs_on(space)
    put = lambda stack, v: jax.tree.map(lambda a, b: lax.dynamic_update_index_in_dim(a, b, at, 0), stack, v)
    begins = lanczos & ~goes_on
    space = space._replace(
        basis=put(space.basis, q),
        images=put(space.images, image),
        count=at + 1,
        start=jnp.where(begins, at, space.start),
        steps=jnp.where(begins, 1, space.steps + goes_on.astype(jnp.int32)),
        alpha=put(space.alpha, sum(jax.tree.leaves(jax.tree.map(jnp.vdot, q, image)))),
    )
    rest, beta = _beyond(space, image, spare)
    return space._replace(rest=rest, beta=put(space.beta, beta))


@partial(jax.jit, static_argnames=("failure", "is_semidefinite"))
def ritz(space: Space, k: Array, failure: float, *, is_semidefinite: bool = True) -> Ritz:
    """Ritz pairs of a space, with upper bounds on the eigenvalues.

    Args:
      space: The space.
      k: Rank of the value near which the bounds are finest.
      failure: Probability that a bound does not hold. Before the first Lanczos step the bounds are infinite.
      is_semidefinite: ``K`` has no negative eigenvalue, so that a negative value is rounding.

    Returns:
      The pairs, largest first.

    Source: see the top of this file.

    >>> q, image = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.5])
    >>> space = insert(empty(jnp.zeros(2), 1, jnp.float32), q, image, jnp.ones(2), jnp.asarray(False))
    >>> pairs = ritz(space, jnp.int32(1), 0.01)
    >>> pairs.values.tolist(), pairs.sizes.tolist()
    ([3.0], [0.5])
    """
    n, m = dimension(space), len(space.alpha)
    used = jnp.arange(m) < space.count
    projected = gram(space.basis, space.images)
    scale = jnp.max(jnp.abs(projected))
    scale = jnp.where(scale > 0, scale, 1)
    # Columns without a vector get an eigenvalue below all others, which are at least -m.
    unused = jnp.where(used, 0, 2.0 * m).astype(projected.dtype)
    values, rotation = eigh((projected + projected.T) / (2 * scale) - jnp.diag(unused))
    values, rotation = values[::-1] * scale, rotation[:, ::-1]
    values = jnp.maximum(values, 0) if is_semidefinite else jnp.where(used, values, 0)
    smallest = jnp.min(jnp.where(used, values, jnp.inf))
    sizes = _residual_sizes(space, values, rotation)
    unit = jnp.maximum(values[k - 1], rounding(values))
    outside = jnp.where(space.count >= n, 0, outside_bound(space, unit, failure)).astype(values.dtype)
    return Ritz(values, rotation, sizes, upper_bounds(values, sizes, used, outside), smallest)


def dimension(space: Space) -> int:
    """Dimension of the vectors of a space.

    Args:
      space: The space.

    Returns:
      Number of entries of a vector.

    >>> dimension(empty({"a": jnp.zeros((2, 3))}, 1, jnp.float32))
    6
    """
    return sum(leaf.size for leaf in jax.tree.leaves(space.rest))


def _residual_sizes(space: Space, values: Array, rotation: Array) -> Array:
    """Norms of all residuals ``K v - theta v``: all at once, or where vectors are large one after the other, to save memory."""
    residual = lambda at, scaled: jax.tree.map(jnp.subtract, combine(space.images, at), combine(space.basis, scaled))
    scaled = rotation * values[None]
    if dimension(space) > LARGE_VECTOR:
        return lax.map(lambda columns: norm(residual(*columns)), (rotation.T, scaled.T))
    return jax.vmap(norm)(residual(rotation, scaled))


def ritz_vectors(space: Space, pairs: Ritz, k: int) -> PyTree:
    """The first ``k`` Ritz vectors.

    Args:
      space: The space.
      pairs: Of the space.
      k: How many.

    Returns:
      ``k`` unit vectors.

    >>> q, image = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.5])
    >>> space = insert(empty(jnp.zeros(2), 1, jnp.float32), q, image, jnp.ones(2), jnp.asarray(False))
    >>> jnp.abs(ritz_vectors(space, ritz(space, jnp.int32(1), 0.01), 1)).tolist()
    [[1.0, 0.0]]
    """
    return combine(space.basis, pairs.rotation[: len(space.alpha), :k])


def restrict(space: Space, pairs: Ritz, count: Array, most: int, condition: Array) -> Space:
    """The space of the first Ritz vectors alone, without a Lanczos recursion.

    Args:
      space: The space.
      pairs: Of the space.
      count: How many vectors to keep.
      most: The largest value of ``count``.
      condition: If it is false, the space stays as it is.

    Returns:
      The smaller space, with room for as many vectors.

    >>> q, image = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.5])
    >>> space = insert(empty(jnp.zeros(2), 1, jnp.float32), q, image, jnp.ones(2), jnp.asarray(True))
    >>> smaller = restrict(space, ritz(space, jnp.int32(1), 0.01), jnp.int32(1), 1, jnp.asarray(True))
    >>> int(smaller.count), int(smaller.steps)
    (1, 0)
    """
    m = len(space.alpha)
    rotation = jnp.where(jnp.arange(most)[None] < count, pairs.rotation[:m, :most], 0)

    def kept(vectors):
        first = combine(vectors, rotation)
        remaining = jnp.where(condition, 0, 1).astype(space.alpha.dtype)
        put = lambda all_, new: (all_ * remaining).at[:most].set(jnp.where(condition, new, all_[:most]))  # in place
        return jax.tree.map(put, vectors, first)

    values = {"count": count, "start": jnp.int32(m), "steps": jnp.int32(0)}
    values |= {"alpha": jnp.zeros_like(space.alpha), "beta": jnp.zeros_like(space.beta)}
    values = {name: jnp.where(condition, value, getattr(space, name)) for name, value in values.items()}
    return space._replace(basis=kept(space.basis), images=kept(space.images), **values)


def residual_vector(space: Space, pairs: Ritz, j: Array) -> PyTree:
    """The residual ``K v - theta v`` of Ritz vector ``j``.

    Args:
      space: The space.
      pairs: Of the space.
      j: Number of the vector.

    Returns:
      A vector.

    >>> q, image = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.5])
    >>> space = insert(empty(jnp.zeros(2), 1, jnp.float32), q, image, jnp.ones(2), jnp.asarray(False))
    >>> jnp.abs(residual_vector(space, ritz(space, jnp.int32(1), 0.01), 0)).tolist()
    [0.0, 0.5]
    """
    at = pairs.rotation[: len(space.alpha), j]
    return jax.tree.map(jnp.subtract, combine(space.images, at), combine(space.basis, at * pairs.values[j]))


def rounding(values: Array) -> Array:
    """Error of Ritz values by rounding: 16 eps times the largest in size.

    Args:
      values: Ritz values, largest first.

    Returns:
      A scalar.

    >>> float(rounding(jnp.array([2.0, 1.0]))) == 32 * 2.0**-23
    True
    """
    return 16 * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))


# Multiples of a Ritz value that are tried as a bound: the smallest one that the recursion proves is the bound.
_LADDER = np.unique(
    np.concatenate([np.geomspace(0.01, 0.97, 32), 1 + np.geomspace(1e-4, 0.03, 8), [1.0], np.geomspace(1.04, 1e6, 48)])
)


def outside_bound(space: Space, unit: Array, failure: float) -> Array:
    """Upper bound on the eigenvalues of ``K`` deflated by the vectors before the random start.

    ``p_j(c) = prod_i r_i`` with ``r_i = (c - alpha_i - beta_{i-1} / r_{i-1}) / beta_i``. All ``r_i`` are positive
    exactly if ``c`` is above the largest Ritz value of the recursion.

    Args:
      space: The space, with the Lanczos recursion.
      unit: The Ritz value near which the bound is finest.
      failure: Probability that the bound does not hold.

    Returns:
      The smallest multiple of ``unit`` on a fixed ladder that the recursion proves; inf if it proves none.

    Source: Kuczynski and Wozniakowski (1992); van Dorsselaer, Hochstenbach and van der Vorst (2000).

    >>> float(outside_bound(empty(jnp.zeros(5), 2, jnp.float32), jnp.float32(1), 0.01))  # before the first Lanczos step
    inf
    """
    n, column = dimension(space), jnp.arange(len(space.alpha))
    inside = (column >= space.start) & (column < space.start + space.steps)
    largest = jnp.max(jnp.where(inside, jnp.maximum(space.alpha, space.beta), 0))
    unit = jnp.where(unit > 0, unit, largest)  # if all of the recursion is zero, so is K
    alpha, beta = (a / jnp.where(unit > 0, unit, 1) for a in (space.alpha, space.beta))
    c, beta = jnp.asarray(_LADDER, unit.dtype), jnp.maximum(beta, jnp.finfo(unit.dtype).tiny)

    def step(carry, column):
        last_ratio, last_b, log_p, positive = carry
        a, b, is_inside, is_first = column
        ratio = (c - a - jnp.where(is_first, 0, last_b) / last_ratio) / b
        positive = positive & (ratio > 0)
        ratio = jnp.where(positive, ratio, 1)
        new = (ratio, b, log_p + jnp.log(ratio), positive)
        return jax.tree.map(lambda new, old: jnp.where(is_inside, new, old), new, carry), None

    ones = jnp.ones_like(c)
    carry = (ones, jnp.ones((), c.dtype), jnp.zeros_like(c), ones > 0)
    (_, _, log_p, positive), _ = lax.scan(step, carry, (alpha, beta, inside, column == space.start))
    proved = positive & (log_p >= -log_least_component((n - space.start).astype(c.dtype), failure)) & (space.steps > 0)
    return jnp.min(jnp.where(proved, c * unit, jnp.inf))


def log_least_component(dimension: Array, failure: float) -> Array:
    """Log of ``d``: a component of a random unit vector is below ``d`` in size with probability ``failure`` at most.

    The unit vector is uniform on the sphere. The density of the size of a component is at most
    ``2 Gamma(dimension / 2) / (sqrt(pi) Gamma((dimension - 1) / 2))`` on ``[0, 1]``.

    Args:
      dimension: Of the unit vector.
      failure: Above 0 and below 1.

    Returns:
      A scalar.

    Source: the marginal density of the uniform distribution on the sphere.

    >>> round(float(log_least_component(jnp.array(3.0), 0.01)), 3)  # in three dimensions the component is uniform: d = 0.01
    -4.605
    """
    half = jnp.maximum(dimension, 1.5) / 2  # the density is not bounded in fewer than three dimensions
    log_density = math.log(2 / math.sqrt(math.pi)) + lax.lgamma(half) - lax.lgamma(half - 0.5)
    of_circle = jnp.log(jnp.sin(failure * math.pi / 2)).astype(half.dtype)
    return jnp.where(dimension <= 1, 0, jnp.where(dimension <= 2, of_circle, math.log(failure) - log_density))


def upper_bounds(values: Array, sizes: Array, used: Array, outside: Array) -> Array:
    """Bounds on the largest eigenvalue of the outside together with the Ritz vectors from each rank on.

    Args:
      values: ``(m,)`` Ritz values, largest first.
      sizes: ``(m,)`` norms of their residuals.
      used: ``(m,)`` whether the space has that vector.
      outside: Bound on the eigenvalues outside the space.

    Returns:
      ``(m + 1,)``: the bound for each rank, and ``outside``.

    Source: see the top of this file.

    >>> upper_bounds(jnp.array([3.0]), jnp.array([0.0]), jnp.array([True]), jnp.float32(2)).tolist()
    [3.0, 2.0]
    """

    def join(c, pair):
        theta, r, is_used = pair
        larger = jnp.where(jnp.isinf(c), c, (theta + c + jnp.hypot(theta - jnp.where(jnp.isinf(c), 0, c), 2 * r)) / 2)
        c = jnp.where(is_used, larger, c)
        return c, c

    _, above = lax.scan(join, outside, (values, sizes, used), reverse=True)
    return jnp.concatenate([above, outside[None]])
