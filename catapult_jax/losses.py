"""Losses of a batch: value, gradient and Hessian in the outputs.

One convention: a loss is the weighted mean of a loss of each position, ``L = sum_i w_i l(f_i, y_i) / sum_i w_i``.
A position is an example, or a token of an example; without weights all ``w_i`` are one.
``mse`` is the squared error summed over outputs, without one half (Zhu et al. 2024, arXiv 2306.04815).

A loss is one of three things:

- a name: ``"mse"``, ``"softmax_cross_entropy"`` or ``"logistic"``;
- an object with options, such as ``SoftmaxCrossEntropy(label_smoothing=0.1, weighted=True)``;
- a function ``loss(outputs, targets) -> scalar``, whose Hessian is known by its products alone.

>>> loss = SoftmaxCrossEntropy(weighted=True)  # targets are pairs (targets, weights)
>>> logits, tokens, mask = jnp.zeros((1, 3, 2)), jnp.array([[0, 1, 1]]), jnp.array([[1.0, 1.0, 0.0]])
>>> round(float(batch_loss(logits, (tokens, mask), loss=loss)), 4)
0.6931
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from catapult_jax.loss_objects import (
    CurvatureFactor,
    FunctionLoss,
    GaussianNLL,
    Huber,
    Logistic,
    Loss,
    Rows,
    SoftmaxCrossEntropy,
    SquaredError,
    scaled,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree

__all__ = [
    "LOSSES",
    "CurvatureFactor",
    "FunctionLoss",
    "GaussianNLL",
    "Huber",
    "Logistic",
    "Loss",
    "SoftmaxCrossEntropy",
    "SquaredError",
    "as_loss",
    "batch_loss",
    "curvature_columns",
    "curvature_factor",
    "hessian_range",
    "output_gradient",
    "weighted_residual",
]

_NAMED = {"mse": SquaredError(), "softmax_cross_entropy": SoftmaxCrossEntropy(), "logistic": Logistic()}
LOSSES = tuple(_NAMED)


def as_loss(loss: str | Loss | Callable) -> Loss:
    """The object of a loss.

    Args:
      loss: a name, a :class:`Loss`, or a function ``loss(outputs, targets) -> scalar``.

    Returns:
      A :class:`Loss`.

    Raises:
      ValueError: none of them.

    >>> as_loss("mse")
    SquaredError(weighted=False)
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str) and loss in _NAMED:
        return _NAMED[loss]
    if callable(loss) and not isinstance(loss, type):
        return FunctionLoss(function=loss)
    raise ValueError(
        f"loss={loss!r}; allowed: {', '.join(LOSSES)}, an object of catapult_jax.losses, or loss(outputs, targets)"
    )


def batch_loss(outputs: Float[Array, "b *o"], targets: PyTree, *, loss: str | Loss | Callable) -> Float[Array, ""]:
    """Loss of a batch, ``L = sum_i w_i l(f_i, y_i) / sum_i w_i``; without weights ``(1/n) sum_i l(f_i, y_i)``.

    - ``mse``: ``l = sum_o (f_o - y_o)^2``, one position for each example.
    - ``softmax_cross_entropy``: ``l = log sum_o exp(f_o) - f_y``, one position for each row of the outputs; NaN under ``jit`` if
      ``y`` names no class.
    - ``logistic``: ``l = log(1 + exp(f)) - y f``, one position for each output; NaN under ``jit`` if ``y`` is not from 0 to 1.

    Args:
      outputs: ``(b, ...)``.
      targets: as many numbers as outputs for ``mse`` and ``logistic`` (0 to 1); for ``softmax_cross_entropy`` integers, or
        probabilities like the outputs; pairs ``(targets, weights)`` where the loss is ``weighted``.
      loss: a name, a :class:`Loss`, or a function ``loss(outputs, targets) -> scalar``.

    Returns:
      A scalar.

    Raises:
      ValueError: unknown loss, shapes that do not fit it, a label that names no class, or a logistic target that is not from 0 to 1.

    Source: Zhu et al. (2024), arXiv 2306.04815, for ``mse`` without one half.

    >>> float(batch_loss(jnp.array([1.0, 3.0]), jnp.array([0.0, 0.0]), loss="mse"))
    5.0
    """
    loss = as_loss(loss)
    value = loss(outputs, targets)
    loss.check_values(jnp.asarray(outputs), targets)
    return value


def output_gradient(outputs: Float[Array, "b *o"], targets: PyTree, *, loss: str | Loss) -> Float[Array, "n o"]:
    """Gradient of the loss of each position in its outputs, ``w_i d l(f_i, y_i) / d f_i``, without ``1/n``; weights have mean one.

    Args:
      outputs: ``(b, ...)``.
      targets: as the loss takes them.
      loss: name or object.

    Returns:
      ``(n, o)``, one row for each position.

    Raises:
      ValueError: unknown loss, or shapes that do not fit it; a function, whose gradient is ``jax.grad``.

    >>> output_gradient(jnp.array([1.0, 3.0]), jnp.array([0.0, 0.0]), loss="mse").tolist()
    [[2.0], [6.0]]
    """
    loss = as_loss(loss)
    rows = loss.rows(outputs, targets)
    return scaled(_gradient(loss, rows), rows.weights)


def _gradient(loss: Loss, rows: Rows) -> Float[Array, "n o"]:
    """``d l(f_i, y_i) / d f_i`` of each position, without weights."""
    return jax.grad(lambda f: jnp.sum(loss.values(rows._replace(outputs=f))))(rows.outputs)


def curvature_factor(
    outputs: Float[Array, "b *o"], targets: PyTree, *, loss: str | Loss, total: Array | float | None = None
) -> CurvatureFactor:
    """Factor ``B`` of the loss Hessian of each position, ``w_i S_i = B_i B_i^T``, in ``O(o)`` operations and without an ``(o, o)`` array.

    - ``mse``: ``S = 2 I``, ``B = sqrt(2) I``.
    - ``logistic``: ``S = p (1 - p)``, ``B = sqrt(S)``.
    - ``softmax_cross_entropy``: ``S = diag(p) - p p^T``. With ``s = sqrt(p)``: ``B u = s u - p (s . u)``,
      ``B^T w = s (w - p . w)``. The null space of ``B`` is ``s``. It loses no digits if one ``p`` is close to one.

    Args:
      outputs: ``(b, ...)``.
      targets: as the loss takes them.
      loss: name or object.
      total: sum of the weights of the batch, if these are only some of its examples; weights then have the mean ``n / total``
        times theirs. None: of these.

    Returns:
      A :class:`CurvatureFactor`.

    Raises:
      ValueError: unknown loss, or shapes that do not fit it; a loss without a factor.

    Source: ``B B^T = diag(p) - p p^T`` by multiplication.

    >>> factor = curvature_factor(jnp.zeros((1, 2)), jnp.array([0]), loss="softmax_cross_entropy")
    >>> factor.times(factor.transposed(jnp.array([[1.0, 0.0]]))).round(3).tolist()  # S e_1 with p = (1/2, 1/2)
    [[0.25, -0.25]]
    """
    loss = as_loss(loss)
    rows = loss.rows(outputs, targets, total)
    factor = loss.factor(rows)
    if rows.weights is None:
        return factor
    roots = jnp.sqrt(rows.weights)
    scale = lambda u: scaled(u, roots.astype(u.dtype))
    return CurvatureFactor(lambda u: scale(factor.times(u)), lambda w: factor.transposed(scale(w)), factor.positions)


def curvature_columns(
    outputs: Float[Array, "b *o"], targets: PyTree, *, loss: str | Loss
) -> tuple[Float[Array, "n o r"], Float[Array, "n o r"]]:
    """Columns ``F = B Q`` with ``F F^T = w S``, one for each of the ``r`` directions in which the loss has curvature.

    For ``softmax_cross_entropy``, ``r = o - 1`` and ``Q`` is an orthonormal basis of the complement of ``s = sqrt(p)``: the
    Householder reflection that maps ``s`` to an axis, without the column of that axis.
    The axis is that of the most likely class, so no digits are lost.
    For the other losses, ``r = o`` and ``Q = I``.

    Args:
      outputs: ``(b, ...)``.
      targets: as the loss takes them.
      loss: name or object.

    Returns:
      ``(F, Q)``, both ``(n, o, r)``.

    Raises:
      ValueError: unknown loss, or shapes that do not fit it; a loss without a factor.

    Source: Householder (1958); ``B Q = diag(s) Q`` since ``Q`` is orthogonal to ``s``.

    >>> F, Q = curvature_columns(jnp.zeros((1, 2)), jnp.array([0]), loss="softmax_cross_entropy")
    >>> (F @ jnp.swapaxes(F, 1, 2)).round(3).tolist()  # diag(p) - p p^T
    [[[0.25, -0.25], [-0.25, 0.25]]]
    """
    loss = as_loss(loss)
    rows = loss.rows(outputs, targets)
    F, Q = loss.columns(rows)
    return (F if rows.weights is None else scaled(F, jnp.sqrt(rows.weights))), Q


def weighted_residual(outputs: Float[Array, "b *o"], targets: PyTree, *, loss: str | Loss) -> Float[Array, "n o"]:
    """Loss-weighted residual ``r = 2^(-1/2) B^+ w grad_f l``, with ``B^+`` the pseudo-inverse of the curvature factor.

    ``sum(r^2) / n`` is the loss for ``mse``, and half the Newton decrement for the other losses.

    - ``mse``: ``r = f - y``.
    - ``logistic``: ``r = (p - y) / sqrt(2 p (1 - p))``.
    - ``softmax_cross_entropy``: ``r = (p - e_y) / sqrt(2 p)``, zero where ``p`` is zero in floating point.

    Args:
      outputs: ``(b, ...)``.
      targets: as the loss takes them.
      loss: name or object.

    Returns:
      ``(n, o)``, in units of the square root of the loss.

    Raises:
      ValueError: unknown loss, or shapes that do not fit it; a loss without a factor.

    Source: the definition of the Newton decrement; see :func:`curvature_factor` for ``B``.

    >>> weighted_residual(jnp.zeros((1, 2)), jnp.array([0]), loss="softmax_cross_entropy").round(3).tolist()
    [[-0.5, 0.5]]
    """
    loss = as_loss(loss)
    rows = loss.rows(outputs, targets)
    gradient = _gradient(loss, rows)
    if isinstance(root := loss.root(rows), float):
        residual = gradient / (root * 2**0.5)
    else:
        residual = jnp.where(root > 0, gradient / jnp.where(root > 0, root, 1), 0) * 0.5**0.5
    return residual if rows.weights is None else scaled(residual, jnp.sqrt(rows.weights))


def hessian_range(outputs: int, *, loss: str | Loss) -> Float[np.ndarray, "o r"]:
    """Orthonormal basis of a space that contains the range of the loss Hessian of every position.

    For ``softmax_cross_entropy``, ``r = o - 1``: the loss does not change if all logits change by the same number.
    For the other losses, ``r = o`` and the basis is ``I``.

    Args:
      outputs: number of outputs ``o`` of a position.
      loss: name or object.

    Returns:
      ``(o, r)``.

    Raises:
      ValueError: unknown loss.

    Source: the Helmert matrix.

    >>> (hessian_range(2, loss="softmax_cross_entropy") * 2**0.5).round(3).tolist()
    [[1.0], [-1.0]]
    """
    return as_loss(loss).range_of(outputs)
