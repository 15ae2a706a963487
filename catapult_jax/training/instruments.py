"""Instruments: what is measured at a step, and how often. Each function is named as the main series that it writes.

A measurement is taken on the weights before the update of its step, unless its name ends in ``_after``. The end of a name says on which
examples: ``_batch`` the batch of the step, ``_train`` all training examples, ``_probe`` the first training examples, ``_test`` and ``_val``
the test and validation examples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from catapult_jax import outer_product
from catapult_jax.critical import critical_lr_from_lambda
from catapult_jax.eigenspace import fraction_of, split_weighted_loss
from catapult_jax.losses import batch_loss, weighted_residual
from catapult_jax.preconditioners import smallest_entry
from catapult_jax.tangent import Directions, Eigenpairs, top_eigenpairs
from catapult_jax.tangent.eigenpairs import no_directions
from catapult_jax.tangent.weighted import weighted_kernel_and_gradient, weighted_tangent_kernel
from catapult_jax.training.measurement import Instrument, Moment
from catapult_jax.xla import at_least_float32, eigvalsh


def lambda_max_batch(
    apply_fn: Callable,
    *,
    loss: str,
    every: int,
    k: int,
    follow: bool = True,
    modes: int = 0,
    chunk_size: int | None = None,
) -> Instrument:
    """Critical lr of the batch, top eigenvalues, and the loss split over the top-``k`` eigenspace, from the exact kernel.

    If it is due at every step and has no chunks, one pass gives the kernel and the gradient of the step, see
    :func:`weighted_kernel_and_gradient`. Cost: the inner products of the layers, and an eigendecomposition with one row for each output of
    the batch; otherwise a forward and a backward pass as well.

    Args:
      apply_fn: ``(params, x) -> outputs``.
      loss: name of the loss.
      every: cadence in steps.
      k: dimension of the top eigenspace, and number of eigenvalues.
      follow: eigenvectors keep their order and sign from one measurement to the next. For a batch that never changes.
      modes: ``loss_modes`` has the loss in each of so many top eigenvectors, in descending order; 0: no such series.
      chunk_size: examples that are processed at a time, as in :func:`tangent_kernel`; None: all.

    Returns:
      The instrument.
    """

    def split(now: Moment, previous):
        weighted = now.kernel
        if weighted is None:
            weighted = weighted_tangent_kernel(
                apply_fn, now.params, now.batch, now.outputs,
                loss=loss, preconditioner=now.preconditioner().diagonal, chunk_size=chunk_size,
            )  # fmt: skip
        return split_weighted_loss(weighted, now.outputs, now.batch[1], loss=loss, k=k, previous=previous, modes=modes)

    def measure(now: Moment, previous=None):
        parts = split(now, previous)
        return {
            "lambda_max_batch": parts.lambda_max,
            "critical_lr_batch": critical_lr_from_lambda(parts.lambda_max, now.preconditioner()),
            "condition_number_batch": parts.condition_number,
            "loss_top": parts.top,
            "loss_rest": parts.rest,
            "eigenvalues": parts.eigenvalues,
        } | ({"loss_modes": parts.modes} if modes else {}), parts.eigenvectors

    def start(now: Moment):
        shape = jax.eval_shape(lambda now: split(now, None).eigenvectors, now)
        return jnp.zeros(shape.shape, shape.dtype)

    together = None if chunk_size else partial(weighted_kernel_and_gradient, apply_fn, loss=loss)
    series = ("lambda_max_batch", "critical_lr_batch", "condition_number_batch", "loss_top", "loss_rest", "eigenvalues")
    return Instrument(
        (*series, *(("loss_modes",) if modes else ())),
        every,
        *((measure, start) if follow else (lambda now: measure(now)[0], None)),
        together,
    )


def lambda_max_batch_matrix_free(
    apply_fn: Callable, *, loss: str, every: int, k: int, k_max: int | None = None, split: bool = True, **search: Any
) -> Instrument:
    """The series of :func:`lambda_max_batch`, matrix-free: from kernel-vector products.

    It also writes bounds on the errors of the eigenvalues, the number of products, and ``converged``: 1 if every bound is within the
    tolerance, else 0. Each eigenvalue is a lower bound. If its error bound exceeds the tolerance, it may be much too small.

    Each search starts from the directions of the previous measurement, also on another batch. Cost: about four forward passes of the
    batch for each product; docs/performance.md has the number of products.

    Args:
      apply_fn: ``(params, x) -> outputs``.
      loss: name of the loss.
      every: cadence in steps.
      k: number of eigenvalues, and of directions for the split of the loss.
      k_max: largest number of eigenvalues. Those above 0.8 times ``(2 / lr - decay) / gain`` are measured, and the next one; at that
        eigenvalue the lr of the previous step is critical. The series ``tracked`` is their number; the others are NaN. If products are
        unrolled (convolutions on the CPU), all ``k_max`` are computed at every measurement. None: always ``k``.
      split: False: no series ``loss_top`` and ``loss_rest``, and the outputs of the step are not needed.
      search: ``tol``, ``max_products``, ``reuse_bound`` (for a batch that never changes), ``chunk_size``, as in :func:`top_eigenpairs`.

    Returns:
      The instrument.

    Raises:
      ValueError: in a step whose lr is not known, if ``k_max`` is above ``k``.
    """
    growing = k_max is not None and k_max > k

    def measure(now: Moment, directions):
        if growing and now.lr is None:
            raise ValueError(f"Moment.lr=None; allowed with k_max={k_max}, k={k}: the learning rate")
        preconditioner = now.preconditioner()
        above = None
        if growing and now.lr is not None:
            above = _NEAR * (2 / now.lr - preconditioner.decay) / preconditioner.gain
        pairs = top_eigenpairs(
            apply_fn, now.params, now.batch, k=k, loss=loss, warm_start=directions, k_max=k_max, above=above,
            preconditioner=lambda: now.preconditioner().diagonal, **search,
        )  # fmt: skip
        is_tracked = jnp.arange(len(pairs.eigenvalues)) < pairs.tracked
        tracked_only = lambda values: jnp.where(is_tracked, values, jnp.nan) if growing else values
        measured = {
            "lambda_max_batch": pairs.eigenvalues[0],
            "critical_lr_batch": critical_lr_from_lambda(pairs.eigenvalues[0], preconditioner),
            "eigenvalues": tracked_only(pairs.eigenvalues),
            "eigenvalue_bounds": tracked_only(pairs.bounds),
            "products": pairs.products,
            "converged": pairs.converged.astype(jnp.float32),
        }
        if split:
            measured |= dict(
                zip(("loss_top", "loss_rest"), _split(pairs, now.outputs, now.batch[1], loss=loss, k=k), strict=True)
            )
        return measured | ({"tracked": pairs.tracked.astype(jnp.float32)} if growing else {}), pairs.directions

    series = ("lambda_max_batch", "critical_lr_batch", "eigenvalues", "eigenvalue_bounds", "products", "converged")
    series = (*series, *(("loss_top", "loss_rest") if split else ()), *(("tracked",) if growing else ()))
    return Instrument(series, every, measure, lambda now: _no_directions(now, k, k_max))


_NEAR = 0.8  # an eigenvalue is measured from this fraction of the critical eigenvalue on


def lambda_max_train(
    apply_fn: Callable, *, loss: str, every: int, probe_size: int | None, k: int, modes: int = 0, chunk_size: int | None = None
) -> Instrument:
    """Critical lr on the training set or on a probe, and their loss split over the top-``k`` eigenspace of their kernel.

    The series end in ``_train``, or in ``_probe`` with a ``probe_size``. Cost: the kernel of these examples, with its eigenvectors.

    Args:
      apply_fn: ``(params, x) -> outputs``.
      loss: name of the loss.
      every: cadence in steps.
      probe_size: number of training examples to take, from the first on; None: all.
      k: dimension of the top eigenspace.
      modes: ``loss_train_modes`` has the loss in each of so many top eigenvectors, in descending order; 0: no such series.
      chunk_size: examples that are processed at a time, as in :func:`tangent_kernel`; None: all.

    Returns:
      The instrument.
    """
    name = "probe" if probe_size else "train"

    def measure(now: Moment):
        x, y = (now.data[key][:probe_size] for key in ("x_train", "y_train"))
        outputs = apply_fn(now.params, x)
        weighted = weighted_tangent_kernel(
            apply_fn, now.params, (x, y), outputs,
            loss=loss, preconditioner=now.preconditioner().diagonal, chunk_size=chunk_size,
        )  # fmt: skip
        split = split_weighted_loss(weighted, outputs, y, loss=loss, k=k, modes=modes)
        return {
            f"lambda_max_{name}": split.lambda_max,
            f"critical_lr_{name}": critical_lr_from_lambda(split.lambda_max, now.preconditioner()),
            f"condition_number_{name}": split.condition_number,
            f"loss_{name}_top": split.top,
            f"loss_{name}_rest": split.rest,
        } | ({f"loss_{name}_modes": split.modes} if modes else {})

    kinds = ("lambda_max_{}", "critical_lr_{}", "condition_number_{}", "loss_{}_top", "loss_{}_rest")
    kinds = (*kinds, *(("loss_{}_modes",) if modes else ()))
    return Instrument(tuple(kind.format(name) for kind in kinds), every, measure)


def lambda_max_train_matrix_free(
    apply_fn: Callable, *, loss: str, every: int, probe_size: int | None, k: int, **search: Any
) -> Instrument:
    """The series of :func:`lambda_max_train`, matrix-free: for training sets whose kernel does not fit into memory.

    Args:
      apply_fn: ``(params, x) -> outputs``.
      loss: name of the loss.
      every: cadence in steps.
      probe_size: number of training examples to take, from the first on; None: all.
      k: number of directions for the split of the loss.
      search: as in :func:`lambda_max_batch_matrix_free`.

    Returns:
      The instrument.
    """
    name = "probe" if probe_size else "train"

    def measure(now: Moment, directions):
        x, y = (now.data[key][:probe_size] for key in ("x_train", "y_train"))
        pairs = top_eigenpairs(
            apply_fn, now.params, (x, y), k=k, loss=loss, warm_start=directions,
            preconditioner=lambda: now.preconditioner().diagonal, **search,
        )  # fmt: skip
        top, rest = _split(pairs, apply_fn(now.params, x), y, loss=loss, k=k)
        return {
            f"lambda_max_{name}": pairs.eigenvalues[0],
            f"critical_lr_{name}": critical_lr_from_lambda(pairs.eigenvalues[0], now.preconditioner()),
            f"loss_{name}_top": top,
            f"loss_{name}_rest": rest,
            f"lambda_max_{name}_bound": pairs.bounds[0],
            f"products_{name}": pairs.products,
            f"converged_{name}": pairs.converged.astype(jnp.float32),
        }, pairs.directions

    series = (f"lambda_max_{name}", f"critical_lr_{name}", f"loss_{name}_top", f"loss_{name}_rest")
    series = (*series, f"lambda_max_{name}_bound", f"products_{name}", f"converged_{name}")
    return Instrument(series, every, measure, lambda now: _no_directions(now, k))


def _split(pairs: Eigenpairs, outputs, targets, *, loss, k):
    """The loss in the first ``k`` eigenvectors, and in the rest."""
    if pairs.vectors is None:
        raise ValueError(
            f"outputs has shape {jnp.shape(outputs)}; allowed for the split of the loss: at most 2^20 numbers, or fewer than params"
        )
    with jax.default_matmul_precision("highest"):
        residual = weighted_residual(outputs, targets, loss=loss).reshape(-1).astype(pairs.vectors.dtype)
        return fraction_of(pairs.vectors[:, :k], residual, len(outputs))


def _no_directions(now: Moment, k: int, k_max: int | None = None) -> Directions:
    """Directions before the first search, so that it starts at random."""
    return no_directions(now.params, k_max or k, at_least_float32(now.outputs.dtype))


def preconditioner_min(apply_fn: Callable, *, loss: str, every: int) -> Instrument:
    """Smallest entry of the preconditioner, and the bound that it gives on the critical lr.

    ``lambda_max(K_P) <= lambda_max(K_L) / s_min``, so ``critical_lr_bound = 2 / (gain lambda_max(K_L) / s_min + decay)`` is at most the
    exact critical lr. Cost: the exact kernel of the batch, without the preconditioner.

    Args:
      apply_fn: ``(params, x) -> outputs``.
      loss: name of the loss.
      every: cadence in steps.

    Returns:
      The instrument.

    Source: for AdaGrad, the student study on MNIST that the project reproduces; :func:`smallest_entry`.
    """

    def measure(now: Moment):
        weighted = weighted_tangent_kernel(apply_fn, now.params, now.batch, now.outputs, loss=loss)
        least, lambda_max = smallest_entry(now.preconditioner().diagonal), eigvalsh(weighted)[-1]
        return {
            "preconditioner_min": least,
            "lambda_max_plain_batch": lambda_max,
            "critical_lr_bound_batch": critical_lr_from_lambda(lambda_max / least, now.preconditioner()),
        }

    return Instrument(("preconditioner_min", "lambda_max_plain_batch", "critical_lr_bound_batch"), every, measure)


def weight_norm(*, every: int) -> Instrument:
    """Euclidean norm of all parameters. Cost: one pass over them.

    Args:
      every: cadence in steps.

    Returns:
      The instrument.
    """

    def measure(now: Moment):
        return {"weight_norm": jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(now.params)))}

    return Instrument(("weight_norm",), every, measure)


def loss_train(apply_fn: Callable, *, loss: str, every: int) -> Instrument:
    """Loss on the whole training set. Cost: its forward pass.

    Args:
      apply_fn: ``(params, x) -> outputs``.
      loss: name of the loss.
      every: cadence in steps.

    Returns:
      The instrument.
    """
    return Instrument(
        ("loss_train",),
        every,
        lambda now: {"loss_train": batch_loss(apply_fn(now.params, now.data["x_train"]), now.data["y_train"], loss=loss)},
    )


def loss_batch_after(apply_fn: Callable, *, loss: str, every: int) -> Instrument:
    """Loss on the same batch after the update. Cost: a forward pass of the batch.

    Args:
      apply_fn: ``(params, x) -> outputs``.
      loss: name of the loss.
      every: cadence in steps.

    Returns:
      The instrument.
    """
    return Instrument(
        ("loss_batch_after",),
        every,
        lambda now: {"loss_batch_after": batch_loss(apply_fn(now.new_params, now.batch[0]), now.batch[1], loss=loss)},
        after_update=True,
    )


def loss_test(apply_fn: Callable, *, loss: str, every: int, target_encoding: str, split: str = "test") -> Instrument:
    """Loss on the test or validation examples and, for class labels, the fraction that is misclassified.

    Cost: their forward pass. The error is NaN if an output is not finite.

    Args:
      apply_fn: ``(params, x) -> outputs``.
      loss: name of the loss.
      every: cadence in steps.
      target_encoding: of the targets: ``sign``, ``binary``, ``one_hot``, ``integer``, or ``value`` (no classes, so no error).
      split: ``test``, or ``val`` for the validation examples.

    Returns:
      The instrument.
    """

    def measure(now: Moment):
        x, y = now.data[f"x_{split}"], now.data[f"y_{split}"]
        outputs = apply_fn(now.params, x)
        measured = {f"loss_{split}": batch_loss(outputs, y, loss=loss)}
        if target_encoding == "value":
            return measured
        wrong = {
            "sign": lambda: (outputs > 0) != (y > 0),
            "binary": lambda: (outputs > 0) != (y > 0),
            "one_hot": lambda: outputs.argmax(-1) != y.argmax(-1),
            "integer": lambda: outputs.argmax(-1) != y,
        }[target_encoding]()
        is_finite = jnp.isfinite(outputs).all()  # an output that is not finite is no answer
        return measured | {f"error_{split}": jnp.where(is_finite, jnp.mean(wrong.astype(jnp.float32)), jnp.nan)}

    series = (f"loss_{split}",) if target_encoding == "value" else (f"loss_{split}", f"error_{split}")
    return Instrument(series, every, measure)


def agop_alignment(apply_fn: Callable, *, every: int, size: int, chunk_size: int | None = None) -> Instrument:
    """Alignment of the AGOP of the model with the AGOP of a reference, on the first ``size`` training inputs.

    ``agop_reference`` of the data holds the rows of the input Jacobian of the reference on the same inputs, ``(size * outputs, d)``.
    Cost: for each output a backward pass of these examples.

    Args:
      apply_fn: ``(params, x) -> outputs``.
      every: cadence in steps.
      size: number of training inputs.
      chunk_size: examples that are processed at a time; None: all.

    Returns:
      The instrument.
    """

    def measure(now: Moment):
        rows = outer_product.input_jacobian(apply_fn, now.params, now.data["x_train"][:size], chunk_size=chunk_size)
        reference = now.data["agop_reference"]
        alignment, pearson = outer_product.agop_alignment(rows, reference), outer_product.agop_pearson(rows, reference)
        return {"agop_alignment": alignment, "agop_pearson": pearson}

    return Instrument(("agop_alignment", "agop_pearson"), every, measure)
