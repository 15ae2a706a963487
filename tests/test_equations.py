"""What the equations of a traced program need, call and take."""

import doctest

import jax
import jax.numpy as jnp
import pytest

from catapult_jax.tangent import equations


def _with_a_derivative(f):
    function = jax.custom_jvp(f)
    function.defjvp(lambda primals, tangents: (f(*primals), tangents[0]))
    return function


def _in_a_scan(f):
    return lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, None, length=2)[0]


@pytest.mark.parametrize("call", [jax.jit, jax.checkpoint, _with_a_derivative, _in_a_scan])
def test_called_program_of_a_call(call):
    eqn = jax.make_jaxpr(call(jnp.sin))(jnp.ones(2)).jaxpr.eqns[-1]

    jaxpr, consts = equations.called_program(eqn)

    assert [inner.primitive.name for inner in jaxpr.eqns] == ["sin"] and len(consts) == len(jaxpr.constvars)


def test_doctests():
    assert not doctest.testmod(equations).failed
