"""Activations, initialiser and NTK factor of the models."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

ACTIVATIONS = {"relu": nn.relu, "gelu": nn.gelu, "tanh": jnp.tanh, "linear": lambda h: h}

unit_normal = nn.initializers.normal(1.0)


def scaled(h: jax.Array, gain: float, fan_in: int) -> jax.Array:
    """Input of a layer times the factor of the NTK parameterisation, ``gain / sqrt(fan_in) * h``.

    Args:
      h: input of the layer.
      gain: of the layer.
      fan_in: number of inputs of one output.

    Returns:
      The shape of ``h``.

    Source: Jacot, Gabriel, Hongler (2018), arXiv 1806.07572.

    >>> float(scaled(jnp.float32(6.0), 1.0, 4))
    3.0
    """
    return h * (gain / math.sqrt(fan_in))
