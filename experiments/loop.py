"""The training loop of a run: chunks of steps, written to the record and to checkpoints, until the end or a signal."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from catapult_jax import checkpoints, records, training
from experiments import config as configs
from experiments import progress, recovery, signals

# The record is written after so many seconds or steps, whichever comes first.
_WRITE_SECONDS, _WRITE_STEPS = 10, 20_000


def train(
    config: ConfigDict,
    workdir: Path,
    trainer: training.Trainer,
    state: training.State,
    coordinates: dict[str, np.ndarray],
    attributes: dict[str, Any],
    find_nans: bool,
) -> training.State:
    """Run to the last step, or until every member has stopped.

    Several chunks are written at once, and always before a checkpoint. So a run that is killed loses only steps that can be computed
    again from its newest checkpoint.

    Args:
      config: of the run.
      workdir: directory of the run.
      trainer: of the run.
      state: to start from.
      coordinates: of the record along its members.
      attributes: of the record.
      find_nans: end with an error at the first NaN, as ``JAX_DEBUG_NANS`` asks.

    Returns:
      The state after the last step.

    Raises:
      RunError: a NaN, with ``find_nans``.
      SystemExit: stopped by a signal, after the chunk is saved.
    """
    c, at = config.run, int(state.step)
    longest = min(c.chunk_steps, config.steps)
    stopped = recovery.stopped_members({name: np.asarray(getattr(state.members, name)) for name in ("diverged", "stopped")})
    over = records.steps_done(workdir) == at and records.is_over(workdir)
    display = progress.Progress(config.steps, at)
    waiting, saved, saved_time, written_time = [], at, time.monotonic(), -math.inf
    with signals.collect() as received:
        while at < config.steps and not over:
            steps = min(c.chunk_steps - at % c.chunk_steps, config.steps - at)
            state, measured = trainer.run(state, steps, longest)
            if at == 0:
                records.create(workdir, members=coordinates, steps=config.steps, shapes=measured, about=attributes)
            # If all members had stopped before this chunk, it holds every measurement of their last parameters.
            over = bool(stopped.all())
            at += steps
            waiting.append(measured)
            now = time.monotonic()
            due = at - saved >= c.checkpoint_every if c.checkpoint_every else now - saved_time >= c.checkpoint_seconds
            save = due or at == config.steps or over or bool(received)
            if save or now - written_time >= _WRITE_SECONDS or len(waiting) * c.chunk_steps >= _WRITE_STEPS:
                series = recovery.join(waiting)
                records.write(workdir, at - series["lr"].shape[1], series, over=over)
                waiting, written_time = [], time.monotonic()
            if save:
                checkpoints.save(workdir / "checkpoints", at, state)
                saved, saved_time = at, time.monotonic()
            display.update(at, measured)
            if find_nans:
                check_nans(state, measured, at - steps)
            if received:
                display.close()
                signals.stop(
                    received[0],
                    f" at step {at} of {config.steps}; record and checkpoint are written; run the same command again to resume",
                )
            stopped = recovery.stopped_members(
                {name: measured[name][:, -1] for name in ("diverged", "stopped") if name in measured}
            )
    display.close()
    return state


def check_nans(state: training.State, measured: dict[str, np.ndarray], first: int) -> None:
    """Check a chunk for NaN in the losses, and in the parameters after it.

    Args:
      state: after the chunk.
      measured: series of the chunk, each (members, steps).
      first: step at which the chunk begins.

    Raises:
      RunError: there is a NaN. It names the first member with one, and the step.
    """
    nans = np.isnan(measured["loss_batch"])
    messages = {
        int(m): f"the loss of member {m} is NaN at step {first + int(nans[m].argmax())}" for m in np.flatnonzero(nans.any(1))
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.members.params):
        for m in np.flatnonzero(np.isnan(np.asarray(leaf)).reshape(len(leaf), -1).any(1)):
            where = f"{jax.tree_util.keystr(path)} of member {m} is NaN"
            messages.setdefault(int(m), f"{where} after step {first + measured['lr'].shape[1] - 1}")
    if messages:
        raise configs.RunError(
            f"JAX_DEBUG_NANS: {messages[min(messages)]}; allowed: finite numbers, or a run without JAX_DEBUG_NANS, which marks such "
            "members as diverged and goes on"
        )
