"""Files that a run leaves beside its record: the trained model, and the top directions of its AGOPs."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import jax
import numpy as np

from catapult_jax import checkpoints, data, records
from catapult_jax.outer_product import agop_eigenvectors, input_jacobian
from catapult_jax.training import instruments
from experiments import build
from experiments.build.reference import CHUNK

_DIRECTIONS = 3  # top eigenvectors of the AGOP that are kept


def finite(state) -> np.ndarray:
    """Members whose parameters are."""
    leaves = jax.tree.leaves(state.members.params)
    return np.all([np.isfinite(np.asarray(leaf)).reshape(len(leaf), -1).all(1) for leaf in leaves], axis=0)


def write_model(workdir: Path, model, state, arrays: data.Data, about: dict) -> None:
    """model.npz: the first member's parameters after the last step, and their test scores."""
    params = jax.device_get(jax.tree.map(lambda a: a[0], state.members.params))
    config = about["config"]
    scores = instruments.loss_test(model.apply, loss=config["loss"], every=1, target_encoding=config["data"]["target_encoding"])
    x_test, y_test = jax.numpy.asarray(arrays.x_test), jax.numpy.asarray(arrays.y_test)
    moment = instruments.Moment(params, params, None, None, {"x_test": x_test, "y_test": y_test})
    measured = {name: float(value) for name, value in jax.jit(scores.measure)(moment).items()}
    checkpoints.save_model(workdir / "model.npz", params, about | measured)


def write_directions(config, workdir: Path, built: build.Built, state, coordinates, usable) -> None:
    """agop.npz: top eigenvectors of the AGOP of the reference, and at the end of training of the first seed of each setting."""
    x = jax.numpy.asarray(built.data.x_train[: config.measure.agop_size])
    jacobian = jax.jit(partial(input_jacobian, built.model.apply, chunk_size=CHUNK))
    names, rows = ["reference"], [jax.numpy.asarray(built.reference)]
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
