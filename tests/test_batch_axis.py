"""The axis of the examples through traced programs, against the Jacobian of each program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax.tangent import batch_axis
from catapult_jax.tangent.batch_axis_rules import Fixed, Placed
from catapult_jax.tangent.compare_programs import same_program
from tests.zoo import ZOO, build


@pytest.mark.parametrize("name", ZOO)
def test_follow_proves_every_model_of_the_zoo(name):
    apply_fn, params, x = build(name)
    programs = {b: jax.make_jaxpr(apply_fn)(params, jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype)) for b in (2, 5)}

    assert batch_axis.follow(programs[5], [len(jax.tree.leaves(params))], 5) is None
    assert same_program(programs[5], programs[2], 5, 2)


OPERATIONS = {
    "transpose": lambda h: h.T,
    "reshape to one axis": lambda h: h.reshape(-1),
    "reshape of the transpose": lambda h: h.T.reshape(2, -1),
    "broadcast": lambda h: jnp.broadcast_to(h[None], (2, 3, 4)),
    "sum over features": lambda h: h.sum(1),
    "product": lambda h: jnp.ones((5, 4)) @ h.T,
    "convolution": lambda h: jax.lax.conv_general_dilated(
        h[:, :, None], jnp.ones((2, 1, 1)), (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    ),
    "concatenate": lambda h: jnp.concatenate([h, jnp.ones((3, 1))], 1),
    "pad": lambda h: jnp.pad(h, ((0, 0), (1, 1))),
    "slice": lambda h: h[:, 1:3],
    "gather": lambda h: h[:, jnp.array([3, 0])],
    "scatter": lambda h: h.at[:, 1].set(0.0),
    "sort": lambda h: jnp.sort(h, 1),
    "running sum": lambda h: jnp.cumsum(h, 1),
    "scan over features": lambda h: jax.lax.scan(lambda c, r: (c + r, c * r), jnp.zeros(3), h.T)[1],
    "while": lambda h: jax.lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, h))[1],
    "cond": lambda h: jax.lax.cond(True, jnp.sin, jnp.cos, h),
    "halves of zeros": lambda h: h + jnp.split(jnp.zeros((3, 8)), 2, axis=1)[1],
    "slice of ones": lambda h: h + jnp.ones((5, 4))[1:4],
    "padded ones": lambda h: h + jnp.pad(jnp.ones((3, 2)), ((0, 0), (1, 1))),
    "running sum of ones": lambda h: h + jnp.cumsum(jnp.ones((3, 4)), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_follow_places_the_examples(name):
    """Entry ``(o*b + i)*inner + k`` of the axis has a derivative in example ``i`` alone."""
    function, b = OPERATIONS[name], 3
    h = jnp.asarray(np.random.default_rng(0).standard_normal((b, 4)), jnp.float32)
    program = jax.make_jaxpr(function)(h)

    (place,) = batch_axis._run(program.jaxpr, [Fixed(frozenset(range(c.ndim))) for c in program.consts], [Placed(0, 1)], b)

    depends = (np.asarray(jax.jacfwd(function)(h)) != 0).any(-1)  # (*outputs, examples)
    by_entry = np.moveaxis(depends, place.axis, 0).reshape(depends.shape[place.axis], -1, b).any(1)

    expected = (np.arange(len(by_entry)) // place.inner % b)[:, None] == np.arange(b)

    assert not (by_entry & ~expected).any() and by_entry.any(0).all()


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda h: h - h.mean(0), "reduce_sum combines the examples of the batch"),
        (lambda h: h[::-1], "rev works along the axis of the examples"),
        (lambda h: h * jnp.arange(3.0)[:, None], "mul meets an array that varies with the place in the batch"),
        (lambda h: h * jnp.cumsum(jnp.ones((3, 3)), 0), "mul meets an array that varies with the place in the batch"),
        (
            lambda h: h * jnp.pad(jnp.ones((2, 3)), ((0, 1), (0, 0))),
            "mul meets an array that varies with the place in the batch",
        ),
        (lambda h: h * jnp.flip(jnp.arange(6.0))[:3, None], "mul meets an array that varies with the place in the batch"),
        (lambda h: jnp.arange(3.0), "the outputs depend on the places in the batch"),
        (lambda h: h.T, "the first axis of the outputs is not that of the examples"),
    ],
)
def test_follow_says_why_not(function, why):
    lost = batch_axis.follow(jax.make_jaxpr(function)(jnp.ones((3, 3))), [0], 3)

    assert lost.why.startswith(why)
