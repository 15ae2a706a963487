"""The optimizer of a run from the fields of its config, against the optimizer built by hand."""

import doctest

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from experiments import optimizers

BY_HAND = {
    "sgd": lambda lr: optax.sgd(lr),
    "heavy_ball": lambda lr: optax.sgd(lr, momentum=0.9),
    "nesterov": lambda lr: optax.sgd(lr, momentum=0.9, nesterov=True),
    "adagrad": lambda lr: optax.adagrad(lr),
    "rmsprop": lambda lr: optax.rmsprop(lr),
    "adam": lambda lr: optax.adam(lr),
    "adamw": lambda lr: optax.adamw(lr),
    "adadelta": lambda lr: optax.adadelta(lr),
}


def fields(**changes):
    optimizer = default.get_config().optimizer
    optimizer.update(changes)
    return optimizer


def updates(optimizer):
    """Two updates along the same gradient."""
    params, gradient = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([0.5, 0.25])}
    state, steps = optimizer.init(params), []
    for _ in range(2):
        step, state = optimizer.update(gradient, state, params)
        steps.append(step["w"])
    return np.array(steps)


@pytest.mark.parametrize("name", sorted(optimizers.SETTINGS))
def test_build_of_an_optimizer_with_its_defaults(name):
    np.testing.assert_array_equal(updates(optimizers.build(fields(name=name))(0.1)), updates(BY_HAND[name](0.1)))


def test_build_of_an_optimizer_with_settings():
    built = optimizers.build(fields(name="adam", b1=0.5, eps=1e-2))(0.1)
    np.testing.assert_array_equal(updates(built), updates(optax.adam(0.1, b1=0.5, eps=1e-2)))
    assert not np.array_equal(updates(built), updates(optax.adam(0.1)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "sgd"}, 0.0),
        ({"name": "sgd", "momentum": 0.3}, 0.3),
        ({"name": "heavy_ball"}, 0.9),
        ({"name": "adam"}, 0.9),
        ({"name": "adamw", "b1": 0.5}, 0.5),
        ({"name": "rmsprop"}, 0.0),
    ],
    ids=str,
)
def test_momentum_of_an_optimizer(changes, expected):
    assert optimizers.momentum(fields(**changes)) == expected


def test_examples_in_docstrings():
    assert not doctest.testmod(optimizers).failed
