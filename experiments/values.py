"""The allowed values of each field of a config, regardless of the other fields: one row for each field.

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
from experiments.arms import ARMS
from experiments.verdicts import VERDICTS


class Values(NamedTuple):
    """The allowed values of a field."""

    allowed: str  # in words
    contains: Callable[[Any], bool]  # whether a value is allowed


def _at_least(least) -> Values:
    return Values(f"{least} or more", lambda v: v >= least)


def _above(bound) -> Values:
    return Values(f"above {bound}", lambda v: v > bound)


def _choice(names: Iterable[str]) -> Values:
    return Values(", ".join(sorted(names)), lambda v: v in names)


def _each(values: Values) -> Values:
    contains = lambda vs: len(vs) > 0 and all(not isinstance(v, str) and values.contains(v) for v in vs)
    return Values(f"a tuple, each {values.allowed}", contains)


def _or_none(values: Values) -> Values:
    return Values(f"{values.allowed}, or None", lambda v: v is None or values.contains(v))


def _integer(values: Values) -> Values:
    return Values(f"whole number, {values.allowed}", lambda v: isinstance(v, int) and values.contains(v))


MODELS = ("fcn", "cnn", "wide_resnet", "vit")
# The instruments of a config. Each has a field measure.NAME_every, its cadence.
CADENCES = (
    "lambda_max_batch", "loss_train", "lambda_max_train", "loss_batch_after", "directional_batch", "directional_train", "criteria",
    "preconditioner_min", "weight_norm", "loss_test", "agop_alignment",
)  # fmt: skip
# The units of optimizer.lr and members.lr.
LR_UNITS = ("absolute", "critical_lr0")
# The instruments of each preset. AGOPs are measured only if there is a reference.
PRESETS = {
    "economy": ("lambda_max_batch", "loss_train"),
    "standard": ("lambda_max_batch", "loss_train", "loss_batch_after", "loss_test"),
    "full": ("lambda_max_batch", "loss_train", "loss_batch_after", "loss_test", "lambda_max_train", "agop_alignment"),
}
RELATIVE = ("staircase", "relative_to_critical")  # the schedules that need the critical lr
_MOST = 2**31 - 1  # since steps are counted in 32 bits
_FRACTION = Values("0 or more, below 1", lambda v: 0 <= v < 1)
_SEED = Values("0 to 2147483647", lambda v: 0 <= v < 2**31)

# In the order of the checks.
VALUES = {
    "steps": _at_least(1),
    "seed": _SEED,
    "members.seed": _or_none(_each(_integer(_SEED))),
    "members.lr": _or_none(_each(_above(0))),
    "members.raises": _or_none(_each(_integer(_at_least(0)))),
    "members.intervention": _or_none(
        Values(f"a tuple, each one of {', '.join(ARMS)}", lambda v: len(v) > 0 and set(v) <= set(ARMS))
    ),
    "intervention.dose": _above(0),
    "intervention.ratio": _at_least(1),
    "members.cap": _or_none(_each(Values("above 0 or None", lambda v: v is None or v > 0))),
    "data.classes": _or_none(_each(_integer(_at_least(0)))),
    "data.fallback": _or_none(_choice(("digits", "natural_patches"))),
    "data.fallback_classes": _or_none(_each(_integer(_at_least(0)))),
    "data.train_size": _at_least(1),
    "data.test_size": _or_none(_at_least(1)),
    "data.validation_size": _at_least(0),
    "data.image_size": _or_none(_at_least(1)),
    "data.scaling": _choice(SCALINGS),
    "data.target_encoding": _choice(TARGET_ENCODINGS),
    "data.synthetic.dimension": _at_least(1),
    "data.synthetic.target": _choice(TARGETS),
    "data.synthetic.rank": _at_least(1),
    "data.synthetic.noise": _at_least(0),
    "data.synthetic.seed": _at_least(0),
    "model.name": _choice(MODELS),
    "model.depth": _at_least(1),
    "model.width": _at_least(1),
    "model.activation": _choice(ACTIVATIONS),
    "model.gain": _above(0),
    "model.readout": _choice(READOUTS),
    "model.strides": _or_none(_each(_integer(_at_least(1)))),
    "model.stem_stride": _at_least(1),
    "model.patch_size": _at_least(1),
    "loss": _choice(LOSSES),
    "optimizer.name": _choice(optimizers.SETTINGS),
    "optimizer.lr": _or_none(_above(0)),
    "optimizer.lr_unit": _choice(LR_UNITS),
    "optimizer.batch_size": _or_none(_at_least(1)),
    "optimizer.momentum": _FRACTION,
    **dict.fromkeys([f"optimizer.{name}" for name in ("b1", "b2", "decay", "rho")], _or_none(_FRACTION)),
    **dict.fromkeys(
        [f"optimizer.{name}" for name in ("eps", "initial_accumulator_value", "weight_decay")], _or_none(_at_least(0))
    ),
    "schedule.name": _choice(SCHEDULES),
    "schedule.cap": _or_none(_above(0)),
    "schedule.cap_from": _at_least(0),
    "schedule.low": Values("0 to 1", lambda v: 0 <= v <= 1),
    "schedule.period": _at_least(2),
    "schedule.decay": Values("above 0, at most 1", lambda v: 0 < v <= 1),
    "schedule.decay_from": _at_least(0),
    "schedule.raises": _at_least(0),
    "schedule.raise_to": _above(0),
    "schedule.settle_fraction": Values("above 0, at most 1", lambda v: 0 < v <= 1),
    "schedule.settle_steps": _at_least(1),
    "measure.preset": _or_none(_choice(PRESETS)),
    "measure.max_overhead": _above(1),
    "measure.method": _or_none(_choice(("exact", "matrix_free", "auto"))),
    "measure.tolerance": _above(0),
    "measure.max_products": _or_none(_at_least(1)),
    "measure.chunk_size": _or_none(_at_least(1)),
    "measure.lambda_max_batch_every": _at_least(0),
    "measure.top_k": _at_least(1),
    "measure.top_k_max": _or_none(_at_least(1)),
    "measure.loss_modes": _at_least(0),
    "measure.loss_train_every": _at_least(0),
    "measure.lambda_max_train_every": _at_least(0),
    "measure.loss_batch_after_every": _at_least(0),
    "measure.directional_batch_every": _at_least(0),
    "measure.directional_train_every": _at_least(0),
    "measure.criteria_every": _at_least(0),
    "measure.preconditioner_min_every": _at_least(0),
    "measure.weight_norm_every": _at_least(0),
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
    """Check the value of a field.

    Args:
      name: full name of a field in :data:`VALUES`.
      value: of that field.

    Returns:
      ``field=value; allowed: ...``, or None if the value is allowed.
    """
    if not _is_allowed(VALUES[name], value):
        return f"{name}={value!r}; allowed: {VALUES[name].allowed}"
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int) and abs(number) > _MOST:
            return f"{name}={value!r}; allowed: whole numbers up to {_MOST}"
    return None


def _is_allowed(values: Values, value: Any) -> bool:
    finite = all(not isinstance(v, float) or math.isfinite(v) for v in (value if isinstance(value, tuple) else (value,)))
    try:
        return finite and bool(values.contains(value))
    except TypeError:  # None, or an item of a tuple that is not a number
        return False
