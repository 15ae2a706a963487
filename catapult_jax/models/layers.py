"""What the models share: activations, the unit-variance start and the NTK factor."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

ACTIVATIONS = {"relu": nn.relu, "gelu": nn.gelu, "tanh": jnp.tanh, "linear": lambda h: h}

unit_normal = nn.initializers.normal(1.0)


def scaled(h: jax.Array, gain: float, fan_in: int) -> jax.Array:
    """The input of a layer times ``gain / sqrt(fan_in)``, the factor of the NTK parameterisation."""
    return h * (gain / math.sqrt(fan_in))
