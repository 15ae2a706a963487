"""The reference that the AGOP of a run is compared with."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from catapult_jax import checkpoints, data
from catapult_jax.outer_product import agop_alignment, input_jacobian
from experiments import config as configs
from experiments.build.model import build_model

CHUNK = 256  # examples whose input Jacobians are computed at a time


# Groups of fields that two references have in common, if only their seeds differ.
_RECIPE = ("model", "loss", "optimizer", "schedule", "steps")


class _Reference(NamedTuple):
    """A reference."""

    jacobian: Callable[[np.ndarray], jax.Array]  # inputs (n, ...) -> rows of the input Jacobian, (n * outputs, inputs)
    about: dict[str, Any]  # facts for run.json
    recipe: dict[str, Any]  # how it was trained, without its seed


def agop_reference(config: ConfigDict, arrays: data.Data) -> tuple[data.Data, dict[str, Any]]:
    """The data with the input Jacobian of the reference on the examples of the AGOP, of each member where its seed draws its own.

    Args:
      config: of the run; ``measure.agop_reference`` names the reference, and ``measure.agop_second_reference`` a second one.
      arrays: data of the run.

    Returns:
      The data with their ``agop_reference``, (examples * outputs, inputs), and the facts about the reference for run.json. These have a
      ``ceiling`` if the reference is a closed form, or if there is a second one.

    Raises:
      ConfigError: no such model, or a model for other data; a second reference that is the same model or has another recipe.
    """
    is_closed = config.measure.agop_reference == "closed_form"
    reference = _closed_form(config) if is_closed else _trained("agop_reference", config, arrays)
    rows = _rows("agop_reference", reference, config, arrays)
    draws = tuple(draw._replace(agop_reference=rows[draw.checksum]) for draw in arrays.draws)
    prepared, about = arrays._replace(agop_reference=next(iter(rows.values())), draws=draws), reference.about
    if is_closed:
        about = about | {"ceiling": 1.0}
    elif config.measure.agop_second_reference:
        about = about | reference_ceiling(config, prepared, reference)
    return prepared, about


def reference_ceiling(config: ConfigDict, arrays: data.Data, first: _Reference) -> dict[str, Any]:
    """The ceiling of an alignment: that of the AGOPs of two references which differ in their seed only.

    Args:
      config: of the run; ``measure.agop_second_reference`` names the second reference.
      arrays: data of the run, with the Jacobian of the first reference.
      first: reference.

    Returns:
      ``ceiling``, on the examples of the AGOP, as a mean over the draws if each seed draws its own; and ``second_sha256``.

    Raises:
      ConfigError: as :func:`agop_reference`.
    """
    name = config.measure.agop_second_reference
    second = _trained("agop_second_reference", config, arrays)
    if second.about["sha256"] == first.about["sha256"]:
        raise configs.ConfigError(
            f"measure.agop_second_reference={name!r} is the same model as measure.agop_reference; allowed: one trained with another seed"
        )
    if different := [key for key in first.recipe if first.recipe[key] != second.recipe[key]]:
        raise configs.ConfigError(
            f"measure.agop_second_reference={name!r} differs from measure.agop_reference in {', '.join(different)}; allowed: the same recipe "
            "with another seed"
        )
    rows = _rows("agop_second_reference", second, config, arrays)
    alignments = [agop_alignment(rows[draw.checksum], draw.agop_reference) for draw in arrays.draws or (arrays,)]
    return {"ceiling": float(np.mean(alignments)), "second_sha256": second.about["sha256"]}


def _rows(field: str, reference: _Reference, config: ConfigDict, arrays: data.Data) -> dict[str, np.ndarray]:
    """The input Jacobian of a reference on the examples of the AGOP, by the checksum of the draw."""
    different = {draw.checksum: draw for draw in arrays.draws or (arrays,)}
    size = config.measure.agop_size
    rows = {checksum: np.asarray(reference.jacobian(draw.x_train[:size])) for checksum, draw in different.items()}
    if not all(np.isfinite(r).all() for r in rows.values()):
        raise configs.ConfigError(
            f"measure.{field}={config.measure[field]!r} has gradients that are not finite; allowed: a model with finite gradients"
        )
    return rows


def _closed_form(config: ConfigDict) -> _Reference:
    """The synthetic target."""
    target = data.target_function(config.data.synthetic.target, config.data.synthetic.rank)
    return _Reference(lambda x: jax.vmap(jax.grad(target))(x.reshape(len(x), -1)), {"name": "gradient of the target"}, {})


def _trained(field: str, config: ConfigDict, arrays: data.Data) -> _Reference:
    """The trained model that a field of ``config.measure`` names."""
    name = config.measure[field]
    try:
        params, about, checksum = checkpoints.load_model(name)
    except FileNotFoundError as error:
        raise configs.ConfigError(
            f"measure.{field}={name!r} is not there; allowed: the model.npz of a run with run.save_model, for example from: "
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
            f"measure.{field}={name!r} does not describe its model ({configs.one_line(error)}); allowed: the model.npz of a run with "
            "run.save_model"
        ) from error
    here |= settings
    if here != there:
        key = next(key for key in here if here[key] != there[key])
        raise configs.ConfigError(
            f"measure.{field}={name!r} is a model for data with {key} {there[key]!r}; allowed here: {here[key]!r}"
        )
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), arrays.x_train[:1]))
    if jax.tree.map(np.shape, params) != jax.tree.map(lambda leaf: leaf.shape, expected):
        raise configs.ConfigError(
            f"measure.{field}={name!r} holds parameters of other shapes than its model has; allowed: the model.npz of a run with run.save_model"
        )
    facts = {
        "name": f"{about['config']['model']['name']} trained on {size} examples",
        "sha256": checksum,
        "error_test": about.get("error_test"),  # None for real-valued targets
    }
    jacobian = partial(jax.jit(partial(input_jacobian, model.apply, chunk_size=CHUNK)), params)
    return _Reference(jacobian, facts, {key: about["config"].get(key) for key in _RECIPE} | {"training examples": size})
