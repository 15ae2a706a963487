"""Checks of arguments, from shapes and dtypes alone: each mistake ends in one line that says what is allowed."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import linear_call

from catapult_jax.losses import batch_loss

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree

# Collections of a Flax module that are no parameters.
_STATE = ("batch_stats", "cache", "intermediates", "losses", "metrics", "perturbations", "spectral_stats")
_SPLIT = "a module is split first: nnx.split(model, nnx.Param, ...), or equinox.partition(model, equinox.is_inexact_array)"


def check_batch(batch: Any) -> tuple[Array, Array]:
    """``(x, targets)``.

    Raises:
      ValueError: a batch that is no pair of arrays.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        what = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise ValueError(f"batch is a {what}; allowed: a pair (x, targets)")
    for name, array in zip(("x", "targets"), batch, strict=True):
        _check_array(name, array, "one array (b, ...) with b examples")
    return tuple(batch)


def check_arguments(apply_fn: Callable, params: PyTree, x: Array) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the outputs.

    Raises:
      ValueError: parameters that are not all real floating-point arrays, or none; no examples; outputs that are not one real
        floating-point array with one row for each example.
    """
    _check_params(params)
    _check_array("x", x, "one array (b, ...) with b examples")
    if jnp.ndim(x) < 1 or jnp.shape(x)[0] < 1:
        raise ValueError(f"x has shape {jnp.shape(x)}; allowed: (b, ...) with b examples, b at least 1")
    try:
        out = jax.eval_shape(apply_fn, params, x)
    except flax.errors.TraceContextError as error:
        raise ValueError(
            f"apply_fn changes the state of a Flax NNX module that it closes over ({str(error).split(' (http')[0]}); allowed: functions "
            "that change nothing, such as a module in evaluation mode (model.eval())"
        ) from error
    if not hasattr(out, "shape") or not hasattr(out, "dtype"):
        raise ValueError(f"apply_fn returns {type(out).__name__}; allowed: one array of shape (b, ...)")
    if len(out.shape) < 1 or out.shape[0] != jnp.shape(x)[0]:
        raise ValueError(f"apply_fn returns shape {out.shape} for {jnp.shape(x)[0]} examples; allowed: (b, ...)")
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"apply_fn returns dtype {out.dtype}; allowed: real floating-point outputs")
    if 0 in out.shape:
        raise ValueError(f"apply_fn returns shape {out.shape}; allowed: one output per example, or more")
    return out


def check_loss(outputs: jax.ShapeDtypeStruct, targets: Array, *, loss: str) -> None:
    """Raises ValueError where the loss does not take these targets with these outputs."""
    jax.eval_shape(
        functools.partial(batch_loss, loss=loss), outputs, jax.ShapeDtypeStruct(jnp.shape(targets), jnp.result_type(targets))
    )


def check_preconditioner(preconditioner: PyTree | None, params: PyTree) -> None:
    """Raises ValueError unless it has one entry for each parameter."""
    if preconditioner is not None and (why := _difference(preconditioner, params)):
        raise ValueError(
            f"preconditioner has other leaves or shapes than params ({why}); allowed: one entry for each parameter, in a tree like params"
        )


def check_updates(updates: PyTree, params: PyTree) -> None:
    """Raises ValueError unless they have one entry for each parameter."""
    if why := _difference(updates, params):
        raise ValueError(
            f"updates have other leaves or shapes than params ({why}); allowed: one entry for each parameter, in a tree like params"
        )


def check_directions(vectors: PyTree, params: PyTree, k_max: int) -> None:
    """Raises ValueError unless every leaf is one of ``params`` with an axis of ``k_max`` before."""
    if why := _difference(vectors, params, leading=1):
        raise ValueError(
            f"warm_start has another structure or other shapes than params ({why}); allowed: directions of an earlier call"
        )
    if (found := jnp.shape(jax.tree.leaves(vectors)[0])[0]) != k_max:
        raise ValueError(f"warm_start has {found} directions; allowed: k_max={k_max}")


def _check_array(name: str, value: Any, allowed: str) -> None:
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise ValueError(f"{name} is a {type(value).__name__}; allowed: {allowed}")
    if _dtype(value) is None:
        raise ValueError(f"{name} has dtype {value.dtype}; allowed: numbers")


def _dtype(leaf) -> np.dtype | None:
    try:
        return jnp.result_type(leaf)
    except TypeError:
        return None


def _check_params(params) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("params has no arrays; allowed: a pytree with at least one parameter")
    for path, leaf in leaves:
        name, dtype = f"params{jax.tree_util.keystr(path)}", _dtype(leaf)
        if dtype is None:
            what = f"has dtype {leaf.dtype}" if hasattr(leaf, "dtype") else f"is a {type(leaf).__name__}"
            raise ValueError(f"{name} {what}; allowed: real floating-point parameters; {_SPLIT}")
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"{name} has dtype {dtype}; allowed: real floating-point parameters; {_SPLIT}")
    if (
        isinstance(params, Mapping)
        and isinstance(params.get("params"), Mapping)
        and (state := sorted(set(params) & set(_STATE)))
    ):
        raise ValueError(
            f"params holds the collection {state[0]!r}, which is no parameter; allowed: variables['params'], with "
            "apply_fn = lambda params, x: model.apply({**variables, 'params': params}, x)"
        )
    if nnx := sys.modules.get("flax.nnx"):
        for leaf in jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, nnx.Variable)):
            if isinstance(leaf, nnx.Variable) and not isinstance(leaf, nnx.Param):
                raise ValueError(f"params holds a {type(leaf).__name__}, which is no parameter; allowed: nnx.Param; {_SPLIT}")


def _difference(tree, params, leading: int = 0) -> str | None:
    """What keeps the tree from having the structure and, after some leading axes, the shapes of ``params``; None: nothing."""
    if jax.tree.structure(tree) != jax.tree.structure(params):
        one, other = type(tree).__name__, type(params).__name__
        return f"{one} in place of {other}" if one != other else "another structure"
    for (path, leaf), like in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(params), strict=True):
        if jnp.ndim(leaf) < leading or jnp.shape(leaf)[leading:] != jnp.shape(like):
            return f"{jax.tree_util.keystr(path) or 'it'} has shape {jnp.shape(leaf)} for {jnp.shape(like)}"
    return None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def without_derivative(what: str, tree: PyTree) -> PyTree:
    """The tree; its derivative is an error that names ``what``."""
    return tree


@without_derivative.defjvp
def _(what, primals, tangents):
    raise ValueError(
        f"{what} has no derivative in params; allowed: {what} of jax.lax.stop_gradient(params), or the eigenvalues of tangent_kernel"
    )


@jax.custom_jvp
def forward_mode_only(kernel: Array) -> Array:
    """The kernel; reverse-mode differentiation, which its loops do not have, is an error."""
    return kernel


@forward_mode_only.defjvp
def _(primals, tangents):
    def refuse(_, cotangent):
        raise ValueError("chunk_size with a gradient (reverse mode); allowed: chunk_size=None, or jax.jvp")

    return primals[0], linear_call(lambda _, tangent: tangent, refuse, (), tangents[0])
