"""What a training step gives to :func:`catapult_jax.watch`, brought to one form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import PyTree


class Given(NamedTuple):
    """What a step gives to its measurements, beside the parameters."""

    params: Any
    batch: Any  # (x, targets)
    updates: Any
    opt_state: Any
    opt_state_before: Any
    gradient: Any
    lr: Any


def updates_like(params: PyTree, updates: PyTree | None, new_params: PyTree | None) -> PyTree:
    """The updates of a step as a tree like the parameters.

    Args:
      params: before the step.
      updates: what it adds; None: not given.
      new_params: parameters after it; None: not given.

    Returns:
      A tree like ``params``.

    Raises:
      ValueError: not one of the two is given, or another number of arrays.

    >>> updates_like({"w": jnp.ones(1)}, None, [jnp.zeros(1)])["w"].tolist()
    [-1.0]
    """
    if (updates is None) == (new_params is None):
        given = "neither updates nor new_params" if updates is None else "updates and new_params"
        raise ValueError(f"{given} given; allowed: one of them, what the step adds or the parameters after it")
    structure = jax.tree.structure(params)
    if updates is None:
        return jax.tree.map(jnp.subtract, _leaves_as(structure, new_params, "new_params"), params)
    return _leaves_as(structure, updates, "updates")


def _leaves_as(structure, tree: PyTree, name: str) -> PyTree:
    """A tree with the containers of the parameters: those of an optimizer may be other ones, as in ``flax.nnx``."""
    leaves = jax.tree.leaves(tree)
    if len(leaves) != structure.num_leaves:
        raise ValueError(f"{name} has {len(leaves)} arrays; allowed: one for each of the {structure.num_leaves} of params")
    return structure.unflatten(leaves)


def joined(batch) -> tuple:
    """One batch of all examples.

    Args:
      batch: ``(x, targets)``, or a list of such batches.

    Returns:
      ``(x, targets)``.

    >>> joined([(jnp.zeros((2, 3)), jnp.zeros(2)), (jnp.zeros((1, 3)), jnp.zeros(1))])[0].shape
    (3, 3)
    """
    if not isinstance(batch, list):
        return batch
    return tuple(jax.tree.map(lambda *parts: jnp.concatenate(parts), *part) for part in zip(*batch, strict=True))
