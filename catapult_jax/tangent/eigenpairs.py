"""Top eigenpairs of the loss-weighted kernel from kernel-vector products, with upper bounds on the eigenvalues."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from catapult_jax.losses import FunctionLoss, Loss, as_loss
from catapult_jax.tangent.bounds import rounding
from catapult_jax.tangent.checks import (
    check_arguments,
    check_batch,
    check_directions,
    check_loss,
    check_preconditioner,
    check_search,
    check_warm_start,
    refuse_checked_shard_map,
    without_derivative,
)
from catapult_jax.tangent.coupling import refuse_coupled_examples
from catapult_jax.tangent.inverse_map import InverseMap
from catapult_jax.tangent.operators import CURVATURES, of_outputs, of_parameters, traced_loss
from catapult_jax.tangent.placement import explicit_mesh, names_shardings, placed_by_compiler, stacked_like, with_explicit_axes
from catapult_jax.tangent.products import JVPS, LinearMap, is_traced, linear_map, loop_kind, trace
from catapult_jax.tangent.rayleigh_ritz import Space, empty, insert, ritz_vectors
from catapult_jax.tangent.search import (
    GROWTH,
    Search,
    Settings,
    State,
    add_directions,
    if_needed,
    random_key,
    search_from,
)
from catapult_jax.tangent.vectors import norm, random_vector
from catapult_jax.xla import (
    LARGE_VECTOR,
    SPACE_NUMBERS,
    UNROLLED_PRODUCTS,
    at_least_float32,
    placed_like,
    warn_of_lapack_threads,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PyTree


_SPARE_STARTS = 1  # random starts in a space, beyond one for each pair that may become tracked
_EXTRA_PRODUCTS = 32  # products by default, beyond k
_LEAST_PRODUCTS = 8  # by default, however large the vectors


class Directions(NamedTuple):
    """What one call hands to the next: eigenvectors in the space of the parameters, which stays the same for another batch.

    ``b`` is the number of examples, ``J`` the Jacobian of the outputs, ``B`` the factor of the loss Hessian, ``P`` the preconditioner.
    """

    vectors: (
        Any  # pytree like params, leading axis k_max: b^(-1/2) J^T B v for unit eigenvectors v; the next call divides by its P
    )
    tracked: Int[Array, ""]  # number of vectors in use, once ``calls`` is above 0
    largest: Float[Array, ""]  # largest eigenvalue of the last call
    below: Float[Array, ""]  # upper bound on the eigenvalues below the tracked ones
    age: Int[Array, ""]  # number of calls in a row that reused this bound
    calls: Int[Array, ""]  # number of calls so far, the seed of the next random start; 0: there are no vectors yet


class Eigenpairs(NamedTuple):
    """Result of :func:`top_eigenpairs`. Entries from ``tracked`` on are by-products that need not be within the tolerance."""

    # Of the loss-weighted kernel, largest first. Up to rounding, none is above the true eigenvalue of its rank.
    eigenvalues: Float[Array, " k_max"]
    # The true eigenvalue of that rank is at most this far above, with probability 1 - failure; inf: no bound.
    bounds: Float[Array, " k_max"]
    # ||K v - lambda v||: a true eigenvalue is at most this far away; inf: not computed.
    residuals: Float[Array, " k_max"]
    # The smallest Ritz value, at least the smallest eigenvalue. Below zero, the curvature has a direction of negative curvature.
    smallest: Float[Array, ""]
    # Of the kernel: columns, unit, example-major. None where the search runs in the space of the parameters: there the vectors of
    # ``directions`` are the eigenvectors, times P^(1/2).
    vectors: Float[Array, "bo k_max"] | None
    tracked: Int[Array, ""]  # eigenpairs that are held to the tolerance: k, or more if more are above the threshold
    products: Float[Array, ""]  # kernel-vector products, one vjp and one jvp each
    # The bound of every tracked eigenvalue is at most tol times it, up to rounding (16 eps times the largest).
    converged: Array
    directions: Directions  # for warm_start


def top_eigenpairs(
    apply_fn: Callable[..., Float[Array, "b *o"]],
    params: PyTree,
    batch: tuple[PyTree, PyTree],
    *,
    k: int,
    loss: str | Loss | Callable,
    curvature: str = "gauss_newton",
    preconditioner: PyTree | Callable[[], PyTree] | None = None,
    warm_start: Directions | None = None,
    tol: float = 0.01,
    failure: float = 0.001,
    max_products: int | None = None,
    reuse_bound: int = 0,
    above: float | Float[Array, ""] | None = None,
    k_max: int | None = None,
    chunk_size: int | None = None,
    jvp: str = "forward",
) -> Eigenpairs:
    r"""Top eigenpairs of the loss-weighted kernel of a batch, or of the Hessian, from products only.

    ``K_L = A A^T`` with ``A = B^T J P^(-1/2)``. Its non-zero eigenvalues are those of ``A^T A``, the (preconditioned)
    Gauss-Newton matrix, and the largest one is its (preconditioned) sharpness. A product is one vjp and one jvp of the
    model, which is linearised once. The examples may be coupled, as by BatchNorm in training mode.

    A loss that is a function, and the Hessian, have no factor ``B``. The search is then in the space of the parameters,
    for ``P^(-1/2) J^T S J P^(-1/2)`` with products ``S u`` by a jvp of the gradient, or for the Hessian in place of
    ``J^T S J``. So it is where the batch has more outputs than the model has parameters, and more than a million, and
    where a model on a mesh with explicit axes names shardings.

    The method is Rayleigh-Ritz in a growing space. First come the images ``A w`` of the directions of the last call,
    and a few residuals until these pairs are nearly right. Then comes a random start, orthogonal to them, with Lanczos
    steps: it shows whether a larger eigenvalue was missed. The search ends when the bound of every tracked eigenvalue
    is at most ``tol`` times it, or after ``max_products``. ``converged`` and ``bounds`` tell how far it came.

    An eigenvalue ``theta`` is a lower bound. ``theta + bound`` is an upper bound with probability ``1 - failure`` over
    the random start, for any kernel. Such a probability is necessary: with fewer products than the kernel has rows, the
    whole search may be orthogonal to an eigenvector. Each call of a warm-started chain draws a new start. All calls
    without ``warm_start`` draw the same one.

    If the batch stays the same and the weights move slowly, ``reuse_bound`` calls in a row may reuse the last bound on
    the eigenvalues below. They enlarge it by 5 % each time, and only if the largest eigenvalue changes by less than 5 %
    per call. One eigenvalue then costs one to one and a half products. That the eigenvalues below change slowly is an
    assumption, which ``failure`` does not cover.

    Args:
      apply_fn: ``apply_fn(params, x) -> (b, ...)``.
      params: Parameters; floating-point leaves.
      batch: ``(x, targets)``; both may be pytrees.
      k: Eigenpairs to find to the tolerance; at most ``b*o`` exist.
      loss: A name, an object of :mod:`catapult_jax.losses`, or a function ``loss(outputs, targets) -> scalar``.
      curvature: ``"gauss_newton"``, or ``"hessian"`` for the Hessian of the loss in the parameters.
      preconditioner: The diagonal of ``P``, positive, a pytree like ``params``; None: ones; or an
        :class:`catapult_jax.InverseMap`, where ``P`` is no diagonal. Or a function of no arguments that returns it. Under jit it is then computed where it is used, so a loop holds the optimizer's state
        and no array beside it.
      warm_start: ``directions`` of a call with the same ``k`` and ``k_max``, for other parameters or another batch.
        None: a random start.
      tol: Relative error allowed to each tracked eigenvalue.
      failure: Probability that a bound does not hold, above 0 and below 1.
      max_products: Limit on the products. It does not count those of the given directions and of the next ones, which
        are at most one and a half for each of ``k_max``. None: ``k + 32``, or 2 where products are unrolled, see below,
        or fewer where vectors are so large that the space would hold more than 2^27 numbers.
      reuse_bound: Calls in a row that may reuse the bound on the eigenvalues below; 0: none. Use it only if the batch
        stays the same.
      above: Eigenvalues above this are tracked too, and the first one that is not above it, up to ``k_max``. A fraction
        of ``2 / lr`` gives all eigenvalues that are critical or nearly so. None: only the first ``k``.
      k_max: Length of the result; None: ``k``.
      chunk_size: Examples that are linearised at a time. Each product then linearises them again, and memory does not
        grow with the batch. None: all. It needs a model that treats each example alone, and a loss that is no function.
      jvp: ``"forward"``: forward mode. ``"transpose"``: the transpose of the vjp, for models with a ``custom_vjp``, which
        have no forward mode. Their vjp must be made of operations that JAX can transpose.
        Only for ``"gauss_newton"``: a ``custom_vjp`` need not be a derivative, so the Hessian need not be symmetric.

    Outside of jit, the first call with an ``apply_fn`` compiles the search and later calls find it. With ``chunk_size``
    each call compiles it, so use jit there. Where XLA is slow in loops (convolutions on the CPU), Python drives the
    products outside of jit. Under jit they are unrolled there: all ``max_products`` are computed, so choose few.

    Returns:
      Eigenvalues with bounds, eigenvectors, and the directions for the next call. Units of eigenvalues: inverse
      learning rate.

    Raises:
      ValueError: ``k``, ``k_max``, ``tol``, ``failure``, ``max_products``, ``reuse_bound`` or ``chunk_size`` out of
        range; a preconditioner or directions of another structure; unknown loss; shapes that do not fit.
      CoupledExamplesError: ``chunk_size`` with a model that couples the examples of a batch.

    Source: see :mod:`catapult_jax.tangent.rayleigh_ritz`. The bound from one product is our rearrangement of Temple's.

    >>> linear = lambda w, x: x @ w
    >>> batch = (jnp.diag(jnp.array([1.0, 2.0, 3.0])), jnp.zeros(3))
    >>> pairs = top_eigenpairs(linear, jnp.zeros(3), batch, k=1, loss="mse", tol=1e-5)  # (2/3) diag(1, 4, 9)
    >>> round(float(pairs.eigenvalues[0]), 4), bool(pairs.converged)
    (6.0, True)
    """
    x, targets = check_batch(batch)
    refuse_checked_shard_map(params, x)
    out = check_arguments(apply_fn, params, x)
    loss = as_loss(loss)
    check_loss(out, targets, loss=loss)
    params = without_derivative("top_eigenpairs", params)
    if curvature not in CURVATURES:
        raise ValueError(f"curvature={curvature!r}; allowed: {', '.join(CURVATURES)}")
    if jvp not in JVPS:
        raise ValueError(f"jvp={jvp!r}; allowed: {', '.join(JVPS)}")
    if jvp == "transpose" and curvature == "hessian":  # a custom_vjp need not be a derivative: its Hessian may not be symmetric
        raise ValueError(f"jvp={jvp!r} with curvature={curvature!r}; allowed: curvature='gauss_newton'")
    make_diagonal = _as_function(preconditioner, params)
    check_preconditioner(jax.eval_shape(make_diagonal), params)
    size = sum(jnp.size(leaf) for leaf in jax.tree.leaves(params))
    n = math.prod(out.shape)
    in_outputs = curvature == "gauss_newton" and loss.has_factor and (n <= LARGE_VECTOR or n <= size)
    # Outputs of such a model are cut on a mesh; vectors of a search are on none.
    in_outputs = in_outputs and not names_shardings(apply_fn, params, x)
    if not in_outputs and isinstance(jax.eval_shape(make_diagonal), InverseMap):
        raise ValueError(
            "preconditioner is an InverseMap; allowed: curvature='gauss_newton' with a loss that is no function, since only J P^(-1) J^T needs "
            "no root of P"
        )
    n = n if in_outputs else size
    k_max = k if k_max is None else k_max
    check_search(n, k, k_max, above, tol, failure, max_products, reuse_bound, chunk_size)
    if warm_start is not None:
        check_warm_start(warm_start)
        check_directions(warm_start.vectors, params, k_max)
    if isinstance(loss, FunctionLoss):
        if chunk_size is not None:
            raise ValueError(
                f"chunk_size={chunk_size!r} with a loss that is a function; allowed: None, or a loss that is a mean"
            )
        loss, targets = traced_loss(loss, out, targets)
    if chunk_size is not None:
        refuse_coupled_examples(apply_fn, params, x)
    warn_of_lapack_threads()

    arrays = (params, (x, targets), warm_start, above)
    diagonal = make_diagonal()
    loop = loop_kind(apply_fn, params, x, (arrays, diagonal))
    by_default = UNROLLED_PRODUCTS if loop == "unrolled" else min(k + _EXTRA_PRODUCTS, max(_LEAST_PRODUCTS, SPACE_NUMBERS // n))
    most = min(max_products or by_default, n + 1)
    settings = Settings(loss, k, k_max, tol, failure, most, reuse_bound, chunk_size, loop, curvature, jvp, in_outputs)
    on_explicit_mesh = explicit_mesh((arrays, diagonal)) is not None
    if loop == "compiled" and chunk_size is None and not on_explicit_mesh and not is_traced((arrays, diagonal)):
        traced, constants = trace(apply_fn, params, x)
        return _compile(traced, settings)(constants, *arrays, diagonal)
    if not on_explicit_mesh:
        return _search(apply_fn, settings, *arrays, make_diagonal)
    model = with_explicit_axes(apply_fn, params, x)
    run = lambda params, batch, warm_start, above, diagonal: _search(
        model, settings, params, batch, warm_start, above, lambda: diagonal
    )
    return _placed(run, *arrays, diagonal)


def _placed(search: Callable, params, *arrays) -> Eigenpairs:
    """A search on a mesh with explicit axes. The directions are placed as the parameters."""
    nowhere = lambda tree: jax.tree.map(lambda _: None, tree)

    def like(result: Eigenpairs) -> Eigenpairs:
        wanted = nowhere(result)
        return wanted._replace(directions=wanted.directions._replace(vectors=stacked_like(params)))

    return placed_by_compiler(search, params, *arrays, like=like)


def _as_function(preconditioner, params) -> Callable[[], Any]:
    """A function that returns the diagonal. A pytree like ``params`` may be callable too, as some modules are."""
    is_tree = jax.tree.structure(preconditioner) == jax.tree.structure(params) and not jax.tree_util.all_leaves(
        [preconditioner]
    )
    if callable(preconditioner) and not is_tree and not isinstance(preconditioner, InverseMap):
        return preconditioner
    return lambda: preconditioner


@functools.lru_cache(maxsize=32)
def _compile(traced, settings: Settings):
    def search(constants, params, batch, warm_start, above, diagonal):
        return _search(traced.with_constants(constants), settings, params, batch, warm_start, above, lambda: diagonal)

    return jax.jit(search)


def _search(apply_fn, settings: Settings, params, batch, warm_start, above, make_diagonal) -> Eigenpairs:
    with jax.default_matmul_precision("highest"):
        options = {
            "loss": settings.loss, "preconditioner": make_diagonal, "chunk_size": settings.chunk_size, "loop": settings.loop, "jvp": settings.jvp,
        }  # fmt: skip
        out = jax.eval_shape(apply_fn, params, batch[0])
        A = linear_map(apply_fn, params, batch, **options) if settings.in_outputs else None
        K = of_parameters(apply_fn, params, batch, curvature=settings.curvature, **options) if A is None else of_outputs(A)
        dtype = at_least_float32(out.dtype)
        warm = no_directions(params, settings.k_max, dtype) if warm_start is None else warm_start
        half = jnp.dtype(jnp.float16)
        narrowest = half if half in (out.dtype, *map(jnp.result_type, jax.tree.leaves(params))) else dtype
        search = Search(
            K, params, settings, above, warm.calls, warm_start is None, partial(_reusable_bound, settings, warm), narrowest
        )
        room = min(K.n, settings.k_max + settings.max_products)
        space = empty(K.like, room, min(room, 2 * settings.k_max - settings.k + _SPARE_STARTS), dtype)
        if A is None:
            place = lambda vectors: placed_like(vectors, params)
            space = space._replace(basis=place(space.basis), remainders=place(space.remainders))
        if warm_start is None:
            return _finish(search, warm, search_from(search, space, jnp.float32(0)), 0.0)
        if settings.k_max == 1 and settings.reuse_bound and A is not None:
            return _from_one_direction(search, A, warm, space)
        count = jnp.where(warm.calls > 0, warm.tracked, 0)
        space, products = add_directions(search, space, warm.vectors, count)
        return _finish(search, warm, search_from(search, space, products), 0.5 * products)


def no_directions(params: PyTree, k_max: int, dtype) -> Directions:
    """Directions for the first call, whose search then has a random start.

    Args:
      params: Parameters.
      k_max: Number of directions.
      dtype: Of the eigenvalues: ``float32``, or ``float64`` if the outputs are.

    Returns:
      Directions of zeros with ``calls=0``.

    >>> int(no_directions(jnp.zeros(3), 1, jnp.float32).calls)
    0
    """
    zeros = jax.tree.map(lambda p: jnp.zeros((k_max, *jnp.shape(p)), jnp.result_type(p)), params)
    number = lambda value: jnp.asarray(value, dtype)
    return Directions(zeros, jnp.int32(k_max), number(0), number(jnp.inf), jnp.int32(0), jnp.int32(0))


def _reusable_bound(settings: Settings, warm: Directions, largest: Array) -> Array:
    """Bound on the eigenvalues below from the last call, enlarged; inf: it can't be reused."""
    if not settings.reuse_bound:
        return jnp.full_like(largest, jnp.inf)
    last = jnp.where(warm.largest > 0, warm.largest, 1)
    growth = largest / last
    is_slow = (warm.largest > 0) & (growth <= GROWTH) & (growth >= 1 / GROWTH)
    usable = is_slow & (warm.age < settings.reuse_bound) & (warm.calls > 0)
    return jnp.where(usable, GROWTH * jnp.maximum(growth, 1) * warm.below, jnp.inf)


def _finish(search: Search, warm: Directions, state: State, extra, image=None) -> Eigenpairs:
    """The result, with the directions for the next call, which take one vjp each.

    ``extra``: products outside of the search. ``image``: ``A^T`` of the first vector of the space, where it is there.
    """
    k_max, pairs = search.settings.k_max, state.ritz
    vectors = ritz_vectors(state.space, pairs, k_max)
    if image is None:
        directions_next, count = _next_directions(search, vectors, state.tracked)
        directions_next = placed_like(directions_next, search.params)
    else:
        has_grown = state.space.count > 1
        first = jax.tree.map(lambda a: a[None], image)
        new = lambda _: jax.tree.map(lambda a: a[None], search.K.to_direction(jax.tree.map(lambda a: a[0], vectors)))
        directions_next, count = if_needed(search, has_grown, first, new), has_grown.astype(jnp.float32)
    bounds = pairs.above[:k_max] - pairs.values[:k_max] + rounding(pairs.values)
    reused = state.space.steps == 0
    directions = Directions(
        directions_next,
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
        smallest=pairs.smallest,
        vectors=vectors.T if search.settings.in_outputs else None,
        tracked=state.tracked,
        products=state.products + extra + 0.5 * jnp.asarray(count, jnp.float32),
        converged=~state.open.any() & jnp.isfinite(pairs.values[0]) & ~_is_tiny(pairs.values[0], search.narrowest),
        directions=directions,
    )


def _is_tiny(value: Array, narrowest: Any) -> Array:
    """Whether an eigenvalue is so near to the smallest number of the dtypes that its products lose digits.

    Zero is zero, but not in float16: its products become zero there for small eigenvalues, too.
    """
    if narrowest == jnp.dtype(jnp.float16):
        return value < float(jnp.finfo(narrowest).smallest_subnormal) / float(jnp.finfo(narrowest).eps)
    return (value > 0) & (value < float(jnp.finfo(value.dtype).tiny) / float(jnp.finfo(value.dtype).eps))


def _next_directions(search: Search, vectors: PyTree, tracked: Array) -> tuple[Any, Any]:
    """The directions of the tracked vectors and zeros for the others, and how many were computed.

    All are computed where products are unrolled, or if ``k_max`` is ``k``.
    """
    K, k_max = search.K, search.settings.k_max
    at = lambda j: jax.tree.map(lambda a: a[j], vectors)
    if K.loop == "python":
        directions = [K.to_direction(at(j)) for j in range(int(tracked))]
        directions += [jax.tree.map(jnp.zeros_like, directions[0])] * (k_max - len(directions))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *directions), tracked
    if K.loop == "unrolled" or k_max == search.settings.k:
        return jax.vmap(K.to_direction)(vectors), k_max
    shapes = jax.eval_shape(K.to_direction, at(0))
    zeros = jax.tree.map(lambda s: jnp.zeros((k_max, *s.shape), s.dtype), shapes)
    put = lambda j, directions: jax.tree.map(lambda a, b: a.at[j].set(b), directions, K.to_direction(at(j)))
    return lax.fori_loop(0, tracked, put, zeros), tracked


def _from_one_direction(search: Search, A: LinearMap, warm: Directions, space: Space) -> Eigenpairs:
    """The largest eigenpair from one product if the reused bound allows it, otherwise from a search that starts there.

    For a unit ``w`` in the parameter space let ``mu = ||A w||^2`` and ``theta = ||A^T A w||^2 / mu``. If all
    eigenvalues but the largest are at most ``c``, then ``lambda_1 <= theta + c (theta - mu) / (mu - c)``. Proof:
    ``(lambda_1 - lambda) (lambda - c) <= 0`` for all other ``lambda``, averaged over ``w``.
    """
    settings, dtype = search.settings, space.beta.dtype
    u = jax.tree.map(lambda a: a[0], warm.vectors)
    v = A.forward(u).astype(dtype)
    size, spare = norm(v), random_vector(random_key(search, 0), v, dtype)
    v = jnp.where(size > 0, v / jnp.where(size > 0, size, 1), spare / norm(spare))
    image, square = A.backward(v), A.square(u)
    theta, c = A.square(image), search.reusable(A.square(image))
    mu = jnp.where(square > 0, size / jnp.sqrt(jnp.where(square > 0, square, 1)), 0) ** 2
    usable = jnp.isfinite(c) & (mu > c)
    c_safe = jnp.where(usable, c, 0)
    excess = jnp.where(usable, c_safe * jnp.maximum(theta - mu, 0) / jnp.where(usable, mu - c_safe, 1), jnp.inf)
    slack = rounding(theta[None])
    as_vector = lambda value: jnp.asarray(value, dtype)[None]
    directions = Directions(
        jax.tree.map(lambda a: a[None], image), jnp.int32(1), theta, c, (warm.age + 1).astype(jnp.int32), warm.calls + 1
    )
    within = excess <= settings.tol * theta + slack
    pair = Eigenpairs(
        eigenvalues=as_vector(theta),
        bounds=as_vector(excess + slack),
        residuals=as_vector(jnp.inf),
        smallest=theta,
        vectors=v[:, None],
        tracked=jnp.int32(1),
        products=jnp.float32(1),
        converged=within,
        directions=directions,
    )

    def go_on(pair):
        v, image = pair.vectors[:, 0], jax.tree.map(lambda a: a[0], pair.directions.vectors)
        at_v = insert(space, v, A.forward(image).astype(dtype), random_key(search, 0), jnp.asarray(False))
        return _finish(search, warm, search_from(search, at_v, 1.0), 0.5, image)

    return if_needed(search, ~within, pair, go_on)
