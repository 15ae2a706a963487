"""Spikes of a saved loss series: the events, their number for a grid of factors, and dead networks.

:mod:`catapult_jax.events` defines what an event is. The series go through the online detector, so both find the same events.

>>> find_events([1.0, 3.0, 1.0], [2.0, 2.0, 2.0], [1.0, 1.0, 1.0])[0].kind
'catapult'
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from catapult_jax.detection import DetectorSettings, detector_settings, detector_with
from catapult_jax.events import Event, to_python

FACTORS = (1.2, 1.5, 2.0, 3.0, 5.0)  # counts are always given on this grid, so that no result depends on one threshold
# Training losses change less than this from step to step (median); fewer steps than these do not show it.
_NOISE, _NOISE_STEPS = 0.1, 100


def find_events(
    loss: ArrayLike,
    lr: ArrayLike,
    critical_lr: ArrayLike,
    *,
    lambda_max: ArrayLike | None = None,
    loss_top: ArrayLike | None = None,
    loss_rest: ArrayLike | None = None,
    factor: float = 1.5,
    delta: float = 0.1,
    horizon: int = 1000,
    momentum_horizon: int = 0,
    smoothing: float | None = None,
    dead_steps: int = 3,
) -> list[Event]:
    """Spikes of a saved loss series, in order. The last one may still be open (``end == -1``).

    Runs the online :func:`catapult_jax.detector` over the series, so both give the same events. Then it adds what only later steps show:
    ``returned`` of a spike that closed above its level, ``lambda_max_after`` if it was not measured at the close, and whether a kernel of
    zero stays zero to the end (:func:`dead_from`). Only then the event is a death.

    Every value belongs to the weights before the update of its step. Where ``critical_lr`` is NaN (not measured at that step), the last
    measured value holds.

    Give the loss of the training set. The losses of random batches scatter, and the scatter looks like spikes: pass ``smoothing`` with
    them. If the loss changes by more than 10 % from one step to the next (median), a warning says so.

    Args:
      loss, lr, critical_lr: series of one length, ``(t,)``; a loss is 0 or more, or not finite.
      lambda_max: of the training set, of a fixed probe, or of the one batch that every step takes; never of different batches. None: not
        measured.
      loss_top, loss_rest: parts of the loss inside and outside the top eigenspace. For ``mse`` they add up to the loss, for other losses
        to half the Newton decrement; the fraction of a rise refers to their sum. None: not measured.
      factor, delta, horizon, momentum_horizon, smoothing: see :func:`catapult_jax.detector`.
      dead_steps: without ``lambda_max``, an infinite critical lr shows that the kernel is zero. One random batch may have such a kernel by
        chance. An event is a death if at least this many measured values, up to the end of the series, are infinite. Give the number of
        steps of an epoch.

    Returns:
      One event for each spike, as Python numbers.

    Raises:
      ValueError: a series is not one-dimensional, lengths differ, a loss is below 0, or an argument is out of its range.

    >>> import numpy as np
    >>> loss = np.array([1.0, 2.0, 3.0, 1.5, 1.0, 0.5])
    >>> (event,) = find_events(loss, np.full(6, 2.0), np.full(6, 1.5))
    >>> event.kind, event.onset, event.peak, event.end, event.returned, event.peak_ratio
    ('catapult', 0, 2, 3, 4, 3.0)
    >>> print(event)
    Catapult: the loss rises from 1 at step 0 to 3 at step 2 (3 times its level), comes down half of its height by step 3 and is back at its level at step 4; lr 2 is 1.33 times the critical lr 1.5.
    """
    settings = detector_settings(factor, delta, horizon, momentum_horizon, smoothing)
    losses = _checked_loss(loss)
    missing = np.full(losses.shape, np.nan, np.float32)
    arguments = {"lr": lr, "critical_lr": critical_lr, "lambda_max": lambda_max, "loss_top": loss_top, "loss_rest": loss_rest}
    series = {name: missing if value is None else np.asarray(value, np.float32) for name, value in arguments.items()}
    for name, value in series.items():
        if value.shape != losses.shape:
            raise ValueError(f"{name} has shape {value.shape}; allowed: {losses.shape}, that of loss")
    with jax.debug_nans(False):  # what is not measured is NaN
        (ended, smoothed), last = _scan(settings, losses, *series.values())
    ended = Event(*map(np.asarray, ended))
    events = [(int(t), to_python(Event(*(np.asarray(value)[t] for value in ended)))) for t in np.flatnonzero(ended.kind)]
    if int(last.kind):
        events.append((len(losses), to_python(last)))
    if events and smoothing is None:
        _warn_of_noise(losses)
    return _with_later_steps(events, np.asarray(smoothed), losses, series, 1 + np.float32(delta), dead_steps)


def dead_from(lambda_max: ArrayLike, loss: ArrayLike, *, steps: int = 1) -> int:
    """First step from which on a network is dead.

    A network is dead if ``lambda_max`` is exactly zero at every later step at which it was measured, up to the end of the series. Then
    the gradient is zero. If the loss at the end is exactly zero, the network is not dead: then the loss has no curvature.

    Args:
      lambda_max: largest eigenvalue of the kernel, ``(t,)``; NaN: not measured at that step.
      loss: of the same steps.
      steps: smallest number of measured zeros. 1 for the kernel of the training set or of a probe. One random batch may have a kernel of
        zero by chance: for kernels of batches give the number of steps of an epoch.

    Returns:
      The step; -1: the network is not dead.

    >>> nan = float("nan")
    >>> dead_from([3.0, nan, 0.0, nan, 0.0], [1.0, 2.0, 2.0, 2.0, 2.0]), dead_from([3.0, 0.0, 3.0], [1.0, 1.0, 1.0])
    (2, -1)
    """
    kernel, losses = np.asarray(lambda_max, float), np.asarray(loss, float)
    if kernel.shape != losses.shape or kernel.ndim != 1:
        raise ValueError(f"loss has shape {losses.shape}; allowed: {kernel.shape}, that of lambda_max, with one axis")
    alive = np.flatnonzero(~np.isnan(kernel) & (kernel != 0))
    first = int(alive[-1]) + 1 if len(alive) else 0
    zeros = np.flatnonzero(kernel[first:] == 0) + first
    if len(zeros) < max(steps, 1) or not (np.isfinite(losses[-1]) and losses[-1] > 0):
        return -1
    return int(zeros[0])


def count_spikes(
    loss: ArrayLike,
    *,
    factors: Sequence[float] = FACTORS,
    delta: float = 0.1,
    horizon: int = 1000,
    smoothing: float | None = None,
) -> dict[float, int]:
    """Number of spikes for each factor of a grid, all in one pass over the series.

    These are the numbers of events that :func:`find_events` finds with ``delta`` at most half of ``factor - 1``.

    Args:
      loss: series, ``(t,)``; each value is 0 or more, or not finite.
      factors: a spike opens above a factor times the level.
      delta, horizon, smoothing: see :func:`catapult_jax.detector`.

    Returns:
      factor -> number of spikes.

    Raises:
      ValueError: as :func:`find_events`.

    >>> import numpy as np
    >>> count_spikes(np.array([1.0, 1.8, 1.0, 4.0, 1.0]))
    {1.2: 2, 1.5: 2, 2.0: 1, 3.0: 1, 5.0: 0}
    """
    losses = _checked_loss(loss)
    if bad := [f for f in factors if not f > 1]:
        raise ValueError(f"factors has {bad[0]!r}; allowed: numbers above 1")
    rows = [detector_settings(f, min(delta, (f - 1) / 2), horizon, 0, smoothing) for f in factors]
    if not rows:
        return {}
    counts = np.asarray(_count(jax.tree.map(lambda *values: np.stack(values), *rows), losses))
    if counts.any() and smoothing is None:
        _warn_of_noise(losses)
    return dict(zip(factors, counts.tolist(), strict=True))


def _checked_loss(loss) -> np.ndarray:
    loss = np.asarray(loss, np.float32)
    if loss.ndim != 1:
        raise ValueError(f"loss has shape {loss.shape}; allowed: one-dimensional")
    if (loss < 0).any() and np.isfinite(loss[loss < 0]).any():
        raise ValueError(f"loss={loss[np.isfinite(loss)].min():.3g} at step {np.nanargmin(loss)}; allowed: 0 or more")
    return loss


@jax.jit
def _scan(settings: DetectorSettings, *series):
    """``((events, smoothed loss) of each step, open event)``. Kind 0: no event ends at that step."""
    d = detector_with(settings, tells_deaths=False)

    def step(state, values):
        state, event = d.update(state, *values)
        return state, (event, state.loss)

    state, steps = jax.lax.scan(step, d.init(), series)
    return steps, d.finish(state)


@jax.jit
def _count(settings: DetectorSettings, loss):
    """Number of spikes for each row of stacked settings."""
    missing = jnp.full_like(loss, jnp.nan)

    def count(settings):
        (ended, _), last = _scan(settings, loss, *[missing] * 5)
        return (ended.kind > 0).sum() + (last.kind > 0)

    return jax.vmap(count)(settings)


def _warn_of_noise(loss: np.ndarray) -> None:
    positive = loss[np.isfinite(loss) & (loss > 0)]
    if len(positive) < _NOISE_STEPS:
        return
    noise = np.expm1(np.median(np.abs(np.diff(np.log(positive)))))
    if noise > _NOISE:
        warnings.warn(
            f"the loss changes by {noise:.0%} from one step to the next (median); if it is the loss of random batches, its scatter makes "
            "spikes: give the training loss, or smoothing=0.98",
            stacklevel=3,
        )


def _with_later_steps(
    events: list[tuple[int, Event]],
    smoothed: np.ndarray,
    loss: np.ndarray,
    series: dict[str, np.ndarray],
    back: np.float32,
    dead_steps: int,
) -> list[Event]:
    """The events with ``returned``, ``lambda_max_after`` and deaths from the steps after their end.

    ``events`` holds pairs (step at which the event ended, event). A loss of ``back`` times the level has returned.
    """
    kernel, dead = _kernel_and_death(series, loss, dead_steps)
    completed = []
    for i, (end, event) in enumerate(events):
        if event.end >= 0 and event.returned < 0:
            later = np.flatnonzero(smoothed[end:] <= back * np.float32(event.level))
            event = event._replace(returned=int(end + later[0]) if len(later) else -1)
        next_onset = int(events[i + 1][1].onset) if i + 1 < len(events) else len(loss)
        values = series["lambda_max"][end : next_onset + 1]
        values = values[~np.isnan(values)]
        if event.end >= 0 and len(values):
            event = event._replace(lambda_max_after=float(values[0]))
        # Alive at the onset, not measured alive from the end on, and dead before the loss rises again.
        died = event.onset < dead <= next_onset and not np.nan_to_num(kernel[end:dead]).any()
        if died and math.isfinite(event.loss_peak):
            event = event._replace(kind="death", lambda_max_after=0.0)
        completed.append(event)
    return completed


def _kernel_and_death(series: dict[str, np.ndarray], loss: np.ndarray, dead_steps: int) -> tuple[np.ndarray, int]:
    """A series that is zero where the kernel is zero (NaN: not measured), and the step from which on the network is dead."""
    lambda_max, critical_lr = series["lambda_max"], series["critical_lr"]
    if not np.isnan(lambda_max).all():
        return lambda_max, dead_from(lambda_max, loss)
    kernel = np.where(np.isnan(critical_lr), np.nan, np.where(np.isinf(critical_lr), 0.0, 1.0))
    return kernel, dead_from(kernel, loss, steps=dead_steps)
