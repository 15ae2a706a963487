"""The links of built optimizers: names, settings, states, and what each receives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from catapult_jax import optimizer_links, preconditioner_from_state
from catapult_jax.optimizer_links import like_params, links_of, values_at
from tests.helpers_optimizers import PARAMS, gradient_of_step, run_steps

ADAM = ["scale_by_adam", "scale"]
LINKS = {
    "adam": (optax.adam(0.1), ADAM),
    "chain": (optax.chain(optax.clip(1.0), optax.chain(optax.adam(0.1))), ["clip", *ADAM]),
    "named chain": (optax.named_chain(("z", optax.adam(0.1)), ("a", optax.clip(1.0))), [*ADAM, "clip"]),
    "injected twice": (optax.inject_hyperparams(optax.inject_hyperparams(optax.adam))(learning_rate=0.1), ADAM),
    "accumulated": (
        optax.MultiSteps(optax.chain(optax.clip(1.0), optax.sgd(0.1)), 2).gradient_transformation(),
        ["MultiSteps", "clip", "identity", "scale"],
    ),
    "schedule": (optax.sgd(optax.cosine_decay_schedule(0.1, 10), momentum=0.9), ["trace", "scale_by_schedule"]),
}


@pytest.mark.parametrize("name", LINKS)
def test_links_of_lists_the_links_in_order(name):
    optimizer, expected = LINKS[name]
    before, after, _ = run_steps(optimizer)

    links = links_of(optimizer, PARAMS, before, after)

    assert [link.name for link in links] == expected
    assert all(link.on == [0, 1] for link in links)


def test_links_of_reads_settings_and_states():
    before, after, _ = run_steps(optax.inject_hyperparams(optax.adam)(learning_rate=0.1, b1=0.7))

    adam, scale = links_of(optax.inject_hyperparams(optax.adam)(learning_rate=0.1, b1=0.7), PARAMS, before, after)

    assert float(adam.settings["b1"]) == pytest.approx(0.7) and float(scale.settings["step_size"]) == pytest.approx(-0.1)
    assert (int(adam.before.count), int(adam.after.count)) == (3, 4)
    assert [leaf.shape for leaf in adam.leaves(adam.after.nu)] == [(3,), (2, 2)]


def test_links_of_groups_see_their_parameters():
    params = PARAMS | {"c": {"d": jnp.ones(2), "e": jnp.ones(3)}}
    labels = {"a": "x", "b": "y", "c": "x"}  # a prefix of the parameters
    decay = optax.masked(optax.add_decayed_weights(0.1), lambda p: jax.tree.map(lambda leaf: leaf.ndim == 2, p))
    groups = {"x": optax.adam(0.1), "y": optax.chain(decay, optax.sgd(0.1))}
    optimizer = optax.partition(groups, labels)

    links = links_of(optimizer, params, None, optimizer.init(params))

    seen = [(link.name, link.on) for link in links]
    assert seen == [*((name, [0, 2, 3]) for name in ADAM), ("add_decayed_weights", [1]), ("identity", [1]), ("scale", [1])]
    assert [leaf.shape for leaf in links[0].leaves(links[0].after.mu)] == [(3,), (2,), (3,)]


def test_links_of_lets_the_error_of_a_mask_through():
    optimizer = optax.masked(optax.adam(0.1), lambda params: params["missing"])
    state = optax.masked(optax.adam(0.1), {"a": True, "b": True}).init(PARAMS)

    with pytest.raises(KeyError, match="missing"):
        links_of(optimizer, PARAMS, None, state)


def test_links_of_a_wrapper_with_other_arguments_is_the_wrapper(monkeypatch):
    """As in a release of Optax in which the function has other arguments: no rule, not an error."""
    other = optimizer_links._WRAPPERS["chain"]._replace(needs={"functions"})
    monkeypatch.setitem(optimizer_links._WRAPPERS, "chain", other)
    optimizer = optax.adam(0.1)

    (link,) = links_of(optimizer, PARAMS, None, optimizer.init(PARAMS))

    assert link.name == "chain"
    reason = preconditioner_from_state(optimizer, PARAMS, None, optimizer.init(PARAMS)).reason
    assert reason == "chain has no rule; use directional_critical_lr"


RECEIVED = {
    "chain": optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.1), optax.clip(0.05)),
    "groups": optax.partition({"x": optax.chain(optax.clip(0.1), optax.adam(0.1)), "y": optax.sgd(0.3)}, {"a": "x", "b": "y"}),
    "accumulated": optax.MultiSteps(optax.chain(optax.clip(0.1), optax.sgd(0.1)), 2).gradient_transformation(),
}


@pytest.mark.parametrize("name", RECEIVED)
def test_values_at_end_with_the_update(name):
    before, after, update = run_steps(RECEIVED[name])
    links = links_of(RECEIVED[name], PARAMS, before, after)

    values = values_at(links, PARAMS, gradient_of_step(3))

    assert len(values) == len(links) + 1
    jax.tree.map(np.testing.assert_array_equal, values[0], jax.tree.leaves(gradient_of_step(3)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), values[-1], jax.tree.leaves(update))


def test_like_params_refuses_another_number_of_arrays():
    with pytest.raises(ValueError, match="zip"):
        like_params([1.0], PARAMS)
