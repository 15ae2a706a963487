"""Many steps of many members: together or alone, in long or short chunks, compiled once."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from catapult_jax import (
    CNN,
    FCN,
    schedules,
)
from catapult_jax.training import Members
from tests.helpers_training import build, members, run


@pytest.mark.parametrize("batch_size", [None, 3])
def test_chunk_of_members_together_equals_each_alone(batch_size):
    trainer, _ = build(batch_size=batch_size)
    together = run(trainer, members(), 6)[1]
    i = 0
    for rate in (0.4, 1.5):
        for seed in (0, 1):
            alone = run(trainer, members((seed,), (rate,)), 6)[1]
            for name in ("loss_batch", "lambda_max_batch", "lr", "loss_train"):
                np.testing.assert_allclose(together[name][i], alone[name][0], rtol=1e-5, err_msg=name)
            i += 1


def test_chunk_of_arms_together_equals_each_alone():
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
def test_chunk_keeps_the_cadence(model):
    trainer, _ = build(model, every=2, batch_size=3)
    measured = run(trainer, members((0,), (0.4,)), 8)[1]
    is_measured = {
        name: np.isfinite(measured[name][0]).tolist() for name in ("lambda_max_batch", "loss_test", "lambda_max_train")
    }
    assert is_measured["lambda_max_batch"] == [True, False] * 4
    assert is_measured["loss_test"] == [True, False, False, True, False, False, True, False]
    assert is_measured["lambda_max_train"] == [True, False, False, False] * 2


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
def test_chunk_compiles_nothing_after_the_first(model):
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


def test_chunk_that_is_short_is_the_beginning_of_a_long_one():
    of = members((0, 1), (0.4, 3.0))
    trainer, _ = build(batch_size=4, every=1)
    whole_state, whole = run(trainer, of, 7)
    state, _ = trainer.init(of)
    state, first_steps = trainer.run(state, 3, 5)
    state, last_steps = trainer.run(state, 4, 5)
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([first_steps[name], last_steps[name]], 1), values)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(whole_state))
