"""The wiring: members with raises and caps, and states that go on from disk."""

import numpy as np
import optax
import pytest

from catapult_jax import CNN, FCN, checkpoints, data, detector, schedules
from catapult_jax.training import Members, instruments, make_trainer
from configs import optimizers_agop
from experiments import build as experiment
from tests.helpers_training import build, members, run


def test_make_trainer_refuses_a_batch_larger_than_the_data():
    with pytest.raises(ValueError, match="batch_size=9; allowed: 1 to 8, or None"):
        build(batch_size=9)


def test_trainer_raises_and_caps_of_members():
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


def test_trainer_finds_the_first_critical_lr_to_a_percent():
    """With the default number of products the bound on the error was two percent here."""
    config = optimizers_agop.get_config("rank4")
    config.optimizer.name, config.members.lr, config.members.seed = "rmsprop", (0.1,), (547,)
    products = experiment.build(config, None, experiment.load(config, None))
    config.measure.method = "exact"
    exact = experiment.build(config, None, experiment.load(config, None))

    (_, start), (_, expected) = (each.trainer.init(each.members) for each in (products, exact))

    assert 0 < start.error[0] <= 0.01 and expected.error[0] == 0
    np.testing.assert_allclose(start.critical_lr, expected.critical_lr, rtol=0.01)


def test_trainer_with_a_cap_that_is_never_reached():
    trainer, _ = build(batch_size=3)
    of = members((0, 1), (0.05,))
    plain = run(trainer, of, 6)[1]
    capped = run(trainer, of._replace(cap=np.array([1e6, 1e6], np.float32)), 6)[1]
    np.testing.assert_array_equal(plain["loss_batch"], capped["loss_batch"])


@pytest.mark.long
@pytest.mark.parametrize("model", [None, CNN(depth=2, width=4)], ids=["scanned", "stepped"])
def test_trainer_resumed_from_disk_gives_the_same_bits(model, tmp_path):
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


def drawn(seed):
    """Data of one member: training, validation and reference rows of the seed, test examples of all."""
    rng = np.random.default_rng(seed)
    x, x_test = rng.standard_normal((12, 4, 4, 1)), np.random.default_rng(0).standard_normal((5, 4, 4, 1))
    target = lambda x: np.sign(x.sum((1, 2)) + 0.1).astype(np.float32)
    single = lambda x: x.astype(np.float32)
    return data.Data(
        single(x[:8]), target(x[:8]), single(x_test), target(x_test), 1, "toy", "test", f"{seed}", single(x[8:]), target(x[8:]),
        single(rng.standard_normal((6, 16))),
    )  # fmt: skip


def trainer_on(arrays, model, batch_size):
    f = model.apply
    chosen = [
        instruments.lambda_max_batch(f, loss="mse", every=1, k=2, follow=batch_size is None),
        instruments.agop_alignment(f, every=2, size=6),
        *(instruments.loss_test(f, loss="mse", every=1, target_encoding="sign", split=split) for split in ("test", "val")),
        *([instruments.loss_train(f, loss="mse", every=1)] if batch_size else []),
    ]
    return make_trainer(
        model, arrays, loss="mse", optimizer=optax.sgd, schedule=schedules.following(optax.constant_schedule(1.0)),
        detector=detector(), instruments=dict(enumerate(chosen)), batch_size=batch_size,
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "batch_size"), [(FCN(depth=2, width=16), 3), (CNN(depth=2, width=4), None)], ids=["scanned", "stepped"]
)
def test_trainer_with_data_of_each_member_equals_each_alone(model, batch_size):
    of = members((3, 5), (0.4, 0.8))
    draws = {seed: drawn(seed) for seed in (3, 5)}
    trainer = trainer_on(data.by_member([draws[seed] for seed in of.seed]), model, batch_size)

    start = trainer.init(of)[1]
    together = run(trainer, of, 5)[1]

    # One by one the members have the same program as alone. Side by side their matrix products are batched, which sums in another order.
    rtol = 1e-5 if trainer.scanned else 0
    for m, seed in enumerate(of.seed):
        alone = trainer_on(draws[seed], model, batch_size)
        single = Members(of.seed[m : m + 1], of.lr[m : m + 1], lr_unit="critical_lr0")
        assert alone.init(single)[1].critical_lr[0] == start.critical_lr[m]
        for name, values in run(alone, single, 5)[1].items():
            np.testing.assert_allclose(together[name][m], values[0], rtol=rtol, atol=rtol, err_msg=f"{name} {seed}")
    assert not np.isclose(together["agop_alignment"][0, 0], together["agop_alignment"][1, 0], rtol=1e-3)


def test_trainer_takes_only_what_differs_for_each_member():
    draws = data.by_member([drawn(3), drawn(5)]).draws
    trainer = trainer_on(data.by_member(draws), FCN(depth=2, width=16), None)

    of_run = trainer.init.args[3]

    assert sorted(of_run.by_member) == ["agop_reference", "x_train", "x_val", "y_train", "y_val"]
    assert of_run.shared["x_test"].shape == (5, 4, 4, 1) and of_run.by_member["x_train"].shape == (2, 8, 4, 4, 1)


def test_trainer_with_data_of_one_member_has_the_bits_of_that_member():
    of, model = members((3,), (0.4,)), FCN(depth=2, width=16)

    with_draws = run(trainer_on(data.by_member([drawn(3)]), model, 3), of, 4)[1]

    for name, values in run(trainer_on(drawn(3), model, 3), of, 4)[1].items():
        np.testing.assert_array_equal(with_draws[name], values, err_msg=name)


def test_trainer_refuses_data_of_another_number_of_members():
    trainer = trainer_on(data.by_member([drawn(3), drawn(5)]), FCN(depth=2, width=16), None)

    with pytest.raises(ValueError, match=r"members.seed has 4 entries, the data are those of 2 members; allowed: one for each"):
        trainer.init(members((3, 5), (0.4, 0.8)))


def test_make_trainer_refuses_an_optimizer_without_a_rule():
    arrays = build()[1]
    with pytest.raises(
        ValueError, match=r"optimizer=.*lion.*: scale_by_lion normalises the update.*; allowed: an optimizer with a rule"
    ):
        make_trainer(
            FCN(depth=2, width=8), arrays, loss="mse", optimizer=optax.lion, detector=detector(), instruments={},
            schedule=schedules.following(optax.constant_schedule(1.0)),
        )  # fmt: skip
