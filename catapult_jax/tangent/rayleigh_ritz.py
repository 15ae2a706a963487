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

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from catapult_jax.tangent.bounds import log_least_component, rounding, upper_bounds
from catapult_jax.tangent.vectors import combine, divided, dots, norm, random_vector
from catapult_jax.xla import LARGE_VECTOR, after, eigh

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree


_ROUNDING_OF_SQUARES = 1e-5  # of an inner product of millions of numbers in float32, relative to the squares of the norms


class Space(NamedTuple):
    """An orthonormal basis ``Q`` with ``K Q = Q (H + D) + R W``. Vectors from ``count`` on are not used; the matrices are zero there.

    The remainders ``R`` are the parts of the images that are orthogonal to the space. There is one for each start: a direction or a random
    vector. So they are few, and the images themselves are not kept. ``H`` is symmetric, and ``D`` is what ``K`` lacks to be so: rounding,
    which is large where a model computes in half precision.
    """

    basis: PyTree  # Q: m vectors
    remainders: PyTree  # R: p vectors, orthogonal to the basis
    projected: Array  # H: (m, m)
    asymmetry: Array  # D: (m, m), below the diagonal
    weights: Array  # W: (p, m)
    count: Array  # number of vectors
    starts: Array  # number of remainders in use
    start: Array  # number of the random start of the Lanczos recursion; m: not yet begun
    steps: Array  # number of Lanczos steps; their vectors follow the start
    last: Array  # which remainder is that of the last image
    beta: Array  # (m,) norm of the part of each image that was orthogonal to the space


class Ritz(NamedTuple):
    """Ritz pairs of a space, with their residuals and upper bounds."""

    values: Array  # (m,) largest first; zero from count on
    rotation: Array  # (m, m) column j: the basis times it is the vector of value j
    sizes: Array  # (m,) norms of the residuals
    above: Array  # (m + 1,) upper bound on the eigenvalue of each rank; the last: on all eigenvalues outside the space
    smallest: Array  # smallest value


def empty(like: PyTree, m: int, p: int, dtype) -> Space:
    """A space without vectors.

    Args:
      like: Shapes of a vector.
      m: Vectors that it has room for.
      p: Starts that it has room for.
      dtype: Of the vectors.

    Returns:
      The space.

    >>> empty(jnp.zeros(5), 3, 2, jnp.float32).basis.shape
    (3, 5)
    """
    zeros = lambda number: jax.tree.map(lambda leaf: jnp.zeros((number, *leaf.shape), dtype), like)
    matrix, none = lambda rows: jnp.zeros((rows, m), dtype), jnp.int32(0)
    return Space(zeros(m), zeros(p), matrix(m), matrix(m), matrix(p), none, none, jnp.int32(m), none, none, jnp.zeros(m, dtype))


def _beyond(space: Space, v: PyTree, key: Array, q: PyTree | None = None) -> tuple[PyTree, Array, Array, Array]:
    """Part of ``v`` that is orthogonal to the space and to a unit vector ``q`` beyond it: its unit vector, its norm, and the inner products
    of ``v`` with the basis and with ``q``.

    If that part is only rounding, the norm is a bound on the rounding, and the unit vector is that of a random vector.
    """
    zero = jnp.zeros((), space.beta.dtype)

    def rest_of(v):
        inner, along = jnp.zeros_like(space.beta), zero
        for _ in range(2):  # after one projection, rounding leaves a part in the space
            v, of_basis = _minus_basis(space, v)
            of_q = zero if q is None else _dot(q, v)
            v = v if q is None else jax.tree.map(lambda a, b, c=of_q: a - c * b, v, q)
            inner, along = inner + of_basis, along + of_q
        return v, inner, along

    size = norm(v)
    rest, inner, along = rest_of(divided(v, size))
    eps = jnp.finfo(size.dtype).eps
    fraction = norm(rest)
    is_rounding = ~(fraction > 100 * eps)
    random = lambda _: (jnp.zeros_like(is_rounding), rest_of(random_vector(key, v, size.dtype))[0])
    rest = lax.while_loop(lambda carry: carry[0], random, (is_rounding, rest))[1]  # a branch computes both sides under vmap
    size_of_rest = size * jnp.where(is_rounding, eps, fraction)
    return divided(rest, norm(rest)), size_of_rest, size * inner, size * along


def _minus_basis(space: Space, v: PyTree) -> tuple[PyTree, Array]:
    """``v`` without its part in the space, and its inner products with the basis. Large vectors that are not used are not read."""
    if dimension(space) <= LARGE_VECTOR:
        inner = jnp.where(jnp.arange(len(space.beta)) < space.count, dots(space.basis, v), 0)
        return jax.tree.map(jnp.subtract, v, combine(space.basis, inner)), inner

    def minus_one(j, carry):
        v, inner = carry
        row = jax.tree.map(lambda a: a[j], space.basis)
        along = _dot(row, v)
        return jax.tree.map(lambda a, b: a - along * b, v, row), inner.at[j].set(along)

    return lax.fori_loop(0, space.count, minus_one, (v, jnp.zeros_like(space.beta)))


def _dot(u: PyTree, v: PyTree) -> Array:
    return jnp.asarray(sum(jax.tree.leaves(jax.tree.map(jnp.vdot, u, v))))


def runs_on(space: Space) -> Array:
    """Whether the Lanczos recursion can go on, because its last step is the last vector of the space.

    Args:
      space: The space.

    Returns:
      A boolean scalar.

    >>> bool(runs_on(empty(jnp.zeros(5), 2, 1, jnp.float32)))
    False
    """
    return (space.steps > 0) & (space.start + space.steps == space.count)


@jax.jit
def next_vector(space: Space, v: PyTree, key: Array, is_beyond: Array) -> PyTree:
    """The next basis vector, orthogonal to the space.

    Args:
      space: The space.
      v: The vector to add.
      key: For a random vector, which is taken if ``v`` is zero or in the space.
      is_beyond: Whether ``v`` is a unit vector orthogonal to the space already, as the remainder of the last image is.

    Returns:
      A unit vector.

    >>> space = empty(jnp.zeros(2), 1, 1, jnp.float32)
    >>> next_vector(space, jnp.array([0.0, 2.0]), jax.random.key(0), jnp.asarray(False)).tolist()
    [0.0, 1.0]
    """
    project = lambda carry: (jnp.zeros_like(is_beyond), _beyond(space, carry[1], key)[0])
    return lax.while_loop(lambda carry: carry[0], project, (~is_beyond, v))[1]


@jax.jit
def insert(space: Space, q: PyTree, image: PyTree, key: Array, lanczos: Array, of_remainders: Array | None = None) -> Space:
    """The space with one more vector.

    Args:
      space: A space with room.
      q: The vector from :func:`next_vector`.
      image: ``K q``.
      key: For a random vector, which is taken for the remainder if the image is in the space.
      lanczos: Whether it is a Lanczos step. If the recursion can't go on, a new one begins at ``q``.
      of_remainders: ``(p,)``: ``q`` is the unit vector of this combination of the remainders. None or zeros: it is a new start.

    Returns:
      The larger space. Its basis is written last, so that XLA needs no copy of it in a loop.

    >>> q, image = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.5])
    >>> space = insert(empty(jnp.zeros(2), 1, 1, jnp.float32), q, image, jax.random.key(0), jnp.asarray(True))
    >>> space.projected.tolist(), space.remainders.tolist(), space.weights.tolist()
    ([[3.0]], [[0.0, 1.0]], [[0.5]])
    """
    at, goes_on = space.count, lanczos & runs_on(space)
    begins = lanczos & ~goes_on
    of_remainders = jnp.zeros(len(space.weights), space.beta.dtype) if of_remainders is None else of_remainders
    rest, beta, column, along_q = _beyond(space, image, key, q)
    column = column.at[at].add(along_q)

    # q takes the place of one remainder, with which the others are combined; the new remainder comes there.
    is_new = ~jnp.any(of_remainders != 0)
    largest = jnp.argmax(jnp.abs(of_remainders) * jax.vmap(norm)(space.remainders))
    place = jnp.where(is_new, space.starts, largest)
    ratios = jnp.where(is_new, 0, of_remainders / jnp.where(is_new, 1, of_remainders[largest]))
    weights = space.weights - ratios[:, None] * space.weights[largest][None]  # the row of the largest becomes zero
    put = lambda stack, v, row: jax.tree.map(lambda a, b: lax.dynamic_update_index_in_dim(a, b, row, 0), stack, v)
    of_q, is_place = dots(space.remainders, q), jnp.arange(len(weights)) == place
    # q times K times the basis comes from the remainders, the basis times K times q from the image of q.
    difference = jnp.where(jnp.arange(len(column)) < at, of_q @ space.weights - column, 0)

    def without_q(remainders, q, rest):
        column = lambda a: a.reshape(-1, *[1] * q.ndim)
        return jnp.where(column(is_place), rest[None], remainders - column(of_q) * q[None])

    return space._replace(
        basis=put(space.basis, after(jax.tree.leaves(rest)[0], q), at),
        remainders=jax.tree.map(without_q, space.remainders, q, rest),
        projected=put(space.projected, column, at).at[:, at].set(column),
        asymmetry=put(space.asymmetry, difference, at),
        weights=weights.at[place, at].set(beta),
        count=at + 1,
        starts=space.starts + is_new.astype(jnp.int32),
        start=jnp.where(begins, at, space.start),
        steps=jnp.where(begins, 1, space.steps + goes_on.astype(jnp.int32)),
        last=place.astype(jnp.int32),
        beta=put(space.beta, beta, at),
    )


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
    >>> space = insert(empty(jnp.zeros(2), 1, 1, jnp.float32), q, image, jax.random.key(0), jnp.asarray(False))
    >>> pairs = ritz(space, jnp.int32(1), 0.01)
    >>> pairs.values.tolist(), pairs.sizes.tolist()
    ([3.0], [0.5])
    """
    n, m = dimension(space), len(space.beta)
    used = jnp.arange(m) < space.count
    projected = space.projected
    scale = jnp.max(jnp.abs(projected))
    scale = jnp.where(scale > 0, scale, 1)
    # Columns without a vector get an eigenvalue below all others, which are at least -m.
    unused = jnp.where(used, 0, 2.0 * m).astype(projected.dtype)
    values, rotation = eigh(projected / scale - jnp.diag(unused))
    values, rotation = values[::-1] * scale, jnp.where(used[:, None], rotation[:, ::-1], 0)
    values = jnp.maximum(values, 0) if is_semidefinite else jnp.where(used, values, 0)
    smallest = jnp.min(jnp.where(used, values, jnp.inf))
    sizes = jnp.hypot(_residual_sizes(space, rotation), _asymmetry_of(space, rotation))
    sizes = jnp.where(space.starts > len(space.weights), jnp.inf, sizes)  # a remainder is lost
    unit = jnp.maximum(values[k - 1], rounding(values))
    outside = jnp.where(space.count >= n, 0, outside_bound(space, unit, failure)).astype(values.dtype)
    return Ritz(values, rotation, sizes, upper_bounds(values, sizes, used, outside), smallest)


def dimension(space: Space) -> int:
    """Dimension of the vectors of a space.

    Args:
      space: The space.

    Returns:
      Number of entries of a vector.

    >>> dimension(empty({"a": jnp.zeros((2, 3))}, 1, 1, jnp.float32))
    6
    """
    return sum(leaf[0].size for leaf in jax.tree.leaves(space.basis))


def _residual_sizes(space: Space, rotation: Array) -> Array:
    """Norms of all residuals. Where vectors are large, from the inner products of the remainders, with their rounding added."""
    weights = (space.weights @ rotation).T
    if dimension(space) <= LARGE_VECTOR:
        return jax.vmap(lambda weights: norm(combine(space.remainders, weights)))(weights)
    inner = jax.vmap(lambda row: dots(space.remainders, row))(space.remainders)
    scale = jnp.max(jnp.abs(weights))  # against overflow
    weights = weights / jnp.where(scale > 0, scale, 1)
    squares = jnp.sum(weights @ inner * weights, 1)
    rounded = _ROUNDING_OF_SQUARES * jnp.sum(weights**2 * jnp.diagonal(inner)[None], 1)
    return scale * jnp.sqrt(jnp.maximum(squares, 0) + rounded)


def _asymmetry_of(space: Space, rotation: Array) -> Array:
    """Norms of the parts of the residuals inside the space."""
    return jax.vmap(norm)((space.asymmetry @ rotation).T)


def ritz_vectors(space: Space, pairs: Ritz, k: int) -> PyTree:
    """The first ``k`` Ritz vectors.

    Args:
      space: The space.
      pairs: Of the space.
      k: How many.

    Returns:
      ``k`` unit vectors.

    >>> q, image = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.5])
    >>> space = insert(empty(jnp.zeros(2), 1, 1, jnp.float32), q, image, jax.random.key(0), jnp.asarray(False))
    >>> jnp.abs(ritz_vectors(space, ritz(space, jnp.int32(1), 0.01), 1)).tolist()
    [[1.0, 0.0]]
    """
    return combine(space.basis, pairs.rotation[: len(space.beta), :k])


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
    >>> space = insert(empty(jnp.zeros(2), 1, 1, jnp.float32), q, image, jax.random.key(0), jnp.asarray(True))
    >>> smaller = restrict(space, ritz(space, jnp.int32(1), 0.01), jnp.int32(1), 1, jnp.asarray(True))
    >>> int(smaller.count), int(smaller.steps)
    (1, 0)
    """
    m = len(space.beta)
    kept = jnp.arange(most) < count
    rotation = jnp.where(kept[None], pairs.rotation[:m, :most], 0)
    replaced = lambda vectors, coefficients: jax.tree.map(
        lambda all_, new: all_.at[:most].set(jnp.where(condition, new, all_[:most])), vectors, combine(vectors, coefficients)
    )
    matrix = lambda diagonal, like: jnp.zeros_like(like).at[jnp.arange(most), jnp.arange(most)].set(diagonal)
    values = {"count": count, "starts": count, "start": jnp.int32(m), "steps": jnp.int32(0), "beta": jnp.zeros_like(space.beta)}
    values |= {
        "projected": matrix(jnp.where(kept, pairs.values[:most], 0), space.projected),
        "asymmetry": matrix(_asymmetry_of(space, rotation), space.asymmetry),  # their sizes are kept
        "weights": matrix(kept.astype(space.beta.dtype), space.weights),  # the remainders are the residuals
    }
    values = {name: jnp.where(condition, value, getattr(space, name)) for name, value in values.items()}
    return space._replace(
        basis=replaced(space.basis, rotation), remainders=replaced(space.remainders, space.weights @ rotation), **values
    )


def residual(space: Space, pairs: Ritz, j: Array) -> Array:
    """The residual ``K v - theta v`` of Ritz vector ``j``, as a combination of the remainders.

    Args:
      space: The space.
      pairs: Of the space.
      j: Number of the vector.

    Returns:
      ``(p,)`` coefficients.

    >>> q, image = jnp.array([1.0, 0.0]), jnp.array([3.0, 0.5])
    >>> space = insert(empty(jnp.zeros(2), 1, 1, jnp.float32), q, image, jax.random.key(0), jnp.asarray(False))
    >>> jnp.abs(residual(space, ritz(space, jnp.int32(1), 0.01), 0)).tolist()
    [0.5]
    """
    return space.weights @ pairs.rotation[: len(space.beta), j]


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

    >>> float(outside_bound(empty(jnp.zeros(5), 2, 1, jnp.float32), jnp.float32(1), 0.01))  # before the first Lanczos step
    inf
    """
    n, column = dimension(space), jnp.arange(len(space.beta))
    inside = (column >= space.start) & (column < space.start + space.steps)
    largest = jnp.max(jnp.where(inside, jnp.maximum(space.projected.diagonal(), space.beta), 0))
    unit = jnp.where(unit > 0, unit, largest)  # if all of the recursion is zero, so is K
    alpha, beta = (a / jnp.where(unit > 0, unit, 1) for a in (space.projected.diagonal(), space.beta))
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
