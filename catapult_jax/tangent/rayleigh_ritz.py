"""Rayleigh-Ritz in a growing space, with upper bounds on the eigenvalues. It knows a symmetric ``K >= 0`` by its products alone.

Three steps give an upper bound on each of the largest eigenvalues:

1. **Outside the space.** A random start, uniform on the sphere of what is orthogonal to the first vectors of the space, is driven by
   the Lanczos recursion of ``K`` deflated by these vectors. After ``j`` steps the next Lanczos vector is ``p_j(C) z`` with a
   polynomial ``p_j`` of the recursion, and has norm one. So an eigenvalue ``c`` of ``C`` whose eigenvector has the component ``g`` in
   the start satisfies ``|g| p_j(c) <= 1``. With probability ``1 - failure`` the component is at least
   ``d = failure / density``, hence ``p_j(c) <= 1 / d``: :func:`outside_bound`.
2. **From the outside in.** The space is the sum of its Ritz vectors. One after the other, smallest first, they join what is outside:
   if nothing outside exceeds ``c``, nothing in its sum with a Ritz vector of value ``theta`` and residual norm ``r`` exceeds the
   larger eigenvalue of ``[[theta, r], [r, c]]``: :func:`upper_bounds`.
3. **Ranks.** ``lambda_i`` is at most the largest eigenvalue on the complement of any ``i - 1`` vectors (Courant and Fischer): the
   bound after the ``i``-th Ritz vector has joined.

Each Ritz value is at most the eigenvalue of its rank (Cauchy). So ``bound - theta`` bounds the error.

Sources: Parlett, The Symmetric Eigenvalue Problem (1998), chapters 10 to 13; Kuczynski and Wozniakowski (1992) and van Dorsselaer,
Hochstenbach and van der Vorst (2000) for what a random start tells of eigenvalues that were not met.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class Space(NamedTuple):
    """An orthonormal basis and its images; columns from ``count`` on are zero."""

    basis: Array  # (n, m)
    images: Array  # (n, m) K times it
    rest: Array  # (n,) unit: what the last image has beyond the space
    count: Array
    start: Array  # column of the random start of the Lanczos recursion; m: not yet begun
    steps: Array  # Lanczos steps; their columns follow the start
    alpha: Array  # (m,) diagonal of the recursion, by column
    beta: Array  # (m,) norm of what the image of a column has beyond the space


class Ritz(NamedTuple):
    """Eigenpairs of the operator within a search space (Rayleigh-Ritz), with their residuals and upper bounds."""

    values: Array  # (m,) largest first; zero from count on
    vectors: Array  # (n, m)
    residuals: Array  # (n, m) K v - theta v
    sizes: Array  # (m,) their norms
    above: Array  # (m + 1,) upper bound on the eigenvalue of each rank; the last one: on all that is outside the space


def norm(v: Float[Array, " n"]) -> Float[Array, ""]:
    """Euclidean norm without overflow or underflow; zero for zeros."""
    size = jnp.max(jnp.abs(v))
    return size * jnp.linalg.norm(v / jnp.where(size > 0, size, 1))


def empty(n: int, m: int, dtype) -> Space:
    """A space of ``n`` dimensions with room for ``m`` vectors."""
    zeros, column = jnp.zeros((n, m), dtype), jnp.zeros(m, dtype)
    return Space(zeros, zeros, jnp.zeros(n, dtype), jnp.int32(0), jnp.int32(m), jnp.int32(0), column, column)


def beyond(space: Space, v: Array, spare: Array) -> tuple[Array, Array]:
    """``(q, size)``: the unit vector of what ``v`` has beyond the space, and its norm. Where that is rounding alone, ``size`` is
    its bound and ``q`` what ``spare`` has beyond."""

    def rest_of(v):
        size = norm(v)
        v = v / jnp.where(size > 0, size, 1)
        for _ in range(2):  # one projection leaves rounding in the space
            v = v - space.basis @ (space.basis.T @ v)
        return v, size

    eps = jnp.finfo(v.dtype).eps
    (q, size), (other, _) = rest_of(v), rest_of(spare)
    share = norm(q)
    lost = ~(share > 100 * eps)
    q, share = jnp.where(lost, other, q), jnp.where(lost, eps, share)
    length = norm(q)
    return q / jnp.where(length > 0, length, 1), size * share


def runs_on(space: Space) -> Array:
    """Whether the Lanczos recursion can go on: the last column of the space is its last step."""
    return (space.steps > 0) & (space.start + space.steps == space.count)


@jax.jit
def next_vector(space: Space, v: Array, spare: Array, lanczos: Array) -> Array:
    """The next basis vector: what ``v`` has beyond the space; in a Lanczos step that goes on, what the last image has beyond it."""
    return jnp.where(lanczos & runs_on(space), space.rest, beyond(space, v, spare)[0])


@jax.jit
def insert(space: Space, q: Array, image: Array, spare: Array, lanczos: Array) -> Space:
    """The space with one more vector and its image. A Lanczos step that does not go on begins a new recursion at ``q``."""
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
    rest, beta = beyond(space, image, spare)
    return space._replace(rest=rest, beta=put(space.beta, beta))


@partial(jax.jit, static_argnames="failure")
def ritz(space: Space, k: Array, failure: float) -> Ritz:
    """Ritz pairs of the space with upper bounds, finest near the ``k``-th value. The bounds hold with probability ``1 - failure``; they
    are infinite before the first Lanczos step."""
    n, m = space.basis.shape
    used = jnp.arange(m) < space.count
    projected = space.basis.T @ space.images
    scale = jnp.max(jnp.abs(projected))
    scale = jnp.where(scale > 0, scale, 1)
    # Columns that are not in use get an eigenvalue below all others: K has none below zero.
    unused = jnp.where(used, 0, 2.0 * m).astype(projected.dtype)
    values, rotation = jnp.linalg.eigh((projected + projected.T) / (2 * scale) - jnp.diag(unused))
    values, rotation = jnp.maximum(values[::-1], 0) * scale, rotation[:, ::-1]
    vectors = space.basis @ rotation
    residuals = space.images @ rotation - vectors * values[None]
    sizes = jax.vmap(norm, 1)(residuals)
    unit = jnp.maximum(values[k - 1], rounding(values))
    outside = jnp.where(space.count >= n, 0, outside_bound(space, unit, failure)).astype(values.dtype)
    return Ritz(values, vectors, residuals, sizes, upper_bounds(values, sizes, used, outside))


def rounding(values: Array) -> Array:
    """Error of a Ritz value that rounding alone makes: 16 eps times the largest."""
    return 16 * jnp.finfo(values.dtype).eps * values[0]


# Multiples of the value in question at which a bound is looked for: it is the smallest that the recursion proves.
_LADDER = np.unique(
    np.concatenate([np.geomspace(0.01, 0.97, 32), 1 + np.geomspace(1e-4, 0.03, 8), [1.0], np.geomspace(1.04, 1e6, 48)])
)


def outside_bound(space: Space, unit: Array, failure: float) -> Array:
    """Upper bound on the eigenvalues outside the vectors before the random start, with probability ``1 - failure``: the smallest
    multiple of ``unit`` on a fixed ladder that the recursion proves; infinite where it proves none.

    ``p_j(c) = prod_i r_i`` with ``r_i = (c - alpha_i - beta_{i-1} / r_{i-1}) / beta_i``; all ``r_i`` are positive exactly where ``c`` is
    above the largest Ritz value of the recursion.
    """
    n, m = space.basis.shape
    column = jnp.arange(m)
    inside = (column >= space.start) & (column < space.start + space.steps)
    found = jnp.max(jnp.where(inside, jnp.maximum(space.alpha, space.beta), 0))
    unit = jnp.where(unit > 0, unit, found)  # where all that was met is zero, so is K
    alpha, beta = (a / jnp.where(unit > 0, unit, 1) for a in (space.alpha, space.beta))
    c, beta = jnp.asarray(_LADDER, unit.dtype), jnp.maximum(beta, jnp.finfo(unit.dtype).tiny)

    def step(carry, column):
        ratio, before, log_p, positive = carry
        a, b, is_inside, is_first = column
        ratio_now = (c - a - jnp.where(is_first, 0, before) / ratio) / b
        good = positive & (ratio_now > 0)
        ratio_now = jnp.where(good, ratio_now, 1)
        new = (ratio_now, b, log_p + jnp.log(ratio_now), good)
        return jax.tree.map(lambda new, old: jnp.where(is_inside, new, old), new, carry), None

    ones = jnp.ones_like(c)
    carry = (ones, jnp.ones((), c.dtype), jnp.zeros_like(c), ones > 0)
    (_, _, log_p, positive), _ = lax.scan(step, carry, (alpha, beta, inside, column == space.start))
    dimension = (n - space.start).astype(c.dtype)
    proved = positive & (log_p >= -log_least_component(dimension, failure)) & (space.steps > 0)
    return jnp.min(jnp.where(proved, c * unit, jnp.inf))


def log_least_component(dimension: Array, failure: float) -> Array:
    """Log of ``d``: a fixed component of a uniform unit vector of that dimension is below ``d`` in size with probability ``failure`` at
    most. Its density is at most ``2 Gamma(dimension / 2) / (sqrt(pi) Gamma((dimension - 1) / 2))`` on ``[0, 1]``.

    >>> round(float(log_least_component(jnp.array(3.0), 0.01)), 3)  # of three dimensions it is uniform: d = 0.01
    -4.605
    """
    half = jnp.maximum(dimension, 1.5) / 2  # below three dimensions the density is not bounded
    log_density = math.log(2 / math.sqrt(math.pi)) + lax.lgamma(half) - lax.lgamma(half - 0.5)
    of_circle = jnp.log(jnp.sin(failure * math.pi / 2)).astype(half.dtype)
    return jnp.where(dimension <= 1, 0, jnp.where(dimension <= 2, of_circle, math.log(failure) - log_density))


def upper_bounds(values: Array, sizes: Array, used: Array, outside: Array) -> Array:
    """``(m + 1,)`` bounds on the largest eigenvalue of what is outside and the Ritz vectors from each rank on."""

    def join(c, pair):
        theta, r, is_used = pair
        larger = jnp.where(jnp.isinf(c), c, (theta + c + jnp.hypot(theta - jnp.where(jnp.isinf(c), 0, c), 2 * r)) / 2)
        c = jnp.where(is_used, larger, c)
        return c, c

    _, above = lax.scan(join, outside, (values, sizes, used), reverse=True)
    return jnp.concatenate([above, outside[None]])
