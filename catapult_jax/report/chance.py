"""What chance alone would give: spikes from the scatter of batches, and exceedances in windows at any place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from catapult_jax.detection import detector_settings
from catapult_jax.detection import momentum_horizon as horizon_of
from catapult_jax.events import Event
from catapult_jax.report.analysis import seen_steps
from catapult_jax.report.members import Settings, has_events, running, series_or_nan, spike_series
from catapult_jax.spikes import count_spikes

if TYPE_CHECKING:
    import xarray

_LEAST_STEPS = 100  # for an estimate of the scatter
_DRAWS = 5  # of the noise
_NORMAL = 1.4826  # standard deviation of a normal distribution over its median absolute deviation


def exceedance_by_chance(record: xarray.Dataset, settings: Settings, m: int, event: Event) -> float:
    """How often a window as long as a spike has an exceedance, wherever it lies: with that chance any spike is a catapult.

    The window is that of :mod:`catapult_jax.events`: from onset to peak, with the momentum horizon and the delay of the average before it.

    Args:
      record: with ``lr`` and ``critical_lr_batch``.
      settings: of the run.
      m: number of the member.
      event: one of its spikes.

    Returns:
      The fraction of all windows in the steps at which the member is running; NaN if there are none.

    >>> import xarray
    >>> series = {"lr": [[2.0] * 4], "critical_lr_batch": [[1.0, 3.0, 3.0, 3.0]]}
    >>> record = xarray.Dataset({name: (("member", "step"), values) for name, values in series.items()})
    >>> exceedance_by_chance(record, Settings(), 0, Event("unexplained", 1, 2, 3, *[0] * 11))
    0.3333333333333333
    """
    is_seen = np.zeros(record.sizes["step"], bool)
    is_seen[seen_steps(record, m)] = True
    steps = np.flatnonzero(is_seen & running(record, settings, m))
    if not len(steps):
        return float("nan")
    critical_lr = series_or_nan(record, "critical_lr_batch")[m, steps]
    last = np.maximum.accumulate(np.where(np.isnan(critical_lr), 0, np.arange(len(steps))))  # the last measured value holds
    above = series_or_nan(record, "lr")[m, steps] > critical_lr[last]
    smoothing = None if "loss_train" in record else settings.smoothing
    memory = int(
        detector_settings(settings.factor, (settings.factor - 1) / 2, 1, horizon_of(settings.momentum), smoothing).memory
    )
    rise = int(((steps >= event.onset) & (steps <= event.peak)).sum())
    windows = np.lib.stride_tricks.sliding_window_view(above, min(memory + rise, len(steps)))
    return float(windows.any(1).mean())


def spikes_of_noise(record: xarray.Dataset, settings: Settings, m: int) -> float:
    """How many spikes the scatter of the batches alone makes: a flat loss with log-normal noise that changes as much from step to step.

    The median change sets the noise, so a spike of many steps does not count as noise.

    Args:
      record: with the loss of :func:`catapult_jax.report.members.spike_series`.
      settings: of the run.
      m: number of the member.

    Returns:
      Their number, the mean of five draws; 0 where the loss is not averaged, as that of the training set, and below 100 steps.

    >>> import xarray
    >>> loss = np.exp(0.5 * np.random.default_rng(0).normal(size=(1, 1000)))
    >>> record = xarray.Dataset({"loss_batch": (("member", "step"), loss)})
    >>> spikes_of_noise(record, Settings(smoothing=0.9), 0) > 3, spikes_of_noise(record, Settings(smoothing=0.98), 0) < 1
    (True, True)
    """
    if "loss_train" in record or settings.smoothing is None or not has_events(record, settings):
        return 0.0
    loss = record[spike_series(record)].values[m, seen_steps(record, m)]
    logs = np.log(loss[np.isfinite(loss) & (loss > 0)], dtype=np.float64)
    if len(logs) < _LEAST_STEPS:
        return 0.0
    changes = np.diff(logs)
    deviation = _NORMAL * np.median(np.abs(changes - np.median(changes))) / 2**0.5  # of one loss: a change has two
    draws = np.exp(deviation * np.random.default_rng(0).normal(size=(_DRAWS, len(logs))))
    options = {"factors": (settings.factor,), "horizon": settings.horizon, "smoothing": settings.smoothing}
    return float(np.mean([count_spikes(draw, **options)[settings.factor] for draw in draws]))
