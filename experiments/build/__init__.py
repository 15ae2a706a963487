"""The one door from a config to everything that a run needs: :func:`build`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from catapult_jax import data, training
from experiments import config as configs
from experiments.build.arms import facts_of_cap_run
from experiments.build.data import load_data
from experiments.build.instruments import cadences_of, choose_instruments
from experiments.build.model import build_members, build_model
from experiments.build.programs import trainer_of
from experiments.build.reference import agop_reference


class Built(NamedTuple):
    """Everything that a run needs, from :func:`build`."""

    data: data.Data
    fallback_for: str | None  # the data set of the config, if these are fallback data
    model: Any  # a Flax model
    members: training.Members
    about_reference: dict[str, Any] | None  # facts about the AGOP reference, for run.json; None: no AGOP is measured
    about_intervention: dict[str, Any] | None  # the capped run that arms take their lr from, for run.json; None: no arm does
    plan: dict[str, Any]  # cadences and methods of the instruments, see choose_instruments
    trainer: training.Trainer


def build(config: ConfigDict, earlier: dict[str, Any] | None = None, loaded: tuple | None = None) -> Built:
    """Build data, model, members, instruments and trainer from a config.

    Args:
      config: one that :func:`experiments.rules.check` accepts.
      earlier: contents of run.json of a run to resume or repeat. Its data, AGOP reference and capped run are required, and its cadences
        and methods are taken over. None: a new run.
      loaded: result of :func:`load` for the same arguments, if there is one.

    Raises:
      ConfigError: data, a reference or a capped run that are not available, or differ from those of the earlier run; a model that does
        not fit the data.
    """
    arrays, fallback_for = loaded or load(config, earlier)
    arrays, about_reference = agop_reference(config, arrays) if "agop_alignment" in cadences_of(config) else (arrays, None)
    if earlier and _without_ceiling(earlier.get("agop_reference")) != _without_ceiling(about_reference):
        raise configs.ConfigError(
            f"measure.agop_reference={config.measure.agop_reference!r} is another model than in the earlier run; allowed: the same model, or "
            "another workdir"
        )
    with explain_misfit():
        model, members = build_model(config.model, arrays.outputs), build_members(config)
        about_intervention = facts_of_cap_run(config, members.arm)
        _check_cap_run(config, about_intervention, earlier)
        plan = earlier["instruments"] if earlier else choose_instruments(config, model, arrays, members)
        trainer = trainer_of(config, model, arrays, plan)
    return Built(arrays, fallback_for, model, members, about_reference, about_intervention, plan, trainer)


def _without_ceiling(about: dict[str, Any] | None) -> dict[str, Any]:
    """The facts that tell references apart. The ceiling is a measurement, and may round differently on another machine."""
    return {name: value for name, value in (about or {}).items() if name != "ceiling"}


def _check_cap_run(config: ConfigDict, about: dict[str, Any] | None, earlier: dict[str, Any] | None) -> None:
    """Refuse other factors than those of the earlier run. A run.json without them is accepted."""
    if about and earlier and earlier.get("intervention", about)["sha256"] != about["sha256"]:
        raise configs.ConfigError(
            f"intervention.cap_run={config.intervention.cap_run!r} has another lr than in the earlier run (SHA-256 differs); allowed: the same "
            "capped run, or another workdir"
        )


def load(config: ConfigDict, earlier: dict[str, Any] | None = None) -> tuple[data.Data, str | None]:
    """Load the data of a run, see :func:`load_data`, and check that they are those of the earlier run.

    Args:
      config: of the run.
      earlier: contents of run.json of a run to resume or repeat, or None.

    Raises:
      ConfigError: data that are not available, or that differ from those of the earlier run.
    """
    arrays, fallback_for = load_data(config)
    if earlier and earlier["data"]["sha256"] != arrays.checksum:
        raise configs.ConfigError(
            f"data.name={config.data.name!r}: {arrays.source} has other data than the earlier run (SHA-256 differs); allowed: the same data, or "
            "another workdir"
        )
    return arrays, fallback_for


@contextlib.contextmanager
def explain_misfit() -> Iterator[None]:
    """Turn an error while the run is built into one line: model and data do not fit each other, or the memory of this machine.

    Raises:
      ConfigError: there was an error.
    """
    try:
        yield
    except ValueError as error:
        raise configs.ConfigError(configs.one_line(error)) from error
    except (MemoryError, OverflowError, jax.errors.JaxRuntimeError) as error:
        reason = configs.one_line(error)[:300] or type(error).__name__
        raise configs.ConfigError(
            f"the run can't be built ({reason}); allowed: a model and data that fit the memory of this machine"
        ) from error
