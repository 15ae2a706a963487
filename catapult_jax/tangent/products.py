"""The loss-weighted kernel as a linear map: ``A u`` and ``A^T v``, with ``K_L = A A^T``.

``A = b^(-1/2) B^T J P^(-1/2)``, with the factor ``B`` of the loss Hessian. One product with ``K_L`` is one vjp and one
jvp of the model.
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

from catapult_jax.losses import curvature_factor
from catapult_jax.xla import at_least_float32, computed_after, entry, fresh_jaxpr, loops_are_slow, sum_of_products

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree


class LinearMap(NamedTuple):
    """The two halves of a product with ``K_L = forward(backward(v))``. ``P`` is divided by once, in ``forward``.

    A vector ``u`` of the parameter space is a pytree like params.
    """

    forward: Callable  # u -> b^(-1/2) B^T J P^(-1) u: like params -> (n,)
    backward: Callable  # v -> b^(-1/2) J^T B v: (n,) -> like params
    square: Callable  # u -> ||P^(-1/2) u||^2
    n: int  # number of outputs of the batch
    loop: str  # how to repeat products: "compiled", "python" or "unrolled", see loop_kind


def loop_kind(apply_fn: Callable, params: PyTree, x: Array, arrays: PyTree) -> str:
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
    if not loops_are_slow(apply_fn, params, x):
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
    batch: tuple[Array, Array],
    *,
    loss: str,
    preconditioner: Callable,
    chunk_size: int | None,
    loop: str,
) -> LinearMap:
    """The two halves of a product with the loss-weighted kernel of a batch.

    Args:
      apply_fn, params, batch, loss: As in :func:`catapult_jax.tangent.top_eigenpairs`.
      preconditioner: A function of no arguments that returns the diagonal of ``P``, or None.
      chunk_size: Examples that are linearised at a time, again in each product. None: all, linearised once.
      loop: See :func:`loop_kind`.

    Returns:
      The linear map, its transpose without ``P``, and the norm.

    Source: the chain rule.

    >>> A = linear_map(
    ...     lambda w, x: x @ w, jnp.zeros(2), (jnp.eye(2), jnp.zeros(2)),
    ...     loss="mse", preconditioner=lambda: None, chunk_size=None, loop="compiled",
    ... )
    >>> A.forward(jnp.array([1.0, 2.0])).round(4).tolist()  # b^(-1/2) sqrt(2) x u
    [1.0, 2.0]
    """
    x, targets = batch
    b = len(x)
    python = loop == "python"
    if python:
        diagonal = preconditioner()
        diagonal_at = lambda _: diagonal
        traced_at = functools.cache(lambda shape, dtype: trace(apply_fn, params, jax.ShapeDtypeStruct(shape, dtype)))
        forward_at, backward_at = (functools.partial(_run_traced, traced_at, program) for program in _COMPILED)
    else:
        diagonal_at = computed_after(preconditioner)
        forward_at, backward_at = (functools.partial(f, apply_fn) for f in (_forward, _backward))
    square = lambda u: (_square_compiled if python else _square)(diagonal_at(entry(u, 0)), u)
    forward_of = lambda u, x, targets: forward_at(loss, b, params, diagonal_at(entry(u, -1)), x, targets, u)
    backward_of = lambda v, x, targets: backward_at(loss, b, params, None, x, targets, v)
    n = math.prod(jax.eval_shape(apply_fn, params, x).shape)

    if chunk_size is None or chunk_size >= b:
        if python:
            forward, backward = (functools.partial(f, x=x, targets=targets) for f in (forward_of, backward_of))
        else:
            forward, backward = _maps(apply_fn, loss, b, params, diagonal_at, x, targets)
        return LinearMap(forward, backward, square, n, loop)

    forward, backward = _in_chunks(forward_of, backward_of, params, x, targets, n // b, chunk_size, loop)
    return LinearMap(forward, backward, square, n, loop)


def _in_chunks(forward_of, backward_of, params, x, targets, o: int, chunk_size: int, loop: str) -> tuple[Callable, Callable]:
    """``forward`` and ``backward``, chunk by chunk; the last chunk may be smaller. ``o``: outputs per example."""
    b = len(x)
    whole = b // chunk_size * chunk_size
    chunks = jax.tree.map(lambda a: a[:whole].reshape(-1, chunk_size, *a.shape[1:]), (x, targets))
    rest = (x[whole:], targets[whole:])
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


def _divide(u, diagonal):
    """``P^(-1) u``."""
    return u if diagonal is None else jax.tree.map(jnp.divide, u, diagonal)


def _square(diagonal, u):
    """``||P^(-1/2) u||^2``."""
    return sum(sum_of_products(a, b) for a, b in zip(jax.tree.leaves(u), jax.tree.leaves(_divide(u, diagonal)), strict=True))


_square_compiled = jax.jit(_square)


def _maps(apply_fn, loss: str, b: int, params, diagonal_at: Callable, x, targets) -> tuple[Callable, Callable]:
    """``forward`` and ``backward`` of some examples of a batch of ``b``, linearised once."""
    outputs, push = jax.linearize(lambda p: apply_fn(p, x), params)
    pull = jax.linear_transpose(push, params)
    factor = curvature_factor(outputs, targets, loss=loss)
    by_example = lambda v: v.reshape(len(outputs), -1) * b**-0.5
    dtype = at_least_float32(outputs.dtype)
    like_params = lambda tree: jax.tree.map(lambda a, p: a.astype(jnp.result_type(p)), tree, params)

    def forward(u):
        pushed = push(like_params(_divide(u, diagonal_at(entry(u, -1))))).astype(dtype)
        return factor.transposed(by_example(pushed)).reshape(-1)

    def backward(v):
        return pull(factor.times(by_example(v)).reshape(outputs.shape).astype(outputs.dtype))[0]

    return forward, backward


def _forward(apply_fn, loss, b, params, diagonal, x, targets, u):
    return _maps(apply_fn, loss, b, params, lambda _: diagonal, x, targets)[0](u)


def _backward(apply_fn, loss, b, params, diagonal, x, targets, v):
    return _maps(apply_fn, loss, b, params, lambda _: diagonal, x, targets)[1](v)


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


def trace(apply_fn: Callable, params: PyTree, x: Array | jax.ShapeDtypeStruct) -> tuple[Traced, list]:
    """Trace ``apply_fn(params, x)`` for these shapes.

    Args:
      apply_fn: ``apply_fn(params, x) -> (b, ...)``.
      params: Arrays or shapes.
      x: Array or shape.

    Returns:
      The program, and the arrays that ``apply_fn`` closes over.

    >>> program, constants = trace(lambda w, x: x @ w, jnp.ones(2), jnp.ones((1, 2)))
    >>> program.with_constants(constants)(jnp.ones(2), jnp.ones((1, 2))).tolist()
    [2.0]
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), (params, x))
    closed, _ = fresh_jaxpr(apply_fn, *shapes)
    return Traced(apply_fn, closed.jaxpr), closed.consts


def _forward_traced(traced: Traced, loss, b, constants, *arguments):
    return _forward(traced.with_constants(constants), loss, b, *arguments)


def _backward_traced(traced: Traced, loss, b, constants, *arguments):
    return _backward(traced.with_constants(constants), loss, b, *arguments)


_COMPILED = tuple(jax.jit(function, static_argnums=(0, 1, 2)) for function in (_forward_traced, _backward_traced))


def _run_traced(traced_at: Callable, program: Callable, loss, b, params, diagonal, x, *rest):
    traced, constants = traced_at(jnp.shape(x), jnp.result_type(x))
    return program(traced, loss, b, constants, params, diagonal, x, *rest)
