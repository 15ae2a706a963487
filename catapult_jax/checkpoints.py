"""Checkpoints of a run's state, each one file; a trained model as one file."""

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

_KEPT = 2  # newest checkpoints


def save(directory: str | Path, step: int, state: Any) -> None:
    """Saves a state with its checksum to ``DIRECTORY/STEP.npz``; the newest two are kept. One of that step is replaced.

    Raises:
      OSError: it could not be written, or is older than one that is there; the ones before it are as they were.
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
    """The newest state that is whole, in the structure, shapes and dtypes of ``like``, and a line for each newer one that is not.

    A state is whole if it can be read and has the checksum that it was saved with. It is put on the default device, wherever it was
    saved. None where there is none; nothing is deleted.

    Args:
      directory: where the checkpoints are.
      like: a state of that structure.
      at_most: the last step to look at; None: the newest.
    """
    damaged = []
    wanted, structure = _leaves(like), jax.tree.structure(like)
    for step in reversed(_steps(Path(directory))):
        if at_most is not None and step > at_most:
            continue
        try:
            leaves, _ = _read(_path(Path(directory), step))
            if [(name, a.dtype, a.shape) for name, a in leaves] != [(name, a.dtype, a.shape) for name, a in wanted]:
                raise ValueError("it holds another state")
        except (OSError, ValueError) as error:
            damaged.append(f"the checkpoint of step {step} is damaged: {error}")
            continue
        arrays = [jax.device_put(leaf, jax.devices()[0]) for _, leaf in leaves]
        return jax.tree.unflatten(structure, arrays), damaged
    return None, damaged


def _path(directory: Path, step: int) -> Path:
    """That of an earlier version was a folder, which is no checkpoint that can be read."""
    old = directory / str(step)
    return old if old.is_dir() else directory / f"{step}.npz"


def _steps(directory: Path) -> list[int]:
    if not directory.is_dir():
        return []
    names = [path.name.removesuffix(".npz") for path in directory.iterdir()]
    return sorted({int(name) for name in names if name.isdigit()})


def _leaves(state: Any) -> list[tuple[str, Any]]:
    """Arrays of a state by name; those of the host where the state is there."""
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
    """Moves the checkpoints of later steps to ``DIRECTORY-damaged``, before they are made again: else the record would go back and they
    would not."""
    directory, aside = Path(directory), Path(f"{directory}-damaged")
    aside.mkdir(exist_ok=True)
    for step in _steps(directory):
        if step > after:
            path = _path(directory, step)
            count = len(list(aside.glob(f"{path.stem}*")))
            path.rename(aside / (path.name if not count else f"{path.stem}-{count}{path.suffix}"))


def newest_checksum(directory: str | Path) -> str:
    """Checksum that the newest state was saved with.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged.
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
    """SHA-256 of the leaves of a state: names, dtypes, shapes and bytes."""
    return _digest(_leaves(jax.device_get(state)))


def _digest(leaves: list[tuple[str, np.ndarray]]) -> str:
    found = hashlib.sha256()
    for name, array in leaves:
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def save_model(path: str | Path, params: Any, about: dict[str, Any]) -> None:
    """Writes parameters and what they are to one ``.npz`` file, whole or not at all."""
    arrays = {name: np.asarray(leaf) for name, leaf in traverse_util.flatten_dict(params, sep="/").items()}
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(json.dumps(about)), **arrays)
    write_bytes(path, buffer.getbuffer())


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
