"""Checks of arguments, from shapes and dtypes alone. Each error is one line that says what is allowed."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.custom_derivatives import linear_call

from catapult_jax.losses import Loss, as_loss, batch_loss
from catapult_jax.tangent.inverse_map import InverseMap

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree

# Collections of a Flax module that are not parameters.
_STATE = ("batch_stats", "cache", "intermediates", "losses", "metrics", "perturbations", "spectral_stats")
_SPLIT = "a module is split first: nnx.split(model, nnx.Param, ...), or equinox.partition(model, equinox.is_inexact_array)"


def batch_size(x: PyTree) -> int:
    """Number of examples of a batch.

    Args:
      x: Arrays ``(b, ...)``.

    Returns:
      ``b``.

    >>> batch_size({"tokens": jnp.ones((3, 2)), "mask": jnp.ones(3)})
    3
    """
    return jnp.shape(jax.tree.leaves(x)[0])[0]


def check_batch(batch: Any) -> tuple[PyTree, PyTree]:
    """Check that a batch is a pair of arrays, or of pytrees of arrays.

    Args:
      batch: ``(x, targets)``.

    Returns:
      The same pair, as a tuple.

    Raises:
      ValueError: The batch is not a pair, or has a leaf that is no array.

    >>> check_batch((jnp.ones(2),))
    Traceback (most recent call last):
    ValueError: batch is a tuple of 1; allowed: a pair (x, targets)
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        what = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise ValueError(f"batch is a {what}; allowed: a pair (x, targets)")
    x, targets = batch
    _check_examples(x)
    _check_arrays("targets", targets)
    return x, targets


def _check_arrays(name: str, tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree and their names, or an error: one is no array of numbers."""
    leaves = [(f"{name}{jax.tree_util.keystr(path)}", leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    for path, leaf in leaves:
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise ValueError(f"{path} is a {type(leaf).__name__}; allowed: an array, or a pytree of arrays")
        if _dtype(leaf) is None:
            raise ValueError(f"{path} has dtype {leaf.dtype}; allowed: numbers")
    return leaves


def _check_examples(x: Any) -> None:
    leaves = _check_arrays("x", x)
    if not leaves:
        raise ValueError(f"x is a {type(x).__name__} without arrays; allowed: an array, or a pytree of arrays")
    for path, leaf in leaves:
        if jnp.ndim(leaf) < 1 or jnp.shape(leaf)[0] < 1:
            raise ValueError(f"{path} has shape {jnp.shape(leaf)}; allowed: (b, ...) with b examples, b at least 1")
        if jnp.shape(leaf)[0] != batch_size(x):
            raise ValueError(f"{path} has shape {jnp.shape(leaf)}; allowed: {batch_size(x)} examples, as {leaves[0][0]} has")


def refuse_checked_shard_map(*trees: PyTree) -> None:
    """Refuse arrays inside of a ``shard_map`` with ``check_vma=True``: JAX refuses there to combine them with arrays that a function makes.

    Args:
      *trees: arguments of a public function.

    Raises:
      ValueError: such arrays.

    >>> refuse_checked_shard_map(jnp.ones(2))
    """
    axes = set()
    for leaf in jax.tree.leaves(trees):
        if isinstance(leaf, Tracer):
            kind = jax.typeof(leaf)
            kind = getattr(kind, "manual_axis_type", kind)  # from JAX 0.10 on
            axes |= set(getattr(kind, "varying", getattr(kind, "vma", ())))
    if axes:
        raise ValueError(
            f"check_vma=True of the shard_map over {', '.join(sorted(axes))}; allowed: jax.shard_map(..., check_vma=False)"
        )


def check_arguments(apply_fn: Callable, params: PyTree, x: PyTree) -> jax.ShapeDtypeStruct:
    """Check the parameters, the inputs and the outputs of a model.

    Args:
      apply_fn: ``apply_fn(params, x) -> (b, ...)``.
      params: Parameters; floating-point leaves.
      x: ``(b, ...)`` inputs; one array or a pytree.

    Returns:
      Shape and dtype of the outputs.

    Raises:
      ValueError: No parameters, or one that is not a real floating-point array; no examples; outputs that are not one
        real floating-point array with one row for each example.

    >>> check_arguments(lambda w, x: x @ w, jnp.ones(2), jnp.ones((3, 2))).shape
    (3,)
    """
    check_params(params)
    _check_examples(x)
    try:
        out = jax.eval_shape(apply_fn, params, x)
    except flax.errors.TraceContextError as error:
        raise ValueError(
            f"apply_fn changes the state of a Flax NNX module that it closes over ({str(error).split(' (http')[0]}); allowed: functions "
            "without side effects, such as a module in evaluation mode (model.eval())"
        ) from error
    if not hasattr(out, "shape") or not hasattr(out, "dtype"):
        raise ValueError(f"apply_fn returns {type(out).__name__}; allowed: one array of shape (b, ...)")
    if len(out.shape) < 1 or out.shape[0] != batch_size(x):
        raise ValueError(f"apply_fn returns shape {out.shape} for {batch_size(x)} examples; allowed: (b, ...)")
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"apply_fn returns dtype {out.dtype}; allowed: real floating-point outputs")
    if 0 in out.shape:
        raise ValueError(f"apply_fn returns shape {out.shape}; allowed: one output per example, or more")
    return out


def check_loss(outputs: jax.ShapeDtypeStruct, targets: PyTree, *, loss: str | Loss | Callable) -> None:
    """Check that a loss accepts these targets with these outputs.

    Args:
      outputs: Shape and dtype of the outputs.
      targets: Arrays or shapes.
      loss: Name, object or function.

    Raises:
      ValueError: Unknown loss, or targets that do not fit.

    >>> check_loss(jax.ShapeDtypeStruct((3,), jnp.float32), jnp.ones(3), loss="mse")
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), targets)
    jax.eval_shape(functools.partial(batch_loss, loss=loss), outputs, shapes)
    as_loss(loss).check_values(outputs, targets)


def check_preconditioner(preconditioner: PyTree | None, params: PyTree) -> None:
    """Check that a preconditioner has one entry for each parameter.

    Args:
      preconditioner: Diagonal of ``P``, a pytree like ``params``, or None.
      params: Parameters.

    Raises:
      ValueError: Another structure or other shapes.

    >>> check_preconditioner(jnp.ones(2), jnp.zeros(2))
    """
    if isinstance(preconditioner, InverseMap):
        preconditioner = jax.eval_shape(lambda inverse, u: inverse(u), preconditioner, params)
    if preconditioner is not None and (why := _difference(preconditioner, params)):
        raise ValueError(
            f"preconditioner has other leaves or shapes than params ({why}); allowed: one entry for each parameter, in a tree like params"
        )


def check_updates(updates: PyTree, params: PyTree) -> None:
    """Raises ValueError unless they have one entry for each parameter.

    Args:
      updates: What a step adds to the parameters.
      params: Parameters.

    Raises:
      ValueError: They have another structure or other shapes.
    """
    if why := _difference(updates, params):
        raise ValueError(
            f"updates have other leaves or shapes than params ({why}); allowed: one entry for each parameter, in a tree like params"
        )
    for leaf in jax.tree.leaves(updates):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise ValueError(f"updates have dtype {jnp.result_type(leaf)}; allowed: real numbers")


def check_warm_start(warm_start: Any) -> None:
    """Check that a warm start is the ``directions`` of an earlier call.

    Args:
      warm_start: Anything.

    Raises:
      ValueError: It is something else, such as the whole answer.
    """
    if not all(hasattr(warm_start, name) for name in ("tracked", "calls")) or hasattr(warm_start, "eigenvalues"):
        raise ValueError(f"warm_start is a {type(warm_start).__name__}; allowed: the .directions of an earlier answer, or None")


def check_directions(vectors: PyTree, params: PyTree, k_max: int) -> None:
    """Check that directions have the leaves of ``params``, each with a first axis of ``k_max``.

    Args:
      vectors: Pytree of directions.
      params: Parameters.
      k_max: Number of directions.

    Raises:
      ValueError: Another structure, other shapes, or another number of directions.

    >>> check_directions(jnp.ones((3, 2)), jnp.zeros(2), 3)
    """
    if why := _difference(vectors, params, leading=1):
        raise ValueError(
            f"warm_start has another structure or other shapes than params ({why}); allowed: directions of an earlier call"
        )
    if (count := jnp.shape(jax.tree.leaves(vectors)[0])[0]) != k_max:
        raise ValueError(f"warm_start has {count} directions; allowed: k_max={k_max}")


def _dtype(leaf) -> np.dtype | None:
    """The dtype of a leaf; None: it is not a number."""
    try:
        return jnp.result_type(leaf)
    except TypeError:
        return None


def check_params(params: PyTree) -> None:
    """Check that parameters are real floating-point arrays, and nothing else.

    Args:
      params: a pytree.

    Raises:
      ValueError: no arrays, or others.

    >>> check_params({"w": jnp.ones(2)})
    """
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
    """First difference of a tree from ``params`` in structure or shapes, apart from leading axes; None: no difference."""
    if jax.tree.structure(tree) != jax.tree.structure(params):
        kind, expected = type(tree).__name__, type(params).__name__
        return f"{kind} in place of {expected}" if kind != expected else "another structure"
    for (path, leaf), like in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(params), strict=True):
        if jnp.ndim(leaf) < leading or jnp.shape(leaf)[leading:] != jnp.shape(like):
            return f"{jax.tree_util.keystr(path) or 'it'} has shape {jnp.shape(leaf)} for {jnp.shape(like)}"
    return None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def without_derivative(what: str, tree: PyTree) -> PyTree:
    """Identity on ``tree``, whose derivative is an error.

    Args:
      what: Name of the public function, for the error.
      tree: Arrays.

    Returns:
      ``tree``.

    >>> without_derivative("f", jnp.ones(1)).tolist()
    [1.0]
    """
    return tree


@without_derivative.defjvp
def _(what, primals, tangents):
    raise ValueError(
        f"{what} has no derivative in params; allowed: {what} of jax.lax.stop_gradient(params), or the eigenvalues of tangent_kernel"
    )


@jax.custom_jvp
def forward_mode_only(kernel: Array) -> Array:
    """Identity on ``kernel``, whose reverse-mode derivative is an error: loops of unknown length have none.

    Args:
      kernel: Any array.

    Returns:
      ``kernel``.

    >>> forward_mode_only(jnp.ones(1)).tolist()
    [1.0]
    """
    return kernel


@forward_mode_only.defjvp
def _(primals, tangents):
    def refuse(_, cotangent):
        raise ValueError("chunk_size with a gradient (reverse mode); allowed: chunk_size=None, or jax.jvp")

    return primals[0], linear_call(lambda _, tangent: tangent, refuse, (), tangents[0])


def check_search(n, k, k_max, above, tol, failure, max_products, reuse_bound, chunk_size) -> None:
    """Check the numbers of a search for eigenpairs in ``n`` dimensions.

    Args:
      n: dimension of the search.
      k, k_max, above, tol, failure, max_products, reuse_bound, chunk_size: as in :func:`catapult_jax.top_eigenpairs`.

    Raises:
      ValueError: one of another type, or out of its range; see :func:`catapult_jax.top_eigenpairs`.

    >>> check_search(3, 1, 1, None, 0.01, 1e-6, None, 0, None)
    """
    for name, value in (
        ("k", k),
        ("k_max", k_max),
        ("max_products", max_products),
        ("reuse_bound", reuse_bound),
        ("chunk_size", chunk_size),
    ):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, np.integer))):
            raise ValueError(f"{name}={value!r}; allowed: a whole number, known when the program is traced")
    for name, value in (("tol", tol), ("failure", failure)):
        if not isinstance(value, (int, float, np.integer, np.floating)):
            raise ValueError(f"{name}={value!r}; allowed: a number, known when the program is traced")
    if above is not None and not isinstance(above, (int, float, np.ndarray, np.generic, jax.Array)):
        raise ValueError(f"above={above!r}; allowed: a number, or None")
    if above is not None and np.shape(above) != ():
        raise ValueError(f"above has shape {np.shape(above)}; allowed: (), one number, or None")
    if not 1 <= k <= n:
        raise ValueError(f"k={k!r}; allowed: 1 to {n}, the dimension of the search")
    if not k <= k_max <= n:
        raise ValueError(f"k_max={k_max!r}; allowed: k={k} to {n}, the dimension of the search")
    if not tol > 0:
        raise ValueError(f"tol={tol!r}; allowed: above 0")
    if not 0 < failure < 1:
        raise ValueError(f"failure={failure!r}; allowed: above 0 and below 1")
    if max_products is not None and max_products < 1:
        raise ValueError(f"max_products={max_products!r}; allowed: 1 or more")
    if reuse_bound < 0:
        raise ValueError(f"reuse_bound={reuse_bound!r}; allowed: 0 or more")
    check_chunk_size(chunk_size)


def check_chunk_size(chunk_size: Any) -> None:
    """Check a number of examples that are taken at a time.

    Args:
      chunk_size: None: all.

    Raises:
      ValueError: it is no whole number above 0.

    >>> check_chunk_size(2)
    """
    is_whole = isinstance(chunk_size, (int, np.integer)) and not isinstance(chunk_size, bool)
    if chunk_size is not None and not (is_whole and chunk_size >= 1):
        raise ValueError(f"chunk_size={chunk_size!r}; allowed: a whole number, 1 or more, or None")
