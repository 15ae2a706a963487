"""Events against a slow reading of their definition, online and from a saved series."""

import json
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import catapult_jax
from catapult_jax.events import (
    FACTORS,
    KINDS,
    SPIKE_SCORE,
    Event,
    count_spikes,
    dead_from,
    detector,
    find_events,
    prediction,
    spike_score,
    to_python,
)


def last_known(values):
    known = [v for v in values if not math.isnan(v)]
    return known[-1] if known else math.nan


def first_known(values):
    return last_known(values[::-1])


def plain(loss, lr, critical, lam, *, factor, delta, horizon, momentum_horizon):
    """The definition, read from lists: one pass for each event, from the step at which the one before ended."""
    loss, lr, critical, lam = ([float(v) for v in values] for values in (loss, lr, critical, lam))
    n, begin, found = len(loss), 0, []
    exceeds = lambda s: 0 <= s < n and lr[s] > last_known(critical[: s + 1])
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
            found.append({"kind": "divergence", "onset": onset, "peak": t, "end": -1})
            break
        way = range(onset, peak + 1)
        hit = any(exceeds(s) for s in range(onset - momentum_horizon, peak + 1))
        seen = not math.isnan(last_known(critical[: onset + 1]))
        over = [2 * math.log(2 * lr[s] / last_known(critical[: s + 1]) - 1) if exceeds(s) else 0.0 for s in way]
        expired = t < n and not closed
        kind = "divergence" if expired else "catapult" if hit else "unexplained" if seen else "unknown"
        one = {"kind": kind, "onset": onset, "peak": peak, "end": t if closed else -1, "ended": t, "level": level}
        one |= {"ratio": loss[peak] / level if level else math.inf, "overshoot": sum(over) if seen else math.nan}
        one["before"] = last_known(lam[begin : onset + 1])
        back = [s for s in range(peak + 1, n) if loss[s] <= (1 + delta) * level]
        one["returned"] = -1 if not back or (not closed and back[0] > t) else back[0]
        found.append(one)
        begin = t
    for one, after in zip(found, [*found[1:], {"onset": n - 1}][: len(found)], strict=True):
        if "before" not in one:
            continue
        t = one["ended"]
        one["after"] = first_known(lam[t : after["onset"] + 1])
        known = [s for s in range(n) if not math.isnan(lam[s])]
        zeros = [s for s in known if all(lam[later] == 0 for later in known if later >= s)]
        if zeros and 0 < loss[-1] < math.inf and one["onset"] < zeros[0] <= after["onset"]:
            if all(lam[s] == 0 for s in known if t <= s):
                one |= {"kind": "death", "after": 0.0}
    return found


def same(ours, theirs):
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
def test_find_events_is_the_plain_definition(loss, seed, momentum_horizon, horizon, lam):
    rng = np.random.default_rng(seed)
    loss = np.array(loss + [loss[-1]] * (_SIZE - len(loss)), np.float32)
    lr, critical = np.ones(_SIZE, np.float32), rng.choice([0.5, 0.8, 2.0, np.nan], _SIZE).astype(np.float32)
    lam = rng.choice(lam, _SIZE).astype(np.float32)
    kwargs = dict(factor=1.5, delta=0.1, horizon=horizon, momentum_horizon=momentum_horizon)
    ours, theirs = find_events(loss, lr, critical, lambda_max=lam, **kwargs), plain(loss, lr, critical, lam, **kwargs)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        same(one, other)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("factor", [1.2, 2.0])
def test_find_events_is_the_plain_definition_on_random_walks(seed, factor):
    rng = np.random.default_rng(seed)
    loss = np.exp(np.cumsum(rng.standard_normal(90) * 0.3)).astype(np.float32)
    lr, critical = rng.uniform(0.5, 2, 90).astype(np.float32), rng.uniform(0.8, 3, 90).astype(np.float32)
    lam = np.where(rng.random(90) < 0.5, rng.random(90), np.nan).astype(np.float32)
    kwargs = dict(factor=factor, delta=0.1, horizon=25, momentum_horizon=0)
    ours, theirs = find_events(loss, lr, critical, lambda_max=lam, **kwargs), plain(loss, lr, critical, lam, **kwargs)
    assert len(ours) == len(theirs) > 2
    for one, other in zip(ours, theirs, strict=True):
        same(one, other)


def online(loss, lr, critical, lam, top, rest, **settings):
    d = detector(**settings)
    update = jax.jit(d.update)
    state, events = d.init(), []
    for values in zip(loss, lr, critical, lam, top, rest, strict=True):
        state, event = update(state, *map(jnp.asarray, values))
        if int(event.kind):
            events.append(to_python(event))
    last = to_python(d.finish(state))
    return events + ([last] if last.kind != "none" else []), int(state.closed)


@pytest.mark.filterwarnings("ignore:the loss changes by")  # a random walk
@pytest.mark.parametrize("smoothing", [None, 0.8])
def test_online_and_offline_are_identical(smoothing):
    rng = np.random.default_rng(0)
    loss = np.exp(np.cumsum(rng.standard_normal(300) * 0.4)).astype(np.float32)
    lr, critical = np.ones(300, np.float32), rng.uniform(0.5, 1.5, 300).astype(np.float32)
    top, rest, lam = ((loss * 0.7).astype(np.float32), (loss * 0.2).astype(np.float32), (2 / critical).astype(np.float32))
    for factor in FACTORS:
        saved = find_events(
            loss, lr, critical, lambda_max=lam, loss_top=top, loss_rest=rest, factor=factor, smoothing=smoothing
        )
        seen, closed = online(loss, lr, critical, lam, top, rest, factor=factor, smoothing=smoothing)
        assert len(saved) > 0
        assert closed == len([e for e in saved if e.end >= 0 or e.kind == "divergence"])
        # Only find_events knows a return after the close.
        assert all(one.returned in (-1, other.returned) for one, other in zip(seen, saved, strict=True))
        seen = [one._replace(returned=other.returned) for one, other in zip(seen, saved, strict=True)]
        np.testing.assert_equal([e._asdict() for e in seen], [e._asdict() for e in saved])


def test_attributes_of_one_catapult():
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
        ([0.5, 9, 9, 9, 9, 9], 1, "catapult"),  # but within the memory of the momentum
        ([np.nan] * 6, 0, "unknown"),
        ([np.nan, np.nan, 9, 9, 9, 9], 0, "unknown"),  # not known at the onset
        ([np.nan, np.nan, 0.5, 9, 9, 9], 0, "catapult"),
    ],
)
def test_find_events_kind_by_the_exceedances_on_the_way(critical, momentum_horizon, kind):
    (event,) = find_events([2.0, 1.0, 1.7, 3.0, 1.5, 1.0], np.ones(6), critical, momentum_horizon=momentum_horizon)
    assert (event.onset, event.peak, event.end, event.kind) == (1, 3, 4, kind)


def test_find_events_spikes_above_a_level_that_has_risen_are_not_merged():
    """The loss outside of the top space rises, so the loss never comes back to the first level; each rise is a spike."""
    loss = np.array([1.0, 6.0, 2.0, 8.0, 2.5, 9.0, 2.6, 2.6])
    events = find_events(loss, np.ones(8), np.full(8, 0.5))
    assert [(e.onset, e.peak, e.end, e.returned) for e in events] == [(0, 1, 2, -1), (2, 3, 4, -1), (4, 5, 6, 6)]


def test_find_events_that_are_not_over():
    (event,) = find_events([1.0, 4.0, 3.0], np.ones(3), np.full(3, 0.5))
    assert (event.kind, event.end, event.returned) == ("catapult", -1, -1)
    (event,) = find_events([1.0, 4.0, 3.0, 3.0], np.ones(4), np.full(4, 0.5), horizon=2)
    assert (event.kind, event.end) == ("divergence", -1)


def test_lambda_max_is_of_this_event_alone():
    """Not measured between two spikes: not known, rather than that before the first one."""
    loss, nan = [1.0, 4.0, 1.0, 4.0, 1.0, 1.0], np.nan
    first, second = find_events(loss, np.ones(6), np.full(6, 0.5), lambda_max=[4.0, nan, nan, nan, nan, 2.0])
    assert (first.lambda_max_before, second.lambda_max_after) == (4.0, 2.0)
    assert np.isnan(first.lambda_max_after) and np.isnan(second.lambda_max_before)


def noisy(spike_at=None, steps=600, seed=0):
    """A loss that falls to a constant, with the scatter of small batches; ``spike_at``: ten times as high after it, and back by 7 % a step."""
    t = np.arange(steps)
    level = 0.3 + 2 * np.exp(-t / 50)
    if spike_at is not None:
        level = level * (1 + 9 * np.where(t > spike_at, 0.93 ** (t - spike_at), 0))
    return level * np.exp(np.random.default_rng(seed).standard_normal(steps) * 0.35)


@pytest.mark.parametrize("factor", FACTORS[1:])
def test_smoothing_finds_nothing_in_the_scatter_of_batches(factor):
    loss, ones = noisy(), np.ones(600)
    with pytest.warns(UserWarning, match=r"give the training loss, or smoothing=0.98"):
        assert len(find_events(loss, ones, 2 * ones, factor=factor)) > 2
    assert find_events(loss, ones, 2 * ones, factor=factor, smoothing=0.98) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("smoothing", "delay"), [(0.95, 20), (0.98, 50)])
def test_smoothing_finds_a_spike_in_noise_within_its_delay(smoothing, delay, seed):
    loss, ones = noisy(spike_at=400, seed=seed), np.ones(600)
    critical = np.where(np.arange(600) == 400, 0.5, 2.0)
    (event,) = find_events(loss, ones, critical, smoothing=smoothing)
    assert event.kind == "catapult"
    assert abs(event.onset - 400) <= delay and 400 < event.peak <= 400 + delay


def test_smoothing_is_a_weighted_mean_from_the_first_step_on():
    loss, beta = np.array([2.0, 4.0, 1.0, 3.0]), 0.75
    d = detector(smoothing=beta)
    state, seen = d.init(), []
    for value in loss:
        state, _ = d.update(state, value, 1.0, 1.0)
        seen.append(float(state.loss))
    weights = [[beta ** (t - s) for s in range(t + 1)] for t in range(4)]
    np.testing.assert_allclose(seen, [np.average(loss[: len(w)], weights=w) for w in weights], rtol=1e-6)


def test_smoothing_keeps_the_share():
    """Parts that are a constant fraction of the loss stay so."""
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
        ([1, 20, 2e7, 1, 1, 1], [1, 9, 9, 2, 0, 0], "catapult", 3),  # later, without a spike
        ([1, 20, 2e7, 1, 1, 1], [1, 0, 0, 1, 1, 1], "catapult", 3),  # not at its end
        ([1, 20, 2e7, 1, 1, 1], [1, 9, 9, 0, 1, 1], "catapult", 3),  # nor for long
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
    ("loss", "lam", "kind", "end"),
    [
        ([1, 9, 1, 1], [1, 5, 0, 0], "death", 2),  # at the close
        ([1, 9, 1, 1], [1, 0, NAN, NAN], "death", 2),  # measured before
        ([1, 9, 0, 0], [1, 5, 0, 0], "catapult", 2),  # a loss of zero
        ([1, 9, 1, 1], [0, 0, 0, 0], "catapult", 2),  # dead before
        ([1, 9, 9, 9], [1, 5, 0, 0], "death", -1),  # never closes
    ],
)
@pytest.mark.parametrize("horizon", [2, 100])
def test_detector_death_where_the_event_ends(loss, lam, kind, end, horizon):
    rows = np.array([loss, np.ones(4), np.full(4, 0.5), lam, *np.full((2, 4), np.nan)], float)
    seen, closed = online(*rows, horizon=horizon)
    assert [(e.kind, e.end) for e in seen] == [(kind, end)]
    assert closed == (end >= 0 or horizon == 2)
    if kind == "death":
        assert seen[0].lambda_max_after == 0


@pytest.mark.parametrize(
    ("critical", "dead_steps", "kind"),
    [
        ([0.5, 0.5, 0.5, INF, INF, INF], 3, "death"),
        ([0.5, 0.5, 0.5, INF, INF, INF], 4, "catapult"),  # too few to tell
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
def test_dead_from(lam, steps, first):
    assert dead_from(lam, np.ones(5), steps=steps) == first
    assert dead_from(lam, np.zeros(5), steps=steps) == -1  # nothing to learn is no death
    assert dead_from(lam, np.full(5, np.inf), steps=steps) == -1  # but a divergence


def test_spike_score_is_that_of_the_values_before():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(300)
    values[200] = 20
    score = spike_score(values)
    assert np.isnan(score[:128]).all()
    for t in (128, 200, 299):
        assert score[t] == pytest.approx((values[t] - np.mean(values[t - 128 : t])) / np.std(values[t - 128 : t], ddof=1))
    assert np.flatnonzero(score > SPIKE_SCORE).tolist() == [200]


def test_spike_score_of_constants_and_of_what_is_not_finite():
    assert spike_score([1.0, 1.0, 1.0, 2.0], window=2).tolist()[2:] == [0.0, np.inf]
    assert spike_score([1.0, 2.0, np.inf], window=2)[2] == np.inf
    assert np.isnan(spike_score([1.0, 2.0, np.inf, 1.0, 2.0], window=2)[3:]).all()


def test_events_are_ready_for_json():
    (event,) = find_events([0.0, 5.0, 0.0], np.ones(3), np.full(3, 0.5))
    written = json.loads(json.dumps(event._asdict(), allow_nan=False))
    assert list(written) == list(Event._fields)
    assert written["kind"] == "catapult" and written["peak"] == 1
    assert math.isinf(event.peak_ratio) and written["peak_ratio"] is None and written["fraction_top"] is None
    seen, _ = online(*np.array([[1.0, 5.0, np.inf], [1, 1, 1], [0.5, 0.5, 0.5]]), *np.full((3, 3), np.nan))
    assert json.loads(json.dumps(seen[0]._asdict(), allow_nan=False))["loss_peak"] is None


def test_to_python_wants_one_event():
    d = detector()
    _, events = jax.vmap(lambda loss: d.update(d.init(), loss, 1.0, 1.0))(jnp.ones(2))
    with pytest.raises(ValueError, match=r"event.kind has shape \(2,\); allowed: \(\), one event"):
        to_python(events)
    assert to_python(jax.tree.map(lambda a: a[0], events)).kind == "none"


@pytest.mark.parametrize(
    ("loss", "critical", "lam", "text"),
    [
        (
            [0.5, 2, 3.2, 1, 0.5],
            3.6,
            None,
            "Catapult: the loss rises from 0.5 at step 0 to 3.2 at step 2 (6.4 times its level), comes down half of its height by "
            "step 3 and is back at its level at step 4; lr 6 is 1.67 times the critical lr 3.6.",
        ),
        (
            [0.5, 2, 3.2, 1, 1],
            8,
            None,
            "Unexplained: the loss rises from 0.5 at step 0 to 3.2 at step 2 (6.4 times its level) and comes down half of its height by "
            "step 3, but is not back at its level; lr 6 is 0.75 times the critical lr 8.",
        ),
        (
            [0.5, 2, 3.2, 3, 3],
            [8, 3, 8, 8, 8],
            None,
            "Catapult: the loss rises from 0.5 at step 0 to 3.2 at step 2 (6.4 times its level) and has not come down half of its height by "
            "the last step; lr 6 is 0.75 times the critical lr 8, which a step on the way to the peak exceeds.",
        ),
        (
            [0.5, 2, 3.2, 1, 1],
            3.6,
            [1, 1, 1, 0, 0],
            "Death: the loss rises from 0.5 at step 0 to 3.2 at step 2 (6.4 times its level), and then the kernel is exactly zero: the "
            "network is dead; lr 6 is 1.67 times the critical lr 3.6.",
        ),
        (
            [0.5, 2, np.inf, 1, 1],
            np.nan,
            None,
            "Divergence: the loss goes from 0.5 at step 0 to a value that is not finite at step 2; the critical lr at the onset is not known.",
        ),
    ],
)
def test_an_event_prints_as_a_sentence(loss, critical, lam, text):
    (event,) = find_events(loss, np.full(5, 6.0), np.broadcast_to(critical, 5), lambda_max=lam)
    assert str(event) == text


def test_an_event_inside_jit_still_prints():
    d = detector()
    _, event = d.update(d.init(), jnp.array(1.0), jnp.array(1.0), jnp.array(1.0))
    assert str(event).startswith("Event(kind=") and str(to_python(event)) == "No event."


@pytest.mark.parametrize("smoothing", [None, 0.5])
def test_detector_under_strict_promotion(smoothing):
    d = detector(smoothing=smoothing)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        state, event = d.update(d.init(), jnp.float32(1.0), jnp.float32(1.0), jnp.float32(1.0))
        assert int(d.finish(state).kind) == int(event.kind) == 0


def test_names_of_events_are_public():
    assert catapult_jax.KINDS is KINDS and catapult_jax.to_python is to_python
    assert {"dead_from", "spike_score"} <= set(catapult_jax.__all__)


def test_monotone_and_constant_losses_have_no_events():
    none = np.full(5, np.nan)
    assert find_events(np.linspace(2, 1, 5), none, none) == []
    assert find_events(np.ones(5), none, none) == []


def test_a_smooth_loss_is_not_warned_of():
    loss = np.concatenate([np.linspace(2, 1, 100), np.linspace(1, 3, 20), np.linspace(3, 1, 100)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(find_events(loss, np.ones(220), np.full(220, 0.5))) == 1


def test_counts_fall_with_the_factor():
    loss = [1, 1.3, 1, 1.7, 1, 2.5, 1, 4, 1, 9, 1]
    assert count_spikes(np.array(loss)) == {1.2: 5, 1.5: 4, 2.0: 3, 3.0: 2, 5.0: 1}


@pytest.mark.filterwarnings("ignore:the loss changes by")  # a random walk
@pytest.mark.parametrize("smoothing", [None, 0.9])
def test_count_spikes_is_the_number_of_events_that_find_events_finds(smoothing):
    """On random walks that spike, diverge and end; the number of spikes does not depend on the critical lr."""
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
            assert count_spikes(loss, horizon=40, smoothing=smoothing) == {f: len(found) for f, found in events.items()}
        assert len(events[1.2]) > 2


def test_prediction_table():
    p = prediction([1, 1, 0, 0, 1], [1, 0, 1, 0, 1])
    assert p[:4] == (2, 1, 1, 1)
    assert (p.precision, p.recall, p.base_rate) == (2 / 3, 2 / 3, 3 / 5)
    assert p.f1 == pytest.approx(2 / 3)
    assert np.isnan(prediction([0, 0], [0, 1]).precision)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"factor": 1.05}, r"factor=1.05; allowed: above 1 \+ delta"),
        ({"delta": 0.0}, "delta=0.0; allowed: above 0"),
        ({"horizon": 0}, "horizon=0"),
        ({"momentum_horizon": -1}, "momentum_horizon=-1"),
        ({"smoothing": 1.0}, "smoothing=1.0; allowed: None, or between 0 and 1"),
    ],
)
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        detector(**kwargs)


def test_bad_series():
    with pytest.raises(ValueError, match=r"lr has shape \(2,\); allowed: \(3,\)"):
        find_events(np.ones(3), np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="one-dimensional"):
        find_events(np.ones((3, 1)), np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match=r"loss=-1 at step 1; allowed: 0 or more"):
        find_events([1.0, -1.0, np.nan], np.ones(3), np.ones(3))
