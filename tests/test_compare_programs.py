"""Programs of one function for two batch sizes: equal up to the batch size, or not."""

import jax
import jax.numpy as jnp
import pytest

from catapult_jax.tangent.compare_programs import same_program


def programs(function, b: int, c: int):
    return (jax.make_jaxpr(function)(jnp.ones((size, 4))) for size in (b, c))


@pytest.mark.parametrize(
    "function",
    [
        lambda h: jnp.tanh(h @ jnp.ones((4, 3))),
        lambda h: h.reshape(-1, 2).reshape(len(h), 4),
        lambda h: jnp.pad(h, ((0, 0), (1, 2))),
        lambda h: jax.lax.map(jnp.tanh, h),
        lambda h: jax.jit(jnp.sin)(h),
        lambda h: (h / len(h), jnp.tanh(h))[1],
    ],
    ids=["product", "reshape", "pad", "map", "jit", "unused operation"],
)
def test_same_program_for_each_batch_size(function):
    assert same_program(*programs(function, 5, 2), 5, 2)


@pytest.mark.parametrize(
    "function",
    [
        lambda h: h / len(h),
        lambda h: h ** len(h),
        lambda h: 2 * h if len(h) > 3 else h,
        lambda h: h + jnp.ones(4) * (3.0 if len(h) > 3 else 2.0),
        lambda h: jax.jit(lambda h: h * len(h))(h),
        lambda h: jnp.sin(jnp.cos(h)) if len(h) > 3 else jnp.cos(jnp.sin(h)),
    ],
    ids=["division", "power", "branch", "constant", "inside jit", "order"],
)
def test_same_program_is_false_if_it_depends_on_the_batch_size(function):
    assert not same_program(*programs(function, 5, 2), 5, 2)
