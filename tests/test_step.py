"""One step: descent, batches, momentum, divergence and the stop at a loss."""

from functools import partial

import jax
import numpy as np
import optax
import pytest

from catapult_jax import (
    FCN,
    batch_loss,
    critical_lr,
    detector,
    find_events,
    preconditioner_from_state,
    schedules,
)
from catapult_jax.training import Members, instruments, make_trainer
from catapult_jax.training.interventions import KINDS, Arm
from tests.helpers_training import build, members, run, trained


def test_step_of_gradient_descent_against_a_float64_loop():
    """Against a plain loop in float64."""
    trainer, arrays = build()
    of = members((0,), (0.4,))
    state, start = trainer.init(of)
    model = FCN(depth=2, width=32)
    w = jax.tree.map(lambda a: np.asarray(a[0], np.float64), state.members.params)
    _, measured = trainer.run(state, 5)
    with jax.enable_x64():
        loss = lambda w: ((model.apply(w, arrays.x_train.astype(np.float64)) - arrays.y_train) ** 2).sum(1).mean()
        value_and_grad = jax.jit(jax.value_and_grad(loss))
        expected = []
        for _ in range(5):
            value, gradient = value_and_grad(w)
            expected.append(float(value))
            w = jax.tree.map(lambda a, g: a - float(start.lr[0]) * g, w, gradient)
    np.testing.assert_allclose(measured["loss_batch"][0], expected, rtol=1e-4)
    np.testing.assert_allclose(measured["loss_batch"][0, 1:], measured["loss_batch_after"][0, :-1], rtol=1e-5)
    np.testing.assert_allclose(start.lr, 0.4 * start.critical_lr, rtol=1e-6)
    np.testing.assert_allclose(measured["critical_lr_batch"][0, 0], start.critical_lr[0], rtol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_next_lr_relative_to_critical_holds_at_every_step(batch_size):
    trainer, _ = build(schedule=schedules.relative_to_critical(), batch_size=batch_size)
    of = members((0,), (0.5, 1.2))
    _, measured = trainer.run(trainer.init(of)[0], 6)
    np.testing.assert_allclose(measured["lr"], [[0.5], [1.2]] * measured["critical_lr_batch"], rtol=1e-5)
    assert (measured["loss_batch_after"][0] < measured["loss_batch"][0]).all()


@pytest.mark.long
def test_measure_before_takes_the_adam_state_of_the_step():
    """The trainer's, exact and from products, against a loop over Optax and the explicit kernel."""
    adam, model = partial(optax.adam, b1=0.8, b2=0.95, eps=1e-3), FCN(depth=2, width=16)
    arrays, of = build()[1], Members(np.array([0], np.int32), np.array([0.01], np.float32))
    batch = arrays.x_train, arrays.y_train
    gradient_of = jax.jit(jax.grad(lambda p: batch_loss(model.apply(p, batch[0]), batch[1], loss="mse")))
    for make in (instruments.lambda_max_batch, partial(instruments.lambda_max_batch_matrix_free, tol=1e-3, max_products=30)):
        trainer = make_trainer(
            model, arrays, loss="mse", optimizer=adam, schedule=schedules.following(optax.constant_schedule(1.0)), detector=detector(),
            instruments={"lambda_max_batch": make(model.apply, loss="mse", every=1, k=1)}, batch_size=None,
        )  # fmt: skip
        begun, _ = trainer.init(of)
        params = jax.tree.map(lambda a: np.asarray(a[0]), begun.members.params)
        rates = trainer.run(begun, 4)[1]["critical_lr_batch"][0]
        optimizer, expected = adam(0.01), []
        state = optimizer.init(params)
        for _ in range(4):
            updates, state = optimizer.update(gradient_of(params), state, params)
            rule = preconditioner_from_state(optimizer, params, None, state)
            expected.append(float(critical_lr(model.apply, params, batch, loss="mse", preconditioner=rule, method="jacobian")))
            params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(rates, expected, rtol=2e-3)
    assert max(expected) > 1.2 * min(expected)  # P moves


def test_draw_batch_covers_an_epoch():
    trainer, _ = build(batch_size=2)
    state, _ = trainer.init(members((0,), (1e-9,)))  # the weights hardly move: losses tell the batches
    of = members((0,), (1e-9,))
    losses = trainer.run(state, 8)[1]["loss_batch"][0]
    state, _ = trainer.init(of)
    total = trainer.run(state, 1)[1]["loss_train"][0, 0]
    assert np.mean(losses[:4]) == pytest.approx(total, rel=1e-3)
    assert np.mean(losses[4:]) == pytest.approx(total, rel=1e-3)
    assert not np.allclose(losses[:4], losses[4:])


def test_freeze_keeps_a_diverged_member_and_leaves_the_others():
    trainer, _ = build()
    both = members((0,), (0.4, 1e6))
    state, measured = run(trainer, both, 30)
    alone = run(trainer, members((0,), (0.4,)), 30)[1]
    assert measured["diverged"][:, -1].tolist() == [False, True]
    np.testing.assert_allclose(measured["loss_batch"][0], alone["loss_batch"][0], rtol=1e-5)
    stop = int(np.argmax(measured["diverged"][1]))
    frozen = jax.tree.map(lambda a: np.asarray(a[1]), state.members.params)
    later = trainer.run(state, 2)[0]
    for a, b in zip(jax.tree.leaves(frozen), jax.tree.leaves(later.members.params), strict=True):
        np.testing.assert_array_equal(a, b[1])
    assert 0 < stop < 30


def test_detect_counts_the_spikes_of_the_record():
    trainer, _ = build()
    measured = run(trainer, members((0, 1, 2), (1.5,)), 30)[1]
    for m in range(3):
        spikes = find_events(measured["loss_train"][m], measured["lr"][m], measured["critical_lr_batch"][m])
        assert measured["spikes"][m, -1] == len(spikes)


def test_step_of_full_batch_names_its_series_for_train_too():
    measured = run(build()[0], members(), 5)[1]
    np.testing.assert_allclose(measured["loss_top"] + measured["loss_rest"], measured["loss_batch"], rtol=1e-4)
    np.testing.assert_array_equal(measured["loss_train"], measured["loss_batch"])
    np.testing.assert_array_equal(measured["critical_lr_train"], measured["critical_lr_batch"])
    np.testing.assert_allclose(measured["critical_lr_batch"] * measured["lambda_max_batch"], 2, rtol=1e-6)


def test_step_ignores_the_labels_of_instruments():
    """Labels decide neither when an instrument measures nor whether the training loss is known."""
    f = FCN(depth=2, width=16).apply
    late, train = instruments.loss_batch_after(f, loss="mse", every=1), instruments.loss_train(f, loss="mse", every=1)
    usual, other = trained({"loss_batch_after": late, "loss_train": train}), trained({"x": late, "y": train})
    assert usual.keys() == other.keys() and (usual["loss_batch_after"] != usual["loss_batch"]).all()
    for name, values in usual.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


@pytest.mark.parametrize("label", ["loss_train", "loss of all examples"])
def test_freeze_needs_the_training_loss_at_every_step_for_divergence(label):
    """The measured loss doubles at every step: a spike that does not close, whatever the batches do."""
    rising = lambda every: instruments.Instrument(
        ("loss_train",),
        every,
        lambda now: {"loss_train": 1 / now.lr},
    )
    for every, diverged in ((1, True), (2, False)):
        grows = schedules.following(lambda step: 2.0**-step)
        trainer = make_trainer(
            FCN(depth=2, width=16), build()[1], loss="mse", optimizer=optax.sgd, schedule=grows, detector=detector(horizon=2),
            instruments={label: rising(every)}, batch_size=3,
        )  # fmt: skip
        assert run(trainer, members((0,), (0.01,)), 12)[1]["diverged"][0, -1] == diverged


@pytest.mark.parametrize("batch_size", [None, 4])
def test_freeze_stops_a_member_at_the_loss(batch_size):
    """It is frozen at the first step whose training loss is at most the loss to stop at; the others go on."""
    trainer, arrays = build(batch_size=batch_size, stop_loss=0.5)
    of = members((0,), (0.4, 1e-4))
    state, _ = trainer.init(of)
    state, measured = trainer.run(state, 30)
    done, loss = measured["stopped"], measured["loss_train"]
    first = int(done[0].argmax())
    assert done[0, first:].all() and loss[0, first] <= 0.5 and (loss[0, :first] > 0.5).all()
    np.testing.assert_array_equal(loss[0, first:], loss[0, first])
    assert not done[1].any()
    weights = jax.tree.map(lambda a: a[0], state.members.params)
    final = float(((FCN(depth=2, width=32).apply(weights, arrays.x_train) - arrays.y_train) ** 2).mean())
    assert final == pytest.approx(loss[0, first], rel=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_step_with_momentum_moves_the_critical_lr(momentum):
    f = FCN(depth=2, width=32).apply
    plain, arrays = build()
    chosen = {"lambda_max_batch": instruments.lambda_max_batch(f, loss="mse", every=1, k=2)}
    trainer = make_trainer(
        FCN(depth=2, width=32), arrays, loss="mse", optimizer=partial(optax.sgd, momentum=momentum or None),
        schedule=schedules.following(optax.constant_schedule(1.0)), detector=detector(), instruments=chosen,
    )  # fmt: skip
    of = members((0,), (0.3,))
    start = trainer.init(of)[1]
    assert start.critical_lr[0] == pytest.approx((1 + momentum) * plain.init(of)[1].critical_lr[0], rel=1e-5)
    measured = run(trainer, of, 3)[1]
    np.testing.assert_allclose(measured["critical_lr_batch"] * measured["lambda_max_batch"], 2 * (1 + momentum), rtol=1e-5)


def arm_of(kind):
    """The same arm for both members of seeds 0 and 1, from step 2 on."""
    return Arm(
        np.full(2, KINDS.index(kind), np.int32),
        np.full(2, 2, np.int32),
        np.ones((2, 8), np.float32),
        np.ones(2, np.float32),
        np.ones(2, np.float32),
    )


def test_step_with_an_arm_that_does_nothing_is_the_step_without_one():
    trainer, of = build()[0], members((0, 1), (1.5,))

    plain, armed = run(trainer, of, 6)[1], run(trainer, of._replace(arm=arm_of("none")), 6)[1]

    # The gradient comes from the modes of the kernel, so it is equal up to rounding.
    np.testing.assert_allclose(armed["loss_batch"], plain["loss_batch"], rtol=1e-3)
    assert set(armed) - set(plain) == {"overshoot", "removed_fraction"}
    assert (armed["removed_fraction"] == 0).all()


def test_step_with_an_arm_that_removes_the_overshoot():
    trainer, of = build()[0], members((0, 1), (1.5,))

    free, armed = (run(trainer, of._replace(arm=arm_of(kind)), 6)[1] for kind in ("none", "remove_overshoot"))

    np.testing.assert_array_equal(armed["loss_batch"][:, :3], free["loss_batch"][:, :3])  # step 2 is the first that differs
    assert (free["overshoot"][:, 2] > 0).all() and (armed["overshoot"][:, 2:] == 0).all()
    assert (armed["loss_batch"][:, 3] < free["loss_batch"][:, 3]).all()


def test_step_with_an_arm_needs_the_kernel_of_the_batch():
    with pytest.raises(ValueError, match="an arm without the kernel of the batch; allowed: the instrument lambda_max_batch"):
        run(build(every=2)[0], members((0, 1), (1.5,))._replace(arm=arm_of("none")), 2)
