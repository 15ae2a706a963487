"""The training engine: members, cadences, frozen members, and states that go on as if never stopped."""

import functools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from catapult_jax import (
    CNN,
    FCN,
    Preconditioner,
    agop_alignment,
    agop_pearson,
    batch_loss,
    checkpoints,
    critical_lr,
    data,
    events,
    find_events,
    input_jacobian,
    preconditioner_from_state,
    schedules,
)
from catapult_jax.training import Members, instruments, make_trainer


@functools.cache  # tests of one trainer share its compiled programs
def build(model=None, *, batch_size=None, every=1, scale=1.0, n=8, probe=None, schedule=None, **settings):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2 * n, 4, 4, 1)).astype(np.float32)
    y = np.sign(x.sum((1, 2)) + 0.1).astype(np.float32) * scale
    arrays = data.Data(x[:n], y[:n], x[n:], y[n:], 1, "toy", "test", "")
    model = model or FCN(depth=2, width=32)
    f = model.apply
    chosen = {
        "lambda_max_batch": instruments.lambda_max_batch(f, loss="mse", every=every, k=2),
        "loss_batch_after": instruments.loss_batch_after(f, loss="mse", every=1),
        "test": instruments.loss_test(f, loss="mse", every=3, target_encoding="sign"),
    }
    if batch_size:
        chosen["loss_train"] = instruments.loss_train(f, loss="mse", every=1)
        chosen["lambda_max_train"] = instruments.lambda_max_train(f, loss="mse", every=4, probe_size=probe, k=2)
    made = make_trainer(
        model, arrays, loss="mse", optimizer=optax.sgd, schedule=schedule or schedules.following(optax.constant_schedule(1.0)), detector=events.detector(),
        instruments=chosen, batch_size=batch_size, **settings,
    )  # fmt: skip
    return made, arrays


def members(seeds=(0, 1), rates=(0.4, 1.5)):
    pairs = [(s, r) for r in rates for s in seeds]
    return Members(
        np.array([s for s, _ in pairs], np.int32), np.array([r for _, r in pairs], np.float32), lr_unit="critical_lr0"
    )


def run(trainer, of, steps):
    state, _ = trainer.init(of)
    return trainer.run(state, steps)


def test_gradient_descent_is_gradient_descent():
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
def test_a_rate_relative_to_critical_is_that_multiple_at_every_step(batch_size):
    trainer, _ = build(schedule=schedules.relative_to_critical(), batch_size=batch_size)
    of = members((0,), (0.5, 1.2))
    _, measured = trainer.run(trainer.init(of)[0], 6)
    np.testing.assert_allclose(measured["lr"], [[0.5], [1.2]] * measured["critical_lr_batch"], rtol=1e-5)
    assert (measured["loss_batch_after"][0] < measured["loss_batch"][0]).all()


def test_critical_lr_of_adam_is_that_of_the_state_that_the_step_used():
    """The trainer's, exact and from products, against a loop over Optax and the explicit kernel."""
    adam, model = partial(optax.adam, b1=0.8, b2=0.95, eps=1e-3), FCN(depth=2, width=16)
    arrays, of = build()[1], Members(np.array([0], np.int32), np.array([0.01], np.float32))
    batch = arrays.x_train, arrays.y_train
    gradient_of = jax.jit(jax.grad(lambda p: batch_loss(model.apply(p, batch[0]), batch[1], loss="mse")))
    for make in (instruments.lambda_max_batch, partial(instruments.lambda_max_batch_matrix_free, tol=1e-3, max_products=30)):
        made = make_trainer(
            model, arrays, loss="mse", optimizer=adam, schedule=schedules.following(optax.constant_schedule(1.0)), detector=events.detector(),
            instruments={"lambda_max_batch": make(model.apply, loss="mse", every=1, k=1)}, batch_size=None,
        )  # fmt: skip
        begun, _ = made.init(of)
        params = jax.tree.map(lambda a: np.asarray(a[0]), begun.members.params)
        found = made.run(begun, 4)[1]["critical_lr_batch"][0]
        optimizer, expected = adam(0.01), []
        state = optimizer.init(params)
        for _ in range(4):
            updates, state = optimizer.update(gradient_of(params), state, params)
            rule = preconditioner_from_state(adam, params, state)
            expected.append(float(critical_lr(model.apply, params, batch, loss="mse", preconditioner=rule, method="jacobian")))
            params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(found, expected, rtol=2e-3)
    assert max(expected) > 1.2 * min(expected)  # P moves


@pytest.mark.parametrize("batch_size", [None, 3])
def test_members_together_equal_members_alone(batch_size):
    trainer, _ = build(batch_size=batch_size)
    together = run(trainer, members(), 6)[1]
    i = 0
    for rate in (0.4, 1.5):
        for seed in (0, 1):
            alone = run(trainer, members((seed,), (rate,)), 6)[1]
            for name in ("loss_batch", "lambda_max_batch", "lr", "loss_train"):
                np.testing.assert_allclose(together[name][i], alone[name][0], rtol=1e-5, err_msg=name)
            i += 1


def test_arms_together_equal_arms_alone():
    """Raises, caps and the end at a loss: each member is what it would be by itself."""
    schedule = schedules.staircase(raise_to=1.2, settle_fraction=1.0, settle_steps=3)
    trainer, _ = build(schedule=schedule, stop_loss=0.3)
    axes = [(seed, raises) for raises in (0, 2) for seed in (0, 1)]
    of = lambda pairs: Members(
        np.array([s for s, _ in pairs], np.int32), np.full(len(pairs), 0.5, np.float32),
        np.array([r for _, r in pairs], np.int32), np.full(len(pairs), 0.9, np.float32), "critical_lr0",
    )  # fmt: skip
    together = run(trainer, of(axes), 25)[1]
    for i, pair in enumerate(axes):
        alone = run(trainer, of([pair]), 25)[1]
        np.testing.assert_array_equal(together["stage"][i], alone["stage"][0])
        np.testing.assert_array_equal(together["stopped"][i], alone["stopped"][0])
        # A step above the critical lr multiplies rounding like everything else in the top eigenspace: 1e-5 up to the first one.
        above = together["lr"][i] > together["critical_lr_batch"][i]
        before = slice(int(above.argmax()) + 1 if above.any() else None)
        for name in ("loss_batch", "lr", "critical_lr_batch"):
            ours, theirs = together[name][i], alone[name][0]
            np.testing.assert_allclose(ours[before], theirs[before], rtol=1e-5, err_msg=f"{name} {pair}")
            np.testing.assert_allclose(ours, theirs, rtol=1e-2, err_msg=f"{name} {pair}")
    assert together["stage"][2:, -1].min() > 0


@pytest.mark.parametrize("model", [None, CNN(depth=2, width=4)], ids=["scanned", "stepped"])
def test_stopped_and_resumed_from_disk_is_the_same_to_the_bit(model, tmp_path):
    trainer, _ = build(model, batch_size=3)
    assert trainer.scanned == (model is None)
    of = members()
    state, _ = trainer.init(of)
    state, first = trainer.run(state, 4)
    checkpoints.save(tmp_path / "c", 4, state)
    _, rest = trainer.run(state, 4)

    again, _ = build.__wrapped__(model, batch_size=3)
    fresh, _ = again.init(of)
    restored, _ = checkpoints.restore(tmp_path / "c", fresh)
    _, resumed = again.run(restored, 4)
    for name in rest:
        np.testing.assert_array_equal(rest[name], resumed[name], err_msg=name)
    assert first["loss_batch"].shape == (4, 4)


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoints.restore(tmp_path / "none", {}) == (None, [])


@pytest.mark.parametrize("model", [None, CNN(depth=2, width=4)], ids=["scanned", "stepped"])
def test_cadence(model):
    trainer, _ = build(model, every=2, batch_size=3)
    measured = run(trainer, members((0,), (0.4,)), 8)[1]
    known = {name: np.isfinite(measured[name][0]).tolist() for name in ("lambda_max_batch", "loss_test", "lambda_max_train")}
    assert known["lambda_max_batch"] == [True, False] * 4
    assert known["loss_test"] == [True, False, False, True, False, False, True, False]
    assert known["lambda_max_train"] == [True, False, False, False] * 2


def test_batches_cover_an_epoch_and_depend_on_seed_and_step_alone():
    trainer, _ = build(batch_size=2)
    state, _ = trainer.init(members((0,), (1e-9,)))  # the weights hardly move: losses tell the batches
    of = members((0,), (1e-9,))
    losses = trainer.run(state, 8)[1]["loss_batch"][0]
    state, _ = trainer.init(of)
    total = trainer.run(state, 1)[1]["loss_train"][0, 0]
    assert np.mean(losses[:4]) == pytest.approx(total, rel=1e-3)
    assert np.mean(losses[4:]) == pytest.approx(total, rel=1e-3)
    assert not np.allclose(losses[:4], losses[4:])


def test_a_diverged_member_is_frozen_and_the_others_do_not_notice():
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


def test_online_spikes_are_those_of_the_record():
    trainer, _ = build()
    measured = run(trainer, members((0, 1, 2), (1.5,)), 30)[1]
    for m in range(3):
        found = find_events(measured["loss_train"][m], measured["lr"][m], measured["critical_lr_batch"][m])
        assert measured["spikes"][m, -1] == len(found)


def test_split_adds_up_and_gd_names_are_aliases():
    measured = run(build()[0], members(), 5)[1]
    np.testing.assert_allclose(measured["loss_top"] + measured["loss_rest"], measured["loss_batch"], rtol=1e-4)
    np.testing.assert_array_equal(measured["loss_train"], measured["loss_batch"])
    np.testing.assert_array_equal(measured["critical_lr_train"], measured["critical_lr_batch"])
    np.testing.assert_allclose(measured["critical_lr_batch"] * measured["lambda_max_batch"], 2, rtol=1e-6)


def test_batch_larger_than_the_data():
    with pytest.raises(ValueError, match="batch_size=9; allowed: 1 to 8, or None"):
        build(batch_size=9)


def trained(chosen, batch_size=3, steps=4):
    """Series of one member, trained with these instruments."""
    made = make_trainer(
        FCN(depth=2, width=16), build()[1], loss="mse", optimizer=optax.sgd, schedule=schedules.following(optax.constant_schedule(1.0)),
        detector=events.detector(horizon=2), instruments=chosen, batch_size=batch_size,
    )  # fmt: skip
    return run(made, members((0,), (0.5,)), steps)[1]


def test_labels_of_instruments_change_no_series():
    """Neither when an instrument measures nor whether the training loss is known hangs on what a caller names it."""
    f = FCN(depth=2, width=16).apply
    late, known = instruments.loss_batch_after(f, loss="mse", every=1), instruments.loss_train(f, loss="mse", every=1)
    usual, other = trained({"loss_batch_after": late, "loss_train": known}), trained({"x": late, "y": known})
    assert usual.keys() == other.keys() and (usual["loss_batch_after"] != usual["loss_batch"]).all()
    for name, values in usual.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


@pytest.mark.parametrize("label", ["loss_train", "loss of all examples"])
def test_divergence_is_told_where_the_training_loss_is_measured_at_every_step(label):
    """The measured loss doubles at every step: a spike that does not close, whatever the batches do."""
    rising = lambda every: instruments.Instrument(
        ("loss_train",),
        every,
        lambda now: {"loss_train": 1 / now.lr},
    )
    for every, diverged in ((1, True), (2, False)):
        grows = schedules.following(lambda step: 2.0**-step)
        made = make_trainer(
            FCN(depth=2, width=16), build()[1], loss="mse", optimizer=optax.sgd, schedule=grows, detector=events.detector(horizon=2),
            instruments={label: rising(every)}, batch_size=3,
        )  # fmt: skip
        assert run(made, members((0,), (0.01,)), 12)[1]["diverged"][0, -1] == diverged


def test_check_instruments_refuses_two_that_write_one_series():
    f = FCN(depth=2, width=16).apply
    one, two = (instruments.loss_test(f, loss="mse", every=every, target_encoding="value") for every in (1, 2))
    with pytest.raises(
        ValueError, match="instruments 'a' and 'b' both write the series 'loss_test'; allowed: one for each series"
    ):
        trained({"a": one, "b": two})
    own = instruments.Instrument(("lr",), 1, lambda now: {"lr": now.lr})
    with pytest.raises(ValueError, match="instrument 'mine' and the step itself write the series 'lr'"):
        trained({"mine": own})
    with pytest.raises(ValueError, match="instrument 'mine': every=0; allowed: 1 or more"):
        trained({"mine": one._replace(every=0)})


def test_measure_refuses_an_instrument_that_writes_other_series_than_it_says():
    other = instruments.Instrument(("a", "b"), 1, lambda now: {"a": now.lr})
    with pytest.raises(ValueError, match=r"instrument 'mine' writes \['a'\]; allowed: its series \['a', 'b'\]"):
        trained({"mine": other})


def test_an_instrument_after_the_update_carries_too():
    """What it carries: how often it was run. It reads the weights after the update."""

    def count(now, carried):
        moved = jax.tree.map(lambda a, b: jnp.abs(a - b).sum(), now.params, now.new_params)
        return {"count": carried, "moved": sum(jax.tree.leaves(moved))}, carried + 1

    counting = instruments.Instrument(("count", "moved"), 2, count, lambda now: jnp.float32(0), after_update=True)
    measured = trained({"n": counting}, steps=5)
    np.testing.assert_array_equal(measured["count"][0], [0, np.nan, 1, np.nan, 2])
    assert (measured["moved"][0, ::2] > 0).all()


@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_member_stops_at_the_loss_and_keeps_those_weights(batch_size):
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


def test_raises_and_caps_of_members():
    """Arms of one program: no raise, one raise, and held below the critical lr of each step from step 3 on."""
    schedule = schedules.staircase(raise_to=1.3, settle_fraction=1.0, settle_steps=4, cap_from=3)
    trainer, _ = build(schedule=schedule)
    of = Members(
        np.zeros(3, np.int32),
        np.array([0.5, 0.5, 1.1], np.float32),
        np.array([0, 1, 0]),
        np.array([np.inf, np.inf, 0.5]),
        "critical_lr0",
    )
    measured = run(trainer, of, 12)[1]
    ratio = measured["lr"] / measured["critical_lr_batch"]
    assert measured["stage"][:, -1].tolist() == [0, 1, 0]
    raised = int(measured["stage"][1].argmax())
    assert ratio[1, raised] == pytest.approx(1.3, rel=1e-5)
    np.testing.assert_array_equal(measured["loss_batch"][0, : raised + 1], measured["loss_batch"][1, : raised + 1])
    assert ratio[2, :3].max() > 0.9 and ratio[2, 3:].max() <= 0.5 * (1 + 1e-5)


def test_a_cap_that_is_never_reached_changes_nothing():
    trainer, _ = build(batch_size=3)
    of = members((0, 1), (0.05,))
    plain = run(trainer, of, 6)[1]
    capped = run(trainer, of._replace(cap=np.array([1e6, 1e6], np.float32)), 6)[1]
    np.testing.assert_array_equal(plain["loss_batch"], capped["loss_batch"])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_momentum_is_that_of_optax_and_moves_the_critical_lr(momentum):
    f = FCN(depth=2, width=32).apply
    made, arrays = build()
    chosen = {"lambda_max_batch": instruments.lambda_max_batch(f, loss="mse", every=1, k=2)}
    trainer = make_trainer(
        FCN(depth=2, width=32), arrays, loss="mse", optimizer=partial(optax.sgd, momentum=momentum or None),
        schedule=schedules.following(optax.constant_schedule(1.0)), detector=events.detector(), instruments=chosen,
    )  # fmt: skip
    of = members((0,), (0.3,))
    start = trainer.init(of)[1]
    assert start.critical_lr[0] == pytest.approx((1 + momentum) * made.init(of)[1].critical_lr[0], rel=1e-5)
    measured = run(trainer, of, 3)[1]
    np.testing.assert_allclose(measured["critical_lr_batch"] * measured["lambda_max_batch"], 2 * (1 + momentum), rtol=1e-5)


def test_agop_and_validation_instruments():
    """Against the same numbers taken outside the program."""
    model = FCN(depth=2, width=32)
    arrays = build()[1]
    arrays = arrays._replace(x_val=arrays.x_test[:3], y_val=arrays.y_test[:3])
    reference = np.random.default_rng(0).standard_normal((6, 16)).astype(np.float32)
    chosen = {
        "agop": instruments.agop_alignment(model.apply, every=2, reference=reference, size=6),
        "val": instruments.loss_test(model.apply, loss="mse", every=1, target_encoding="sign", split="val"),
        "lambda_max_train": instruments.lambda_max_train(model.apply, loss="mse", every=1, probe_size=None, k=2),
    }
    trainer = make_trainer(
        model, arrays, loss="mse", optimizer=optax.sgd, schedule=schedules.following(optax.constant_schedule(1.0)), detector=events.detector(),
        instruments=chosen, batch_size=4,
    )  # fmt: skip
    of = members((0, 1), (0.1,))
    state, _ = trainer.init(of)
    start = jax.tree.map(np.asarray, state.members.params)
    measured = trainer.run(state, 3)[1]
    for m in range(2):
        params = jax.tree.map(lambda a, m=m: a[m], start)
        rows = input_jacobian(model.apply, params, arrays.x_train[:6])
        assert measured["agop_alignment"][m, 0] == pytest.approx(float(agop_alignment(rows, reference)), rel=1e-5)
        assert measured["agop_pearson"][m, 0] == pytest.approx(float(agop_pearson(rows, reference)), rel=1e-4)
        error = (model.apply(params, arrays.x_val) > 0) != (arrays.y_val > 0)
        assert measured["error_val"][m, 0] == pytest.approx(float(error.mean()))
        expected = ((model.apply(params, arrays.x_train) - arrays.y_train) ** 2).mean()
        parts = measured["loss_train_top"][m, 0] + measured["loss_train_rest"][m, 0]
        assert parts == pytest.approx(float(expected), rel=1e-4)
    assert np.isnan(measured["agop_alignment"][:, 1]).all()


def test_a_model_as_a_file(tmp_path):
    model = FCN(depth=2, width=4)
    params = model.init(jax.random.key(0), np.ones((1, 3)))
    checkpoints.save_model(tmp_path / "model.npz", params, {"error_test": 0.25})
    again, about, checksum = checkpoints.load_model(tmp_path / "model.npz")
    assert about == {"error_test": 0.25} and len(checksum) == 64
    assert jax.tree.structure(again) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    (tmp_path / "model.npz").write_bytes((tmp_path / "model.npz").read_bytes()[:100])
    with pytest.raises(ValueError, match="is no saved model"):
        checkpoints.load_model(tmp_path / "model.npz")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(ValueError, match=r"other.npz is no saved model \(.*about"):
        checkpoints.load_model(tmp_path / "other.npz")


@pytest.mark.parametrize("model", [None, CNN(depth=2, width=4)], ids=["scanned", "stepped"])
def test_products_measure_what_the_kernel_does_and_training_does_not_notice(model):
    """Warm-started from step to step and batch to batch, while an SGD run changes both."""
    of = members((0, 1), (0.8,))
    exact, arrays = build(model, batch_size=4)
    _, expected = run(exact, of, 8)
    model = model or FCN(depth=2, width=32)
    shared = dict(loss="mse", k=2, tol=1e-3, max_products=4 if exact.scanned else 2)  # more would be unrolled
    chosen = {
        "lambda_max_batch": instruments.lambda_max_batch_matrix_free(model.apply, every=1, **shared),
        "loss_train": instruments.loss_train(model.apply, loss="mse", every=1),
    }
    if exact.scanned:
        chosen["lambda_max_train"] = instruments.lambda_max_train_matrix_free(
            model.apply, every=4, probe_size=None, chunk_size=3, **shared | {"max_products": 8}
        )
    made = make_trainer(
        model, arrays, loss="mse", optimizer=optax.sgd, schedule=schedules.following(optax.constant_schedule(1.0)), detector=events.detector(),
        instruments=chosen, batch_size=4, matrix_free=True,
    )  # fmt: skip
    state, start = made.init(of)
    exact_start = exact.init(of)[1]
    np.testing.assert_allclose(start.critical_lr, exact_start.critical_lr, rtol=0.011)
    state = state._replace(members=state.members._replace(schedule=exact.init(of)[0].members.schedule))  # the same rates
    state, found = made.run(state, 8)
    np.testing.assert_allclose(found["loss_batch"], expected["loss_batch"], rtol=1e-5)
    known = found["converged"] == 1
    assert known.all() if exact.scanned else known[:, 1:].all()  # two products are too few for a cold start of four outputs
    for name in ("lambda_max_batch", "lambda_max_train")[: 1 + exact.scanned]:
        np.testing.assert_allclose(np.where(known, found[name], 0), np.where(known, expected[name], 0), rtol=3e-3)
    assert (np.abs(found["lambda_max_batch"] - expected["lambda_max_batch"]) <= found["eigenvalue_bounds"][..., 0] + 1e-5).all()
    top = [np.where(known, measured["loss_top"], 0) for measured in (found, expected)]
    np.testing.assert_allclose(*top, rtol=0.1, atol=1e-3)
    np.testing.assert_allclose(found["loss_top"] + found["loss_rest"], found["loss_batch"], rtol=1e-4)


def test_more_eigenvalues_are_followed_as_the_rate_makes_them_critical():
    """Those above 0.8 times ``2 / lr``, and the next one; in a run of the step before, counted with the exact kernel of the same run."""
    model, arrays = FCN(depth=2, width=32), build()[1]
    products = instruments.lambda_max_batch_matrix_free(model.apply, loss="mse", every=1, k=2, k_max=5, tol=1e-3)

    params = model.init(jax.random.key(0), arrays.x_train[:1])
    batch = arrays.x_train, arrays.y_train
    now = instruments.Moment(params, params, batch, model.apply(params, batch[0]), {}, lr=np.float32(1))
    exact = np.asarray(
        instruments.lambda_max_batch(model.apply, loss="mse", every=1, k=8, follow=False).measure(now)["eigenvalues"]
    )
    directions, take, counts = products.start(now), jax.jit(products.measure), []
    with pytest.raises(ValueError, match=r"Moment.lr=None; allowed with k_max=5, k=2: the learning rate"):
        products.measure(now._replace(lr=None), directions)
    for critical in (2.0 * exact[0], 0.9 * exact[2], 1.1 * exact[3], 0.5 * exact[7]):  # the lr is critical for this eigenvalue
        found, directions = take(now._replace(lr=2 / critical), directions)
        count = int(found["tracked"])
        np.testing.assert_allclose(found["eigenvalues"][:count], exact[:count], rtol=2e-3)
        assert np.isnan(found["eigenvalues"][count:]).all() and np.isnan(found["eigenvalue_bounds"][count:]).all()
        counts.append(count)
    assert counts == [
        np.clip(1 + (exact > 0.8 * c).sum(), 2, 5) for c in (2.0 * exact[0], 0.9 * exact[2], 1.1 * exact[3], 0.5 * exact[7])
    ]
    assert counts[0] == 2 and counts[1] >= 4 and counts[3] == 5
    # Three above, with a momentum's gain and a decay: (2 / lr - decay) / gain.
    between = (exact[2] * exact[3]) ** 0.5
    rule = jax.tree_util.Partial(lambda decay: Preconditioner(gain=2.0, decay=decay), 2 * exact[0] - 2.0 * between / 0.8)
    found, _ = take(now._replace(lr=1 / exact[0], preconditioner=rule), directions)
    assert int(found["tracked"]) == 4

    def measured(kernel):
        made = make_trainer(
            model, arrays, loss="mse", optimizer=optax.sgd, schedule=schedules.following(optax.constant_schedule(0.1)),
            detector=events.detector(), instruments={"lambda_max_batch": kernel}, batch_size=None,
        )  # fmt: skip
        return run(made, members((0,), (1.0, 9.0)), 3)[1]

    exact = measured(instruments.lambda_max_batch(model.apply, loss="mse", every=1, k=8, follow=False))
    split = measured(instruments.lambda_max_batch(model.apply, loss="mse", every=1, k=1, follow=False))
    found = measured(instruments.lambda_max_batch_matrix_free(model.apply, loss="mse", every=1, k=1, k_max=5, tol=1e-5))
    before = np.concatenate([10 * exact["lr"][:, :1], exact["lr"][:, :-1]], 1)  # at the first step that of the start
    above = (exact["eigenvalues"] > 0.8 * 2 / before[..., None]).sum(-1)
    np.testing.assert_array_equal(found["tracked"], np.clip(above + 1, 1, 5))
    assert found["tracked"][:, 1].tolist() == [1, 2] and found["tracked"][1, 0] > 2
    # That of the first one; an eigenvalue to 1e-5 is a vector to the root of that.
    np.testing.assert_allclose(found["loss_top"], split["loss_top"], rtol=0.02)


class _Counted(FCN):
    """Tells how often it was traced."""

    @nn.compact
    def __call__(self, x):
        _TRACES.append(1)
        return super().__call__(x)


class _CountedConvolutions(CNN):  # not scanned: their steps are driven by Python
    @nn.compact
    def __call__(self, x):
        _TRACES.append(1)
        return super().__call__(x)


_TRACES = []


@pytest.mark.parametrize("model", [_Counted(depth=2, width=8), _CountedConvolutions(depth=2, width=2)], ids=["fcn", "cnn"])
def test_nothing_is_compiled_after_the_first_chunk(model):
    trainer, _ = build(model, batch_size=4)
    assert trainer.scanned == isinstance(model, FCN)
    of = members((0,), (0.4,))
    state, _ = trainer.init(of)
    state, first = trainer.run(state, 5, 5)
    traces = len(_TRACES)
    state, _ = trainer.run(state, 5, 5)
    state, last = trainer.run(state, 3, 5)  # a shorter one, before a checkpoint or at the end
    assert traces > 0 and len(_TRACES) == traces
    assert first["lr"].shape == (1, 5) and last["lr"].shape == (1, 3) and int(state.step) == 13


def test_a_short_chunk_is_the_beginning_of_a_long_one():
    of = members((0, 1), (0.4, 3.0))
    trainer, _ = build(batch_size=4, every=1)
    whole_state, whole = run(trainer, of, 7)
    state, _ = trainer.init(of)
    state, one = trainer.run(state, 3, 5)
    state, two = trainer.run(state, 4, 5)
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([one[name], two[name]], 1), values)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(whole_state))
