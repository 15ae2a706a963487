"""Convolutional network in NTK parameterisation."""

from __future__ import annotations

import flax.linen as nn

from catapult_jax.models.layers import ACTIVATIONS, scaled, unit_normal

READOUTS = ("flatten", "average")


class CNN(nn.Module):
    """Convolutional network, NTK parameterisation, zero padding.

    - Convolution: ``h <- act(gain / sqrt(k k c_in) * conv(h, W) + c)``.
    - Readout of the flattened or averaged maps: ``f = h W / sqrt(fan_in) + c``.

    Every ``W ~ N(0, 1)``. Every ``c`` starts at zero and has the factor one.

    Source: Jacot, Gabriel, Hongler (2018), arXiv 1806.07572, for the parameterisation.

    >>> import jax, jax.numpy as jnp
    >>> model = CNN(depth=2, width=4)
    >>> images = jnp.ones((3, 8, 8, 1))
    >>> model.apply(model.init(jax.random.key(0), images), images).shape
    (3, 1)
    """

    depth: int = 5  # weight layers: ``depth - 1`` convolutions and the readout
    width: int = 64  # channels
    outputs: int = 1
    activation: str = "relu"  # a name in ACTIVATIONS
    gain: float = 1.0  # of the convolutions; sqrt(2) is He scaling for relu
    bias: bool = False
    kernel_size: int = 3  # pixels along a side
    strides: tuple[int, ...] | None = None  # of each convolution; None: 1
    readout: str = "flatten"  # or "average": mean over the pixels

    @nn.compact
    def __call__(self, x):
        """Map ``(b, height, width, channels)`` images to ``(b, outputs)``."""
        h = x
        for layer in range(self.depth - 1):
            h = nn.Conv(
                self.width,
                (self.kernel_size, self.kernel_size),
                strides=self.strides[layer] if self.strides else 1,
                use_bias=self.bias,
                kernel_init=unit_normal,
                name=f"conv_{layer}",
            )(scaled(h, self.gain, self.kernel_size**2 * h.shape[-1]))
            h = ACTIVATIONS[self.activation](h)
        h = h.mean(axis=(1, 2)) if self.readout == "average" else h.reshape(h.shape[0], -1)
        return nn.Dense(self.outputs, use_bias=self.bias, kernel_init=unit_normal, name="readout")(scaled(h, 1.0, h.shape[-1]))
