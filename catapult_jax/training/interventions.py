r"""Interventions on single modes of a step of gradient descent, to test what causes an effect of catapults.

In the eigenbasis of the loss-weighted kernel of the batch, with eigenvalues ``h_i`` and coefficients ``c_i`` of the loss-weighted residual,
a step of gradient descent multiplies ``c_i`` by ``1 - lr h_i`` (in the linear regime). An intervention multiplies the part of the
gradient that comes from mode ``i`` by ``phi_i``, so that ``c_i`` is multiplied by ``1 - lr h_i phi_i``. Everything else of the step
stays as it is. A mode is critical here if ``lr h_i > 1.8``, that is, 0.9 times the value at which it starts to grow.

==================  ======================================  =============================================================
kind                phi                                     purpose
==================  ======================================  =============================================================
none                1                                       the free run
remove_overshoot    ``min(1, 1.8 / (lr h_i))``              no mode overshoots by more than a factor of 0.8
placebo             critical 1, others ``s < 1``            takes as much residual from the others as remove_overshoot takes
low_bulk            critical 1, others the given factor     the others at the mean lr of a capped run
low_lr              1, lr times the given factor            a constant lr, or the factors of a capped run in another order
force               critical ``(1 + dose) / (lr h_i)``      one step: the critical modes come out ``dose`` times as large
sham                others ``1 - s``                        one step: a kick of the same norm in the other modes
==================  ======================================  =============================================================

Source: our design, after Zhu et al. (2024), arXiv 2306.04815, who compare runs and do not intervene.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp

from catapult_jax.losses import curvature_columns, weighted_residual
from catapult_jax.xla import eigh, warn_of_lapack_threads

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PyTree

KINDS = ("none", "remove_overshoot", "placebo", "low_bulk", "low_lr", "force", "sham")
CRITICAL = 1.8  # lr h above which a mode counts as critical: 0.9 times the value at which it grows


class Arm(NamedTuple):
    """What is done to one member."""

    kind: Int[Array, ""]  # index into KINDS
    start: Int[Array, ""]  # first step of the intervention; of force and sham the only one
    factors: Float[Array, " steps"]  # of the lr (low_lr) or of the modes that are not critical (low_bulk), for each step
    dose: Float[Array, ""]  # force and sham
    ratio: Float[Array, ""]  # a mode is critical where ratio lr h > 1.8: above 1 for force and sham at a low lr


class Modes(NamedTuple):
    """A batch in the eigenbasis of its loss-weighted kernel."""

    eigenvalues: Float[Array, " n"]
    vectors: Float[Array, "n n"]  # columns
    coefficients: Float[Array, " n"]  # of the loss-weighted residual


class Removed(NamedTuple):
    """What an intervention did in a step, as a check that it does what it should."""

    overshoot: Float[Array, ""]  # sum over modes of 2 log |1 - lr h phi|, where that is positive
    fraction: Float[Array, ""]  # of the squared residual that was taken out of the step, sum ((1 - phi) c)^2 / sum c^2


def lr_factor(arm: Arm, number: Int[Array, ""]) -> Float[Array, ""]:
    """Factor of the lr in this step: one, but for ``low_lr``.

    Args:
      arm: of the member.
      number: of the step.

    Returns:
      A scalar.
    """
    applies = (arm.kind == KINDS.index("low_lr")) & (number >= arm.start)
    return jnp.where(applies, arm.factors[jnp.minimum(number, len(arm.factors) - 1)], 1.0)


def mode_factors(arm: Arm, modes: Modes, lr: Float[Array, ""], number: Int[Array, ""]) -> Float[Array, " n"]:
    """``phi_i`` of the table of this module.

    Args:
      arm: of the member.
      modes: of the batch.
      lr: of the step.
      number: of the step.

    Returns:
      One factor for each mode.

    >>> modes = Modes(jnp.array([0.5, 4.0]), jnp.eye(2), jnp.ones(2))
    >>> arm = Arm(jnp.int32(1), jnp.int32(0), jnp.ones(1), jnp.float32(0), jnp.float32(1))
    >>> [round(float(phi), 2) for phi in mode_factors(arm, modes, jnp.float32(1.0), jnp.int32(0))]
    [1.0, 0.45]
    """
    h, c = modes.eigenvalues, modes.coefficients
    is_critical = arm.ratio * lr * h > CRITICAL
    limited = jnp.minimum(1.0, CRITICAL / jnp.maximum(lr * h, CRITICAL))
    bulk = jnp.sum(jnp.where(is_critical, 0, c**2))
    shrink = jnp.sqrt(jnp.sum(((1 - limited) * c) ** 2) / jnp.where(bulk > 0, bulk, 1))
    factor = arm.factors[jnp.minimum(number, len(arm.factors) - 1)]
    forced = (1 + arm.dose) / jnp.where(is_critical, lr * h, 1)
    # The kick of force beyond the usual step, and how many times the usual step of the other modes it is.
    kick = jnp.sum(jnp.where(is_critical, (lr * h * (forced - 1) * c) ** 2, 0))
    usual = jnp.sum(jnp.where(is_critical, 0, (lr * h * c) ** 2))
    sham = 1 - jnp.sqrt(kick / jnp.where(usual > 0, usual, 1))
    of_kind = {
        "remove_overshoot": limited,
        "placebo": jnp.where(is_critical, 1.0, jnp.maximum(0.0, 1 - shrink)),
        "low_bulk": jnp.where(is_critical, 1.0, factor),
        "force": jnp.where(is_critical, forced, 1.0),
        "sham": jnp.where(is_critical, 1.0, sham),
    }
    is_single = (arm.kind == KINDS.index("force")) | (arm.kind == KINDS.index("sham"))
    applies = jnp.where(is_single, number == arm.start, number >= arm.start)
    cases = [applies & (arm.kind == KINDS.index(kind)) for kind in of_kind]
    return jnp.select(cases, list(of_kind.values()), jnp.ones_like(h))


def modes_of(weighted: Float[Array, "br br"] | None, outputs: Float[Array, "b *o"], targets: Array, *, loss: str) -> Modes:
    """The eigenbasis of a batch.

    Args:
      weighted: loss-weighted kernel, of :func:`catapult_jax.tangent.weighted.weighted_tangent_kernel`; None: it was not measured.
      outputs: of the batch.
      targets: of the batch.
      loss: name of the loss.

    Returns:
      :class:`Modes`, eigenvalues in ascending order.

    Raises:
      ValueError: there is no kernel.
    """
    if weighted is None:
        raise ValueError("an arm without the kernel of the batch; allowed: the instrument lambda_max_batch with every=1")
    warn_of_lapack_threads()
    with jax.default_matmul_precision("highest"):
        _, Q = curvature_columns(outputs, targets, loss=loss)
        residual = jnp.einsum("bor,bo->br", Q, weighted_residual(outputs, targets, loss=loss)).reshape(-1)
        values, vectors = eigh(weighted)
        return Modes(values, vectors, vectors.T @ residual.astype(values.dtype))


def filtered_gradient(
    apply_fn: Callable[[PyTree, Array], Float[Array, "b *o"]],
    params: PyTree,
    batch: tuple[Array, Array],
    modes: Modes,
    phi: Float[Array, " n"],
    *,
    loss: str,
) -> PyTree:
    """Gradient of the loss of a batch with the part of each mode multiplied by ``phi``: one vjp.

    ``g = (1 / b) J^T sqrt(2) F U (phi c)``, with ``F`` of :func:`catapult_jax.losses.curvature_columns`: for ``phi = 1`` it is the gradient.

    Args:
      apply_fn: ``(params, x) -> outputs``.
      params: parameters.
      batch: ``(x, targets)``.
      modes: of the batch.
      phi: one factor for each mode.
      loss: name of the loss.

    Returns:
      A pytree like ``params``.
    """
    x, targets = batch
    with jax.default_matmul_precision("highest"):
        outputs, pull = jax.vjp(lambda p: apply_fn(p, x), params)
        F, _ = curvature_columns(outputs, targets, loss=loss)
        residual = (modes.vectors @ (phi * modes.coefficients)).reshape(len(x), -1)
        cotangents = 2**0.5 * jnp.einsum("bor,br->bo", F, residual.astype(F.dtype)) / len(x)
        return pull(cotangents.reshape(outputs.shape).astype(outputs.dtype))[0]


def removed(modes: Modes, phi: Float[Array, " n"], lr: Float[Array, ""]) -> Removed:
    """What is left of the overshoot, and how much of the residual is taken out of the step.

    Args:
      modes: of the batch.
      phi: factors of the modes.
      lr: of the step.

    Returns:
      :class:`Removed`, scalars.

    >>> modes = Modes(jnp.array([0.5, 4.0]), jnp.eye(2), jnp.ones(2))
    >>> done = removed(modes, jnp.array([1.0, 1.0]), jnp.float32(1.0))
    >>> round(float(done.overshoot), 3), float(done.fraction)  # 2 log 3
    (2.197, 0.0)
    """
    growth = 2 * jnp.log(jnp.maximum(jnp.abs(1 - lr * modes.eigenvalues * phi), 1.0))
    removed_size = jnp.sum(((1 - phi) * modes.coefficients) ** 2)
    size = jnp.sum(modes.coefficients**2)
    return Removed(jnp.sum(growth), removed_size / jnp.where(size > 0, size, 1))
