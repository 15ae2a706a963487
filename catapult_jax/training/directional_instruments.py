"""Instruments of the directional critical lr: on the batch, on a probe, on the training set, for each layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from catapult_jax.directional import directional_by_layer, directional_critical_lr, layers_of_leaves
from catapult_jax.losses import batch_loss
from catapult_jax.training.measurement import Instrument, Moment


def directional_batch(apply_fn: Callable, *, loss: str, every: int) -> Instrument:
    """Multiple of this step's update at which the loss of the batch stops falling: below 1 the loss of the batch rises in the step.

    It is 0 where the update is no descent direction. Cost: one jvp of the batch.

    Args:
      apply_fn: ``(params, x) -> outputs``.
      loss: name of the loss.
      every: cadence in steps.

    Returns:
      The instrument.

    Source: :func:`catapult_jax.directional_critical_lr`.
    """

    def measure(now: Moment):
        return {"directional_batch": directional_critical_lr(apply_fn, now.params, now.batch, now.updates, loss=loss).multiple}

    return Instrument(("directional_batch",), every, measure, after_update=True)


def directional_probe(apply_fn: Callable, probe: tuple[Any, Any], *, loss: str, every: int) -> Instrument:
    """As :func:`directional_batch`, on examples that stay the same: below 1 their loss rises.

    Cost: one jvp of the probe.

    Args:
      apply_fn: ``(params, x) -> outputs``.
      probe: ``(x, targets)``.
      loss: name of the loss.
      every: cadence in steps.

    Returns:
      The instrument.

    Source: :func:`catapult_jax.directional_critical_lr`.
    """

    def measure(now: Moment):
        return {"directional_probe": directional_critical_lr(apply_fn, now.params, probe, now.updates, loss=loss).multiple}

    return Instrument(("directional_probe",), every, measure, after_update=True)


def directional_layers(
    apply_fn: Callable, params: Any, *, loss: str, every: int, layer: Callable[[str], str] | None = None
) -> Instrument:
    """``directional/LAYER`` for each layer: :func:`directional_batch` of its part of the update. Cost: one jvp for each layer.

    Args:
      apply_fn: ``(params, x) -> outputs``.
      params: parameters; their names are those of the layers.
      loss: name of the loss.
      every: cadence in steps.
      layer: from the path of a leaf to the name of its layer; None: the path without its last part.

    Returns:
      The instrument.

    Source: :func:`catapult_jax.directional_by_layer`.
    """
    names = dict.fromkeys(layers_of_leaves(params, layer))

    def measure(now: Moment):
        steps = directional_by_layer(apply_fn, now.params, now.batch, now.updates, loss=loss, layer=layer)
        return {f"directional/{name}": step.multiple for name, step in steps.items()}

    return Instrument(tuple(f"directional/{name}" for name in names), every, measure, after_update=True)


def directional_train(apply_fn: Callable, *, loss: str, every: int) -> Instrument:
    """As :func:`directional_batch`, on all training examples; with it the training loss after the step in its quadratic model.

    ``loss_train_predicted = L + <g, D> + <D, G D> / 2``: for ``mse`` the loss of the linearised network. Cost: one jvp of all examples.

    Args:
      apply_fn: ``(params, x) -> outputs``.
      loss: name of the loss.
      every: cadence in steps.

    Returns:
      The instrument.

    Source: :func:`catapult_jax.directional_critical_lr`.
    """

    def measure(now: Moment):
        x, y = now.data["x_train"], now.data["y_train"]
        along = directional_critical_lr(apply_fn, now.params, (x, y), now.updates, loss=loss)
        before = batch_loss(apply_fn(now.params, x), y, loss=loss)
        return {"directional_train": along.multiple, "loss_train_predicted": before + along.slope + along.curvature / 2}

    return Instrument(("directional_train", "loss_train_predicted"), every, measure, after_update=True)
