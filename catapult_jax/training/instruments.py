"""What is measured at a step, and how often.

A measurement is taken on the weights before the update of its step, unless its name ends in ``_after``. ``_batch`` is on the
batch of the step, ``_train`` on all training examples, ``_probe`` on the first ones of them, ``_test`` and ``_val`` on those examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from catapult_jax import outer_product
from catapult_jax.critical import critical_lr_from_lambda
from catapult_jax.eigenspace import fraction_of, split_weighted_loss
from catapult_jax.losses import batch_loss, weighted_residual
from catapult_jax.preconditioners import PLAIN, smallest_entry
from catapult_jax.tangent import Directions, top_eigenpairs
from catapult_jax.tangent.eigenpairs import no_directions
from catapult_jax.tangent.weighted import weighted_kernel_and_gradient, weighted_tangent_kernel
from catapult_jax.xla import at_least_float32


class Moment(NamedTuple):
    """What an instrument may look at."""

    params: Any  # before the update
    new_params: Any  # after it
    batch: tuple  # (x, y)
    outputs: jax.Array  # of the batch, before the update
    data: dict  # x_train, y_train, x_test, y_test; x_val, y_val where there are any
    # What the optimizer makes of this step's gradient: a pytree function, so that P is computed only if an instrument needs it.
    preconditioner: Partial = Partial(lambda: PLAIN)
    kernel: jax.Array | None = None  # loss-weighted, of the batch, before the update; None: not known
    # Learning rate of the step before, at step 0 the initial one: that of this step may depend on what is measured. None: not known.
    lr: jax.Array | None = None


class Instrument(NamedTuple):
    """One measurement and its cadence. These fields alone say what it measures and when, not the name that a caller gives it."""

    series: tuple[str, ...]  # that it writes, no two instruments the same
    every: int  # cadence in steps, 1 or more
    # now -> measurements; where there is a start: (now, carried) -> (measurements, carried)
    measure: Callable[..., Any]
    start: Callable[[Moment], Any] | None = None  # what it carries from one measurement to the next, before the first one
    # (params, batch) -> (outputs, loss-weighted kernel, gradient), for every == 1: one pass for the kernel and the step's own gradient. One is used.
    gradient: Callable[..., tuple] | None = None
    after_update: bool = False  # it reads new_params, and is measured when they are known


def check_instruments(instruments: Mapping[str, Instrument], reserved: Iterable[str] = ()) -> None:
    """Checks that no two instruments write the same series, and none writes a reserved one.

    Args:
      instruments: by label.
      reserved: series that the step itself writes.

    Raises:
      ValueError: one does.

    >>> one = Instrument(("loss_train",), 1, None)
    >>> check_instruments({"a": one, "b": one})
    Traceback (most recent call last):
    ValueError: instruments 'a' and 'b' both write the series 'loss_train'; allowed: one for each series
    """
    writers = dict.fromkeys(reserved, "")
    for label, instrument in instruments.items():
        if instrument.every < 1:
            raise ValueError(f"instrument {label!r}: every={instrument.every!r}; allowed: 1 or more")
        for series in instrument.series:
            if series in writers:
                other = writers[series]
                both = (
                    f"instruments {other!r} and {label!r} both write"
                    if other
                    else f"instrument {label!r} and the step itself write"
                )
                raise ValueError(f"{both} the series {series!r}; allowed: one for each series")
            writers[series] = label


def lambda_max_batch(
    apply_fn: Callable,
    *,
    loss: str,
    every: int,
    k: int,
    follow: bool = True,
    chunk_size: int | None = None,
) -> Instrument:
    """Critical lr of the batch, top eigenvalues, and the loss split over the top-``k`` eigenspace, from the exact kernel.

    ``follow``: eigenvectors keep their order and sign from one measurement to the next, where the batch is always the same.
    ``chunk_size``: as in :func:`tangent_kernel`. At every step, and not in chunks, the step takes its gradient from the derivatives
    that make the kernel, see :func:`weighted_kernel_and_gradient`. Cost: the products of the layers, and an eigendecomposition of one
    row for each output of the batch; otherwise a forward and a backward pass as well.
    """

    def split(now: Moment, previous):
        weighted = now.kernel
        if weighted is None:
            weighted = weighted_tangent_kernel(
                apply_fn, now.params, now.batch, now.outputs,
                loss=loss, preconditioner=now.preconditioner().diagonal, chunk_size=chunk_size,
            )  # fmt: skip
        return split_weighted_loss(weighted, now.outputs, now.batch[1], loss=loss, k=k, previous=previous)

    def measure(now: Moment, previous=None):
        found = split(now, previous)
        return {
            "lambda_max_batch": found.lambda_max,
            "critical_lr_batch": critical_lr_from_lambda(found.lambda_max, now.preconditioner()),
            "condition_number_batch": found.condition_number,
            "loss_top": found.top,
            "loss_rest": found.rest,
            "eigenvalues": found.eigenvalues,
        }, found.eigenvectors

    def start(now: Moment):
        shape = jax.eval_shape(lambda now: split(now, None).eigenvectors, now)
        return jnp.zeros(shape.shape, shape.dtype)

    together = None if chunk_size else partial(weighted_kernel_and_gradient, apply_fn, loss=loss)
    return Instrument(
        ("lambda_max_batch", "critical_lr_batch", "condition_number_batch", "loss_top", "loss_rest", "eigenvalues"),
        every,
        *((measure, start) if follow else (lambda now: measure(now)[0], None)),
        together,
    )


def lambda_max_batch_matrix_free(
    apply_fn: Callable, *, loss: str, every: int, k: int, k_max: int | None = None, **search: Any
) -> Instrument:
    """What :func:`lambda_max_batch` measures, matrix-free: from kernel-vector products.

    With the eigenvalues come the bounds on their errors, the number of products, and whether every bound is within the tolerance
    (1) or not (0). An eigenvalue is a lower bound. Where its bound is larger than the tolerance it may be much too small.

    Each search starts from the directions of the measurement before, also on another batch. Cost: about four forward passes of the
    batch for each product; see docs/performance.md for the number of products.

    Args:
      apply_fn: ``(params, x) -> outputs``.
      loss: name of the loss.
      every: cadence in steps.
      k: eigenvalues to measure, and directions of the split of the loss.
      k_max: follow more eigenvalues, up to so many: those above 0.8 times the one at which the lr of the step before is critical,
        ``(2 / lr - decay) / gain``, and the next one. The series ``tracked`` says how many; the others are NaN. Where products are
        unrolled (convolutions on the CPU) all ``k_max`` are computed at every measurement. None: ``k`` always.
      search: ``tol``, ``max_products``, ``reuse_bound`` (for a batch that never changes), ``chunk_size``, as in :func:`top_eigenpairs`.

    Returns:
      The instrument.
    """
    growing = k_max is not None and k_max > k

    def measure(now: Moment, directions):
        if growing and now.lr is None:
            raise ValueError(f"Moment.lr=None; allowed with k_max={k_max}, k={k}: the learning rate")
        preconditioner = now.preconditioner()
        above = _NEAR * (2 / now.lr - preconditioner.decay) / preconditioner.gain if growing else None
        pairs, top, rest = _top_space(
            apply_fn, now.params, now.batch, now.outputs, directions,
            loss=loss, k=k, k_max=k_max, above=above, preconditioner=lambda: now.preconditioner().diagonal, **search,
        )  # fmt: skip
        is_tracked = jnp.arange(len(pairs.eigenvalues)) < pairs.tracked
        tracked_only = lambda values: jnp.where(is_tracked, values, jnp.nan) if growing else values
        measured = {
            "lambda_max_batch": pairs.eigenvalues[0],
            "critical_lr_batch": critical_lr_from_lambda(pairs.eigenvalues[0], preconditioner),
            "loss_top": top,
            "loss_rest": rest,
            "eigenvalues": tracked_only(pairs.eigenvalues),
            "eigenvalue_bounds": tracked_only(pairs.bounds),
            "products": pairs.products,
            "converged": pairs.converged.astype(jnp.float32),
        }
        return measured | ({"tracked": pairs.tracked.astype(jnp.float32)} if growing else {}), pairs.directions

    series = ("lambda_max_batch", "critical_lr_batch", "loss_top", "loss_rest", "eigenvalues", "eigenvalue_bounds")
    series = (*series, "products", "converged", *(("tracked",) if growing else ()))
    return Instrument(series, every, measure, lambda now: _no_directions(now, k, k_max))


_NEAR = 0.8  # fraction of the eigenvalue at which a learning rate is critical, from which on an eigenvalue is followed


def lambda_max_train(
    apply_fn: Callable, *, loss: str, every: int, probe_size: int | None, k: int, chunk_size: int | None = None
) -> Instrument:
    """Critical lr on the whole training set, or on its first ``probe_size`` examples, and the loss on them split over the
    top-``k`` eigenspace of their kernel. Cost: that of the kernel of so many, with its eigenvectors."""
    name = "probe" if probe_size else "train"

    def measure(now: Moment):
        x, y = (now.data[key][:probe_size] for key in ("x_train", "y_train"))
        outputs = apply_fn(now.params, x)
        weighted = weighted_tangent_kernel(
            apply_fn, now.params, (x, y), outputs,
            loss=loss, preconditioner=now.preconditioner().diagonal, chunk_size=chunk_size,
        )  # fmt: skip
        split = split_weighted_loss(weighted, outputs, y, loss=loss, k=k)
        return {
            f"lambda_max_{name}": split.lambda_max,
            f"critical_lr_{name}": critical_lr_from_lambda(split.lambda_max, now.preconditioner()),
            f"condition_number_{name}": split.condition_number,
            f"loss_{name}_top": split.top,
            f"loss_{name}_rest": split.rest,
        }

    kinds = ("lambda_max_{}", "critical_lr_{}", "condition_number_{}", "loss_{}_top", "loss_{}_rest")
    return Instrument(tuple(kind.format(name) for kind in kinds), every, measure)


def lambda_max_train_matrix_free(
    apply_fn: Callable, *, loss: str, every: int, probe_size: int | None, k: int, **search: Any
) -> Instrument:
    """What :func:`lambda_max_train` measures, matrix-free: for training sets whose kernel does not fit into memory.

    Args:
      apply_fn: ``(params, x) -> outputs``.
      loss: name of the loss.
      every: cadence in steps.
      probe_size: first training examples to take; None: all.
      k: directions of the split of the loss.
      search: as in :func:`lambda_max_batch_matrix_free`.

    Returns:
      The instrument.
    """
    name = "probe" if probe_size else "train"

    def measure(now: Moment, directions):
        x, y = (now.data[key][:probe_size] for key in ("x_train", "y_train"))
        pairs, top, rest = _top_space(
            apply_fn, now.params, (x, y), apply_fn(now.params, x), directions,
            loss=loss, k=k, preconditioner=lambda: now.preconditioner().diagonal, **search,
        )  # fmt: skip
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


def _top_space(apply_fn, params, batch, outputs, directions, *, loss, k, **search):
    """Top eigenpairs, and the loss on their first ``k`` directions and on the rest."""
    pairs = top_eigenpairs(apply_fn, params, batch, k=k, loss=loss, warm_start=directions, **search)
    with jax.default_matmul_precision("highest"):
        residual = weighted_residual(outputs, batch[1], loss=loss).reshape(-1).astype(pairs.vectors.dtype)
        return pairs, *fraction_of(pairs.vectors[:, :k], residual, len(outputs))


def _no_directions(now: Moment, k: int, k_max: int | None = None) -> Directions:
    """Directions before the first search, which then starts at random."""
    return no_directions(now.params, k_max or k, at_least_float32(now.outputs.dtype))


def preconditioner_min(apply_fn: Callable, *, loss: str, every: int) -> Instrument:
    """Smallest entry of the preconditioner, and what it says of the critical lr without that of the preconditioned kernel:
    ``lambda_max(K_P) <= lambda_max(K_L) / s_min``, so ``critical_lr_bound = 2 / (gain lambda_max(K_L) / s_min + decay)`` is never
    above the exact one. Cost: that of the exact kernel of the batch, without the preconditioner.

    Source: for AdaGrad, the student study on MNIST that the project reproduces; :func:`smallest_entry`.
    """

    def measure(now: Moment):
        weighted = weighted_tangent_kernel(apply_fn, now.params, now.batch, now.outputs, loss=loss)
        least, lambda_max = smallest_entry(now.preconditioner().diagonal), jnp.linalg.eigvalsh(weighted)[-1]
        return {
            "preconditioner_min": least,
            "lambda_max_plain_batch": lambda_max,
            "critical_lr_bound_batch": critical_lr_from_lambda(lambda_max / least, now.preconditioner()),
        }

    return Instrument(("preconditioner_min", "lambda_max_plain_batch", "critical_lr_bound_batch"), every, measure)


def loss_train(apply_fn: Callable, *, loss: str, every: int) -> Instrument:
    """Loss on the whole training set. Cost: its forward pass."""
    return Instrument(
        ("loss_train",),
        every,
        lambda now: {"loss_train": batch_loss(apply_fn(now.params, now.data["x_train"]), now.data["y_train"], loss=loss)},
    )


def loss_batch_after(apply_fn: Callable, *, loss: str, every: int) -> Instrument:
    """Loss on the same batch after the update. Cost: a forward pass of the batch."""
    return Instrument(
        ("loss_batch_after",),
        every,
        lambda now: {"loss_batch_after": batch_loss(apply_fn(now.new_params, now.batch[0]), now.batch[1], loss=loss)},
        after_update=True,
    )


def loss_test(apply_fn: Callable, *, loss: str, every: int, target_encoding: str, split: str = "test") -> Instrument:
    """Loss on the test (or validation, ``split="val"``) examples and, for class labels, the fraction of them that is misclassified.

    Cost: their forward pass.
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
        known = jnp.isfinite(outputs).all()  # an output that is not a number is no answer
        return measured | {f"error_{split}": jnp.where(known, jnp.mean(wrong.astype(jnp.float32)), jnp.nan)}

    series = (f"loss_{split}",) if target_encoding == "value" else (f"loss_{split}", f"error_{split}")
    return Instrument(series, every, measure)


def agop_alignment(
    apply_fn: Callable, *, every: int, reference: jax.Array, size: int, chunk_size: int | None = None
) -> Instrument:
    """Alignment of the model's AGOP with a reference's, on the first ``size`` training inputs.

    ``reference``: rows of the reference's input Jacobian on the same points. Cost: a backward pass of so many examples for
    each output.
    """

    def measure(now: Moment):
        rows = outer_product.input_jacobian(apply_fn, now.params, now.data["x_train"][:size], chunk_size=chunk_size)
        alignment, pearson = outer_product.agop_alignment(rows, reference), outer_product.agop_pearson(rows, reference)
        return {"agop_alignment": alignment, "agop_pearson": pearson}

    return Instrument(("agop_alignment", "agop_pearson"), every, measure)


def measure(
    instruments: dict[str, Instrument], now: Moment, carried: dict[str, Any], step, *, due: frozenset[str] | None
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Runs the instruments that are due at ``step``; what is not due is NaN, and what it carries stays.

    ``due``: their names, so that what is not due is not compiled; None: found from the traced step, under ``lax.cond``.

    Raises:
      ValueError: an instrument writes other series than it says.
    """
    measured, after = {}, dict(carried)
    for name, instrument in instruments.items():
        if instrument.start is None:
            run = lambda now, nothing, instrument=instrument: (instrument.measure(now), nothing)
        else:
            run = instrument.measure
        before = carried.get(name)
        shapes = jax.eval_shape(run, now, before)[0]
        if set(shapes) != set(instrument.series):
            raise ValueError(f"instrument {name!r} writes {sorted(shapes)}; allowed: its series {sorted(instrument.series)}")
        skip = lambda _, before, shapes=shapes: (jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes), before)
        if instrument.every == 1:
            values, kept = run(now, before)
        elif due is not None:
            values, kept = (run if name in due else skip)(now, before)
        else:
            values, kept = lax.cond(step % instrument.every == 0, run, skip, now, before)
        measured |= values
        if instrument.start is not None:
            after[name] = kept
    return measured, after
