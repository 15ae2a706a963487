"""The search for eigenpairs: which vector comes next into the space, and when to stop.

The loop runs in one of three ways, see :func:`catapult_jax.tangent.products.loop_kind`: ``"compiled"`` in a loop of
XLA, ``"python"`` step by step from Python, ``"unrolled"`` as a fixed number of steps, of which those that are not
needed have no effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from catapult_jax.losses import Loss
from catapult_jax.tangent.bounds import rounding, upper_bounds
from catapult_jax.tangent.operators import Operator
from catapult_jax.tangent.rayleigh_ritz import (
    Ritz,
    Space,
    insert,
    next_vector,
    residual,
    restrict,
    ritz,
    runs_on,
)
from catapult_jax.tangent.vectors import combine, where

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree

_LARGE_RESIDUAL = 0.05  # before the random start, pairs with a larger relative residual are improved first,
_FIRST_RESIDUALS = 2  # with at most so many residuals for each pair
_FEW_STEPS = 12  # Lanczos steps that a search for one eigenvalue without directions takes before it begins anew, deflated
GROWTH = 1.05  # the most, per call, by which a reused bound lets the eigenvalues below grow, and the largest one change


class Settings(NamedTuple):
    """Options of a search, as in :func:`catapult_jax.tangent.top_eigenpairs`. A program is compiled for each value."""

    loss: Loss
    k: int
    k_max: int
    tol: float
    failure: float
    max_products: int
    reuse_bound: int
    chunk_size: int | None
    loop: str  # "compiled", "python" or "unrolled"
    curvature: str = "gauss_newton"
    jvp: str = "forward"
    in_outputs: bool = True  # the search is in the space of the outputs, otherwise in that of the parameters


class Search(NamedTuple):
    """What stays the same during a search."""

    K: Operator
    params: Any  # where the directions are placed
    settings: Settings
    above: Any  # threshold of the eigenvalues that are tracked too; None: only the first k are tracked
    seed: Array  # of the random starts
    is_cold: bool  # without directions
    reusable: Callable  # largest Ritz value -> upper bound on the eigenvalues below, from the last call; inf: none
    narrowest: Any = None  # dtype of the numbers that a product goes through, by its smallest number


class State(NamedTuple):
    """State of a search after a number of products."""

    space: Space
    ritz: Ritz  # of the space
    tracked: Array  # number of pairs that are held to the tolerance
    open: Array  # (k_max,) the pair is tracked, and its bound is not yet within the tolerance
    residuals: Array  # number of first residuals so far
    products: Array  # number of products so far


def random_key(search: Search, number: Array | int) -> Array:
    """A key for a random vector.

    Args:
      search: Its seed, another one for each call.
      number: Each number gives another key.

    Returns:
      A JAX key.
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(0), search.seed), number)


def _add(search: Search, space: Space, v: PyTree, lanczos: Array, of_remainders: Array | None = None) -> Space:
    """One product: the space with one more vector, ``v``, or a random one if ``v`` is zero."""
    q = next_vector(space, v, random_key(search, space.count), lanczos & runs_on(space))
    image = jax.tree.map(lambda leaf: leaf.astype(space.beta.dtype), search.K.product(q))
    return insert(space, q, image, random_key(search, -1 - space.count), lanczos, of_remainders)


def add_directions(search: Search, space: Space, vectors: PyTree, count: Array) -> tuple[Space, Array]:
    """Add the images of directions to a space.

    Args:
      search: The search.
      space: An empty space.
      vectors: Directions in the space of the parameters, a pytree like params with a leading axis ``k_max``.
      count: How many of them to use.

    Returns:
      The space, and the number of products, which is larger than ``count`` where loops are unrolled.
    """

    def add(j, space):
        v = search.K.from_direction(jax.tree.map(lambda a: a[j], vectors))
        return _add(search, space, jax.tree.map(lambda leaf: leaf.astype(space.beta.dtype), v), jnp.asarray(False))

    if search.K.loop == "compiled":
        return lax.fori_loop(0, count, add, space), count.astype(jnp.float32)
    steps = search.settings.k_max if search.K.loop == "unrolled" else int(count)
    for j in range(steps):
        space = where(j < count, add(j, space), space)
    return space, jnp.float32(steps)


def _assess(search: Search, space: Space, residuals, products) -> State:
    """Ritz pairs of the space, and which of them are not yet within the tolerance."""
    settings = search.settings
    k_max = settings.k_max
    pairs = ritz(space, jnp.int32(settings.k), settings.failure, is_semidefinite=search.K.is_semidefinite)
    padded = max(0, k_max + 1 - len(pairs.values))
    if padded:  # the space can't have more vectors than the kernel has rows
        widen = lambda a: jnp.pad(a, [(0, padded)] * a.ndim)
        pairs = Ritz(widen(pairs.values), widen(pairs.rotation), widen(pairs.sizes), widen(pairs.above), pairs.smallest)
    values = pairs.values
    below = search.reusable(values[0])
    used = jnp.arange(len(values)) < space.count
    reused = upper_bounds(values, pairs.sizes, used, jnp.where(space.steps > 0, jnp.inf, below))
    pairs = pairs._replace(above=jnp.minimum(pairs.above, reused))
    tracked = jnp.int32(settings.k)
    if search.above is not None:
        tracked = jnp.clip(1 + jnp.sum(values[:k_max] > search.above), settings.k, k_max).astype(jnp.int32)
    bounds = pairs.above[:k_max] - values[:k_max]
    within = bounds <= settings.tol * jnp.abs(values[:k_max]) + rounding(values)
    return State(space, pairs, tracked, (jnp.arange(k_max) < tracked) & ~within, residuals, products)


def search_from(search: Search, space: Space, products: Array | float) -> State:
    """Add vectors to a space until every tracked bound is within the tolerance, or ``max_products`` are used.

    Args:
      search: The search.
      space: A space with room for more vectors.
      products: Number of products so far, which do not count for ``max_products``.

    Returns:
      The last state.
    """
    most = search.settings.max_products
    state = _assess(search, space, jnp.int32(0), jnp.asarray(products, jnp.float32))
    first, room = state.products, min(search.K.n, len(space.beta))
    # Not where the space may become the whole one, which bounds everything.
    may_begin_anew = search.K.loop != "unrolled" and search.K.n > room and (search.is_cold or search.settings.k_max > 1)

    def goes_on(state):
        left = (state.products - first < most) & (state.space.count < room)
        return (
            left & (state.open.any() | _improves_reuse(search, state)) & jnp.isfinite(state.ritz.values[0])
        )  # stop on NaN or inf

    def grow(state):
        of_remainders, lanczos, first_residual = _propose(search, state)
        v = combine(state.space.remainders, of_remainders)
        space = _add(search, state.space, v, lanczos, of_remainders)
        return _assess(search, space, state.residuals + first_residual, state.products + 1)

    if search.K.loop == "compiled" and may_begin_anew:

        def until_anew(state):
            """Begin anew, except in the first turn; then go on until this is due again."""
            anew = _begins_anew(search, state)
            runs = lambda carry: carry[0] | (goes_on(carry[1]) & ~_begins_anew(search, carry[1]))
            return lax.while_loop(
                runs, lambda carry: (jnp.zeros_like(anew), grow(carry[1])), (anew, _begin_anew(search, state, anew))
            )[1]

        return lax.while_loop(goes_on, until_anew, state)
    if search.K.loop == "compiled":
        return lax.while_loop(goes_on, grow, state)
    if search.K.loop == "python":
        while bool(goes_on(state)):
            if may_begin_anew and bool(_begins_anew(search, state)):
                state = _begin_anew(search, state, jnp.asarray(True))
            state = grow(state)
        return state
    for _ in range(min(most, room)):
        state = where(goes_on(state), grow(state), state)
    return state._replace(products=first + min(most, room))  # unrolled: all are computed, needed or not


def _propose(search: Search, state: State) -> tuple[Array, Array, Array]:
    """The next vector: ``(combination of the remainders, zeros for a random vector; whether it is a Lanczos step; 1 if it is one of the
    first residuals)``.
    """
    settings, space, pairs = search.settings, state.space, state.ritz
    k_max = settings.k_max
    theta, r, c = pairs.values[:k_max], pairs.sizes[:k_max], pairs.above[1 : k_max + 1]
    ranks = jnp.arange(k_max)
    relative = jnp.where(ranks < state.tracked, r / jnp.where(theta > 0, theta, 1), 0)
    room = state.residuals < _FIRST_RESIDUALS * state.tracked
    first_residual = (space.steps == 0) & (space.count > 0) & room & (relative.max() > _LARGE_RESIDUAL)

    # The open pair with the worst bound needs one of three: a bound on what is outside, a gap to that bound, or a
    # smaller residual.
    over = jnp.where(state.open, (pairs.above[:k_max] - theta) / jnp.where(theta > 0, theta, 1), -1)
    worst = jnp.where(first_residual, jnp.argmax(relative), jnp.argmax(over))
    outside = pairs.above[-1]
    unbounded = outside > (1 + settings.tol / 2) * pairs.values[state.tracked - 1] + rounding(pairs.values)
    gap_is_small = (theta - c < 2 * r)[worst] & (pairs.values[worst + 1] < theta[worst] - 3 * r[worst])
    goes_on, has_room = runs_on(space), space.starts < len(space.weights)
    lanczos = ~first_residual & ((unbounded & (goes_on | has_room)) | (goes_on & (gap_is_small | ~state.open.any())))
    of_last = jnp.zeros(len(space.weights), theta.dtype).at[space.last].set(1)
    of_remainders = jnp.where(lanczos, jnp.where(goes_on, of_last, 0), residual(space, pairs, worst))
    return of_remainders, lanczos, first_residual.astype(jnp.int32)


def _begins_anew(search: Search, state: State) -> Array:
    """Whether to begin again, from the tracked Ritz vectors alone.

    The recursion of a search without directions deflates nothing, so it bounds no eigenvalue below the largest one, and bounds that one
    slowly. One that was left for residuals can't go on. Once the residuals are small enough, a recursion that is deflated by these
    vectors needs few steps.
    """
    settings, space, pairs = search.settings, state.space, state.ritz
    theta, r = pairs.values[: settings.k_max], pairs.sizes[: settings.k_max]
    gap = theta - pairs.values[state.tracked]
    is_small = r**2 <= settings.tol / 4 * jnp.abs(theta) * gap
    is_ready = jnp.all(is_small | (jnp.arange(settings.k_max) >= state.tracked))
    is_slow = (space.start == 0) & ((state.tracked > 1) | (space.steps >= _FEW_STEPS))
    return (space.steps > 0) & is_ready & (is_slow | ~runs_on(space)) & state.open.any()


def _begin_anew(search: Search, state: State, condition: Array) -> State:
    """The state with the tracked Ritz vectors alone. The bounds are open until the next step, which is a random start."""
    most = min(search.settings.k_max, len(state.space.beta))
    space = restrict(state.space, state.ritz, state.tracked, most, condition)
    above = jnp.where(condition, jnp.inf, state.ritz.above)
    rotation = jnp.where(condition, jnp.eye(len(state.ritz.rotation), dtype=above.dtype), state.ritz.rotation)
    return state._replace(space=space, ritz=state.ritz._replace(above=above, rotation=rotation))


def _improves_reuse(search: Search, state: State) -> Array:
    """Whether a few more Lanczos steps give a bound on the eigenvalues below that the next calls can reuse."""
    if not search.settings.reuse_bound:
        return jnp.asarray(False)
    growth = GROWTH ** (search.settings.reuse_bound + 1)
    last, below, next_value = (
        state.ritz.values[state.tracked - 1], state.ritz.above[state.tracked], state.ritz.values[state.tracked],
    )  # fmt: skip
    return runs_on(state.space) & (below * growth > last) & (1.1 * next_value * growth < last)


def if_needed(search: Search, needed: Array, have: PyTree, make: Callable) -> PyTree:
    """Return ``make(have)`` if ``needed``, else ``have``.

    A compiled search uses a loop instead of a branch: under ``vmap`` a branch computes both sides for every member, and
    a loop runs only if a member needs it. An unrolled search always returns ``make(have)``.

    Args:
      search: Its ``K.loop`` decides how to branch.
      needed: A boolean.
      have: Arrays.
      make: A function of ``have`` that returns arrays of the same shapes.

    Returns:
      Arrays of the shapes of ``have``.
    """
    if search.K.loop == "unrolled":
        return make(have)
    if search.K.loop == "python":
        return make(have) if bool(needed) else have
    return lax.while_loop(lambda carry: carry[0], lambda carry: (jnp.zeros_like(carry[0]), make(carry[1])), (needed, have))[1]
