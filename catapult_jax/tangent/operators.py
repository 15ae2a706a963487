"""Symmetric maps whose eigenpairs are searched: the loss-weighted kernel, and curvatures in the space of the parameters.

With the Gauss-Newton matrix ``G = J^T S J``, ``S`` the Hessian of the loss in the outputs, the kernel ``A A^T`` of
:mod:`catapult_jax.tangent.products` and ``P^(-1/2) G P^(-1/2)`` have the same non-zero eigenvalues. The second one needs no factor of
``S``, so it serves every loss. The Hessian ``H`` of the loss in the parameters takes the place of ``G`` on demand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from catapult_jax.losses import FunctionLoss, Loss, curvature_factor
from catapult_jax.tangent.checks import batch_size
from catapult_jax.tangent.products import LinearMap, Traced, compiled, in_chunks, like_params, linearised, trace, tracer
from catapult_jax.xla import at_least_float32, computed_after, entry

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree

CURVATURES = ("gauss_newton", "hessian")


class Operator(NamedTuple):
    """A symmetric map of the vectors of a search. A direction is a vector in the space of the parameters, without ``P``."""

    product: Callable  # v -> K v
    from_direction: Callable  # u -> v
    to_direction: Callable  # v -> u
    like: Any  # shapes of a vector
    n: int  # its number of entries
    loop: str  # how to repeat products, see loop_kind
    is_semidefinite: bool  # by construction


def of_outputs(A: LinearMap) -> Operator:
    """The loss-weighted kernel ``A A^T``, in the space of the outputs.

    Args:
      A: From :func:`catapult_jax.tangent.products.linear_map`.

    Returns:
      The operator.

    >>> A = LinearMap(lambda u: 2 * u, lambda v: 2 * v, lambda u: u @ u, 3, "compiled")
    >>> of_outputs(A).product(jnp.ones(3)).tolist()
    [4.0, 4.0, 4.0]
    """
    product = lambda v: A.forward(A.backward(v))
    return Operator(product, A.forward, A.backward, jax.ShapeDtypeStruct((A.n,), jnp.float32), A.n, A.loop, True)


def of_parameters(
    apply_fn: Callable,
    params: PyTree,
    batch: tuple[PyTree, PyTree],
    *,
    loss: Loss,
    curvature: str,
    preconditioner: Callable,
    chunk_size: int | None,
    loop: str,
    jvp: str = "forward",
) -> Operator:
    """``P^(-1/2) G P^(-1/2)``, or the same with the Hessian, in the space of the parameters.

    Args:
      apply_fn, params, batch, loss, curvature: As in :func:`catapult_jax.tangent.top_eigenpairs`.
      preconditioner: A function of no arguments that returns the diagonal of ``P``, or None.
      chunk_size: Examples that are linearised at a time, again in each product. None: all, linearised once.
      loop: See :func:`catapult_jax.tangent.products.loop_kind`.
      jvp: See :func:`catapult_jax.tangent.products.linearised`.

    Returns:
      The operator. One product is one jvp and one vjp of the model, or of its gradient.

    Source: Pearlmutter (1994) for the Hessian; Schraudolph (2002) for the Gauss-Newton matrix.

    >>> from catapult_jax.losses import as_loss
    >>> K = of_parameters(
    ...     lambda w, x: x @ w, jnp.zeros(2), (jnp.eye(2), jnp.zeros(2)), loss=as_loss("mse"), curvature="hessian",
    ...     preconditioner=lambda: None, chunk_size=None, loop="compiled",
    ... )
    >>> K.product(jnp.array([1.0, 2.0])).tolist()  # (2 / b) x^T x u
    [1.0, 2.0]
    """
    x, targets = batch
    make = _MAKERS[curvature]
    total = loss.total(jax.eval_shape(apply_fn, params, x), targets)
    if loop == "python":
        diagonal = preconditioner()
        diagonal_at = lambda _: diagonal
        of_examples = partial(_PROGRAMS[curvature], tracer(apply_fn, params))
    else:
        diagonal_at = computed_after(preconditioner)
        of_examples = partial(_apply, make, apply_fn)
    if chunk_size is not None and chunk_size < batch_size(x):
        whole = lambda u: _sum_of_chunks(of_examples, loss, total, params, batch, u, chunk_size, loop, jvp)
    elif loop == "python":
        whole = lambda u: of_examples(loss, total, params, None, x, targets, u, jvp)
    else:
        whole = make(apply_fn, loss, total, params, x, targets, jvp)
    dtypes = jax.tree.map(lambda p: at_least_float32(jnp.result_type(p)), params)
    widened = lambda u: jax.tree.map(lambda a, dtype: a.astype(dtype), u, dtypes)
    power = lambda u, exponent: _times_power(u, diagonal_at(entry(u, -1)), exponent)

    def product(u):
        image = widened(whole(like_params(power(u, -0.5), params)))
        return power(image, -0.5)

    like = jax.tree.map(lambda p: jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p)), params)
    n = sum(leaf.size for leaf in jax.tree.leaves(like))
    is_semidefinite = curvature == "gauss_newton" and loss.has_factor
    return Operator(product, lambda u: power(widened(u), -0.5), lambda v: power(v, 0.5), like, n, loop, is_semidefinite)


def _times_power(u: PyTree, diagonal: PyTree | None, exponent: float) -> PyTree:
    """``P^exponent u``."""
    return u if diagonal is None else jax.tree.map(lambda a, p: a * jnp.asarray(p, a.dtype) ** exponent, u, diagonal)


def _gauss_newton(apply_fn, loss: Loss, total, params, x, targets, jvp: str) -> Callable:
    """``u -> J^T S J u``, linearised once."""
    outputs, push, pull = linearised(lambda p: apply_fn(p, x), params, jvp)
    curve = _curvature_in_outputs(loss, total, outputs.astype(at_least_float32(outputs.dtype)), targets)
    return lambda u: pull(curve(push(u)).astype(outputs.dtype))


def _curvature_in_outputs(loss: Loss, total, outputs: Array, targets) -> Callable:
    """``v -> S v``; by the factor of ``S`` where the loss has one, which holds less than the derivatives of the loss."""
    if not loss.has_factor:
        curve = jax.linearize(jax.grad(lambda f: loss(f, targets, total)), outputs)[1]
        return lambda v: curve(v.astype(outputs.dtype))
    factor = curvature_factor(outputs, targets, loss=loss, total=total)

    def curve(v):
        rows = v.reshape(factor.positions, -1).astype(outputs.dtype)
        return (factor.times(factor.transposed(rows)) / factor.positions).reshape(v.shape)

    return curve


def _hessian(apply_fn, loss: Loss, total, params, x, targets, jvp: str) -> Callable:
    """``u -> H u``, linearised once."""
    del jvp

    def value(params):
        outputs = apply_fn(params, x)
        return loss(outputs.astype(at_least_float32(outputs.dtype)), targets, total)

    return jax.linearize(jax.grad(value), params)[1]


_MAKERS = {"gauss_newton": _gauss_newton, "hessian": _hessian}


def _apply(make: Callable, apply_fn, loss, total, params, diagonal, x, targets, u, jvp):
    del diagonal
    return make(apply_fn, loss, total, params, x, targets, jvp)(u)


_PROGRAMS = {name: compiled(partial(_apply, make)) for name, make in _MAKERS.items()}


class _LossProgram(NamedTuple):
    """A traced function of outputs and ``(targets, arrays that it closes over)``. Two with the same text are equal."""

    traced: Traced

    def __call__(self, outputs: Array, targets: tuple) -> Array:
        targets, constants = targets
        return self.traced.with_constants(constants)(outputs, targets)


def traced_loss(loss: FunctionLoss, outputs: jax.ShapeDtypeStruct, targets: PyTree) -> tuple[FunctionLoss, tuple]:
    """A loss whose programs are compiled once, and which sees new values of the arrays that the function closes over.

    Args:
      loss: A function.
      outputs: Shape of the outputs.
      targets: Of the batch.

    Returns:
      The loss, and the targets that it takes.

    >>> loss, targets = traced_loss(FunctionLoss(function=lambda f, y: jnp.mean(f - y)), jnp.ones(2), jnp.zeros(2))
    >>> float(loss(jnp.ones(2), targets))
    1.0
    """
    wide = jax.ShapeDtypeStruct(outputs.shape, at_least_float32(outputs.dtype))
    traced, constants = trace(loss.function, wide, targets)
    return FunctionLoss(function=_LossProgram(traced)), (targets, constants)


def _sum_of_chunks(of_examples, loss, total, params, batch, u, chunk_size: int, loop: str, jvp: str):
    """The product of a batch as the sum of those of its chunks; the last one may be smaller."""
    chunks, rest = in_chunks(batch, chunk_size)
    of_chunk = lambda chunk: of_examples(loss, total, params, None, *chunk, u, jvp)
    add = lambda a, b: jax.tree.map(jnp.add, a, b)
    if loop == "python":
        pieces = [jax.tree.map(lambda a, i=i: a[i], chunks) for i in range(batch_size(chunks))]
        result = reduce(add, map(of_chunk, pieces))
    else:
        zeros = jax.tree.map(jnp.zeros_like, params)
        body = lambda sum_so_far, chunk: (add(sum_so_far, of_chunk(chunk)), None)
        result = lax.scan(body, zeros, chunks, unroll=loop == "unrolled")[0]
    return add(result, of_chunk(rest)) if batch_size(rest) else result
