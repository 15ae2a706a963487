"""Optax optimizers by the fields of a config."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import optax

# What each can be told, by Optax's own names; a field that is None stays as Optax has it.
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

# What else Optax calls sgd, so that one axis of a sweep goes over all optimizers.
MOMENTUM = {"heavy_ball": {"momentum": 0.9}, "nesterov": {"momentum": 0.9, "nesterov": True}}


def build(fields: Mapping[str, Any]) -> functools.partial:
    """The constructor, waiting for its learning rate. ``fields``: those of ``config.optimizer``."""
    if fields["name"] in MOMENTUM:
        return functools.partial(optax.sgd, **MOMENTUM[fields["name"]])
    settings = {name: fields[name] for name in SETTINGS[fields["name"]] if fields[name] is not None}
    if "momentum" in settings:
        settings["momentum"] = settings["momentum"] or None
    return functools.partial(getattr(optax, fields["name"]), **settings)


def setting(fields: Mapping[str, Any], name: str) -> Any:
    """What the optimizer has for a setting: the field, or Optax's default; 0 where it has no such setting."""
    if name in MOMENTUM.get(fields["name"], {}):
        return MOMENTUM[fields["name"]][name]
    if name not in SETTINGS[fields["name"]]:
        return 0.0
    given = fields[name]
    return inspect.signature(getattr(optax, fields["name"])).parameters[name].default if given is None else given


def momentum(fields: Mapping[str, Any]) -> float:
    """Of the average of gradients that the optimizer moves along: ``momentum`` of sgd, 0.9 of heavy_ball and nesterov, ``b1`` of adam and adamw, otherwise 0."""
    return setting(fields, "momentum") or setting(fields, "b1")
