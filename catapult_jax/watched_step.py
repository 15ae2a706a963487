"""What a training step gives to :func:`catapult_jax.watch`, and what it gets back, each in one form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree


MOST_OF_THE_LOSS = 10.0  # parts of a split that add up to more than so many times the loss do not tell where it is
# The series of the instruments under the names of metrics.
NAMES = {
    "loss_batch": "loss",
    "lr": "lr",
    "directional_batch": "directional",
    "directional_probe": "directional_probe",
    "critical_lr_batch": "critical_lr",
    "lambda_max_batch": "lambda_max",
    "lambda_max_batch_bound": "lambda_max_bound",
    "converged": "converged",
    "loss_top": "loss_top",
    "loss_rest": "loss_rest",
    "agop_alignment": "agop_alignment",
    "agop_alignment_to_start": "agop_alignment_to_start",
    "loss_of_watch": "loss_of_watch",
}


def refuse_debug_nans() -> None:
    """Refuse ``jax_debug_nans``.

    Raises:
      ValueError: it is on.

    >>> refuse_debug_nans()
    """
    if getattr(jax.config, "jax_debug_nans"):  # noqa: B009  a field that JAX makes when it starts
        raise ValueError(
            "jax_debug_nans=True; allowed with a watch: False, since a metric that is not measured is NaN; jax.debug_nans(False) around the step"
        )


class Given(NamedTuple):
    """What a step gives to its measurements, beside the parameters."""

    params: Any
    batch: Any  # (x, targets)
    updates: Any
    optimizer_updates: Any  # as the optimizer made them; None: not given, since the difference of parameters is rounded
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


def scalars(series: dict[str, Array], lr: Array | float | None, loss: Array, *, split: bool) -> dict[str, Array]:
    """The scalars among the measurements of a step.

    Args:
      series: of the instruments.
      lr: of the step; None: not known.
      loss: the one that the watch finds.
      split: whether the parts of the loss are wanted.

    Returns:
      Scalars by the names of metrics, in float32.

    >>> measured = {"directional_batch": jnp.float32(2.0), "critical_lr_batch": jnp.float32(0.5)}
    >>> {name: float(value) for name, value in scalars(measured, 1.0, jnp.float32(3.0), split=False).items()}
    {'directional': 2.0, 'critical_lr': 0.5, 'loss_of_watch': 3.0, 'lr_over_critical': 2.0}
    """
    parts = {name: series[name] for name in ("loss_top", "loss_rest") if name in series}
    series = {name: value for name, value in series.items() if name not in parts}
    if split:
        # Beyond mse the parts add up to half the Newton decrement, which has no bound where a probability is next to zero.
        is_split = sum(parts.values()) <= MOST_OF_THE_LOSS * loss
        series |= {name: jnp.where(is_split, value, jnp.nan) for name, value in parts.items()}
    series["loss_of_watch"] = loss
    if "lambda_max_batch" in series:
        bound = series["eigenvalue_bounds"][0] if "eigenvalue_bounds" in series else jnp.float32(0)
        series = {"lambda_max_batch_bound": bound, "converged": jnp.float32(1)} | series
    values = {name: series[key] for key, name in NAMES.items() if key in series}
    values |= {key: value for key, value in series.items() if key.startswith("directional/")}
    if "critical_lr" in values:
        values["lr_over_critical"] = jnp.asarray(jnp.nan if lr is None else lr) / values["critical_lr"]
    return {name: jnp.asarray(value).astype(jnp.float32) for name, value in values.items()}
