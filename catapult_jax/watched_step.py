"""What a training step gives to :func:`catapult_jax.watch`, and what it gets back, each in one form."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from catapult_jax.losses import as_loss
from catapult_jax.tangent.checks import check_arguments, check_batch, check_loss
from catapult_jax.tangent.coupling import couples_examples
from catapult_jax.xla import UNROLLED_PRODUCTS, loops_are_slow

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


PRESETS = ("economy", "standard", "full")
METHODS = ("auto", "matrix_free", "exact")


def check_options(
    loss, *, optimizer, every, preset, method, k, layers, probe, agop_reference, factor, horizon, momentum
) -> None:
    """Check the arguments of :func:`catapult_jax.watch`.

    Args:
      loss, optimizer, every, preset, method, k, layers, probe, agop_reference, factor, horizon, momentum: as in :func:`catapult_jax.watch`.

    Raises:
      ValueError: a value that is not allowed.
    """
    loss = as_loss(loss)
    for name, value in (("every", every), ("horizon", horizon), ("k", 1 if k is None else k)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name}={value!r}; allowed: a whole number, 1 or more")
    if not factor > 1:
        raise ValueError(f"factor={factor!r}; allowed: above 1")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum={momentum!r}; allowed: 0 or more, below 1")
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r}; allowed: {', '.join(PRESETS)}")
    if method not in METHODS:
        raise ValueError(f"method={method!r}; allowed: {', '.join(METHODS)}")
    if optimizer is None and preset != "economy":
        raise ValueError(
            f"optimizer=None with preset={preset!r}; allowed: the optimizer of the loop, whose critical lr is measured, or preset='economy'"
        )
    if optimizer is not None and not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        tx = "its .tx, " if hasattr(optimizer, "tx") else ""
        raise ValueError(
            f"optimizer is a {type(optimizer).__name__}; allowed: {tx}an optax.GradientTransformation or optax.MultiSteps"
        )
    if preset == "full" and not loss.has_factor:
        raise ValueError(
            f"loss={loss} with preset='full'; allowed: 'standard', or a loss whose Hessian has a closed form, since the loss is split by eigenvectors"
        )
    if not isinstance(layers, bool) and not callable(layers):
        raise ValueError(
            f"layers={layers!r}; allowed: True, False, or a function from the path of a leaf to the name of its layer"
        )
    if probe is not None and preset != "full":
        raise ValueError(f"probe with preset={preset!r}; allowed: preset='full', which measures the AGOP")
    if agop_reference is not None and probe is None:
        raise ValueError("agop_reference without probe; allowed: with the inputs of the probe, on which both AGOPs are taken")


def check_step(apply_fn: Callable, loss: Any, params: PyTree, batch: Any, carried: dict[str, Any]) -> tuple[PyTree, PyTree]:
    """Check what a step gives, before anything is traced through the model.

    Args:
      apply_fn, loss: of the watch.
      params: of the step.
      batch: one batch of all examples.
      carried: from the step before.

    Returns:
      The batch, as a pair.

    Raises:
      ValueError: params of another structure than at the start, a batch that is no pair, outputs that are no array, or targets that don't fit.

    >>> check_step(lambda w, x: x @ w, "mse", jnp.ones(2), {"x": jnp.ones((1, 2))}, {})
    Traceback (most recent call last):
    ValueError: batch is a dict; allowed: a pair (x, targets)
    """
    x, targets = check_batch(batch)
    directions = carried.get("matrix_free")
    if directions is not None and jax.tree.structure(directions.vectors) != jax.tree.structure(params):
        raise ValueError(f"params is a {type(params).__name__} of another structure; allowed: a tree like that of init")
    check_loss(check_arguments(apply_fn, params, x), targets, loss=loss)
    return x, targets


def check_outputs(apply_fn: Callable, params: PyTree, x: PyTree, *, k: int) -> None:
    """Check that a batch has enough outputs for ``k`` eigenvectors.

    Args:
      apply_fn, params, x: the model and its inputs.
      k: number of eigenvectors.

    Raises:
      ValueError: it has fewer.

    >>> check_outputs(lambda w, x: x @ w, jnp.zeros(2), jnp.zeros((3, 2)), k=3)
    """
    if (size := jax.eval_shape(apply_fn, params, x).size) < k:
        raise ValueError(
            f"a batch with {size} outputs in all and k={k}; allowed: watch(..., k={size}), or no smaller last batch"
        )


def warn_of_few_products(apply_fn: Callable, params: PyTree, x: PyTree) -> None:
    """Warn that the searches of a model with convolutions have few products on the CPU.

    Args:
      apply_fn, params, x: the model and its inputs.

    >>> warn_of_few_products(lambda w, x: x @ w, jnp.zeros(2), jnp.zeros((3, 2)))
    """
    if not loops_are_slow(apply_fn, params, x):
        return
    exact = "" if couples_examples(apply_fn, params, x) else ", method='exact' is certain"
    warnings.warn(
        f"catapult/lambda_max: with convolutions on the CPU a search has {UNROLLED_PRODUCTS} products, so the first values may be far too small, and "
        "converged says so; a step above the critical lr is so for certain, one below may be above. max_products=8 is surer and compiles longer"
        f"{exact}",
        stacklevel=3,
    )


def known(name: str, value: Any) -> bool | None:
    """A bool that is known when the program is traced; None: it is not given.

    Args:
      name: of the argument.
      value: a bool, of Python, NumPy or JAX.

    Returns:
      True, False or None.

    Raises:
      ValueError: it is traced.

    >>> known("due", np.False_)
    False
    """
    if isinstance(value, Tracer):
        raise ValueError(f"{name} is traced; allowed: a bool from the host, with static_argnames={name!r} in jax.jit, or None")
    return None if value is None else bool(value)


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
    optimizer_updates: Any  # as the optimizer made them; None: new_params are given in their place
    new_params: Any  # None: updates are given in their place
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
    if updates is None:
        return jax.tree.map(jnp.subtract, _like(params, new_params, "new_params"), params)
    return _like(params, updates, "updates")


def _like(params: PyTree, tree: PyTree, name: str) -> PyTree:
    """A tree with the containers of the parameters: those of an optimizer may be other ones, as in ``flax.nnx``."""
    of_params, structure = jax.tree.flatten(params)
    leaves = jax.tree.leaves(tree)
    if len(leaves) != len(of_params):
        raise ValueError(f"{name} has {len(leaves)} arrays; allowed: one for each of the {len(of_params)} of params")
    for leaf, param in zip(leaves, of_params, strict=True):
        if jnp.shape(leaf) != jnp.shape(param):
            raise ValueError(f"{name} has an array of shape {jnp.shape(leaf)}; allowed: {jnp.shape(param)}, as in params")
    return structure.unflatten(leaves)


def joined(batch) -> tuple:
    """One batch of all examples.

    Args:
      batch: ``(x, targets)``, or a list of such batches.

    Returns:
      ``(x, targets)``.

    Raises:
      ValueError: a list of something else.

    >>> joined([(jnp.zeros((2, 3)), jnp.zeros(2)), (jnp.zeros((1, 3)), jnp.zeros(1))])[0].shape
    (3, 3)
    """
    if not isinstance(batch, list):
        return batch
    if not all(isinstance(part, (tuple, list)) and len(part) == 2 for part in batch):
        raise ValueError(
            f"batch is a list of {len(batch)} that are no pairs; allowed: a tuple (x, targets), or a list of such tuples"
        )
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
