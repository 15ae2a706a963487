"""Optimizers of each rule, and a few steps of them."""

import functools

import jax
import jax.numpy as jnp
import optax

from catapult_jax import preconditioner_from_state

OPTIMIZER_CASES = {
    "sgd": functools.partial(optax.sgd),
    "heavy ball": functools.partial(optax.sgd, momentum=0.9),
    "nesterov": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
    "adagrad": functools.partial(optax.adagrad, initial_accumulator_value=0.1, eps=1e-3),
    "rmsprop": functools.partial(optax.rmsprop, decay=0.95, eps=1e-3),
    "rmsprop, eps outside": functools.partial(optax.rmsprop, decay=0.95, eps=1e-2, eps_in_sqrt=False),
    "adam": functools.partial(optax.adam, b1=0.8, b2=0.95, eps=1e-2, eps_root=1e-3),
    "adamw": functools.partial(optax.adamw, b1=0.8, b2=0.95, eps=1e-2, weight_decay=0.3),
    "adadelta": functools.partial(optax.adadelta, rho=0.95, eps=1e-2),
}
PARAMS = {"a": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array([[0.3, -0.7]])}


def gradient_of_step(i: int):
    """Random gradients like ``PARAMS``, the same in every run."""
    key = jax.random.fold_in(jax.random.key(3), i)
    return jax.tree.map(lambda p: jax.random.normal(jax.random.fold_in(key, p.size), p.shape), PARAMS)


def run_steps(optimizer, steps: int = 4):
    """``(before, after, update)`` of the last of some steps."""
    after = optimizer.init(PARAMS)
    for i in range(steps):
        before = after
        update, after = optimizer.update(gradient_of_step(i), before, PARAMS)
    return before, after, update


def checked_preconditioner(make, optimizer, steps: int = 4, **settings):
    """``preconditioner_from_state`` of ``make``, checked against the last of some steps of ``optimizer``."""
    before, after, updates = run_steps(optimizer, steps)
    step = dict(updates=updates, gradient=gradient_of_step(steps - 1)) | settings
    return preconditioner_from_state(make, PARAMS, after, before, **step)
