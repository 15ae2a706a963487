"""Rayleigh-Ritz in a growing space, with upper bounds on the eigenvalues of a symmetric ``K >= 0``.

It needs products with ``K`` only.

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

from catapult_jax.xla import eigh

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class Space(NamedTuple):
    """An orthonormal basis and its images. Columns from ``count`` on are zero."""

    basis: Array  # (n, m)
    images: Array  # (n, m) K times the basis
    rest: Array  # (n,) unit: the part of the last image that is orthogonal to the space
    count: Array  # number of vectors
    start: Array  # column of the random start of the Lanczos recursion; m: not yet begun
    steps: Array  # number of Lanczos steps; their columns follow the start
    alpha: Array  # (m,) diagonal of the recursion, by column
    beta: Array  # (m,) norm of the part of each image that was orthogonal to the space


class Ritz(NamedTuple):
    """Ritz pairs of a space, with their residuals and upper bounds."""

    values: Array  # (m,) largest first; zero from count on
    vectors: Array  # (n, m)
    residuals: Array  # (n, m) K v - theta v
    sizes: Array  # (m,) norms of the residuals
    above: Array  # (m + 1,) upper bound on the eigenvalue of each rank; the last: on all eigenvalues outside the space


def norm(v: Float[Array, " n"]) -> Float[Array, ""]:
    """Euclidean norm without overflow or underflow; zero for zeros.

    Args:
      v: Any vector.

    Returns:
      A scalar.

    >>> round(float(norm(jnp.array([3e30, 4e30]))) / 1e30, 4)
    5.0
    """
    size = jnp.max(jnp.abs(v))
    return size * jnp.linalg.norm(v / jnp.where(size > 0, size, 1))


def empty(n: int, m: int, dtype) -> Space:
    """A space without vectors.

    Args:
      n: Dimensions.
      m: Vectors that it has room for.
      dtype: Of the vectors.

    Returns:
      The space.

    >>> empty(5, 2, jnp.float32).basis.shape
    (5, 2)
    """
    zeros, column = jnp.zeros((n, m), dtype), jnp.zeros(m, dtype)
    return Space(zeros, zeros, jnp.zeros(n, dtype), jnp.int32(0), jnp.int32(m), jnp.int32(0), column, column)


def _beyond(space: Space, v: Array, spare: Array) -> tuple[Array, Array]:
    """Part of ``v`` that is orthogonal to the space: its unit vector and its norm.

    If that part is only rounding, the norm is a bound on the rounding, and the unit vector is that of ``spare``.
    """

    def rest_of(v):
        size = norm(v)
        v = v / jnp.where(size > 0, size, 1)
        for _ in range(2):  # after one projection, rounding leaves a part in the space
            v = v - space.basis @ (space.basis.T @ v)
        return v, size

    eps = jnp.finfo(v.dtype).eps
    (q, size), (other, _) = rest_of(v), rest_of(spare)
    fraction = norm(q)
    is_rounding = ~(fraction > 100 * eps)
    q, fraction = jnp.where(is_rounding, other, q), jnp.where(is_rounding, eps, fraction)
    length = norm(q)
    return q / jnp.where(length > 0, length, 1), size * fraction


def runs_on(space: Space) -> Array:
    """Whether the Lanczos recursion can go on, because its last step is the last column of the space.

    Args:
      space: The space.

    Returns:
      A boolean scalar.

    >>> bool(runs_on(empty(5, 2, jnp.float32)))
    False
    """
    return (space.steps > 0) & (space.start + space.steps == space.count)


@jax.jit
def next_vector(space: Space, v: Array, spare: Array, lanczos: Array) -> Array:
    """The next basis vector, orthogonal to the space.

    Args:
      space: The space.
      v: ``(n,)``, the vector to add.
      spare: ``(n,)``, taken if ``v`` is in the space.
      lanczos: Whether it is a Lanczos step. If the recursion can go on, the last image is taken instead of ``v``.

    Returns:
      ``(n,)``, unit.

    >>> next_vector(empty(2, 1, jnp.float32), jnp.array([0.0, 2.0]), jnp.ones(2), jnp.asarray(False)).tolist()
    [0.0, 1.0]
    """
    return jnp.where(lanczos & runs_on(space), space.rest, _beyond(space, v, spare)[0])


@jax.jit
def insert(space: Space, q: Array, image: Array, spare: Array, lanczos: Array) -> Space:
    """The space with one more vector and its image.

    Args:
      space: A space with room.
      q: ``(n,)``, the vector from :func:`next_vector`.
      image: ``(n,)``, ``K q``.
      spare: ``(n,)``, taken for ``rest`` if the image is in the space.
      lanczos: Whether it is a Lanczos step. If the recursion can't go on, a new one begins at ``q``.

    Returns:
      The larger space.

    >>> q, image = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.5])
    >>> space = insert(empty(2, 1, jnp.float32), q, image, jnp.ones(2), jnp.asarray(True))
    >>> space.alpha.tolist(), space.beta.tolist()
    ([3.0], [0.5])
    """
    at, goes_on = space.count, lanczos & runs_on(space)
    put = lambda matrix, column: lax.dynamic_update_index_in_dim(matrix, column, at, matrix.ndim - 1)
    begins = lanczos & ~goes_on
    space = space._replace(
        basis=put(space.basis, q),
        images=put(space.images, image),
        count=at + 1,
        start=jnp.where(begins, at, space.start),
        steps=jnp.where(begins, 1, space.steps + goes_on.astype(jnp.int32)),
        alpha=put(space.alpha, q @ image),
    )
    rest, beta = _beyond(space, image, spare)
    return space._replace(rest=rest, beta=put(space.beta, beta))


@partial(jax.jit, static_argnames="failure")
def ritz(space: Space, k: Array, failure: float) -> Ritz:
    """Ritz pairs of a space, with upper bounds on the eigenvalues.

    Args:
      space: The space.
      k: Rank of the value near which the bounds are finest.
      failure: Probability that a bound does not hold. Before the first Lanczos step the bounds are infinite.

    Returns:
      The pairs, largest first.

    Source: see the top of this file.

    >>> q, image = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.5])
    >>> space = insert(empty(2, 1, jnp.float32), q, image, jnp.ones(2), jnp.asarray(False))
    >>> pairs = ritz(space, jnp.int32(1), 0.01)
    >>> pairs.values.tolist(), pairs.sizes.tolist()
    ([3.0], [0.5])
    """
    n, m = space.basis.shape
    used = jnp.arange(m) < space.count
    projected = space.basis.T @ space.images
    scale = jnp.max(jnp.abs(projected))
    scale = jnp.where(scale > 0, scale, 1)
    # Columns without a vector get an eigenvalue below all others: K has none below zero.
    unused = jnp.where(used, 0, 2.0 * m).astype(projected.dtype)
    values, rotation = eigh((projected + projected.T) / (2 * scale) - jnp.diag(unused))
    values, rotation = jnp.maximum(values[::-1], 0) * scale, rotation[:, ::-1]
    vectors = space.basis @ rotation
    residuals = space.images @ rotation - vectors * values[None]
    sizes = jax.vmap(norm, 1)(residuals)
    unit = jnp.maximum(values[k - 1], rounding(values))
    outside = jnp.where(space.count >= n, 0, outside_bound(space, unit, failure)).astype(values.dtype)
    return Ritz(values, vectors, residuals, sizes, upper_bounds(values, sizes, used, outside))


def rounding(values: Array) -> Array:
    """Error of Ritz values by rounding: 16 eps times the largest.

    Args:
      values: Ritz values, largest first.

    Returns:
      A scalar.

    >>> float(rounding(jnp.array([2.0, 1.0]))) == 32 * 2.0**-23
    True
    """
    return 16 * jnp.finfo(values.dtype).eps * values[0]


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

    >>> float(outside_bound(empty(5, 2, jnp.float32), jnp.float32(1), 0.01))  # before the first Lanczos step
    inf
    """
    n, m = space.basis.shape
    column = jnp.arange(m)
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
    dimension = (n - space.start).astype(c.dtype)
    proved = positive & (log_p >= -log_least_component(dimension, failure)) & (space.steps > 0)
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
