"""Online spike detector: a state machine that sees one step at a time. :mod:`catapult_jax.events` defines what it finds.

:func:`detector` is the public door. Its state machine is :func:`_update`: smooth the loss, follow level, onset and peak, and give an
event at the step at which the spike ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from catapult_jax.events import CATAPULT, DEATH, DIVERGENCE, UNEXPLAINED, UNKNOWN, Event

if TYPE_CHECKING:
    Array = jax.Array | np.ndarray

_ONSET = 0.01  # a change below one percent starts no rise: it is rounding, batch noise, or the flat bottom of a curve
_NEVER = np.iinfo(np.int32).max // 2  # steps since the last exceedance if there is none; half of the range, so that sums fit


class DetectorSettings(NamedTuple):
    """Settings of a detector as arrays, so that one compiled program serves all values."""

    factor: Array | np.float32  # a spike opens above factor times the level
    delta: Array | np.float32  # a spike has returned at (1 + delta) times the level
    horizon: Array | np.int32  # steps from the opening after which an open spike is a divergence
    memory: Array | np.int32  # steps before the onset within which an exceedance counts: momentum, and the delay of the average
    bottom: Array | np.float32  # a loss up to bottom times the level is still at the level
    smoothing: Array | np.float32  # weight of the past in the average; 0: no average


class _StepValues(NamedTuple):
    """What the detector knows of one step."""

    step: jax.Array
    loss: jax.Array  # smoothed, as are its parts
    loss_top: jax.Array
    loss_rest: jax.Array
    lr: jax.Array
    critical_lr: jax.Array  # the last measured value
    lambda_max: jax.Array  # the last measured value since the last event ended
    since_exceedance: jax.Array  # steps
    since_unmeasured: jax.Array  # steps
    overshoot: jax.Array  # summed since the onset


class DetectorState(NamedTuple):
    """What the detector carries from one step to the next."""

    step: jax.Array  # of the next update
    loss: jax.Array  # of the last update, smoothed
    averages: jax.Array  # (3,) moving averages of the loss and its two parts, not corrected for their start
    weight: jax.Array  # sum of the weights of these averages: divide by it to correct them
    level: jax.Array  # running minimum since the last event ended
    is_open: jax.Array  # True while a spike is open
    is_over: jax.Array  # True once a loss was not finite: no event is given after that
    since_exceedance: jax.Array  # steps
    since_unmeasured: jax.Array  # steps since the last one whose lr or critical lr was not measured
    critical_lr: jax.Array  # the last measured value
    lambda_max: jax.Array  # the last measured value since the last event ended
    overshoot: jax.Array  # summed since the onset
    opened: jax.Array  # step at which the open spike crossed the factor
    onset: _StepValues  # the last step at the level
    peak: _StepValues  # the step of the largest loss of the spike
    returned: jax.Array  # first step after the peak at which the open spike was back at its level; -1: none
    closed: jax.Array  # number of events that have ended


class Detector(NamedTuple):
    """Online detector, for use inside a training step. It works under jit, vmap and scan."""

    init: Callable[[], DetectorState]  # () -> state
    # (state, loss, lr, critical_lr, lambda_max=nan, loss_top=nan, loss_rest=nan) -> (state, event); kind 0: nothing ended
    update: Callable[..., tuple[DetectorState, Event]]
    finish: Callable[[DetectorState], Event]  # state -> event that is still open; kind 0: none


def detector(
    *,
    factor: float = 1.5,
    delta: float = 0.1,
    horizon: int = 1000,
    momentum_horizon: int = 0,
    smoothing: float | None = None,
) -> Detector:
    """Makes an online spike detector.

    It gives an event at the step at which the event ends: where the spike closes, where its horizon is over, or where the loss is not
    finite. ``returned`` and ``lambda_max_after`` are the values known at that step. A death is a ``lambda_max`` of exactly zero at that
    step, or at the last step at which it was measured. :func:`catapult_jax.find_events` adds what only later steps show.

    ``lambda_max`` is an optional argument of ``update``. Give the value of the training set, of a fixed probe, or of the one batch that
    every step takes; never values of different batches. Without it the detector reports no deaths.

    Args:
      factor: a spike opens above ``factor`` times the level; more than ``1 + delta``.
      delta: a spike has returned at ``1 + delta`` times the level; above 0.
      horizon: a spike that is still open this many steps after its opening is a divergence; at least 1.
      momentum_horizon: an exceedance up to this many steps before the onset still explains the spike; 0 without momentum.
      smoothing: weight of the past, between 0 and 1, in an exponential moving average of the loss and its parts,
        ``m = smoothing m + (1 - smoothing) loss``, divided by the sum of its weights so that it is right from the first step. None: no
        average. The average delays onset, peak and close of a fast spike by up to its time constant ``1 / (1 - smoothing)`` steps (50 for
        0.98), so an exceedance up to that many steps before the onset counts as well. Some scatter remains, so the onset is then the last
        step below ``sqrt(factor)`` times the level. Give the parts at every step, otherwise ``fraction_top`` is NaN.

    Returns:
      The functions ``init``, ``update`` and ``finish``.

    Raises:
      ValueError: an argument is out of its range.

    >>> from catapult_jax import KINDS
    >>> d = detector(factor=1.5)
    >>> state, kinds = d.init(), []
    >>> for loss in [1.0, 3.0, 1.0]:
    ...     state, event = d.update(state, jnp.array(loss), jnp.array(2.0), jnp.array(1.0))
    ...     kinds.append(KINDS[int(event.kind)])
    >>> kinds
    ['none', 'none', 'catapult']
    """
    return detector_with(detector_settings(factor, delta, horizon, momentum_horizon, smoothing))


def detector_settings(
    factor: float, delta: float, horizon: int, momentum_horizon: int, smoothing: float | None
) -> DetectorSettings:
    """Checks the arguments of :func:`detector` and gives them as arrays.

    Args:
      factor, delta, horizon, momentum_horizon, smoothing: as in :func:`detector`.

    Returns:
      The settings. The delay of the average counts as memory.

    Raises:
      ValueError: an argument is out of its range.

    >>> int(detector_settings(1.5, 0.1, 1000, 10, 0.98).memory)
    60
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
    memory = np.int32(momentum_horizon + (round(1 / (1 - smoothing)) if smoothing else 0))
    bottom = np.float32(math.sqrt(factor) if smoothing else 1 + _ONSET)
    return DetectorSettings(
        np.float32(factor), np.float32(delta), np.int32(horizon), memory, bottom, np.float32(smoothing or 0.0)
    )


def detector_with(settings: DetectorSettings, *, tells_deaths: bool = True) -> Detector:
    """Detector with settings that may be traced.

    Args:
      settings: of :func:`detector_settings`.
      tells_deaths: False: no event is a death; each has the kind that its loss and lr give.

    Returns:
      The functions ``init``, ``update`` and ``finish``.

    >>> int(detector_with(detector_settings(1.5, 0.1, 1000, 0, None)).init().closed)
    0
    """
    return Detector(_init, partial(_update, settings, tells_deaths), partial(_finish, settings, tells_deaths))


def momentum_horizon(momentum: float) -> int:
    """Steps for which an exceedance lasts in a momentum average: ``round(1 / (1 - momentum))``; 0 without momentum.

    Args:
      momentum: of the optimizer, 0 or more and below 1.

    Returns:
      Number of steps.

    >>> momentum_horizon(0.0), momentum_horizon(0.9)
    (0, 10)
    """
    return round(1 / (1 - momentum)) if momentum else 0


def _init() -> DetectorState:
    nan, zero, no = jnp.float32(jnp.nan), jnp.int32(0), jnp.asarray(False)
    never = jnp.int32(_NEVER)
    nowhere = _StepValues(jnp.int32(-1), nan, nan, nan, nan, nan, nan, never, never, jnp.float32(0))
    return DetectorState(
        step=zero,
        loss=nan,
        averages=jnp.zeros(3, jnp.float32),
        weight=jnp.float32(0),
        level=jnp.float32(jnp.inf),
        is_open=no,
        is_over=no,
        since_exceedance=never,
        since_unmeasured=never,
        critical_lr=nan,
        lambda_max=nan,
        overshoot=jnp.float32(0),
        opened=zero,
        onset=nowhere,
        peak=nowhere,
        returned=jnp.int32(-1),
        closed=zero,
    )


def _update(
    settings: DetectorSettings,
    tells_deaths: bool,
    state: DetectorState,
    loss: Array | float,
    lr: Array | float,
    critical_lr: Array | float,
    lambda_max: Array | float = math.nan,
    loss_top: Array | float = math.nan,
    loss_rest: Array | float = math.nan,
) -> tuple[DetectorState, Event]:
    """The state after one step, and the event that ends with it."""
    inputs = (loss, lr, critical_lr, lambda_max, loss_top, loss_rest)
    loss, lr, critical_lr, measured, loss_top, loss_rest = (jnp.asarray(v).astype(jnp.float32) for v in inputs)
    is_finite = jnp.isfinite(loss)
    averages, weight = _smooth(settings, state, jnp.stack([loss, loss_top, loss_rest]))
    now = _values_of_step(state, averages / weight, lr, critical_lr, measured)
    spike = _follow(settings, state, now, is_finite)
    closes, expires = _ends(settings, spike, now, is_finite)

    has_died = _has_died(now.lambda_max, spike.onset, tells_deaths)
    has_died = has_died & (now.loss > 0)  # where the loss is zero, the loss has no curvature, whatever the kernel
    kind = jnp.where(has_died, DEATH, jnp.where(closes, _cause(settings, spike), DIVERGENCE))
    kind = jnp.where(closes | expires, kind, jnp.where(is_finite, 0, DIVERGENCE))
    kind = jnp.where(state.is_over, 0, kind)
    event = _event(kind, spike, jnp.where(closes, state.step, -1), jnp.where(closes, measured, jnp.nan))

    ends = closes | expires | ~is_finite
    # A new event may start at the step at which the last one ends, and it knows only what that step measures.
    fresh = now._replace(lambda_max=measured)
    after = DetectorState(
        step=state.step + 1,
        loss=now.loss,
        averages=averages,
        weight=weight,
        level=jnp.where(ends, now.loss, spike.level),
        is_open=spike.is_open & ~ends,
        is_over=state.is_over | ~is_finite,
        since_exceedance=now.since_exceedance,
        since_unmeasured=now.since_unmeasured,
        critical_lr=now.critical_lr,
        lambda_max=jnp.where(ends, measured, now.lambda_max),
        overshoot=jnp.where(ends, fresh.overshoot, spike.overshoot),
        opened=spike.opened,
        onset=_pick(ends, fresh, spike.onset),
        peak=spike.peak,
        returned=spike.returned,
        closed=state.closed + (kind > 0).astype(jnp.int32),
    )
    return _pick(state.is_over, state._replace(step=state.step + 1), after), event


def _finish(settings: DetectorSettings, tells_deaths: bool, state: DetectorState) -> Event:
    """The event that is still open after the last step."""
    has_died = _has_died(state.lambda_max, state.onset, tells_deaths)
    kind = jnp.where(has_died, DEATH, _cause(settings, state))
    return _event(jnp.where(state.is_open & ~state.is_over, kind, 0), state, -1, jnp.float32(jnp.nan))


def _smooth(settings: DetectorSettings, state: DetectorState, values: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moving averages of the loss and its parts, and the sum of their weights."""
    # Rounded before the sum, so that no compiler fuses the two: the same bits in every program.
    past = lambda value: jax.lax.reduce_precision(settings.smoothing * value, exponent_bits=8, mantissa_bits=23)
    averages = jnp.where(settings.smoothing > 0, past(state.averages) + (1 - settings.smoothing) * values, values)
    weight = jnp.where(settings.smoothing > 0, past(state.weight) + (1 - settings.smoothing), 1)
    return averages, weight


def _values_of_step(state: DetectorState, losses: jax.Array, lr, critical_lr, lambda_max) -> _StepValues:
    """What is known of this step. A value that was not measured is the last measured one. ``overshoot`` is of this step alone."""
    loss, loss_top, loss_rest = losses
    after = lambda is_now, since: jnp.where(is_now, 0, jnp.minimum(since + 1, _NEVER))
    unmeasured = after(jnp.isnan(critical_lr) | jnp.isnan(lr), state.since_unmeasured)
    critical_lr = jnp.where(jnp.isnan(critical_lr), state.critical_lr, critical_lr)
    lambda_max = jnp.where(jnp.isnan(lambda_max), state.lambda_max, lambda_max)
    exceeds = lr > critical_lr
    exceedance = after(exceeds, state.since_exceedance)
    overshoot = jnp.where(exceeds, 2 * jnp.log(2 * (lr / critical_lr) - 1), 0)
    return _StepValues(state.step, loss, loss_top, loss_rest, lr, critical_lr, lambda_max, exceedance, unmeasured, overshoot)


def _follow(settings: DetectorSettings, state: DetectorState, now: _StepValues, is_finite: jax.Array) -> DetectorState:
    """The state with level, onset, peak and return after this step, as if the spike did not end here."""
    level = jnp.where(state.is_open | ~is_finite, state.level, jnp.minimum(state.level, now.loss))
    at_bottom = is_finite & (now.loss <= settings.bottom * level)
    starts = (~state.is_open & at_bottom) | (state.onset.step < 0)
    now = now._replace(overshoot=now.overshoot + jnp.where(starts, 0, state.overshoot))
    is_open = state.is_open | ~(is_finite & (now.loss <= settings.factor * level))
    is_higher = is_open & (~state.is_open | (now.loss > state.peak.loss) | ~is_finite)
    is_back = is_open & (state.returned < 0) & (now.loss <= (1 + settings.delta) * level)
    return state._replace(
        level=level,
        is_open=is_open,
        overshoot=now.overshoot,
        opened=jnp.where(state.is_open, state.opened, state.step),
        onset=_pick(starts, now, state.onset),
        peak=_pick(is_higher, now, state.peak),
        returned=jnp.where(is_higher | ~is_open, -1, jnp.where(is_back, state.step, state.returned)),
    )


def _ends(settings: DetectorSettings, spike: DetectorState, now: _StepValues, is_finite) -> tuple[jax.Array, jax.Array]:
    """Whether the spike closes at this step, and whether its horizon is over."""
    # loss^2 <= level peak, without its overflow. At a level of zero there is no log scale: the loss must be back at the level.
    is_halved = (now.loss <= spike.level) | (now.loss / spike.level <= spike.peak.loss / now.loss)
    closes = spike.is_open & is_finite & is_halved
    expires = spike.is_open & is_finite & ~closes & (now.step - spike.opened >= settings.horizon)
    return closes, expires


def _cause(settings: DetectorSettings, spike: DetectorState) -> jax.Array:
    """Kind of a spike that closes, by the exceedances up to its peak."""
    window = spike.peak.step - spike.onset.step + settings.memory
    is_known = spike.peak.since_unmeasured > window
    return jnp.where(spike.peak.since_exceedance <= window, CATAPULT, jnp.where(is_known, UNEXPLAINED, UNKNOWN))


def _has_died(lambda_max: jax.Array, onset: _StepValues, tells_deaths: bool) -> jax.Array:
    return (lambda_max == 0) & ~(onset.lambda_max == 0) & tells_deaths


def _event(kind: jax.Array, spike: DetectorState, end: jax.Array | int, lambda_max: jax.Array) -> Event:
    onset, peak = spike.onset, spike.peak
    rise_top, rise_rest = peak.loss_top - onset.loss_top, peak.loss_rest - onset.loss_rest
    return Event(
        kind=jnp.int32(kind),
        onset=onset.step,
        peak=peak.step,
        end=jnp.int32(end),
        returned=spike.returned,
        level=spike.level,
        loss_onset=onset.loss,
        loss_peak=peak.loss,
        peak_ratio=peak.loss / spike.level,
        overshoot=jnp.where(jnp.isnan(onset.critical_lr) | jnp.isnan(onset.lr), jnp.nan, peak.overshoot),
        fraction_top=rise_top / (rise_top + rise_rest),
        lr=onset.lr,
        critical_lr=onset.critical_lr,
        lambda_max_before=onset.lambda_max,
        lambda_max_after=jnp.where(kind == DEATH, 0, lambda_max),
    )


def _pick(condition, new, old):
    """``new`` where the condition is true, else ``old``, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
