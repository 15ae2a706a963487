"""Which parameters the uses cover, and the kernel of programs in many styles, against float64 Jacobians."""

import doctest
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from catapult_jax import FCN, tangent_kernel
from catapult_jax.tangent import uses
from catapult_jax.testing import explicit_jacobian, explicit_kernel, relative_error
from tests.zoo import QUICK, build, widen

_RNG = np.random.default_rng(0)


def _numbers(*shape):
    return jnp.asarray(_RNG.standard_normal(shape), jnp.float32)


_VECTORS, _IMAGES, _FRAMES, _IDS = (
    _numbers(4, 6),
    _numbers(4, 3, 5, 5),
    _numbers(3, 2, 5, 5, 3),
    jnp.asarray(_RNG.integers(-2, 9, (4, 3))),
)
_WEIGHTS = {"w": _numbers(6, 5), "v": _numbers(5, 2)}


def _two_layers(of_w, w=None):
    """A network of two layers; ``of_w`` makes the first weight from its parameter."""
    return lambda p, x: jnp.tanh(x @ of_w(p["w"])) @ p["v"], _WEIGHTS if w is None else _WEIGHTS | {"w": w}, _VECTORS


def _gated(p, x):
    """A weight times a number of each example."""
    return jax.vmap(lambda x: jnp.tanh(x @ (p["w"] * x.sum())) @ p["v"])(x)


def _weight_norm(p, x):
    return jnp.tanh(x @ (p["w"] * (p["g"] / jnp.linalg.norm(p["w"])))) @ p["v"]


def _gain(p, x):
    return jnp.tanh(x @ (p["w"] * p["g"])) @ p["v"]


def _fused(p, x):
    """Queries, keys and values as slices of one weight."""
    q, k, v = jnp.split(x @ p["w"], 3, axis=-1)
    return q * jax.nn.softmax(k) + v


def _slices(p, x):
    return jnp.tanh(x @ p["w"][:, :2]) * jnp.tanh(x @ p["w"][:, 2:4])


def _cut_from_a_stack(p, x):
    for i in range(len(p["w"])):
        x = jnp.tanh(x @ p["w"][i])
    return x


def _one_slice(p, x):
    return jnp.tanh(x @ p["w"][:, 1:3])


def _groups(p, x):
    return jnp.einsum("bgm,gmc->bcg", jnp.tanh(x.reshape(len(x), 2, 3)), p["w"])


def _channels_first(p, x):
    h = lax.conv_general_dilated(x, p["w"], (2, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
    return jnp.tanh(h).reshape(len(x), -1) @ p["v"]


def _frames(p, x):
    """The convolution of each of two frames."""
    h = lax.conv_general_dilated(
        x.reshape(-1, *x.shape[2:]), p["w"], (1, 1), "VALID", rhs_dilation=(2, 1), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jnp.tanh(h).reshape(len(x), -1) @ p["v"]


def _layers_in_a_scan(p, x):
    """Stacked blocks with a bias and a gain each."""
    block = lambda h, layer: (h + layer["g"] * jnp.tanh(h @ layer["w"] + layer["b"]), None)
    return lax.scan(block, x, {name: p[name] for name in ("w", "b", "g")})[0] @ p["v"]


def _over_time(p, x):
    """A recurrent network: the same weights at every step."""
    step = lambda h, x: (jnp.tanh(x @ p["w"] + h @ p["u"] + p["b"]),) * 2
    _, states = lax.scan(step, jnp.zeros((len(x), 5)), jnp.moveaxis(x, 1, 0))
    return states[-1] + states[0]


def _groups_over_time(p, x):
    """Weights with groups, the same at every step, and others for each step."""

    def step(h, v):
        h = jnp.einsum("bgm,gmc->bgc", h, p["w"])
        return jnp.einsum("bgc,gcd->bgd", jnp.tanh(h), v)[..., :3], None

    return lax.scan(step, x.reshape(len(x), 2, 3), p["v"])[0]


def _one_example(p, x):
    """As Equinox writes it: one example, then vmap."""
    h = jnp.tanh(p["w"].T @ x + p["b"])
    return p["v"].T @ h


def _tied_in_a_scan(p, x):
    """Stacked blocks of an encoder and its transpose, with a bias each."""
    block = lambda h, layer: (jnp.tanh(jnp.tanh(h @ layer["w"] + layer["b"]) @ layer["w"].T), None)
    return lax.scan(block, x, {name: p[name] for name in ("w", "b")})[0] @ p["v"]


def _tied_language_model(p, ids):
    """Logits ``(b, T, V)`` from embeddings that are the output layer too, with blocks in a scan and a bias."""
    h = p["w"].at[ids].get(mode="fill", fill_value=0)
    h, _ = lax.scan(lambda h, v: (h + jnp.tanh(jnp.cumsum(h, 1) @ v), None), h, p["v"])
    return h @ p["w"].T + p["b"]


@jax.custom_jvp
def _halved(w):
    return w


_halved.defjvp(lambda primals, tangents: (primals[0], 0.5 * tangents[0]))


class _Net(nnx.Module):
    def __init__(self, rngs):
        self.conv, self.norm = nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.LayerNorm(4, rngs=rngs)
        self.hidden, self.out = nnx.Linear(100, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        h = jax.nn.gelu(self.norm(self.conv(jnp.moveaxis(x, 1, -1))))
        return self.out(jax.nn.relu(self.hidden(h.reshape(len(x), -1))))


_GRAPH, _STATE = nnx.split(_Net(nnx.Rngs(0)))
_CONV = {"w": _numbers(4, 3, 3, 3), "v": _numbers(60, 2)}

# Name -> function, parameters, inputs, and the leaves that need their Jacobian.
PROGRAMS = {
    "plain": (*_two_layers(lambda w: w), []),
    "scaled": (*_two_layers(lambda w: -0.5 * w / jnp.sqrt(6.0)), []),
    "transposed": (*_two_layers(lambda w: w.T, _WEIGHTS["w"].T), []),
    "moved": (*_two_layers(lambda w: w.reshape(3, 2, 5)[::-1].reshape(6, 5)[None][0]), []),
    "under jit": (*_two_layers(jax.jit(lambda w: w * jnp.float32(2))), []),
    "half precision on the way": (*_two_layers(lambda w: w.astype(jnp.bfloat16).astype(jnp.float32)), []),
    "number of the example": (_gated, _WEIGHTS, _VECTORS, []),
    "gain": (_gain, _WEIGHTS | {"g": jnp.float32(1.5)}, _VECTORS, []),
    "weight norm": (_weight_norm, _WEIGHTS | {"g": jnp.float32(1.5)}, _VECTORS, ["w"]),
    "mask": (*_two_layers(lambda w: w * (jnp.arange(5) % 2)), ["w"]),
    "custom derivative": (*_two_layers(_halved), ["w"]),
    "fused": (_fused, {"w": _numbers(6, 6)}, _VECTORS, []),
    "one slice": (_one_slice, _WEIGHTS, _VECTORS, []),
    "two slices": (_slices, _WEIGHTS, _VECTORS, []),
    "slices that overlap": (lambda p, x: jnp.tanh(x @ p["w"][:, :3]) * jnp.tanh(x @ p["w"][:, 2:]), _WEIGHTS, _VECTORS, ["w"]),
    "layers cut from a stack": (_cut_from_a_stack, {"w": _numbers(3, 6, 6)}, _VECTORS, []),
    "a slice and all": (lambda p, x: jnp.tanh(x @ p["w"])[:, :2] * (x @ p["w"][:, :2]), _WEIGHTS, _VECTORS, ["w"]),
    "two layouts": (lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T, _WEIGHTS, _VECTORS, []),
    "two layouts, three uses": (lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"].T / 3) @ (2 * p["w"]), _WEIGHTS, _VECTORS, []),
    "two layouts of a wide weight": (lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T, {"w": _numbers(6, 40)}, _VECTORS, []),
    "two layouts of a slice": (
        lambda p, x: (jnp.tanh(x @ p["w"][:, :2]) @ p["w"][:, :2].T) * jnp.tanh(x @ p["w"][:, 2:3]), _WEIGHTS, _VECTORS, [],
    ),
    "two layouts, half precision on the way": (
        lambda p, x: (jnp.tanh(x.astype(jnp.bfloat16) @ p["w"].astype(jnp.bfloat16)) @ p["w"].astype(jnp.bfloat16).T).astype(jnp.float32),
        {"w": _numbers(6, 40)}, _VECTORS, [],
    ),
    "two layouts, not transposed": (lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].reshape(5, 6), _WEIGHTS, _VECTORS, ["w"]),
    "two layouts with groups": (
        lambda p, x: jnp.einsum("bgc,gmc->bgm", jnp.tanh(_groups(p, x).swapaxes(1, 2)), p["w"]), {"w": _numbers(2, 3, 4)}, _VECTORS, [],
    ),
    "one layout, two ways": (lambda p, x: jnp.tanh(x @ p["w"]) @ lax.transpose(p["w"].T, (1, 0)), {"w": _numbers(6, 6)}, _VECTORS, []),
    "tied language model": (
        _tied_language_model, {"w": _numbers(7, 5), "v": _numbers(2, 5, 5), "b": _numbers(7)}, _IDS, [],
    ),
    "tied in a scan": (_tied_in_a_scan, {"w": _numbers(3, 6, 5), "b": _numbers(3, 5), "v": _numbers(6, 2)}, _VECTORS, []),
    "tied inside and outside of a scan": (
        lambda p, x: lax.scan(lambda h, _: (jnp.tanh(h @ p["w"].T @ p["w"]), None), x @ p["w"], None, length=2)[0], _WEIGHTS, _VECTORS, [],
    ),
    "a layer of a stack, and all": (
        lambda p, x: lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x @ p["w"][0].T, p["w"])[0], {"w": _numbers(2, 6, 6)}, _VECTORS, ["w"],
    ),
    "groups": (_groups, {"w": _numbers(2, 3, 4)}, _VECTORS, []),
    "channels first": (_channels_first, _CONV, _IMAGES, []),
    "frames": (_frames, {"w": _numbers(3, 2, 3, 4), "v": _numbers(32, 2)}, _FRAMES, []),
    "one example, then vmap": (
        lambda p, x: jax.vmap(_one_example, (None, 0))(p, x), _WEIGHTS | {"b": _numbers(5)}, _VECTORS, [],
    ),
    "lookup, clipped": (
        lambda p, ids: jnp.tanh(jnp.take(p["w"], ids, axis=0, mode="clip")).sum(1) @ p["v"], _WEIGHTS, _IDS, [],
    ),
    "lookup, none outside": (
        lambda p, ids: jnp.tanh(p["w"].at[ids].get(mode="fill", fill_value=0)).sum(1) @ p["v"], _WEIGHTS, _IDS, [],
    ),
    "remat": (lambda p, x: jax.checkpoint(_two_layers(lambda w: w)[0])(p, x), _WEIGHTS, _VECTORS, []),
    "layers in a scan": (_layers_in_a_scan, {"w": _numbers(3, 6, 6), "b": _numbers(3, 6), "g": _numbers(3), "v": _numbers(6, 2)}, _VECTORS, []),
    "backwards, with remat": (
        lambda p, x: lax.scan(jax.checkpoint(lambda h, w: (jnp.tanh(h @ w.T), None)), x, 2 * p["w"], reverse=True)[0],
        {"w": _numbers(3, 6, 6)}, _VECTORS, [],
    ),
    "over time": (_over_time, {"w": _numbers(3, 5), "u": _numbers(5, 5), "b": _numbers(5)}, _FRAMES[..., 0, 0, :].repeat(2, 1), []),
    "groups over time": (_groups_over_time, {"w": _numbers(2, 3, 4), "v": _numbers(2, 2, 4, 4)}, _VECTORS, []),
    "scan in a scan": (
        lambda p, x: lax.scan(lambda h, ws: (lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, ws)[0], None), x, p["w"])[0],
        {"w": _numbers(2, 2, 6, 6)}, _VECTORS, [],
    ),
    "scan of no step": (
        lambda p, x: lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"][:0])[0] @ p["w"][0], {"w": _numbers(2, 6, 6)}, _VECTORS, ["w"],
    ),
    "weight in the carry": (
        lambda p, x: lax.scan(lambda c, _: ((jnp.tanh(c[0] @ c[1]), c[1]), None), (x, p["w"]), None, length=2)[0][0],
        {"w": _numbers(6, 6)}, _VECTORS, [],
    ),
    "weight out of a scan": (
        lambda p, x: lax.scan(lambda h, w: (jnp.tanh(h @ w), w), x, p["w"])[1].sum((0, 1)) * x, {"w": _numbers(2, 6, 6)}, _VECTORS, ["w"],
    ),
    "inside and outside of a scan": (
        lambda p, x: lax.scan(lambda h, _: (jnp.tanh(h @ p["w"]), None), x @ p["w"], None, length=2)[0], {"w": _numbers(6, 6)}, _VECTORS, [],
    ),
    "the output": (lambda p, x: jnp.broadcast_to(p["w"], (len(x), 6, 5)) * 1, {"w": _numbers(6, 5)}, _VECTORS, ["w"]),
    "the output of one example": (lambda p, x: jax.vmap(lambda x: p["w"])(x), {"w": _numbers(6, 5)}, _VECTORS, ["w"]),
    "nnx": (lambda state, x: nnx.merge(_GRAPH, state)(x), _STATE, _IMAGES, []),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_tangent_kernel_of_a_program(name):
    """The kernel with and without a preconditioner; and the parameters that need their Jacobian."""
    apply_fn, params, x, rest = PROGRAMS[name]
    found = uses.plan(apply_fn, params, x)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    named = [path for i, path in enumerate(paths) if i not in found.covered | found.entrywise]

    kernel = jax.jit(lambda p, x: tangent_kernel(apply_fn, p, x), compiler_options=QUICK)(params, x)
    diagonal = jax.tree.map(lambda leaf: jnp.asarray(_RNG.uniform(0.5, 2, leaf.shape), jnp.float32), params)
    scaled = jax.jit(lambda p, x: tangent_kernel(apply_fn, p, x, preconditioner=diagonal), compiler_options=QUICK)(params, x)

    jacobian = explicit_jacobian(apply_fn, params, x)
    weights = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(diagonal)])
    assert named == [f"['{leaf}']" for leaf in rest]
    tolerance = 1e-2 if "half precision on the way" in name else 1e-5  # the derivatives are rounded on the way, too
    assert relative_error(kernel, jacobian @ jacobian.T) <= tolerance
    assert relative_error(scaled, jacobian / weights @ jacobian.T) <= tolerance


@pytest.mark.parametrize("name", ["scaled", "layers in a scan"])
def test_plan_keeps_nothing_of_its_trace(name):
    apply_fn, params, x, _ = PROGRAMS[name]

    with jax.checking_leaks():
        jax.jit(lambda p, x: tangent_kernel(apply_fn, p, x), compiler_options=QUICK)(params, x)


@pytest.mark.parametrize("name", ["scaled", "channels first", "lookup, clipped", "gain"])
def test_tangent_kernel_of_a_program_in_double_precision(name):
    apply_fn, params, x, _ = PROGRAMS[name]
    oracle = explicit_kernel(apply_fn, params, x)

    with jax.enable_x64():
        kernel = tangent_kernel(apply_fn, *widen((params, x)))

    assert kernel.dtype == jnp.float64 and relative_error(kernel, oracle) <= 1e-12


_TIED = [
    name
    for name, (*_, rest) in PROGRAMS.items()
    if re.search("^tied|two (layouts|ways)", name) and not rest and "half" not in name
]


@pytest.mark.long
@pytest.mark.parametrize("name", _TIED)
def test_tangent_kernel_of_tied_weights_in_double_precision(name):
    """Whole, in chunks, between two sets, and with a preconditioner."""
    apply_fn, params, x, _ = PROGRAMS[name]
    diagonal = jax.tree.map(lambda leaf: _RNG.uniform(0.5, 2, leaf.shape), params)
    jacobian = explicit_jacobian(apply_fn, params, x)
    scaled = jacobian / np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(diagonal)])
    rows = len(jacobian) // len(x) * 2

    with jax.enable_x64():
        params, x = widen((params, x))
        kernel = lambda *sets, **options: tangent_kernel(apply_fn, params, *sets, method="structured", **options)
        plain, chunks, preconditioned = kernel(x), kernel(x, chunk_size=3), kernel(x, preconditioner=diagonal)
        between = kernel(x, x[:2])

    assert relative_error(plain, jacobian @ jacobian.T) <= 1e-12
    assert relative_error(chunks, jacobian @ jacobian.T) <= 1e-12
    assert relative_error(between, jacobian @ jacobian[:rows].T) <= 1e-12
    assert relative_error(preconditioned, scaled @ jacobian.T) <= 1e-12


def test_tangent_kernel_keeps_the_derivative_of_a_relu_at_zero():
    """It is zero; the program inside the relu has one half there."""
    kernel = tangent_kernel(lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"], _WEIGHTS | {"w": jnp.zeros((6, 5))}, _VECTORS)

    assert (kernel == 0).all()


@pytest.mark.parametrize(
    "name",
    [
        "fcn bias, ten outputs",
        "cnn strided, average, outputs",
        "dense over axes, twice",
        "batch folded",
        "attention and norms",
        "embedding",
        "tied embedding",
        "parameters outside a module",
        "remat, jit, scan",
        "running batch norm",
    ],
)
def test_plan_covers(name):
    """It is an error where a parameter is not covered."""
    apply_fn, params, x = build(name)
    jax.eval_shape(lambda p: tangent_kernel(apply_fn, p, x, method="structured"), params)


def test_tangent_kernel_of_layers_that_a_caller_changed():
    def columns_of_norm_one(x, kernel, bias, **_):
        return x, kernel / jnp.linalg.norm(kernel, axis=0), bias

    def squashed(next_fun, args, kwargs, context):
        y = next_fun(*args, **kwargs)
        return jnp.tanh(y) if context.method_name == "__call__" and isinstance(context.module, nn.Dense) else y

    def intercepted(params, x):
        with nn.intercept_methods(squashed):
            return FCN(depth=3, width=8).apply(params, x)

    layer = nn.Dense(4, promote_dtype=columns_of_norm_one)
    for f, params in (
        (layer.apply, layer.init(jax.random.key(1), _VECTORS)),
        (intercepted, FCN(depth=3, width=8).init(jax.random.key(1), _VECTORS)),
    ):
        assert relative_error(tangent_kernel(f, params, _VECTORS), explicit_kernel(f, params, _VECTORS)) <= 1e-5


def test_doctests():
    assert not doctest.testmod(uses).failed
