"""Losses of a batch: value, gradient and Hessian in the outputs.

One convention (Zhu et al. 2024, arXiv 2306.04815): a loss is the mean over examples of a per-example loss, and ``mse`` is the
squared error summed over outputs, without one half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def hessian_root(outputs: Float[Array, "b *o"], targets: Array, *, loss: str, inverse: bool = False) -> Float[Array, "b o o"]:
    """Symmetric root ``S_i^(1/2)`` of each example's loss Hessian in its outputs, or its pseudo-inverse.

    ``S_i`` is ``2 I`` for ``mse``, ``diag(p) - p p^T`` for ``softmax_cross_entropy`` (rank ``o - 1``), ``p (1 - p)`` for ``logistic``.

    Raises:
      ValueError: unknown loss, or shapes that don't fit it.

    >>> hessian_root(jnp.zeros(1), jnp.ones(1), loss="logistic").tolist()  # sqrt(1/4)
    [[[0.5]]]
    """
    outputs, targets = _check(outputs, targets, loss)
    b, o = outputs.shape
    if loss == "mse":
        root = 0.5**0.5 if inverse else 2.0**0.5
        return jnp.broadcast_to(root * jnp.eye(o, dtype=outputs.dtype), (b, o, o))
    if loss == "logistic":
        root = jnp.sqrt(jax.nn.sigmoid(outputs) * jax.nn.sigmoid(-outputs))[:, :, None]
        return jnp.where(root > 0, 1 / jnp.where(root > 0, root, 1), 0) if inverse else root
    p = jax.nn.softmax(outputs)
    hessian = jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None, :]
    values, vectors = jnp.linalg.eigh(hessian)
    floor = o * jnp.finfo(outputs.dtype).eps * values[:, -1:]
    kept = values > floor  # the ones vector is always in the null space
    root = jnp.sqrt(jnp.where(kept, values, 1))
    root = jnp.where(kept, 1 / root if inverse else root, 0)
    return (vectors * root[:, None, :]) @ jnp.swapaxes(vectors, 1, 2)


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
