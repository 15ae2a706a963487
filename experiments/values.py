"""The values that a field of a config may have, whatever the other fields are: one row for each field.

>>> VALUES["optimizer.momentum"].allowed
'0 or more, below 1'
>>> wrong("optimizer.momentum", 1.0)
'optimizer.momentum=1.0; allowed: 0 or more, below 1'

Rules between fields are in :mod:`experiments.rules`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from catapult_jax.data import SCALINGS, TARGET_ENCODINGS, TARGETS
from catapult_jax.losses import LOSSES
from catapult_jax.models import ACTIVATIONS, READOUTS
from catapult_jax.schedules import SCHEDULES
from experiments import optimizers
from experiments.verdicts import VERDICTS


class Values(NamedTuple):
    """The values that a field may have."""

    allowed: str  # in words
    good: Callable[[Any], bool]


def _at_least(least) -> Values:
    return Values(f"{least} or more", lambda v: v >= least)


def _above(bound) -> Values:
    return Values(f"above {bound}", lambda v: v > bound)


def _one_of(names: Iterable[str]) -> Values:
    return Values(", ".join(sorted(names)), lambda v: v in names)


def _each(values: Values) -> Values:
    good = lambda vs: len(vs) > 0 and all(not isinstance(v, str) and values.good(v) for v in vs)
    return Values(f"a tuple, each {values.allowed}", good)


def _or_none(values: Values) -> Values:
    return Values(f"{values.allowed}, or None", lambda v: v is None or values.good(v))


def _whole(values: Values) -> Values:
    return Values(f"whole number, {values.allowed}", lambda v: isinstance(v, int) and values.good(v))


MODELS = ("fcn", "cnn", "wide_resnet", "vit")
# What a config may measure: each has a field measure.NAME_every.
CADENCES = (
    "lambda_max_batch", "loss_train", "lambda_max_train", "loss_batch_after", "preconditioner_min", "loss_test", "agop_alignment",
)  # fmt: skip
# Units of optimizer.lr and members.lr.
LR_UNITS = ("absolute", "critical_lr0")
# What each preset measures; AGOPs if there is a reference.
PRESETS = {
    "economy": ("lambda_max_batch", "loss_train"),
    "standard": ("lambda_max_batch", "loss_train", "loss_batch_after", "loss_test"),
    "full": ("lambda_max_batch", "loss_train", "loss_batch_after", "loss_test", "lambda_max_train", "agop_alignment"),
}
RELATIVE = ("staircase", "relative_to_critical")  # schedules that need the critical lr
_MOST = 2**31 - 1  # steps are counted in 32 bits
_SHARE = Values("0 or more, below 1", lambda v: 0 <= v < 1)
_SEED = Values("0 to 2147483647", lambda v: 0 <= v < 2**31)

# In the order in which they are checked.
VALUES = {
    "steps": _at_least(1),
    "seed": _SEED,
    "members.seed": _or_none(_each(_whole(_SEED))),
    "members.lr": _or_none(_each(_above(0))),
    "members.raises": _or_none(_each(_whole(_at_least(0)))),
    "members.cap": _or_none(_each(Values("above 0 or None", lambda v: v is None or v > 0))),
    "data.classes": _or_none(_each(_whole(_at_least(0)))),
    "data.fallback": _or_none(_one_of(("digits", "natural_patches"))),
    "data.fallback_classes": _or_none(_each(_whole(_at_least(0)))),
    "data.train_size": _at_least(1),
    "data.test_size": _or_none(_at_least(1)),
    "data.validation_size": _at_least(0),
    "data.image_size": _or_none(_at_least(1)),
    "data.scaling": _one_of(SCALINGS),
    "data.target_encoding": _one_of(TARGET_ENCODINGS),
    "data.synthetic.dimension": _at_least(1),
    "data.synthetic.target": _one_of(TARGETS),
    "data.synthetic.rank": _at_least(1),
    "data.synthetic.noise": _at_least(0),
    "data.synthetic.seed": _at_least(0),
    "model.name": _one_of(MODELS),
    "model.depth": _at_least(1),
    "model.width": _at_least(1),
    "model.activation": _one_of(ACTIVATIONS),
    "model.gain": _above(0),
    "model.readout": _one_of(READOUTS),
    "model.strides": _or_none(_each(_whole(_at_least(1)))),
    "model.stem_stride": _at_least(1),
    "model.patch_size": _at_least(1),
    "loss": _one_of(LOSSES),
    "optimizer.name": _one_of(optimizers.SETTINGS),
    "optimizer.lr": _or_none(_above(0)),
    "optimizer.lr_unit": _one_of(LR_UNITS),
    "optimizer.batch_size": _or_none(_at_least(1)),
    "optimizer.momentum": _SHARE,
    **dict.fromkeys([f"optimizer.{name}" for name in ("b1", "b2", "decay", "rho")], _or_none(_SHARE)),
    **dict.fromkeys(
        [f"optimizer.{name}" for name in ("eps", "initial_accumulator_value", "weight_decay")], _or_none(_at_least(0))
    ),
    "schedule.name": _one_of(SCHEDULES),
    "schedule.cap": _or_none(_above(0)),
    "schedule.cap_from": _at_least(0),
    "schedule.low": Values("0 to 1", lambda v: 0 <= v <= 1),
    "schedule.period": _at_least(2),
    "schedule.decay": Values("above 0, at most 1", lambda v: 0 < v <= 1),
    "schedule.raises": _at_least(0),
    "schedule.raise_to": _above(0),
    "schedule.settle_fraction": Values("above 0, at most 1", lambda v: 0 < v <= 1),
    "schedule.settle_steps": _at_least(1),
    "measure.preset": _or_none(_one_of(PRESETS)),
    "measure.max_overhead": _above(1),
    "measure.method": _or_none(_one_of(("exact", "matrix_free", "auto"))),
    "measure.tolerance": _above(0),
    "measure.max_products": _or_none(_at_least(1)),
    "measure.chunk_size": _or_none(_at_least(1)),
    "measure.lambda_max_batch_every": _at_least(0),
    "measure.top_k": _at_least(1),
    "measure.top_k_max": _or_none(_at_least(1)),
    "measure.loss_train_every": _at_least(0),
    "measure.lambda_max_train_every": _at_least(0),
    "measure.loss_batch_after_every": _at_least(0),
    "measure.preconditioner_min_every": _at_least(0),
    "measure.loss_test_every": _at_least(0),
    "measure.agop_alignment_every": _at_least(0),
    "measure.agop_size": _at_least(1),
    "measure.probe_size": _or_none(_at_least(1)),
    "events.factor": _above(1),
    "events.delta": _above(0),
    "events.horizon": _at_least(1),
    "run.chunk_steps": _at_least(1),
    "run.checkpoint_seconds": _above(0),
    "run.checkpoint_every": _or_none(_at_least(1)),
    "run.stop_loss": _or_none(_above(0)),
    "sweep": Values('a tuple of "FIELD=v1,v2"', lambda axes: all(isinstance(a, str) and "=" in a for a in axes)),
    "claims": Values("a tuple of " + ", ".join(sorted(VERDICTS)), lambda names: all(name in VERDICTS for name in names)),
}


def wrong(name: str, value: Any) -> str | None:
    """What is wrong with the value of a field.

    Args:
      name: of a field in :data:`VALUES`.
      value: of that field.

    Returns:
      ``field=value; allowed: ...``, or None if the value is allowed.
    """
    if not _holds(VALUES[name].good, value):
        return f"{name}={value!r}; allowed: {VALUES[name].allowed}"
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int) and abs(number) > _MOST:
            return f"{name}={value!r}; allowed: whole numbers up to {_MOST}"
    return None


def _holds(good: Callable[[Any], bool], value: Any) -> bool:
    finite = all(not isinstance(v, float) or math.isfinite(v) for v in (value if isinstance(value, tuple) else (value,)))
    try:
        return finite and bool(good(value))
    except TypeError:  # an item of the tuple is not a number
        return False
