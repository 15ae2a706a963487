"""The wiring: members with raises and caps, and states that go on from disk."""

import numpy as np
import pytest

from catapult_jax import (
    CNN,
    checkpoints,
    schedules,
)
from catapult_jax.training import Members
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


def test_trainer_with_a_cap_that_is_never_reached():
    trainer, _ = build(batch_size=3)
    of = members((0, 1), (0.05,))
    plain = run(trainer, of, 6)[1]
    capped = run(trainer, of._replace(cap=np.array([1e6, 1e6], np.float32)), 6)[1]
    np.testing.assert_array_equal(plain["loss_batch"], capped["loss_batch"])


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
