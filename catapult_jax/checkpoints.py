"""Checkpoints of a run's state, by Orbax; a trained model as one file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util


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


def save_model(path: str | Path, params: Any, about: dict[str, Any]) -> None:
    """Writes parameters and what they are to one ``.npz`` file, whole or not at all."""
    arrays = {name: np.asarray(leaf) for name, leaf in traverse_util.flatten_dict(params, sep="/").items()}
    buffer, half = io.BytesIO(), Path(f"{path}.tmp")
    np.savez(buffer, about=np.array(json.dumps(about)), **arrays)
    half.write_bytes(buffer.getvalue())
    os.replace(half, path)


def load_model(path: str | Path) -> tuple[dict, dict[str, Any], str]:
    """``(params, about, SHA-256 of the file)`` of a model that :func:`save_model` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that is not of that form.
    """
    content = Path(path).read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            params = traverse_util.unflatten_dict({k: stored[k] for k in stored.files if k != "about"}, sep="/")
    except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path} is no saved model ({error}); allowed: a model.npz of a run with run.save_model") from error
    return params, about, hashlib.sha256(content).hexdigest()
