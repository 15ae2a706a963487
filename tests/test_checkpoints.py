"""Checkpoints: saved, restored, damaged; a model as one file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax import FCN, checkpoints
from tests.helpers_runs import spoil


def states():
    first = {"a": jnp.arange(5.0), "b": (jnp.int32(3), jnp.asarray(True)), "c": jnp.ones((2, 3), jnp.bfloat16)}
    return first, {"a": first["a"] + 1, "b": (jnp.int32(4), jnp.asarray(False)), "c": 2 * first["c"]}


@pytest.mark.parametrize("damage", ["truncated", "emptied", "one bit", "another state"])
def test_restore_skips_a_damaged_checkpoint(tmp_path, damage):
    first, second = states()
    for step, state in ((5, first), (10, second)):
        checkpoints.save(tmp_path, step, state)
    state, damaged = checkpoints.restore(tmp_path, first)
    assert checkpoints.checksum(state) == checkpoints.checksum(second) and not damaged

    if damage == "another state":
        checkpoints.save(tmp_path, 10, second | {"a": jnp.arange(6.0)})
    else:
        spoil(tmp_path / "10.npz", damage)
    state, damaged = checkpoints.restore(tmp_path, first)
    assert checkpoints.checksum(state) == checkpoints.checksum(first)
    assert len(damaged) == 1 and damaged[0].startswith("the checkpoint of step 10 is damaged: ") and "\n" not in damaged[0]
    checkpoints.save(tmp_path, 10, second)  # in the place of the damaged one
    assert checkpoints.checksum(checkpoints.restore(tmp_path, first)[0]) == checkpoints.checksum(second)
    for step in (5, 10):
        spoil(tmp_path / f"{step}.npz", "emptied")
    state, damaged = checkpoints.restore(tmp_path, first)
    assert state is None and len(damaged) == 2


def test_save_keeps_the_newest_two_and_refuses_an_older_one(tmp_path):
    first, second = states()
    for step in (5, 10, 15):
        checkpoints.save(tmp_path, step, first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10.npz", "15.npz"]
    with pytest.raises(OSError, match="the checkpoint of step 7 would be older than one that is there, of step 15"):
        checkpoints.save(tmp_path, 7, second)
    state, _ = checkpoints.restore(tmp_path, first, at_most=14)
    assert checkpoints.checksum(state) == checkpoints.checksum(first)


def test_restore_of_a_checkpoint_of_an_earlier_version_is_damaged(tmp_path):
    """It was a folder. A run must not begin again over it."""
    (tmp_path / "10").mkdir()
    state, damaged = checkpoints.restore(tmp_path, states()[0])
    assert state is None and len(damaged) == 1 and damaged[0].startswith("the checkpoint of step 10 is damaged")


def test_set_aside_makes_room_for_new_checkpoints(tmp_path):
    """Else those that are damaged would stand in the way of the ones before them. They are kept, in another folder."""
    directory = tmp_path / "checkpoints"
    first, second = states()
    for step in (90, 100):
        checkpoints.save(directory, step, second)
    for _ in range(2):
        spoil(directory / "100.npz", "emptied")
        checkpoints.set_aside(directory, after=90)
        checkpoints.save(directory, 100, first)
    state, damaged = checkpoints.restore(directory, first)
    assert checkpoints.checksum(state) == checkpoints.checksum(first) and not damaged
    assert sorted(path.name for path in (tmp_path / "checkpoints-damaged").iterdir()) == ["100-1.npz", "100.npz"]


def test_restore_of_a_checkpoint_of_another_device(tmp_path):
    first, _ = states()
    checkpoints.save(tmp_path, 5, jax.device_put(first, jax.devices()[3]))
    state, damaged = checkpoints.restore(tmp_path, first)
    assert checkpoints.checksum(state) == checkpoints.checksum(first) and not damaged
    assert state["a"].devices() == {jax.devices()[0]}


def test_restore_without_a_checkpoint(tmp_path):
    assert checkpoints.restore(tmp_path / "none", {}) == (None, [])


def test_save_model_and_load_model(tmp_path):
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
