"""Arrays on meshes with explicit axes: the compiler places what lies between the arguments and the results.

``jax.make_mesh`` makes axes explicit unless it is asked otherwise: every array then has its sharding in its type, and an operation whose
result could be placed in several ways is an error. The functions here leave that choice to the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec

if TYPE_CHECKING:
    from jaxtyping import PyTree


def placed_by_compiler(function: Callable, *arguments: PyTree, like: Callable[[Any], PyTree] | None = None) -> Any:
    """``function(*arguments)``, where the compiler places what a mesh with explicit axes would ask for.

    Args:
      function: Any function of arrays.
      arguments: Pytrees of arrays. Without an explicit axis among them this is a plain call.
      like: ``like(result)``, a pytree of the shapes of the result with a sharding in the place of some of its leaves, and None in that
        of the others, which are on all devices. None: all are.

    Returns:
      The result of the function.

    >>> placed_by_compiler(lambda x: x + 1, jax.numpy.zeros(2)).tolist()
    [1.0, 1.0]
    """
    mesh = explicit_mesh(arguments)
    if mesh is None:
        return function(*arguments)
    arguments = jax.tree.map(jnp.asarray, arguments)
    plain = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments)
    result = jax.eval_shape(function, *plain)
    everywhere = NamedSharding(mesh, PartitionSpec())
    wanted = jax.tree.map(lambda _: None, result) if like is None else like(result)
    shardings = jax.tree.map(lambda _, sharding: sharding or everywhere, result, wanted)
    return jax.jit(jax.sharding.auto_axes(function, axes=_explicit_axes(mesh), out_sharding=shardings))(*arguments)


def _explicit_axes(mesh: Any) -> tuple[str, ...]:
    return tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit)


def explicit_mesh(tree: PyTree) -> Any:
    """The mesh of the first array that is on one with an explicit axis.

    Args:
      tree: Arrays.

    Returns:
      The abstract mesh, or None.

    >>> explicit_mesh(jax.numpy.zeros(2)) is None
    True
    """
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            mesh = jax.typeof(leaf).sharding.mesh
            if not mesh.empty and AxisType.Explicit in mesh.axis_types:
                return mesh
    return None


def names_shardings(apply_fn: Callable, params: PyTree, x: PyTree) -> bool:
    """Whether a model can only be traced on a mesh with explicit axes, because it names shardings.

    Args:
      apply_fn: ``apply_fn(params, x) -> outputs``.
      params, x: Arrays.

    Returns:
      True or False; always False if no array is on such a mesh.

    >>> names_shardings(lambda w, x: x @ w, jax.numpy.ones(2), jax.numpy.ones((1, 2)))
    False
    """
    if explicit_mesh((params, x)) is None:
        return False
    plain = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.result_type(a)), (params, x))
    try:
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            jax.eval_shape(lambda params, x: apply_fn(params, x), *plain)
    except Exception:  # the caller has traced the model on its mesh, so only what it says of the mesh can fail here
        return True
    return False


def with_explicit_axes(apply_fn: Callable, params: PyTree, x: PyTree) -> Callable:
    """A model that names shardings, for a call inside :func:`placed_by_compiler`: it sees its arguments where they are.

    Args:
      apply_fn: ``apply_fn(params, x) -> outputs``.
      params, x: Arrays on a mesh with explicit axes.

    Returns:
      The model; any other one as it is.

    >>> with_explicit_axes(lambda w, x: w * x, jax.numpy.ones(2), jax.numpy.ones(2))(2, 3)
    6
    """
    mesh = explicit_mesh((params, x))
    if mesh is None or not names_shardings(apply_fn, params, x):
        return apply_fn
    spec = lambda leaf: jax.typeof(leaf).sharding.spec if explicit_mesh(leaf) is not None else PartitionSpec()
    return jax.sharding.explicit_axes(apply_fn, axes=_explicit_axes(mesh), in_sharding=jax.tree.map(spec, (params, x)))


def stacked_like(params: PyTree) -> PyTree:
    """Shardings of vectors like ``params`` that are stacked along a first axis.

    Args:
      params: Arrays.

    Returns:
      A pytree like ``params``: a sharding, or None for an array that is on no mesh with explicit axes.

    >>> stacked_like(jax.numpy.zeros(2)) is None
    True
    """

    def of(leaf):
        if (mesh := explicit_mesh(leaf)) is None:
            return None
        return NamedSharding(mesh, PartitionSpec(None, *jax.typeof(leaf).sharding.spec))

    return jax.tree.map(of, params)


def cut_like(vectors: PyTree, params: PyTree) -> PyTree:
    """Vectors that are stacked along a first axis, each cut as its parameter is, on meshes with explicit and with automatic axes.

    Args:
      vectors: A pytree like ``params``, each leaf with one more axis.
      params: Arrays.

    Returns:
      The vectors.

    >>> cut_like(jax.numpy.zeros((1, 2)), jax.numpy.zeros(2)).shape
    (1, 2)
    """

    def place(leaf, stacked):
        if isinstance(leaf, Tracer):
            wanted = stacked_like(leaf)
            return stacked if wanted is None else jax.sharding.reshard(stacked, wanted)
        sharding = getattr(leaf, "sharding", None)
        if not isinstance(sharding, NamedSharding):
            return stacked
        return jax.device_put(stacked, NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec)))

    return jax.tree.map(place, params, vectors)
