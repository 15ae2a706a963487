"""Interventions, against the residual of a linear model before and after a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax import FCN, batch_loss
from catapult_jax.tangent.weighted import weighted_tangent_kernel
from catapult_jax.training import interventions
from catapult_jax.training.interventions import CRITICAL, KINDS, Arm

X = jax.random.normal(jax.random.key(0), (6, 8)) * jnp.array([6.0, 3, 2, 1, 1, 1, 1, 1])
Y = jax.random.normal(jax.random.key(1), (6,))
W = jax.random.normal(jax.random.key(2), (8,))
linear = lambda w, x: x @ w
H = np.linalg.eigvalsh(np.asarray(2 * X @ X.T / 6, np.float64))
LR = jnp.float32(2.6 / H[-1])  # the top mode is critical, and the next one is not
assert H[-2] * LR < 1.5


def arm(kind, *, start=0, factor=1.0, dose=1.5, ratio=1.0):
    return Arm(jnp.int32(KINDS.index(kind)), jnp.int32(start), jnp.full(4, factor), jnp.float32(dose), jnp.float32(ratio))


def stepped(arm, number=0, lr=LR):
    """Coefficients of the residual in the eigenbasis before and after a step, and what was removed."""
    weighted = weighted_tangent_kernel(linear, W, (X, Y), linear(W, X), loss="mse")
    modes = interventions.modes_of(weighted, linear(W, X), Y, loss="mse")
    phi = interventions.mode_factors(arm, modes, lr, jnp.int32(number))
    gradient = interventions.filtered_gradient(linear, W, (X, Y), modes, phi, loss="mse")
    lr = lr * interventions.lr_factor(arm, jnp.int32(number))
    after = modes.vectors.T @ (linear(W - lr * gradient, X) - Y)
    return np.asarray(modes.coefficients), np.asarray(after), interventions.removed(modes, phi, lr)


def test_mode_factors_of_none_is_gradient_descent():
    before, after, done = stepped(arm("none"))
    np.testing.assert_allclose(after, (1 - float(LR) * H) * before, rtol=1e-3, atol=1e-4)
    assert float(done.overshoot) == pytest.approx(2 * np.log(1.6), rel=1e-4) and float(done.fraction) == 0


def test_mode_factors_of_remove_overshoot_leaves_the_other_modes():
    before, after, done = stepped(arm("remove_overshoot"))
    np.testing.assert_allclose(after[:-1], ((1 - float(LR) * H) * before)[:-1], rtol=1e-3, atol=1e-4)
    assert after[-1] == pytest.approx(-0.8 * before[-1], rel=1e-3)
    assert float(done.overshoot) == 0
    assert float(done.fraction) == pytest.approx(((1 - CRITICAL / 2.6) * before[-1]) ** 2 / (before**2).sum(), rel=1e-3)


def test_mode_factors_of_placebo_takes_as_much_from_the_other_modes():
    before, after, done = stepped(arm("placebo"))
    removed = stepped(arm("remove_overshoot"))[2]
    assert after[-1] == pytest.approx(-1.6 * before[-1], rel=1e-3)  # the overshoot stays
    assert (before[:-1] ** 2).sum() > ((1 - CRITICAL / 2.6) * before[-1]) ** 2  # there is enough to take
    assert float(done.fraction) == pytest.approx(float(removed.fraction), rel=1e-3)
    assert float(done.overshoot) == pytest.approx(2 * np.log(1.6), rel=1e-4)


def test_mode_factors_of_placebo_is_at_most_the_whole_bulk():
    modes = interventions.Modes(jnp.array([0.5, 4.0]), jnp.eye(2), jnp.array([0.1, 5.0]))
    assert interventions.mode_factors(arm("placebo"), modes, jnp.float32(1.0), jnp.int32(0)).tolist() == [0.0, 1.0]


def test_mode_factors_of_low_bulk_slows_only_the_other_modes():
    before, after, _ = stepped(arm("low_bulk", factor=0.5))
    np.testing.assert_allclose(after[:-1], ((1 - 0.5 * float(LR) * H) * before)[:-1], rtol=1e-3, atol=1e-4)
    assert after[-1] == pytest.approx(-1.6 * before[-1], rel=1e-3)


def test_lr_factor_of_low_lr_slows_all_modes():
    before, after, _ = stepped(arm("low_lr", factor=0.5))
    np.testing.assert_allclose(after, (1 - 0.5 * float(LR) * H) * before, rtol=1e-3, atol=1e-4)
    assert float(interventions.lr_factor(arm("low_bulk", factor=0.5), jnp.int32(0))) == 1


@pytest.mark.parametrize("dose", [1.05, 1.5, 2.0])
def test_mode_factors_of_force_at_a_low_lr(dose):
    low, forced = LR / 4, arm("force", start=2, dose=dose, ratio=4.0)
    before, after, done = stepped(forced, number=2, lr=low)
    assert after[-1] == pytest.approx(-dose * before[-1], rel=1e-3)
    np.testing.assert_allclose(after[:-1], ((1 - float(low) * H) * before)[:-1], rtol=1e-3, atol=1e-4)
    assert float(done.overshoot) == pytest.approx(2 * np.log(dose), rel=1e-3)
    for number in (1, 3):  # one step only
        before, after, _ = stepped(forced, number=number, lr=low)
        np.testing.assert_allclose(after, (1 - float(low) * H) * before, rtol=1e-3, atol=1e-4)


def test_mode_factors_of_sham_kicks_the_other_modes_by_the_same_norm():
    low = LR / 4
    usual = lambda before: (1 - float(low) * H) * before
    before, forced, _ = stepped(arm("force", ratio=4.0), lr=low)
    _, sham, _ = stepped(arm("sham", ratio=4.0), lr=low)
    kick = np.linalg.norm(forced - usual(before))
    assert np.linalg.norm(sham - usual(before)) == pytest.approx(kick, rel=1e-3)
    assert sham[-1] == pytest.approx(usual(before)[-1], rel=1e-3)


@pytest.mark.parametrize("kind", ["remove_overshoot", "placebo", "low_bulk", "low_lr"])
def test_an_arm_does_nothing_before_its_start(kind):
    before, after, _ = stepped(arm(kind, start=2, factor=0.5), number=1)
    np.testing.assert_allclose(after, (1 - float(LR) * H) * before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("loss", "targets", "outputs"),
    [
        ("mse", Y[:, None], 1),
        ("logistic", (Y[:, None] > 0).astype(jnp.float32), 1),
        ("softmax_cross_entropy", jnp.arange(6) % 3, 3),
    ],
)
def test_filtered_gradient_of_ones_is_the_gradient(loss, targets, outputs):
    model = FCN(depth=2, width=16, outputs=outputs)
    params = model.init(jax.random.key(3), X)
    out = model.apply(params, X)
    weighted = weighted_tangent_kernel(model.apply, params, (X, targets), out, loss=loss)
    modes = interventions.modes_of(weighted, out, targets, loss=loss)
    filtered = interventions.filtered_gradient(
        model.apply, params, (X, targets), modes, jnp.ones(len(modes.eigenvalues)), loss=loss
    )
    gradient = jax.grad(lambda p: batch_loss(model.apply(p, X), targets, loss=loss))(params)
    for ours, theirs in zip(jax.tree.leaves(filtered), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())
