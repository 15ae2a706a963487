"""Directional critical learning rate: does this very step raise the loss of these examples?

>>> linear = lambda w, x: x @ w
>>> batch = (jnp.array([[3.0, 4.0]]), jnp.array([1.0]))
>>> update = 0.05 * jnp.array([6.0, 8.0])  # a step of gradient descent with lr 0.05; the critical lr is 1 / 25
>>> step = directional_critical_lr(linear, jnp.zeros(2), batch, update, loss="mse")
>>> round(float(step.multiple), 3), step.text
(0.8, 'rises')
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from catapult_jax.losses import Loss, as_loss, curvature_factor, output_gradient
from catapult_jax.tangent.checks import check_arguments, check_batch, check_loss, check_updates
from catapult_jax.tangent.operators import CURVATURES
from catapult_jax.tangent.placement import placed_by_compiler, with_explicit_axes
from catapult_jax.xla import at_least_float32, highest_precision

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PyTree

VERDICTS = ("falls", "rises", "no descent direction", "not finite", "no change")


class Directional(NamedTuple):
    """The quadratic model of the loss along an update: ``L(w + a D) = L(w) + a slope + a^2 curvature / 2``."""

    multiple: Float[
        Array, ""
    ]  # of the update at which the loss stops falling: -2 slope / curvature; 0 without a descent direction
    verdict: Int[Array, ""]  # index into VERDICTS, for the whole update (a = 1)
    slope: Float[Array, ""]  # <g, D>, in units of the loss
    curvature: Float[Array, ""]  # <D, G D>, in units of the loss

    @property
    def text(self) -> str:
        """The verdict in words, outside of jit."""
        return VERDICTS[int(self.verdict)]


def directional_critical_lr(
    apply_fn: Callable[..., Float[Array, "b *o"]],
    params: PyTree,
    batch: tuple[PyTree, PyTree],
    updates: PyTree,
    *,
    loss: str | Loss | Callable,
    curvature: str = "gauss_newton",
) -> Directional:
    r"""How far one may go along an update before the loss of a batch rises: ``multiple = -2 <g, D> / <D, G D>``.

    ``D`` is the update of a step (any optimizer, with lr and sign, as it is added to the parameters), ``g`` the gradient of the loss of the
    batch, ``G`` its Gauss-Newton matrix. The critical lr of this step is ``multiple * lr``. Below 1 the loss of the batch rises in this
    step, in the quadratic model with ``G``. Where ``<g, D> >= 0`` it rises at any lr: there is no descent direction. An update that changes
    no output, such as one of zeros, has no multiple (NaN): ``no change``.

    One jvp: ``<g, D> = mean_i <grad_f l_i, (J D)_i>`` and ``<D, G D> = mean_i |B_i^T (J D)_i|^2``, with ``S_i = B_i B_i^T`` the loss
    Hessian in the outputs. Neither an eigenvalue nor the preconditioner of the optimizer is needed. The batch may be another one than
    that of the step: the training set, or a probe.

    For gradient descent the spectral critical lr is a lower bound: ``multiple * lr >= 2 / lambda_max``, with equality where the gradient
    lies along the top eigenvector, as with one example and one output.

    Args:
      apply_fn: ``apply_fn(params, x) -> outputs``.
      params: parameters before the step.
      batch: ``(x, targets)``; both may be pytrees. Examples may be coupled.
      updates: what the step adds to the parameters, a pytree like ``params``.
      loss: a name, an object of :mod:`catapult_jax.losses`, or a function ``loss(outputs, targets) -> scalar``.
      curvature: ``"gauss_newton"``, or ``"hessian"`` for the second derivative of the loss along the update, one jvp of a jvp.

    Returns:
      :class:`Directional`, scalars. ``multiple`` has no unit; it is infinite where nothing curves along a descent direction.

    Raises:
      ValueError: shapes that don't fit, an unknown loss, updates of another structure than the parameters.

    Source: arXiv 2412.20553 (Batch Sharpness is 2 lr over its mean); arXiv 2601.16979 (by line search).

    >>> linear = lambda w, x: x @ w
    >>> batch = (jnp.array([[3.0, 4.0]]), jnp.array([1.0]))
    >>> directional_critical_lr(linear, jnp.zeros(2), batch, jnp.array([-3.0, 0.0]), loss="mse").text
    'no descent direction'
    """
    step = _checked_step(apply_fn, params, batch, updates, loss=loss, curvature=curvature)
    return step(range(len(jax.tree.leaves(params))))


def _checked_step(apply_fn, params, batch, updates, *, loss, curvature) -> Callable[[Sequence[int]], Directional]:
    """The answer for the part of a step in some of the leaves, after a check of all arguments."""
    x, targets = check_batch(batch)
    check_loss(check_arguments(apply_fn, params, x), targets, loss=loss)
    check_updates(updates, params)
    if curvature not in CURVATURES:
        raise ValueError(f"curvature={curvature!r}; allowed: {', '.join(CURVATURES)}")
    leaves, structure = jax.tree.flatten(params)
    changes = [jnp.asarray(u, jnp.result_type(p)) for p, u in zip(leaves, structure.flatten_up_to(updates), strict=True)]
    wide = lambda outputs: outputs.astype(at_least_float32(outputs.dtype))
    apply = with_explicit_axes(apply_fn, params, x)

    def step(inside: Sequence[int]) -> Directional:
        def compute(leaves, x, targets, D):
            def model(own):
                moved = dict(zip(inside, own, strict=True))
                return apply(structure.unflatten([moved.get(i, leaf) for i, leaf in enumerate(leaves)]), x)

            own = [leaves[i] for i in inside]
            with highest_precision():
                if curvature == "gauss_newton":
                    with _forward_mode():
                        outputs, moved = jax.jvp(model, (own,), (D,))
                    return from_output_change(wide(outputs), wide(moved), targets, loss=loss)
                value = lambda own: as_loss(loss)(wide(model(own)), targets)
                slope_at = lambda own: jax.jvp(value, (own,), (D,))[1]
                return from_slope_and_curvature(*jax.jvp(slope_at, (own,), (D,)))

        return placed_by_compiler(compute, leaves, x, targets, [changes[i] for i in inside])

    return step


@contextlib.contextmanager
def _forward_mode():
    """One line for the error of JAX where a function has no forward mode.

    Raises:
      ValueError: a function with a ``custom_vjp``.
    """
    try:
        yield
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise ValueError(
            "apply_fn has a function with a custom_vjp, which has no forward mode; allowed: a model without. Eigenvalues: "
            "top_eigenpairs(..., jvp='transpose')"
        ) from error


def directional_by_layer(
    apply_fn: Callable[..., Float[Array, "b *o"]],
    params: PyTree,
    batch: tuple[PyTree, PyTree],
    updates: PyTree,
    *,
    loss: str | Loss | Callable,
    curvature: str = "gauss_newton",
    layer: Callable[[str], str] | None = None,
) -> dict[str, Directional]:
    """Which layer makes the step unstable: :func:`directional_critical_lr` of each layer's part of the update alone.

    ``D`` is restricted to the leaves of one layer; the other layers stay where they are. One jvp for each layer. Slopes add up to the slope
    of the whole update. Curvatures do not, since layers curve along each other's updates: a step may rise though no layer alone does.

    Args:
      apply_fn, params, batch, updates, loss, curvature: as in :func:`directional_critical_lr`.
      layer: from the path of a leaf, such as ``"params/Dense_0/kernel"``, to the name of its layer; equal names are one layer. None: the
        path without its last part.

    Returns:
      A :class:`Directional` for each layer, in the order of the leaves. Units as there.

    Raises:
      ValueError: as :func:`directional_critical_lr`.

    Source: our restriction of :func:`directional_critical_lr`.

    >>> model = lambda p, x: x @ p["first"]["w"] @ p["last"]["w"]
    >>> params = {"first": {"w": jnp.eye(2)}, "last": {"w": jnp.ones(2)}}
    >>> updates = {"first": {"w": jnp.zeros((2, 2))}, "last": {"w": -jnp.ones(2)}}
    >>> steps = directional_by_layer(model, params, (jnp.eye(2), jnp.zeros(2)), updates, loss="mse")
    >>> {name: (round(float(step.multiple), 3), step.text) for name, step in steps.items()}
    {'first': (nan, 'no change'), 'last': (2.0, 'falls')}
    """
    step = _checked_step(apply_fn, params, batch, updates, loss=loss, curvature=curvature)
    names = layers_of_leaves(params, layer)
    return {name: step([i for i, other in enumerate(names) if other == name]) for name in dict.fromkeys(names)}


def layers_of_leaves(params: PyTree, layer: Callable[[str], str] | None = None) -> list[str]:
    """The layer of each leaf of the parameters.

    Args:
      params: parameters.
      layer: as in :func:`directional_by_layer`.

    Returns:
      A name for each leaf, in the order of the leaves.

    >>> layers_of_leaves({"params": {"Dense_0": {"bias": 0.0, "kernel": 0.0}}})
    ['params/Dense_0', 'params/Dense_0']
    """
    is_variable = lambda node: isinstance(node, nnx.Variable)  # whose array would add a part to the path
    with_paths = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_variable)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, node in with_paths for _ in jax.tree.leaves(node)]
    return [(layer or _without_last_part)(path) for path in paths]


def _without_last_part(path: str) -> str:
    return path.rpartition("/")[0] or path


def from_output_change(
    outputs: Float[Array, "b *o"], moved: Float[Array, "b *o"], targets: PyTree, *, loss: str | Loss | Callable
) -> Directional:
    """:func:`directional_critical_lr` from the outputs and their change ``J D`` to first order.

    Args:
      outputs: of the batch, before the step.
      moved: ``J D``, of the same shape.
      targets: of the batch.
      loss: a name, an object or a function.

    Returns:
      :class:`Directional`.

    >>> step = from_output_change(jnp.array([1.0]), jnp.array([-0.5]), jnp.array([0.0]), loss="mse")
    >>> [round(float(value), 3) for value in (step.slope, step.curvature, step.multiple)]
    [-1.0, 0.5, 4.0]
    """
    loss = as_loss(loss)
    if not loss.has_factor:
        gradient, curved = jax.jvp(jax.grad(lambda f: loss(f, targets)), (outputs,), (moved,))
        return from_slope_and_curvature(jnp.sum(gradient * moved), jnp.sum(curved * moved))
    gradient = output_gradient(outputs, targets, loss=loss)
    moved = moved.reshape(gradient.shape)
    n = len(gradient)
    slope = jnp.sum(gradient * moved) / n
    curvature = jnp.sum(curvature_factor(outputs, targets, loss=loss).transposed(moved) ** 2) / n
    return from_slope_and_curvature(slope, curvature)


def from_slope_and_curvature(slope: Float[Array, "*n"], curvature: Float[Array, "*n"]) -> Directional:
    """The verdict on a step of this slope and curvature.

    Args:
      slope: ``<g, D>``.
      curvature: ``<D, G D>``, not negative; or ``<D, H D>`` with the Hessian, which may be.

    Returns:
      :class:`Directional`, of the shape of the arguments.

    >>> from_slope_and_curvature(jnp.array([-1.0, 1.0, -1.0]), jnp.array([4.0, 4.0, 0.0])).multiple.tolist()
    [0.5, 0.0, inf]
    """
    descends, still = slope < 0, (slope == 0) & (curvature == 0)
    multiple = jnp.where(curvature > 0, -2 * slope / jnp.where(curvature > 0, curvature, 1), jnp.inf)
    multiple = jnp.where(descends, multiple, 0.0)
    finite = jnp.isfinite(slope) & jnp.isfinite(curvature)
    verdict = jnp.select([~finite, still, ~descends, multiple < 1], [3, 4, 2, 1], 0)
    return Directional(jnp.where(finite & ~still, multiple, jnp.nan), verdict.astype(jnp.int32), slope, curvature)
