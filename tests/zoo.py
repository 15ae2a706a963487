"""Models for tests of the kernel, each with inputs, by name; linear models with a given spectrum; and kernels in float64."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from catapult_jax import CNN, FCN
from catapult_jax.models import ViT, WideResNet
from catapult_jax.testing import explicit_jacobian, symmetric_with_spectrum
from catapult_jax.xla import QUICK


class OverAxes(nn.Module):
    """Dense over a sequence, applied twice with the same weights, with and without bias."""

    @nn.compact
    def __call__(self, x):
        h = nn.gelu(nn.Dense(5)(x))
        again = nn.Dense(5, use_bias=False)
        h = again(jnp.tanh(again(h)))
        return nn.Dense(2)(h.mean(1))


class SharedWithBias(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(6)
        return nn.Dense(1)(layer(jnp.tanh(layer(x))))


class BatchFolded(nn.Module):
    """The batch axis is folded into others and moved; one layer has inputs that depend on no example."""

    @nn.compact
    def __call__(self, x):
        b, s, d = x.shape
        h = jnp.tanh(nn.Dense(4)(x.reshape(b * s, d))).reshape(b, s, 4).transpose(1, 0, 2)
        h = jnp.tanh(nn.Dense(4)(h))
        return h.sum(0) * nn.Dense(4)(jnp.ones((3,), h.dtype))


class Patches(nn.Module):
    @nn.compact
    def __call__(self, x):
        b, height, width, c = x.shape
        h = x.reshape(b, height // 2, 2, width // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, 4 * c)
        return nn.Dense(3)(jnp.tanh(nn.Dense(7)(h)).sum(1))


class Convolutions(nn.Module):
    kwargs: dict

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Conv(4, (3, 3))(x))
        h = nn.gelu(nn.Conv(6, (3, 2), **self.kwargs)(h))
        return nn.Dense(2)(h.reshape(h.shape[0], -1))


class OneDimensional(nn.Module):
    padding: str

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(jnp.tanh(nn.Conv(5, (3,), padding=self.padding, kernel_dilation=2)(x)).reshape(x.shape[0], -1))


class TinyTransformer(nn.Module):
    """Attention, LayerNorm and GroupNorm scales, a positional parameter outside any module."""

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(8)(x) + self.param("position", nn.initializers.normal(), (x.shape[1], 8))
        h = nn.LayerNorm()(h)
        h = h + nn.MultiHeadDotProductAttention(2)(h, h)
        h = nn.GroupNorm(2)(h)
        return nn.Dense(3)(h[:, 0])


class Words(nn.Module):
    """An embedding, tied with the output layer."""

    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(7, 6)
        return embed.attend(jnp.tanh(nn.Dense(6)(embed(x))).mean(1))


class Letters(nn.Module):
    """An embedding looked up twice, with ids from the end too, and Dense over other axes than the last."""

    @nn.compact
    def __call__(self, x):
        embed = nn.Embed(7, 6)
        h = jnp.tanh(embed(x) + embed(-1 - x))
        h = nn.DenseGeneral(5, axis=1)(h)  # over the places
        return nn.DenseGeneral((2,), axis=(-1, 1))(jnp.tanh(h))


class Tied(nn.Module):
    """The weights of a Dense layer read outside it."""

    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(6)
        h = jnp.tanh(layer(x))
        weights = layer.variables["params"]
        return (h @ weights["kernel"].T)[:, :2] + weights["bias"][:2]


class Lifted(nn.Module):
    """Layers under remat, jit and scan."""

    @nn.compact
    def __call__(self, x):
        h = jnp.tanh(nn.remat(nn.Dense)(6)(x))
        h = jnp.tanh(nn.jit(nn.Dense)(6)(h))

        class Block(nn.Module):
            @nn.compact
            def __call__(self, carry, _):
                return jnp.tanh(nn.Dense(6)(carry)), None

        h, _ = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()(h, None)
        return nn.Dense(1)(h)[:, 0]


class RunningNorm(nn.Module):
    """BatchNorm with running averages does not couple examples."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))))


_key = jax.random.key(0)
_vectors = jax.random.normal(_key, (5, 6))
_sequences = jax.random.normal(_key, (5, 3, 6))
_images = jax.random.normal(_key, (3, 8, 6, 4))
_colours = jax.random.normal(_key, (3, 8, 8, 3))
_words = jax.random.randint(_key, (5, 4), 0, 7)

ZOO = {
    "fcn": (FCN(depth=3, width=16), _vectors),
    "fcn bias, ten outputs": (FCN(depth=3, width=16, bias=True, outputs=10, activation="gelu"), _vectors),
    "cnn": (CNN(depth=3, width=6), _images),
    "cnn strided, average, outputs": (CNN(depth=3, width=6, strides=(2, 1), readout="average", bias=True, outputs=3), _images),
    "dense over axes, twice": (OverAxes(), _sequences),
    "shared with bias": (SharedWithBias(), _vectors),
    "batch folded": (BatchFolded(), _sequences),
    "patches": (Patches(), _images),
    "conv 1d same": (OneDimensional("SAME"), _sequences),
    "conv 1d causal": (OneDimensional("CAUSAL"), _sequences),
    "attention and norms": (TinyTransformer(), _sequences),
    "embedding": (Letters(), _words),
    "tied embedding": (Words(), _words),
    "parameters outside a module": (Tied(), _vectors),
    "remat, jit, scan": (Lifted(), _vectors),
    "running batch norm": (RunningNorm(), _vectors),
    "wide resnet, bias, two outputs": (WideResNet(depth=10, width=4, groups=2, bias=True, outputs=2, stem_stride=2), _colours),
    "vit, bias, three outputs": (ViT(depth=1, width=8, heads=2, patch_size=4, bias=True, outputs=3), _colours),
} | {
    f"conv {kwargs}": (Convolutions(kwargs), _images)
    for kwargs in (
        {},
        {"padding": "VALID", "use_bias": False},
        {"strides": 2},
        {"strides": (2, 1), "padding": ((1, 2), (0, 1))},
        {"kernel_dilation": 2},
        {"input_dilation": 2, "padding": 1},
        {"feature_group_count": 2, "strides": 2},
        {"padding": "CIRCULAR"},
    )
}


@functools.cache
def build(name: str):
    """``(apply_fn, params, x)``. Noise is added to the parameters, so that no bias is zero and no scale is one."""
    model, x = ZOO[name]

    def start():
        variables = model.init(jax.random.key(1), x)
        flat, unravel = ravel_pytree(variables["params"])
        return variables | {"params": unravel(flat + 0.1 * jax.random.normal(jax.random.key(2), flat.shape))}

    variables = jax.jit(start, compiler_options=QUICK)()
    params, state = variables["params"], {k: v for k, v in variables.items() if k != "params"}

    def apply_fn(params, x):
        cast = jax.tree.map(lambda a: a.astype(jax.tree.leaves(params)[0].dtype), state)
        return model.apply({"params": params, **cast}, x)

    return apply_fn, params, x


def widen(tree):
    """The tree in float64."""
    return jax.tree.map(lambda a: a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


SPECTRA = {
    "spread": [10.0, 5.0, 2.0, 1.0, 0.5, 0.1, 0.01, 0.001],
    "repeated": [4.0, 4.0, 4.0, 1.0, 1.0, 0.5],
    "clustered": [1.0, 0.999, 0.998, 0.2, 0.1, 0.05],
    "rank one": [3.0, 0.0, 0.0, 0.0],
    "zero": [0.0, 0.0, 0.0],
    "one": [2.0],
    "slow": list(np.linspace(1.0, 0.9, 40)),
}


def linear(w, x):
    """A linear model."""
    return x @ w


def inputs(eigenvalues, seed=0):
    """``(n, n)`` inputs of a linear model whose loss-weighted kernel for mse has these eigenvalues."""
    n = len(eigenvalues)
    _, vectors = symmetric_with_spectrum(eigenvalues, seed)
    return jnp.asarray(vectors * np.sqrt(np.asarray(eigenvalues) * n / 2), jnp.float32)


def factor(outputs, loss):
    """``B`` of each example in float64, from its definition."""
    f = np.asarray(outputs, np.float64)
    if loss == "mse":
        return np.sqrt(2) * np.eye(f.shape[1])[None].repeat(len(f), 0)
    if loss == "logistic":
        return 1 / (2 * np.cosh(f / 2))[:, :, None]
    p = np.exp(f - f.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    s = np.sqrt(p)
    return s[:, :, None] * np.eye(f.shape[1]) - p[:, :, None] * s[:, None, :]


def weighted_kernel(apply_fn, params, batch, loss, preconditioner=None):
    """``B^T J P^-1 J^T B / b`` in float64."""
    x, _ = batch
    jacobian = explicit_jacobian(apply_fn, params, x)
    B = factor(apply_fn(params, x), loss)
    rows = np.einsum("ipq,ipn->iqn", B, jacobian.reshape(*B.shape[:2], -1)).reshape(len(jacobian), -1)
    weights = 1.0 if preconditioner is None else np.asarray(ravel_pytree(preconditioner)[0], np.float64)
    return (rows / weights) @ rows.T / len(x)


def batch_of(name, loss):
    """``(apply_fn, params, (x, targets))`` of a model of the zoo."""
    apply_fn, params, x = build(name)
    o = jax.eval_shape(apply_fn, params, x).shape[1]
    rng = np.random.default_rng(3)
    y = {
        "mse": rng.standard_normal((len(x), o)).astype(np.float32),
        "logistic": rng.integers(0, 2, (len(x), 1)).astype(np.float32),
        "softmax_cross_entropy": rng.integers(0, o, len(x)),
    }[loss]
    return apply_fn, params, (x, jnp.asarray(y))
