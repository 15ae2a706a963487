"""Networks that tests and benchmarks share.

``linen``, ``nnx``, ``equinox``, ``haiku`` and ``plain`` make the same network with the same weights. Each takes a list of layers
``(weight, bias)``, with weights as linen has them, and returns ``apply_fn`` and parameters as a user of that framework has them. A layer
whose weight has four axes is a convolution, and the last layer is linear.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Layers = list[tuple[Any, Any]]


def fcn(depth: int, width: int, inputs: int, outputs: int) -> Layers:
    """Layers of a fully connected network."""
    sizes = [inputs, *[width] * (depth - 1), outputs]
    return _layers([(a, b) for a, b in itertools.pairwise(sizes)])


def cnn(depth: int, width: int, channels: int, side: int, outputs: int) -> Layers:
    """Layers of a network of 3 x 3 convolutions, and a linear layer of all pixels."""
    sizes = [channels, *[width] * (depth - 1)]
    return _layers([(3, 3, a, b) for a, b in itertools.pairwise(sizes)] + [(side**2 * width, outputs)])


def _layers(shapes: list[tuple[int, ...]]) -> Layers:
    keys = jax.random.split(jax.random.key(0), (len(shapes), 2))
    size = lambda shape: (shape[-2] * (9 if len(shape) == 4 else 1)) ** -0.5
    return [
        (size(shape) * jax.random.normal(w, shape), 0.1 * jax.random.normal(b, shape[-1:]))
        for shape, (w, b) in zip(shapes, keys, strict=True)
    ]


def plain(layers: Layers) -> tuple[Callable, Any]:
    """A list of arrays and a function."""

    def apply_fn(params, x):
        *hidden, (w, b) = params
        for weight, bias in hidden:
            x = _convolved(x, weight) if weight.ndim == 4 else x.reshape(len(x), -1) @ weight
            x = jax.nn.relu(x + bias)
        return x.reshape(len(x), -1) @ w + b

    return apply_fn, layers


def _convolved(x, weight):
    return jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def linen(layers: Layers) -> tuple[Callable, Any]:
    """A module with ``setup`` by name."""
    import flax.linen as nn

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            for i, (weight, bias) in enumerate(layers):
                if weight.ndim == 4:
                    x = nn.Conv(len(bias), (3, 3), name=f"layer_{i}")(x)
                else:
                    x = nn.Dense(len(bias), name=f"layer_{i}")(x.reshape(len(x), -1))
                x = nn.relu(x) if i < len(layers) - 1 else x
            return x

    params = {f"layer_{i}": {"kernel": weight, "bias": bias} for i, (weight, bias) in enumerate(layers)}
    return Network().apply, {"params": params}


def nnx(layers: Layers) -> tuple[Callable, Any]:
    """``nnx.split`` of a module; the parameters are its state."""
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List(
                nnx.Conv(*w.shape[2:], (3, 3), rngs=rngs) if w.ndim == 4 else nnx.Linear(*w.shape, rngs=rngs) for w, _ in layers
            )
            for layer, (weight, bias) in zip(self.layers, layers, strict=True):
                layer.kernel[...], layer.bias[...] = weight, bias

        def __call__(self, x):
            *hidden, last = self.layers
            for layer in hidden:
                x = jax.nn.relu(layer(x if isinstance(layer, nnx.Conv) else x.reshape(len(x), -1)))
            return last(x.reshape(len(x), -1))

    graph, state = nnx.split(Network(nnx.Rngs(0)))
    return lambda state, x: nnx.merge(graph, state)(x), state


def equinox(layers: Layers) -> tuple[Callable, Any]:
    """``equinox.partition`` of a module for one example; images and weights have their channels first."""
    import equinox

    def layer(weight, bias):
        key = jax.random.key(0)
        if weight.ndim == 4:
            made = equinox.nn.Conv2d(*weight.shape[2:], 3, padding="SAME", key=key)
            values = weight.transpose(3, 2, 0, 1), bias[:, None, None]
        else:
            made, values = equinox.nn.Linear(*weight.shape, key=key), (weight.T, bias)
        return equinox.tree_at(lambda made: (made.weight, made.bias), made, values)

    class Network(equinox.Module):
        layers: list

        def __call__(self, x):
            *hidden, last = self.layers
            for layer in hidden:
                x = jax.nn.relu(layer(x if isinstance(layer, equinox.nn.Conv2d) else _channels_last(x)))
            return last(_channels_last(x))

    params, static = equinox.partition(Network([layer(*one) for one in layers]), equinox.is_inexact_array)

    def apply_fn(params, x):
        x = jnp.moveaxis(x, -1, 1) if x.ndim == 4 else x
        return jax.vmap(equinox.combine(params, static))(x)

    return apply_fn, params


def _channels_last(x):
    """One example as a vector, with the channels of a pixel beside each other."""
    return jnp.moveaxis(x, 0, -1).reshape(-1) if x.ndim == 3 else x


def haiku(layers: Layers) -> tuple[Callable, Any]:
    """``haiku.transform`` of a function."""
    import haiku

    def network(x):
        for i, (weight, bias) in enumerate(layers):
            if weight.ndim == 4:
                x = haiku.Conv2D(len(bias), 3, name=f"layer_{i}")(x)
            else:
                x = haiku.Linear(len(bias), name=f"layer_{i}")(x.reshape(len(x), -1))
            x = jax.nn.relu(x) if i < len(layers) - 1 else x
        return x

    apply_fn = haiku.without_apply_rng(haiku.transform(network)).apply
    return apply_fn, {f"layer_{i}": {"w": weight, "b": bias} for i, (weight, bias) in enumerate(layers)}


FRAMEWORKS = {"linen": linen, "nnx": nnx, "Equinox": equinox, "Haiku": haiku, "plain": plain}


def transformer(layers: int, width: int, heads: int, *, scanned: bool) -> tuple[Callable, Any]:
    """Transformer blocks on ``(b, t, width)``, stacked for a scan or one after the other, with the same weights; one output."""
    params = {"blocks": _blocks(layers, width), "last": jnp.ones((width, 1)) / width**0.5}

    def apply_scanned(params, x):
        h, _ = jax.lax.scan(lambda h, w: (_block(h, w, heads), None), x, params["blocks"])
        return h.mean(1) @ params["last"]

    def apply_unrolled(params, x):
        for w in params["blocks"]:
            x = _block(x, w, heads)
        return x.mean(1) @ params["last"]

    if scanned:
        return apply_scanned, params
    return apply_unrolled, params | {"blocks": [jax.tree.map(lambda a, i=i: a[i], params["blocks"]) for i in range(layers)]}


def decoder(
    vocabulary: int, layers: int, width: int, heads: int, length: int, dtype: Any = jnp.float32
) -> tuple[Callable, Any]:
    """A language model: tied embeddings, learned positions, RMSNorm, causal attention, remat, a scan over the layers.

    ``apply_fn`` maps ``(b, length)`` tokens to logits. It computes in ``dtype``; the parameters are float32.
    """
    embedding, positions = jax.random.split(jax.random.key(1))
    params = {
        "embedding": 0.02 * jax.random.normal(embedding, (vocabulary, width)),
        "positions": 0.02 * jax.random.normal(positions, (length, width)),
        "blocks": _blocks(layers, width),
        "gain": jnp.ones(width),
    }

    @jax.checkpoint
    def block(h, w):
        return _block(h, jax.tree.map(lambda a: a.astype(dtype), w), heads, causal=True), None

    def apply_fn(params, tokens):
        table = params["embedding"].astype(dtype)
        h = table[tokens] * width**0.5 + params["positions"].astype(dtype)[: tokens.shape[1]]
        h, _ = jax.lax.scan(block, h, params["blocks"])
        return (_normalised(h) * params["gain"].astype(dtype) @ table.T).astype(jnp.float32)

    return apply_fn, params


def _blocks(layers: int, width: int) -> dict[str, Any]:
    shapes = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, 4 * width), "down": (4 * width, width)}
    keys = dict(zip(shapes, jax.random.split(jax.random.key(0), len(shapes)), strict=True))
    weights = {name: jax.random.normal(keys[name], (layers, *shape)) / shape[0] ** 0.5 for name, shape in shapes.items()}
    return weights | {"gain": jnp.ones((layers, width)), "second_gain": jnp.ones((layers, width))}


def _block(h, w, heads: int, *, causal: bool = False):
    q, k, v = jnp.split((_normalised(h) * w["gain"]) @ w["qkv"], 3, axis=-1)
    cut = lambda a: a.reshape(*a.shape[:2], heads, -1)
    scores = jnp.einsum("bthc,bshc->bhts", cut(q), cut(k)).astype(jnp.float32) / cut(q).shape[-1] ** 0.5
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -1e30)
    h = h + jnp.einsum("bhts,bshc->bthc", jax.nn.softmax(scores).astype(h.dtype), cut(v)).reshape(h.shape) @ w["out"]
    return h + jax.nn.gelu((_normalised(h) * w["second_gain"]) @ w["up"]) @ w["down"]


def _normalised(h):
    mean_square = jnp.mean(jnp.square(h.astype(jnp.float32)), -1, keepdims=True)
    return h * jax.lax.rsqrt(mean_square + 1e-6).astype(h.dtype)
