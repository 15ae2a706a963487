"""Spikes of a saved series against a slow reading of their definition."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catapult_jax.spikes import FACTORS, count_spikes, dead_from, find_events
from tests.helpers_events import online


def last_measured(values):
    measured = [v for v in values if not math.isnan(v)]
    return measured[-1] if measured else math.nan


def first_measured(values):
    return last_measured(values[::-1])


def events_by_definition(loss, lr, critical, lam, *, factor, delta, horizon, momentum_horizon):
    """The definition, read from lists: one pass for each event, from the step at which the previous event ended."""
    loss, lr, critical, lam = ([float(v) for v in values] for values in (loss, lr, critical, lam))
    n, begin, events = len(loss), 0, []
    last = next((s for s in range(n) if not math.isfinite(loss[s])), n)  # nothing counts after a loss that is not finite
    exceeds = lambda s: 0 <= s < n and lr[s] > last_measured(critical[: s + 1])
    while begin < n:
        lowest = lambda s, begin=begin: min(loss[begin : s + 1])
        opened = next((s for s in range(begin, n) if not loss[s] <= factor * lowest(s) or not math.isfinite(loss[s])), None)
        if opened is None:
            break
        before = [s for s in range(begin, opened) if loss[s] <= 1.01 * lowest(s)]
        onset = before[-1] if before else opened
        level = lowest(opened - 1) if before else math.inf
        for t in range(opened, n):
            peak = max(range(opened, t + 1), key=lambda s: loss[s])
            finite = math.isfinite(loss[t])
            closed = finite and loss[t] <= level * (loss[peak] / loss[t] if loss[t] else 1)
            if not finite or closed or t - opened >= horizon:
                break
        else:
            t, closed, finite = n, False, True
        if not finite:
            events.append({"kind": "divergence", "onset": onset, "peak": t, "end": -1})
            break
        way = range(onset, peak + 1)
        hit = any(exceeds(s) for s in range(onset - momentum_horizon, peak + 1))
        is_measured = not math.isnan(last_measured(critical[: onset + 1]))
        over = [2 * math.log(2 * lr[s] / last_measured(critical[: s + 1]) - 1) if exceeds(s) else 0.0 for s in way]
        expired = t < n and not closed
        all_measured = not any(math.isnan(critical[s]) for s in range(max(onset - momentum_horizon, 0), peak + 1))
        kind = "divergence" if expired else "catapult" if hit else "unexplained" if all_measured else "unknown"
        event = {"kind": kind, "onset": onset, "peak": peak, "end": t if closed else -1, "ended": t, "level": level}
        event |= {"ratio": loss[peak] / level if level else math.inf, "overshoot": sum(over) if is_measured else math.nan}
        event["before"] = last_measured(lam[begin : onset + 1])
        back = [s for s in range(peak + 1, last) if loss[s] <= (1 + delta) * level]
        event["returned"] = -1 if not back or (not closed and back[0] > t) else back[0]
        events.append(event)
        begin = t
    for event, after in zip(events, [*events[1:], {"onset": n - 1}][: len(events)], strict=True):
        if "before" not in event:
            continue
        t = event["ended"]
        event["after"] = first_measured(lam[t : after["onset"] + 1])
        measured = [s for s in range(n) if not math.isnan(lam[s])]
        zeros = [s for s in measured if all(lam[later] == 0 for later in measured if later >= s)]
        if zeros and 0 < loss[-1] < math.inf and event["onset"] < zeros[0] <= after["onset"]:
            if all(lam[s] == 0 for s in measured if t <= s):
                event |= {"kind": "death", "after": 0.0}
    return events


def assert_same_event(ours, theirs):
    assert (ours.kind, ours.onset, ours.peak, ours.end) == tuple(theirs[k] for k in ("kind", "onset", "peak", "end"))
    if not math.isfinite(ours.loss_peak):
        return
    assert ours.returned == theirs["returned"]
    assert (ours.level, ours.peak_ratio) == pytest.approx((theirs["level"], theirs["ratio"]), rel=1e-6)
    np.testing.assert_allclose(ours.overshoot, theirs["overshoot"], rtol=1e-4, atol=1e-6)  # a sum of logarithms in 32 bits
    np.testing.assert_equal(ours.lambda_max_before, theirs["before"])
    if ours.end >= 0 or ours.kind == "death":
        np.testing.assert_equal(ours.lambda_max_after, theirs["after"])


# Powers of two and thresholds that no product of them meets, so that rounding decides nothing.
_losses = st.lists(
    st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 32.0, float("nan"), float("inf")]), min_size=1, max_size=40
)


_SIZE = 48  # one length for all examples, so that one compiled program serves them


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    loss=_losses,
    seed=st.integers(0, 1000),
    momentum_horizon=st.sampled_from([0, 2]),
    horizon=st.sampled_from([3, 100]),
    lam=st.sampled_from([(1.0,), (1.0, 0.0), (1.0, 0.0, math.nan), (1.0, math.nan)]),
)
def test_find_events_by_definition(loss, seed, momentum_horizon, horizon, lam):
    rng = np.random.default_rng(seed)
    loss = np.array(loss + [loss[-1]] * (_SIZE - len(loss)), np.float32)
    lr, critical = np.ones(_SIZE, np.float32), rng.choice([0.5, 0.8, 2.0, np.nan], _SIZE).astype(np.float32)
    lam = rng.choice(lam, _SIZE).astype(np.float32)
    kwargs = dict(factor=1.5, delta=0.1, horizon=horizon, momentum_horizon=momentum_horizon)
    ours, theirs = (
        find_events(loss, lr, critical, lambda_max=lam, **kwargs),
        events_by_definition(loss, lr, critical, lam, **kwargs),
    )
    assert len(ours) == len(theirs)
    for event, expected in zip(ours, theirs, strict=True):
        assert_same_event(event, expected)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("factor", [1.2, 2.0])
def test_find_events_by_definition_on_random_walks(seed, factor):
    rng = np.random.default_rng(seed)
    loss = np.exp(np.cumsum(rng.standard_normal(90) * 0.3)).astype(np.float32)
    lr, critical = rng.uniform(0.5, 2, 90).astype(np.float32), rng.uniform(0.8, 3, 90).astype(np.float32)
    lam = np.where(rng.random(90) < 0.5, rng.random(90), np.nan).astype(np.float32)
    kwargs = dict(factor=factor, delta=0.1, horizon=25, momentum_horizon=0)
    ours, theirs = (
        find_events(loss, lr, critical, lambda_max=lam, **kwargs),
        events_by_definition(loss, lr, critical, lam, **kwargs),
    )
    assert len(ours) == len(theirs) > 2
    for event, expected in zip(ours, theirs, strict=True):
        assert_same_event(event, expected)


@pytest.mark.filterwarnings("ignore:the loss changes by")  # a random walk
@pytest.mark.parametrize("smoothing", [None, 0.8])
def test_find_events_equals_the_online_detector(smoothing):
    rng = np.random.default_rng(0)
    loss = np.exp(np.cumsum(rng.standard_normal(300) * 0.4)).astype(np.float32)
    lr, critical = np.ones(300, np.float32), rng.uniform(0.5, 1.5, 300).astype(np.float32)
    top, rest, lam = ((loss * 0.7).astype(np.float32), (loss * 0.2).astype(np.float32), (2 / critical).astype(np.float32))
    for factor in FACTORS:
        saved = find_events(
            loss, lr, critical, lambda_max=lam, loss_top=top, loss_rest=rest, factor=factor, smoothing=smoothing
        )
        events, closed = online(loss, lr, critical, lam, top, rest, factor=factor, smoothing=smoothing)
        assert len(saved) > 0
        assert closed == len([e for e in saved if e.end >= 0 or e.kind == "divergence"])
        # Only find_events sees a return after the close.
        assert all(event.returned in (-1, later.returned) for event, later in zip(events, saved, strict=True))
        events = [event._replace(returned=later.returned) for event, later in zip(events, saved, strict=True)]
        np.testing.assert_equal([e._asdict() for e in events], [e._asdict() for e in saved])


def test_find_events_attributes_of_a_catapult():
    loss = [1.0, 0.5, 0.502, 0.8, 2.0, 1.1, 0.9, 0.54, 0.3]
    top = [0.5, 0.1, 0.1, 0.4, 1.5, 0.6, 0.5, 0.05, 0.0]
    lr = [1, 1, 2, 2, 2, 2, 2, 2, 2]
    critical = [1.5] * 4 + [1.0, 4.0, 4.0, 4.0, 4.0]
    (event,) = find_events(
        loss,
        lr,
        critical,
        lambda_max=[2 / c for c in critical],
        loss_top=top,
        loss_rest=[a - b for a, b in zip(loss, top, strict=True)],
    )
    # 0.502 is still the level; half of the height from 0.5 to 2 is 1; 0.54 is back at 1.1 times the level.
    assert (event.kind, event.onset, event.peak, event.end, event.returned) == ("catapult", 2, 4, 6, 7)
    assert (event.level, event.loss_onset, event.loss_peak) == pytest.approx((0.5, 0.502, 2.0))
    assert event.peak_ratio == pytest.approx(4.0)
    assert event.fraction_top == pytest.approx(1.4 / 1.498, rel=1e-5)
    assert (event.lr, event.critical_lr) == (2.0, 1.5)
    assert event.overshoot == pytest.approx(2 * (2 * math.log(2 * 2 / 1.5 - 1) + math.log(2 * 2 / 1.0 - 1)), rel=1e-5)
    assert event.lambda_max_before == pytest.approx(2 / 1.5) and event.lambda_max_after == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("critical", "momentum_horizon", "kind"),
    [
        ([9, 0.5, 9, 9, 9, 9], 0, "catapult"),  # at the onset
        ([9, 9, 0.5, 9, 9, 9], 0, "catapult"),  # on the way
        ([9, 9, 9, 0.5, 9, 9], 0, "catapult"),  # at the peak
        ([9, 9, 9, 9, 0.5, 9], 0, "unexplained"),  # after it
        ([0.5, 9, 9, 9, 9, 9], 0, "unexplained"),  # before the onset
        ([0.5, 9, 9, 9, 9, 9], 1, "catapult"),  # but within the momentum horizon
        ([np.nan] * 6, 0, "unknown"),
        ([np.nan, np.nan, 9, 9, 9, 9], 0, "unknown"),  # not measured at the onset
        ([np.nan, np.nan, 0.5, 9, 9, 9], 0, "catapult"),
        ([9, 9, np.nan, 9, 9, 9], 0, "unknown"),  # not measured on the way
        ([9, 0.5, np.nan, 9, 9, 9], 0, "catapult"),
        ([np.nan, 9, 9, 9, np.nan, 9], 0, "unexplained"),  # measured at each step that counts
        ([np.nan, 9, 9, 9, 9, 9], 1, "unknown"),
    ],
)
def test_find_events_kind_by_the_exceedances_on_the_way(critical, momentum_horizon, kind):
    (event,) = find_events([2.0, 1.0, 1.7, 3.0, 1.5, 1.0], np.ones(6), critical, momentum_horizon=momentum_horizon)
    assert (event.onset, event.peak, event.end, event.kind) == (1, 3, 4, kind)


def test_find_events_above_a_risen_level_are_not_merged():
    """The loss outside of the top space rises, so the loss never comes back to the first level. Each rise is a spike."""
    loss = np.array([1.0, 6.0, 2.0, 8.0, 2.5, 9.0, 2.6, 2.6])
    events = find_events(loss, np.ones(8), np.full(8, 0.5))
    assert [(e.onset, e.peak, e.end, e.returned) for e in events] == [(0, 1, 2, -1), (2, 3, 4, -1), (4, 5, 6, 6)]


def test_find_events_of_open_spikes():
    (event,) = find_events([1.0, 4.0, 3.0], np.ones(3), np.full(3, 0.5))
    assert (event.kind, event.end, event.returned) == ("catapult", -1, -1)
    (event,) = find_events([1.0, 4.0, 3.0, 3.0], np.ones(4), np.full(4, 0.5), horizon=2)
    assert (event.kind, event.end) == ("divergence", -1)


def test_find_events_lambda_max_of_each_event_alone():
    """A value before the first spike is not used for the second one."""
    loss, nan = [1.0, 4.0, 1.0, 4.0, 1.0, 1.0], np.nan
    first, second = find_events(loss, np.ones(6), np.full(6, 0.5), lambda_max=[4.0, nan, nan, nan, nan, 2.0])
    assert (first.lambda_max_before, second.lambda_max_after) == (4.0, 2.0)
    assert np.isnan(first.lambda_max_after) and np.isnan(second.lambda_max_before)


def noisy_loss(spike_at=None, steps=600, seed=0):
    """A loss that falls to a constant, with noise as of small batches. After ``spike_at`` it is ten times as high and falls by 7 % a step."""
    t = np.arange(steps)
    level = 0.3 + 2 * np.exp(-t / 50)
    if spike_at is not None:
        level = level * (1 + 9 * np.where(t > spike_at, 0.93 ** (t - spike_at), 0))
    return level * np.exp(np.random.default_rng(seed).standard_normal(steps) * 0.35)


@pytest.mark.parametrize("factor", FACTORS[1:])
def test_find_events_smoothing_finds_no_spike_in_noise(factor):
    loss, ones = noisy_loss(), np.ones(600)
    with pytest.warns(UserWarning, match=r"give the training loss, or smoothing=0.98"):
        assert len(find_events(loss, ones, 2 * ones, factor=factor)) > 2
    assert find_events(loss, ones, 2 * ones, factor=factor, smoothing=0.98) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("smoothing", "delay"), [(0.95, 20), (0.98, 50)])
def test_find_events_smoothing_finds_a_spike_in_noise_within_its_delay(smoothing, delay, seed):
    loss, ones = noisy_loss(spike_at=400, seed=seed), np.ones(600)
    critical = np.where(np.arange(600) == 400, 0.5, 2.0)
    (event,) = find_events(loss, ones, critical, smoothing=smoothing)
    assert event.kind == "catapult"
    assert abs(event.onset - 400) <= delay and 400 < event.peak <= 400 + delay


def test_find_events_smoothing_keeps_the_fraction_top():
    """The parts are a constant fraction of the loss."""
    loss = np.concatenate([np.ones(30), np.linspace(1, 9, 30), np.ones(60)])
    (event,) = find_events(loss, np.ones(120), np.full(120, 2.0), loss_top=loss * 0.8, loss_rest=loss * 0.2, smoothing=0.9)
    assert event.fraction_top == pytest.approx(0.8, rel=1e-5)


NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("loss", "lam", "kind", "end"),
    [
        ([1, 20, 2e7, 1, 1, 1], [1, 9, 9, 0, 0, 0], "death", 3),  # at the close
        ([1, 20, 2e7, 1, 1, 1], [1, 9, 9, 0, 0, NAN], "death", 3),
        ([1, 20, 2e7, 1, 1, 1], [1, NAN, NAN, NAN, NAN, 0], "death", 3),  # measured later
        ([1, 20, 30, 30, 30, 30], [1, 9, 0, 0, 0, 0], "death", -1),  # at the peak of a spike that never closes
        ([1, 20, 2e7, 1, 1, 1], [1, 9, 9, 2, 0, 0], "catapult", 3),  # after the spike
        ([1, 20, 2e7, 1, 1, 1], [1, 0, 0, 1, 1, 1], "catapult", 3),  # not at its end
        ([1, 20, 2e7, 1, 1, 1], [1, 9, 9, 0, 1, 1], "catapult", 3),  # not to the end
        ([1, 20, 1, 20, 1, 1], [1, NAN, NAN, NAN, NAN, 0], "catapult", 2),  # in the second spike
        ([1, 20, 2e7, 0, 0, 0], [1, 9, 9, 0, 0, 0], "catapult", 3),  # a loss of zero is no death
        ([1, 20, 2e7, 1, 1, 1], [0, 0, 0, 0, 0, 0], "catapult", 3),  # dead before
    ],
)
def test_find_events_death_by_the_kernel(loss, lam, kind, end):
    event, *_ = find_events(loss, np.ones(6), np.full(6, 0.5), lambda_max=lam)
    assert (event.kind, event.end) == (kind, end)
    if kind == "death":
        assert event.lambda_max_after == 0


def test_find_events_death_rather_than_a_divergence():
    (event,) = find_events([1.0, 9, 9, 9, 9], np.ones(5), np.full(5, 0.5), lambda_max=[1.0, 5, 0, 0, 0], horizon=2)
    assert (event.kind, event.end) == ("death", -1)


@pytest.mark.parametrize(
    ("critical", "dead_steps", "kind"),
    [
        ([0.5, 0.5, 0.5, INF, INF, INF], 3, "death"),
        ([0.5, 0.5, 0.5, INF, INF, INF], 4, "catapult"),  # fewer than dead_steps
        ([0.5, 0.5, 0.5, INF, 0.5, 0.5], 1, "catapult"),  # one batch
        ([0.5, 0.5, 0.5, 0.5, INF, INF], 1, "catapult"),  # alive at the close
        ([0.5, 0.5, 0.5, NAN, INF, INF], 2, "death"),  # not measured at the close
        ([INF, INF, INF, INF, INF, INF], 3, "unexplained"),  # dead before
    ],
)
def test_find_events_death_by_the_critical_lr(critical, dead_steps, kind):
    (event,) = find_events([1, 20, 2e7, 1, 1, 1], np.ones(6), critical, dead_steps=dead_steps)
    assert event.kind == kind


@pytest.mark.parametrize(
    ("lam", "steps", "first"),
    [
        ([1, 1, 0, 0, 0], 1, 2),
        ([1, NAN, NAN, 0, NAN], 1, 3),
        ([1, 0, 1, 1, 1], 1, -1),
        ([1, 0, 1, 0, 0], 3, -1),
        ([0, 0, 0, 0, 0], 5, 0),
        ([NAN] * 5, 1, -1),
    ],
)
def test_dead_from_series(lam, steps, first):
    assert dead_from(lam, np.ones(5), steps=steps) == first
    assert dead_from(lam, np.zeros(5), steps=steps) == -1  # a loss of zero is no death
    assert dead_from(lam, np.full(5, np.inf), steps=steps) == -1  # a divergence is no death


def test_find_events_of_monotone_and_constant_losses():
    none = np.full(5, np.nan)
    assert find_events(np.linspace(2, 1, 5), none, none) == []
    assert find_events(np.ones(5), none, none) == []


def test_find_events_of_a_smooth_loss_does_not_warn():
    loss = np.concatenate([np.linspace(2, 1, 100), np.linspace(1, 3, 20), np.linspace(3, 1, 100)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(find_events(loss, np.ones(220), np.full(220, 0.5))) == 1


def test_count_spikes_falls_with_the_factor():
    loss = [1, 1.3, 1, 1.7, 1, 2.5, 1, 4, 1, 9, 1]
    assert count_spikes(np.array(loss)) == {1.2: 5, 1.5: 4, 2.0: 3, 3.0: 2, 5.0: 1}


@pytest.mark.filterwarnings("ignore:the loss changes by")  # a random walk
@pytest.mark.parametrize("smoothing", [None, 0.9])
def test_count_spikes_equals_the_number_of_events(smoothing):
    """Random walks that spike and diverge. The number of spikes does not depend on the critical lr."""
    rng, noise = np.random.default_rng(0), np.full(300, np.nan)
    for last in (300, 200):
        loss = np.exp(np.cumsum(rng.standard_normal(300) * 0.4)).astype(np.float32)
        loss[last:] = np.inf
        for critical in (noise, rng.uniform(0.5, 1.5, 300)):
            events = {
                f: find_events(
                    loss, np.ones(300), critical, factor=f, delta=min(0.1, (f - 1) / 2), horizon=40, smoothing=smoothing
                )
                for f in FACTORS
            }
            assert count_spikes(loss, horizon=40, smoothing=smoothing) == {f: len(of_factor) for f, of_factor in events.items()}
        assert len(events[1.2]) > 2


def test_find_events_refuses_bad_series():
    with pytest.raises(ValueError, match=r"lr has shape \(2,\); allowed: \(3,\)"):
        find_events(np.ones(3), np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="one-dimensional"):
        find_events(np.ones((3, 1)), np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match=r"loss=-1 at step 1; allowed: 0 or more"):
        find_events([1.0, -1.0, np.nan], np.ones(3), np.ones(3))
