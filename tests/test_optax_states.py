"""States inside the state of an optimizer: the search by type, and trees brought to the shape of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from catapult_jax import preconditioner_from_state
from catapult_jax.optax_states import like_params, link_types, links, state_of_type, states_of_type, subtrees
from tests.helpers_optimizers import OPTIMIZER_CASES, PARAMS, run_steps

WRAPPED = {
    "chain": optax.chain(optax.clip(1.0), optax.adam(0.1)),
    "named chain": optax.named_chain(("a", optax.adam(0.1)), ("b", optax.clip(1.0))),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "injected twice": optax.inject_hyperparams(optax.inject_hyperparams(optax.adam))(learning_rate=0.1),
    "masked": optax.masked(optax.adam(0.1), {"a": True, "b": False}),
    "groups": optax.multi_transform({"x": optax.adam(0.1), "y": optax.set_to_zero()}, {"a": "x", "b": "y"}),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_states_of_type_looks_inside_wrappers(name):
    state = WRAPPED[name].init(PARAMS)

    (adam,) = states_of_type(state, optax.ScaleByAdamState)

    assert isinstance(adam, optax.ScaleByAdamState)
    assert state_of_type(state, optax.ScaleByAdamState, "adam") is adam
    assert [type(link) for link in links(state)] == [optax.ScaleByAdamState]
    assert optax.ScaleByAdamState in link_types(state)


def test_states_of_type_finds_a_state_inside_one_of_its_type():
    nested = WRAPPED["injected twice"].init(PARAMS)

    outer, inner = states_of_type(nested, optax.InjectStatefulHyperparamsState)

    assert outer is nested and outer.inner_state is inner


@pytest.mark.parametrize(
    ("optimizer", "count"), [(optax.sgd(0.1), 0), (optax.chain(optax.adam(0.1), optax.adam(0.1)), 2)], ids=["none", "two"]
)
def test_state_of_type_refuses_any_number_but_one(optimizer, count):
    with pytest.raises(ValueError, match=f"the state holds {count} of ScaleByAdamState; allowed for adam: one"):
        state_of_type(optimizer.init(PARAMS), optax.ScaleByAdamState, "adam")


def test_links_leaves_out_what_changes_no_update():
    schedule = optax.scale_by_schedule(lambda count: -0.1)
    state = optax.chain(optax.clip(1.0), optax.trace(0.9), optax.ema(0.5), schedule).init(PARAMS)

    assert [type(link) for link in links(state)] == [optax.TraceState, optax.EmaState]
    expected = [optax.EmptyState, optax.TraceState, optax.EmaState, optax.ScaleByScheduleState]
    assert link_types(state) == expected


def test_like_params_fills_whole_subtrees_that_are_masked():
    params = {"a": PARAMS["a"], "c": {"d": jnp.ones(2), "e": jnp.ones(3)}}
    labels = {"a": "moves", "c": "stays"}
    optimizer = optax.multi_transform({"moves": optax.adam(0.1), "stays": optax.set_to_zero()}, labels)
    before = optimizer.init(params)
    updates, after = optimizer.update(params, before, params)
    step = dict(updates=updates, gradient=params, learning_rate=0.1)

    preconditioner = preconditioner_from_state(optax.adam, params, after, before, **step)

    assert jax.tree.structure(preconditioner.diagonal) == jax.tree.structure(params) and preconditioner.checked is True
    assert np.isinf(preconditioner.diagonal["c"]["d"]).all() and np.isfinite(preconditioner.diagonal["a"]).all()


def test_like_params_refuses_other_arrays_than_the_parameters():
    flat = run_steps(optax.flatten(optax.adam(0.1)))[1]
    with pytest.raises(
        ValueError, match=r"the state of adam has an array of shape \(5,\); allowed: one array for each parameter"
    ):
        preconditioner_from_state(optax.adam, PARAMS, flat)


def test_like_params_refuses_another_structure():
    _, after, _ = run_steps(optax.adam(0.1))
    with pytest.raises(ValueError, match="the state of adam has another structure than params; allowed"):
        preconditioner_from_state(optax.adam, {"a": PARAMS["a"]}, after)


def test_like_params_keeps_arrays_and_fills_masked_ones():
    tree = {"a": jnp.full(3, 2.0), "b": optax.MaskedNode()}

    filled = like_params(tree, PARAMS, "adam", fill=0.0)

    assert filled["a"].tolist() == [2.0, 2.0, 2.0] and filled["b"].tolist() == [[0.0, 0.0]]


def test_subtrees_of_other_containers_are_the_leaves_in_order():
    structure = jax.tree.structure((0, [0]))

    parts = subtrees(structure, PARAMS, "adam")

    assert all(part is leaf for part, leaf in zip(parts, jax.tree.leaves(PARAMS), strict=True))


@pytest.mark.parametrize("name", ["adam", "heavy ball", "adagrad"])
def test_subtrees_of_a_flax_nnx_optimizer(name):
    """Its arrays are in other containers than the parameters."""
    make, x = OPTIMIZER_CASES[name], jnp.ones((2, 3))
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, make(0.1), wrt=nnx.Param)
    gradient = nnx.grad(lambda m: jnp.mean(m(x) ** 2))(model)
    before, params = jax.tree.map(jnp.copy, (optimizer.opt_state, nnx.state(model, nnx.Param)))
    optimizer.update(model, gradient)
    updates = jax.tree.map(jnp.subtract, nnx.state(model, nnx.Param), params)
    step = dict(updates=updates, gradient=gradient, learning_rate=0.1)

    preconditioner = preconditioner_from_state(make, params, optimizer.opt_state, before, **step)

    assert preconditioner.checked is True
    assert preconditioner.diagonal is None or jax.tree.structure(preconditioner.diagonal) == jax.tree.structure(params)
