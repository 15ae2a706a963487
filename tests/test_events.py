"""Events against a plain reading of their definition, online and from a saved series."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catapult_jax.events import FACTORS, KINDS, Event, count_spikes, detector, find_events, prediction


def plain(loss, lr, critical, *, factor, delta, horizon, momentum_horizon):
    """The definition, as a loop over a list: (kind, onset, peak, end)."""
    found, level, onset, opened, peak = [], np.inf, None, False, None
    known, exceeded, crossed, seen = np.nan, [], None, []
    for t, value in enumerate(loss):
        known = known if np.isnan(critical[t]) else critical[t]
        exceeded.append(bool(lr[t] > known))
        seen.append(not np.isnan(known))
        critical_at = lambda s, exceeded=exceeded: any(exceeded[max(0, s - momentum_horizon) : s + 1])
        cause = lambda s, at=critical_at: "catapult" if at(s) else "unexplained" if seen[s] else "unknown"
        if not np.isfinite(value):
            found.append(("divergence", t if onset is None else onset, t, -1))
            return found
        if not opened:
            level = min(level, value)
            if value <= np.float32(1.01) * level or onset is None:
                onset = t
            if value > factor * level:
                opened, peak, crossed = True, t, t
        elif value > loss[peak]:
            peak = t
        if opened and value <= (1 + delta) * level:
            found.append((cause(onset), onset, peak, t))
            opened, level, onset = False, value, t
        elif opened and t - crossed >= horizon:
            found.append(("divergence", onset, peak, -1))
            opened, level, onset = False, value, t
    if opened:
        found.append((cause(onset), onset, peak, -1))
    return found


# Powers of two and thresholds that no product of them meets, so that rounding decides nothing.
_losses = st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 32.0, float("nan"), float("inf")]), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(loss=_losses, seed=st.integers(0, 1000), momentum_horizon=st.sampled_from([0, 2]), horizon=st.sampled_from([3, 100]))
def test_against_the_plain_definition(loss, seed, momentum_horizon, horizon):
    rng = np.random.default_rng(seed)
    # One length for all examples, so that one compiled program serves them: a settled tail is no event.
    size = 48
    tail = [loss[-1]] * (size - len(loss))
    loss = np.array(loss + tail, np.float32)
    lr = np.ones(size, np.float32)
    critical = rng.choice([0.5, 2.0, np.nan], size).astype(np.float32)
    kwargs = dict(factor=1.5, delta=0.1, horizon=horizon, momentum_horizon=momentum_horizon)
    ours = [(e.kind, e.onset, e.peak, e.end) for e in find_events(loss, lr, critical, **kwargs)]
    assert ours == plain(loss, lr, critical, **kwargs)


def test_online_and_offline_are_identical_and_vmap_over_factors_too():
    rng = np.random.default_rng(0)
    loss = np.exp(np.cumsum(rng.standard_normal(300) * 0.4)).astype(np.float32)
    lr, critical = np.ones(300, np.float32), rng.uniform(0.5, 1.5, 300).astype(np.float32)
    top, rest, lam = ((loss * 0.7).astype(np.float32), (loss * 0.2).astype(np.float32), (2 / critical).astype(np.float32))
    for factor in FACTORS:
        d = detector(factor=factor)
        update = jax.jit(d.update)
        state, online = d.init(), []
        for values in zip(loss, lr, critical, lam, top, rest, strict=True):
            state, event = update(state, *map(jnp.asarray, values))
            if int(event.kind):
                online.append(event)
        last = d.finish(state)
        online += [last] if int(last.kind) else []
        online = [Event(KINDS[int(e.kind)], *(v.item() for v in e[1:])) for e in online]
        saved = find_events(loss, lr, critical, lambda_max=lam, loss_top=top, loss_rest=rest, factor=factor)
        assert len(saved) > 0
        np.testing.assert_equal([e._asdict() for e in online], [e._asdict() for e in saved])
        assert int(state.closed) == len([e for e in saved if e.end >= 0 or e.kind == "divergence"])


def test_attributes_of_one_catapult():
    loss = [1.0, 0.5, 0.502, 0.8, 2.0, 1.0, 0.4, 0.3]
    top = [0.5, 0.1, 0.1, 0.4, 1.5, 0.6, 0.05, 0.0]
    lr = [1, 1, 2, 2, 2, 2, 2, 2]
    critical = [1.5] * 6 + [4.0, 4.0]
    (event,) = find_events(
        loss,
        lr,
        critical,
        lambda_max=[2 / c for c in critical],
        loss_top=top,
        loss_rest=[a - b for a, b in zip(loss, top, strict=True)],
    )
    assert (event.kind, event.onset, event.peak, event.end) == ("catapult", 2, 4, 6)  # 0.502 is still the level
    assert event.peak_ratio == pytest.approx(4.0)
    assert event.share_top == pytest.approx(1.4 / 1.498, rel=1e-5)
    assert (event.lr, event.critical_lr) == (2.0, 1.5)
    assert event.lambda_max_before == pytest.approx(2 / 1.5) and event.lambda_max_after == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("critical", "momentum_horizon", "kind"), [(9.0, 0, "unexplained"), (0.5, 0, "catapult"), (9.0, 1, "catapult")]
)
def test_exceedance_at_onset_or_within_the_momentum_horizon(critical, momentum_horizon, kind):
    (event,) = find_events([2.0, 1.0, 3.0, 1.0], np.ones(4), [0.5, critical, 0.5, 0.5], momentum_horizon=momentum_horizon)
    assert (event.onset, event.kind) == (1, kind)


def test_monotone_and_constant_losses_have_no_events():
    none = np.full(5, np.nan)
    assert find_events(np.linspace(2, 1, 5), none, none) == []
    assert find_events(np.ones(5), none, none) == []


def test_counts_fall_with_the_factor():
    loss = [1, 1.3, 1, 1.7, 1, 2.5, 1, 4, 1, 9, 1]
    assert count_spikes(np.array(loss)) == {1.2: 5, 1.5: 4, 2.0: 3, 3.0: 2, 5.0: 1}


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
