"""Model and members of a run."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from catapult_jax import models, training
from experiments import config as configs


def build_model(c: ConfigDict, outputs: int) -> Any:
    """``c``: the model's part of a config, or the same as a dictionary."""
    shared = {name: c[name] for name in ("depth", "width", "activation", "gain", "bias")} | {"outputs": outputs}
    if c["name"] == "cnn":
        return models.CNN(**shared, strides=c["strides"] and tuple(c["strides"]), readout=c["readout"])
    if c["name"] == "wide_resnet":
        return models.WideResNet(**shared, stem_stride=c["stem_stride"])
    if c["name"] == "vit":
        return models.ViT(**shared, patch_size=c["patch_size"])
    return models.FCN(**shared)


def build_members(config: ConfigDict) -> training.Members:
    """Every combination of the axes of a config's members, the last axis fastest."""
    axes = configs.member_axes(config)
    columns = dict(zip(axes, zip(*itertools.product(*axes.values()), strict=True), strict=True))
    dtypes = {"seed": np.int32, "raises": np.int32}
    arrays = {name: np.array(column, dtypes.get(name, np.float32)) for name, column in columns.items()}
    return training.Members(arrays["seed"], arrays["lr"], arrays.get("raises"), arrays.get("cap"), config.optimizer.lr_unit)
