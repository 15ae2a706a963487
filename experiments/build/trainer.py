"""The trainer of a run with its instruments."""

from __future__ import annotations

from ml_collections import ConfigDict

from catapult_jax import data, detection, training
from catapult_jax.training import instruments
from experiments import optimizers, schedules

LARGEST = 8192  # rows of an exact kernel that is tried without being asked for: it alone takes 268 MB


def rows_of(config: ConfigDict, arrays: data.Data) -> dict[str, int]:
    """Rows of the kernels: one for each output of each example."""
    n, m = len(arrays.x_train), config.measure
    return {
        "lambda_max_batch": (config.optimizer.batch_size or n) * arrays.outputs,
        "lambda_max_train": (m.probe_size or n) * arrays.outputs,
    }


def build_trainer(config: ConfigDict, model, arrays: data.Data, chosen: dict[str, instruments.Instrument]) -> training.Trainer:
    """The trainer of a config with these instruments."""
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
