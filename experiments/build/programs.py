"""Compiled programs that the runs of a sweep share, and the trainer of a run, which may be one of them."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from catapult_jax import data, training
from experiments import config as configs
from experiments.build.instruments import build_instruments
from experiments.build.trainer import build_trainer

# Fields that change no compiled program: they choose data, members or files, or say when the run visits the host. A field that is not
# here costs a compilation at most. The shapes of the data are in the key as well.
_NOT_IN_PROGRAM = re.compile(
    r"(title|steps|seed|sweep|claims|published_critical_lr)$|(members|intervention|data\.synthetic)\.|optimizer\.lr(_unit)?$"
    r"|data\.(?!target_encoding$|train_size$)|run\.(?!stop_loss$)"
)


_PROGRAMS: dict[Any, Any] | None = None  # compiled functions of the last runs of a sweep, the newest last; None: not shared
_MOST_PROGRAMS = 8  # bounds the memory of a long sweep


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """Share the compiled programs among runs that differ only in data, members and length, see :func:`shared`."""
    global _PROGRAMS
    before, _PROGRAMS = _PROGRAMS, {}
    try:
        yield
    finally:
        _PROGRAMS = before


def shared(key: Any, make: Callable[[], Any]) -> Any:
    """Return ``make()``; within :func:`shared_programs`, return the same object for the same key.

    Args:
      key: anything hashable. Only the last few keys are kept.
      make: builds the object.

    >>> with shared_programs():
    ...     [shared("key", lambda: 1), shared("key", lambda: 2)]
    [1, 1]
    """
    if _PROGRAMS is None:
        return make()
    program = _PROGRAMS.pop(key) if key in _PROGRAMS else make()
    _PROGRAMS[key] = program
    while len(_PROGRAMS) > _MOST_PROGRAMS:
        del _PROGRAMS[next(iter(_PROGRAMS))]
    return program


def trainer_of(config: ConfigDict, model: Any, arrays: data.Data, plan: dict[str, Any]) -> training.Trainer:
    """The trainer of a run, with its instruments. Within :func:`shared_programs` it may be that of another run, with other data.

    Args:
      config: of the run.
      model: from that config.
      arrays: data of the run.
      plan: cadences and methods, see :func:`experiments.build.instruments.choose_instruments`.
    """

    def make():
        instruments = build_instruments(config, model, arrays, plan["cadences"], plan["methods"])
        return build_trainer(config, model, arrays, instruments)

    if _PROGRAMS is None:
        return make()
    fields = {name: value for name, value in configs.flat(config).items() if not _NOT_IN_PROGRAM.match(name)}
    shapes = [(name, a.shape, str(a.dtype)) for name, a in arrays._asdict().items() if isinstance(a, np.ndarray)]
    key = json.dumps([fields, shapes, arrays.outputs, plan["cadences"], plan["methods"]], sort_keys=True, default=list)
    return shared(key, lambda: make().with_data)(arrays)
