"""The loss-weighted kernel of a batch, and the gradient of its loss from the same pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from catapult_jax.losses import (
    Loss,
    SquaredError,
    as_loss,
    curvature_columns,
    curvature_factor,
    hessian_range,
    output_gradient,
)
from catapult_jax.tangent.checks import batch_size, check_arguments, check_batch, check_loss
from catapult_jax.tangent.kernel import kernel_and_pullback, tangent_kernel
from catapult_jax.tangent.placement import placed_by_compiler
from catapult_jax.xla import eigh

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree


def loss_weighted_kernel(
    kernel: Float[Array, "bo bo"], outputs: Float[Array, "b *o"], targets: PyTree, *, loss: str | Loss | Callable
) -> Float[Array, "bo bo"]:
    """Loss-weighted kernel ``K_L = (1/n) B^T K B``, with ``S = B B^T`` the Hessian of the loss of each of ``n`` positions.

    Its non-zero eigenvalues are those of the Gauss-Newton matrix.
    So ``2 / lambda_max(K_L)`` is the critical learning rate of gradient descent, for every loss.
    For ``mse``, ``K_L = (2/b) K``.
    ``B`` is the factor of :func:`catapult_jax.losses.curvature_factor`; another factor gives the same eigenvalues.
    Where the loss has no factor, it is ``K^(1/2) S K^(1/2)`` with ``S`` the Hessian of the loss of the batch, which has the same
    eigenvalues, also the negative ones.

    Args:
      kernel: tangent kernel, example-major, as :func:`catapult_jax.tangent_kernel` returns it.
      outputs: ``(b, ...)``.
      targets: as the loss takes them.
      loss: a name, an object of :mod:`catapult_jax.losses`, or a function.

    Returns:
      ``(b*o, b*o)``, in units of an inverse learning rate.

    Raises:
      ValueError: unknown loss, or shapes that do not fit.

    Source: the Gauss-Newton identity; for the critical learning rate, Zhu et al. (2024), arXiv 2306.04815.

    >>> loss_weighted_kernel(jnp.eye(2), jnp.zeros(2), jnp.zeros(2), loss="mse").tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    loss = as_loss(loss)
    if jnp.shape(kernel) != (jnp.size(outputs),) * 2:
        raise ValueError(
            f"kernel has shape {jnp.shape(kernel)}; allowed for outputs {jnp.shape(outputs)}: {(jnp.size(outputs),) * 2}"
        )
    return placed_by_compiler(partial(_weigh, loss), kernel, outputs, targets)


def _weigh(loss: Loss, kernel: Array, outputs: Array, targets: PyTree) -> Array:
    if not loss.has_factor:
        return _by_hessian(kernel, jnp.asarray(outputs), targets, loss)
    factor = curvature_factor(outputs, targets, loss=loss)
    if loss == SquaredError():  # S = 2 I
        return kernel * (2 / factor.positions)
    times_factor = jax.vmap(
        lambda row: factor.transposed(row.reshape(factor.positions, -1)).reshape(-1)
    )  # M -> M B, row by row
    return times_factor(times_factor(kernel).T).T.reshape(kernel.shape) / factor.positions


def _by_hessian(kernel: Array, outputs: Array, targets: PyTree, loss: Loss) -> Array:
    """``K^(1/2) S K^(1/2)``, with ``S`` the Hessian of the loss of the batch in all outputs."""
    S = jax.hessian(lambda f: loss(f.reshape(outputs.shape), targets))(outputs.reshape(-1).astype(kernel.dtype))
    values, vectors = eigh(kernel)
    root = (vectors * jnp.sqrt(jnp.maximum(values, 0))[None]) @ vectors.T
    return root @ S @ root


def weighted_tangent_kernel(
    apply_fn: Callable,
    params: PyTree,
    batch: tuple[PyTree, PyTree],
    outputs: Float[Array, "b *o"],
    *,
    loss: str | Loss | Callable,
    method: str = "auto",
    preconditioner: PyTree | None = None,
    chunk_size: int | None = None,
) -> Float[Array, "br br"]:
    """Loss-weighted kernel of a batch with ``r`` rows per position, ``(1/n) F^T K F``.

    ``F = B Q`` are the columns of :func:`catapult_jax.losses.curvature_columns`, and ``r`` is the rank of the loss Hessian.
    The non-zero eigenvalues are those of :func:`loss_weighted_kernel`; ``Q`` times an eigenvector is an eigenvector there.
    The kernel takes ``r`` backward passes instead of ``o``: one instead of two for two classes.

    Args:
      apply_fn: ``apply_fn(params, x) -> outputs``.
      params: parameters.
      batch: ``(x, targets)``.
      outputs: ``apply_fn(params, x)``, which a training step has anyway.
      loss: a name, or an object of :mod:`catapult_jax.losses`.
      method: how the kernel is computed, see :func:`catapult_jax.tangent_kernel`.
      preconditioner: diagonal ``P``, a tree like ``params``: the kernel is that of ``J P^(-1) J^T``.
      chunk_size: examples per block of the kernel, see :func:`catapult_jax.tangent_kernel`.

    Returns:
      ``(n*r, n*r)``, in units of an inverse learning rate.

    Raises:
      ValueError: as :func:`catapult_jax.tangent_kernel` and :func:`loss_weighted_kernel`.

    Source: the Gauss-Newton identity.

    >>> linear, x = lambda w, x: x @ w, jnp.eye(2)
    >>> batch, outputs = (x, jnp.array([0, 1])), jnp.zeros((2, 2))
    >>> weighted_tangent_kernel(linear, outputs, batch, outputs, loss="softmax_cross_entropy").round(3).tolist()
    [[0.25, 0.0], [0.0, 0.25]]
    """
    x, targets = check_batch(batch)
    loss = as_loss(loss)
    # The kernel of all outputs is weighted afterwards.
    is_whole = not loss.has_factor or loss == SquaredError() or method == "neural_tangents"
    columns, positions = None, 1
    if not is_whole:
        with jax.default_matmul_precision("highest"):
            F, _ = curvature_columns(outputs, targets, loss=loss)
            columns, positions = _by_example(F, batch_size(x)), len(F)
    kernel = tangent_kernel(
        apply_fn, params, x, method=method, cotangents=columns, preconditioner=preconditioner, chunk_size=chunk_size
    )
    return loss_weighted_kernel(kernel, outputs, targets, loss=loss) if is_whole else kernel / positions


def _by_example(F: Float[Array, "n o r"], b: int) -> Float[Array, "b to tr"]:
    """The columns of all positions of an example, side by side: those of one position are zero at the others."""
    n, o, r = F.shape
    if n == b:
        return F
    t = n // b
    return jnp.einsum("btor,ts->btosr", F.reshape(b, t, o, r), jnp.eye(t, dtype=F.dtype)).reshape(b, t * o, t * r)


def weighted_kernel_and_gradient(
    apply_fn: Callable, params: PyTree, batch: tuple[PyTree, PyTree], *, loss: str | Loss
) -> tuple[Float[Array, "b *o"], Float[Array, "br br"], PyTree]:
    """Outputs, loss-weighted kernel and gradient of the loss of a batch, in one pass.

    The kernel is made of derivatives ``D`` of the outputs.
    ``D`` times the gradient of the loss in the outputs gives the gradient in the parameters.
    So a training step needs no forward and backward pass of its own.

    Args:
      apply_fn: ``apply_fn(params, x) -> outputs``.
      params: parameters.
      batch: ``(x, targets)``.
      loss: a name, or an object of :mod:`catapult_jax.losses`.

    Returns:
      ``(outputs, weighted, gradient)``: ``apply_fn(params, x)``; :func:`weighted_tangent_kernel`, in units of an inverse
      learning rate; a tree like ``params`` that equals ``jax.grad`` up to rounding, at the highest matmul precision.

    Raises:
      ValueError: as :func:`weighted_tangent_kernel`.

    Source: the chain rule.

    >>> linear, batch = lambda w, x: x @ w, (jnp.eye(2), jnp.array([1.0, 0.0]))
    >>> outputs, weighted, gradient = weighted_kernel_and_gradient(linear, jnp.array([3.0, 1.0]), batch, loss="mse")
    >>> gradient.tolist(), weighted.tolist()  # 2 (f - y) / b, (2 / b) I
    ([2.0, 1.0], [[1.0, 0.0], [0.0, 1.0]])
    """
    x, targets = check_batch(batch)
    out = check_arguments(apply_fn, params, x)
    check_loss(out, targets, loss=loss)
    loss = as_loss(loss)
    n, o = jax.eval_shape(lambda f, y: loss.rows(f, y).outputs, out, targets).shape
    basis = hessian_range(o, loss=loss)
    of_example = np.kron(np.eye(n // out.shape[0]), basis)
    outputs, kernel, pullback = kernel_and_pullback(apply_fn, params, x, of_example)  # pyright: ignore[reportArgumentType] (cast there)
    with jax.default_matmul_precision("highest"):
        slopes = output_gradient(outputs, targets, loss=loss)
        basis = jnp.asarray(basis, slopes.dtype)
        # The slopes lie in the range of the loss Hessian, so nothing is lost.
        gradient = pullback((slopes @ basis / n).reshape(out.shape[0], -1))
        if loss == SquaredError():
            return outputs, kernel * (2 / n), gradient
        columns, _ = curvature_columns(outputs, targets, loss=loss)
        inner = jnp.einsum("or,iop->irp", basis, columns).astype(kernel.dtype)  # F = basis inner
        r = inner.shape[1]
        weighted = jnp.einsum("iop,iojq,jqr->ipjr", inner, kernel.reshape(n, r, n, r), inner) / n
        return outputs, weighted.reshape(n * r, n * r), gradient
