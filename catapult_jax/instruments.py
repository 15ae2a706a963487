"""What is measured at a step, and how often.

A measurement is taken on the weights before the update of its step, unless its name ends in ``_after``. ``_batch`` is on the
batch of the step, ``_train`` on all training examples, ``_probe`` on the first ones of them, ``_test`` and ``_val`` on those examples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from catapult_jax.agop import agop_alignment, agop_pearson, input_jacobian
from catapult_jax.critical_lr import critical_lr_from_lambda
from catapult_jax.eigenspace import split_loss
from catapult_jax.losses import batch_loss
from catapult_jax.tangent_kernel import tangent_kernel


class Moment(NamedTuple):
    """What an instrument may look at."""

    params: Any  # before the update
    new_params: Any  # after it
    batch: tuple  # (x, y)
    outputs: jax.Array  # of the batch, before the update
    data: dict  # x_train, y_train, x_test, y_test; x_val, y_val where there are any
    eigenvectors: jax.Array | None  # of the step before, where they can be followed


class Instrument(NamedTuple):
    every: int  # cadence in steps, 1 or more
    measure: Callable[[Moment], dict[str, jax.Array]]


def batch_kernel(apply_fn: Callable, *, loss: str, every: int, k: int, momentum: float = 0.0) -> Instrument:
    """Critical lr of the batch, top eigenvalues, and the loss split over the top-``k`` eigenspace.

    Cost: about half a training step for a fully connected net, one for a convolutional one.
    """

    def measure(now: Moment):
        x, y = now.batch
        kernel = tangent_kernel(apply_fn, now.params, x)
        split = split_loss(kernel, now.outputs, y, loss=loss, k=k, previous=now.eigenvectors)
        return {
            "lambda_max_batch": split.lambda_max,
            "critical_lr_batch": critical_lr_from_lambda(split.lambda_max, momentum=momentum),
            "loss_top": split.top,
            "loss_rest": split.rest,
            "eigenvalues": split.eigenvalues,
            "eigenvectors": split.eigenvectors,
        }

    return Instrument(every, measure)


def train_kernel(apply_fn: Callable, *, loss: str, every: int, probe_size: int, k: int, momentum: float = 0.0) -> Instrument:
    """Critical lr on the whole training set, or on its first ``probe_size`` examples, and the loss on them split over the
    top-``k`` eigenspace of their kernel. Cost: that of the kernel of so many, with its eigenvectors."""
    name = "probe" if probe_size else "train"

    def measure(now: Moment):
        x, y = (now.data[key][: probe_size or None] for key in ("x_train", "y_train"))
        split = split_loss(tangent_kernel(apply_fn, now.params, x), apply_fn(now.params, x), y, loss=loss, k=k)
        return {
            f"lambda_max_{name}": split.lambda_max,
            f"critical_lr_{name}": critical_lr_from_lambda(split.lambda_max, momentum=momentum),
            f"loss_{name}_top": split.top,
            f"loss_{name}_rest": split.rest,
        }

    return Instrument(every, measure)


def train_loss(apply_fn: Callable, *, loss: str, every: int) -> Instrument:
    """Loss on the whole training set. Cost: its forward pass."""
    return Instrument(
        every,
        lambda now: {"loss_train": batch_loss(apply_fn(now.params, now.data["x_train"]), now.data["y_train"], loss=loss)},
    )


def loss_after(apply_fn: Callable, *, loss: str, every: int) -> Instrument:
    """Loss on the same batch after the update. Cost: a forward pass of the batch."""
    return Instrument(
        every, lambda now: {"loss_batch_after": batch_loss(apply_fn(now.new_params, now.batch[0]), now.batch[1], loss=loss)}
    )


def scores(apply_fn: Callable, *, loss: str, every: int, coding: str, split: str = "test") -> Instrument:
    """Loss on the test (or validation, ``split="val"``) examples and, for class labels, the share of them that is misclassified.

    Cost: their forward pass.
    """

    def measure(now: Moment):
        x, y = now.data[f"x_{split}"], now.data[f"y_{split}"]
        outputs = apply_fn(now.params, x)
        measured = {f"loss_{split}": batch_loss(outputs, y, loss=loss)}
        if coding == "value":
            return measured
        wrong = {
            "sign": lambda: (outputs > 0) != (y > 0),
            "binary": lambda: (outputs > 0) != (y > 0),
            "one_hot": lambda: outputs.argmax(-1) != y.argmax(-1),
            "integer": lambda: outputs.argmax(-1) != y,
        }[coding]()
        known = jnp.isfinite(outputs).all()  # an output that is not a number is no answer
        return measured | {f"error_{split}": jnp.where(known, jnp.mean(wrong.astype(jnp.float32)), jnp.nan)}

    return Instrument(every, measure)


def agop(apply_fn: Callable, *, every: int, reference: jax.Array, size: int, chunk_size: int | None = None) -> Instrument:
    """Alignment of the model's AGOP with a reference's, on the first ``size`` training inputs.

    ``reference``: rows of the reference's input Jacobian on the same points. Cost: a backward pass of so many examples for
    each output.
    """

    def measure(now: Moment):
        rows = input_jacobian(apply_fn, now.params, now.data["x_train"][:size], chunk_size=chunk_size)
        return {"agop_alignment": agop_alignment(rows, reference), "agop_pearson": agop_pearson(rows, reference)}

    return Instrument(every, measure)


def measure(instruments: dict[str, Instrument], now: Moment, step, *, static: bool) -> dict[str, jax.Array]:
    """Runs the instruments that are due at ``step``; what is not due is NaN.

    ``static``: ``step`` is a Python number, and what is not due is not compiled; otherwise it is traced, under ``lax.cond``.
    """
    measured = {}
    for instrument in instruments.values():
        if instrument.every == 1:
            measured |= instrument.measure(now)
            continue
        shapes = jax.eval_shape(instrument.measure, now)
        nothing = lambda _, shapes=shapes: jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes)
        due = step % instrument.every == 0
        if static:
            measured |= instrument.measure(now) if due else nothing(now)
        else:
            measured |= lax.cond(due, instrument.measure, nothing, now)
    return measured
