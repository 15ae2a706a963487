"""The axis of the examples through traced programs, against the Jacobian of each program."""

import jax
import pytest

from catapult_jax.tangent import batch_axis
from tests.zoo import ZOO, build


@pytest.mark.parametrize("name", ZOO)
def test_follow_proves_every_model_of_the_zoo(name):
    apply_fn, params, x = build(name)
    traced = {b: jax.make_jaxpr(apply_fn)(params, jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype)) for b in (2, 5)}
    assert batch_axis.follow(traced[5], len(jax.tree.leaves(params)), 5) is None
    assert batch_axis.same_program(traced[5], traced[2], 5, 2)
