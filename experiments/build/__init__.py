"""The one door from a config to data, model, members, instruments and trainer: :func:`build`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from catapult_jax import data, training
from experiments import config as configs
from experiments.build.data import load_data
from experiments.build.instruments import cadences_of, choose_instruments
from experiments.build.model import build_members, build_model
from experiments.build.programs import trainer_of
from experiments.build.reference import agop_reference


class Built(NamedTuple):
    """What a config is made into."""

    data: data.Data
    fallback_for: str | None  # the data set that these data stand in for
    model: Any
    members: training.Members
    reference: np.ndarray | None  # rows of the AGOP reference's input Jacobian; None: no AGOP is measured
    about_reference: dict[str, Any] | None
    plan: dict[str, Any]  # what is measured, how and how often
    trainer: training.Trainer


def build(config: ConfigDict, earlier: dict[str, Any] | None = None, loaded: tuple | None = None) -> Built:
    """The one door from a config to data, model, members, instruments and trainer.

    Args:
      config: a config that was checked.
      earlier: what run.json says of the run that is to be resumed or repeated. The data and the AGOP reference must be those of that run, and
        its cadences and methods are taken over; None: a new run.
      loaded: what :func:`load` gave for them, if it was called before.

    Raises:
      ConfigError: data or a reference that can't be had, or that are not those of the earlier run; a model that does not fit the data.
    """
    arrays, fallback_for = loaded or load(config, earlier)
    reference, about_reference = agop_reference(config, arrays) if "agop_alignment" in cadences_of(config) else (None, None)
    if earlier and earlier.get("agop_reference") != about_reference:
        raise configs.ConfigError(
            f"measure.agop_reference={config.measure.agop_reference!r} is another model than in the earlier run; allowed: the same model, or "
            "another workdir"
        )
    with fitting():
        model, members = build_model(config.model, arrays.outputs), build_members(config)
        plan = earlier["instruments"] if earlier else choose_instruments(config, model, arrays, members, reference)
        trainer = trainer_of(config, model, arrays, reference, plan)
    return Built(arrays, fallback_for, model, members, reference, about_reference, plan, trainer)


def load(config: ConfigDict, earlier: dict[str, Any] | None = None) -> tuple[data.Data, str | None]:
    """:func:`load_data`, and the check that they are the data of the earlier run.

    Raises:
      ConfigError: data that can't be had, or that are others.
    """
    arrays, fallback_for = load_data(config)
    if earlier and earlier["data"]["sha256"] != arrays.checksum:
        raise configs.ConfigError(
            f"data.name={config.data.name!r}: {arrays.source} has other data than the earlier run (SHA-256 differs); allowed: the same data, or "
            "another workdir"
        )
    return arrays, fallback_for


@contextlib.contextmanager
def fitting() -> Iterator[None]:
    """What goes wrong in here is one line on a model and data that do not fit each other, or this machine.

    Raises:
      ConfigError: it did.
    """
    try:
        yield
    except ValueError as error:
        raise configs.ConfigError(configs.one_line(error)) from error
    except (MemoryError, OverflowError, jax.errors.JaxRuntimeError) as error:
        why = configs.one_line(error)[:300] or type(error).__name__
        raise configs.ConfigError(f"the run can't be built ({why}); allowed: a model and data that fit here") from error
