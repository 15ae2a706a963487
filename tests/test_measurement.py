"""What instruments declare, and how a step runs them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax import FCN
from catapult_jax.training import instruments
from catapult_jax.training.measurement import Instrument
from tests.helpers_training import trained


def test_check_instruments_refuses_two_that_write_one_series():
    f = FCN(depth=2, width=16).apply
    often, rarely = (instruments.loss_test(f, loss="mse", every=every, target_encoding="value") for every in (1, 2))
    with pytest.raises(
        ValueError, match="instruments 'a' and 'b' both write the series 'loss_test'; allowed: one for each series"
    ):
        trained({"a": often, "b": rarely})
    of_lr = Instrument(("lr",), 1, lambda now: {"lr": now.lr})
    with pytest.raises(ValueError, match="instrument 'mine' and the step itself write the series 'lr'"):
        trained({"mine": of_lr})
    with pytest.raises(ValueError, match="instrument 'mine': every=0; allowed: 1 or more"):
        trained({"mine": often._replace(every=0)})


def test_measure_refuses_an_instrument_that_writes_other_series_than_it_says():
    other = Instrument(("a", "b"), 1, lambda now: {"a": now.lr})
    with pytest.raises(ValueError, match=r"instrument 'mine' writes \['a'\]; allowed: its series \['a', 'b'\]"):
        trained({"mine": other})


def test_measure_after_the_update_carries_on():
    """It carries the number of its runs, and reads the weights after the update."""

    def count(now, carried):
        moved = jax.tree.map(lambda a, b: jnp.abs(a - b).sum(), now.params, now.new_params)
        return {"count": carried, "moved": sum(jax.tree.leaves(moved))}, carried + 1

    counting = Instrument(("count", "moved"), 2, count, lambda now: jnp.float32(0), after_update=True)
    measured = trained({"n": counting}, steps=5)
    np.testing.assert_array_equal(measured["count"][0], [0, np.nan, 1, np.nan, 2])
    assert (measured["moved"][0, ::2] > 0).all()
