"""What an event is: a spike of the loss, its attributes, and its kind.

A **spike** of factor ``F`` opens when the loss exceeds ``F`` times its level. The **level** is the running minimum since the last
event ended. The spike closes when the loss has come down half of its height on a log scale, ``log loss <= (log level + log peak) / 2``.
Its **onset** is the last step at which the loss was at its level, up to one percent: the update of that step starts the rise.
``returned`` is the first step after the peak at which the loss is at most ``(1 + delta)`` times the level.

An **exceedance** is a step with ``lr > critical_lr``. The kind of an event:

- **catapult**: there is an exceedance from onset to peak, both included, or within the momentum horizon before the onset.
- **unexplained**: none of these steps has an exceedance.
- **unknown**: none of these steps is known to have an exceedance, and the lr or the critical lr of one of them was not measured. Between
  two measurements the last one holds, which can show an exceedance, but not that there is none.
- **divergence**: the loss is not finite, or the spike does not close within the horizon after its opening.
- **death**: the kernel becomes exactly zero during the spike and stays zero. The gradient is then zero, and the network does not
  change any more. A death is neither a catapult nor a divergence. The online detector reports a death if the kernel is zero where the
  event ends; :func:`catapult_jax.find_events` also looks at the rest of the series.

A spike that is still open at the end of the series has ``end == -1``.

**Use the training loss.** The losses of random batches scatter. Each batch far above the smallest loss so far is a spike by this
definition. For batch losses, pass ``smoothing`` (for example 0.98) to :func:`catapult_jax.detector` and :func:`catapult_jax.find_events`.

:mod:`catapult_jax.detection` finds events during training, :mod:`catapult_jax.spikes` in a saved series.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

if TYPE_CHECKING:
    Array = jax.Array | np.ndarray

KINDS = ("none", "catapult", "unexplained", "divergence", "unknown", "death")
CATAPULT, UNEXPLAINED, DIVERGENCE, UNKNOWN, DEATH = range(1, 6)  # indices into KINDS

# The definition in one paragraph, for the pages that show events.
DEFINITION = (
    "A spike opens when the loss exceeds a factor times its level (the running minimum since the last event ended) and closes when the "
    "loss has come down half of its height on a log scale. A catapult is a spike with a step above the critical learning rate from its "
    "onset to its peak, both included, or within the momentum horizon before its onset. A spike after which the kernel is exactly zero is "
    "a death of the network, not a catapult. A loss that is not finite, or a spike that does not close within its horizon, is a divergence."
)


class _Fields(NamedTuple):
    kind: Array | int | str  # index into KINDS, or the name
    onset: Array | int  # step whose update starts the rise
    peak: Array | int  # step of the largest loss
    end: Array | int  # step at which the spike closes; -1: still open, or never closes
    returned: Array | int  # first step after the peak with loss <= (1 + delta) level; -1: not yet
    level: Array | float  # of the loss before the spike
    loss_onset: Array | float
    loss_peak: Array | float
    peak_ratio: Array | float  # loss_peak / level
    # log gain of the top mode's loss: sum over onset..peak of 2 log|1 - 2 lr / critical_lr| where lr > critical_lr; NaN: not known
    overshoot: Array | float
    fraction_top: (
        Array | float
    )  # fraction of the rise, onset to peak, inside the top-k eigenspace; NaN: a part of the split is missing
    lr: Array | float  # at onset
    critical_lr: Array | float  # at onset
    lambda_max_before: Array | float  # last value measured between the previous event and the onset; NaN: none
    lambda_max_after: Array | float  # first value measured from the close to the next onset; NaN: none


class Event(_Fields):
    """One spike.

    Inside jit the fields are arrays, and ``kind`` is an index into ``KINDS``. :func:`catapult_jax.find_events` and :func:`to_python`
    give Python numbers and the name of the kind. Then ``str(event)`` is a sentence, and ``event._asdict()`` can be written as JSON,
    with None for a number that is not finite. With smoothing all losses are smoothed losses.
    """

    __slots__ = ()

    def _asdict(self) -> dict[str, Any]:
        finite = lambda value: None if isinstance(value, float) and not math.isfinite(value) else value
        return {name: finite(value) for name, value in zip(self._fields, self, strict=True)}

    def __str__(self) -> str:
        if not isinstance(self.kind, str):
            return repr(self)
        if self.kind == "none":
            return "No event."
        start = f"{self.loss_onset:.3g} at step {self.onset}"
        if not math.isfinite(self.loss_peak):
            rise = f"the loss goes from {start} to a value that is not finite at step {self.peak}"
        else:
            rise = f"the loss rises from {start} to {self.loss_peak:.3g} at step {self.peak} ({self.peak_ratio:.3g} times its level)"
        return f"{self.kind.capitalize()}: {rise}{self._course()}; {self._lr_at_onset()}."

    def _course(self) -> str:
        """How the loss goes on after the peak."""
        if self.kind == "divergence":
            return " and does not come down within the horizon" if math.isfinite(self.loss_peak) else ""
        if self.kind == "death":
            return ", and then the kernel is exactly zero: the network is dead"
        if self.end < 0:
            return " and has not come down half of its height by the last step"
        if self.returned < 0:
            return f" and comes down half of its height by step {self.end}, but is not back at its level"
        return f", comes down half of its height by step {self.end} and is back at its level at step {self.returned}"

    def _lr_at_onset(self) -> str:
        """The lr beside the critical lr, and where an exceedance is if it is not at the onset."""
        if math.isnan(self.critical_lr):
            return "the critical lr at the onset is not known"
        if math.isnan(self.lr):
            return "the lr at the onset is not known"
        if math.isinf(self.critical_lr):
            return f"the critical lr at the onset is infinite, the lr {self.lr:.3g}"
        ratio = self.lr / self.critical_lr if self.critical_lr else math.inf
        where = (
            ""
            if self.kind != "catapult" or ratio > 1
            else " at the onset; on the way to the peak the lr exceeds its critical lr"
        )
        if where and not self.overshoot > 0:
            where = " at the onset; within the momentum horizon before it a step exceeds its critical lr"
        if self.kind == "unknown":
            where = ", the last one measured; at some steps that count it was not measured"
        return f"lr {self.lr:.3g} is {ratio:.3g} times the critical lr {self.critical_lr:.3g}{where}"


def to_python(event: Event) -> Event:
    """Event with Python numbers and the name of its kind, from the arrays of the online detector.

    Args:
      event: of one member, with arrays of shape ``()``. An event that holds Python numbers is returned as it is.

    Returns:
      The same event as Python numbers.

    Raises:
      ValueError: the arrays hold events of several members (from vmap); index them first.

    >>> import json
    >>> import jax.numpy as jnp
    >>> from catapult_jax import detector
    >>> d = detector()
    >>> state, _ = d.update(d.init(), jnp.array(1.0), jnp.array(6.0), jnp.array(3.6))
    >>> state, _ = d.update(state, jnp.array(3.0), jnp.array(6.0), jnp.array(3.6))
    >>> state, event = d.update(state, jnp.array(1.0), jnp.array(6.0), jnp.array(3.6))
    >>> event = to_python(event)
    >>> print(event)
    Catapult: the loss rises from 1 at step 0 to 3 at step 1 (3 times its level), comes down half of its height by step 2 and is back at its level at step 2; lr 6 is 1.67 times the critical lr 3.6.
    >>> json.loads(json.dumps(event._asdict(), allow_nan=False))["lambda_max_after"] is None
    True
    """
    if isinstance(event.kind, str):
        return event
    values = [np.asarray(value) for value in event]
    if values[0].ndim:
        raise ValueError(f"event.kind has shape {values[0].shape}; allowed: (), one event")
    return Event(KINDS[int(values[0])], *(value.item() for value in values[1:]))
