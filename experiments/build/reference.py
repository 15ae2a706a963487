"""The reference that the AGOP of a run is compared with."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from catapult_jax import checkpoints, data
from catapult_jax.outer_product import input_jacobian
from experiments import config as configs
from experiments.build.model import build_model

CHUNK = 256  # examples whose input Jacobians are computed at a time


def agop_reference(config: ConfigDict, arrays: data.Data) -> tuple[data.Data, dict[str, Any]]:
    """The data with the input Jacobian of the reference on the examples of the AGOP, of each member where its seed draws its own.

    Args:
      config: of the run; ``measure.agop_reference`` names the reference.
      arrays: data of the run.

    Returns:
      The data with their ``agop_reference``, (examples * outputs, inputs), and the facts about the reference for run.json.

    Raises:
      ConfigError: no such model, or a model for other data.
    """
    name, size = config.measure.agop_reference, config.measure.agop_size
    jacobian, about = _closed_form(config) if name == "closed_form" else _trained(name, config, arrays)
    different = {draw.checksum: draw for draw in arrays.draws or (arrays,)}
    rows = {checksum: np.asarray(jacobian(draw.x_train[:size])) for checksum, draw in different.items()}
    if not all(np.isfinite(r).all() for r in rows.values()):
        raise configs.ConfigError(
            f"measure.agop_reference={name!r} has gradients that are not finite; allowed: a model with finite gradients"
        )
    draws = tuple(draw._replace(agop_reference=rows[draw.checksum]) for draw in arrays.draws)
    return arrays._replace(agop_reference=next(iter(rows.values())), draws=draws), about


def _closed_form(config: ConfigDict) -> tuple[Callable, dict[str, Any]]:
    """The input Jacobian of the synthetic target, x -> rows, and the facts about it."""
    target = data.target_function(config.data.synthetic.target, config.data.synthetic.rank)
    return lambda x: jax.vmap(jax.grad(target))(x.reshape(len(x), -1)), {"name": "gradient of the target"}


def _trained(name: str, config: ConfigDict, arrays: data.Data) -> tuple[Callable, dict[str, Any]]:
    """The input Jacobian of a trained model, x -> rows, and the facts about it."""
    try:
        params, about, checksum = checkpoints.load_model(name)
    except FileNotFoundError as error:
        raise configs.ConfigError(
            f"measure.agop_reference={name!r} is not there; allowed: the model.npz of a run with run.save_model, for example from: "
            f"python -m experiments.main --config=configs/reference.py:VARIANT --workdir={Path(name).parent}"
        ) from error
    except ValueError as error:
        raise configs.ConfigError(configs.one_line(error)) from error
    here = {"name": arrays.name, "shape": list(arrays.x_train.shape[1:]), "outputs": arrays.outputs}
    settings = {key: json.loads(config.data.to_json())[key] for key in ("classes", "scaling", "attribute")}
    try:
        there = {key: about["data"][key] for key in here} | {key: about["config"]["data"][key] for key in settings}
        model = build_model(about["config"]["model"], arrays.outputs)
        size = about["data"]["train"]
    except (KeyError, TypeError, ValueError) as error:
        raise configs.ConfigError(
            f"measure.agop_reference={name!r} does not describe its model ({configs.one_line(error)}); allowed: the model.npz of a run with "
            "run.save_model"
        ) from error
    here |= settings
    if here != there:
        key = next(key for key in here if here[key] != there[key])
        raise configs.ConfigError(
            f"measure.agop_reference={name!r} is a model for data with {key} {there[key]!r}; allowed here: {here[key]!r}"
        )
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), arrays.x_train[:1]))
    if jax.tree.map(np.shape, params) != jax.tree.map(lambda leaf: leaf.shape, expected):
        raise configs.ConfigError(
            f"measure.agop_reference={name!r} holds parameters of other shapes than its model has; allowed: the model.npz of a run with run.save_model"
        )
    return partial(jax.jit(partial(input_jacobian, model.apply, chunk_size=CHUNK)), params), {
        "name": f"{about['config']['model']['name']} trained on {size} examples",
        "sha256": checksum,
        "error_test": about.get("error_test"),  # None for real-valued targets
    }
