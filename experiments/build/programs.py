"""Compiled programs that the runs of a sweep share."""

from __future__ import annotations

import contextlib
import hashlib
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

# Fields that the compiled programs depend on, beside the shapes of the data.
_IN_PROGRAM = re.compile(
    r"(model|loss|optimizer(?!\.lr)|schedule|measure|events)\b|data\.(target_encoding|train_size)$|run\.stop_loss$"
)


_PROGRAMS: dict[Any, Any] | None = None  # compiled functions of the last runs of a sweep, the newest last; None: not shared
_MOST_PROGRAMS = 8  # so that a long sweep does not grow


@contextlib.contextmanager
def shared_programs() -> Iterator[None]:
    """In here runs that differ only in data, members and length share their compiled programs, see :func:`shared`."""
    global _PROGRAMS
    before, _PROGRAMS = _PROGRAMS, {}
    try:
        yield
    finally:
        _PROGRAMS = before


def shared(key, make: Callable[[], Any]) -> Any:
    """``make()``, or within :func:`shared_programs` what it gave for the same key."""
    if _PROGRAMS is None:
        return make()
    found = _PROGRAMS.pop(key) if key in _PROGRAMS else make()
    _PROGRAMS[key] = found
    while len(_PROGRAMS) > _MOST_PROGRAMS:
        del _PROGRAMS[next(iter(_PROGRAMS))]
    return found


def trainer_of(config: ConfigDict, model, arrays: data.Data, reference, plan: dict) -> training.Trainer:
    """The trainer of a run; ``plan``: its instruments, see :func:`choose_instruments`."""

    def make():
        chosen = build_instruments(config, model, arrays, reference, plan["cadences"], plan["methods"])
        return build_trainer(config, model, arrays, chosen)

    if _PROGRAMS is None:
        return make()
    fields = {name: value for name, value in configs.flat(config).items() if _IN_PROGRAM.match(name)}
    shapes = [(name, a.shape, str(a.dtype)) for name, a in arrays._asdict().items() if isinstance(a, np.ndarray)]
    rows = None if reference is None else hashlib.sha256(np.ascontiguousarray(reference)).hexdigest()
    key = json.dumps([fields, shapes, arrays.outputs, plan["cadences"], plan["methods"], rows], sort_keys=True, default=list)
    return shared(key, lambda: make().with_data)(arrays)
