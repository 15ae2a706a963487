"""The check of an update: which updates are those of an optimizer, and what the message says of the others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from catapult_jax import critical_lr_from_lambda, preconditioner_from_state
from tests.helpers_optimizers import OPTIMIZER_CASES, PARAMS, checked_preconditioner, run_steps


@pytest.mark.parametrize("name", OPTIMIZER_CASES)
def test_check_update_of_the_optimizer_itself(name):
    make = OPTIMIZER_CASES[name]
    schedule = lambda count: 0.1 / (1 + count)

    assert checked_preconditioner(make, make(0.1), learning_rate=0.1).checked is True
    assert checked_preconditioner(make, make(schedule), learning_rate=schedule).checked is True
    assert checked_preconditioner(make, optax.inject_hyperparams(make)(learning_rate=0.1)).checked is True
    idle = optax.chain(optax.clip_by_global_norm(1e9), make(0.1))
    assert checked_preconditioner(make, idle, learning_rate=0.1).checked is True


MISTAKEN = {  # the optimizer as stated, the optimizer that made the update, and a part of the message
    "clipping": (
        optax.adam,
        optax.chain(optax.clip_by_global_norm(0.05), optax.adam(0.1)),
        r"saw 0.0\d+ times the gradient \(clipping\)",
    ),
    "clipping by entries": (optax.adam, optax.chain(optax.clip(0.3), optax.adam(0.1)), "settings that were not repeated"),
    "clipping and sgd": (
        optax.sgd,
        optax.chain(optax.clip_by_global_norm(0.05), optax.sgd(0.1)),
        r"0.0\d+ times as large \(clipping",
    ),
    "clipping in place of a link": (optax.sgd, optax.chain(optax.clip_by_global_norm(0.05), optax.scale(-0.1)), "clipping"),
    "clipping and momentum": (
        OPTIMIZER_CASES["heavy ball"],
        optax.chain(optax.clip_by_global_norm(0.05), OPTIMIZER_CASES["heavy ball"](0.1)),
        r"saw 0.0\d+ times the gradient",
    ),
    "clipping and adagrad": (
        optax.adagrad,
        optax.chain(optax.clip_by_global_norm(0.05), optax.adagrad(0.1)),
        r"saw 0.0\d+ times",
    ),
    "clipping and rmsprop": (
        optax.rmsprop,
        optax.chain(optax.clip_by_global_norm(0.05), optax.rmsprop(0.1)),
        r"saw 0.0\d+ times",
    ),
    "clipping and adadelta": (
        optax.adadelta,
        optax.chain(optax.clip_by_global_norm(0.05), optax.adadelta(0.1)),
        r"saw 0.0\d+ times",
    ),
    "b2": (optax.adam, optax.adam(0.1, b2=0.99), r"adam\(.*b2=0.999.*settings that were not repeated"),
    "eps": (optax.adam, optax.adam(0.1, eps=0.1), "the state agrees"),
    "nesterov": (optax.adam, optax.nadam(0.1), "an optimizer with the same kind of state"),
    "lamb": (optax.adam, optax.lamb(0.1), "an optimizer with the same kind of state"),
    "decay that was not said": (optax.adam, optax.adamw(0.1, weight_decay=0.3), "the state agrees"),
    "decay before": (optax.sgd, optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.1)), "updates are not those of sgd"),
    "learning rate": (optax.rmsprop, optax.rmsprop(0.2), "2 times as large .*another learning rate"),
    "gradients that pass a mask": (
        optax.adam,
        optax.masked(optax.adam(0.1), {"a": True, "b": False}),
        "updates are not those of adam",
    ),
}


@pytest.mark.parametrize("name", MISTAKEN)
def test_check_update_refuses_an_update_of_another_optimizer(name):
    make, optimizer, message = MISTAKEN[name]

    with pytest.raises(ValueError, match=message) as raised:
        checked_preconditioner(make, optimizer, learning_rate=0.1)

    assert "allowed" in str(raised.value) and "\n" not in str(raised.value)


def test_check_update_under_jit_gives_nan():
    """Under jit a mismatch is data: the critical lr is NaN."""

    @functools.partial(jax.jit, static_argnums=0)
    def critical(optimizer):
        preconditioner = checked_preconditioner(optax.adam, optimizer, learning_rate=0.1)
        return preconditioner.checked, critical_lr_from_lambda(jnp.float32(1), preconditioner)

    good, critical_lr = critical(optax.adam(0.1))
    bad, nan = critical(optax.chain(optax.clip_by_global_norm(0.05), optax.adam(0.1)))

    assert good and float(critical_lr) == pytest.approx(38, rel=1e-5)
    assert not bad and np.isnan(nan)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"gradient": None, "learning_rate": 0.1}, "gradient=None; allowed: updates, gradient and before of one step together"),
        ({"updates": None, "learning_rate": 0.1}, "updates=None; allowed"),
        ({}, "learning_rate=None; allowed with updates: learning_rate=..., that of this step"),
        ({"learning_rate": lambda count: 0.1}, "learning_rate=a schedule whose count is not in the state; allowed"),
        ({"learning_rate": 0.1, "gradient": jnp.ones(5)}, "gradient has other arrays than params; allowed"),
    ],
)
def test_check_update_needs_the_whole_step(step, message):
    with pytest.raises(ValueError, match=message):
        checked_preconditioner(optax.adam, optax.adam(0.1), **step)


def test_check_update_needs_the_state_before():
    _, after, _ = run_steps(optax.adam(0.1))

    with pytest.raises(ValueError, match="before=None; allowed"):
        preconditioner_from_state(optax.adam, PARAMS, after, updates=PARAMS, gradient=PARAMS, learning_rate=0.1)


def test_check_update_refuses_a_state_before_of_another_optimizer():
    before, _, _ = run_steps(optax.sgd(0.1))
    _, after, updates = run_steps(optax.adam(0.1))

    with pytest.raises(ValueError, match="before holds 0 of ScaleByAdamState; allowed: the state before this update"):
        preconditioner_from_state(optax.adam, PARAMS, after, before, updates=updates, gradient=PARAMS, learning_rate=0.1)


def test_check_update_does_not_read_the_settings_of_another_link():
    decay = optax.inject_hyperparams(optax.add_decayed_weights)(weight_decay=0.0)
    make = functools.partial(optax.adamw, weight_decay=0.2)

    preconditioner = checked_preconditioner(make, optax.chain(decay, make(0.1)), learning_rate=0.1)

    assert preconditioner.decay == 0.2


@pytest.mark.parametrize("clip", [1e9, 0.05])
def test_refuse_traceless_links_of_clipped_adam(clip):
    """Adam does not feel the scale of its gradient, so clipping does not change its critical lr; the state does not tell that."""
    _, state, _ = run_steps(optax.chain(optax.clip_by_global_norm(clip), optax.adam(0.1)))

    with pytest.raises(
        ValueError, match=r"not those of adam alone, .* may be clipping or decay; allowed: updates, gradient, before"
    ):
        preconditioner_from_state(optax.adam, PARAMS, state)
