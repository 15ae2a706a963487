"""The loss-weighted kernel as an operator: its top eigenpairs from kernel-vector products, with a bound on their error."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from catapult_jax.losses import hessian_root
from catapult_jax.tangent_kernel.checks import (
    check_arguments,
    check_batch,
    check_directions,
    check_loss,
    check_preconditioner,
    without_derivative,
)
from catapult_jax.tangent_kernel.coupling import refuse_coupled_examples
from catapult_jax.xla import after, loops_are_slow

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PyTree


class Directions(NamedTuple):
    """What one call hands to the next: where the eigenvectors were, in the space of the parameters.

    That space stays when the batch changes, the space of the examples does not.
    """

    vectors: Any  # pytree like params, leading axis k_max: b^(-1/2) J^T S^(1/2) v, for unit eigenvectors v; any P comes later
    tracked: Int[Array, ""]  # how many of them are in use
    largest: Float[Array, ""]  # largest eigenvalue, and
    below: Float[Array, ""]  # the one below the tracked ones, when it was last seen; infinite: never
    age: Int[Array, ""]  # calls since then


class Eigenpairs(NamedTuple):
    """What :func:`top_eigenpairs` returns. Entries from ``tracked`` on are found on the way, and not held to the tolerance."""

    eigenvalues: Float[
        Array, " k_max"
    ]  # of the loss-weighted kernel, largest first; never above the true ones but for rounding
    bounds: Float[Array, " k_max"]  # on the error of each eigenvalue
    residuals: Float[Array, " k_max"]  # ||K v - lambda v||: some eigenvalue is no further than this; NaN where it was not taken
    vectors: Float[Array, "bo k_max"]  # columns, unit, example-major
    tracked: Int[Array, ""]  # eigenpairs that were asked for: k, or more where they are above the threshold
    products: Float[Array, ""]  # kernel-vector products that were made, one vjp and one jvp each
    converged: (
        Array  # every tracked eigenvalue is known to tol, but for rounding, 16 eps times the largest, which the bounds hold too
    )
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
    max_products: int = 60,
    above: float | Float[Array, ""] | None = None,
    k_max: int | None = None,
    chunk_size: int | None = None,
) -> Eigenpairs:
    r"""Top eigenpairs of the loss-weighted kernel of a batch, from kernel-vector products alone.

    ``K_L = A A^T`` with ``A = b^(-1/2) S^(1/2) J P^(-1/2)``: a product is one vjp and one jvp of the model, linearised once.
    Rayleigh-Ritz in a growing space: first the images ``A w`` of the directions of an earlier call, then the residual of the
    tracked pair that is furthest from its tolerance (from a single vector this is the Lanczos method, with full
    reorthogonalisation). It ends when every tracked eigenvalue is known to ``tol``, or after ``max_products``; what was
    reached is in ``bounds`` and ``converged``. A random start is given ``k + 6`` products at least.

    The bound on the error of ``theta`` is ``r = ||K v - theta v||``: some eigenvalue is that near. After a warm start it is
    ``r^2 / gap`` where that is less, with ``gap`` the distance from the nearest other Ritz value, or from the largest eigenvalue that
    an earlier call saw below, taken a quarter larger and as a tenth of the largest at least. It is looked at again after ten calls at
    the latest, by one more product. That the eigenvalue is the one of this rank rests on the search having met its direction, and
    the quadratic form on the gap being what it was; neither is seen by a search that starts orthogonal to an eigenvector. For one
    warm direction ``w`` (unit) a single product may do: ``theta = mu_2 / mu_1``, ``mu_1 = ||A w||^2``, ``mu_2 = ||A^T A w||^2``, with the
    bound ``beta (mu_2 - mu_1^2) / (mu_1 (mu_1 - beta))``, ``beta`` the eigenvalue below; half a product more gives the residual, and
    half of one more the Ritz values of the space of ``A w`` and its image. Where ``max_products`` are too few for a cold search, a
    chain of calls from a start of which nothing is known is ``converged`` after some of them.

    Args:
      apply_fn: ``apply_fn(params, x) -> (b,)`` or ``(b, o)``; must treat each example alone.
      params: parameters, floating-point leaves.
      batch: ``(x, targets)``.
      k: eigenpairs to find to the tolerance; at most ``b*o`` exist.
      loss: ``"mse"``, ``"softmax_cross_entropy"`` or ``"logistic"``.
      preconditioner: the diagonal of ``P``, a pytree like ``params``, positive; None: one. Or a function of no arguments that makes
        it: under jit it is then made where it is read, and a loop holds what it is made of (an optimizer's state, which is there anyway).
      warm_start: ``directions`` of a call with the same ``k`` and ``k_max``, for other parameters or another batch; None: a random
        start (the same in every call).
      tol: relative error allowed to each tracked eigenvalue.
      max_products: bound on the products, the start and the directions for the next call not counted (at most ``k_max`` of each).
      above: eigenvalues above this are tracked too, up to ``k_max``, and the first one that is not: for every eigenvalue that is
        critical or near it, a share of ``2 / lr``. None: the first ``k`` only.
      k_max: length of what is returned; None: ``k``.
      chunk_size: examples that are linearised at a time; the linearisation is then made again in each product, and memory does not
        grow with the batch. None: all.

    The caller jits. Where XLA is slow in loops (convolutions on the CPU) the products are driven by Python outside of jit; under
    jit they are unrolled, and all ``max_products`` are made: choose few.

    Units: inverse learning rate.

    Raises:
      ValueError: ``k``, ``k_max``, ``tol``, ``max_products`` or ``chunk_size`` out of range, a preconditioner or directions of another
        structure, unknown loss, shapes that don't fit.
      CoupledExamplesError: the outputs of one example depend on other examples.

    Source: Rayleigh-Ritz with residual expansion, and the Kato-Temple bound, as in Parlett, The Symmetric Eigenvalue Problem (1998),
    chapters 10 to 13; the bound from one product is our rearrangement of it.

    >>> linear = lambda w, x: x @ w
    >>> batch = (jnp.diag(jnp.array([1.0, 2.0, 3.0])), jnp.zeros(3))
    >>> found = top_eigenpairs(linear, jnp.zeros(3), batch, k=1, loss="mse", tol=1e-5)  # (2/3) diag(1, 4, 9)
    >>> round(float(found.eigenvalues[0]), 4), bool(found.converged)
    (6.0, True)
    """
    x, targets = batch = check_batch(batch)
    out = check_arguments(apply_fn, params, x)
    check_loss(out, targets, loss=loss)
    params = without_derivative("top_eigenpairs", params)
    n, dtype = math.prod(out.shape), jnp.promote_types(out.dtype, jnp.float32)
    k_max = k if k_max is None else k_max
    if not 1 <= k <= n:
        raise ValueError(f"k={k!r}; allowed: 1 to {n}, the number of outputs of the batch")
    if not k <= k_max <= n:
        raise ValueError(f"k_max={k_max!r}; allowed: k={k} to {n}, the number of outputs of the batch")
    if not tol > 0:
        raise ValueError(f"tol={tol!r}; allowed: above 0")
    if max_products < 1:
        raise ValueError(f"max_products={max_products!r}; allowed: 1 or more")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size!r}; allowed: 1 or more, or None")
    diagonal = preconditioner if _is_function(preconditioner, params) else lambda: preconditioner
    check_preconditioner(jax.eval_shape(diagonal), params)
    if warm_start is not None:
        check_directions(warm_start.vectors, params, k_max)
    refuse_coupled_examples(apply_fn, params, x)

    with jax.default_matmul_precision("highest"):
        search = _search(apply_fn, params, batch, loss, diagonal, chunk_size, n, k, k_max, tol, max_products, above, warm_start)
        if warm_start is None:
            start = _extend(search, _empty(search, dtype), lambda: _random(search, dtype, 0))
            return _finish(search, _until_converged(search, start), 0, None)
        if k_max == 1:
            return _from_one_direction(search, warm_start)
        return _from_directions(search, warm_start, dtype)


def _is_function(preconditioner, params) -> bool:
    """Not so a pytree like ``params`` that can be called, as some modules can."""
    is_tree = jax.tree.structure(preconditioner) == jax.tree.structure(params) and not jax.tree_util.all_leaves(
        [preconditioner]
    )
    return callable(preconditioner) and not is_tree


_LEAST = 6  # products of a cold search beyond k
_SAFETY, _FLOOR = 1.25, 0.1  # by so much the eigenvalue below may have grown unseen, and to such a share of the largest
_TRUSTED = 10  # calls for which it is taken to be what it was


class _Search(NamedTuple):
    """What does not change during a search."""

    forward: Callable  # A P^(-1/2) u: like params -> (n,)
    backward: Callable  # P^(1/2) A^T v: (n,) -> like params; so that the weights are scaled once in a product
    norm: Callable  # ||P^(-1/2) u||^2
    n: int
    k: int
    k_max: int
    tol: float
    max_products: int
    above: Any
    how: str  # loop: compiled loops; host: Python's; unrolled: for what is slow in loops, under jit


class _Space(NamedTuple):
    """The space searched so far; columns from ``count`` on are zero."""

    basis: Array  # (n, m) orthonormal
    images: Array  # (n, m) K times it
    count: Array
    products: Array


class _Ritz(NamedTuple):
    values: Array  # (k_max + 1,) largest first
    vectors: Array  # (n, k_max + 1)
    residuals: Array  # (n, k_max + 1), K v - theta v
    sizes: Array  # (k_max + 1,) norms of the residuals
    bounds: Array  # (k_max,)
    tracked: Array
    open: Array  # (k_max,) tracked, and not yet within the tolerance


def _search(apply_fn, params, batch, loss, diagonal, chunk_size, n, k, k_max, tol, max_products, above, warm_start):
    x, targets = batch
    b = len(x)
    arrays = jax.tree.leaves((params, batch, diagonal(), warm_start, jnp.zeros(())))  # the last one: under a jit around it all
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in arrays)
    how = "loop" if not loops_are_slow(apply_fn, params, x) else "unrolled" if traced else "host"

    # Outside of jit the compiled programs are found again by the next call, which may have other weights.
    image_of, pulled_of = _compiled(apply_fn) if how == "host" else (_image, _pulled)
    if how == "host":
        held = diagonal()
        diagonal_at = lambda _: held
    else:
        diagonal_at = _made_where_read(diagonal)
    norm = lambda u: (_norm_compiled if how == "host" else _norm)(diagonal_at(_entry(u, 0)), u)
    forward_of = lambda u, x, targets: image_of(apply_fn, loss, b, params, diagonal_at(_entry(u, -1)), x, targets, u)
    backward_of = lambda v, x, targets: pulled_of(apply_fn, loss, b, params, None, x, targets, v)

    if chunk_size is None or chunk_size >= b:
        if how == "host":
            forward, backward = (functools.partial(f, x=x, targets=targets) for f in (forward_of, backward_of))
        else:
            forward, backward = _maps(apply_fn, loss, b, params, diagonal_at, x, targets)
        return _Search(forward, backward, norm, n, k, k_max, tol, max_products, above, how)

    whole, o = b // chunk_size * chunk_size, n // b
    chunks = jax.tree.map(lambda a: a[:whole].reshape(-1, chunk_size, *a.shape[1:]), (x, targets))
    rest = (x[whole:], targets[whole:])
    add = lambda a, b: jax.tree.map(jnp.add, a, b)
    if how == "host":
        pieces = lambda: [jax.tree.map(lambda a, i=i: a[i], chunks) for i in range(whole // chunk_size)]
        many_forward = lambda u: jnp.concatenate([forward_of(u, *piece) for piece in pieces()])
        many_backward = lambda v: functools.reduce(add, (backward_of(u, *p) for u, p in zip(v, pieces(), strict=True)))
    else:
        unroll = how == "unrolled"
        many_forward = lambda u: lax.scan(lambda _, piece: (0, forward_of(u, *piece)), 0, chunks, unroll=unroll)[1].reshape(-1)

        def many_backward(v):
            body = lambda total, piece: (add(total, backward_of(piece[0], *piece[1])), None)
            return lax.scan(body, jax.tree.map(jnp.zeros_like, params), (v, chunks), unroll=unroll)[0]

    def forward(u):
        parts = many_forward(u)
        return jnp.concatenate([parts, forward_of(u, *rest)]) if whole < b else parts

    def backward(v):
        total = many_backward(v[: whole * o].reshape(-1, chunk_size * o))
        return add(total, backward_of(v[whole * o :], *rest)) if whole < b else total

    return _Search(forward, backward, norm, n, k, k_max, tol, max_products, above, how)


def _made_where_read(diagonal: Callable) -> Callable:
    """``diagonal`` as a function of a number that is there before it is read. Otherwise XLA would see that it is always the same, and
    part of what the optimizer makes for its update: and would keep it, in memory as large as the weights, from the first to the last."""
    # Of a function of this call alone: what JAX keeps of a trace, it keeps by the function.
    closed, shapes = jax.make_jaxpr(lambda: diagonal(), return_shape=True)()
    taken = {i: c for i, c in enumerate(closed.consts) if isinstance(c, jax.core.Tracer)}

    def diagonal_at(done):
        later = after(done, taken)
        found = jax.core.eval_jaxpr(closed.jaxpr, [later.get(i, c) for i, c in enumerate(closed.consts)])
        return jax.tree.unflatten(jax.tree.structure(shapes), found)

    return diagonal_at


def _entry(u, i: int):
    """A number of the first or the last array, ``i`` zero or minus one: a norm and a product are told apart by it."""
    leaf = [leaf for leaf in jax.tree.leaves(u) if leaf.size][i]
    return leaf[(i,) * leaf.ndim]


def _scaled(u, diagonal):
    return u if diagonal is None else jax.tree.map(jnp.divide, u, diagonal)


def _norm(diagonal, u):
    """``||P^(-1/2) u||^2``."""
    return sum(_dot(a, b) for a, b in zip(jax.tree.leaves(u), jax.tree.leaves(_scaled(u, diagonal)), strict=True))


_norm_compiled = jax.jit(_norm)


def _maps(apply_fn, loss: str, b: int, params, diagonal_at: Callable, x, targets) -> tuple[Callable, Callable]:
    """``forward`` and ``backward`` of a search, on some examples of a batch of ``b``; linearised once."""
    outputs, push = jax.linearize(lambda p: apply_fn(p, x), params)
    pull = jax.linear_transpose(push, params)
    root = hessian_root(outputs, targets, loss=loss)

    def weigh(v):
        """``b^(-1/2) S^(1/2) v``, with ``v`` like the outputs."""
        if loss == "mse":  # S = 2 I
            return v * (2 / b) ** 0.5
        return jnp.einsum("ipq,iq->ip", root, v.reshape(root.shape[:2])).reshape(v.shape) * b**-0.5

    dtype = jnp.promote_types(outputs.dtype, jnp.float32)
    like_params = lambda tree: jax.tree.map(lambda a, p: a.astype(jnp.result_type(p)), tree, params)
    forward = lambda u: weigh(push(like_params(_scaled(u, diagonal_at(_entry(u, -1))))).astype(dtype)).reshape(-1)
    backward = lambda v: pull(weigh(v.reshape(outputs.shape)).astype(outputs.dtype))[0]
    return forward, backward


def _image(apply_fn, loss, b, params, diagonal, x, targets, u):
    return _maps(apply_fn, loss, b, params, lambda _: diagonal, x, targets)[0](u)


def _pulled(apply_fn, loss, b, params, diagonal, x, targets, v):
    return _maps(apply_fn, loss, b, params, lambda _: diagonal, x, targets)[1](v)


_COMPILED = tuple(jax.jit(function, static_argnums=(0, 1, 2)) for function in (_image, _pulled))


def _compiled(apply_fn) -> tuple[Callable, Callable]:
    """The two, compiled, and found again for the same function; one without a hash is compiled anew in each call."""
    try:
        hash(apply_fn)
        return _COMPILED
    except TypeError:
        pass
    held = tuple(jax.jit(functools.partial(function, apply_fn), static_argnums=(0, 1)) for function in (_image, _pulled))
    return tuple(lambda _, *rest, function=function: function(*rest) for function in held)


def _dot(a, b):
    """Eight parts are added up first: XLA's sum of an array to a number is three times slower on the CPU. Of a matrix they are parts of
    its rows, so that ``b`` need not be written down where it is made of something."""
    dtype = jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)
    products = a.astype(dtype) * b.astype(dtype)
    many_rows = products.ndim > 1 and products.size >= 64 * products.shape[-1] > 0
    products = products.reshape(-1, products.shape[-1]) if many_rows else products.reshape(-1)
    part = len(products) // 8
    return sum(products[i * part : (i + 1) * part] for i in range(8)).sum() + products[8 * part :].sum()


def _empty(search: _Search, dtype) -> _Space:
    zeros = jnp.zeros((search.n, min(search.n, search.k_max + search.max_products)), dtype)
    return _Space(zeros, zeros, jnp.int32(0), jnp.float32(0))


def _random(search: _Search, dtype, seed) -> Array:
    return jax.random.normal(jax.random.fold_in(jax.random.key(0), seed), (search.n,), dtype)


def _orthonormal(search: _Search, space: _Space, proposal: Array) -> Array:
    """What the proposal has beyond the space, unit; one that is in the space already gives way to a random one."""

    def beyond(v):
        v = v / jnp.linalg.norm(v)
        for _ in range(2):  # once leaves what rounding put in
            v = v - space.basis @ (space.basis.T @ v)
        return v

    q = beyond(proposal)
    size = jnp.linalg.norm(q)
    fresh = beyond(_random(search, q.dtype, space.count + 1))
    q = jnp.where(size > 100 * jnp.finfo(q.dtype).eps, q, fresh)  # also where the proposal was zero, hence NaN
    return q / jnp.linalg.norm(q)


def _extend(search: _Search, space: _Space, proposal: Callable[[], Array]) -> _Space:
    """One more vector in the space, with its image."""
    q = _orthonormal(search, space, proposal())
    image = search.forward(search.backward(q))
    put = lambda matrix, column: lax.dynamic_update_index_in_dim(matrix, column, space.count, 1)
    return _Space(put(space.basis, q), put(space.images, image), space.count + 1, space.products + 1)


def _expected_below(search: _Search, warm: Directions, largest: Array) -> Array:
    """The eigenvalue below the tracked ones: as it was last seen, or larger where the largest has grown since."""
    if search.k == search.n:  # there is none
        return jnp.zeros_like(largest)
    grown = warm.below * jnp.maximum(largest / jnp.where(warm.largest > 0, warm.largest, 1), 1)
    return jnp.maximum(_SAFETY * grown, _FLOOR * largest)


def _ritz(search: _Search, space: _Space, warm: Directions | None) -> _Ritz:
    """Rayleigh-Ritz in the space."""
    wanted = min(search.k_max + 1, space.basis.shape[1])
    projected = space.basis.T @ space.images
    # Columns that are not in use get a negative eigenvalue, so that they come last: the kernel has none.
    unused = jnp.where(jnp.arange(len(projected)) >= space.count, jnp.maximum(jnp.trace(projected), 1e-20), 0)
    values, rotation = jnp.linalg.eigh((projected + projected.T) / 2 - jnp.diag(unused))
    values, rotation = jnp.maximum(values[::-1][:wanted], 0), rotation[:, ::-1][:, :wanted]
    vectors = space.basis @ rotation
    residuals = space.images @ rotation - vectors * values[None]
    sizes = jnp.linalg.norm(residuals, axis=0)
    values, sizes = (jnp.pad(a, (0, search.k_max + 1 - wanted)) for a in (values, sizes))
    vectors, residuals = (jnp.pad(a, ((0, 0), (0, search.k_max + 1 - wanted))) for a in (vectors, residuals))

    theta, r = values[: search.k_max], sizes[: search.k_max]
    bounds, known = r, jnp.asarray(False)
    if warm is not None:
        known = jnp.isfinite(warm.below) | ((warm.age >= _LEAST) & (space.count > search.k))
        seen = jnp.where(jnp.arange(1, search.k_max + 1) < space.count, (values + sizes)[1:], jnp.inf)
        upper = jnp.minimum(seen, jnp.maximum(values[1:], _expected_below(search, warm, values[0])))
        lower = jnp.concatenate([jnp.full(1, jnp.inf, values.dtype), (values - sizes)[: search.k_max - 1]])
        gap = jnp.minimum(theta - upper, lower - theta)
        bounds = jnp.where(known & (gap > r), r * r / jnp.where(gap > r, gap, 1), r)
    bounds = jnp.where(jnp.arange(search.k_max) < space.count, bounds, jnp.inf)

    tracked = jnp.int32(search.k)
    if search.above is not None:
        tracked = jnp.clip(1 + jnp.sum(theta > search.above), search.k, search.k_max).astype(jnp.int32)
    rounding = 16 * jnp.finfo(values.dtype).eps * values[0]
    is_open = (jnp.arange(search.k_max) < tracked) & ~(bounds <= search.tol * theta + rounding)
    # The first Ritz pairs of a random start may settle below the largest eigenvalue for a while.
    is_open |= ~known & (space.count < min(search.n, search.k + _LEAST))
    if warm is not None:
        is_open |= (warm.age >= _TRUSTED) & (space.count <= tracked) & (space.count < search.n)
    return _Ritz(values, vectors, residuals, sizes, bounds + rounding, tracked, is_open)


def _until_converged(search: _Search, space: _Space, warm: Directions | None = None) -> tuple[_Space, _Ritz]:
    first = space.products

    def going_on(carry):
        space, ritz = carry
        room = space.count < space.basis.shape[1]
        more = room & (space.products - first < search.max_products) & ritz.open.any()
        return more & jnp.isfinite(ritz.values[0])  # of numbers that are none, nothing more is learned

    def grow(carry):
        space, ritz = carry
        worst = jnp.argmax(
            jnp.where(ritz.open, ritz.bounds / jnp.maximum(ritz.values[:-1], jnp.finfo(ritz.values.dtype).tiny), -1)
        )
        space = _extend(search, space, lambda: ritz.residuals[:, worst])
        return space, _ritz(search, space, warm)

    carry = (space, _ritz(search, space, warm))
    if search.how == "loop":
        return lax.while_loop(going_on, grow, carry)
    if search.how == "host":
        while bool(going_on(carry)):
            carry = grow(carry)
        return carry
    for _ in range(search.max_products):
        carry = _where(going_on(carry), grow(carry), carry)
    space, ritz = carry
    return space._replace(products=first + search.max_products), ritz  # made, whether they were wanted or not


def _where(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _finish(search: _Search, found: tuple[_Space, _Ritz], extra, earlier: Directions | None, image=None) -> Eigenpairs:
    """The result of a search, with its directions: one vjp for each vector. ``image``: what that of the first vector gave."""
    space, ritz = found
    vectors = ritz.vectors[:, : search.k_max]
    if image is not None:
        one = lambda tree: jax.tree.map(lambda a: a[None], tree)
        images = _if_needed(search, space.count > 1, one(image), lambda _: one(search.backward(vectors[:, 0])))
        made = space.count > 1
    else:
        images, made = _images(search, vectors, ritz.tracked)
    # The next eigenvalue is at most what its own residual allows, or what was known of it before.
    largest, next_one = ritz.values[0], ritz.values[ritz.tracked]
    seen = ((space.count > ritz.tracked) | (space.count >= search.n)) & ~ritz.open.any()
    size = jnp.where(seen, ritz.sizes[ritz.tracked], jnp.inf)
    last = (largest, next_one + size, jnp.int32(0)) if earlier is None else _seen(earlier, seen, largest, next_one, size)
    return Eigenpairs(
        eigenvalues=ritz.values[: search.k_max],
        bounds=ritz.bounds,
        residuals=ritz.sizes[: search.k_max],
        vectors=vectors,
        tracked=ritz.tracked,
        products=space.products + extra + 0.5 * made,
        converged=~ritz.open.any(),
        directions=Directions(images, ritz.tracked, *last),
    )


def _images(search: _Search, vectors: Array, tracked: Array) -> tuple[Any, Any]:
    """What the next call starts from, one vjp for each tracked vector, zero for the others (unrolled for all ``k_max``); and how many
    were made."""
    if search.how == "host":
        images = [search.backward(v) for v in vectors.T[: int(tracked)]]
        images += [jax.tree.map(jnp.zeros_like, images[0])] * (search.k_max - len(images))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *images), tracked
    if search.how == "unrolled" or search.k_max == search.k:
        return jax.vmap(search.backward)(vectors.T), search.k_max
    shapes = jax.eval_shape(search.backward, vectors[:, 0])
    empty = jax.tree.map(lambda s: jnp.zeros((search.k_max, *s.shape), s.dtype), shapes)
    put = lambda j, images: jax.tree.map(lambda a, b: a.at[j].set(b), images, search.backward(vectors[:, j]))
    return lax.fori_loop(0, tracked, put, empty), tracked


def _seen(earlier: Directions, seen, largest, next_one, size) -> tuple[Array, Array, Array]:
    """``largest``, ``below`` and ``age`` of the directions: what was seen now, where it was, or earlier."""
    known = earlier.below * largest / jnp.where(earlier.largest > 0, earlier.largest, 1)
    known = jnp.where(jnp.isfinite(earlier.below), known, jnp.inf)
    below = jnp.where(seen, jnp.maximum(next_one, jnp.minimum(known, next_one + size)), earlier.below)
    return jnp.where(seen, largest, earlier.largest), below, jnp.where(seen, 0, earlier.age + 1).astype(jnp.int32)


def _from_directions(search: _Search, warm: Directions, dtype) -> Eigenpairs:
    space, sizes = _empty(search, dtype), jax.vmap(search.norm)(warm.vectors)
    some = ((jnp.arange(search.k_max) >= warm.tracked) | ((sizes > 0) & jnp.isfinite(sizes))).all()

    def start(j, space):
        u = jax.tree.map(lambda a: a[j], warm.vectors)
        return _extend(search, space, lambda: search.forward(u))

    if search.how == "loop":
        space = lax.fori_loop(0, warm.tracked, start, space)
    else:
        count = search.k_max if search.how == "unrolled" else int(warm.tracked)
        for j in range(count):
            space = _where(j < warm.tracked, start(j, space), space)
        space = space._replace(products=jnp.float32(count))
    extra = 0.5 * space.products
    return _finish(search, _until_converged(search, space, _known_of(warm, some)), extra, warm)


def _known_of(warm: Directions, some) -> Directions:
    """Of a start from nothing, nothing is known."""
    return warm._replace(below=jnp.where(some, warm.below, jnp.inf), age=jnp.where(some, warm.age, 0))


def _from_one_direction(search: _Search, warm: Directions) -> Eigenpairs:
    """One product, half a product more for the residual, half of one more for a second vector, and then a search from what these
    found: each where the bound so far is too large."""
    some, found = _one_product(search, warm)
    warm = _known_of(warm, some)
    if search.n == 1:
        return found
    second_look = warm.age >= _TRUSTED

    def with_residual(found):
        product = search.forward(jax.tree.map(lambda a: a[0], found.directions.vectors))
        found = _residual_of(search, warm, found, product)
        return _if_needed(search, ~found.converged | second_look, found, lambda found: second_vector(found, product))

    def second_vector(found, product):
        found = _two_products(search, warm, found, product)
        if search.max_products == 1:
            return found
        return _if_needed(search, ~found.converged, found, lambda found: _search_on(search, warm, found))

    return _if_needed(search, ~found.converged | second_look, found, with_residual)


def _one_product(search: _Search, warm: Directions) -> tuple[Array, Eigenpairs]:
    """Whether there was a direction to start from (otherwise it is random); and what its vjp and jvp tell."""
    u = jax.tree.map(lambda a: a[0], warm.vectors)
    v = search.forward(u)
    norm, one = search.norm(u), jnp.sum(v * v)
    some = (norm > 0) & (one > 0)
    random = _random(search, v.dtype, 0)
    v = jnp.where(some, v / jnp.sqrt(jnp.where(some, one, 1)), random / jnp.linalg.norm(random))
    image = search.backward(v)
    theta = search.norm(image)  # mu_2 / mu_1
    one = jnp.where(some, one / norm, 1)
    beta = _expected_below(search, warm, theta)
    slack = jnp.where(some & (one > beta), beta * jnp.maximum(theta - one, 0) / (one - beta), jnp.inf)
    bound = jnp.zeros_like(slack) if search.n == 1 else slack
    return some, _one_pair(search, theta, bound, v, image, 1.0, (warm.largest, warm.below, warm.age + 1))


def _one_pair(search: _Search, theta, bound, v, image, products, seen) -> Eigenpairs:
    rounding = 16 * jnp.finfo(v.dtype).eps * theta
    converged = bound <= search.tol * theta + rounding
    row = lambda value: jnp.asarray(value, v.dtype)[None]
    directions = Directions(jax.tree.map(lambda a: a[None], image), jnp.int32(1), *seen)
    return Eigenpairs(
        row(theta), row(bound + rounding), row(jnp.nan), v[:, None], jnp.int32(1), jnp.float32(products), converged, directions
    )


def _residual_of(search: _Search, warm: Directions, found: Eigenpairs, product: Array) -> Eigenpairs:
    """The same pair with its residual and the bound that it gives, from ``product``, the kernel times its vector."""
    v, (theta,) = found.vectors[:, 0], found.eigenvalues
    r = jnp.linalg.norm(product - theta * v)
    known = jnp.isfinite(warm.below)
    gap = jnp.where(known, theta - _expected_below(search, warm, theta), 0)
    bound = jnp.where(gap > r, r * r / jnp.where(gap > r, gap, 1), r)
    rounding = 16 * jnp.finfo(v.dtype).eps * theta
    converged = known & (bound <= search.tol * theta + rounding)
    return found._replace(
        bounds=(bound + rounding)[None], residuals=r[None], products=found.products + 0.5, converged=converged
    )


def _two_products(search: _Search, warm: Directions, found: Eigenpairs, product: Array) -> Eigenpairs:
    """Rayleigh-Ritz in the space of ``v`` and ``product``, ``K v``, from half a product for the vector ``q`` that it adds (the
    bidiagonalisation of Golub and Kahan, 1965: the image that the next call starts from comes with it).

    ``K v`` lies in the space, and ``||K q||^2 <= lambda_1 q^T K q``: with ``T`` the kernel in ``(v, q)`` and ``theta_1, theta_2`` its
    eigenvalues, the residual of the first is at most ``t_12^2 theta_2 / (theta_1 - theta_2) + c^2 t_22 (lambda_1 - theta_1)`` in square,
    ``c`` the share of ``q`` in its vector; that over the gap bounds ``lambda_1 - theta_1``. Without a gap the bound is the residual, with
    ``lambda_1`` taken to be within it: some eigenvalue is that near.
    """
    image = jax.tree.map(lambda a: a[0], found.directions.vectors)
    v = found.vectors[:, 0]
    q = _orthonormal(search, _Space(v[:, None], product[:, None], jnp.int32(1), jnp.float32(0)), product)
    other = search.backward(q)
    t_11, t_12, t_22 = v @ product, q @ product, search.norm(other)
    values, rotation = jnp.linalg.eigh(jnp.array([[t_11, t_12], [t_12, t_22]]))
    theta_2, theta = jnp.maximum(values, 0)
    c_1, c_2 = rotation[:, 1]

    apart = jnp.hypot(t_11 - t_22, 2 * t_12)  # theta - theta_2; where it is zero, so is t_12
    apart = jnp.where(apart > 0, apart, 1)
    whole = search.n == 2  # the space is: its eigenvalues are those of the kernel
    grows = 0 * t_22 if whole else c_2 * c_2 * t_22
    square = 0 * t_22 if whole else t_12 * t_12 * theta_2 / apart  # of the residual, but for what grows
    known = jnp.isfinite(warm.below) | (warm.age >= _LEAST) | (whole & jnp.isfinite(theta))

    residual = (grows + jnp.sqrt(grows * grows + 4 * square)) / 2  # some eigenvalue is that near

    def bound_with(upper):
        gap = theta - upper - grows
        return jnp.where(known & (gap > 0) & (gap * gap > square), square / jnp.where(gap > 0, gap, 1), residual)

    # The second residual likewise, from the first bound without it.
    expected = jnp.maximum(theta_2, _expected_below(search, warm, theta))
    share = jnp.maximum(theta - t_22, 0) / apart
    second = lambda bound: 0 * t_22 if whole else jnp.sqrt(share * (jnp.maximum(theta - t_22, 0) * theta_2 + t_22 * bound))
    bound = bound_with(jnp.minimum(expected, theta_2 + second(bound_with(expected))))
    # Where nothing is known of what is below, the first Ritz pairs may be those of smaller eigenvalues.
    mixed = jax.tree.map(lambda a, b: c_1.astype(a.dtype) * a + c_2.astype(b.dtype) * b, image, other)
    converged = known & (bound <= search.tol * theta + 16 * jnp.finfo(v.dtype).eps * theta)
    seen = _seen(warm, converged, theta, theta_2, jnp.where(converged, second(bound), jnp.inf))
    return _one_pair(search, theta, bound, c_1 * v + c_2 * q, mixed, found.products + 0.5, seen)._replace(converged=converged)


def _search_on(search: _Search, warm: Directions, found: Eigenpairs) -> Eigenpairs:
    """The search goes on from the vector that was found, as from any start."""
    image = jax.tree.map(lambda a: a[0], found.directions.vectors)
    empty = _empty(search, found.vectors.dtype)
    put = lambda matrix, column: matrix.at[:, 0].set(column)
    space = _Space(
        put(empty.basis, found.vectors[:, 0]), put(empty.images, search.forward(image)), jnp.int32(1), jnp.float32(0)
    )
    search = search._replace(max_products=search.max_products - 1)
    return _finish(search, _until_converged(search, space, warm), found.products + 0.5, warm, image)


def _if_needed(search: _Search, needed, have, make: Callable):
    """What is made, of what there is, where it is needed; otherwise what there is. In compiled loops a loop and no branch, so that
    under ``vmap`` it is made only where some member needs it. (What ``make`` took from outside would be copied on the way in.)
    Unrolled it is always made."""
    if search.how == "unrolled":
        return make(have)
    if search.how == "host":
        return make(have) if bool(needed) else have
    return lax.while_loop(lambda carry: carry[0], lambda carry: (jnp.zeros_like(carry[0]), make(carry[1])), (needed, have))[1]
