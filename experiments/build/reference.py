"""The reference that AGOPs are compared with."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from catapult_jax import checkpoints, data
from catapult_jax.outer_product import input_jacobian
from experiments import config as configs
from experiments.build.model import build_model

CHUNK = 256  # examples whose input Jacobians are taken at a time


def agop_reference(config: ConfigDict, arrays: data.Data) -> tuple[np.ndarray, dict]:
    """Rows of the reference's input Jacobian on the points of the AGOP, and what the reference is.

    Raises:
      ConfigError: no such model, or one for other data.
    """
    name, x = config.measure.agop_reference, arrays.x_train[: config.measure.agop_size]
    if name == "closed_form":
        target = data.target_function(config.data.synthetic.target, config.data.synthetic.rank)
        return np.asarray(jax.vmap(jax.grad(target))(x.reshape(len(x), -1))), {"name": "gradient of the target"}
    try:
        params, about, checksum = checkpoints.load_model(name)
    except FileNotFoundError as error:
        raise configs.ConfigError(
            f"measure.agop_reference={name!r} is not there; allowed: the model.npz of a run with run.save_model, as made by: "
            f"python -m experiments.main --config=configs/reference.py:VARIANT --workdir={Path(name).parent}"
        ) from error
    except ValueError as error:
        raise configs.ConfigError(configs.one_line(error)) from error
    mine = {"name": arrays.name, "shape": list(arrays.x_train.shape[1:]), "outputs": arrays.outputs}
    settings = {key: json.loads(config.data.to_json())[key] for key in ("classes", "scaling", "attribute")}
    try:
        theirs = {key: about["data"][key] for key in mine} | {key: about["config"]["data"][key] for key in settings}
        model = build_model(about["config"]["model"], arrays.outputs)
        size = about["data"]["train"]
    except (KeyError, TypeError, ValueError) as error:
        raise configs.ConfigError(
            f"measure.agop_reference={name!r} does not say what it is ({configs.one_line(error)}); allowed: the model.npz of a run with "
            "run.save_model"
        ) from error
    mine |= settings
    if mine != theirs:
        key = next(key for key in mine if mine[key] != theirs[key])
        raise configs.ConfigError(
            f"measure.agop_reference={name!r} is a model for data with {key} {theirs[key]!r}; allowed here: {mine[key]!r}"
        )
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), x[:1]))
    if jax.tree.map(np.shape, params) != jax.tree.map(lambda leaf: leaf.shape, expected):
        raise configs.ConfigError(
            f"measure.agop_reference={name!r} holds other parameters than its model has; allowed: those of its model"
        )
    rows = np.asarray(jax.jit(partial(input_jacobian, model.apply, chunk_size=CHUNK))(params, x))
    if not np.isfinite(rows).all():
        raise configs.ConfigError(f"measure.agop_reference={name!r} has gradients that are not finite; allowed: finite ones")
    return rows, {
        "name": f"{about['config']['model']['name']} trained on {size} examples",
        "sha256": checksum,
        "error_test": about.get("error_test"),  # none for targets that are values
    }
