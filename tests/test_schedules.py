"""Learning-rate schedules, step by step, against hand-computed series and Optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catapult_jax.schedules import following, relative_to_critical, staircase, triangular


def run_schedule(schedule, losses, critical_lr=2.0, **options):
    """``(lr, stage)`` of each step."""
    state, series = schedule.init(0.1, **options), []
    for step, loss in enumerate(losses):
        state = schedule.update(state, step, loss, critical_lr)
        series.append((round(float(state.lr), 4), int(state.stage)))
    return series


def scan_schedule(schedule):
    """``run(lr, losses, critical_lrs, raises, cap)``: lr, stage and raised of each of twelve steps, compiled."""

    def run(lr, losses, critical_lrs, raises, cap):
        def step(state, inputs):
            state = schedule.update(state, *inputs)
            return state, (state.lr, state.stage, state.raised)

        return jax.lax.scan(step, schedule.init(lr, raises=raises, cap=cap), (jnp.arange(12), losses, critical_lrs))[1]

    return jax.jit(run)


warm_up = scan_schedule(following(optax.linear_schedule(0.1, 1.0, 5)))
stairs = scan_schedule(staircase(raise_to=1.5, settle_fraction=0.5, settle_steps=1))
CRITICAL_LRS = st.lists(st.floats(0.01, 100) | st.just(float("nan")), min_size=12, max_size=12)


def test_following_keeps_to_the_cap_from_its_first_step():
    schedule, lrs = following(optax.constant_schedule(1.0), cap_from=2), []
    state = schedule.init(1.0, cap=0.9)

    for step, critical_lr in enumerate([0.1, jnp.nan, jnp.nan, 0.2, jnp.nan, 5.0]):
        state = schedule.update(state, step, 1.0, critical_lr)
        lrs.append(round(float(state.lr), 4))

    assert lrs == [1.0, 1.0, 0.09, 0.18, 0.18, 1.0]  # without a measured critical lr the last one counts


@given(lr=st.floats(0.01, 10), cap=st.floats(0.1, 3) | st.just(float("inf")), critical_lrs=CRITICAL_LRS)
@settings(max_examples=40, deadline=None)
def test_following_is_optax_times_lr0_under_the_cap(lr, cap, critical_lrs):
    shape, last = optax.linear_schedule(0.1, 1.0, 5), np.inf

    lrs = np.asarray(warm_up(lr, jnp.zeros(12), jnp.array(critical_lrs), 0, cap)[0])

    for step, critical_lr in enumerate(critical_lrs):
        last = last if np.isnan(critical_lr) else critical_lr
        assert lrs[step] == pytest.approx(min(lr * float(shape(step)), cap * last), rel=1e-5)


def test_following_triangular_repeats_a_cycle():
    schedule = following(triangular(low=0.2, period=10))
    state, lrs = schedule.init(2.0), []

    for step in range(30):
        state = schedule.update(state, step, 1.0, 1.0)
        lrs.append(float(state.lr))

    lrs = np.array(lrs)
    np.testing.assert_allclose(lrs[:10], lrs[10:20], rtol=1e-5)
    assert lrs.min() == pytest.approx(0.4) and lrs.max() == pytest.approx(2.0)
    np.testing.assert_allclose(np.abs(np.diff(lrs)), 0.32, rtol=1e-4)
    assert np.argmax(lrs) == 5


@given(low=st.floats(0, 1), period=st.integers(2, 50), decay=st.floats(0.9, 1), step=st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_triangular_stays_between_low_and_one_and_decays(low, period, decay, step):
    shape = triangular(low=low, period=period, decay=decay)

    value, later = float(shape(step)), float(shape(step + period))

    assert low - 1e-6 <= value <= 1 + 1e-6
    np.testing.assert_allclose(later - low, decay**period * (value - low), atol=1e-4)  # one cycle later
    assert float(shape(step - step % period)) == pytest.approx(low, abs=1e-6)


@pytest.mark.parametrize(("field", "value"), [("low", -0.1), ("low", 1.1), ("period", 1), ("decay", 0.0), ("decay", 1.1)])
def test_triangular_refuses_values_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"{field}={value}; allowed"):
        triangular(**dict(low=0.1, period=10) | {field: value})


@given(multiple=st.floats(0.1, 3), critical_lrs=st.lists(st.floats(0.01, 100) | st.just(float("nan")), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_relative_to_critical_follows_the_last_critical_lr(multiple, critical_lrs):
    schedule = relative_to_critical()
    state, expected = schedule.init(0.7, lr_over_critical=multiple), 0.7

    for step, critical_lr in enumerate(critical_lrs):
        state = schedule.update(state, step, 1.0, critical_lr)
        expected = expected if np.isnan(critical_lr) else multiple * critical_lr
        assert float(state.lr) == pytest.approx(expected, rel=1e-5)


def test_relative_to_critical_stays_finite_if_no_lr_is_critical():
    schedule = relative_to_critical()
    state = schedule.update(schedule.init(0.7, lr_over_critical=2.0), 0, 1.0, 3.0)

    state = schedule.update(state, 1, 1.0, np.inf)

    assert float(state.lr) == 6.0


def test_staircase_raises_when_the_loss_has_settled_and_at_most_twice():
    schedule = staircase(raise_to=1.5, settle_fraction=0.5, settle_steps=2)

    series = run_schedule(schedule, [1.0, 0.4, 0.3, 0.9, 0.5, 0.14, 0.1, 0.01, 0.001], raises=2)

    assert [stage for _, stage in series] == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert series[2][0] == 3.0  # 1.5 times critical


@pytest.mark.parametrize(
    ("losses", "stages"),
    [([1.0, 0.6, 0.55, 0.9, 0.8], [0, 0, 0, 0, 0]), ([1.0, 0.51, 0.2, 3.0], [0, 0, 1, 1])],
    ids=["inside a spike", "before one"],
)
def test_staircase_does_not_raise_inside_a_spike(losses, stages):
    schedule = staircase(raise_to=1.5, settle_fraction=0.5, settle_steps=1)

    series = run_schedule(schedule, losses, raises=1)

    assert [stage for _, stage in series] == stages


def test_staircase_without_a_cap_never_lowers_the_lr():
    schedule = staircase(raise_to=1.5, settle_fraction=0.5, settle_steps=1)

    series = run_schedule(schedule, [1.0, 0.4], critical_lr=0.001, raises=1)

    assert series[-1] == (0.1, 1)


LOSSES_WITH_A_SPIKE = [1.0, 0.4, 0.4, 0.7, 5.0, 0.45, 0.43, 0.3, 0.2]


def test_staircase_with_a_cap_ends_a_raise_after_its_spike():
    """Critical lr 2, cap 0.5: the lr is 0.1, except for the raise to 3 until its spike is back at 1.1 times the level."""
    schedule = staircase(raise_to=1.5, settle_fraction=0.5, settle_steps=1)

    series = run_schedule(schedule, LOSSES_WITH_A_SPIKE, raises=1, cap=0.5)

    assert [lr for lr, _ in series] == [0.1, 3.0, 3.0, 3.0, 3.0, 3.0, 0.1, 0.1, 0.1]


def test_staircase_with_a_cap_raises_again_after_the_spike():
    schedule = staircase(raise_to=1.5, settle_fraction=0.5, settle_steps=1)

    series = run_schedule(schedule, LOSSES_WITH_A_SPIKE, raises=2, cap=0.5)

    assert [stage for _, stage in series][-2:] == [1, 2]


def test_staircase_without_a_cap_stays_up_after_the_spike():
    schedule = staircase(raise_to=1.5, settle_fraction=0.5, settle_steps=1)

    series = run_schedule(schedule, LOSSES_WITH_A_SPIKE, raises=1)

    assert [lr for lr, _ in series][1:] == [3.0] * 8


def test_staircase_with_a_cap_ends_a_raise_without_a_spike():
    schedule = staircase(raise_to=1.5, settle_fraction=0.5, settle_steps=2)

    series = run_schedule(schedule, [1.0, 0.6, 0.4, 0.5, *np.linspace(0.39, 0.2, 12)], raises=1, cap=0.5)

    assert [lr for lr, _ in series] == [0.1, 0.1] + [3.0] * 10 + [0.1] * 4


@given(
    losses=st.lists(st.floats(1e-3, 1e3), min_size=12, max_size=12),
    critical_lrs=CRITICAL_LRS,
    raises=st.integers(0, 4),
    cap=st.floats(0.1, 0.9) | st.just(float("inf")),
)
@settings(max_examples=60, deadline=None)
def test_staircase_climbs_at_most_as_often_as_allowed(losses, critical_lrs, raises, cap):
    lrs, stages, raised = map(np.asarray, stairs(0.5, jnp.array(losses), jnp.array(critical_lrs), raises, cap))

    assert (np.diff(stages) >= 0).all() and (np.diff(stages) <= 1).all() and stages[-1] <= raises
    climbs = np.flatnonzero(np.diff(stages, prepend=0))
    critical = np.array(critical_lrs, np.float32)
    assert np.isfinite(critical[climbs]).all()  # each raise is to a multiple of the critical lr of its step
    if np.isinf(cap):
        expected = np.maximum.accumulate(np.where(np.isin(np.arange(12), climbs), 1.5 * critical, 0.5))
        np.testing.assert_allclose(lrs, expected, rtol=1e-5)
        return
    last = np.array([[np.inf, *critical[: i + 1][~np.isnan(critical[: i + 1])]][-1] for i in range(12)])
    capped = np.minimum(0.5, cap * last)
    np.testing.assert_allclose(lrs[~raised], capped[~raised], rtol=1e-5)
    np.testing.assert_allclose(lrs[climbs], 1.5 * critical[climbs], rtol=1e-5)


@pytest.mark.parametrize("field,value", [("raise_to", 0.0), ("settle_fraction", 1.5), ("settle_steps", 0)])
def test_staircase_refuses_values_out_of_range(field, value):
    good = dict(raise_to=1.5, settle_fraction=0.5, settle_steps=1)

    with pytest.raises(ValueError, match=f"{field}={value}"):
        staircase(**good | {field: value})
