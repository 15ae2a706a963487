"""Optimizers of each rule, and a few steps of them."""

import functools

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from catapult_jax import preconditioner_from_state

_ADAM = {"b1": 0.8, "b2": 0.95, "eps": 1e-2}
OPTIMIZER_CASES = {
    "sgd": functools.partial(optax.sgd),
    "heavy ball": functools.partial(optax.sgd, momentum=0.9),
    "nesterov": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
    "adagrad": functools.partial(optax.adagrad, initial_accumulator_value=0.1, eps=1e-3),
    "rmsprop": functools.partial(optax.rmsprop, decay=0.95, eps=1e-3),
    "rmsprop, eps outside": functools.partial(optax.rmsprop, decay=0.95, eps=1e-2, eps_in_sqrt=False),
    "adam": functools.partial(optax.adam, **_ADAM, eps_root=1e-3),
    "adamw": functools.partial(optax.adamw, **_ADAM, weight_decay=0.3),
    "adadelta": functools.partial(optax.adadelta, rho=0.95, eps=1e-2),
}
# Rules beyond those that an experiment can choose.
MORE_CASES = {
    "rmsprop, centered": functools.partial(optax.rmsprop, decay=0.95, eps=1e-3, centered=True),
    "rmsprop, corrected": functools.partial(optax.rmsprop, decay=0.95, eps=1e-3, bias_correction=True),
    "rmsprop, momentum": functools.partial(optax.rmsprop, decay=0.95, eps=1e-3, momentum=0.8),
    "nadam": functools.partial(optax.nadam, **_ADAM),
    "amsgrad": functools.partial(optax.amsgrad, **_ADAM),
    "adamax": functools.partial(optax.adamax, b1=0.8, b2=0.95),
    "adabelief": functools.partial(optax.adabelief, **_ADAM),
    "yogi": functools.partial(optax.yogi, **_ADAM),
    "ademamix": functools.partial(contrib.ademamix, **_ADAM, b3=0.95, alpha=2.0),
    "adafactor": functools.partial(optax.adafactor, min_dim_size_to_factor=2),
    "lamb": functools.partial(optax.lamb, **_ADAM),
}
PARAMS = {"a": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array([[0.3, -0.7], [1.1, 0.2]])}


def gradient_of_step(i: int):
    """Random gradients like ``PARAMS``, the same in every run."""
    key = jax.random.fold_in(jax.random.key(3), i)
    return jax.tree.map(lambda p: jax.random.normal(jax.random.fold_in(key, p.size), p.shape), PARAMS)


def run_steps(optimizer, steps: int = 4, factor: float = 1.0):
    """``(before, after, update)`` of the last of some steps; the optimizer receives ``factor`` times the gradients."""
    after = optimizer.init(PARAMS)
    for i in range(steps):
        before = after
        update, after = optimizer.update(jax.tree.map(lambda g: factor * g, gradient_of_step(i)), before, PARAMS)
    return before, after, update


def of_last_step(optimizer, steps: int = 4, **options):
    """``preconditioner_from_state`` of the last of some steps, with everything that it can be given but the update."""
    before, after, _ = run_steps(optimizer, steps, **options)
    return preconditioner_from_state(optimizer, PARAMS, before, after, gradient=gradient_of_step(steps - 1))


def checked_last_step(optimizer, steps: int = 4, **options):
    """The same, checked against the update."""
    before, after, updates = run_steps(optimizer, steps, **options)
    step = dict(gradient=gradient_of_step(steps - 1), updates=updates)
    return preconditioner_from_state(optimizer, PARAMS, before, after, **step)
