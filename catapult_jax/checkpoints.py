"""Checkpoints of the state of a run, one file each; a trained model as one file."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from catapult_jax.data.npz import npz_arrays
from catapult_jax.records import write_bytes

_KEPT = 2  # number of newest checkpoints that stay


def save(directory: str | Path, step: int, state: Any) -> None:
    """Saves a state with its checksum to ``DIRECTORY/STEP.npz``. The newest two checkpoints stay; one of the same step is replaced.

    Args:
      directory: where the checkpoints are.
      step: number of steps that the state has taken.
      state: a pytree of arrays.

    Raises:
      OSError: the file can't be written, or a later checkpoint is there. The other checkpoints stay as they are.
    """
    directory = Path(directory)
    newest = max(_steps(directory), default=step)
    if newest > step:
        raise OSError(f"the checkpoint of step {step} would be older than one that is there, of step {newest}")
    leaves = _leaves(jax.device_get(state))
    about = {"leaves": [(name, str(leaf.dtype), leaf.shape) for name, leaf in leaves], "sha256": _digest(leaves)}
    data = np.frombuffer(b"".join(leaf.tobytes() for _, leaf in leaves), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(json.dumps(about)), data=data)
    directory.mkdir(exist_ok=True)
    write_bytes(_path(directory, step), buffer.getbuffer())
    for older in _steps(directory)[:-_KEPT]:
        _path(directory, older).unlink(missing_ok=True)


def restore(directory: str | Path, like: Any, *, at_most: int | None = None) -> tuple[Any | None, list[str]]:
    """Reads the newest undamaged state, onto the default device. Nothing is deleted.

    A state is undamaged if it can be read, has its checksum, and has the structure, shapes and dtypes of ``like``.

    Args:
      directory: where the checkpoints are.
      like: a state of the same structure.
      at_most: the last step to look at; None: the newest.

    Returns:
      The state, None if there is none; and a line for each newer checkpoint that is damaged.
    """
    damaged = []
    expected, structure = _leaves(like), jax.tree.structure(like)
    for step in reversed(_steps(Path(directory))):
        if at_most is not None and step > at_most:
            continue
        try:
            leaves, _ = _read(_path(Path(directory), step))
            if [(name, a.dtype, a.shape) for name, a in leaves] != [(name, a.dtype, a.shape) for name, a in expected]:
                raise ValueError("it holds another state")
        except (OSError, ValueError) as error:
            damaged.append(f"the checkpoint of step {step} is damaged: {error}")
            continue
        arrays = [jax.device_put(leaf, jax.devices()[0]) for _, leaf in leaves]
        return jax.tree.unflatten(structure, arrays), damaged
    return None, damaged


def _path(directory: Path, step: int) -> Path:
    """File of a checkpoint. In an earlier version it was a folder, which can't be read."""
    old = directory / str(step)
    return old if old.is_dir() else directory / f"{step}.npz"


def _steps(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    names = [path.name.removesuffix(".npz") for path in directory.iterdir()]
    return sorted({int(name) for name in names if name.isdigit()})


def _leaves(state: Any) -> list[tuple[str, Any]]:
    """Leaves of a state by name; Python numbers become arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [(jax.tree_util.keystr(path), leaf if hasattr(leaf, "dtype") else np.asarray(leaf)) for path, leaf in leaves]


def _read(path: Path) -> tuple[list[tuple[str, np.ndarray]], str]:
    """Arrays by name, and their checksum.

    Raises:
      ValueError: the file is not as it was written.
    """
    try:
        file = npz_arrays(path)
        about, data = json.loads(str(file["about"])), file["data"]
        leaves, start = [], 0
        for name, dtype, shape in about["leaves"]:
            dtype, count = np.dtype(dtype), int(np.prod(shape))
            end = start + count * dtype.itemsize
            leaves.append((name, np.frombuffer(data[start:end].tobytes(), dtype, count).reshape(shape)))
            start = end
        stored = about["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"it can't be read ({type(error).__name__})") from error
    if stored != _digest(leaves):
        raise ValueError("its checksum differs")
    return leaves, stored


def set_aside(directory: str | Path, *, after: int) -> None:
    """Moves the checkpoints after a step to ``DIRECTORY-damaged``, so that they can be made again like the record.

    Args:
      directory: where the checkpoints are.
      after: later checkpoints than this step are moved.
    """
    directory, aside = Path(directory), Path(f"{directory}-damaged")
    aside.mkdir(exist_ok=True)
    for step in _steps(directory):
        if step > after:
            path = _path(directory, step)
            count = len(list(aside.glob(f"{path.stem}*")))
            path.rename(aside / (path.name if not count else f"{path.stem}-{count}{path.suffix}"))


def newest_checksum(directory: str | Path) -> str:
    """Checksum that the newest state was saved with.

    Args:
      directory: where the checkpoints are.

    Returns:
      SHA-256 in hexadecimal.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the newest checkpoint is damaged.
    """
    steps = _steps(Path(directory))
    if not steps:
        raise FileNotFoundError(f"no checkpoint in {directory}")
    path = _path(Path(directory), steps[-1])
    try:
        return _read(path)[1]
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def checksum(state: Any) -> str:
    """SHA-256 of the leaves of a state: names, dtypes, shapes and bytes.

    Args:
      state: a pytree of arrays.

    Returns:
      SHA-256 in hexadecimal.

    >>> checksum({"a": np.zeros(2)}) == checksum({"a": np.zeros(2)}), checksum({"a": np.zeros(2)}) == checksum({"b": np.zeros(2)})
    (True, False)
    """
    return _digest(_leaves(jax.device_get(state)))


def _digest(leaves: list[tuple[str, np.ndarray]]) -> str:
    digest = hashlib.sha256()
    for name, array in leaves:
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def save_model(path: str | Path, params: Any, about: dict[str, Any]) -> None:
    """Writes parameters and their description to one ``.npz`` file, whole or not at all.

    Args:
      path: of the file.
      params: nested dictionaries of arrays.
      about: description, as JSON.
    """
    arrays = {name: np.asarray(leaf) for name, leaf in traverse_util.flatten_dict(params, sep="/").items()}
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(json.dumps(about)), **arrays)  # pyright: ignore[reportArgumentType]  # no array is allow_pickle
    write_bytes(path, buffer.getbuffer())


def load_model(path: str | Path) -> tuple[dict, dict[str, Any], str]:
    """Reads a model that :func:`save_model` wrote.

    Args:
      path: of the file.

    Returns:
      Parameters, description, and the SHA-256 of the file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no saved model.
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
