"""Find the states inside the state of an Optax optimizer by type, and bring their trees to the shape of the parameters.

``optax.tree.get`` searches by the name of a field or a class. A name does not tell Optax's class from another one of that name,
and it does not stop at the links of a chain, so the search here is by type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

# States that hold the states of links.
_WRAPPERS = (optax.InjectStatefulHyperparamsState, optax.MaskedState, optax.PartitionState)
# States of links that change no update, and of links that keep nothing.
_TRACELESS = (optax.EmptyState, optax.ScaleByScheduleState, optax.MaskedNode)
_LIKE_PARAMS = "allowed: one array for each parameter, of its shape (no optax.flatten around it)"


class Step(NamedTuple):
    """One step of an optimizer."""

    params: Any  # parameters before the step
    before: Any  # state of the optimizer before the update; None: not given
    after: Any  # state after the update


class Layout(NamedTuple):
    """How an optimizer keeps its averages in its state."""

    state_type: type  # of the optimizer's own state
    like_params: str  # field of that state with the structure of the parameters
    average: str  # field with the average of the gradient or of its square
    is_square: bool  # the average is of the square
    weights: Callable[[dict], tuple]  # settings -> (a, b), where the update sets average to a * average + b * gradient


def states_of_type(state, state_type: type | tuple[type, ...]) -> list:
    """All states of a type, or of several types: an outer state, then those inside it.

    Args:
      state: state of an optimizer.
      state_type: as ``isinstance`` takes it.

    Returns:
      The states, in the order of the links.

    >>> state = optax.chain(optax.clip(1.0), optax.adam(0.1)).init(jnp.ones(2))
    >>> [type(inner).__name__ for inner in states_of_type(state, optax.ScaleByAdamState)]
    ['ScaleByAdamState']
    """
    is_match = lambda node: isinstance(node, state_type)
    outermost = [leaf for leaf in jax.tree.leaves(state, is_leaf=is_match) if is_match(leaf)]
    return [inner for outer in outermost for inner in (outer, *states_of_type(tuple(outer), state_type))]


def state_of_type(state, state_type: type, optimizer: str) -> Any:
    """The one state of a type.

    Args:
      state: state of an optimizer.
      state_type: type of the state that is looked for.
      optimizer: name for the message.

    Returns:
      The state.

    Raises:
      ValueError: there is none, or more than one.

    >>> float(state_of_type(optax.adam(0.1).init(jnp.ones(2)), optax.ScaleByAdamState, "adam").mu[0])
    0.0
    """
    states = states_of_type(state, state_type)
    if len(states) != 1:
        raise ValueError(f"the state holds {len(states)} of {state_type.__name__}; allowed for {optimizer}: one")
    return states[0]


def links(state) -> list:
    """States of the links of a chain that change the update, without wrappers.

    Args:
      state: state of an optimizer.

    Returns:
      The states, in the order of the links.

    >>> [type(link).__name__ for link in links(optax.chain(optax.clip(1.0), optax.adam(0.1)).init(jnp.ones(2)))]
    ['ScaleByAdamState']
    """
    if isinstance(state, _WRAPPERS):
        return links(state.inner_states if isinstance(state, optax.PartitionState) else state.inner_state)
    if isinstance(state, dict):
        return [link for inner in state.values() for link in links(inner)]
    if isinstance(state, tuple) and not hasattr(state, "_fields"):
        return [link for inner in state for link in links(inner)]
    return [] if state is None or isinstance(state, _TRACELESS) else [state]


def link_types(state) -> list[type]:
    """Types of the states of all links of a chain, those that change nothing included; groups of ``set_to_zero`` are left out.

    Args:
      state: state of an optimizer.

    Returns:
      The types, in the order of the links.

    >>> [kind.__name__ for kind in link_types(optax.chain(optax.clip(1.0), optax.adam(0.1)).init(jnp.ones(2)))]
    ['EmptyState', 'ScaleByAdamState', 'EmptyState']
    """
    if isinstance(state, optax.PartitionState):
        groups = [group.inner_state for group in partition_groups(state).values()]
        return [kind for group in groups if not isinstance(group, optax.EmptyState) for kind in link_types(group)]
    if isinstance(state, (optax.InjectStatefulHyperparamsState, optax.MaskedState)):
        return link_types(state.inner_state)
    if isinstance(state, dict):
        return link_types(tuple(state.values()))
    if isinstance(state, tuple) and not hasattr(state, "_fields"):
        return [kind for link in state for kind in link_types(link)]
    return [] if state is None or isinstance(state, optax.MaskedNode) else [type(state)]


def partition_groups(state: optax.PartitionState) -> dict[Any, Any]:
    """States of the groups of ``optax.multi_transform`` by label.

    Args:
      state: of ``optax.multi_transform``.

    Returns:
      A ``MaskedState`` for each label.

    >>> optimizer = optax.multi_transform({"a": optax.sgd(0.1)}, "a")
    >>> list(partition_groups(optimizer.init(jnp.ones(2))))
    ['a']
    """
    return dict(state.inner_states)


def is_masked(node) -> bool:
    """Whether a node stands for parameters that the optimizer does not see.

    Args:
      node: node of a tree of a state.

    Returns:
      True for ``optax.MaskedNode``.

    >>> is_masked(optax.MaskedNode())
    True
    """
    return isinstance(node, optax.MaskedNode)


def like_params(tree, params, optimizer: str, fill: float = jnp.inf) -> Any:
    """A tree of a state as a tree like ``params``.

    Args:
      tree: from the state, with masked nodes for parameters that the optimizer does not see.
      params: parameters.
      optimizer: name for the message.
      fill: value of every entry that is masked.

    Returns:
      A tree like ``params``.

    Raises:
      ValueError: the tree does not have one array of the same shape per parameter.

    >>> tree, params = {"a": jnp.ones(2), "b": optax.MaskedNode()}, {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    >>> like_params(tree, params, "adam")["b"].tolist()
    [inf]
    """
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_masked)
    filled = []
    for leaf, part in zip(leaves, subtrees(structure, params, optimizer), strict=True):
        below = jax.tree.leaves(part)
        if not is_masked(leaf) and [jnp.shape(leaf)] != [jnp.shape(p) for p in below]:
            raise ValueError(f"the state of {optimizer} has an array of shape {jnp.shape(leaf)}; {_LIKE_PARAMS}")
        filled += [jnp.full_like(p, fill) for p in below] if is_masked(leaf) else [leaf]
    return jax.tree.structure(params).unflatten(filled)


def subtrees(structure, params, optimizer: str) -> list:
    """Subtrees of ``params`` at the leaves of a tree of the state.

    If the containers differ but the numbers of leaves agree, as with ``nnx.Optimizer``, these are the leaves of ``params`` in
    order.

    Args:
      structure: ``jax.tree.structure`` of the tree of the state.
      params: parameters, or a tree like them.
      optimizer: name for the message.

    Returns:
      One subtree per leaf.

    Raises:
      ValueError: the structures do not fit.

    >>> [len(part) for part in subtrees(jax.tree.structure([0, 0]), [{"a": 1, "b": 2}, {}], "adam")]
    [2, 0]
    """
    try:
        return structure.flatten_up_to(params)
    except (ValueError, TypeError) as error:
        if structure.num_leaves != len(leaves := jax.tree.leaves(params)):
            raise ValueError(f"the state of {optimizer} has another structure than params; {_LIKE_PARAMS}") from error
        return leaves
