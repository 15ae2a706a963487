"""Checkpoints of a run's state, by Orbax; a trained model as one file."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from catapult_jax.data.npz import npz_arrays


def _manager(directory: str | Path, keep: int = 2):
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=False)
    return ocp.CheckpointManager(Path(directory).resolve(), options=options)


def save(directory: str | Path, step: int, state: Any) -> None:
    """Saves a state with its checksum; the newest two are kept. One that is there already for that step gives way.

    Raises:
      OSError: it could not be written; the ones before it are as they were.
    """
    import orbax.checkpoint as ocp

    with _manager(directory) as manager:
        if step in manager.all_steps():
            manager.delete(step)
        about = ocp.args.JsonSave({"sha256": checksum(state)})
        try:
            saved = manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), about=about))
        except (ValueError, RuntimeError) as error:  # so Orbax's storage tells of a disk that is full
            raise OSError(f"the checkpoint of step {step}: {str(error).splitlines()[0][:300]}") from error
        if not saved:
            raise OSError(
                f"the checkpoint of step {step} would be older than one that is there, of step {manager.latest_step()}"
            )


def restore(directory: str | Path, like: Any) -> tuple[Any | None, list[str]]:
    """The newest state that is whole, in the structure, shapes and dtypes of ``like``, and a line for each newer one that is not.

    A state is whole if it can be read and has the checksum that it was saved with. It is put on the default device, wherever it was saved.
    None where there is none; nothing is deleted.
    """
    import orbax.checkpoint as ocp

    damaged = []
    if not Path(directory).is_dir():
        return None, damaged
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), like)
    with _manager(directory) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            arguments = ocp.args.Composite(state=ocp.args.StandardRestore(shapes), about=ocp.args.JsonRestore())
            try:
                found = manager.restore(step, args=arguments)
                whole = found["about"]["sha256"] == checksum(found["state"])
                reason = "its checksum differs"
            except Exception as error:  # what Orbax and its storage raise for a damaged file has no common type
                whole, reason = False, f"it can't be read ({type(error).__name__})"
            if whole:
                return found["state"], damaged
            damaged.append(f"the checkpoint of step {step} is damaged: {reason}")
    return None, damaged


def set_aside(directory: str | Path, *, after: int) -> None:
    """Moves the checkpoints of later steps to ``DIRECTORY-damaged``, before they are made again: else the record would go back and they
    would not."""
    with _manager(directory) as manager:
        later = [step for step in manager.all_steps() if step > after]
    aside = Path(f"{directory}-damaged")
    aside.mkdir(exist_ok=True)
    for step in later:
        count = len(list(aside.glob(f"{step}*")))
        Path(directory, str(step)).rename(aside / (f"{step}" if not count else f"{step}-{count}"))


def newest_checksum(directory: str | Path) -> str:
    """Checksum that the newest state was saved with.

    Raises:
      FileNotFoundError: there is none.
    """
    steps = [int(path.name) for path in Path(directory).iterdir() if path.name.isdigit()]
    if not steps:
        raise FileNotFoundError(f"no checkpoint in {directory}")
    return json.loads(Path(directory, str(max(steps)), "about", "metadata").read_text())["sha256"]


def checksum(state: Any) -> str:
    """SHA-256 of the leaves of a state: names, dtypes, shapes and bytes."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


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
    try:
        content = Path(path).read_bytes()
        arrays = npz_arrays(io.BytesIO(content))
        about = json.loads(str(arrays.pop("about")))
        params = traverse_util.unflatten_dict(arrays, sep="/")
        if not isinstance(about, dict) or not all(array.dtype.kind == "f" for array in arrays.values()):
            raise ValueError("about is no description, or a parameter no floating-point array")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no saved model ({error}); allowed: a model.npz of a run with run.save_model") from error
    return params, about, hashlib.sha256(content).hexdigest()
