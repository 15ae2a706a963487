"""Products with the loss-weighted kernel: ``A u`` and ``A^T v``, with ``K_L = A A^T``.

``A = b^(-1/2) B^T J P^(-1/2)``, ``B`` the factor of the loss Hessian. One product with ``K_L`` is one vjp and one jvp of the model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from catapult_jax.losses import curvature_factor
from catapult_jax.xla import at_least_float32, computed_after, entry, fresh_jaxpr, loops_are_slow, sum_of_products

if TYPE_CHECKING:
    pass


class LinearMap(NamedTuple):
    """``A`` and its transpose. A vector ``u`` of the parameter space is a pytree like params."""

    forward: Callable  # u -> A P^(-1/2) u: like params -> (n,)
    backward: Callable  # v -> P^(1/2) A^T v: (n,) -> like params; so a product divides by P once
    square: Callable  # u -> ||P^(-1/2) u||^2
    n: int  # outputs of the batch
    loop: str  # "compiled", "python", or "unrolled": how to repeat products, see loop_kind


def loop_kind(apply_fn: Callable, params, x, arrays) -> str:
    """How to repeat products: in a compiled loop; where XLA runs those slowly (convolutions on the CPU) in a Python loop, or
    unrolled where ``arrays``, all that the products depend on, are traced."""
    if not loops_are_slow(apply_fn, params, x):
        return "compiled"
    return "unrolled" if is_traced(arrays) else "python"


def is_traced(arrays) -> bool:
    """Whether any of these arrays is traced, or a jit stands around the call."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((arrays, jnp.zeros(()))))


def linear_map(
    apply_fn: Callable, params, batch, *, loss: str, preconditioner: Callable, chunk_size: int | None, loop: str
) -> LinearMap:
    """The map ``A`` of a batch.

    Args:
      apply_fn, params, batch, loss: as in :func:`top_eigenpairs`.
      preconditioner: function of no arguments that returns the diagonal of ``P``, or None.
      chunk_size: examples that are linearised at a time, anew in each product; None: all, linearised once.
      loop: see :func:`loop_kind`.
    """
    x, targets = batch
    b = len(x)
    python = loop == "python"
    if python:
        diagonal = preconditioner()
        diagonal_at = lambda _: diagonal
        traced_at = functools.cache(lambda shape, dtype: trace(apply_fn, params, jax.ShapeDtypeStruct(shape, dtype)))
        image_of, pulled_of = (functools.partial(_run_traced, traced_at, program) for program in _COMPILED)
    else:
        diagonal_at = computed_after(preconditioner)
        image_of, pulled_of = (functools.partial(f, apply_fn) for f in (_image, _pulled))
    square = lambda u: (_square_compiled if python else _square)(diagonal_at(entry(u, 0)), u)
    forward_of = lambda u, x, targets: image_of(loss, b, params, diagonal_at(entry(u, -1)), x, targets, u)
    backward_of = lambda v, x, targets: pulled_of(loss, b, params, None, x, targets, v)
    n = math.prod(jax.eval_shape(apply_fn, params, x).shape)

    if chunk_size is None or chunk_size >= b:
        if python:
            forward, backward = (functools.partial(f, x=x, targets=targets) for f in (forward_of, backward_of))
        else:
            forward, backward = _maps(apply_fn, loss, b, params, diagonal_at, x, targets)
        return LinearMap(forward, backward, square, n, loop)

    whole, o = b // chunk_size * chunk_size, n // b
    chunks = jax.tree.map(lambda a: a[:whole].reshape(-1, chunk_size, *a.shape[1:]), (x, targets))
    rest = (x[whole:], targets[whole:])
    add = lambda a, b: jax.tree.map(jnp.add, a, b)
    if python:
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

    return LinearMap(forward, backward, square, n, loop)


def _scaled(u, diagonal):
    return u if diagonal is None else jax.tree.map(jnp.divide, u, diagonal)


def _square(diagonal, u):
    """``||P^(-1/2) u||^2``."""
    return sum(sum_of_products(a, b) for a, b in zip(jax.tree.leaves(u), jax.tree.leaves(_scaled(u, diagonal)), strict=True))


_square_compiled = jax.jit(_square)


def _maps(apply_fn, loss: str, b: int, params, diagonal_at: Callable, x, targets) -> tuple[Callable, Callable]:
    """``forward`` and ``backward`` on some examples of a batch of ``b``, linearised once."""
    outputs, push = jax.linearize(lambda p: apply_fn(p, x), params)
    pull = jax.linear_transpose(push, params)
    factor = curvature_factor(outputs, targets, loss=loss)
    of_examples = lambda v: v.reshape(len(outputs), -1) * b**-0.5
    dtype = at_least_float32(outputs.dtype)
    like_params = lambda tree: jax.tree.map(lambda a, p: a.astype(jnp.result_type(p)), tree, params)

    def forward(u):
        pushed = push(like_params(_scaled(u, diagonal_at(entry(u, -1))))).astype(dtype)
        return factor.transposed(of_examples(pushed)).reshape(-1)

    def backward(v):
        return pull(factor.times(of_examples(v)).reshape(outputs.shape).astype(outputs.dtype))[0]

    return forward, backward


def _image(apply_fn, loss, b, params, diagonal, x, targets, u):
    return _maps(apply_fn, loss, b, params, lambda _: diagonal, x, targets)[0](u)


def _pulled(apply_fn, loss, b, params, diagonal, x, targets, v):
    return _maps(apply_fn, loss, b, params, lambda _: diagonal, x, targets)[1](v)


class Traced:
    """A function's program for given shapes, to be compiled once. It equals another one of the same function and text: constants that the
    function closes over are arguments of the program, so that a new value of them is seen."""

    def __init__(self, apply_fn: Callable, jaxpr):
        try:
            hash(apply_fn)
        except TypeError:
            apply_fn = object()  # equal to no other
        self.jaxpr, self.key = jaxpr, (apply_fn, str(jaxpr))

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other) -> bool:
        return self.key == other.key

    def with_constants(self, constants) -> Callable:
        """``apply_fn(params, x)`` with these constants."""
        return lambda *arguments: jax.core.eval_jaxpr(self.jaxpr, constants, *jax.tree.leaves(arguments))[0]


def trace(apply_fn: Callable, params, x) -> tuple[Traced, list]:
    """The program of ``apply_fn(params, x)`` for these shapes, and the constants that it closes over now."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), (params, x))
    closed, _ = fresh_jaxpr(apply_fn, *shapes)
    return Traced(apply_fn, closed.jaxpr), closed.consts


def _image_traced(traced: Traced, loss, b, constants, *arguments):
    return _image(traced.with_constants(constants), loss, b, *arguments)


def _pulled_traced(traced: Traced, loss, b, constants, *arguments):
    return _pulled(traced.with_constants(constants), loss, b, *arguments)


_COMPILED = tuple(jax.jit(function, static_argnums=(0, 1, 2)) for function in (_image_traced, _pulled_traced))


def _run_traced(traced_at: Callable, program: Callable, loss, b, params, diagonal, x, *rest):
    traced, constants = traced_at(jnp.shape(x), jnp.result_type(x))
    return program(traced, loss, b, constants, params, diagonal, x, *rest)
