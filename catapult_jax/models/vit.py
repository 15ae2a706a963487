"""Vision transformer in NTK parameterisation."""

from __future__ import annotations

from functools import partial

import flax.linen as nn

from catapult_jax.models.layers import ACTIVATIONS, scaled, unit_normal


class ViT(nn.Module):
    r"""Vision transformer with pre-norm blocks, NTK parameterisation, no class token, no dropout.

    - Tokens: ``h = patches(x) + P``, with positions ``P ~ N(0, 1)``, ``(tokens, width)``.
    - Block: ``h <- h + attention(norm(h))``, ``h <- h + mlp(norm(h))``.
    - Attention of a head: ``softmax(q k^T / sqrt(width / heads)) v``, then a projection of all heads.
    - ``mlp(h) = proj(act(proj(h)))``.
    - Readout: ``f = m W / sqrt(width) + c``, with ``m`` the mean of ``norm(h)`` over the tokens.

    Every projection (patches, q, k, v, heads, mlp) is ``gain / sqrt(fan_in) * h W + c``, with ``W ~ N(0, 1)``.
    Every ``c`` starts at zero. ``c`` and ``P`` have the factor one.
    Inputs with mean square one give patches of unit variance, so positions start as large as patches.
    ``norm`` is LayerNorm of one token, with a scale and a bias.

    Source: Dosovitskiy et al. (2021), arXiv 2010.11929, for the architecture. Our choices: the mean over tokens instead of a
    class token, the NTK parameterisation, and the initialisation of ``P``.

    >>> import jax, jax.numpy as jnp
    >>> model = ViT(depth=1, width=8, heads=2, patch_size=4)
    >>> outputs, params = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((3, 8, 8, 3)))
    >>> outputs.shape
    (3, 1)
    """

    depth: int = 2  # blocks
    width: int = 64  # of a token
    heads: int = 4
    patch_size: int = 8  # pixels along a side
    mlp_ratio: int = 2  # hidden units of the mlp over width
    outputs: int = 1
    activation: str = "gelu"  # a name in ACTIVATIONS
    gain: float = 1.0  # of the projections
    bias: bool = False

    @nn.compact
    def __call__(self, x):
        """Map ``(b, height, width, channels)`` images to ``(b, outputs)``.

        Raises:
          ValueError: ``patch_size`` does not divide height and width of the images, or ``heads`` does not divide ``width``.
        """
        height, width = x.shape[1:3]
        if self.patch_size < 1 or height % self.patch_size or width % self.patch_size:
            raise ValueError(f"patch_size={self.patch_size!r}; allowed: a divisor of both sides of {height}x{width} images")
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"heads={self.heads!r}; allowed: a divisor of width={self.width}")
        Dense = partial(nn.Dense, use_bias=self.bias, kernel_init=unit_normal)
        DenseGeneral = partial(nn.DenseGeneral, use_bias=self.bias, kernel_init=unit_normal)

        def dense(h, features, name):
            return Dense(features, name=name)(scaled(h, self.gain, h.shape[-1]))

        def attention(h, name):
            h = scaled(h, self.gain, self.width)
            split = (self.heads, self.width // self.heads)
            q, k, v = (DenseGeneral(split, name=f"{name}_{part}")(h) for part in ("query", "key", "value"))
            h = scaled(nn.dot_product_attention(q, k, v), self.gain, self.width)
            return DenseGeneral(self.width, axis=(-2, -1), name=f"{name}_heads")(h)

        # Patches do not overlap, so the convolution is a matrix product. XLA runs convolutions in loops slowly on the CPU.
        p = self.patch_size
        h = x.reshape(-1, height // p, p, width // p, p, x.shape[-1]).transpose(0, 1, 3, 2, 4, 5)
        h = dense(h.reshape(h.shape[0], -1, p * p * x.shape[-1]), self.width, "patches")
        h = h + self.param("positions", unit_normal, h.shape[1:])
        for block in range(self.depth):
            name = f"block_{block}"
            h = h + attention(nn.LayerNorm(name=f"{name}_attention_norm")(h), f"{name}_attention")
            a = dense(nn.LayerNorm(name=f"{name}_mlp_norm")(h), self.mlp_ratio * self.width, f"{name}_mlp_in")
            h = h + dense(ACTIVATIONS[self.activation](a), self.width, f"{name}_mlp_out")
        h = nn.LayerNorm(name="last_norm")(h).mean(axis=1)
        return Dense(self.outputs, name="readout")(scaled(h, 1.0, self.width))
