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


def _check(outputs, targets, loss: str) -> tuple[Array, Array]:
    """``(outputs as (b, o), targets)``, or an error if the loss does not take them."""
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r}; allowed: {', '.join(LOSSES)}")
    outputs, targets = jnp.asarray(outputs), jnp.asarray(targets)
    for name, array in (("outputs", outputs), ("targets", targets)):
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise ValueError(f"{name} has dtype {array.dtype}; allowed: real floating-point numbers")
    if outputs.ndim not in (1, 2):
        raise ValueError(f"outputs has shape {outputs.shape}; allowed: (b,) or (b, o)")
    rows = outputs.reshape(outputs.shape[0], -1)
    if loss == "logistic" and rows.shape[1] != 1:
        raise ValueError(f"outputs has shape {outputs.shape}; allowed for loss='logistic': one output per example")
    if loss == "softmax_cross_entropy":
        if targets.shape != rows.shape[:1] or not jnp.issubdtype(targets.dtype, jnp.integer):
            raise ValueError(
                f"targets has shape {targets.shape}, dtype {targets.dtype}; allowed for loss={loss!r}: integers (b,)"
            )
        return rows, targets
    if targets.size != rows.size or targets.shape[:1] != rows.shape[:1]:
        raise ValueError(f"targets has shape {targets.shape}; allowed for outputs {outputs.shape}: one number per output")
    return rows, targets.reshape(rows.shape).astype(rows.dtype)


def _no_branch(loss: str) -> ValueError:
    """The error of a function that has no branch for a loss: another loss's numbers would be wrong without a sign."""
    return ValueError(f"loss={loss!r} has no branch here; allowed: {', '.join(LOSSES)}")


def _example_loss(outputs: Float[Array, " o"], target, loss: str) -> Float[Array, ""]:
    """``l(f_i, y_i)`` of one example."""
    if loss == "mse":
        return jnp.sum((outputs - target) ** 2)
    if loss == "softmax_cross_entropy":
        return optax.softmax_cross_entropy_with_integer_labels(outputs, target)
    if loss == "logistic":
        return jnp.sum(optax.sigmoid_binary_cross_entropy(outputs, target))
    raise _no_branch(loss)


def batch_loss(outputs: Float[Array, "b *o"], targets: Array, *, loss: str) -> Float[Array, ""]:
    """Loss of a batch, ``L = (1/b) sum_i l(f_i, y_i)``.

    - ``mse``: ``l = sum_o (f_o - y_o)^2``.
    - ``softmax_cross_entropy``: ``l = log sum_o exp(f_o) - f_y``.
    - ``logistic``: ``l = log(1 + exp(f)) - y f``.

    Args:
      outputs: ``(b,)`` or ``(b, o)``; one output per example for ``logistic``.
      targets: as many numbers as outputs for ``mse``; integers ``(b,)`` for ``softmax_cross_entropy``; 0 or 1 for ``logistic``.
      loss: ``"mse"``, ``"softmax_cross_entropy"`` or ``"logistic"``.

    Returns:
      A scalar.

    Raises:
      ValueError: unknown loss, or shapes that do not fit it.

    Source: Zhu et al. (2024), arXiv 2306.04815, for ``mse`` without one half.

    >>> float(batch_loss(jnp.array([1.0, 3.0]), jnp.array([0.0, 0.0]), loss="mse"))
    5.0
    """
    outputs, targets = _check(outputs, targets, loss)
    return jnp.mean(jax.vmap(_example_loss, (0, 0, None))(outputs, targets, loss))


def output_gradient(outputs: Float[Array, "b *o"], targets: Array, *, loss: str) -> Float[Array, "b o"]:
    """Gradient of the loss of each example in its outputs, ``d l(f_i, y_i) / d f_i``, without ``1/b``.

    Args:
      outputs: ``(b,)`` or ``(b, o)``.
      targets: as the loss takes them.
      loss: name of the loss.

    Returns:
      ``(b, o)``.

    Raises:
      ValueError: unknown loss, or shapes that do not fit it.

    >>> output_gradient(jnp.array([1.0, 3.0]), jnp.array([0.0, 0.0]), loss="mse").tolist()
    [[2.0], [6.0]]
    """
    outputs, targets = _check(outputs, targets, loss)
    return jax.vmap(jax.grad(_example_loss), (0, 0, None))(outputs, targets, loss)


class CurvatureFactor(NamedTuple):
    """A factor ``B`` of the loss Hessian of each example in its outputs, ``S = B B^T``, as two linear maps of arrays ``(b, o)``."""

    times: Callable[[Float[Array, "b o"]], Float[Array, "b o"]]  # u -> B u
    transposed: Callable[[Float[Array, "b o"]], Float[Array, "b o"]]  # w -> B^T w


def curvature_factor(outputs: Float[Array, "b *o"], targets: Array, *, loss: str) -> CurvatureFactor:
    """Factor ``B`` of the loss Hessian of each example, ``S = B B^T``, in ``O(o)`` operations and without an ``(o, o)`` array.

    - ``mse``: ``S = 2 I``, ``B = sqrt(2) I``.
    - ``logistic``: ``S = p (1 - p)``, ``B = sqrt(S)``.
    - ``softmax_cross_entropy``: ``S = diag(p) - p p^T``. With ``s = sqrt(p)``: ``B u = s u - p (s . u)``,
      ``B^T w = s (w - p . w)``. The null space of ``B`` is ``s``. It loses no digits if one ``p`` is close to one.

    Args:
      outputs: ``(b,)`` or ``(b, o)``.
      targets: as the loss takes them; they are only checked.
      loss: name of the loss.

    Returns:
      A :class:`CurvatureFactor`.

    Raises:
      ValueError: unknown loss, or shapes that do not fit it.

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
    if loss != "softmax_cross_entropy":
        raise _no_branch(loss)
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
    """Columns ``F = B Q`` with ``F F^T = S``, one for each of the ``r`` directions in which the loss has curvature.

    For ``softmax_cross_entropy``, ``r = o - 1`` and ``Q`` is an orthonormal basis of the complement of ``s = sqrt(p)``: the
    Householder reflection that maps ``s`` to an axis, without the column of that axis.
    The axis is that of the most likely class, so no digits are lost.
    For the other losses, ``r = o`` and ``Q = I``.

    Args:
      outputs: ``(b,)`` or ``(b, o)``.
      targets: as the loss takes them; they are only checked.
      loss: name of the loss.

    Returns:
      ``(F, Q)``, both ``(b, o, r)``.

    Raises:
      ValueError: unknown loss, or shapes that do not fit it.

    Source: Householder (1958); ``B Q = diag(s) Q`` since ``Q`` is orthogonal to ``s``.

    >>> F, Q = curvature_columns(jnp.zeros((1, 2)), jnp.array([0]), loss="softmax_cross_entropy")
    >>> (F @ jnp.swapaxes(F, 1, 2)).round(3).tolist()  # diag(p) - p p^T
    [[[0.25, -0.25], [-0.25, 0.25]]]
    """
    outputs, targets = _check(outputs, targets, loss)
    b, o = outputs.shape
    if loss in ("mse", "logistic"):
        root = _logistic_root(outputs)[:, :, None] if loss == "logistic" else 2.0**0.5
        Q = jnp.broadcast_to(jnp.eye(o, dtype=outputs.dtype), (b, o, o))
        return Q * root, Q
    if loss != "softmax_cross_entropy":
        raise _no_branch(loss)
    s = jnp.sqrt(jax.nn.softmax(outputs))
    top = jnp.argmax(s, -1)[:, None]  # the axis without a column
    column = jnp.arange(o - 1)[None]
    kept = jnp.where(column == top, o - 1, column)  # (b, o - 1): the axis of each column; the last one stands in for ``top``
    s_top, s_kept = jnp.take_along_axis(s, top, 1), jnp.take_along_axis(s, kept, 1)
    axis = jnp.arange(o)[None, :, None]
    identity = (axis == kept[:, None, :]).astype(s.dtype)
    below = identity - s[:, :, None] * (s_kept / (1 + s_top))[:, None, :]
    Q = jnp.where(axis == top[:, :, None], -s_kept[:, None, :], below)
    return s[:, :, None] * Q, Q


def weighted_residual(outputs: Float[Array, "b *o"], targets: Array, *, loss: str) -> Float[Array, "b o"]:
    """Loss-weighted residual ``r = 2^(-1/2) B^+ grad_f l``, with ``B^+`` the pseudo-inverse of the curvature factor.

    ``sum(r^2) / b`` is the loss for ``mse``, and half the Newton decrement for the other losses.

    - ``mse``: ``r = f - y``.
    - ``logistic``: ``r = (p - y) / sqrt(2 p (1 - p))``.
    - ``softmax_cross_entropy``: ``r = (p - e_y) / sqrt(2 p)``, zero where ``p`` is zero in floating point.

    Args:
      outputs: ``(b,)`` or ``(b, o)``.
      targets: as the loss takes them.
      loss: name of the loss.

    Returns:
      ``(b, o)``, in units of the square root of the loss.

    Raises:
      ValueError: unknown loss, or shapes that do not fit it.

    Source: the definition of the Newton decrement; see :func:`curvature_factor` for ``B``.

    >>> weighted_residual(jnp.zeros((1, 2)), jnp.array([0]), loss="softmax_cross_entropy").round(3).tolist()
    [[-0.5, 0.5]]
    """
    gradient = output_gradient(outputs, targets, loss=loss)
    if loss == "mse":
        return gradient / 2
    rows, _ = _check(outputs, targets, loss)
    if loss not in ("logistic", "softmax_cross_entropy"):
        raise _no_branch(loss)
    root = _logistic_root(rows) if loss == "logistic" else jnp.sqrt(jax.nn.softmax(rows))
    return jnp.where(root > 0, gradient / jnp.where(root > 0, root, 1), 0) * 0.5**0.5


def _logistic_root(outputs: Float[Array, "b o"]) -> Float[Array, "b o"]:
    """``sqrt(p (1 - p))``; the difference ``1 - p`` would lose digits."""
    return jnp.sqrt(jax.nn.sigmoid(outputs) * jax.nn.sigmoid(-outputs))


def hessian_range(outputs: int, *, loss: str) -> Float[np.ndarray, "o r"]:
    """Orthonormal basis of a space that contains the range of the loss Hessian of every example.

    For ``softmax_cross_entropy``, ``r = o - 1``: the loss does not change if all logits change by the same number.
    For the other losses, ``r = o`` and the basis is ``I``.

    Args:
      outputs: number of outputs ``o``.
      loss: name of the loss.

    Returns:
      ``(o, r)``.

    Raises:
      ValueError: unknown loss.

    Source: the Helmert matrix.

    >>> (hessian_range(2, loss="softmax_cross_entropy") * 2**0.5).round(3).tolist()
    [[1.0], [-1.0]]
    """
    if loss in ("mse", "logistic"):
        return np.eye(outputs)
    if loss != "softmax_cross_entropy":
        raise _no_branch(loss)
    # Column j weighs outputs 0 to j equally, against output j + 1.
    basis = np.tril(np.ones((outputs, outputs)), 0).T[:, : outputs - 1]
    j = np.arange(1, outputs)
    basis[j, j - 1] = -j
    return basis / np.sqrt(j * (j + 1))
