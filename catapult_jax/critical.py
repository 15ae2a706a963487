"""Critical learning rates: the largest learning rate at which the loss does not rise in the linear regime."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from catapult_jax.losses import curvature_columns, curvature_factor, hessian_range, output_gradient
from catapult_jax.preconditioners import PLAIN, Preconditioner
from catapult_jax.tangent import tangent_kernel
from catapult_jax.tangent.checks import check_arguments, check_batch, check_loss
from catapult_jax.tangent.kernel import kernel_and_pullback
from catapult_jax.xla import warn_of_lapack_threads

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree


def loss_weighted_kernel(
    kernel: Float[Array, "bo bo"], outputs: Float[Array, "b *o"], targets: Array, *, loss: str
) -> Float[Array, "bo bo"]:
    """Loss-weighted kernel ``K_L = (1/b) B^T K B``, with ``S = B B^T`` the loss Hessian in the outputs.

    ``B`` is the factor of :func:`catapult_jax.losses.curvature_factor`; another factor gives the same spectrum. The non-zero spectrum
    is that of the Gauss-Newton matrix, so ``2 / lambda_max(K_L)`` is the critical learning rate of
    gradient descent for every loss; for ``mse``, ``K_L = (2/b) K``.

    Args:
      kernel: tangent kernel, example-major, as :func:`tangent_kernel` returns it.
      outputs: ``(b,)`` or ``(b, o)``.
      targets: as the loss wants them.
      loss: ``"mse"``, ``"softmax_cross_entropy"`` or ``"logistic"``.

    Units: inverse learning rate.

    Raises:
      ValueError: unknown loss, or shapes that don't fit.

    Source: the Gauss-Newton identity; for the critical learning rate, Zhu et al. (2024), arXiv 2306.04815.

    >>> loss_weighted_kernel(jnp.eye(2), jnp.zeros(2), jnp.zeros(2), loss="mse").tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    b = jnp.shape(outputs)[0]
    if jnp.shape(kernel) != (jnp.size(outputs),) * 2:
        raise ValueError(
            f"kernel has shape {jnp.shape(kernel)}; allowed for outputs {jnp.shape(outputs)}: {(jnp.size(outputs),) * 2}"
        )
    factor, n = curvature_factor(outputs, targets, loss=loss), jnp.size(outputs)
    if loss == "mse":  # S = 2 I
        return kernel * (2 / b)
    of_rows = jax.vmap(lambda row: factor.transposed(row.reshape(b, -1)).reshape(-1))
    return of_rows(of_rows(kernel).T).T.reshape(n, n) / b


def weighted_tangent_kernel(
    apply_fn: Callable,
    params: PyTree,
    batch: tuple[Array, Array],
    outputs: Float[Array, "b *o"],
    *,
    loss: str,
    method: str = "auto",
    preconditioner: PyTree | None = None,
    chunk_size: int | None = None,
) -> Float[Array, "br br"]:
    """Loss-weighted kernel of a batch in ``r`` rows for each example, ``(1/b) F^T K F``, ``F = B Q`` the columns of
    :func:`catapult_jax.losses.curvature_columns`.

    The same non-zero spectrum as :func:`loss_weighted_kernel`, from as many backward passes as the rank ``r`` of the loss Hessian:
    one in place of two for two classes. ``Q`` times its eigenvectors are those of the loss-weighted kernel.

    Args:
      apply_fn, params, batch, loss: as in :func:`critical_lr`.
      outputs: ``apply_fn(params, x)``, which a training step has anyway.
      method, preconditioner, chunk_size: as in :func:`tangent_kernel`.

    Units: inverse learning rate.

    Raises:
      ValueError: as :func:`tangent_kernel` and :func:`loss_weighted_kernel`.

    Source: the Gauss-Newton identity.

    >>> linear, x = lambda w, x: x @ w, jnp.eye(2)
    >>> batch, outputs = (x, jnp.array([0, 1])), jnp.zeros((2, 2))
    >>> weighted_tangent_kernel(linear, outputs, batch, outputs, loss="softmax_cross_entropy").round(3).tolist()
    [[0.25, 0.0], [0.0, 0.25]]
    """
    x, targets = check_batch(batch)
    options = dict(method=method, preconditioner=preconditioner, chunk_size=chunk_size)
    if loss == "mse" or method == "neural_tangents":
        return loss_weighted_kernel(tangent_kernel(apply_fn, params, x, **options), outputs, targets, loss=loss)
    with jax.default_matmul_precision("highest"):
        columns, _ = curvature_columns(outputs, targets, loss=loss)
    return tangent_kernel(apply_fn, params, x, cotangents=columns, **options) / len(x)


def weighted_kernel_and_gradient(
    apply_fn: Callable, params: PyTree, batch: tuple[Array, Array], *, loss: str
) -> tuple[Float[Array, "b *o"], Float[Array, "br br"], PyTree]:
    """``(outputs, weighted, gradient)``: :func:`weighted_tangent_kernel` of a batch and the gradient of its loss, in one pass.

    The derivatives ``D`` of the outputs that the kernel is made of give the gradient as well: its cotangents are ``D`` times the
    gradient of the loss in the outputs. A training step that takes it from here is spared its own forward and backward pass to the
    pre-activations. The same numbers as ``jax.grad`` up to rounding, at the highest matmul precision.

    Args:
      apply_fn, params, batch, loss: as in :func:`critical_lr`.

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
    o = math.prod(out.shape[1:])
    basis = hessian_range(o, loss=loss)
    outputs, kernel, pullback = kernel_and_pullback(apply_fn, params, x, basis)
    with jax.default_matmul_precision("highest"):
        slopes = output_gradient(outputs, targets, loss=loss)
        basis = jnp.asarray(basis, slopes.dtype)  # the gradient of the loss lies in the range of its Hessian
        gradient = pullback(slopes @ basis / len(x))
        if loss == "mse":
            return outputs, kernel * (2 / len(x)), gradient
        columns, _ = curvature_columns(outputs, targets, loss=loss)  # F = basis (basis^T F)
        inner = jnp.einsum("or,iop->irp", basis, columns).astype(kernel.dtype)
        b, r = inner.shape[:2]
        weighted = jnp.einsum("iop,iojq,jqr->ipjr", inner, kernel.reshape(b, r, b, r), inner) / b
        return outputs, weighted.reshape(b * r, b * r), gradient


def critical_lr_from_lambda(lambda_max: Float[Array, "*m"], preconditioner: Preconditioner = PLAIN) -> Float[Array, "*m"]:
    """Critical learning rate ``2 / (gain lambda_max + decay)``; infinite where nothing grows, NaN where something is not
    known, or where the check of ``preconditioner`` failed.

    Args:
      lambda_max: largest eigenvalue of the loss-weighted kernel, of that with ``P`` where there is one.
      preconditioner: of the optimizer, see :func:`catapult_jax.preconditioner_from_state`; default: plain gradient descent, SGD. Heavy ball has
        ``gain = 1 / (1 + momentum)``.

    Source: the roots of ``z^2 - (1 + beta - lr lambda) z + beta`` leave the unit circle at ``lr = 2 (1 + beta) / lambda``, through
    ``z = -1``, and likewise for the other rules; Cohen et al. (2021), arXiv 2103.00065.

    >>> float(critical_lr_from_lambda(jnp.array(4.0)))
    0.5
    >>> round(float(critical_lr_from_lambda(jnp.array(4.0), Preconditioner(gain=1 / (1 + 0.5)))), 6)
    0.75
    """
    rate = preconditioner.gain * lambda_max + preconditioner.decay  # twice the inverse
    if preconditioner.checked is not None:
        rate = jnp.where(preconditioner.checked, rate, jnp.nan)
    unknown = (
        rate != rate
    )  # NaN stays; where nothing was checked none is made here, so that jax_debug_nans finds those of the caller alone
    return jnp.where(rate > 0, 2 / jnp.where(rate > 0, rate, 1), jnp.where(unknown, rate, jnp.inf))


def critical_lr(
    apply_fn: Callable,
    params: PyTree,
    batch: tuple[Array, Array],
    *,
    loss: str,
    preconditioner: Preconditioner = PLAIN,
    method: str = "auto",
) -> Float[Array, ""]:
    """Critical learning rate of an optimizer on a batch, ``2 / (gain lambda_max(K_P) + decay)``; of gradient descent ``2 / lambda_max(K_L)``.

    A step with a larger learning rate makes the component of the residual along the top eigenvector grow: in the linear
    regime the loss on that batch rises. For gradient descent and ``mse`` this is ``b / lambda_max(K)``, for one example with a
    scalar output ``1 / ||grad_w f||^2``.

    Args:
      apply_fn: ``apply_fn(params, x) -> outputs``.
      params: parameters.
      batch: ``(x, targets)``.
      loss: ``"mse"``, ``"softmax_cross_entropy"`` or ``"logistic"``.
      preconditioner: of the optimizer, see :func:`catapult_jax.preconditioner_from_state`; default: plain gradient descent, SGD. With a diagonal the
        whole kernel takes the gradients of each example: for large models take the eigenvalue of :func:`top_eigenpairs` with
        ``preconditioner=preconditioner.diagonal`` to :func:`critical_lr_from_lambda`.
      method: how the kernel is computed, see :func:`tangent_kernel`.

    Returns:
      A scalar, in units of the learning rate; infinite where the kernel is zero.

    Raises:
      ValueError: as :func:`tangent_kernel` and :func:`loss_weighted_kernel`.

    Source: Lewkowycz et al. (2020), arXiv 2003.02218; Zhu et al. (2024), arXiv 2306.04815; with ``P`` Cohen et al. (2022),
    arXiv 2207.14484.

    >>> linear = lambda w, x: x @ w
    >>> batch = (jnp.array([[3.0, 4.0]]), jnp.array([1.0]))
    >>> round(float(critical_lr(linear, jnp.zeros(2), batch, loss="mse")), 6)  # 1 / |x|^2
    0.04
    >>> preconditioner = Preconditioner(diagonal=jnp.array([9.0, 16.0]))
    >>> round(float(critical_lr(linear, jnp.zeros(2), batch, loss="mse", preconditioner=preconditioner)), 6)
    0.5
    """
    x, targets = check_batch(batch)
    check_loss(check_arguments(apply_fn, params, x), targets, loss=loss)
    warn_of_lapack_threads()
    with jax.default_matmul_precision("highest"):
        outputs = apply_fn(params, x)
    weighted = weighted_tangent_kernel(
        apply_fn, params, batch, outputs, loss=loss, method=method, preconditioner=preconditioner.diagonal
    )
    return critical_lr_from_lambda(jnp.linalg.eigvalsh(weighted)[-1], preconditioner)
