"""Checkpoints of a run's state, by Orbax."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax


def _manager(directory: str | Path, keep: int = 2):
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
    return ocp.CheckpointManager(Path(directory).resolve(), options=options)


def save(directory: str | Path, step: int, state: Any) -> None:
    """Saves a state; the newest two are kept. A step that is there already is left as it is."""
    import orbax.checkpoint as ocp

    with _manager(directory) as manager:
        if step not in manager.all_steps():
            manager.save(step, args=ocp.args.StandardSave(state))


def restore(directory: str | Path, like: Any) -> Any | None:
    """The newest state, in the structure, shapes and dtypes of ``like``; None where there is none."""
    import orbax.checkpoint as ocp

    if not Path(directory).is_dir():
        return None
    with _manager(directory) as manager:
        if manager.latest_step() is None:
            return None
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), like)
        return manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(shapes))
