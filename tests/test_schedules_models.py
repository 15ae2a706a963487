"""The schedules, and the parameterisation of the models."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catapult_jax import CNN, FCN
from catapult_jax.models import ViT, WideResNet
from catapult_jax.schedules import following, relative_to_critical, staircase, triangular
from tests.zoo import QUICK


def _run(schedule, losses, critical=2.0, **knobs):
    state, seen = schedule.init(0.1, **knobs), []
    for step, loss in enumerate(losses):
        state = schedule.update(state, step, loss, critical)
        seen.append((round(float(state.lr), 4), int(state.stage)))
    return seen


def test_staircase_raises_when_the_loss_has_settled_and_only_so_often():
    schedule = staircase(raise_to=1.5, settle_fraction=0.5, settle_steps=2)
    losses = [1.0, 0.4, 0.3, 0.9, 0.5, 0.14, 0.1, 0.01, 0.001]
    seen = _run(schedule, losses, raises=2)
    assert [stage for _, stage in seen] == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert seen[2][0] == 3.0  # 1.5 times critical


def test_staircase_waits_out_a_spike_and_never_lowers_the_rate():
    schedule = staircase(raise_to=1.5, settle_fraction=0.5, settle_steps=1)
    assert [stage for _, stage in _run(schedule, [1.0, 0.6, 0.55, 0.9, 0.8], raises=1)] == [0] * 5
    spike = _run(schedule, [1.0, 0.51, 0.2, 3.0], raises=1)
    assert [stage for _, stage in spike] == [0, 0, 1, 1]
    assert _run(schedule, [1.0, 0.4], critical=0.001, raises=1)[-1] == (0.1, 1)


def test_a_cap_waits_for_the_spike_of_a_raise():
    """Critical lr 2, cap 0.5: the rate is 0.1, but for the raise to 3 until its spike is back at 1.1 times the level."""
    schedule = staircase(raise_to=1.5, settle_fraction=0.5, settle_steps=1)
    losses = [1.0, 0.4, 0.4, 0.7, 5.0, 0.45, 0.43, 0.3, 0.2]
    seen = _run(schedule, losses, raises=1, cap=0.5)
    assert [rate for rate, _ in seen] == [0.1, 3.0, 3.0, 3.0, 3.0, 3.0, 0.1, 0.1, 0.1]
    assert [stage for _, stage in _run(schedule, losses, raises=2, cap=0.5)][-2:] == [1, 2]
    free = _run(schedule, losses, raises=1)
    assert [rate for rate, _ in free][1:] == [3.0] * 8


def test_a_raise_without_a_spike_is_over_after_a_while():
    schedule = staircase(raise_to=1.5, settle_fraction=0.5, settle_steps=2)
    losses = [1.0, 0.6, 0.4, 0.5, *np.linspace(0.39, 0.2, 12)]
    rates = [rate for rate, _ in _run(schedule, losses, raises=1, cap=0.5)]
    assert rates == [0.1, 0.1] + [3.0] * 10 + [0.1] * 4


def test_a_cap_follows_the_critical_lr_from_its_first_step_on():
    schedule, seen = following(optax.constant_schedule(1.0), cap_from=2), []
    state = schedule.init(1.0, cap=0.9)
    for step, critical in enumerate([0.1, jnp.nan, jnp.nan, 0.2, jnp.nan, 5.0]):
        state = schedule.update(state, step, 1.0, critical)
        seen.append(round(float(state.lr), 4))
    assert seen == [1.0, 1.0, 0.09, 0.18, 0.18, 1.0]  # where none was measured, the last one known


def test_cycles():
    schedule = following(triangular(low=0.2, period=10))
    state, rates = schedule.init(2.0), []
    for step in range(30):
        state = schedule.update(state, step, 1.0, 1.0)
        rates.append(float(state.lr))
    rates = np.array(rates)
    np.testing.assert_allclose(rates[:10], rates[10:20], rtol=1e-5)
    assert rates.min() == pytest.approx(0.4) and rates.max() == pytest.approx(2.0)
    np.testing.assert_allclose(np.abs(np.diff(rates)), 0.32, rtol=1e-4)
    assert np.argmax(rates) == 5


@given(low=st.floats(0, 1), period=st.integers(2, 50), decay=st.floats(0.9, 1), step=st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_cycles_stay_between_their_ends_and_shrink_as_they_should(low, period, decay, step):
    shape = triangular(low=low, period=period, decay=decay)
    value, later = float(shape(step)), float(shape(step + period))
    assert low - 1e-6 <= value <= 1 + 1e-6
    np.testing.assert_allclose(later - low, decay**period * (value - low), atol=1e-4)  # one cycle on
    assert float(shape(step - step % period)) == pytest.approx(low, abs=1e-6)


@given(multiple=st.floats(0.1, 3), criticals=st.lists(st.floats(0.01, 100) | st.just(float("nan")), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_relative_to_critical_holds_the_multiple_of_the_last_one_known(multiple, criticals):
    schedule = relative_to_critical()
    state, known = schedule.init(0.7, lr_over_critical=multiple), None
    for step, critical in enumerate(criticals):
        state = schedule.update(state, step, 1.0, critical)
        known = known if np.isnan(critical) else critical
        assert float(state.lr) == pytest.approx(0.7 if known is None else multiple * known, rel=1e-5)


_CRITICAL = st.lists(st.floats(0.01, 100) | st.just(float("nan")), min_size=12, max_size=12)


@given(lr=st.floats(0.01, 10), cap=st.floats(0.1, 3) | st.just(float("inf")), criticals=_CRITICAL)
@settings(max_examples=40, deadline=None)
def test_a_warm_up_is_optax_times_the_rate_below_its_cap(lr, cap, criticals):
    shape, known = optax.linear_schedule(0.1, 1.0, 5), np.inf
    rates = np.asarray(_warm_up(lr, jnp.zeros(12), jnp.array(criticals), 0, cap)[0])
    for step, critical in enumerate(criticals):
        known = known if np.isnan(critical) else critical
        assert rates[step] == pytest.approx(min(lr * float(shape(step)), cap * known), rel=1e-5)


@given(
    losses=st.lists(st.floats(1e-3, 1e3), min_size=12, max_size=12), criticals=_CRITICAL, raises=st.integers(0, 4),
    cap=st.floats(0.1, 0.9) | st.just(float("inf")),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_staircase_only_climbs_and_only_so_often(losses, criticals, raises, cap):
    rates, stages, raised = map(np.asarray, _stairs(0.5, jnp.array(losses), jnp.array(criticals), raises, cap))
    assert (np.diff(stages) >= 0).all() and (np.diff(stages) <= 1).all() and stages[-1] <= raises
    climbs = np.flatnonzero(np.diff(stages, prepend=0))
    critical = np.array(criticals, np.float32)
    assert np.isfinite(critical[climbs]).all()  # to a multiple of the rate of that moment
    if np.isinf(cap):
        expected = np.maximum.accumulate(np.where(np.isin(np.arange(12), climbs), 1.5 * critical, 0.5))
        np.testing.assert_allclose(rates, expected, rtol=1e-5)
        return
    known = np.array([[np.inf, *critical[: i + 1][~np.isnan(critical[: i + 1])]][-1] for i in range(12)])
    held = np.minimum(0.5, cap * known)
    np.testing.assert_allclose(rates[~raised], held[~raised], rtol=1e-5)
    np.testing.assert_allclose(rates[climbs], 1.5 * critical[climbs], rtol=1e-5)


def _scanned(schedule):
    def run(lr, losses, criticals, raises, cap):
        def one(state, now):
            state = schedule.update(state, *now)
            return state, (state.lr, state.stage, state.raised)

        return jax.lax.scan(one, schedule.init(lr, raises=raises, cap=cap), (jnp.arange(12), losses, criticals))[1]

    return jax.jit(run)


_warm_up = _scanned(following(optax.linear_schedule(0.1, 1.0, 5)))
_stairs = _scanned(staircase(raise_to=1.5, settle_fraction=0.5, settle_steps=1))


def test_relative_to_critical_stays_finite_where_no_rate_is_critical():
    schedule = relative_to_critical()
    state = schedule.update(schedule.init(0.7, lr_over_critical=2.0), 0, 1.0, 3.0)
    assert float(schedule.update(state, 1, 1.0, np.inf).lr) == 6.0


@pytest.mark.parametrize(("field", "value"), [("low", -0.1), ("low", 1.1), ("period", 1), ("decay", 0.0), ("decay", 1.1)])
def test_bad_cycles(field, value):
    with pytest.raises(ValueError, match=f"{field}={value}; allowed"):
        triangular(**dict(low=0.1, period=10) | {field: value})


@pytest.mark.parametrize("field,value", [("raise_to", 0.0), ("settle_fraction", 1.5), ("settle_steps", 0)])
def test_bad_staircase(field, value):
    good = dict(raise_to=1.5, settle_fraction=0.5, settle_steps=1)
    with pytest.raises(ValueError, match=f"{field}={value}"):
        staircase(**good | {field: value})


@pytest.mark.parametrize(
    ("model", "shape"),
    [(FCN(depth=3, width=2048, activation="linear"), (64, 32)), (CNN(depth=3, width=512, activation="linear"), (8, 6, 6, 2))],
    ids=["fcn", "cnn"],
)
def test_outputs_keep_the_variance_of_the_inputs(model, shape):
    """NTK parameterisation with gain one and no nonlinearity: E f^2 = mean x^2 (for the CNN up to the zero padding)."""
    x = jax.random.normal(jax.random.key(0), shape)
    outputs = jnp.stack([model.apply(model.init(jax.random.key(s), x), x) for s in range(8)])
    low, high = (0.6, 1.4) if isinstance(model, FCN) else (0.3, 1.4)
    assert low < float(jnp.mean(outputs**2)) < high


def test_weights_have_unit_variance_and_gain_scales_hidden_layers_only():
    x = jax.random.normal(jax.random.key(0), (4, 30))
    params = FCN(depth=4, width=200).init(jax.random.key(1), x)
    assert all(np.std(leaf) == pytest.approx(1, abs=0.1) for leaf in jax.tree.leaves(params))
    one, two = (FCN(depth=4, width=200, gain=g).apply(params, x) for g in (1.0, 2.0))
    np.testing.assert_allclose(two, 8 * one, rtol=1e-4)  # three hidden relu layers


def test_cnn_shapes():
    images = jnp.ones((2, 8, 8, 3))
    for model, size in (
        (CNN(depth=3, width=4), 256),
        (CNN(depth=3, width=4, strides=(2, 2)), 16),
        (CNN(depth=3, width=4, readout="average"), 4),
    ):
        params = model.init(jax.random.key(0), images)["params"]
        assert params["readout"]["kernel"].shape == (size, 1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (WideResNet(depth=12), r"depth=12; allowed: 6 n \+ 4"),
        (WideResNet(depth=4), r"depth=4; allowed: 6 n \+ 4"),
        (WideResNet(width=6), "groups=4; allowed: a divisor of width=6"),
        (ViT(patch_size=3), "patch_size=3; allowed: a divisor of both sides of 8x6 images"),
        (ViT(patch_size=4), "patch_size=4; allowed: a divisor of both sides of 8x6 images"),
        (ViT(patch_size=2, heads=3), "heads=3; allowed: a divisor of width=64"),
    ],
)
def test_sizes_that_do_not_fit(model, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.ones((2, 8, 6, 3)))


def test_wide_resnet_counts_its_convolutions_as_the_source():
    model = WideResNet(depth=16, width=8, widen_factor=2, stem_stride=2)
    init = lambda key, x: model.init(key, x, capture_intermediates=True)
    variables = jax.eval_shape(init, jax.random.key(0), jnp.ones((2, 32, 32, 3)))
    kernels = {name: p["kernel"].shape for name, p in variables["params"].items() if "conv" in name}
    assert len(kernels) == model.depth  # the three of the shortcuts included
    assert kernels["group_2_block_1_second_conv"] == (3, 3, 64, 64)
    maps = {name: p["__call__"][0].shape for name, p in variables["intermediates"].items() if name.endswith("second_conv")}
    assert [maps[f"group_{g}_block_1_second_conv"] for g in range(3)] == [(2, 16, 16, 16), (2, 8, 8, 32), (2, 4, 4, 64)]


@pytest.mark.parametrize(
    "model", [WideResNet(depth=10, width=16), ViT(depth=1, width=32, patch_size=2)], ids=["wide resnet", "vit"]
)
def test_image_models_start_from_unit_normals(model):
    params = jax.jit(model.init, compiler_options=QUICK)(jax.random.key(0), jnp.ones((2, 8, 8, 3)))["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[0].key.endswith("norm"):
            assert np.all(leaf == (path[1].key == "scale"))
        elif leaf.size >= 256:
            assert np.std(leaf) == pytest.approx(1, abs=0.15)
