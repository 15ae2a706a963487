"""Going on with a run that was interrupted: the newest checkpoint that is whole, and damaged files of the record made again."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from catapult_jax import checkpoints, records, training
from experiments import build, directory
from experiments import config as configs


def restore(
    config: ConfigDict, workdir: Path, built: build.Built, fresh, coordinates, attributes, harm: list
) -> training.State | None:
    """The state of the newest checkpoint that is whole, with the damaged files of the record made again up to it; None: there is none.

    ``fresh``: the state before the first step.

    Raises:
      RunError: no checkpoint can be read, or the record can't be mended here.
      ConfigError: a checkpoint without the record up to it.
    """
    restored, damaged = checkpoints.restore(workdir / "checkpoints", fresh)
    if damaged and restored is None:
        raise configs.RunError(
            f"workdir={str(workdir)!r} has no checkpoint that can be read: {'; '.join(damaged)}; nothing was changed; allowed: the versions and "
            f"devices that it was written with, or its folder checkpoints moved away, to begin again"
        )
    for line in damaged:
        print(f"WARNING: {line}; going on from step {int(restored.step)}; moved to checkpoints-damaged", file=sys.stderr)
    if damaged:
        with directory.written(workdir):
            checkpoints.set_aside(workdir / "checkpoints", after=int(restored.step))
    if restored is not None and harm:
        with directory.written(workdir):
            mended = _mend(config, workdir, built.trainer, fresh, restored, coordinates, attributes, harm)
        if not mended:
            return None
    if restored is not None and records.steps_done(workdir) < int(restored.step):
        raise configs.ConfigError(f"workdir={str(workdir)!r} has a checkpoint but no record up to it; allowed: another workdir")
    return restored


def _mend(config, workdir: Path, trainer, fresh, restored, coordinates, attributes, harm) -> bool:
    """Makes the damaged files of a record again, up to the step of the checkpoint. False: the whole record has to be made again.

    ``fresh``: the state before the first step, for what is older than each checkpoint.

    Raises:
      RunError: here the steps come out otherwise than they did.
    """
    for found in harm:
        print(f"WARNING: {workdir / str(found)}", file=sys.stderr)
    lost = records.repair(workdir, members=coordinates, about=attributes, steps=int(restored.step))
    if lost is None:
        print("the record can't be mended; the run is made again from step 0; its checkpoints are in checkpoints-damaged")
        checkpoints.set_aside(workdir / "checkpoints", after=-1)
        return False
    if lost:
        start, end = min(d.first_step for d in lost), max(d.end_step for d in lost)
        state, _ = checkpoints.restore(workdir / "checkpoints", restored, at_most=start)
        state = fresh if state is None else state
        print(f"steps {start} to {end - 1} of the record are made again, from step {int(state.step)} on", flush=True)
        made, longest = [], min(config.run.chunk_steps, config.steps)
        while (at := int(state.step)) < end:
            state, measured = trainer.run(state, min(longest, end - at), longest)
            made.append({name: values[:, max(start - at, 0) :] for name, values in measured.items()})
        other = records.write_again(workdir, start, joined(made), lost)
        if other:
            raise configs.RunError(
                f"workdir={str(workdir)!r}: {lost[0]}, and can't be made again here: {other} comes out otherwise than on record; "
                "allowed: the environment that it was made in, or another workdir, where the whole run is made"
            )
    if any(found.file.endswith("progress.json") for found in harm) and int(restored.step) < config.steps:
        record, at = records.open_record(workdir), int(restored.step) - config.run.chunk_steps - 1
        marks = {name: record[name].values[:, at] for name in ("diverged", "stopped") if name in record}
        if at >= 0 and have_stopped(marks).all():  # see the end of the loop of _train
            records.end(workdir)
    return True


def joined(chunks: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The measurements of consecutive chunks as those of one."""
    return {name: np.concatenate([chunk[name] for chunk in chunks], axis=1) for name in chunks[0]}


def have_stopped(marks: dict[str, np.ndarray]) -> np.ndarray:
    """Members that diverged or stopped."""
    return np.any(list(marks.values()), axis=0)
