"""Configs from the command line, and the checks of their values: one line names the field, the value and what is allowed."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from catapult_jax.data import CODINGS, CODINGS_OF_LOSS, EMBEDDED, SCALINGS
from catapult_jax.losses import LOSSES
from catapult_jax.models import ACTIVATIONS, READOUTS
from catapult_jax.schedules import SCHEDULES
from configs import default
from experiments.claims import CLAIMS, NEEDS

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with a variant after a colon.")


class ConfigError(Exception):
    """A config that can't be run; the message is one line."""


def parse(argv: Sequence[str]) -> list[str]:
    """Parses the command line (for ``app.run(flags_parser=...)``).

    Raises:
      ConfigError: unknown flag, unknown field, wrong type, a config file that can't be loaded.
    """
    values = flags.FLAGS
    try:
        rest = values(list(argv))
        if values.config is None:
            raise ConfigError("--config is missing; allowed: a config file, for example --config=configs/cifar_gd.py")
        values.config.get("steps")  # a file that could not be loaded says so only when it is touched
    except (AttributeError, KeyError) as error:
        raise ConfigError(_unknown_field(argv) or one_line(error)) from error
    except (flags.Error, ValueError, TypeError, OSError) as error:
        raise ConfigError(one_line(error)) from error
    return rest


def one_line(error: BaseException) -> str:
    """The last sentence of an error that carries a traceback in its text; otherwise the error on one line."""
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:
        text = re.sub(r"^[\w.]*(Error|Exception): ", "", text.splitlines()[-1])
    return " ".join(text.split())


def _unknown_field(argv: Sequence[str]) -> str | None:
    """The first field on the command line that the config file does not have; the file is loaded again without overrides."""
    if not any(re.match(r"--?config\.", a) for a in argv[1:]):
        return None
    alone = [argv[0], *(a for a in argv[1:] if re.match(r"--?config=", a))]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=alone)
    values(alone)
    config = values.config
    known = flat(config)
    for argument in argv[1:]:
        match = re.match(r"--?config\.([\w.]+)", argument)
        if match and match[1] not in known:
            return _no_field(match[1])
    return None


def _no_field(name: str) -> str:
    nearest = difflib.get_close_matches(name, sorted(flat(default.get_config())), 1, 0.0)[0]
    return f"config has no field {name!r}; nearest: {nearest!r}"


def flat(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """``{"data.name": ..., ...}``."""
    fields = {}
    for name, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def identity(config: ConfigDict) -> str:
    """Eight hexadecimal digits that differ between configs."""
    return hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True, default=list).encode()).hexdigest()[:8]


def _at_least(least):
    return f"{least} or more", lambda v: v >= least


def _above(bound):
    return f"above {bound}", lambda v: v > bound


def _one_of(names):
    return ", ".join(sorted(names)), lambda v: v in names


def _each(rule):
    allowed, good = rule
    return f"a tuple, each {allowed}", lambda values: all(not isinstance(v, str) and good(v) for v in values)


def _whole(rule):
    allowed, good = rule
    return f"whole number, {allowed}", lambda v: isinstance(v, int) and good(v)


_SEED = ("0 to 2147483647", lambda v: 0 <= v < 2**31)

_RULES = {
    "steps": _at_least(1),
    "seed": _SEED,
    "members.seed": _each(_whole(_SEED)),
    "members.lr_relative": _each(_above(0)),
    "members.lr": _each(_above(0)),
    "data.classes": _each(_whole(_at_least(0))),
    "data.stand_in": _one_of(("", "digits", "natural_patches")),
    "data.stand_in_classes": _each(_whole(_at_least(0))),
    "data.train_size": _at_least(1),
    "data.test_size": _at_least(0),
    "data.scaling": _one_of(SCALINGS),
    "data.coding": _one_of(CODINGS),
    "data.synthetic.dimension": _at_least(1),
    "data.synthetic.rank": _at_least(1),
    "data.synthetic.noise": _at_least(0),
    "data.synthetic.seed": _at_least(0),
    "model.name": _one_of(("fcn", "cnn")),
    "model.depth": _at_least(2),
    "model.width": _at_least(1),
    "model.activation": _one_of(ACTIVATIONS),
    "model.gain": _above(0),
    "model.readout": _one_of(READOUTS),
    "model.strides": _each(_whole(_at_least(1))),
    "loss": _one_of(LOSSES),
    "optimizer.name": _one_of(("sgd",)),
    "optimizer.lr": _at_least(0),
    "optimizer.lr_relative": _at_least(0),
    "optimizer.batch_size": _at_least(0),
    "schedule.name": _one_of(SCHEDULES),
    "schedule.raises": _at_least(0),
    "schedule.raise_to": _above(0),
    "schedule.settle_fraction": ("above 0, at most 1", lambda v: 0 < v <= 1),
    "schedule.settle_steps": _at_least(1),
    "measure.batch_kernel_every": _at_least(0),
    "measure.top_k": _at_least(1),
    "measure.train_loss_every": _at_least(0),
    "measure.train_kernel_every": _at_least(0),
    "measure.loss_after_every": _at_least(0),
    "measure.test_every": _at_least(0),
    "measure.probe_size": _at_least(0),
    "events.factor": _above(1),
    "events.delta": _above(0),
    "events.horizon": _at_least(1),
    "run.chunk_steps": _at_least(1),
    "run.checkpoint_every": _at_least(1),
    "claims": ("a tuple of " + ", ".join(sorted(CLAIMS)), lambda names: all(name in CLAIMS for name in names)),
}


def _holds(good, value) -> bool:
    finite = all(not isinstance(v, float) or math.isfinite(v) for v in (value if isinstance(value, tuple) else (value,)))
    try:
        return finite and bool(good(value))
    except TypeError:  # a tuple with something else than a number in it
        return False


def check(config: ConfigDict) -> None:
    """Checks every value, and that the fields do not contradict each other.

    Raises:
      ConfigError: the first thing that is wrong.
    """
    fields = flat(config)
    strange = sorted(set(fields) - set(flat(default.get_config())))
    if strange:
        raise ConfigError(_no_field(strange[0]))
    for name, (allowed, good) in _RULES.items():
        value = fields[name]
        if value is not None and not _holds(good, value):
            raise ConfigError(f"{name}={value!r}; allowed: {allowed}")

    def refuse(condition, *names, why):
        if condition:
            raise ConfigError(", ".join(f"{name}={fields[name]!r}" for name in names) + f"; {why}")

    full = config.optimizer.batch_size in (0, config.data.train_size)
    relative = [n for n in ("optimizer.lr_relative", "members.lr_relative") if fields[n]]
    absolute = [n for n in ("optimizer.lr", "members.lr") if fields[n]]
    refuse(not relative + absolute, "optimizer.lr", "optimizer.lr_relative", why="allowed: one of them above 0")
    refuse(
        relative and absolute,
        *absolute,
        *relative,
        why="allowed: absolute or relative rates, not both; 0 or () takes one away",
    )
    for name in ("members.seed", "members.lr", "members.lr_relative", "data.classes", "data.stand_in_classes"):
        refuse(len(set(fields[name])) < len(fields[name]), name, why="allowed: each value once")
    refuse(
        config.optimizer.batch_size > config.data.train_size,
        "optimizer.batch_size",
        "data.train_size",
        why="allowed: a batch no larger than the training set",
    )
    refuse(
        config.measure.probe_size > config.data.train_size,
        "measure.probe_size",
        "data.train_size",
        why="allowed: a probe no larger than the training set",
    )
    codings = CODINGS_OF_LOSS[config.loss]
    refuse(config.data.coding not in codings, "loss", "data.coding", why=f"allowed for this loss: {', '.join(codings)}")
    synthetic = config.data.name == "synthetic"
    refuse(
        synthetic != (config.data.coding == "value"),
        "data.name",
        "data.coding",
        why="allowed: coding 'value' with synthetic targets, and only there",
    )
    refuse(synthetic and config.data.classes, "data.name", "data.classes", why="allowed: no classes for synthetic targets")
    refuse(synthetic and config.data.scaling != "none", "data.name", "data.scaling", why="allowed for synthetic inputs: none")
    refuse(
        synthetic and config.data.test_size == 0, "data.name", "data.test_size", why="allowed for synthetic targets: 1 or more"
    )
    refuse(synthetic and config.model.name == "cnn", "data.name", "model.name", why="allowed for synthetic inputs: fcn")
    refuse(
        config.data.synthetic.rank > config.data.synthetic.dimension,
        "data.synthetic.rank",
        "data.synthetic.dimension",
        why="allowed: a rank no larger than the dimension",
    )
    refuse(
        config.data.stand_in and config.data.name in EMBEDDED,
        "data.name",
        "data.stand_in",
        why="allowed: no stand-in for embedded data",
    )
    refuse(
        config.model.name == "cnn" and len(config.model.strides) not in (0, config.model.depth - 1),
        "model.strides",
        "model.depth",
        why=f"allowed: none, or one for each of the {config.model.depth - 1} convolutions",
    )
    refuse(config.model.name == "fcn" and config.model.strides, "model.name", "model.strides", why="allowed for fcn: none")
    refuse(
        config.events.factor <= 1 + config.events.delta,
        "events.factor",
        "events.delta",
        why="allowed: a factor above 1 + delta",
    )
    refuse(
        config.schedule.name == "staircase" and config.measure.batch_kernel_every != 1,
        "schedule.name",
        "measure.batch_kernel_every",
        why="allowed with staircase: 1, since a raise is relative to the critical lr of its step",
    )
    refuse(
        not full and config.measure.batch_kernel_every > 1,
        "optimizer.batch_size",
        "measure.batch_kernel_every",
        why="allowed with batches: 0 or 1, since the critical lr of one batch says nothing about another",
    )
    for claim in config.claims:
        for name in NEEDS[claim]:
            refuse(fields[name] != 1, "claims", name, why=f"allowed with the claim {claim}: 1")
    refuse(
        not full and config.measure.train_loss_every != 1,
        "optimizer.batch_size",
        "measure.train_loss_every",
        why="allowed with batches: 1, since events are spikes of the training loss",
    )


def learning_rates(config: ConfigDict) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """``(absolute, relative)`` learning rates of the members; one of them is None. A tuple in members stands before the one rate."""
    if config.members.lr or config.optimizer.lr:
        return tuple(map(float, config.members.lr)) or (config.optimizer.lr,), None
    return None, tuple(map(float, config.members.lr_relative)) or (config.optimizer.lr_relative,)
