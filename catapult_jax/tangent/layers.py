"""Which layers of a model are linear in their weights, how their inputs enter, and which parameters they cover."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import flax.core.tracers
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import lax

_CUSTOM = ("dot_general", "dot_general_cls", "mask", "conv_general_dilated", "conv_general_dilated_cls")


def _is_plain(module: nn.Module) -> bool:
    """The layer computes what its name says: nothing in it was replaced."""
    return module.promote_dtype is promote_dtype and all(getattr(module, name, None) is None for name in _CUSTOM)


class Inputs(NamedTuple):
    """How the inputs of a layer enter its weights."""

    rows: Callable  # (b, *input) -> (b, rows, groups, inputs): one row per application of the weights
    # (a, *input), (b, *input) -> (a, rows, b, rows), inner products of the rows, where they are to be had for less; or None
    products: Callable | None = None


def _dense(module: nn.Dense, ndim: int) -> Inputs | None:
    return Inputs(lambda h: h.reshape(h.shape[0], -1, 1, h.shape[-1]))


def _dense_general(module: nn.DenseGeneral, ndim: int) -> Inputs | None:
    if module.batch_dims:
        return None
    axes = (module.axis,) if isinstance(module.axis, int) else tuple(module.axis)
    axes = sorted(axis % ndim - ndim for axis in axes)  # in the order in which Flax lays out the weights

    def rows(h):
        h = jnp.moveaxis(h, axes, range(-len(axes), 0))
        return h.reshape(h.shape[0], -1, 1, math.prod(h.shape[h.ndim - len(axes) :]))

    return Inputs(rows)


def _embed(module: nn.Embed, ndim: int) -> Inputs | None:
    size = module.num_embeddings

    def places(ids):
        ids = ids.reshape(len(ids), -1)
        return jnp.where(ids < 0, ids + size, ids)  # as in indexing

    def products(ids, others):
        return (places(ids)[:, :, None, None] == places(others)[None, None]).astype(module.param_dtype)

    return Inputs(lambda ids: jax.nn.one_hot(places(ids)[:, :, None], size, dtype=module.param_dtype), products)


def _conv(module: nn.Conv, ndim: int) -> Inputs | None:
    size = (module.kernel_size,) if isinstance(module.kernel_size, int) else tuple(module.kernel_size)

    def per_axis(value):
        value = 1 if value is None else value
        return (value,) * len(size) if isinstance(value, int) else tuple(value)

    strides, dilation = per_axis(module.strides), per_axis(module.kernel_dilation)
    input_dilation, groups = per_axis(module.input_dilation), module.feature_group_count
    padding = module.padding
    if isinstance(padding, str) and padding not in ("SAME", "VALID"):
        return None
    if isinstance(padding, int):
        padding = ((padding, padding),) * len(size)
    elif not isinstance(padding, str):
        padding = tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)

    def geometry(h):
        """Padding of the space, and the strided slices of it, one for each place in the window."""
        space = h.shape[h.ndim - len(size) - 1 : -1]
        dilated = tuple((n - 1) * d + 1 for n, d in zip(space, input_dilation, strict=True))
        window = tuple((k - 1) * d + 1 for k, d in zip(size, dilation, strict=True))
        pads = lax.padtype_to_pads(dilated, window, strides, padding) if isinstance(padding, str) else padding
        edges = [(lo, hi, d - 1) for (lo, hi), d in zip(pads, input_dilation, strict=True)]
        padded = [lo + n + hi for (lo, hi, _), n in zip(edges, dilated, strict=True)]
        counts = [(n - w) // s + 1 for n, w, s in zip(padded, window, strides, strict=True)]
        starts = [[o * d for o, d in zip(offset, dilation, strict=True)] for offset in np.ndindex(*size)]
        stops = [[a + (n - 1) * s + 1 for a, n, s in zip(start, counts, strides, strict=True)] for start in starts]
        return space, edges, list(zip(starts, stops, strict=True)), math.prod(counts)

    def rows(h):
        space, edges, slices, _ = geometry(h)
        channels = h.shape[-1]
        images = h.reshape(-1, *space, channels)
        images = lax.pad(images, jnp.zeros((), h.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
        # Slices instead of XLA's patch extraction, which is itself a convolution.
        places = [lax.slice(images, (0, *start, 0), (len(images), *stop, channels), (1, *strides, 1)) for start, stop in slices]
        patches = jnp.stack(places, axis=-2)  # (images, *counts, places, channels)
        patches = patches.reshape(*patches.shape[:-1], groups, channels // groups)
        patches = jnp.moveaxis(patches, -2, -3)
        return patches.reshape(h.shape[0], -1, groups, len(places) * channels // groups)

    def products(h, other):
        """Overlapping patches share pixels: their inner products are sums over the window of those of the pixels."""
        space, edges, slices, count = geometry(h)
        a, b, pixels, channels = h.shape[0], other.shape[0], math.prod(space), h.shape[-1]
        if groups > 1 or h.size != a * pixels * channels or pixels**2 >= count**2 * len(slices) // 2:
            return None
        gram = h.reshape(a * pixels, channels) @ other.reshape(b * pixels, channels).T
        gram = lax.pad(gram.reshape(a, *space, b, *space), jnp.zeros((), h.dtype), [(0, 0, 0), *edges, (0, 0, 0), *edges])
        steps = (1, *strides, 1, *strides)
        total = sum(lax.slice(gram, (0, *start, 0, *start), (a, *stop, b, *stop), steps) for start, stop in slices)
        return total.reshape(a, count, b, count)

    return Inputs(rows, products)


# What each kind of layer calls its weights, and its rule: (module, axes of its input) -> Inputs, or None where it has none.
_RULES = {
    nn.Dense: ("kernel", _dense),
    nn.DenseGeneral: ("kernel", _dense_general),
    nn.Conv: ("kernel", _conv),
    nn.Embed: ("embedding", _embed),
}
# Their parameters multiply or shift a channel: the gradient of each example is as small as the parameter, and needs no rule.
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.BatchNorm, nn.InstanceNorm)


class Call(NamedTuple):
    """One module call whose weights enter linearly; ``None`` leaves are not covered by it."""

    kernel: int | None  # index of the weight among the leaves of params
    bias: int | None
    shape: tuple[int, ...]  # of the pre-activations of one example
    dtype: np.dtype
    groups: int
    inputs: Inputs
    linear: Callable  # (weight, inputs) -> pre-activations, without the bias


def _linear(module: nn.Module, name: str, own: dict) -> Callable:
    alone = module.clone(parent=None)
    shapes = {key: (leaf.shape, leaf.dtype) for key, leaf in own.items() if key != name}

    def linear(weight, h):
        others = {key: jnp.zeros(*shape) for key, shape in shapes.items()}
        return alone.apply({"params": {name: weight} | others}, h)

    return linear


class Plan(NamedTuple):
    """Which layers of a model have a rule, and which parameters they cover."""

    calls: tuple[Call | None, ...]  # every call of a known module, in order; None: left alone
    covered: frozenset[int]  # leaves whose every use is in one of the calls
    norms: frozenset[int]  # leaves of normalisations


NOTHING = Plan((), frozenset(), frozenset())


@contextlib.contextmanager
def watched(on_call: Callable, kinds: Iterable[type] = tuple(_RULES)) -> Iterator[None]:
    """Flax context in which ``on_call(module, h, proceed)`` stands for each call of a module of these kinds.

    Calls under an inner transformation (scan, remat, a nested jit) are not offered: their inputs could not leave it.
    """
    level = flax.core.tracers.current_trace()
    inside = [False]

    def interceptor(next_fun, args, kwargs, context):
        known = type(context.module) in kinds and context.method_name == "__call__" and len(args) == 1 and not kwargs
        # A caller's own interceptor may change what the layer returns before it comes here.
        alone = len(list(getattr(nn.module, "_global_interceptor_stack", ()))) <= 1
        if inside[0] or not known or not alone or flax.core.tracers.current_trace() != level:
            return next_fun(*args, **kwargs)
        inside[0] = True
        try:
            return on_call(context.module, args[0], lambda: next_fun(*args))
        finally:
            inside[0] = False

    try:
        with nn.intercept_methods(interceptor):
            yield
    finally:
        if not __debug__:  # Flax takes it away in an assert, which python -O leaves out
            nn.module._global_interceptor_stack.pop()


def plan(apply_fn: Callable, params, x) -> Plan:
    """Finds the calls and the leaves that they cover, from shapes alone.

    The model is traced with two copies of the parameters: a known call gets the second copy, so a leaf of the first copy
    that still appears in the program is used elsewhere too (shared, tied, cast, or read outside a module), and is left to
    the Jacobian.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), params)
    calls: list[Call | None] = []
    norms: set[int] = set()

    def traced(params, copy, example):
        index = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(params))}
        copies = jax.tree.leaves(copy)

        def on_call(module, h, proceed):
            own = dict(module.variables.get("params", {}))
            if type(module) in _NORMS:
                norms.update(index[id(leaf)] for leaf in own.values() if id(leaf) in index)
                return proceed()
            name, rule = _RULES[type(module)]
            kernel, bias = index.get(id(own.get(name))), index.get(id(own.get("bias")))
            known = rule(module, h.ndim) if _is_plain(module) else None
            cast = kernel is not None and jnp.issubdtype(h.dtype, jnp.floating) and h.dtype != copies[kernel].dtype
            if kernel is None or known is None or cast:
                calls.append(None)
                return proceed()
            own[name] = copies[kernel]
            if bias is not None:
                own["bias"] = copies[bias]
            y = module.clone(parent=None).apply({"params": own}, h)
            groups = getattr(module, "feature_group_count", 1)
            calls.append(Call(kernel, bias, y.shape, y.dtype, groups, known, _linear(module, name, own)))
            return y

        with watched(on_call, (*_RULES, *_NORMS)):
            return apply_fn(params, example)

    example = jax.ShapeDtypeStruct((1, *jnp.shape(x)[1:]), jnp.result_type(x))
    jaxpr = jax.make_jaxpr(traced)(shapes, shapes, example).jaxpr
    used = {id(v) for eqn in jaxpr.eqns for v in eqn.invars} | {id(v) for v in jaxpr.outvars}
    leaves = jax.tree.leaves(shapes)
    elsewhere = {i for i in range(len(leaves)) if id(jaxpr.invars[i]) in used}
    # A leaf in a call of another precision is cast on the way; that call's derivative is taken by the Jacobian.
    for call in calls:
        if call is not None and call.dtype != leaves[call.kernel].dtype:
            elsewhere |= {call.kernel, call.bias}
    keep = lambda leaf: None if leaf in elsewhere else leaf
    calls = [call and call._replace(kernel=keep(call.kernel), bias=keep(call.bias)) for call in calls]
    calls = [call if call and (call.kernel, call.bias) != (None, None) else None for call in calls]
    covered = {leaf for call in calls if call for leaf in (call.kernel, call.bias)} - {None}
    return Plan(tuple(calls), frozenset(covered), frozenset(norms))
