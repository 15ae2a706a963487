"""Layers that are linear in their weights: how their inputs enter, and which parameters they cover."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import flax.core.tracers
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree

_CUSTOM = ("dot_general", "dot_general_cls", "mask", "conv_general_dilated", "conv_general_dilated_cls")


def _is_plain(module: nn.Module) -> bool:
    """Whether the layer has Flax's own arithmetic: the caller replaced no part of it."""
    return module.promote_dtype is promote_dtype and all(getattr(module, name, None) is None for name in _CUSTOM)


class Inputs(NamedTuple):
    """How the inputs of a layer enter its weights."""

    rows: Callable  # (b, *input) -> (b, rows, groups, inputs): one row per application of the weights
    # (a, *input), (b, *input) -> (a, rows, b, rows), inner products of the rows, where these cost less than the rows;
    # or None
    products: Callable | None = None


def _dense(module: nn.Dense, ndim: int) -> Inputs | None:
    return Inputs(lambda h: h.reshape(h.shape[0], -1, 1, h.shape[-1]))


def _dense_general(module: nn.DenseGeneral, ndim: int) -> Inputs | None:
    if module.batch_dims:
        return None
    axes = (module.axis,) if isinstance(module.axis, int) else tuple(module.axis)
    axes = sorted(axis % ndim - ndim for axis in axes)  # the order of Flax in the weights

    def rows(h):
        h = jnp.moveaxis(h, axes, range(-len(axes), 0))
        return h.reshape(h.shape[0], -1, 1, math.prod(h.shape[h.ndim - len(axes) :]))

    return Inputs(rows)


def _embed(module: nn.Embed, ndim: int) -> Inputs | None:
    size = module.num_embeddings

    def places(ids):
        ids = ids.reshape(len(ids), -1)
        return jnp.where(ids < 0, ids + size, ids)  # a negative id counts from the end, as in indexing

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
        """Shape of the space, padding, strided slices (one per place in the window), and number of windows."""
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
        # Slices, because XLA extracts patches by a convolution, which is slower.
        places = [lax.slice(images, (0, *start, 0), (len(images), *stop, channels), (1, *strides, 1)) for start, stop in slices]
        patches = jnp.stack(places, axis=-2)  # (images, *counts, places, channels)
        patches = patches.reshape(*patches.shape[:-1], groups, channels // groups)
        patches = jnp.moveaxis(patches, -2, -3)
        return patches.reshape(h.shape[0], -1, groups, len(places) * channels // groups)

    def products(h, other):
        """Inner products of patches, as sums over the window of inner products of pixels, which overlapping patches share."""
        space, edges, slices, count = geometry(h)
        a, b, pixels, channels = h.shape[0], other.shape[0], math.prod(space), h.shape[-1]
        if groups > 1 or h.size != a * pixels * channels or pixels**2 >= count**2 * len(slices) // 2:
            return None
        gram = h.reshape(a * pixels, channels) @ other.reshape(b * pixels, channels).T
        gram = lax.pad(gram.reshape(a, *space, b, *space), jnp.zeros((), h.dtype), [(0, 0, 0), *edges, (0, 0, 0), *edges])
        steps = (1, *strides, 1, *strides)
        terms = (lax.slice(gram, (0, *start, 0, *start), (a, *stop, b, *stop), steps) for start, stop in slices)
        return sum(terms, jnp.zeros((), gram.dtype)).reshape(a, count, b, count)

    return Inputs(rows, products)


# For each kind of layer: the name of its weight, and its rule (module, axes of its input) -> Inputs, or None if this
# layer has none.
_RULES = {
    nn.Dense: ("kernel", _dense),
    nn.DenseGeneral: ("kernel", _dense_general),
    nn.Conv: ("kernel", _conv),
    nn.Embed: ("embedding", _embed),
}
# Normalisation layers. Per-example gradients of their scales and biases are as small as these, so they need no rule.
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.BatchNorm, nn.InstanceNorm)


class Call(NamedTuple):
    """One module call whose weights enter linearly."""

    kernel: int | None  # index of the weight among the leaves of params; None: the call does not cover it
    bias: int | None  # the same for the bias
    shape: tuple[int, ...]  # of the pre-activations of one example
    dtype: np.dtype  # of the pre-activations
    inputs: Inputs  # how its inputs enter the weight
    linear: Callable  # (weight, inputs) -> pre-activations, without the bias


def _linear(module: nn.Module, name: str, weights: dict) -> Callable:
    """The module as a function of one of its weights; the others are zero."""
    unbound = module.clone(parent=None)
    shapes = {key: (leaf.shape, leaf.dtype) for key, leaf in weights.items() if key != name}

    def linear(weight, h):
        zeros = {key: jnp.zeros(*shape) for key, shape in shapes.items()}
        return unbound.apply({"params": {name: weight} | zeros}, h)

    return linear


class Plan(NamedTuple):
    """The calls of a model that have a rule, and the parameters that they cover."""

    calls: tuple[Call | None, ...]  # every call of a kind of layer in _RULES, in order; None: this call has no rule
    covered: frozenset[int]  # leaves that are used in these calls only
    norms: frozenset[int]  # leaves of normalisation layers

    @property
    def tapped(self) -> list[Call]:
        """The calls that have a rule, in order: a tap is added to their pre-activations."""
        return [call for call in self.calls if call is not None]


EMPTY_PLAN = Plan((), frozenset(), frozenset())


@contextlib.contextmanager
def intercept_calls(on_call: Callable, kinds: Iterable[type] = tuple(_RULES)) -> Iterator[None]:
    """Context in which ``on_call(module, h, proceed)`` replaces each call of a Flax module of these kinds.

    Calls under an inner transformation (scan, remat, a nested jit) stay as they are, because their inputs can't leave it.

    Args:
      on_call: Returns the outputs of the call; ``proceed()`` is what the module returns.
      kinds: Classes of modules; a subclass is another kind.

    Returns:
      The context.

    >>> with intercept_calls(lambda module, h, proceed: 2 * proceed()):
    ...     nn.Dense(1).apply({"params": {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}}, jnp.ones((1, 1))).tolist()
    [[2.0]]
    """
    level = flax.core.tracers.current_trace()
    inside = [False]

    def interceptor(next_fun, args, kwargs, context):
        is_of_kind = type(context.module) in kinds and context.method_name == "__call__" and len(args) == 1 and not kwargs
        # An interceptor of the caller may change the outputs of the layer first, so the layer would not be linear.
        is_only = len(list(getattr(nn.module, "_global_interceptor_stack", ()))) <= 1
        if inside[0] or not is_of_kind or not is_only or flax.core.tracers.current_trace() != level:
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
        if not __debug__:  # Flax removes its interceptor in an assert, which python -O leaves out
            nn.module._global_interceptor_stack.pop()


def plan(apply_fn: Callable, params: PyTree, x: Array) -> Plan:
    """Find the calls that have a rule and the leaves that they cover, from shapes alone.

    The model is traced with two copies of the parameters. A call with a rule gets the second copy. A leaf of the first
    copy that the program still reads has another use too (shared, tied, cast, or read outside a module), so it needs
    the Jacobian.

    Args:
      apply_fn: ``apply_fn(params, x) -> (b, ...)``.
      params: Arrays or shapes.
      x: ``(b, ...)`` array or shape.

    Returns:
      The calls with a rule, the leaves that they cover, and the leaves that need the Jacobian.

    >>> dense = nn.Dense(2)
    >>> sorted(plan(dense.apply, dense.init(jax.random.key(0), jnp.ones((1, 3))), jnp.ones((1, 3))).covered)  # bias and kernel
    [0, 1]
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), params)
    calls: list[Call | None] = []
    norms: set[int] = set()

    def traced(params, copy, example):
        index = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(params))}
        copies = jax.tree.leaves(copy)

        def on_call(module, h, proceed):
            weights = dict(module.variables.get("params", {}))
            if type(module) in _NORMS:
                norms.update(index[id(leaf)] for leaf in weights.values() if id(leaf) in index)
                return proceed()
            name, rule = _RULES[type(module)]
            kernel, bias = index.get(id(weights.get(name))), index.get(id(weights.get("bias")))
            inputs = rule(module, h.ndim) if _is_plain(module) else None
            is_cast = kernel is not None and jnp.issubdtype(h.dtype, jnp.floating) and h.dtype != copies[kernel].dtype
            if kernel is None or inputs is None or is_cast:
                calls.append(None)
                return proceed()
            weights[name] = copies[kernel]
            if bias is not None:
                weights["bias"] = copies[bias]
            y = module.clone(parent=None).apply({"params": weights}, h)
            calls.append(Call(kernel, bias, y.shape, y.dtype, inputs, _linear(module, name, weights)))
            return y

        with intercept_calls(on_call, (*_RULES, *_NORMS)):
            return apply_fn(params, example)

    example = jax.ShapeDtypeStruct((1, *jnp.shape(x)[1:]), jnp.result_type(x))
    jaxpr = jax.make_jaxpr(traced)(shapes, shapes, example).jaxpr
    used = {id(v) for eqn in jaxpr.eqns for v in eqn.invars} | {id(v) for v in jaxpr.outvars}
    leaves = jax.tree.leaves(shapes)
    elsewhere = {i for i in range(len(leaves)) if id(jaxpr.invars[i]) in used}
    # A leaf in a call of another precision is cast on the way: its derivative is taken by the Jacobian.
    for call in calls:
        if call is not None and call.kernel is not None and call.dtype != leaves[call.kernel].dtype:
            elsewhere |= {call.kernel} if call.bias is None else {call.kernel, call.bias}
    keep = lambda leaf: None if leaf in elsewhere else leaf
    calls = [call and call._replace(kernel=keep(call.kernel), bias=keep(call.bias)) for call in calls]
    calls = [call if call and (call.kernel, call.bias) != (None, None) else None for call in calls]
    covered = {leaf for call in calls if call for leaf in (call.kernel, call.bias) if leaf is not None}
    return Plan(tuple(calls), frozenset(covered), frozenset(norms))
