"""The optimizer of a run, by Optax, from the fields of ``config.optimizer``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import optax

# The settings of each optimizer, by Optax's names. A field that is None leaves Optax's default.
SETTINGS = {
    "sgd": ("momentum", "nesterov"),
    "heavy_ball": (),
    "nesterov": (),
    "adagrad": ("initial_accumulator_value", "eps"),
    "rmsprop": ("decay", "eps"),
    "adam": ("b1", "b2", "eps"),
    "adamw": ("b1", "b2", "eps", "weight_decay"),
    "adadelta": ("rho", "eps"),
}

# Optax calls these sgd. With names of their own, one axis of a sweep goes over all optimizers.
MOMENTUM = {"heavy_ball": {"momentum": 0.9}, "nesterov": {"momentum": 0.9, "nesterov": True}}


def build(fields: Mapping[str, Any]) -> functools.partial:
    """The constructor of the optimizer, which takes the learning rate.

    Args:
      fields: those of ``config.optimizer``.
    """
    if fields["name"] in MOMENTUM:
        return functools.partial(optax.sgd, **MOMENTUM[fields["name"]])
    settings = {name: fields[name] for name in SETTINGS[fields["name"]] if fields[name] is not None}
    if "momentum" in settings:
        settings["momentum"] = settings["momentum"] or None
    return functools.partial(getattr(optax, fields["name"]), **settings)


def setting(fields: Mapping[str, Any], name: str) -> Any:
    """The value of a setting: the field, or Optax's default; 0 if the optimizer has no such setting.

    Args:
      fields: those of ``config.optimizer``.
      name: of the setting, such as ``b1``.

    >>> from configs import default
    >>> setting(default.get_config().optimizer, "momentum"), setting({"name": "adam", "b1": None}, "b1")
    (0.0, 0.9)
    """
    if name in MOMENTUM.get(fields["name"], {}):
        return MOMENTUM[fields["name"]][name]
    if name not in SETTINGS[fields["name"]]:
        return 0.0
    default = inspect.signature(getattr(optax, fields["name"])).parameters[name].default
    return default if fields[name] is None else fields[name]


def momentum(fields: Mapping[str, Any]) -> float:
    """The momentum: the factor of the old average of gradients in the new one. For adam and adamw this is ``b1``.

    Args:
      fields: those of ``config.optimizer``.

    >>> momentum({"name": "heavy_ball"}), momentum({"name": "adagrad"})
    (0.9, 0.0)
    """
    return setting(fields, "momentum") or setting(fields, "b1")
