"""A config as a value: its errors, fields, identity and members.

>>> from configs import quickstart
>>> config = quickstart.get_config()
>>> flat(config)["optimizer.name"]
'sgd'
>>> list(member_axes(config))
['lr', 'seed']

The allowed configs are in :mod:`experiments.rules`. :mod:`experiments.command_line` reads a config.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs import default
from experiments.verdicts import NEEDS, NEEDS_SOME

# The types of fields, in words.
TYPE_NAMES = {bool: "True or False", str: "text", float: "a number", int: "a whole number", tuple: "a tuple"}


class ConfigError(Exception):
    """A config that can't be run; the message is one line."""


class RunError(Exception):
    """A run that can't go on; the message is one line."""


def one_line(error: BaseException) -> str:
    """The message of an error on one line.

    Args:
      error: any error. If its text has a traceback, only the last line of it counts, without the type of the error.

    Returns:
      The message, with single spaces.

    >>> one_line(ValueError("no\\n  such file"))
    'no such file'
    """
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:
        text = re.sub(r"^[\w.]*(Error|Exception): ", "", text.splitlines()[-1])
    return " ".join(text.split())


def flat(config: ConfigDict | dict, prefix: str = "") -> dict[str, Any]:
    """The fields of a config by their full names.

    Args:
      config: a config, or a dict of dicts.
      prefix: comes before every name.

    Returns:
      Full names and values.

    >>> flat({"steps": 3, "data": {"name": "digits"}})
    {'steps': 3, 'data.name': 'digits'}
    """
    fields = {}
    for name, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def stored_fields(stored: dict) -> dict[str, Any]:
    """The fields of a stored config. One that it lacks, as a run of an earlier version, has its default.

    Args:
      stored: contents of config.json.

    Returns:
      Full names and values, as JSON gives them.

    >>> stored_fields({"steps": 3})["run.float64"]
    False
    """
    return flat(json.loads(default.get_config().to_json())) | flat(stored)


def types_of_fields(config: ConfigDict, prefix: str = "") -> dict[str, type]:
    """The types of the fields of a config by their full names. A field that is None has a type too.

    Args:
      config: a config.
      prefix: comes before every name.

    Returns:
      Full names and types.

    >>> types_of_fields(default.get_config())["optimizer.lr"]
    <class 'float'>
    """
    types = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            types |= types_of_fields(value, f"{prefix}{name}.")
        else:
            types[prefix + name] = config.get_type(name)
    return types


def no_field(name: str) -> str:
    """The error message for a field that no config has.

    Args:
      name: full name of the field.

    Returns:
      A message with the nearest field.

    >>> no_field("model.widht")
    "config has no field 'model.widht'; nearest: 'model.width'"
    """
    nearest = difflib.get_close_matches(name, sorted(flat(default.get_config())), 1, 0.0)[0]
    return f"config has no field {name!r}; nearest: {nearest!r}"


def home(path: str, name: str = "path") -> Path:
    """A path whose ``~`` is replaced by the home directory.

    Args:
      path: as the user gave it.
      name: of the flag or field, for the message.

    Returns:
      The path.

    Raises:
      ConfigError: there is no such user, or the path is empty.

    >>> home("runs/a")
    PosixPath('runs/a')
    """
    if not path.strip():
        raise ConfigError(f"{name}={path!r} is empty; allowed: a path")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{name}={path!r} names a user who is not there; allowed: a path, or ~ for your own home") from error


def expanded(config: ConfigDict) -> ConfigDict:
    """Replace ``~`` at the beginning of a path by the home directory.

    Args:
      config: is not changed.

    Returns:
      A copy; or ``config`` itself, if no path begins with ``~``.
    """
    names = ("data.dir", "data.tfds_dir", "measure.agop_reference", "measure.agop_second_reference", "intervention.cap_run")
    paths = {name: flat(config).get(name) for name in names}
    homes = {name: os.path.expanduser(path) for name, path in paths.items() if isinstance(path, str) and path.startswith("~")}
    if not homes:
        return config
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(homes)
    return config


def identity(config: ConfigDict) -> str:
    """A hash of the fields of a run that differ from their defaults, so that it stays when a later version has more fields.

    It ignores the field ``sweep``, which only lists other runs.

    Args:
      config: of the run.

    Returns:
      Eight hexadecimal digits.

    >>> len(identity(default.get_config()))
    8
    """
    defaults = flat(default.get_config())
    fields = {name: value for name, value in flat(config).items() if value != defaults.get(name) and name != "sweep"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=list).encode()).hexdigest()[:8]


def testable(claims: Sequence[str], fields: dict[str, Any]) -> list[str]:
    """The claims that a run with these fields can test: it measures all that they need, often enough.

    Args:
      claims: names of claims.
      fields: of a config, by full name.

    Returns:
      The testable ones among ``claims``, in the same order.

    >>> testable(["first_catapult"], {"measure.lambda_max_batch_every": 2})
    []
    """
    every_step = lambda claim: all(fields[name] == 1 for name in NEEDS.get(claim, ()))
    given = lambda claim: all(fields[name] for name in NEEDS_SOME.get(claim, ()))
    return [claim for claim in claims if every_step(claim) and given(claim)]


def member_axes(config: ConfigDict) -> dict[str, tuple]:
    """The axes along which the members of a run differ, slowest first.

    Args:
      config: a tuple in ``members`` replaces the single value in ``seed``, ``optimizer`` or ``schedule``.

    Returns:
      Names and values: ``lr``, in the unit of ``optimizer.lr_unit``; ``raises`` and ``cap``, if the schedule has them;
      ``intervention``, which replaces ``cap``; ``seed``.
      A cap of None, which means no cap, becomes inf.
    """
    axes = {"lr": tuple(map(float, config.members.lr or (config.optimizer.lr,)))}
    if config.schedule.name == "staircase":
        axes["raises"] = config.members.raises or (config.schedule.raises,)
    caps = config.members.cap or (config.schedule.cap,)
    if config.members.intervention:
        axes["intervention"] = config.members.intervention
    elif any(caps):
        axes["cap"] = tuple(float(cap or math.inf) for cap in caps)
    return axes | {"seed": config.members.seed or (config.seed,)}
