"""One thing after another: the arrays stay what they are, whatever they wait for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax.xla import after


@pytest.mark.parametrize("done", [0.0, -3.0, jnp.nan, jnp.inf, -jnp.inf])
def test_nothing_changes(done):
    tree = {
        "single": jnp.array([1.5, jnp.inf]),
        "half": jnp.array([1.5], jnp.bfloat16),
        "ids": jnp.array([-1, 7]),
        "mask": jnp.array([True, False]),
        "none": jnp.zeros((0, 2)),
    }
    found = jax.jit(after)(jnp.full((2, 2), done), tree)
    for name, leaf in tree.items():
        assert found[name].dtype == leaf.dtype
        np.testing.assert_array_equal(found[name], leaf)


def test_what_members_share_stays_shared():
    """Under vmap, also in another one, what is the same for all is not held once for each."""
    shared, own = jnp.ones(5), jnp.ones((3, 4, 2))
    found = jax.vmap(jax.vmap(lambda done: after(done, shared), out_axes=None), out_axes=None)(own)
    np.testing.assert_array_equal(found, shared)
    with pytest.raises(ValueError, match="out_axes"):  # of plain arithmetic
        jax.vmap(lambda done: shared * done[0, 0], out_axes=None)(own)
