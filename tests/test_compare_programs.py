"""Programs of one function for two batch sizes: equal up to the batch size, or not."""

import jax
import jax.numpy as jnp
import pytest

from catapult_jax.tangent.compare_programs import same_names, same_program, size_is_unseen


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


UNSEEN = {
    "bias": lambda h: jnp.tanh(h @ jnp.ones((4, 3)) + jnp.arange(3.0)),
    "norm": lambda h: (h - h.mean(1, keepdims=True)) / jnp.sqrt(h.var(1, keepdims=True) + 1e-5),
    "softmax": lambda h: jax.nn.softmax(jnp.einsum("bi,bj->bij", h, h)) @ jnp.ones(4),
    "jit": lambda h: jax.jit(lambda h: jax.nn.relu(h @ jnp.ones((4, 2))))(h).reshape(len(h), -1),
    "convolution": lambda h: jax.lax.conv_general_dilated(h[:, None], jnp.ones((2, 1, 2)), (1,), "SAME"),
    "zeros": lambda h: h + jnp.zeros_like(h),
}
SEEN = {
    "sum of ones": lambda h: h / jnp.ones_like(h[:, 0]).sum(),
    "sum of places": lambda h: h + jnp.arange(len(h)).sum(),
    "two axes": lambda h: (h[:, None] * jnp.ones((len(h), 1))).sum(1),
    "product of ones": lambda h: h * (jnp.ones(len(h)) @ jnp.ones(len(h))),
    "inside jit": lambda h: jax.jit(lambda h: h * jnp.ones_like(h).sum())(h),
    "through jit": lambda h: h * jnp.ones((len(h), 1)).at[:].set(jax.jit(lambda h: (h, 2.0))(h)[1]).sum(),
    "loop": lambda h: jax.lax.fori_loop(0, 3, lambda i, h: jnp.sin(h), h),
}


@pytest.mark.parametrize("name", [*UNSEEN, *SEEN])
def test_size_is_unseen(name):
    function = (UNSEEN | SEEN)[name]
    left, right = programs(function, 5, 2)

    assert size_is_unseen(left, right, 5, 2, [0]) == (name in UNSEEN)
    assert same_names(jax.make_jaxpr(function)(jnp.ones((1, 4))), left)
    if name in UNSEEN:  # then each example alone gives what all together give
        h = jax.random.normal(jax.random.key(0), (5, 4))
        for i in range(5):
            assert jnp.allclose(function(h)[i], function(h[i : i + 1])[0], atol=1e-5)


def test_same_names_of_a_branch_for_one_example():
    double = lambda h: 2 * h if len(h) == 1 else h

    assert not same_names(jax.make_jaxpr(double)(jnp.ones((1, 4))), jax.make_jaxpr(double)(jnp.ones((5, 4))))
