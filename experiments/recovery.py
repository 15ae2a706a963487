"""Resuming an interrupted run: restore the newest undamaged checkpoint, and compute damaged parts of the record again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from catapult_jax import checkpoints, records, training
from experiments import build, directory
from experiments import config as configs

Coordinates = dict[str, np.ndarray]


def restore(
    config: ConfigDict,
    workdir: Path,
    built: build.Built,
    fresh: training.State,
    coordinates: Coordinates,
    attributes: dict[str, Any],
    damage: list[records.Damage],
) -> training.State | None:
    """Restore the newest undamaged checkpoint, move damaged ones to checkpoints-damaged, and repair the record up to its step.

    Args:
      config: of the run.
      workdir: directory of the run.
      built: from that config.
      fresh: the state before the first step.
      coordinates: of the record, one value for each member.
      attributes: of the record.
      damage: to the record, from :func:`catapult_jax.records.damage`.

    Returns:
      The state, or None: start at step 0.

    Raises:
      RunError: no checkpoint can be read, or the repeated steps give other numbers.
      ConfigError: the record is shorter than the checkpoint.
    """
    restored, damaged = checkpoints.restore(workdir / "checkpoints", fresh)
    if damaged and restored is None:
        raise configs.RunError(
            f"workdir={str(workdir)!r} has no checkpoint that can be read: {'; '.join(damaged)}; nothing was changed; allowed: the "
            "versions and devices that wrote it, or, to start again, its folder checkpoints moved away"
        )
    for line in damaged:
        print(f"WARNING: {line}; resuming from step {int(restored.step)}; moved to checkpoints-damaged", file=sys.stderr)
    if damaged:
        with directory.explain_write_errors(workdir):
            checkpoints.set_aside(workdir / "checkpoints", after=int(restored.step))
    if restored is not None and damage:
        with directory.explain_write_errors(workdir):
            repaired = _repair(config, workdir, built.trainer, fresh, restored, coordinates, attributes, damage)
        if not repaired:
            return None
    if restored is not None and records.steps_done(workdir) < int(restored.step):
        raise configs.ConfigError(
            f"workdir={str(workdir)!r} has a checkpoint of step {int(restored.step)}, and a record of fewer steps; allowed: another workdir"
        )
    return restored


def _repair(
    config: ConfigDict,
    workdir: Path,
    trainer: training.Trainer,
    fresh: training.State,
    restored: training.State,
    coordinates: Coordinates,
    attributes: dict[str, Any],
    damage: list[records.Damage],
) -> bool:
    """Repair the damaged files of a record up to the restored checkpoint. False: the whole record is lost, start at step 0."""
    for file in damage:
        print(f"WARNING: {workdir / str(file)}", file=sys.stderr)
    lost = records.repair(workdir, members=coordinates, about=attributes, steps=int(restored.step))
    if lost is None:
        print("the record can't be repaired; the run starts again from step 0; its checkpoints are in checkpoints-damaged")
        checkpoints.set_aside(workdir / "checkpoints", after=-1)
        return False
    if lost:
        _compute_again(config, workdir, trainer, fresh, restored, lost)
    if any(file.file.endswith("progress.json") for file in damage) and int(restored.step) < config.steps:
        record, at = records.open_record(workdir), int(restored.step) - config.run.chunk_steps - 1
        marks = {name: record[name].values[:, at] for name in ("diverged", "stopped") if name in record}
        # The training loop ends a record one chunk after the last member has stopped.
        if at >= 0 and stopped_members(marks).all():
            records.end(workdir)
    return True


def _compute_again(
    config: ConfigDict,
    workdir: Path,
    trainer: training.Trainer,
    fresh: training.State,
    restored: training.State,
    lost: list[records.Damage],
) -> None:
    """Run the steps that damaged files held, from the checkpoint before them, and write those files.

    Raises:
      RunError: the steps come out different from the undamaged files.
    """
    start, end = min(d.first_step for d in lost), max(d.end_step for d in lost)
    state, _ = checkpoints.restore(workdir / "checkpoints", restored, at_most=start)
    state = fresh if state is None else state
    print(f"computing steps {start} to {end - 1} of the record again, from step {int(state.step)}", flush=True)
    chunks, longest = [], min(config.run.chunk_steps, config.steps)
    while (at := int(state.step)) < end:
        state, measured = trainer.run(state, min(longest, end - at), longest)
        chunks.append({name: values[:, max(start - at, 0) :] for name, values in measured.items()})
    different = records.write_again(workdir, start, join(chunks), lost)
    if different:
        raise configs.RunError(
            f"workdir={str(workdir)!r}: {lost[0]}, and can't be computed again here: {different} differs from the record; "
            "allowed: the environment that the run began in, or another workdir for the whole run"
        )


def join(chunks: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Join the series of consecutive chunks, each (members, steps), along their steps.

    >>> join([{"lr": np.ones((2, 3))}, {"lr": np.zeros((2, 1))}])["lr"].shape
    (2, 4)
    """
    return {name: np.concatenate([chunk[name] for chunk in chunks], axis=1) for name in chunks[0]}


def stopped_members(marks: dict[str, np.ndarray]) -> np.ndarray:
    """Members for which one of the marks, such as diverged and stopped, is set.

    >>> stopped_members({"diverged": np.array([True, False]), "stopped": np.array([False, False])}).tolist()
    [True, False]
    """
    return np.any(list(marks.values()), axis=0)
