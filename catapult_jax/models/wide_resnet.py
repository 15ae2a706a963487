"""Wide residual network in NTK parameterisation."""

from __future__ import annotations

import flax.linen as nn

from catapult_jax.models.layers import ACTIVATIONS, scaled, unit_normal


class WideResNet(nn.Module):
    r"""Wide residual network with pre-activation blocks, NTK parameterisation, zero padding.

    - Three groups of ``n`` blocks: ``depth = 6 n + 4``, channels ``width * widen_factor * (1, 2, 4)``, strides 1, 2, 2.
    - Block: ``a = act(norm(h))``, ``h <- s + conv(act(norm(conv(a))))``. The shortcut ``s`` is ``h``; if the shape changes, it
      is a 1x1 convolution of ``a``.
    - Readout: ``f = m W / sqrt(c_in) + c``, with ``m`` the spatial average of ``act(norm(h))``.

    ``conv(h) = gain / sqrt(k k c_in) * h * W + c``, with ``W ~ N(0, 1)``. Every ``c`` starts at zero and has the factor one.
    The sum has no factor. The convolutions of a block see normalised inputs, so a block adds at most about
    ``gain^2 E act(z)^2``, ``z ~ N(0, 1)``, to the variance of ``h``. A block that changes the shape resets the variance.

    ``norm`` is GroupNorm of one example, with a scale and a bias per channel.
    The paper uses BatchNorm. Its batch statistics couple the examples, and a tangent kernel by example would not exist.

    Source: Zagoruyko and Komodakis (2016), arXiv 1605.07146, for the architecture. Our choices: GroupNorm, the NTK
    parameterisation and ``stem_stride``.

    >>> import jax, jax.numpy as jnp
    >>> model = WideResNet(depth=10, width=4, groups=2)
    >>> outputs, params = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.ones((3, 8, 8, 3)))
    >>> outputs.shape
    (3, 1)
    """

    depth: int = 10  # 6 n + 4, as the paper counts
    width: int = 16  # channels of the stem
    widen_factor: int = 1
    outputs: int = 1
    activation: str = "relu"  # a name in ACTIVATIONS
    gain: float = 1.0  # of the convolutions
    bias: bool = False
    groups: int = 4  # number of groups of channels in GroupNorm
    stem_stride: int = 1  # 2 or more gives smaller maps, for small machines

    @nn.compact
    def __call__(self, x):
        """Map ``(b, height, width, channels)`` images to ``(b, outputs)``.

        Raises:
          ValueError: ``depth`` is not ``6 n + 4``, or ``groups`` does not divide ``width``.
        """
        blocks, rest = divmod(self.depth - 4, 6)
        if rest or blocks < 1:
            raise ValueError(f"depth={self.depth!r}; allowed: 6 n + 4 with n at least 1 (10, 16, 22, ...)")
        if self.groups < 1 or self.width % self.groups:
            raise ValueError(f"groups={self.groups!r}; allowed: a divisor of width={self.width}")

        def conv(h, channels, size, stride, name):
            return nn.Conv(
                channels, (size, size), strides=stride, use_bias=self.bias, kernel_init=unit_normal, name=f"{name}conv"
            )(scaled(h, self.gain, size**2 * h.shape[-1]))

        def activated(h, name):
            return ACTIVATIONS[self.activation](nn.GroupNorm(self.groups, name=f"{name}norm")(h))

        h = conv(x, self.width, 3, self.stem_stride, "stem_")
        for group in range(3):
            channels = self.width * self.widen_factor * 2**group
            for block in range(blocks):
                name = f"group_{group}_block_{block}_"
                stride = 2 if group > 0 and block == 0 else 1
                a = activated(h, f"{name}first_")
                same = stride == 1 and h.shape[-1] == channels
                shortcut = h if same else conv(a, channels, 1, stride, f"{name}shortcut_")
                a = activated(conv(a, channels, 3, stride, f"{name}first_"), f"{name}second_")
                h = shortcut + conv(a, channels, 3, 1, f"{name}second_")
        h = activated(h, "last_").mean(axis=(1, 2))
        return nn.Dense(self.outputs, use_bias=self.bias, kernel_init=unit_normal, name="readout")(scaled(h, 1.0, h.shape[-1]))
