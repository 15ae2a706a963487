"""Spikes of a loss: where they start and end, and whether the learning rate was critical on their way up.

A **spike** of factor ``F`` opens when the loss exceeds ``F`` times its level, the running minimum since the last event ended. It
closes when the loss has come down half of its height on a log scale, ``log loss <= (log level + log peak) / 2``. Its **onset** is the
last step at which the loss was still at its level, up to one percent: the update of that step starts the rise. ``returned`` is the
first step after the peak at which the loss is back at ``(1 + delta)`` times the level.

An **exceedance** is a step with ``lr > critical_lr``. The kind of an event:

- **catapult**: an exceedance at a step from onset to peak, both included, or within the momentum horizon before the onset.
- **unexplained**: none of these steps has one.
- **unknown**: none of these steps is known to have one, and the critical learning rate was not known at the onset.
- **divergence**: the loss is not finite, or the spike has not closed within the horizon of its opening.
- **death**: the kernel becomes exactly zero in the spike and stays so. No gradient is left, and the network stays as it is. A death is neither a
  catapult nor a divergence. Online it is a kernel of zero where the event ends; :func:`find_events` looks at the rest of the series too.

A spike that is not over at the end of the series stays open: ``end == -1``.

**Use the training loss.** The losses of random batches scatter, and each batch far above the smallest one before it is a spike of
this definition. For batch losses, give ``smoothing`` (0.98, for example) to :func:`detector` and :func:`find_events`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float

FACTORS = (1.2, 1.5, 2.0, 3.0, 5.0)  # counts are always given on this grid, so that no result hangs on one threshold
_ONSET = 0.01  # a change below one percent does not start a rise: it is rounding, batch noise, or the flat bottom of a curve
KINDS = ("none", "catapult", "unexplained", "divergence", "unknown", "death")
_CATAPULT, _UNEXPLAINED, _DIVERGENCE, _UNKNOWN, _DEATH = range(1, 6)

# The definition in one paragraph, for the pages that show events.
DEFINITION = (
    "A spike opens when the loss exceeds a factor times its level (the running minimum since the last event ended) and closes when the "
    "loss has come down half of its height on a log scale. A catapult is a spike with a step above the critical learning rate from its "
    "onset to its peak, both included, or within the memory of the momentum before. A spike after which the kernel is exactly zero is a death "
    "of the network, not a catapult. A loss that is not finite, or a spike that does not close within its horizon, is a divergence."
)


class _Fields(NamedTuple):
    kind: int | str
    onset: int  # step whose update starts the rise
    peak: int  # step of the largest loss
    end: int  # step at which the spike closes, -1 while it is open and where it never closes
    returned: int  # first step after the peak with loss <= (1 + delta) level; -1: not yet
    level: float  # of the loss before the spike
    loss_onset: float
    loss_peak: float
    peak_ratio: float  # loss_peak / level
    # log gain of the top mode's loss: sum over onset..peak of 2 log|1 - 2 lr / critical_lr| where lr > critical_lr; NaN: not known
    overshoot: float
    fraction_top: float  # fraction of the rise, onset to peak, inside the top-k eigenspace; NaN without both parts of the split
    lr: float  # at onset
    critical_lr: float  # at onset
    lambda_max_before: float  # last value measured between the event before and the onset; NaN: none
    lambda_max_after: float  # first value measured from the close to the next onset; NaN: none


class Event(_Fields):
    """One spike. As arrays inside jit (``kind`` indexes ``KINDS``), as Python numbers from :func:`find_events` and :func:`to_python`.

    With Python numbers ``str(event)`` is a sentence, and ``event._asdict()`` is ready for JSON: None where a number is not finite.
    With smoothing the losses are smoothed ones.
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
        return f"{self.kind.capitalize()}: {rise}{self._course()}; {self._rate()}."

    def _course(self) -> str:
        if self.kind == "divergence":
            return " and does not come down within the horizon" if math.isfinite(self.loss_peak) else ""
        if self.kind == "death":
            return ", and then the kernel is exactly zero: the network is dead"
        if self.end < 0:
            return " and has not come down half of its height by the last step"
        if self.returned < 0:
            return f" and comes down half of its height by step {self.end}, but is not back at its level"
        return f", comes down half of its height by step {self.end} and is back at its level at step {self.returned}"

    def _rate(self) -> str:
        if math.isnan(self.critical_lr):
            return "the critical lr at the onset is not known"
        if math.isinf(self.critical_lr):
            return f"the critical lr at the onset is infinite, the lr {self.lr:.3g}"
        ratio = self.lr / self.critical_lr if self.critical_lr else math.inf
        where = "" if self.kind != "catapult" or ratio > 1 else ", which a step on the way to the peak exceeds"
        if where and not self.overshoot > 0:
            where = ", which a step shortly before exceeds"
        return f"lr {self.lr:.3g} is {ratio:.3g} times the critical lr {self.critical_lr:.3g}{where}"


def to_python(event: Event) -> Event:
    """An event of one member with Python numbers and the name of its kind, from the arrays of the online detector.

    Raises:
      ValueError: an event of several members (under vmap); take one of them first.

    >>> import json
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


class _Moment(NamedTuple):
    step: Array
    loss: Array
    loss_top: Array
    loss_rest: Array
    lr: Array
    critical_lr: Array
    lambda_max: Array
    since_exceedance: Array
    overshoot: Array  # summed since the onset


class DetectorState(NamedTuple):
    """What the detector carries from one step to the next."""

    step: Array  # of the next update
    loss: Array  # of the last update, smoothed
    averages: Array  # (3,) moving averages of the loss and its two parts, not corrected for their start
    weight: Array  # sum of the weights of these averages: their correction
    level: Array  # running minimum since the last event ended
    is_open: Array
    is_over: Array  # a loss was not finite: nothing is told of what follows
    since_exceedance: Array  # steps
    critical_lr: Array  # last one known
    lambda_max: Array  # last one known since the last event ended
    overshoot: Array  # summed since the onset
    opened: Array  # step at which the open spike crossed the factor
    onset: _Moment  # last moment at the level
    peak: _Moment
    returned: Array  # first step after the peak at which the open spike was back at its level, -1: none
    closed: Array  # events ended so far


class Detector(NamedTuple):
    """Online detector, for use inside a training step; works under jit, vmap and scan."""

    init: Callable  # () -> state
    # (state, loss, lr, critical_lr, lambda_max=nan, loss_top=nan, loss_rest=nan) -> (state, event); kind 0: nothing ended
    update: Callable
    finish: Callable  # state -> event that is still open; kind 0: none


def detector(
    *,
    factor: float = 1.5,
    delta: float = 0.1,
    horizon: int = 1000,
    momentum_horizon: int = 0,
    smoothing: float | None = None,
) -> Detector:
    """Makes an online spike detector.

    It gives an event at the step at which the event ends: at its close, at its horizon, or at a loss that is not finite. ``returned`` and
    ``lambda_max_after`` are what is known at that step, and a death is a ``lambda_max`` of exactly zero at that step, or at the last one at
    which it was measured; :func:`find_events` adds what comes later. ``lambda_max`` of an update is that of the training set, of a fixed probe, or
    of the one batch that every step takes. Never give it that of batches that differ. Without it there are no deaths.

    Args:
      factor: a spike opens above ``factor`` times the level; more than ``1 + delta``.
      delta: a spike has returned at ``1 + delta`` times the level; above 0.
      horizon: steps from its opening after which a spike that has not closed is a divergence; at least 1.
      momentum_horizon: steps before the onset within which an exceedance still explains it; 0 without momentum.
      smoothing: weight of the past, between 0 and 1, in an exponential moving average of the loss and its parts,
        ``m = smoothing m + (1 - smoothing) loss``, divided by the sum of its weights so that it is right from the first step. None: no average.
        It delays the onset of a fast spike, its peak and its close by up to its time constant ``1 / (1 - smoothing)`` steps (50 for 0.98),
        so an exceedance so many steps before the onset counts as well. What is left of the scatter is no rise: the onset is then the
        last step below ``sqrt(factor)`` times the level. The parts must be known at every step, otherwise ``fraction_top`` is NaN.

    Raises:
      ValueError: an argument out of its range.

    >>> d = detector(factor=1.5)
    >>> state, closed = d.init(), []
    >>> for loss in [1.0, 3.0, 1.0]:
    ...     state, event = d.update(state, jnp.array(loss), jnp.array(2.0), jnp.array(1.0))
    ...     closed.append(int(event.kind))
    >>> [KINDS[kind] for kind in closed]
    ['none', 'none', 'catapult']
    """
    if not delta > 0:
        raise ValueError(f"delta={delta!r}; allowed: above 0")
    if not factor > 1 + delta:
        raise ValueError(f"factor={factor!r}; allowed: above 1 + delta = {1 + delta}")
    if horizon < 1:
        raise ValueError(f"horizon={horizon!r}; allowed: 1 or more")
    if momentum_horizon < 0:
        raise ValueError(f"momentum_horizon={momentum_horizon!r}; allowed: 0 or more")
    if smoothing is not None and not 0 < smoothing < 1:
        raise ValueError(f"smoothing={smoothing!r}; allowed: None, or between 0 and 1")

    return _detector(*_settings(factor, delta, horizon, momentum_horizon, smoothing))


def _settings(factor, delta, horizon, momentum_horizon, smoothing):
    """As arrays, so that one compiled program serves all values; the delay of the average counts as memory."""
    memory = np.int32(momentum_horizon + (round(1 / (1 - smoothing)) if smoothing else 0))
    bottom = np.float32(math.sqrt(factor) if smoothing else 1 + _ONSET)
    return np.float32(factor), np.float32(delta), np.int32(horizon), memory, bottom, np.float32(smoothing or 0.0)


def _detector(factor, delta, horizon, memory, bottom, smoothing, *, tells_deaths: bool = True) -> Detector:
    """The detector itself; its settings may be traced. Without ``tells_deaths`` a death is of the kind that it would be otherwise."""
    number = jnp.float32
    nan, zero = number(jnp.nan), jnp.int32(0)
    far = jnp.int32(np.iinfo(np.int32).max // 2)
    nowhere = _Moment(jnp.int32(-1), nan, nan, nan, nan, nan, nan, far, number(0))

    def init() -> DetectorState:
        no = jnp.asarray(False)
        return DetectorState(
            step=zero,
            loss=nan,
            averages=jnp.zeros(3, number),
            weight=number(0),
            level=number(jnp.inf),
            is_open=no,
            is_over=no,
            since_exceedance=far,
            critical_lr=nan,
            lambda_max=nan,
            overshoot=number(0),
            opened=zero,
            onset=nowhere,
            peak=nowhere,
            returned=jnp.int32(-1),
            closed=zero,
        )

    def average(state: DetectorState, values):
        # Rounded by itself, so that no compiler joins it with the sum: the same bits in every program.
        past = lambda value: jax.lax.reduce_precision(smoothing * value, exponent_bits=8, mantissa_bits=23)
        averages = jnp.where(smoothing > 0, past(state.averages) + (1 - smoothing) * values, values)
        weight = jnp.where(smoothing > 0, past(state.weight) + (1 - smoothing), 1)
        return averages, weight

    def cause(onset: _Moment, peak: _Moment):
        on_the_way = peak.since_exceedance <= peak.step - onset.step + memory
        return jnp.where(on_the_way, _CATAPULT, jnp.where(jnp.isnan(onset.critical_lr), _UNKNOWN, _UNEXPLAINED))

    def event(kind, state: DetectorState, end, lambda_max) -> Event:
        onset, peak = state.onset, state.peak
        inside, outside = peak.loss_top - onset.loss_top, peak.loss_rest - onset.loss_rest
        return Event(
            kind=jnp.int32(kind),
            onset=onset.step,
            peak=peak.step,
            end=jnp.int32(end),
            returned=state.returned,
            level=state.level,
            loss_onset=onset.loss,
            loss_peak=peak.loss,
            peak_ratio=peak.loss / state.level,
            overshoot=jnp.where(jnp.isnan(onset.critical_lr), nan, peak.overshoot),
            fraction_top=inside / (inside + outside),
            lr=onset.lr,
            critical_lr=onset.critical_lr,
            lambda_max_before=onset.lambda_max,
            lambda_max_after=jnp.where(kind == _DEATH, 0, lambda_max),
        )

    def has_died(lambda_max, onset: _Moment):
        return (lambda_max == 0) & ~(onset.lambda_max == 0) & tells_deaths

    def update(state: DetectorState, loss, lr, critical_lr, lambda_max=nan, loss_top=nan, loss_rest=nan):
        loss, lr, critical_lr, measured, loss_top, loss_rest = (
            jnp.asarray(v).astype(number) for v in (loss, lr, critical_lr, lambda_max, loss_top, loss_rest)
        )
        finite = jnp.isfinite(loss)
        averages, weight = average(state, jnp.stack([loss, loss_top, loss_rest]))
        loss, loss_top, loss_rest = averages / weight
        # A critical lr that was not measured at this step is the last one that was.
        critical_lr = jnp.where(jnp.isnan(critical_lr), state.critical_lr, critical_lr)
        lambda_max = jnp.where(jnp.isnan(measured), state.lambda_max, measured)
        exceeds = lr > critical_lr
        since = jnp.where(exceeds, 0, jnp.minimum(state.since_exceedance + 1, far))
        gain = jnp.where(exceeds, 2 * jnp.log(2 * (lr / critical_lr) - 1), 0)
        pick = lambda condition, a, b: jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)

        level = jnp.where(state.is_open | ~finite, state.level, jnp.minimum(state.level, loss))
        at_bottom = finite & (loss <= bottom * level)
        starts = (~state.is_open & at_bottom) | (state.onset.step < 0)
        overshoot = gain + jnp.where(starts, 0, state.overshoot)
        now = _Moment(state.step, loss, loss_top, loss_rest, lr, critical_lr, lambda_max, since, overshoot)
        onset = pick(starts, now, state.onset)
        is_open = state.is_open | ~(finite & (loss <= factor * level))
        opened = jnp.where(state.is_open, state.opened, state.step)
        higher = is_open & (~state.is_open | (loss > state.peak.loss) | ~finite)
        peak = pick(higher, now, state.peak)
        back = is_open & (state.returned < 0) & (loss <= (1 + delta) * level)
        returned = jnp.where(higher | ~is_open, -1, jnp.where(back, state.step, state.returned))

        # loss^2 <= level peak, without its overflow; a level of zero is half of no height.
        halved = (loss <= level) | (loss / level <= peak.loss / loss)
        closes = is_open & finite & halved
        expires = is_open & finite & ~closes & (state.step - opened >= horizon)
        dead = has_died(lambda_max, onset) & (loss > 0)  # of a loss of zero it is the loss that has no curvature
        ended = jnp.where(dead, _DEATH, jnp.where(closes, cause(onset, peak), _DIVERGENCE))
        kind = jnp.where(closes | expires, ended, jnp.where(finite, 0, _DIVERGENCE))
        kind = jnp.where(state.is_over, 0, kind)
        middle = state._replace(level=level, onset=onset, peak=peak, returned=returned)
        closed = event(kind, middle, jnp.where(closes, state.step, -1), jnp.where(closes, measured, nan))

        ends = closes | expires | ~finite
        new = DetectorState(
            step=state.step + 1,
            loss=loss,
            averages=averages,
            weight=weight,
            level=jnp.where(ends, loss, level),
            is_open=is_open & ~ends,
            is_over=state.is_over | ~finite,
            since_exceedance=since,
            critical_lr=critical_lr,
            lambda_max=jnp.where(ends, measured, lambda_max),
            overshoot=jnp.where(ends, gain, overshoot),
            opened=opened,
            onset=pick(ends, now._replace(lambda_max=measured, overshoot=gain), onset),
            peak=peak,
            returned=returned,
            closed=state.closed + (kind > 0).astype(jnp.int32),
        )
        frozen = state._replace(step=state.step + 1)
        return pick(state.is_over, frozen, new), closed

    def finish(state: DetectorState) -> Event:
        dead = has_died(state.lambda_max, state.onset)
        kind = jnp.where(dead, _DEATH, cause(state.onset, state.peak))
        return event(jnp.where(state.is_open & ~state.is_over, kind, 0), state, -1, nan)

    return Detector(init, update, finish)


def momentum_horizon(momentum: float) -> int:
    """Steps for which an exceedance lingers in a momentum average: ``round(1 / (1 - momentum))``; 0 without momentum.

    >>> momentum_horizon(0.0), momentum_horizon(0.9)
    (0, 10)
    """
    return round(1 / (1 - momentum)) if momentum else 0


def find_events(
    loss: Float[Array, " t"],
    lr: Float[Array, " t"],
    critical_lr: Float[Array, " t"],
    *,
    lambda_max: Float[Array, " t"] | None = None,
    loss_top: Float[Array, " t"] | None = None,
    loss_rest: Float[Array, " t"] | None = None,
    factor: float = 1.5,
    delta: float = 0.1,
    horizon: int = 1000,
    momentum_horizon: int = 0,
    smoothing: float | None = None,
    dead_steps: int = 3,
) -> list[Event]:
    """Spikes of a saved loss series, in order, the last one perhaps still open (``end == -1``).

    Runs the online :func:`detector` over the series, so both give the same events. It adds what is known only later: ``returned`` of a
    spike that closed above its level, ``lambda_max_after`` where it was not measured at the close, and whether a kernel of zero stays so to
    the end (:func:`dead_from`): otherwise the event is no death. Every value is taken before the update of its step. A ``critical_lr`` of NaN (not
    measured at that step) stands for the last one that was measured.

    Give the loss of the training set. The losses of random batches scatter, and the scatter looks like spikes: give
    ``smoothing`` with them. A loss that changes by more than 10 % from one step to the next (median) is warned of.

    Args:
      loss, lr, critical_lr: series of one length; a loss is 0 or more, or not finite.
      lambda_max: optional, of the training set, of a fixed probe, or of the one batch that every step takes; never of batches that differ.
      loss_top, loss_rest: optional. The fraction of a rise in the top eigenspace is taken of both parts together: for ``mse`` they are the
        loss, for other losses half the Newton decrement.
      factor, delta, horizon, momentum_horizon, smoothing: see :func:`detector`.
      dead_steps: without ``lambda_max``, an infinite critical lr tells of a kernel of zero. One random batch may have that by chance: an event is a
        death where so many measured values, to the end of the series, are infinite. Give the steps of an epoch.

    Raises:
      ValueError: series that are not one-dimensional or of unequal length; a loss below 0; an argument out of its range.

    >>> import numpy as np
    >>> loss = np.array([1.0, 2.0, 3.0, 1.5, 1.0, 0.5])
    >>> (event,) = find_events(loss, np.full(6, 2.0), np.full(6, 1.5))
    >>> event.kind, event.onset, event.peak, event.end, event.returned, event.peak_ratio
    ('catapult', 0, 2, 3, 4, 3.0)
    >>> print(event)
    Catapult: the loss rises from 1 at step 0 to 3 at step 2 (3 times its level), comes down half of its height by step 3 and is back at its level at step 4; lr 2 is 1.33 times the critical lr 1.5.
    """
    # Checks its arguments.
    detector(factor=factor, delta=delta, horizon=horizon, momentum_horizon=momentum_horizon, smoothing=smoothing)
    loss = _checked_loss(loss)
    missing = np.full(loss.shape, np.nan, np.float32)
    named = {"lr": lr, "critical_lr": critical_lr, "lambda_max": lambda_max, "loss_top": loss_top, "loss_rest": loss_rest}
    series = {name: missing if value is None else np.asarray(value, np.float32) for name, value in named.items()}
    for name, value in series.items():
        if value.shape != loss.shape:
            raise ValueError(f"{name} has shape {value.shape}; allowed: {loss.shape}, that of loss")
    (ended, smoothed), last = _scan(_settings(factor, delta, horizon, momentum_horizon, smoothing), loss, *series.values())
    ended = Event(*map(np.asarray, ended))
    found = [(int(t), to_python(Event(*(value[t] for value in ended)))) for t in np.flatnonzero(ended.kind)]
    if int(last.kind):
        found.append((len(loss), to_python(last)))
    if found and smoothing is None:
        _warn_of_noise(loss)
    return _with_what_came_later(found, np.asarray(smoothed), loss, series, 1 + np.float32(delta), dead_steps)


def _checked_loss(loss) -> np.ndarray:
    loss = np.asarray(loss, np.float32)
    if loss.ndim != 1:
        raise ValueError(f"loss has shape {loss.shape}; allowed: one-dimensional")
    if (loss < 0).any() and np.isfinite(loss[loss < 0]).any():
        raise ValueError(f"loss={loss[np.isfinite(loss)].min():.3g} at step {np.nanargmin(loss)}; allowed: 0 or more")
    return loss


@jax.jit
def _scan(settings, *series):
    d = _detector(*settings, tells_deaths=False)

    def step(state, values):
        state, event = d.update(state, *values)
        return state, (event, state.loss)

    state, events = jax.lax.scan(step, d.init(), series)
    return events, d.finish(state)


_NOISE, _NOISE_STEPS = 0.1, 100  # a median change from step to step that training losses do not have; steps that tell it


def _warn_of_noise(loss: np.ndarray) -> None:
    positive = loss[np.isfinite(loss) & (loss > 0)]
    if len(positive) < _NOISE_STEPS:
        return
    noise = np.expm1(np.median(np.abs(np.diff(np.log(positive)))))
    if noise > _NOISE:
        warnings.warn(
            f"the loss changes by {noise:.0%} from one step to the next (median); if it is that of random batches, its scatter makes spikes: "
            "give the training loss, or smoothing=0.98",
            stacklevel=3,
        )


def _with_what_came_later(found, smoothed, loss, series, back, dead_steps) -> list[Event]:
    """``found``: (step at which it ended, event)."""
    lambda_max, critical_lr = series["lambda_max"], series["critical_lr"]
    kernel, steps = lambda_max, 1
    if np.isnan(lambda_max).all():
        kernel, steps = np.where(np.isnan(critical_lr), np.nan, np.where(np.isinf(critical_lr), 0.0, 1.0)), dead_steps
    dead = dead_from(kernel, loss, steps=steps)
    events = []
    for i, (at, event) in enumerate(found):
        if event.end >= 0 and event.returned < 0:
            later = np.flatnonzero(smoothed[at:] <= back * np.float32(event.level))
            event = event._replace(returned=int(at + later[0]) if len(later) else -1)
        following = found[i + 1][1].onset if i + 1 < len(found) else len(loss)
        known = lambda_max[at : following + 1]
        known = known[~np.isnan(known)]
        if event.end >= 0 and len(known):
            event = event._replace(lambda_max_after=float(known[0]))
        # The network was alive at the onset, is not seen alive after the end, and its loss does not rise again before it is seen dead.
        if event.onset < dead <= following and not np.nan_to_num(kernel[at:dead]).any() and math.isfinite(event.loss_peak):
            event = event._replace(kind="death", lambda_max_after=0.0)
        events.append(event)
    return events


def dead_from(lambda_max: Float[Array, " t"], loss: Float[Array, " t"], *, steps: int = 1) -> int:
    """Step from which on a network is dead, -1: it is not.

    It is dead where ``lambda_max`` is exactly zero at every later step at which it was measured, to the end of the series, and at so
    many of them at least. No gradient is left then. A loss of exactly zero at the end is no death: there the loss is what has no curvature.

    Args:
      lambda_max: largest eigenvalue of the kernel; NaN: not measured at that step.
      loss: of the same steps.
      steps: 1 for the kernel of the training set or of a probe. One random batch may have a kernel of zero by chance: give the steps of
        an epoch for those of batches.

    >>> nan = float("nan")
    >>> dead_from([3.0, nan, 0.0, nan, 0.0], [1.0, 2.0, 2.0, 2.0, 2.0]), dead_from([3.0, 0.0, 3.0], [1.0, 1.0, 1.0])
    (2, -1)
    """
    lambda_max, loss = np.asarray(lambda_max, float), np.asarray(loss, float)
    alive = np.flatnonzero(~np.isnan(lambda_max) & (lambda_max != 0))
    first = int(alive[-1]) + 1 if len(alive) else 0
    zeros = np.flatnonzero(lambda_max[first:] == 0) + first
    if len(zeros) < max(steps, 1) or not (np.isfinite(loss[-1]) and loss[-1] > 0):
        return -1
    return int(zeros[0])


def count_spikes(
    loss: Float[Array, " t"],
    *,
    factors: Sequence[float] = FACTORS,
    delta: float = 0.1,
    horizon: int = 1000,
    smoothing: float | None = None,
) -> dict[float, int]:
    """Number of spikes for each factor of a grid, all in one pass over the series.

    As many as :func:`find_events` finds, with ``delta`` at most half of ``factor - 1``.

    Raises:
      ValueError: as :func:`find_events`.

    >>> import numpy as np
    >>> count_spikes(np.array([1.0, 1.8, 1.0, 4.0, 1.0]))
    {1.2: 2, 1.5: 2, 2.0: 1, 3.0: 1, 5.0: 0}
    """
    loss, each = _checked_loss(loss), []
    for f in factors:
        options = dict(factor=f, delta=min(delta, (f - 1) / 2), horizon=horizon, momentum_horizon=0, smoothing=smoothing)
        detector(**options)  # checks its arguments
        each.append(_settings(**options))
    if not each:
        return {}
    found = np.asarray(_count(tuple(map(np.stack, zip(*each, strict=True))), loss))
    if found.any() and smoothing is None:
        _warn_of_noise(loss)
    return dict(zip(factors, found.tolist(), strict=True))


@jax.jit
def _count(settings, loss):
    unknown = jnp.full_like(loss, jnp.nan)

    def one(settings):
        (ended, _), last = _scan(settings, loss, *[unknown] * 5)
        return (ended.kind > 0).sum() + (last.kind > 0)

    return jax.vmap(one)(settings)


SPIKE_SCORE = 6.0  # a value with a higher score counts as a spike in the codes named at spike_score


def spike_score(values: Float[Array, " t"], *, window: int = 128) -> Float[Array, " t"]:
    """How many standard deviations a value lies above the mean of the last ones.

    ``score_t = (x_t - mean) / std`` over the ``window`` values before ``t`` (sample standard deviation). A score above ``SPIKE_SCORE = 6``
    is a spike. It needs no level and no critical learning rate, and it takes the loss of batches as well as the norm of gradients.

    Args:
      values: a series, for example the loss.
      window: number of values before each one; at least 2.

    Returns:
      Scores, ``(t,)``; NaN where fewer values came before, or one of those is not finite.

    Raises:
      ValueError: a series that is not one-dimensional, a window below 2.

    Source: the rule of 128 values and 6 standard deviations is that by which OLMo-core, levanter and MaxText skip steps.

    >>> spike_score([1.0, 3.0, 2.0, 8.0], window=3).tolist()
    [nan, nan, nan, 6.0]
    """
    values = np.asarray(values, float)
    if values.ndim != 1:
        raise ValueError(f"values has shape {values.shape}; allowed: one-dimensional")
    if window < 2:
        raise ValueError(f"window={window!r}; allowed: 2 or more")
    score = np.full(len(values), np.nan)
    if len(values) > window:
        before = np.lib.stride_tricks.sliding_window_view(np.where(np.isfinite(values), values, np.nan), window)[:-1]
        above = values[window:] - before.mean(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            # Of a constant every change is infinitely far, and none has no distance.
            score[window:] = np.where(above == 0, 0, above / before.std(1, ddof=1))
    return score


class Prediction(NamedTuple):
    """How well one yes/no series predicts another."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int
    precision: float  # of the steps predicted, the fraction that happened; NaN if none was predicted
    recall: float  # of the steps that happened, the fraction predicted; NaN if none happened
    f1: float
    base_rate: float  # fraction of all steps at which it happened: the precision of a blind guess


def prediction(predicted: Array, happened: Array) -> Prediction:
    """Confusion table, precision, recall and F1 of a predictor, beside the base rate.

    Raises:
      ValueError: arrays of different shapes.

    >>> p = prediction([True, True, False, False], [True, False, False, False])
    >>> p.precision, p.recall, p.base_rate
    (0.5, 1.0, 0.25)
    """
    predicted, happened = np.asarray(predicted, bool), np.asarray(happened, bool)
    if predicted.shape != happened.shape:
        raise ValueError(f"predicted has shape {predicted.shape}; allowed: {happened.shape}, that of happened")
    tp, fp = int((predicted & happened).sum()), int((predicted & ~happened).sum())
    fn, tn = int((~predicted & happened).sum()), int((~predicted & ~happened).sum())
    return scores(tp, fp, fn, tn)


def scores(tp: int, fp: int, fn: int, tn: int) -> Prediction:
    """Precision, recall, F1 and base rate of a confusion table.

    >>> scores(2, 0, 2, 4).recall
    0.5
    """
    share = lambda a, b: a / b if b else float("nan")
    rates = share(tp, tp + fp), share(tp, tp + fn), share(2 * tp, 2 * tp + fp + fn), share(tp + fn, tp + fp + fn + tn)
    return Prediction(tp, fp, fn, tn, *rates)
