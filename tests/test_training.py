"""The training engine: members, cadences, frozen members, and states that go on as if never stopped."""

import jax
import numpy as np
import optax
import pytest

from catapult_jax import CNN, FCN, checkpoints, data, events, find_events, instruments, schedules, training


def build(model=None, *, batch_size=0, every=1, scale=1.0, n=8, probe=0, scanned=None):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2 * n, 4, 4, 1)).astype(np.float32)
    y = np.sign(x.sum((1, 2)) + 0.1).astype(np.float32) * scale
    arrays = data.Data(x[:n], y[:n], x[n:], y[n:], 1, "toy", "test", "")
    model = model or FCN(depth=2, width=32)
    f = model.apply
    chosen = {
        "batch_kernel": instruments.batch_kernel(f, loss="mse", every=every, k=2),
        "loss_after": instruments.loss_after(f, loss="mse", every=1),
        "test": instruments.scores(f, loss="mse", every=3, coding="sign"),
    }
    if batch_size:
        chosen["train_loss"] = instruments.train_loss(f, loss="mse", every=1)
        chosen["train_kernel"] = instruments.train_kernel(f, loss="mse", every=4, probe_size=probe, k=2)
    made = training.trainer(
        model, arrays, loss="mse", optimizer=optax.sgd, schedule=schedules.constant(), detector=events.detector(),
        instruments=chosen, batch_size=batch_size,
    )  # fmt: skip
    return made, arrays


def members(seeds=(0, 1), rates=(0.4, 1.5)):
    pairs = [(s, r) for r in rates for s in seeds]
    return training.Members(np.array([s for s, _ in pairs], np.int32), None, np.array([r for _, r in pairs], np.float32))


def run(trainer, of, steps):
    state, _ = trainer.init(of)
    return trainer.run(state, of, steps)


def test_gradient_descent_is_gradient_descent():
    """Against a plain loop in float64."""
    trainer, arrays = build()
    of = members((0,), (0.4,))
    state, start = trainer.init(of)
    model = FCN(depth=2, width=32)
    w = jax.tree.map(lambda a: np.asarray(a[0], np.float64), state.members.params)
    _, measured = trainer.run(state, of, 5)
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


@pytest.mark.parametrize("batch_size", [0, 3])
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


@pytest.mark.parametrize("model", [None, CNN(depth=2, width=4)], ids=["scanned", "stepped"])
def test_stopped_and_resumed_from_disk_is_the_same_to_the_bit(model, tmp_path):
    trainer, _ = build(model, batch_size=3)
    assert trainer.scanned == (model is None)
    of = members()
    state, _ = trainer.init(of)
    state, first = trainer.run(state, of, 4)
    checkpoints.save(tmp_path / "c", 4, state)
    _, rest = trainer.run(state, of, 4)

    again, _ = build(model, batch_size=3)
    fresh, _ = again.init(of)
    restored = checkpoints.restore(tmp_path / "c", fresh)
    _, resumed = again.run(restored, of, 4)
    for name in rest:
        np.testing.assert_array_equal(rest[name], resumed[name], err_msg=name)
    assert first["loss_batch"].shape == (4, 4)


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoints.restore(tmp_path / "none", {}) is None


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
    losses = trainer.run(state, of, 8)[1]["loss_batch"][0]
    state, _ = trainer.init(of)
    total = trainer.run(state, of, 1)[1]["loss_train"][0, 0]
    assert np.mean(losses[:4]) == pytest.approx(total, rel=1e-3)
    assert np.mean(losses[4:]) == pytest.approx(total, rel=1e-3)
    assert not np.allclose(losses[:4], losses[4:])


def test_a_diverged_member_is_frozen_and_the_others_do_not_notice():
    trainer, _ = build()
    both = members((0,), (0.4, 1e6))
    state, measured = run(trainer, both, 30)
    alone = run(trainer, members((0,), (0.4,)), 30)[1]
    assert measured["alive"][:, -1].tolist() == [True, False]
    np.testing.assert_allclose(measured["loss_batch"][0], alone["loss_batch"][0], rtol=1e-5)
    stop = int(np.argmin(measured["alive"][1]))
    frozen = jax.tree.map(lambda a: np.asarray(a[1]), state.members.params)
    later = trainer.run(state, both, 2)[0]
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
    with pytest.raises(ValueError, match="batch_size=9; allowed: 0"):
        build(batch_size=9)
