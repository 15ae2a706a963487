"""The trainer of a run, from its config and instruments."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from catapult_jax import data, detection, training
from catapult_jax.training.measurement import Instrument
from experiments import optimizers, schedules

LARGEST = 8192  # most rows of an exact kernel, unless measure.method asks for it: such a kernel takes 268 MB


def rows_of(config: ConfigDict, arrays: data.Data) -> dict[str, int]:
    """The rows of each kernel: one for each output of each example.

    Returns:
      Name of the instrument -> rows.
    """
    n, m = len(arrays.x_train), config.measure
    return {
        "lambda_max_batch": (config.optimizer.batch_size or n) * arrays.outputs,
        "lambda_max_train": (m.probe_size or n) * arrays.outputs,
    }


def build_trainer(config: ConfigDict, model: Any, arrays: data.Data, chosen: dict[str, Instrument]) -> training.Trainer:
    """Build the trainer of a config.

    Args:
      config: of the run.
      model: from that config.
      arrays: data of the run.
      chosen: instruments by name.
    """
    m, momentum = config.measure, optimizers.momentum(config.optimizer)
    rows = rows_of(config, arrays)["lambda_max_train"]
    e = config.events
    return training.make_trainer(
        model,
        arrays,
        loss=config.loss,
        optimizer=optimizers.build(config.optimizer),
        schedule=schedules.build(config.schedule),
        detector=detection.detector(
            factor=e.factor, delta=e.delta, horizon=e.horizon, momentum_horizon=detection.momentum_horizon(momentum)
        ),
        instruments=chosen,
        batch_size=config.optimizer.batch_size,
        probe_size=m.probe_size,
        stop_loss=config.run.stop_loss,
        matrix_free=m.method == "matrix_free" or (m.method != "exact" and rows > LARGEST),
        chunk_size=m.chunk_size,
    )
