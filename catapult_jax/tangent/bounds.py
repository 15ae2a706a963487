"""Upper bounds on eigenvalues from Ritz pairs and a random start; :mod:`catapult_jax.tangent.rayleigh_ritz` has the proof."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array


def rounding(values: Array) -> Array:
    """Error of Ritz values by rounding: 16 eps times the largest in size.

    Args:
      values: Ritz values, largest first.

    Returns:
      A scalar.

    >>> float(rounding(jnp.array([2.0, 1.0]))) == 32 * 2.0**-23
    True
    """
    return 16 * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))


def log_least_component(dimension: Array, failure: float) -> Array:
    """Log of ``d``: a component of a random unit vector is below ``d`` in size with probability ``failure`` at most.

    The unit vector is uniform on the sphere. The density of the size of a component is at most
    ``2 Gamma(dimension / 2) / (sqrt(pi) Gamma((dimension - 1) / 2))`` on ``[0, 1]``.

    Args:
      dimension: Of the unit vector.
      failure: Above 0 and below 1.

    Returns:
      A scalar.

    Source: the marginal density of the uniform distribution on the sphere.

    >>> round(float(log_least_component(jnp.array(3.0), 0.01)), 3)  # in three dimensions the component is uniform: d = 0.01
    -4.605
    """
    half = jnp.maximum(dimension, 1.5) / 2  # the density is not bounded in fewer than three dimensions
    log_density = math.log(2 / math.sqrt(math.pi)) + lax.lgamma(half) - lax.lgamma(half - 0.5)
    of_circle = jnp.log(jnp.sin(failure * math.pi / 2)).astype(half.dtype)
    return jnp.where(dimension <= 1, 0, jnp.where(dimension <= 2, of_circle, math.log(failure) - log_density))


def upper_bounds(values: Array, sizes: Array, used: Array, outside: Array) -> Array:
    """Bounds on the largest eigenvalue of the outside together with the Ritz vectors from each rank on.

    Args:
      values: ``(m,)`` Ritz values, largest first.
      sizes: ``(m,)`` norms of their residuals.
      used: ``(m,)`` whether the space has that vector.
      outside: Bound on the eigenvalues outside the space.

    Returns:
      ``(m + 1,)``: the bound for each rank, and ``outside``.

    Source: see :mod:`catapult_jax.tangent.rayleigh_ritz`.

    >>> upper_bounds(jnp.array([3.0]), jnp.array([0.0]), jnp.array([True]), jnp.float32(2)).tolist()
    [3.0, 2.0]
    """

    def join(c, pair):
        theta, r, is_used = pair
        larger = jnp.where(jnp.isinf(c), c, (theta + c + jnp.hypot(theta - jnp.where(jnp.isinf(c), 0, c), 2 * r)) / 2)
        c = jnp.where(is_used, larger, c)
        return c, c

    _, above = lax.scan(join, outside, (values, sizes, used), reverse=True)
    return jnp.concatenate([above, outside[None]])
