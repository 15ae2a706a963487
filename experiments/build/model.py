"""The model and the members of a run, from its config."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from catapult_jax import models, training
from experiments import config as configs
from experiments.build.arms import build_arms


def build_model(c: ConfigDict | Mapping[str, Any], outputs: int) -> Any:
    """Build the Flax model.

    Args:
      c: the fields of ``config.model``, or the same as a dictionary.
      outputs: number of outputs.

    >>> from configs import quickstart
    >>> build_model(quickstart.get_config("smoke").model, 1).width
    32
    """
    shared = {name: c[name] for name in ("depth", "width", "activation", "gain", "bias")} | {"outputs": outputs}
    if c["name"] == "cnn":
        return models.CNN(**shared, strides=c["strides"] and tuple(c["strides"]), readout=c["readout"])
    if c["name"] == "wide_resnet":
        return models.WideResNet(**shared, stem_stride=c["stem_stride"])
    if c["name"] == "vit":
        return models.ViT(**shared, patch_size=c["patch_size"])
    return models.FCN(**shared)


def member_columns(config: ConfigDict) -> dict[str, tuple]:
    """The values of each member along :func:`experiments.config.member_axes`, the last axis fastest."""
    axes = configs.member_axes(config)
    return dict(zip(axes, zip(*itertools.product(*axes.values()), strict=True), strict=True))


def build_members(config: ConfigDict) -> training.Members:
    """Build the members: every combination of the values along :func:`experiments.config.member_axes`, the last axis fastest.

    >>> from configs import quickstart
    >>> config = quickstart.get_config("smoke")
    >>> config.members.seed = (3, 4)
    >>> members = build_members(config)
    >>> members.seed.tolist(), members.lr_unit
    ([3, 4, 3, 4], 'critical_lr0')
    """
    columns = member_columns(config)
    arms = columns.pop("intervention", None)
    dtypes = {"seed": np.int32, "raises": np.int32}
    arrays = {name: np.array(column, dtypes.get(name, np.float32)) for name, column in columns.items()}
    members = training.Members(arrays["seed"], arrays["lr"], arrays.get("raises"), arrays.get("cap"), config.optimizer.lr_unit)
    if arms is None:
        return members
    cap = np.array([config.schedule.cap if name == "cap" else np.inf for name in arms], np.float32)
    return members._replace(cap=cap, arm=build_arms(config, arms, arrays["seed"]))
