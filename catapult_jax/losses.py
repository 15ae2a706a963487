"""Losses of a batch: value, gradient and Hessian in the outputs.

One convention (Zhu et al. 2024, arXiv 2306.04815): a loss is the mean over examples of a per-example loss, and ``mse`` is the
squared error summed over outputs, without one half.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

if TYPE_CHECKING:
    from jaxtyping import Array, Float

LOSSES = ("mse", "softmax_cross_entropy", "logistic")


def _check(outputs, targets, loss: str):
    """Checked ``(outputs as (b, o), targets)``."""
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r}; allowed: {', '.join(LOSSES)}")
    outputs, targets = jnp.asarray(outputs), jnp.asarray(targets)
    for name, array in (("outputs", outputs), ("targets", targets)):
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise ValueError(f"{name} has dtype {array.dtype}; allowed: real floating-point numbers")
    if outputs.ndim not in (1, 2):
        raise ValueError(f"outputs has shape {outputs.shape}; allowed: (b,) or (b, o)")
    two = outputs.reshape(outputs.shape[0], -1)
    if loss == "logistic" and two.shape[1] != 1:
        raise ValueError(f"outputs has shape {outputs.shape}; allowed for loss='logistic': one output per example")
    if loss == "softmax_cross_entropy":
        if targets.shape != two.shape[:1] or not jnp.issubdtype(targets.dtype, jnp.integer):
            raise ValueError(
                f"targets has shape {targets.shape}, dtype {targets.dtype}; allowed for loss={loss!r}: integers (b,)"
            )
        return two, targets
    if targets.size != two.size or targets.shape[:1] != two.shape[:1]:
        raise ValueError(f"targets has shape {targets.shape}; allowed for outputs {outputs.shape}: one number per output")
    return two, targets.reshape(two.shape).astype(two.dtype)


def _example_loss(outputs: Float[Array, " o"], target, loss: str) -> Float[Array, ""]:
    if loss == "mse":
        return jnp.sum((outputs - target) ** 2)
    if loss == "softmax_cross_entropy":
        return optax.softmax_cross_entropy_with_integer_labels(outputs, target)
    return jnp.sum(optax.sigmoid_binary_cross_entropy(outputs, target))


def batch_loss(outputs: Float[Array, "b *o"], targets: Array, *, loss: str) -> Float[Array, ""]:
    """Loss of a batch, ``L = (1/b) sum_i l(f_i, y_i)``.

    ``mse``: ``l = sum_o (f_o - y_o)^2``; ``softmax_cross_entropy``: integer targets ``(b,)``; ``logistic``: targets 0 or 1 for a
    scalar logit.

    Raises:
      ValueError: unknown loss, or shapes that don't fit it.

    >>> float(batch_loss(jnp.array([1.0, 3.0]), jnp.array([0.0, 0.0]), loss="mse"))
    5.0
    """
    outputs, targets = _check(outputs, targets, loss)
    return jnp.mean(jax.vmap(_example_loss, (0, 0, None))(outputs, targets, loss))


def output_gradient(outputs: Float[Array, "b *o"], targets: Array, *, loss: str) -> Float[Array, "b o"]:
    """Gradient of each example's loss in its outputs, ``d l(f_i, y_i) / d f_i`` (no ``1/b``).

    Raises:
      ValueError: unknown loss, or shapes that don't fit it.

    >>> output_gradient(jnp.array([1.0, 3.0]), jnp.array([0.0, 0.0]), loss="mse").tolist()
    [[2.0], [6.0]]
    """
    outputs, targets = _check(outputs, targets, loss)
    return jax.vmap(jax.grad(_example_loss), (0, 0, None))(outputs, targets, loss)


class CurvatureFactor(NamedTuple):
    """A factor ``B`` of each example's loss Hessian in its outputs, ``S = B B^T``, as two maps of arrays ``(b, o)``."""

    times: Callable[[Float[Array, "b o"]], Float[Array, "b o"]]  # u -> B u
    transposed: Callable[[Float[Array, "b o"]], Float[Array, "b o"]]  # w -> B^T w


def curvature_factor(outputs: Float[Array, "b *o"], targets: Array, *, loss: str) -> CurvatureFactor:
    """Factor ``B`` of the loss Hessian of each example, ``S = B B^T``, in ``O(o)`` operations and without an ``(o, o)`` array.

    - ``mse``: ``S = 2 I``, ``B = sqrt(2) I``.
    - ``logistic``: ``S = p (1 - p)``, ``B`` its root.
    - ``softmax_cross_entropy``: ``S = diag(p) - p p^T``. With ``s = sqrt(p)``: ``B u = s u - p (s . u)``,
      ``B^T w = s (w - p . w)``. Its null space is ``s``. No digits are lost where one ``p`` is close to one.

    Args:
      outputs: ``(b,)`` or ``(b, o)``.
      targets: as the loss takes them; they are only checked.
      loss: name of the loss.

    Raises:
      ValueError: unknown loss, or shapes that don't fit it.

    Source: ``B B^T = diag(p) - p p^T`` by multiplication.

    >>> factor = curvature_factor(jnp.zeros((1, 2)), jnp.array([0]), loss="softmax_cross_entropy")
    >>> factor.times(factor.transposed(jnp.array([[1.0, 0.0]]))).round(3).tolist()  # S e_1 with p = (1/2, 1/2)
    [[0.25, -0.25]]
    """
    outputs, targets = _check(outputs, targets, loss)
    if loss == "mse":
        scale = lambda u: u * 2**0.5
        return CurvatureFactor(scale, scale)
    if loss == "logistic":
        root = _logistic_root(outputs)
        scale = lambda u: u * root.astype(u.dtype)
        return CurvatureFactor(scale, scale)
    p = jax.nn.softmax(outputs)
    s = jnp.sqrt(p)

    def times(u):
        p_, s_ = p.astype(u.dtype), s.astype(u.dtype)
        return s_ * u - p_ * jnp.sum(s_ * u, -1, keepdims=True)

    def transposed(w):
        p_, s_ = p.astype(w.dtype), s.astype(w.dtype)
        return s_ * (w - jnp.sum(p_ * w, -1, keepdims=True))

    return CurvatureFactor(times, transposed)


def curvature_columns(
    outputs: Float[Array, "b *o"], targets: Array, *, loss: str
) -> tuple[Float[Array, "b o r"], Float[Array, "b o r"]]:
    """``(F, Q)``: the columns ``F = B Q`` with ``F F^T = S``, ``r`` the rank of the loss Hessian, and orthonormal ``Q``.

    For ``softmax_cross_entropy`` ``r = o - 1``, and ``Q`` spans what is orthogonal to ``s = sqrt(p)``: the columns of the
    Householder reflection that takes ``s`` to an axis, without that axis. The axis is the most likely class, so that no
    digits are lost. Elsewhere ``r = o`` and ``Q = I``.

    Raises:
      ValueError: unknown loss, or shapes that don't fit it.

    Source: Householder (1958); ``B Q = diag(s) Q`` since ``Q`` is orthogonal to ``s``.

    >>> F, Q = curvature_columns(jnp.zeros((1, 2)), jnp.array([0]), loss="softmax_cross_entropy")
    >>> (F @ jnp.swapaxes(F, 1, 2)).round(3).tolist()  # diag(p) - p p^T
    [[[0.25, -0.25], [-0.25, 0.25]]]
    """
    outputs, targets = _check(outputs, targets, loss)
    b, o = outputs.shape
    if loss != "softmax_cross_entropy":
        root = _logistic_root(outputs)[:, :, None] if loss == "logistic" else 2.0**0.5
        Q = jnp.broadcast_to(jnp.eye(o, dtype=outputs.dtype), (b, o, o))
        return Q * root, Q
    s = jnp.sqrt(jax.nn.softmax(outputs))
    top = jnp.argmax(s, -1)[:, None]  # the axis that is left out
    column = jnp.arange(o - 1)[None]
    kept = jnp.where(column == top, o - 1, column)  # (b, o - 1): the last axis takes the place of the one left out
    s_top, s_kept = jnp.take_along_axis(s, top, 1), jnp.take_along_axis(s, kept, 1)
    axis = jnp.arange(o)[None, :, None]
    ones = (axis == kept[:, None, :]).astype(s.dtype)
    below = ones - s[:, :, None] * (s_kept / (1 + s_top))[:, None, :]
    Q = jnp.where(axis == top[:, :, None], -s_kept[:, None, :], below)
    return s[:, :, None] * Q, Q


def weighted_residual(outputs: Float[Array, "b *o"], targets: Array, *, loss: str) -> Float[Array, "b o"]:
    """Loss-weighted residual ``r = 2^(-1/2) B^+ grad_f l``: ``sum(r^2) / b`` is the loss (``mse``) or half the Newton decrement.

    ``B^+`` is the pseudo-inverse of the factor of :func:`curvature_factor`. ``mse``: ``f - y``; ``softmax_cross_entropy``:
    ``(p - e_y) / sqrt(2 p)``, zero where ``p`` is zero in floating point.

    Raises:
      ValueError: unknown loss, or shapes that don't fit it.

    >>> weighted_residual(jnp.zeros((1, 2)), jnp.array([0]), loss="softmax_cross_entropy").round(3).tolist()
    [[-0.5, 0.5]]
    """
    gradient = output_gradient(outputs, targets, loss=loss)
    if loss == "mse":
        return gradient / 2
    two, _ = _check(outputs, targets, loss)
    root = _logistic_root(two) if loss == "logistic" else jnp.sqrt(jax.nn.softmax(two))
    return jnp.where(root > 0, gradient / jnp.where(root > 0, root, 1), 0) * 0.5**0.5


def _logistic_root(outputs: Float[Array, "b o"]) -> Float[Array, "b o"]:
    return jnp.sqrt(jax.nn.sigmoid(outputs) * jax.nn.sigmoid(-outputs))


def hessian_range(outputs: int, *, loss: str) -> Float[np.ndarray, "o r"]:
    """Orthonormal basis, the same for all outputs, of a space that holds the range of ``S_i``; ``r = o``, or ``o - 1`` for
    ``softmax_cross_entropy``, which does not change when the same number is added to all logits.

    >>> (hessian_range(2, loss="softmax_cross_entropy") * 2**0.5).round(3).tolist()
    [[1.0], [-1.0]]
    """
    if loss != "softmax_cross_entropy":
        return np.eye(outputs)
    basis = np.tril(np.ones((outputs, outputs)), 0).T[:, : outputs - 1]  # Helmert: mean of the first ones against the next
    j = np.arange(1, outputs)
    basis[j, j - 1] = -j
    return basis / np.sqrt(j * (j + 1))
