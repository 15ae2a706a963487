"""The loss-weighted kernel as a linear map: ``A u`` and ``A^T v``, with ``K_L = A A^T``.

``A = B^T J P^(-1/2)``, with the factor ``B`` of the Hessian of the loss of the batch in its outputs (``1/b`` is part of it). One
product with ``K_L`` is one vjp and one jvp of the model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
from jax import lax

from catapult_jax.losses import Loss, curvature_factor
from catapult_jax.tangent.checks import batch_size
from catapult_jax.tangent.equations import inner_programs
from catapult_jax.tangent.inverse_map import InverseMap
from catapult_jax.tangent.placement import explicit_mesh
from catapult_jax.xla import at_least_float32, computed_after, entry, fresh_jaxpr, loops_are_slow, sum_of_products

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree


class LinearMap(NamedTuple):
    """The two halves of a product with ``K_L = forward(backward(v))``. ``P`` is divided by once, in ``forward``.

    A vector ``u`` of the parameter space is a pytree like params.
    """

    forward: Callable  # u -> B^T J P^(-1) u: like params -> (n,)
    backward: Callable  # v -> J^T B v: (n,) -> like params
    square: Callable  # u -> ||P^(-1/2) u||^2
    n: int  # number of outputs of the batch
    loop: str  # how to repeat products: "compiled", "python" or "unrolled", see loop_kind


def loop_kind(apply_fn: Callable, params: PyTree, x: PyTree, arrays: PyTree) -> str:
    """How to repeat products.

    Args:
      apply_fn, params, x: The model and its inputs.
      arrays: All arrays that the products depend on.

    Returns:
      ``"compiled"``: in a loop of XLA. Where XLA is slow in loops (convolutions on the CPU): ``"unrolled"`` if
      ``arrays`` are traced, else ``"python"``.

    >>> loop_kind(lambda w, x: x @ w, jnp.ones(2), jnp.ones((3, 2)), ())
    'compiled'
    """
    # To ask whether loops are slow traces one example on no mesh, which a model that names shardings does not allow.
    if explicit_mesh((params, x)) is not None or not loops_are_slow(apply_fn, params, x):
        return "compiled"
    return "unrolled" if is_traced(arrays) else "python"


def is_traced(arrays: PyTree) -> bool:
    """Whether one of these arrays is traced, or the call is under jit.

    Args:
      arrays: Any pytree of arrays.

    Returns:
      True or False.

    >>> is_traced(jnp.ones(2))
    False
    """
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((arrays, jnp.zeros(()))))


def linear_map(
    apply_fn: Callable,
    params: PyTree,
    batch: tuple[PyTree, PyTree],
    *,
    loss: Loss,
    preconditioner: Callable,
    chunk_size: int | None,
    loop: str,
    jvp: str = "forward",
) -> LinearMap:
    """The two halves of a product with the loss-weighted kernel of a batch.

    Args:
      apply_fn, params, batch: As in :func:`catapult_jax.tangent.top_eigenpairs`.
      loss: A loss whose Hessian has a factor.
      preconditioner: A function of no arguments that returns the diagonal of ``P``, or None.
      chunk_size: Examples that are linearised at a time, again in each product. None: all, linearised once.
      loop: See :func:`loop_kind`.
      jvp: See :func:`linearised`.

    Returns:
      The linear map, its transpose without ``P``, and the norm.

    Source: the chain rule.

    >>> from catapult_jax.losses import SquaredError
    >>> A = linear_map(
    ...     lambda w, x: x @ w, jnp.zeros(2), (jnp.eye(2), jnp.zeros(2)),
    ...     loss=SquaredError(), preconditioner=lambda: None, chunk_size=None, loop="compiled",
    ... )
    >>> A.forward(jnp.array([1.0, 2.0])).round(4).tolist()  # b^(-1/2) sqrt(2) x u
    [1.0, 2.0]
    """
    x, targets = batch
    b = batch_size(x)
    python = loop == "python"
    out = jax.eval_shape(apply_fn, params, x)
    total = loss.total(out, targets)
    if python:
        diagonal = preconditioner()
        diagonal_at = lambda _: diagonal
        forward_at, backward_at = (functools.partial(program, tracer(apply_fn, params)) for program in _COMPILED)
    else:
        diagonal_at = computed_after(preconditioner)
        forward_at, backward_at = (functools.partial(f, apply_fn) for f in (_forward, _backward))
    square = lambda u: (_square_compiled if python else _square)(diagonal_at(entry(u, 0)), u)
    forward_of = lambda u, x, targets: forward_at(loss, total, params, diagonal_at(entry(u, -1)), x, targets, u, jvp)
    backward_of = lambda v, x, targets: backward_at(loss, total, params, None, x, targets, v, jvp)
    n = math.prod(out.shape)

    if chunk_size is None or chunk_size >= b:
        if python:
            forward, backward = (functools.partial(f, x=x, targets=targets) for f in (forward_of, backward_of))
        else:
            forward, backward = _maps(apply_fn, loss, total, params, diagonal_at, x, targets, jvp)
        return LinearMap(forward, backward, square, n, loop)

    forward, backward = _in_chunks(forward_of, backward_of, params, x, targets, n // b, chunk_size, loop)
    return LinearMap(forward, backward, square, n, loop)


def _in_chunks(forward_of, backward_of, params, x, targets, o: int, chunk_size: int, loop: str) -> tuple[Callable, Callable]:
    """``forward`` and ``backward``, chunk by chunk; the last chunk may be smaller. ``o``: outputs per example."""
    b = batch_size(x)
    whole = b // chunk_size * chunk_size
    chunks, rest = in_chunks((x, targets), chunk_size)
    add = lambda a, b: jax.tree.map(jnp.add, a, b)
    if loop == "python":
        pieces = lambda: [jax.tree.map(lambda a, i=i: a[i], chunks) for i in range(whole // chunk_size)]
        many_forward = lambda u: jnp.concatenate([forward_of(u, *piece) for piece in pieces()])
        many_backward = lambda v: functools.reduce(add, (backward_of(u, *p) for u, p in zip(v, pieces(), strict=True)))
    else:
        unroll = loop == "unrolled"
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

    return forward, backward


def in_chunks(batch: PyTree, chunk_size: int) -> tuple[PyTree, PyTree]:
    """A batch in chunks along its first axis.

    Args:
      batch: Arrays with one first axis.
      chunk_size: Examples in a chunk.

    Returns:
      The whole chunks, stacked along a first axis, and the examples that are left.

    >>> [part.tolist() for part in in_chunks(jnp.arange(5), 2)]
    [[[0, 1], [2, 3]], [4]]
    """
    whole = batch_size(batch) // chunk_size * chunk_size
    chunks = jax.tree.map(lambda a: a[:whole].reshape(-1, chunk_size, *a.shape[1:]), batch)
    return chunks, jax.tree.map(lambda a: a[whole:], batch)


def _divide(u, diagonal):
    """``P^(-1) u``."""
    if isinstance(diagonal, InverseMap):
        return diagonal(u)
    return u if diagonal is None else jax.tree.map(jnp.divide, u, diagonal)


def _square(diagonal, u):
    """``||P^(-1/2) u||^2``."""
    return sum(sum_of_products(a, b) for a, b in zip(jax.tree.leaves(u), jax.tree.leaves(_divide(u, diagonal)), strict=True))


_square_compiled = jax.jit(_square)


def like_params(u: PyTree, params: PyTree) -> PyTree:
    """``u`` with the dtypes of the parameters.

    Args:
      u: A pytree like ``params``.
      params: Parameters.

    Returns:
      ``u``.

    >>> like_params(jnp.ones(1), jnp.ones(1, jnp.bfloat16)).dtype
    dtype(bfloat16)
    """
    return jax.tree.map(lambda a, p: a.astype(jnp.result_type(p)), u, params)


JVPS = ("forward", "transpose")


def linearised(function: Callable, params: PyTree, jvp: str = "forward") -> tuple[Array, Callable, Callable]:
    """The outputs of a function, its jvp and its vjp, linearised once.

    Args:
      function: ``function(params) -> outputs``.
      params: Parameters.
      jvp: ``"forward"``: forward mode, and the vjp as its transpose. ``"transpose"``: reverse mode, and the jvp as its transpose. The
        second serves functions with a ``custom_vjp``, which have no forward mode.

    Returns:
      ``(outputs, push, pull)``: ``push(u) = J u``, ``pull(v) = J^T v``.

    Raises:
      ValueError: ``"forward"`` for a function with a ``custom_vjp``.

    >>> outputs, push, pull = linearised(lambda w: 3 * w, jnp.ones(2), "transpose")
    >>> push(jnp.ones(2)).tolist(), pull(jnp.ones(2)).tolist()
    ([3.0, 3.0], [3.0, 3.0])
    """
    if jvp == "transpose":
        outputs, pull = jax.vjp(function, params)
        push = jax.linear_transpose(lambda v: pull(v)[0], outputs)
        return outputs, lambda u: push(u)[0], lambda v: pull(v)[0]
    outputs, push = jax.linearize(function, params)
    if _equations(jax.make_jaxpr(push)(params).jaxpr, "custom_lin"):  # otherwise the error comes when the program is compiled
        called = _equations(jax.make_jaxpr(function)(params).jaxpr, "custom_vjp_call")
        names = dict.fromkeys(eqn.params["call_jaxpr"].jaxpr.debug_info.func_name for eqn in called)
        raise ValueError(
            f"jvp={jvp!r} with apply_fn, in which {', '.join(names)} has a custom_vjp, so no forward mode; allowed: jvp='transpose'"
        )
    pull = jax.linear_transpose(push, params)
    return outputs, push, lambda v: pull(v)[0]


def _equations(jaxpr, name: str) -> list:
    """The equations of a program and of those inside it whose operation has this name."""
    here = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == name]
    return here + [eqn for program in inner_programs(jaxpr) for eqn in _equations(program, name)]


def _maps(apply_fn, loss: Loss, total, params, diagonal_at: Callable, x, targets, jvp: str) -> tuple[Callable, Callable]:
    """``forward`` and ``backward`` of some examples of a batch, whose weights have this sum; linearised once."""
    outputs, push, pull = linearised(lambda p: apply_fn(p, x), params, jvp)
    dtype = at_least_float32(outputs.dtype)
    factor = curvature_factor(outputs.astype(dtype), targets, loss=loss, total=total)
    positions, root = factor.positions, factor.positions**-0.5

    def forward(u):
        pushed = push(like_params(_divide(u, diagonal_at(entry(u, -1))), params)).astype(dtype)
        return factor.transposed(pushed.reshape(positions, -1) * root).reshape(-1)

    def backward(v):
        return pull(factor.times(v.reshape(positions, -1) * root).reshape(outputs.shape).astype(outputs.dtype))

    return forward, backward


def _forward(apply_fn, loss, total, params, diagonal, x, targets, u, jvp):
    return _maps(apply_fn, loss, total, params, lambda _: diagonal, x, targets, jvp)[0](u)


def _backward(apply_fn, loss, total, params, diagonal, x, targets, v, jvp):
    return _maps(apply_fn, loss, total, params, lambda _: diagonal, x, targets, jvp)[1](v)


class Traced:
    """The program of a function for given shapes.

    Programs of one function with the same text are equal, so that each is compiled once. Arrays that the function
    closes over are arguments of the program, so new values of them are seen.
    """

    def __init__(self, apply_fn: Callable, jaxpr):
        key: Any = apply_fn
        try:
            hash(apply_fn)
        except TypeError:
            key = object()  # it equals no other
        self.jaxpr, self.key = jaxpr, (key, str(jaxpr))

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other) -> bool:
        return isinstance(other, Traced) and self.key == other.key

    def with_constants(self, constants: list) -> Callable:
        """``apply_fn(params, x)`` with these values of the arrays that it closes over."""
        return lambda *arguments: jax.core.eval_jaxpr(self.jaxpr, constants, *jax.tree.leaves(arguments))[0]


def trace(apply_fn: Callable, params: PyTree, x: PyTree) -> tuple[Traced, list]:
    """Trace ``apply_fn(params, x)`` for these shapes.

    Args:
      apply_fn: ``apply_fn(params, x) -> (b, ...)``.
      params: Arrays or shapes.
      x: Arrays or shapes.

    Returns:
      The program, and the arrays that ``apply_fn`` closes over.

    >>> program, constants = trace(lambda w, x: x @ w, jnp.ones(2), jnp.ones((1, 2)))
    >>> program.with_constants(constants)(jnp.ones(2), jnp.ones((1, 2))).tolist()
    [2.0]
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), (params, x))
    closed, _ = fresh_jaxpr(apply_fn, *shapes)
    return Traced(apply_fn, closed.jaxpr), closed.consts


def compiled(function: Callable) -> Callable:
    """A function of a model, compiled once for each program of the model.

    Args:
      function: ``function(apply_fn, loss, total, params, diagonal, x, targets, vector, jvp)``.

    Returns:
      The same, with a :func:`tracer` in place of ``apply_fn``; its ``programs`` are those that were compiled.
    """

    def with_constants(traced: Traced, loss, jvp, constants, *arguments):
        return function(traced.with_constants(constants), loss, *arguments, jvp)

    programs = jax.jit(with_constants, static_argnums=(0, 1, 2))

    def run(traced_for: Callable, loss, total, params, diagonal, x, targets, vector, jvp):
        traced, constants = traced_for(x)
        return programs(traced, loss, jvp, constants, total, params, diagonal, x, targets, vector)

    run.programs = programs
    return run


def tracer(apply_fn: Callable, params: PyTree) -> Callable:
    """A function that traces a model for the shapes of its inputs, once for each.

    Args:
      apply_fn: ``apply_fn(params, x) -> (b, ...)``.
      params: Arrays or shapes.

    Returns:
      ``x -> (program, constants)``, see :func:`trace`.

    >>> tracer(lambda w, x: x @ w, jnp.ones(2))(jnp.ones((1, 2)))[1]
    []
    """
    traced: dict = {}

    def of(x):
        leaves, structure = jax.tree.flatten(x)
        key = (structure, *((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves))
        if key not in traced:
            traced[key] = trace(apply_fn, params, x)
        return traced[key]

    return of


_COMPILED = (compiled(_forward), compiled(_backward))
