"""What chance alone would give, against windows that are counted one by one and against scatter without a spike."""

import numpy as np
import pytest
import xarray

from catapult_jax import find_events
from catapult_jax.events import Event
from catapult_jax.report.analysis import run_events
from catapult_jax.report.chance import exceedance_by_chance, spikes_of_noise
from catapult_jax.report.members import Settings
from catapult_jax.report.opening import finding_text
from catapult_jax.report.watched import doubts


def record_of(**series):
    return xarray.Dataset({name: (("member", "step"), np.atleast_2d(values)) for name, values in series.items()})


def spike(onset, peak, kind="catapult", end=None):
    return Event(kind, onset, peak, peak + 1 if end is None else end, *[1.0] * 11)


@pytest.mark.parametrize(("momentum", "memory"), [(0.0, 0), (0.9, 10)])
def test_exceedance_by_chance_is_the_fraction_of_all_windows(momentum, memory):
    above = np.random.default_rng(0).random(200) < 0.03
    record = record_of(lr=np.ones(200), critical_lr_batch=np.where(above, 0.5, 2.0), loss_train=np.ones(200))
    length = memory + 4  # from onset 50 to peak 53
    windows = [above[start : start + length].any() for start in range(200 - length + 1)]

    assert exceedance_by_chance(record, Settings(momentum=momentum), 0, spike(50, 53)) == pytest.approx(np.mean(windows))


def test_exceedance_by_chance_keeps_the_last_measured_critical_lr():
    nan = np.nan
    record = record_of(lr=np.ones(6), critical_lr_batch=[0.5, nan, nan, 2.0, nan, nan], loss_train=np.ones(6))

    assert exceedance_by_chance(record, Settings(), 0, spike(4, 4)) == 0.5


def test_spikes_of_noise_are_those_of_scatter_alone():
    """Losses of batches around a level that does not change, and around one with a spike of its own."""
    scatter = np.exp(0.5 * np.random.default_rng(0).normal(size=2000))
    rise = np.where((np.arange(2000) > 990) & (np.arange(2000) < 1200), 20.0, 1.0)
    settings = Settings(smoothing=0.9)

    alone, small = record_of(loss_batch=scatter), record_of(loss_batch=rise * scatter**0.4)
    found = [run_events(record, settings) for record in (alone, small)]

    assert 0.5 < spikes_of_noise(alone, settings, 0) / len(found[0][0]) < 2
    assert "The scatter of batches alone would make about" in doubts(alone, settings, found[0]).blocks[0].content["words"]
    assert len(found[1][0]) == 1 and not doubts(small, settings, found[1]).blocks
    assert spikes_of_noise(record_of(loss_train=scatter), settings, 0) == 0


def test_events_of_accumulated_batches_are_those_of_the_updates():
    """Three of four calls make no update: their ``event`` is NaN, and their loss is in no average."""
    loss = np.array([1.0, 1.0, 4.0, 3.0, 1.0, 1.0])
    calls = np.full(24, 9.0)
    calls[3::4] = loss
    event = np.full(24, np.nan)
    event[3::4] = 0
    record = record_of(
        loss_train=calls, lr=np.full(24, 2.0), critical_lr_batch=np.where(np.isnan(event), np.nan, 1.0), event=event
    )

    (expected,) = find_events(loss, np.full(6, 2.0), np.ones(6))
    ((found,),) = run_events(record, Settings())

    assert (found.kind, found.level, found.peak_ratio) == (expected.kind, expected.level, expected.peak_ratio)
    assert [found.onset, found.peak, found.end] == [4 * step + 3 for step in (expected.onset, expected.peak, expected.end)]


@pytest.mark.parametrize(
    ("end", "words"),
    [(3, "1 of 1 member has a catapult"), (-1, "1 of 1 member has a catapult, which is still open at the last step")],
)
def test_finding_text_of_a_spike_that_is_still_open(end, words):
    record = record_of(loss_train=[1.0, 3.0, 3.0], lr=[2.0] * 3, critical_lr_batch=[1.0] * 3)

    assert finding_text(record, Settings(), [[spike(0, 1, end=end)]]).startswith(words + ";")
