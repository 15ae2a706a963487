"""The softmax and its cross-entropy, with derivatives that keep their digits where one class is almost certain.

There ``p_y - 1`` and ``p (1 - p)`` are differences of almost equal numbers. Here the entry of that class is minus the sum of the others.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax

if TYPE_CHECKING:
    from jaxtyping import Array, Float


@jax.custom_jvp
def softmax(f: Float[Array, "n o"]) -> Float[Array, "n o"]:
    """Probabilities ``p = exp(f) / sum exp(f)``, with derivatives ``dp = p (u - p . u)``, ``u = df - df_top``.

    Args:
      f: logits.

    Returns:
      ``(n, o)``.

    Source: the derivative of the softmax does not change if all ``df`` change by the same number.

    >>> p, dp = jax.jvp(softmax, (jnp.array([[30.0, 0.0]]),), (jnp.array([[1.0, 0.0]]),))
    >>> bool(dp[0, 0] == -dp[0, 1] == p[0, 1])  # p_0 (1 - p_0) would be 0 in float32
    True
    """
    return jax.nn.softmax(f)


@softmax.defjvp
def _(primals, tangents):
    (f,), (df,) = primals, tangents
    p, is_top = softmax(f), _is_largest(f)
    u = jnp.where(is_top, 0, df - jnp.sum(jnp.where(is_top, df, 0), -1, keepdims=True))
    return p, p * (u - jnp.sum(p * u, -1, keepdims=True))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def cross_entropy(f: Float[Array, "n o"], y: Array, smoothing: float) -> Float[Array, " n"]:
    """Cross-entropy of each row, ``-sum_o q_o log p_o``.

    Args:
      f: logits.
      y: ``(n,)`` integers, or ``q`` as ``(n, o)``.
      smoothing: of the labels; ``q`` becomes ``(1 - smoothing) q + smoothing / o``.

    Returns:
      ``(n,)``; NaN where an integer names no class.

    >>> gradient = jax.grad(lambda f: cross_entropy(f, jnp.array([0]), 0.0)[0])(jnp.array([[30.0, 0.0]]))
    >>> bool(gradient[0, 0] == -gradient[0, 1] != 0)  # p_0 - 1 would be 0 in float32
    True
    """
    if jnp.issubdtype(y.dtype, jnp.integer):
        values = optax.softmax_cross_entropy_with_integer_labels(f, y)
        values = jnp.where(_names_class(f, y), values, jnp.nan)
    else:
        values = optax.softmax_cross_entropy(f, y)
    if not smoothing:
        return values
    return values + smoothing * (jax.nn.logsumexp(f, -1) - jnp.mean(f, -1) - values)


@cross_entropy.defjvp
def _(smoothing, primals, tangents):
    (f, y), (df, dy) = primals, tangents
    derivative = jnp.sum(_gradient(f, y, smoothing) * df, -1)
    if not jnp.issubdtype(y.dtype, jnp.integer):
        derivative -= (1 - smoothing) * jnp.sum(jax.nn.log_softmax(f) * dy, -1)
    return cross_entropy(f, y, smoothing), derivative


def target_sums(f: Float[Array, "n o"], y: Array, smoothing: float) -> Float[Array, "n 1"]:
    """``sum_o q_o`` of each row, which multiplies the Hessian; NaN where an integer names no class.

    Args:
      f, y, smoothing: as in :func:`cross_entropy`.

    Returns:
      ``(n, 1)``.

    >>> target_sums(jnp.zeros((3, 2)), jnp.array([0, 1, 2]), 0.0)[:, 0].tolist()
    [1.0, 1.0, nan]
    """
    if jnp.issubdtype(y.dtype, jnp.integer):
        return jnp.where(_names_class(f, y), 1, jnp.nan).astype(f.dtype)[:, None]
    return (1 - smoothing) * jnp.sum(y, -1, keepdims=True) + smoothing


def _gradient(f: Array, y: Array, smoothing: float) -> Array:
    """``(sum q) p - q``. Its entries sum to zero, so that of the most likely target is minus the sum of the others."""
    if jnp.issubdtype(y.dtype, jnp.integer):
        is_target = _places(f) == y.astype(jnp.int32)[:, None]
        q = is_target.astype(f.dtype)
    else:
        is_target, q = _is_largest(y), y
    q = (1 - smoothing) * q + smoothing / f.shape[-1]
    others = jnp.where(is_target, 0, target_sums(f, y, smoothing) * softmax(f) - q)
    return jnp.where(is_target, -jnp.sum(others, -1, keepdims=True), others)


def _is_largest(values: Array) -> Array:
    """Where the first of the largest entries of each row is."""
    return _places(values) == jnp.argmax(values, -1).astype(jnp.int32)[:, None]


def _places(values: Array) -> Array:
    return jnp.arange(values.shape[-1], dtype=jnp.int32)[None]


def _names_class(f: Array, y: Array) -> Array:
    y = y.astype(jnp.promote_types(y.dtype, jnp.int32))  # a number of classes can be too large for the dtype of the labels
    return (y >= 0) & (y < f.shape[-1])
