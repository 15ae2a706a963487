"""Top eigenpairs of the loss-weighted kernel from kernel-vector products, with upper bounds on what the search has not met."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from catapult_jax.tangent.checks import (
    check_arguments,
    check_batch,
    check_directions,
    check_loss,
    check_preconditioner,
    without_derivative,
)
from catapult_jax.tangent.coupling import refuse_coupled_examples
from catapult_jax.tangent.products import LinearMap, is_traced, linear_map, loop_kind, trace
from catapult_jax.tangent.rayleigh_ritz import (
    Ritz,
    Space,
    empty,
    insert,
    next_vector,
    norm,
    ritz,
    rounding,
    runs_on,
    upper_bounds,
)
from catapult_jax.xla import UNROLLED_PRODUCTS, at_least_float32, warn_of_lapack_threads

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PyTree


class Directions(NamedTuple):
    """What one call hands to the next: the eigenvectors in the space of the parameters, which stays when the batch changes."""

    vectors: Any  # pytree like params, leading axis k_max: b^(-1/2) J^T B v, for unit eigenvectors v; any P comes later
    tracked: Int[Array, ""]  # how many of them are in use
    largest: Float[Array, ""]  # largest eigenvalue of the last call
    below: Float[Array, ""]  # upper bound on the eigenvalues below the tracked ones
    age: Int[Array, ""]  # calls that took that bound from an earlier one
    calls: Int[Array, ""]  # so far; 0: there are no vectors yet. It is the seed of the next random start


class Eigenpairs(NamedTuple):
    """What :func:`top_eigenpairs` returns. Entries from ``tracked`` on are by-products, and not held to the tolerance."""

    # Of the loss-weighted kernel, largest first; but for rounding never above the eigenvalue of that rank.
    eigenvalues: Float[Array, " k_max"]
    # The eigenvalue of that rank is at most this far above, with probability 1 - failure; infinite: not known.
    bounds: Float[Array, " k_max"]
    # ||K v - lambda v||: some eigenvalue is no further than this; infinite where it was not computed.
    residuals: Float[Array, " k_max"]
    vectors: Float[Array, "bo k_max"]  # columns, unit, example-major
    tracked: Int[Array, ""]  # eigenpairs that are held to the tolerance: k, or more where they are above the threshold
    products: Float[Array, ""]  # kernel-vector products, one vjp and one jvp each
    # The bound of every tracked eigenvalue is at most tol times it, but for rounding (16 eps times the largest).
    converged: Array
    directions: Directions  # for warm_start


def top_eigenpairs(
    apply_fn: Callable[..., Float[Array, "b *o"]],
    params: PyTree,
    batch: tuple[Array, Array],
    *,
    k: int,
    loss: str,
    preconditioner: PyTree | Callable[[], PyTree] | None = None,
    warm_start: Directions | None = None,
    tol: float = 0.01,
    failure: float = 0.001,
    max_products: int | None = None,
    reuse_bound: int = 0,
    above: float | Float[Array, ""] | None = None,
    k_max: int | None = None,
    chunk_size: int | None = None,
) -> Eigenpairs:
    r"""Top eigenpairs of the loss-weighted kernel of a batch, from kernel-vector products alone.

    ``K_L = A A^T`` with ``A = b^(-1/2) B^T J P^(-1/2)``: a product is one vjp and one jvp of the model, linearised once.
    Rayleigh-Ritz in a growing space: first the images ``A w`` of the directions of an earlier call and a few residuals, until
    these pairs are nearly right. Then a random start in what is orthogonal to them, with Lanczos steps: it shows whether a larger
    eigenvalue was missed. It ends when the bound of every tracked eigenvalue is at most ``tol`` times it, or after
    ``max_products``; ``converged`` and ``bounds`` say how far it came.

    An eigenvalue ``theta`` is a lower bound. ``theta + bound`` is an upper bound with probability ``1 - failure`` over the random
    start, whatever the kernel. Each call of a warm-started chain draws a new start; calls without ``warm_start`` all draw the same one. No number of products short of
    the size of the kernel can do without such a probability, since an eigenvector orthogonal to the whole search stays unseen.

    On an unchanged batch, with weights that move slowly, ``reuse_bound`` calls may take the bound on the eigenvalues below from the
    call before, 5 % larger each time, as long as the largest eigenvalue moves by less than 5 % a call. One eigenvalue then costs
    one to one and a half products. That it changes slowly is an assumption, and ``failure`` does not cover it.

    Args:
      apply_fn: ``apply_fn(params, x) -> (b,)`` or ``(b, o)``; must treat each example alone.
      params: parameters, floating-point leaves.
      batch: ``(x, targets)``.
      k: eigenpairs to find to the tolerance; at most ``b*o`` exist.
      loss: ``"mse"``, ``"softmax_cross_entropy"`` or ``"logistic"``.
      preconditioner: the diagonal of ``P``, a pytree like ``params``, positive; None: one. Or a function of no arguments that returns
        it: under jit it is then computed where it is read, and a loop holds its ingredients (an optimizer's state) instead.
      warm_start: ``directions`` of a call with the same ``k`` and ``k_max``, for other parameters or another batch; None: a random
        start.
      tol: relative error allowed to each tracked eigenvalue.
      failure: probability that a bound does not hold, above 0 and below 1.
      max_products: bound on the products, without those of the given directions and of the next ones (at most one and a half for
        each of ``k_max``). None: ``k + 32``; 2 where products are unrolled, see below.
      reuse_bound: calls in a row that may reuse the bound on the eigenvalues below; 0: none. For an unchanged batch only.
      above: eigenvalues above this are tracked too, up to ``k_max``, and the first one that is not: for every eigenvalue that is
        critical or near it, a fraction of ``2 / lr``. None: the first ``k`` only.
      k_max: length of what is returned; None: ``k``.
      chunk_size: examples that are linearised at a time; the linearisation is then repeated in each product, and memory does not
        grow with the batch. None: all.

    Outside of jit the search is compiled at the first call with an ``apply_fn`` and found again by the next ones (with ``chunk_size`` it is
    compiled in each call: use jit). Where XLA is
    slow in loops (convolutions on the CPU) the products are driven by Python outside of jit; under jit they are unrolled, and all
    ``max_products`` are computed: choose few.

    Units: inverse learning rate.

    Raises:
      ValueError: ``k``, ``k_max``, ``tol``, ``failure``, ``max_products``, ``reuse_bound`` or ``chunk_size`` out of range, a
        preconditioner or directions of another structure, unknown loss, shapes that don't fit.
      CoupledExamplesError: the outputs of one example depend on other examples.

    Source: see :mod:`catapult_jax.tangent.rayleigh_ritz`; the bound from one product is our rearrangement of Temple's.

    >>> linear = lambda w, x: x @ w
    >>> batch = (jnp.diag(jnp.array([1.0, 2.0, 3.0])), jnp.zeros(3))
    >>> pairs = top_eigenpairs(linear, jnp.zeros(3), batch, k=1, loss="mse", tol=1e-5)  # (2/3) diag(1, 4, 9)
    >>> round(float(pairs.eigenvalues[0]), 4), bool(pairs.converged)
    (6.0, True)
    """
    x, targets = batch = check_batch(batch)
    out = check_arguments(apply_fn, params, x)
    check_loss(out, targets, loss=loss)
    params = without_derivative("top_eigenpairs", params)
    n = math.prod(out.shape)
    k_max = k if k_max is None else k_max
    if not 1 <= k <= n:
        raise ValueError(f"k={k!r}; allowed: 1 to {n}, the number of outputs of the batch")
    if not k <= k_max <= n:
        raise ValueError(f"k_max={k_max!r}; allowed: k={k} to {n}, the number of outputs of the batch")
    if not tol > 0:
        raise ValueError(f"tol={tol!r}; allowed: above 0")
    if not 0 < failure < 1:
        raise ValueError(f"failure={failure!r}; allowed: above 0 and below 1")
    if max_products is not None and max_products < 1:
        raise ValueError(f"max_products={max_products!r}; allowed: 1 or more")
    if reuse_bound < 0:
        raise ValueError(f"reuse_bound={reuse_bound!r}; allowed: 0 or more")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size!r}; allowed: 1 or more, or None")
    make_diagonal = preconditioner if _is_function(preconditioner, params) else lambda: preconditioner
    check_preconditioner(jax.eval_shape(make_diagonal), params)
    if warm_start is not None:
        check_directions(warm_start.vectors, params, k_max)
    refuse_coupled_examples(apply_fn, params, x)
    warn_of_lapack_threads()

    arrays = (params, batch, warm_start, above)
    loop = loop_kind(apply_fn, params, x, (arrays, make_diagonal()))
    most = max_products or (UNROLLED_PRODUCTS if loop == "unrolled" else k + _MOST)
    settings = _Settings(loss, k, k_max, tol, failure, min(most, n + 1), reuse_bound, chunk_size, loop)
    if loop == "compiled" and chunk_size is None and not is_traced((arrays, make_diagonal())):
        traced, constants = trace(apply_fn, params, x)
        return _compiled(traced, settings)(constants, *arrays, make_diagonal())
    return _run(apply_fn, settings, *arrays, make_diagonal)


_MOST = 32  # products by default, beyond k
_ROUGH = 0.05  # before the random start, pairs with a larger relative residual are improved first,
_FIRST_RESIDUALS = 2  # with at most so many residuals for each pair
_GROWTH = 1.05  # a call: what a reused bound allows the eigenvalues below, and the largest one


class _Settings(NamedTuple):
    """What a program of the search is compiled for."""

    loss: str
    k: int
    k_max: int
    tol: float
    failure: float
    max_products: int
    reuse_bound: int
    chunk_size: int | None
    loop: str


class _Search(NamedTuple):
    """What stays the same during a search."""

    A: LinearMap
    settings: _Settings
    above: Any
    seed: Array  # of the random starts
    reusable: Callable  # largest Ritz value -> upper bound on the eigenvalues below, from the call before; infinite: none


class _State(NamedTuple):
    space: Space
    ritz: Ritz
    tracked: Array
    open: Array  # (k_max,) tracked, and its bound is not yet within the tolerance
    residuals: Array  # first residuals so far
    products: Array


@functools.lru_cache(maxsize=32)
def _compiled(traced, settings: _Settings):
    def run(constants, params, batch, warm_start, above, diagonal):
        return _run(traced.with_constants(constants), settings, params, batch, warm_start, above, lambda: diagonal)

    return jax.jit(run)


def _run(apply_fn, settings: _Settings, params, batch, warm_start, above, make_diagonal) -> Eigenpairs:
    with jax.default_matmul_precision("highest"):
        A = linear_map(
            apply_fn, params, batch, loss=settings.loss, preconditioner=make_diagonal,
            chunk_size=settings.chunk_size, loop=settings.loop,
        )  # fmt: skip
        dtype = at_least_float32(jax.eval_shape(apply_fn, params, batch[0]).dtype)
        warm = no_directions(params, settings.k_max, dtype) if warm_start is None else warm_start
        search = _Search(A, settings, above, warm.calls, partial(_reusable, settings, warm))
        columns = min(A.n, settings.k_max + settings.max_products)
        space = empty(A.n, columns, dtype)
        if warm_start is None:
            return _finish(search, warm, _search_from(search, space, jnp.float32(0)), 0.0)
        if settings.k_max == 1 and settings.reuse_bound:
            return _from_one_direction(search, warm, space)
        space, products = _with_directions(search, warm, space)
        return _finish(search, warm, _search_from(search, space, products), 0.5 * products)


def no_directions(params: PyTree, k_max: int, dtype) -> Directions:
    """Directions before the first call: the search begins at random."""
    zeros = jax.tree.map(lambda p: jnp.zeros((k_max, *jnp.shape(p)), jnp.result_type(p)), params)
    number = lambda value: jnp.asarray(value, dtype)
    return Directions(zeros, jnp.int32(k_max), number(0), number(jnp.inf), jnp.int32(0), jnp.int32(0))


def _reusable(settings: _Settings, warm: Directions, largest: Array) -> Array:
    if not settings.reuse_bound:
        return jnp.full_like(largest, jnp.inf)
    before = jnp.where(warm.largest > 0, warm.largest, 1)
    growth = largest / before
    slowly = (warm.largest > 0) & (growth <= _GROWTH) & (growth >= 1 / _GROWTH)
    usable = slowly & (warm.age < settings.reuse_bound) & (warm.calls > 0)
    return jnp.where(usable, _GROWTH * jnp.maximum(growth, 1) * warm.below, jnp.inf)


def _random(search: _Search, dtype, count) -> Array:
    """A random vector, another one for each call and each vector of the space."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), search.seed), count)
    return jax.random.normal(key, (search.A.n,), dtype)


def _add(search: _Search, space: Space, v: Array, lanczos) -> Space:
    """One product: one more vector in the space, with its image."""
    spare, lanczos = _random(search, v.dtype, space.count), jnp.asarray(lanczos)
    q = next_vector(space, v, spare, lanczos)
    return insert(space, q, search.A.forward(search.A.backward(q)), spare, lanczos)


def _with_directions(search: _Search, warm: Directions, space: Space) -> tuple[Space, Array]:
    """The space of the images of the directions, and the products that it took."""
    dtype = space.basis.dtype

    def add(j, space):
        u = jax.tree.map(lambda a: a[j], warm.vectors)
        return _add(search, space, search.A.forward(u).astype(dtype), False)

    count = jnp.where(warm.calls > 0, warm.tracked, 0)
    if search.A.loop == "compiled":
        return lax.fori_loop(0, count, add, space), count.astype(jnp.float32)
    steps = search.settings.k_max if search.A.loop == "unrolled" else int(count)
    for j in range(steps):
        space = _where(j < count, add(j, space), space)
    return space, jnp.float32(steps)


def _look(search: _Search, space: Space, residuals, products) -> _State:
    """Rayleigh-Ritz, and what is not yet within the tolerance."""
    settings = search.settings
    k_max = settings.k_max
    pairs = ritz(space, jnp.int32(settings.k), settings.failure)
    padded = max(0, k_max + 1 - len(pairs.values))
    if padded:  # the space can't have more vectors than the kernel has rows
        widen = lambda a: jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, padded)])
        pairs = Ritz(*map(widen, pairs[:4]), jnp.pad(pairs.above, (0, padded)))
    values = pairs.values
    known = search.reusable(values[0])
    used = jnp.arange(len(values)) < space.count
    reused = upper_bounds(values, pairs.sizes, used, jnp.where(space.steps > 0, jnp.inf, known))
    pairs = pairs._replace(above=jnp.minimum(pairs.above, reused))
    tracked = jnp.int32(settings.k)
    if search.above is not None:
        tracked = jnp.clip(1 + jnp.sum(values[:k_max] > search.above), settings.k, k_max).astype(jnp.int32)
    bounds = pairs.above[:k_max] - values[:k_max]
    within = bounds <= settings.tol * values[:k_max] + rounding(values)
    return _State(space, pairs, tracked, (jnp.arange(k_max) < tracked) & ~within, residuals, products)


def _search_from(search: _Search, space: Space, products) -> _State:
    """Adds vectors to the space until every tracked bound is within the tolerance, or ``max_products`` are spent."""
    most = search.settings.max_products
    state = _look(search, space, jnp.int32(0), jnp.asarray(products, jnp.float32))
    first, room = state.products, min(search.A.n, space.basis.shape[1])

    def going_on(state):
        left = (state.products - first < most) & (state.space.count < room)
        return left & (state.open.any() | _worth_more(search, state)) & jnp.isfinite(state.ritz.values[0])  # stop on NaN or inf

    def grow(state):
        v, lanczos, first_residual = _proposal(search, state)
        space = _add(search, state.space, v, lanczos)
        return _look(search, space, state.residuals + first_residual, state.products + 1)

    if search.A.loop == "compiled":
        return lax.while_loop(going_on, grow, state)
    if search.A.loop == "python":
        while bool(going_on(state)):
            state = grow(state)
        return state
    for _ in range(min(most, room)):
        state = _where(going_on(state), grow(state), state)
    return state._replace(products=first + min(most, room))  # all are computed, needed or not


def _proposal(search: _Search, state: _State) -> tuple[Array, Array, Array]:
    """The next vector: ``(vector, whether it is a Lanczos step, whether it is one of the first residuals)``."""
    settings, space, pairs = search.settings, state.space, state.ritz
    k_max = settings.k_max
    theta, r, c = pairs.values[:k_max], pairs.sizes[:k_max], pairs.above[1 : k_max + 1]
    ranks = jnp.arange(k_max)
    share = jnp.where(ranks < state.tracked, r / jnp.where(theta > 0, theta, 1), 0)
    room = state.residuals < _FIRST_RESIDUALS * state.tracked
    first_residual = (space.steps == 0) & (space.count > 0) & room & (share.max() > _ROUGH)

    # The open pair whose bound is worst: does it lack a bound on what is outside, a gap to that, or a smaller residual?
    over = jnp.where(state.open, (pairs.above[:k_max] - theta) / jnp.where(theta > 0, theta, 1), -1)
    worst = jnp.where(first_residual, jnp.argmax(share), jnp.argmax(over))
    outside = pairs.above[-1]
    unbounded = outside > (1 + settings.tol / 2) * pairs.values[state.tracked - 1] + rounding(pairs.values)
    gap_is_small = (theta - c < 2 * r)[worst] & (pairs.values[worst + 1] < theta[worst] - 3 * r[worst])
    lanczos = ~first_residual & (unbounded | (runs_on(space) & (gap_is_small | ~state.open.any())))
    v = jnp.where(lanczos, _random(search, theta.dtype, -1 - space.count), pairs.residuals[:, worst])
    return v, lanczos, first_residual.astype(jnp.int32)


def _worth_more(search: _Search, state: _State) -> Array:
    """Whether a few more Lanczos steps give a bound on the eigenvalues below that the next calls can reuse."""
    if not search.settings.reuse_bound:
        return jnp.asarray(False)
    growth = _GROWTH ** (search.settings.reuse_bound + 1)
    last, below, met = state.ritz.values[state.tracked - 1], state.ritz.above[state.tracked], state.ritz.values[state.tracked]
    return runs_on(state.space) & (below * growth > last) & (1.1 * met * growth < last)


def _where(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _finish(search: _Search, warm: Directions, state: _State, extra, image=None) -> Eigenpairs:
    """The result, with the directions for the next call: one vjp for each. ``image``: that of the first vector of the space."""
    k_max, pairs = search.settings.k_max, state.ritz
    vectors = pairs.vectors[:, :k_max]
    if image is None:
        images, count = _images(search, vectors, state.tracked)
    else:
        moved = state.space.count > 1
        first = jax.tree.map(lambda a: a[None], image)
        new = lambda _: jax.tree.map(lambda a: a[None], search.A.backward(vectors[:, 0]))
        images, count = _if_needed(search, moved, first, new), moved.astype(jnp.float32)
    bounds = pairs.above[:k_max] - pairs.values[:k_max] + rounding(pairs.values)
    reused = state.space.steps == 0
    directions = Directions(
        images,
        state.tracked,
        pairs.values[0],
        pairs.above[state.tracked],
        jnp.where(reused, warm.age + 1, 0).astype(jnp.int32),
        warm.calls + 1,
    )
    return Eigenpairs(
        eigenvalues=pairs.values[:k_max],
        bounds=bounds,
        residuals=pairs.sizes[:k_max],
        vectors=vectors,
        tracked=state.tracked,
        products=state.products + extra + 0.5 * jnp.asarray(count, jnp.float32),
        converged=~state.open.any() & jnp.isfinite(pairs.values[0]),
        directions=directions,
    )


def _images(search: _Search, vectors: Array, tracked: Array) -> tuple[Any, Any]:
    """``A^T v`` of the tracked vectors, zero for the others (unrolled: of all), and how many were computed."""
    A, k_max = search.A, search.settings.k_max
    if A.loop == "python":
        images = [A.backward(v) for v in vectors.T[: int(tracked)]]
        images += [jax.tree.map(jnp.zeros_like, images[0])] * (k_max - len(images))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *images), tracked
    if A.loop == "unrolled" or k_max == search.settings.k:
        return jax.vmap(A.backward)(vectors.T), k_max
    shapes = jax.eval_shape(A.backward, vectors[:, 0])
    zeros = jax.tree.map(lambda s: jnp.zeros((k_max, *s.shape), s.dtype), shapes)
    put = lambda j, images: jax.tree.map(lambda a, b: a.at[j].set(b), images, A.backward(vectors[:, j]))
    return lax.fori_loop(0, tracked, put, zeros), tracked


def _from_one_direction(search: _Search, warm: Directions, space: Space) -> Eigenpairs:
    """One product where the reused bound allows it, otherwise a search from there.

    For a unit ``w`` in the parameter space: ``mu_1 = ||A w||^2``, ``theta = ||A^T A w||^2 / mu_1``. If all eigenvalues but the largest
    are at most ``c``, then ``lambda_1 <= theta + c (theta - mu_1) / (mu_1 - c)``, since
    ``(lambda_1 - lambda) (lambda - c) <= 0`` for all others, averaged over ``w``.
    """
    A, settings, dtype = search.A, search.settings, space.basis.dtype
    u = jax.tree.map(lambda a: a[0], warm.vectors)
    v = A.forward(u).astype(dtype)
    size, spare = norm(v), _random(search, dtype, 0)
    v = jnp.where(size > 0, v / jnp.where(size > 0, size, 1), spare / norm(spare))
    image, square = A.backward(v), A.square(u)
    theta, c = A.square(image), search.reusable(A.square(image))
    mu = jnp.where(square > 0, size / jnp.sqrt(jnp.where(square > 0, square, 1)), 0) ** 2
    usable = jnp.isfinite(c) & (mu > c)
    c_safe = jnp.where(usable, c, 0)
    excess = jnp.where(usable, c_safe * jnp.maximum(theta - mu, 0) / jnp.where(usable, mu - c_safe, 1), jnp.inf)
    slack = rounding(theta[None])
    one = lambda value: jnp.asarray(value, dtype)[None]
    directions = Directions(
        jax.tree.map(lambda a: a[None], image), jnp.int32(1), theta, c, (warm.age + 1).astype(jnp.int32), warm.calls + 1
    )
    within = excess <= settings.tol * theta + slack
    pair = Eigenpairs(
        one(theta), one(excess + slack), one(jnp.inf), v[:, None], jnp.int32(1), jnp.float32(1), within, directions
    )

    def go_on(pair):
        v, image = pair.vectors[:, 0], jax.tree.map(lambda a: a[0], pair.directions.vectors)
        at_v = insert(space, v, A.forward(image).astype(dtype), _random(search, dtype, 0), jnp.asarray(False))
        return _finish(search, warm, _search_from(search, at_v, 1.0), 0.5, image)

    return _if_needed(search, ~within, pair, go_on)


def _if_needed(search: _Search, needed, have, make: Callable):
    """Return ``make(have)`` if ``needed``, else ``have``. A compiled loop rather than a branch, so that under ``vmap`` it runs only while
    some member needs it. Unrolled: always ``make(have)``."""
    if search.A.loop == "unrolled":
        return make(have)
    if search.A.loop == "python":
        return make(have) if bool(needed) else have
    return lax.while_loop(lambda carry: carry[0], lambda carry: (jnp.zeros_like(carry[0]), make(carry[1])), (needed, have))[1]


def _is_function(preconditioner, params) -> bool:
    """Whether it is a function and not a pytree like ``params`` that can be called, as some modules can."""
    is_tree = jax.tree.structure(preconditioner) == jax.tree.structure(params) and not jax.tree_util.all_leaves(
        [preconditioner]
    )
    return callable(preconditioner) and not is_tree
