"""Critical learning rates: the largest learning rate at which no mode grows in the linear regime."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from catapult_jax.losses import Loss
from catapult_jax.preconditioners import PLAIN, Preconditioner
from catapult_jax.tangent.checks import check_arguments, check_batch, check_loss
from catapult_jax.tangent.placement import placed_by_compiler
from catapult_jax.tangent.weighted import weighted_tangent_kernel
from catapult_jax.xla import warn_of_lapack_threads

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree


def critical_lr_from_lambda(lambda_max: Float[Array, "*m"], preconditioner: Preconditioner = PLAIN) -> Float[Array, "*m"]:
    """Critical learning rate of an eigenvalue, ``2 / (gain lambda_max + decay)``.

    Args:
      lambda_max: largest eigenvalue of the loss-weighted kernel, with ``P`` if the optimizer has one; any shape.
      preconditioner: of the optimizer, from :func:`catapult_jax.preconditioner_from_state`; default: plain gradient descent,
        SGD. Heavy ball has ``gain = 1 / (1 + momentum)``.

    Returns:
      The shape of ``lambda_max``, in units of the learning rate. Infinite if no mode can grow. NaN if ``lambda_max``, ``gain``
      or ``decay`` is NaN, or if the check of ``preconditioner`` failed.

    Source: the roots of ``z^2 - (1 + beta - lr lambda) z + beta`` leave the unit circle at ``lr = 2 (1 + beta) / lambda``,
    through ``z = -1``, and likewise for the other rules; Cohen et al. (2021), arXiv 2103.00065.

    >>> float(critical_lr_from_lambda(jnp.array(4.0)))
    0.5
    >>> round(float(critical_lr_from_lambda(jnp.array(4.0), Preconditioner(gain=1 / (1 + 0.5)))), 6)
    0.75
    """
    twice_inverse = preconditioner.gain * lambda_max + preconditioner.decay
    if preconditioner.checked is not None:
        twice_inverse = jnp.where(preconditioner.checked, twice_inverse, jnp.nan)
    # NaN passes through. This code adds no NaN to an unchecked result, so jax_debug_nans stops only at those of the caller.
    is_nan = twice_inverse != twice_inverse
    return jnp.where(
        twice_inverse > 0, 2 / jnp.where(twice_inverse > 0, twice_inverse, 1), jnp.where(is_nan, twice_inverse, jnp.inf)
    )


def critical_lr(
    apply_fn: Callable,
    params: PyTree,
    batch: tuple[PyTree, PyTree],
    *,
    loss: str | Loss | Callable,
    preconditioner: Preconditioner = PLAIN,
    method: str = "auto",
) -> Float[Array, ""]:
    """Critical learning rate of an optimizer on a batch, ``2 / (gain lambda_max(K_P) + decay)``.

    ``K_P`` is the loss-weighted kernel with the preconditioner ``P``.
    For gradient descent this is ``2 / lambda_max(K_L)``; with ``mse`` it is ``b / lambda_max(K)``, and for one example with a
    scalar output ``1 / ||grad_w f||^2``.
    Under a larger learning rate the residual grows along the top eigenvector.
    In the linear regime this component becomes the largest, and the loss of the batch rises.

    Args:
      apply_fn: ``apply_fn(params, x) -> outputs``.
      params: parameters.
      batch: ``(x, targets)``; both may be pytrees.
      loss: a name, an object of :mod:`catapult_jax.losses`, or a function ``loss(outputs, targets) -> scalar``.
      preconditioner: of the optimizer, from :func:`catapult_jax.preconditioner_from_state`; default: plain gradient descent,
        SGD. With a diagonal the whole kernel needs the gradient of each example. For a large model use the eigenvalue of
        :func:`catapult_jax.top_eigenpairs` with ``preconditioner=preconditioner.diagonal``, and
        :func:`critical_lr_from_lambda`.
      method: how the kernel is computed, see :func:`catapult_jax.tangent_kernel`.

    Returns:
      A scalar, in units of the learning rate; infinite if the kernel is zero. It has a derivative in ``params`` where the largest
      eigenvalue is simple.

    Raises:
      ValueError: as :func:`catapult_jax.tangent_kernel` and :func:`catapult_jax.loss_weighted_kernel`.

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
    if not isinstance(preconditioner, Preconditioner):
        raise ValueError(
            f"preconditioner is a {type(preconditioner).__name__}; allowed: that of preconditioner_from_state, or Preconditioner(diagonal=...)"
        )
    x, targets = check_batch(batch)
    check_loss(check_arguments(apply_fn, params, x), targets, loss=loss)
    warn_of_lapack_threads()

    def compute(params, batch, preconditioner):
        with jax.default_matmul_precision("highest"):
            outputs = apply_fn(params, batch[0])
        weighted = weighted_tangent_kernel(
            apply_fn, params, batch, outputs, loss=loss, method=method, preconditioner=preconditioner.diagonal
        )
        return critical_lr_from_lambda(jnp.linalg.eigvalsh(weighted)[-1], preconditioner)

    return placed_by_compiler(compute, params, (x, targets), preconditioner)
