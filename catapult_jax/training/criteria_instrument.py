"""The instrument of the criteria for spikes: every score of :mod:`catapult_jax.criteria` that no other instrument gives, at one step.

c1 comes from the instrument ``lambda_max_batch``, c3 from ``directional_batch`` and c5 from ``directional_train``. Theory expects a rise
where a score is above 1. The instrument is for comparisons of criteria: a step takes many passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.flatten_util import ravel_pytree

from catapult_jax import criteria as scores
from catapult_jax.eigenspace import fraction_of
from catapult_jax.losses import batch_loss, weighted_residual
from catapult_jax.preconditioners import Preconditioner
from catapult_jax.tangent import loss_weighted_kernel, tangent_kernel
from catapult_jax.training.measurement import Instrument, Moment
from catapult_jax.xla import eigh

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PyTree

SERIES = (
    "criterion_c2", "criterion_c4", "criterion_c6", "criterion_c7", "criterion_c7_trace", "criterion_c8", "criterion_c8_other",
    "criterion_c9", "criterion_c10", "gradient_norm2_batch", "loss_train_top5_fraction",
)  # fmt: skip
HVPS = 6  # of c2 at a step; the search goes on from the vector of the step before
EPOCHS = 4  # of random batches for c6
LINE_SEARCH = {"doublings": 3, "halvings": 4}  # c8: multiples from 1/8 to 8, to 4 %
_TOP = 5  # eigenvectors for the fraction of the training loss
_SEED = 8  # of the random batches and of the first vector: not the key of the training


class Carried(NamedTuple):
    """What the instrument carries from one measurement to the next."""

    count: Int[Array, ""]  # of measurements so far
    vector: Float[Array, "p 1"]  # of the largest eigenvalue of the Hessian


def criteria(apply_fn: Callable, *, loss: str, every: int, momentum: float) -> Instrument:
    """Scores c2, c4 and c6 to c10, and two baselines: the squared norm of the gradient, and the fraction of the loss in the top 5 modes.

    ``criterion_c7`` is the norm of the noise kernel, ``criterion_c7_trace`` its form for a small lr. ``criterion_c8`` is on the batch of
    the step, ``criterion_c8_other`` on a random one. ``loss_train_top5_fraction`` is the part of the training loss in the top five
    eigenvectors of the kernel of the training set. The scores are those of the update of the step, on the weights before it.

    Cost: the kernel of the training set with its eigenvectors; of the batch 8 hvps, a gradient, and two line searches with 12 forward
    passes each. With a preconditioner the kernel takes the gradients of all training examples.

    Args:
      apply_fn: ``(params, x) -> outputs``, with one output for each example.
      loss: name of the loss.
      every: cadence in steps.
      momentum: weight of the past in the optimizer's average of gradients; for c10.

    Returns:
      The instrument.

    Raises:
      ValueError: in a step, if an example has several outputs, or the lr is not known.

    Source: :mod:`catapult_jax.criteria`.
    """

    def measure(now: Moment, carried: Carried):
        if now.lr is None:
            raise ValueError("Moment.lr=None; allowed with the instrument criteria: the learning rate")
        n, b = len(now.data["x_train"]), len(now.batch[0])
        batches = random_batches(
            jax.random.fold_in(jax.random.key(_SEED), carried.count), examples=n, batch_size=b, epochs=EPOCHS
        )
        preconditioner = now.preconditioner()
        loss_of = lambda x, y: lambda params: batch_loss(apply_fn(params, x), y, loss=loss)
        other = loss_of(now.data["x_train"][batches[0]], now.data["y_train"][batches[0]])
        with jax.default_matmul_precision("highest"):
            measured = from_kernel(apply_fn, now, preconditioner, batches, lr=now.lr, loss=loss, momentum=momentum)
            of_hessian, vector = from_hessian(loss_of(*now.batch), now, preconditioner, carried.vector, lr=now.lr)
            search = lambda loss_fn: scores.line_search_score(loss_fn, now.params, now.updates, **LINE_SEARCH)
            measured |= of_hessian | {"criterion_c8": search(loss_of(*now.batch)), "criterion_c8_other": search(other)}
        return measured, Carried(carried.count + 1, vector)

    def start(now: Moment):
        flat, _ = ravel_pytree(now.params)
        return Carried(jnp.int32(0), jax.random.normal(jax.random.key(_SEED), (len(flat), 1), flat.dtype))

    return Instrument(SERIES, every, measure, start, after_update=True)


def random_batches(key: Array, *, examples: int, batch_size: int, epochs: int) -> Int[Array, "m b"]:
    """Rows of random batches, drawn without replacement in each epoch.

    Args:
      key: of the draw.
      examples: in the training set.
      batch_size: ``b``, at most ``examples``.
      epochs: number of passes over the examples.

    Returns:
      ``(epochs (examples // b), b)``.

    >>> random_batches(jax.random.key(0), examples=5, batch_size=2, epochs=3).shape
    (6, 2)
    """
    per_epoch = examples // batch_size
    orders = jax.vmap(lambda key: jax.random.permutation(key, examples))(jax.random.split(key, epochs))
    return orders[:, : per_epoch * batch_size].reshape(-1, batch_size)


def from_kernel(
    apply_fn: Callable,
    now: Moment,
    preconditioner: Preconditioner,
    batches: Int[Array, "m b"],
    *,
    lr: Float[Array, ""],
    loss: str,
    momentum: float,
) -> dict[str, Array]:
    """What the kernel of the training set gives: c6, c7, c10, and the fraction of the loss in the top five eigenvectors.

    Args:
      apply_fn: ``(params, x) -> outputs``, with one output for each example.
      now: what an instrument sees after the update.
      preconditioner: of the step.
      batches: rows of random batches of the size of the step's batch, for c6.
      lr: of the step.
      loss: name of the loss.
      momentum: of the optimizer.

    Returns:
      Measurements by series.

    Raises:
      ValueError: an example has several outputs.
    """
    x, y = now.data["x_train"], now.data["y_train"]
    outputs, b = apply_fn(now.params, x), batches.shape[1]
    if outputs.size != len(x):
        raise ValueError(f"outputs of an example={outputs.size // len(x)}; allowed with the instrument criteria: 1")
    weighted = loss_weighted_kernel(_kernel(apply_fn, now.params, x, preconditioner.diagonal), outputs, y, loss=loss)
    residual = weighted_residual(outputs, y, loss=loss).reshape(-1)
    h, vectors = eigh(weighted)
    h = jnp.maximum(h, 0)  # below zero by rounding alone
    top, rest = fraction_of(vectors[:, -_TOP:], residual, len(x))
    lr = lr * preconditioner.gain
    return {
        "criterion_c6": scores.batch_sharpness_score(weighted, residual, batches, lr=lr),
        "criterion_c7": scores.noise_score(h, lr=lr, batch_size=b, examples=len(x)),
        "criterion_c7_trace": scores.trace_score(jnp.trace(weighted), lr=lr, batch_size=b),
        # Heavy ball with the gain of this optimizer, 1 / (1 + momentum) for heavy ball itself.
        "criterion_c10": scores.heavy_ball_score(
            h, lr=lr * (1 + momentum), momentum=momentum, batch_size=b, examples=len(x)
        ),
        "loss_train_top5_fraction": top / (top + rest),
    }  # fmt: skip


def from_hessian(
    loss_fn: Callable[[PyTree], Float[Array, ""]],
    now: Moment,
    preconditioner: Preconditioner,
    vector: Float[Array, "p 1"],
    *,
    lr: Float[Array, ""],
) -> tuple[dict[str, Array], Float[Array, "p 1"]]:
    """What the Hessian of the batch gives: c2, c4 and c9, and the squared norm of the gradient.

    Args:
      loss_fn: ``params -> loss`` of the batch.
      now: what an instrument sees after the update.
      preconditioner: of the step.
      vector: where the search for the largest eigenvalue begins.
      lr: of the step.

    Returns:
      Measurements by series, and the vector for the next step.
    """
    lambda_max, vector = scores.hessian_lambda_max(
        loss_fn, now.params, vector, diagonal=preconditioner.diagonal, iterations=HVPS
    )
    gradient = jax.grad(loss_fn)(now.params)
    scale = -lr * preconditioner.gain  # c9: a step along P^-1 g
    diagonal = jax.tree.map(jnp.ones_like, gradient) if preconditioner.diagonal is None else preconditioner.diagonal
    direct = jax.tree.map(lambda g, s: scale * g / s, gradient, diagonal)
    along = lambda step: scores.directional_score(scores.directional_hessian(loss_fn, now.params, step))
    return {
        "criterion_c2": scores.spectral_score(lambda_max, lr=lr, preconditioner=preconditioner),
        "criterion_c4": along(now.updates),
        "criterion_c9": along(direct),
        "gradient_norm2_batch": sum((jnp.vdot(g, g) for g in jax.tree.leaves(gradient)), jnp.float32(0)),
    }, vector


def _kernel(apply_fn: Callable, params: PyTree, x: Array, diagonal: PyTree | None) -> Float[Array, "n n"]:
    """Kernel of ``x``. With a preconditioner the members take turns, since it holds the gradients of all examples."""
    if diagonal is None:
        return tangent_kernel(apply_fn, params, x)
    with_diagonal = lambda params, x, diagonal: tangent_kernel(apply_fn, params, x, preconditioner=diagonal)
    return sequential_vmap(with_diagonal)(params, x, diagonal)
