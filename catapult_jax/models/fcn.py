"""Fully connected network in NTK parameterisation."""

from __future__ import annotations

import flax.linen as nn

from catapult_jax.models.layers import ACTIVATIONS, scaled, unit_normal


class FCN(nn.Module):
    """Fully connected network, NTK parameterisation.

    - Hidden layer: ``h <- act(gain / sqrt(fan_in) * h W + c)``.
    - Readout: ``f = h W / sqrt(width) + c``.

    Every ``W ~ N(0, 1)``. Every ``c`` starts at zero and has the factor one.
    The input of a layer is scaled, so the trained parameter is ``W`` itself.

    Source: Jacot, Gabriel, Hongler (2018), arXiv 1806.07572, for the parameterisation.

    >>> import jax, jax.numpy as jnp
    >>> model = FCN(depth=2, width=8)
    >>> params = model.init(jax.random.key(0), jnp.ones((3, 4)))
    >>> model.apply(params, jnp.ones((3, 4))).shape
    (3, 1)
    """

    depth: int = 5  # weight layers, readout included
    width: int = 1024
    outputs: int = 1
    activation: str = "relu"  # a name in ACTIVATIONS
    gain: float = 1.0  # of the hidden layers; sqrt(2) is He scaling for relu
    bias: bool = False

    @nn.compact
    def __call__(self, x):
        """Flatten ``(b, ...)`` inputs and map them to ``(b, outputs)``."""
        h = x.reshape(x.shape[0], -1)
        for layer in range(self.depth - 1):
            h = nn.Dense(self.width, use_bias=self.bias, kernel_init=unit_normal, name=f"hidden_{layer}")(
                scaled(h, self.gain, h.shape[-1])
            )
            h = ACTIVATIONS[self.activation](h)
        return nn.Dense(self.outputs, use_bias=self.bias, kernel_init=unit_normal, name="readout")(scaled(h, 1.0, h.shape[-1]))
