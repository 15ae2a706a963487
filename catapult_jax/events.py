"""Spikes of a loss: where they start and end, and whether the learning rate was critical when they did.

A **spike** of factor ``F`` opens when the loss exceeds ``F`` times its level, the running minimum since the last spike closed, and
closes when it is back at ``(1 + delta)`` times that level. Its **onset** is the last step at which the loss was still at its
level, up to one percent: the update of that step starts the rise. An **exceedance** is a step with ``lr > critical_lr``. A
spike with an exceedance at its onset (or within the momentum horizon before it) is a **catapult**, one without is
**unexplained**, one before which no critical learning rate was measured is **unknown**, and one that is not finite, or not
back within the horizon of its opening, is a **divergence**.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float

FACTORS = (1.2, 1.5, 2.0, 3.0, 5.0)  # counts are always given on this grid, so that no result hangs on one threshold
_ONSET = 0.01  # a change below one percent does not start a rise: it is rounding, batch noise, or the flat bottom of a curve
KINDS = ("none", "catapult", "unexplained", "divergence", "unknown")


class Event(NamedTuple):
    """One spike. As arrays inside jit (``kind`` indexes ``KINDS``), as Python numbers from :func:`find_events`."""

    kind: int | str
    onset: int  # step whose update starts the rise
    peak: int  # step of the largest loss
    end: int  # step at which the loss is back, -1 while it is not
    loss_onset: float
    loss_peak: float
    peak_ratio: float  # loss_peak / level before the spike
    share_top: float  # share of the rise, onset to peak, inside the top-k eigenspace; NaN without both parts of the split
    lr: float  # at onset
    critical_lr: float  # at onset
    lambda_max_before: float  # at onset
    lambda_max_after: float  # at end


class _Moment(NamedTuple):
    step: Array
    loss: Array
    loss_top: Array
    loss_rest: Array
    lr: Array
    critical_lr: Array
    lambda_max: Array
    critical: Array  # an exceedance here or within the momentum horizon before


class DetectorState(NamedTuple):
    step: Array  # of the next update
    level: Array  # running minimum since the last spike closed
    is_open: Array
    is_over: Array  # a loss was not finite: nothing is told of what follows
    since_exceedance: Array  # steps
    critical_lr: Array  # last one known
    lambda_max: Array
    opened: Array  # step at which the open spike crossed the factor
    onset: _Moment  # last moment at the level
    peak: _Moment
    closed: Array  # spikes closed so far


class Detector(NamedTuple):
    """Online detector, for use inside a training step; works under jit, vmap and scan."""

    init: Callable  # () -> state
    # (state, loss, lr, critical_lr, lambda_max=nan, loss_top=nan, loss_rest=nan) -> (state, event); kind 0: nothing closed
    update: Callable
    finish: Callable  # state -> event that is still open; kind 0: none


def detector(*, factor: float = 1.5, delta: float = 0.1, horizon: int = 1000, momentum_horizon: int = 0) -> Detector:
    """Makes an online spike detector.

    Args:
      factor: a spike opens above ``factor`` times the level; more than ``1 + delta``.
      delta: a spike closes at ``1 + delta`` times the level; above 0.
      horizon: steps from its opening after which a spike that has not closed is a divergence; at least 1.
      momentum_horizon: steps before the onset within which an exceedance still explains it; 0 without momentum.

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

    return _detector(np.float32(factor), np.float32(delta), np.int32(horizon), np.int32(momentum_horizon))


def _detector(factor, delta, horizon, momentum_horizon) -> Detector:
    """The detector itself; its settings may be traced."""
    number = jnp.float32
    nan, zero = number(jnp.nan), jnp.int32(0)
    nowhere = _Moment(jnp.int32(-1), nan, nan, nan, nan, nan, nan, jnp.asarray(False))
    far = jnp.int32(np.iinfo(np.int32).max // 2)

    def init() -> DetectorState:
        no = jnp.asarray(False)
        return DetectorState(zero, number(jnp.inf), no, no, far, nan, nan, zero, nowhere, nowhere, zero)

    def cause(onset: _Moment):
        return jnp.where(onset.critical, 1, jnp.where(jnp.isnan(onset.critical_lr), 4, 2))

    def event(kind, state: DetectorState, end, lambda_max) -> Event:
        onset, peak = state.onset, state.peak
        inside, outside = peak.loss_top - onset.loss_top, peak.loss_rest - onset.loss_rest
        return Event(
            kind=jnp.int32(kind),
            onset=onset.step,
            peak=peak.step,
            end=jnp.int32(end),
            loss_onset=onset.loss,
            loss_peak=peak.loss,
            peak_ratio=peak.loss / state.level,
            share_top=inside / (inside + outside),
            lr=onset.lr,
            critical_lr=onset.critical_lr,
            lambda_max_before=onset.lambda_max,
            lambda_max_after=lambda_max,
        )

    def update(state: DetectorState, loss, lr, critical_lr, lambda_max=nan, loss_top=nan, loss_rest=nan):
        loss, lr, critical_lr, lambda_max, loss_top, loss_rest = (
            jnp.asarray(v).astype(number) for v in (loss, lr, critical_lr, lambda_max, loss_top, loss_rest)
        )
        # A critical lr that was not measured at this step is the last one that was.
        critical_lr = jnp.where(jnp.isnan(critical_lr), state.critical_lr, critical_lr)
        lambda_max = jnp.where(jnp.isnan(lambda_max), state.lambda_max, lambda_max)
        since = jnp.where(lr > critical_lr, 0, jnp.minimum(state.since_exceedance + 1, far))
        now = _Moment(state.step, loss, loss_top, loss_rest, lr, critical_lr, lambda_max, since <= momentum_horizon)
        pick = lambda condition, a, b: jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)

        finite = jnp.isfinite(loss)
        level = jnp.where(state.is_open | ~finite, state.level, jnp.minimum(state.level, loss))
        at_level = finite & (loss <= (1 + delta) * level)
        at_bottom = finite & (loss <= (1 + _ONSET) * level)
        onset = pick((~state.is_open & at_bottom) | (state.onset.step < 0), now, state.onset)
        is_open = state.is_open | ~(finite & (loss <= factor * level))
        opened = jnp.where(state.is_open, state.opened, state.step)
        higher = ~state.is_open | (loss > state.peak.loss) | ~finite
        peak = pick(is_open & higher, now, state.peak)

        back = is_open & at_level
        lost = is_open & ~back & (~finite | (state.step - opened >= horizon))
        kind = jnp.where(back, cause(onset), jnp.where(lost, 3, 0))
        kind = jnp.where(state.is_over, 0, kind)
        mid = state._replace(level=level, onset=onset, peak=peak)
        closed = event(kind, mid, jnp.where(back, state.step, -1), lambda_max)

        ends = back | lost
        new = DetectorState(
            step=state.step + 1,
            level=jnp.where(ends, loss, level),
            is_open=is_open & ~ends,
            is_over=state.is_over | ~finite,
            since_exceedance=since,
            critical_lr=critical_lr,
            lambda_max=lambda_max,
            opened=opened,
            onset=pick(ends, now, onset),
            peak=peak,
            closed=state.closed + (kind > 0),
        )
        frozen = state._replace(step=state.step + 1)
        return pick(state.is_over, frozen, new), closed

    def finish(state: DetectorState) -> Event:
        kind = jnp.where(state.is_open & ~state.is_over, cause(state.onset), 0)
        return event(kind, state, -1, nan)

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
) -> list[Event]:
    """Spikes of a saved loss series, in order, the last one perhaps still open (``end == -1``).

    Runs the online :func:`detector` over the series, so both give the same events. Every value is taken before the update
    of its step. A ``critical_lr`` of NaN (not measured at that step) stands for the last one that was measured.

    Args:
      loss, lr, critical_lr: series of one length.
      lambda_max, loss_top, loss_rest: optional, for the attributes of the events. The share of a rise in the top eigenspace is
        taken of both parts together: for ``mse`` they are the loss, for other losses half the Newton decrement.
      factor, delta, horizon, momentum_horizon: see :func:`detector`.

    Raises:
      ValueError: series that are not one-dimensional or of unequal length; an argument out of its range.

    >>> import numpy as np
    >>> loss = np.array([1.0, 2.0, 3.0, 1.5, 1.0, 0.5])
    >>> (event,) = find_events(loss, np.full(6, 2.0), np.full(6, 1.0))
    >>> event.kind, event.onset, event.peak, event.end, event.peak_ratio
    ('catapult', 0, 2, 4, 3.0)
    """
    detector(factor=factor, delta=delta, horizon=horizon, momentum_horizon=momentum_horizon)  # checks its arguments
    settings = (np.float32(factor), np.float32(delta), np.int32(horizon), np.int32(momentum_horizon))
    loss = np.asarray(loss, np.float32)
    if loss.ndim != 1:
        raise ValueError(f"loss has shape {loss.shape}; allowed: one-dimensional")
    missing = np.full(loss.shape, np.nan, np.float32)
    named = {"lr": lr, "critical_lr": critical_lr, "lambda_max": lambda_max, "loss_top": loss_top, "loss_rest": loss_rest}
    series = {name: missing if value is None else np.asarray(value, np.float32) for name, value in named.items()}
    for name, value in series.items():
        if value.shape != loss.shape:
            raise ValueError(f"{name} has shape {value.shape}; allowed: {loss.shape}, that of loss")
    closed, last = _scan(settings, loss, *series.values())
    events = [*zip(*map(np.asarray, closed), strict=True), tuple(map(np.asarray, last))]
    return [_as_numbers(Event(*event)) for event in events if event[0] > 0]


@jax.jit
def _scan(settings, *series):
    d = _detector(*settings)
    state, events = jax.lax.scan(lambda state, values: d.update(state, *values), d.init(), series)
    return events, d.finish(state)


def _as_numbers(event: Event) -> Event:
    numbers = Event(*(value.item() for value in event))
    return numbers._replace(kind=KINDS[numbers.kind])


def count_spikes(
    loss: Float[Array, " t"], *, factors: Sequence[float] = FACTORS, delta: float = 0.1, horizon: int = 1000
) -> dict[float, int]:
    """Number of spikes for each factor of a grid.

    Raises:
      ValueError: as :func:`find_events`.

    >>> import numpy as np
    >>> count_spikes(np.array([1.0, 1.8, 1.0, 4.0, 1.0]))
    {1.2: 2, 1.5: 2, 2.0: 1, 3.0: 1, 5.0: 0}
    """
    none = np.full(np.shape(loss), np.nan)
    return {f: len(find_events(loss, none, none, factor=f, delta=delta, horizon=horizon)) for f in factors}


class Prediction(NamedTuple):
    """How well one yes/no series predicts another."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int
    precision: float  # of the steps predicted, the share that happened; NaN if none was predicted
    recall: float  # of the steps that happened, the share predicted; NaN if none happened
    f1: float
    base_rate: float  # share of all steps at which it happened: the precision of a blind guess


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
