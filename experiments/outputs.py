"""Files that a run writes beside its record: the trained model, and the top directions of its AGOPs."""

from __future__ import annotations

import io
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from catapult_jax import checkpoints, data, records, training
from catapult_jax.outer_product import agop_eigenvectors, input_jacobian
from catapult_jax.training import instruments
from catapult_jax.training.measurement import Moment
from experiments import build
from experiments.build.reference import CHUNK

_DIRECTIONS = 3  # top eigenvectors of an AGOP that are written


def finite(state: training.State) -> np.ndarray:
    """Whether the parameters of each member are finite, (members,)."""
    leaves = jax.tree.leaves(state.members.params)
    return np.all([np.isfinite(np.asarray(leaf)).reshape(len(leaf), -1).all(1) for leaf in leaves], axis=0)


def lost(workdir: Path, about: dict[str, Any]) -> list[str]:
    """The files that an ended run wrote, and that are missing or damaged now.

    Args:
      workdir: directory of the run.
      about: contents of run.json.

    Returns:
      Names of files; none for a run that has not ended, or that has no checkpoint to write them from.
    """
    if about["status"] == "running" or not any((workdir / "checkpoints").glob("*")):
        return []
    gone = {member["member"] for member in [*about.get("lost", []), *about.get("dead", [])]}
    expected = ["model.npz"] if about.get("model_saved") and 0 not in gone else []
    expected += ["agop.npz"] if "agop_alignment" in about.get("instruments", {}).get("cadences", {}) else []
    return [name for name in expected if not _is_whole(workdir / name)]


def _is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def write_model(workdir: Path, model: Any, state: training.State, arrays: data.Data, about: dict[str, Any]) -> None:
    """Write model.npz: the parameters of the first member after the last step, with their test scores.

    Args:
      workdir: directory of the run.
      model: a Flax model.
      state: after the last step.
      arrays: data of the run.
      about: stored with the parameters; ``about["config"]`` is the config as JSON gives it.
    """
    params = jax.device_get(jax.tree.map(lambda a: a[0], state.members.params))
    config = about["config"]
    scores = instruments.loss_test(model.apply, loss=config["loss"], every=1, target_encoding=config["data"]["target_encoding"])
    x_test, y_test = jax.numpy.asarray(arrays.x_test), jax.numpy.asarray(arrays.y_test)
    moment = Moment(params, params, None, None, {"x_test": x_test, "y_test": y_test})
    measured = {name: float(value) for name, value in jax.jit(scores.measure)(moment).items()}
    checkpoints.save_model(workdir / "model.npz", params, about | measured)


def write_directions(
    config: ConfigDict,
    workdir: Path,
    built: build.Built,
    state: training.State,
    coordinates: dict[str, np.ndarray],
    usable: np.ndarray,
) -> None:
    """Write agop.npz: top eigenvectors of the AGOP of the reference, and of each setting at the end of training.

    All of them are taken at the examples of the first seed.

    Args:
      config: of the run.
      workdir: directory of the run.
      built: from that config, with a reference.
      state: after the last step.
      coordinates: of the record along its members. The members with the first seed stand for their settings.
      usable: members whose parameters are finite and whose kernel is not zero, (members,).
    """
    x = jax.numpy.asarray(built.data.x_train[: config.measure.agop_size])
    jacobian = jax.jit(partial(input_jacobian, built.model.apply, chunk_size=CHUNK))
    names, rows = ["reference"], [jax.numpy.asarray(built.data.agop_reference)]
    first = coordinates["seed"][0]
    axes = [axis for axis in ("lr_given", "raises", "cap") if len(np.unique(coordinates.get(axis, 0))) > 1]
    for m in np.flatnonzero((coordinates["seed"] == first) & usable):
        names.append(", ".join(f"{axis} {coordinates[axis][m]:.3g}" for axis in axes) or "trained")
        rows.append(jacobian(jax.tree.map(lambda a, m=m: a[m], state.members.params), x))
    k = min(_DIRECTIONS, x[0].size, *(len(r) for r in rows))
    vectors = [np.asarray(agop_eigenvectors(r, len(x), k=k)[1].T) for r in rows]
    buffer = io.BytesIO()
    np.savez(buffer, names=np.array(names), vectors=np.stack(vectors), shape=np.array(x.shape[1:]))
    records.write_bytes(workdir / "agop.npz", buffer.getbuffer())
