"""The exact tangent kernel of a batch: layer by layer where a layer's structure is known, by Jacobians elsewhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import flax.core.tracers
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import lax

from catapult_jax.tangent_kernel import neural_tangents
from catapult_jax.tangent_kernel.coupling import refuse_coupled_examples

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree

METHODS = ("auto", "structured", "jacobian", "neural_tangents")


def tangent_kernel(
    apply_fn: Callable[..., Float[Array, "b *o"]],
    params: PyTree,
    x: Array,
    *,
    method: str = "auto",
) -> Float[Array, "bo bo"]:
    r"""Tangent kernel of a batch, ``K = J J^T`` with ``J = d f / d params``.

    ``structured`` uses, for a layer that is linear in its weights, ``J_l[i] = sum_p H[i, p] (x) D[i, p]``, with ``H`` the
    layer's inputs and ``D`` the derivatives of the outputs in its pre-activations: one forward and one backward pass to
    pre-activations, and no weight gradients where a layer is applied once per example:
    ``K_l = (H H^T) * (D D^T)``. Layers are found by intercepting Flax's own module calls (Dense, DenseGeneral, Conv). A
    parameter counts as covered only when nothing else in the model uses it; ``auto`` takes every other parameter by its
    per-example Jacobian, so the answer is exact for any model. Arithmetic runs at the highest matmul precision whatever the
    default. The caller jits.

    Args:
      apply_fn: ``apply_fn(params, x) -> (b, ...)``; must treat each example alone.
      params: parameters with respect to which the kernel is taken, floating-point leaves.
      x: ``(b, ...)`` inputs.
      method: ``"auto"``, ``"structured"`` (an error where a parameter is not covered), ``"jacobian"`` (per-example
        Jacobians for every parameter), ``"neural_tangents"`` (its Jacobian contraction; the reference).

    Returns:
      ``(b*o, b*o)``, example-major: row ``i*o + j`` is output ``j`` of example ``i``. Units: squared output per squared
      parameter.

    Raises:
      ValueError: unknown method; a parameter that is not floating point; outputs whose first axis is not the batch;
        ``structured`` where a parameter is not covered.
      CoupledExamplesError: the outputs of one example depend on other examples (BatchNorm in training mode).
      NeuralTangentsMissing: that method without the package.

    Source: Jacot, Gabriel, Hongler (2018), arXiv 1806.07572, for the kernel; the layer formula follows from
    ``y = H W`` and the chain rule.

    >>> import jax.numpy as jnp
    >>> linear = lambda params, x: x @ params["w"]
    >>> x = jnp.array([[1.0, 0.0], [1.0, 2.0]])
    >>> tangent_kernel(linear, {"w": jnp.zeros((2, 1))}, x).tolist()  # x x^T
    [[1.0, 1.0], [1.0, 5.0]]
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}; allowed: {', '.join(METHODS)}")
    if hasattr(apply_fn, "lower") and hasattr(apply_fn, "__wrapped__"):
        apply_fn = apply_fn.__wrapped__  # under a jit of its own no layer could be seen
    _check(apply_fn, params, x)
    refuse_coupled_examples(apply_fn, params, x)
    if method == "neural_tangents":
        return neural_tangents.empirical_kernel(apply_fn, params, x)
    with jax.default_matmul_precision("highest"):
        plan = _plan(apply_fn, params, x) if method != "jacobian" else _Plan((), frozenset())
        if method == "structured":
            paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
            missing = [path for i, path in enumerate(paths) if i not in plan.covered]
            if missing:
                raise ValueError(
                    f"method='structured' has no rule for parameters {', '.join(missing)}; allowed there: 'auto', 'jacobian'"
                )
        return _kernel(apply_fn, params, x, plan)


def _check(apply_fn, params, x) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"params{jax.tree_util.keystr(path)} has dtype {jnp.result_type(leaf)}; allowed: floating-point parameters"
            )
    if jnp.ndim(x) < 1:
        raise ValueError(f"x has shape {jnp.shape(x)}; allowed: (b, ...) with b examples")
    out = jax.eval_shape(apply_fn, params, x)
    if not hasattr(out, "shape"):
        raise ValueError(f"apply_fn returns {type(out).__name__}; allowed: one array of shape (b, ...)")
    if len(out.shape) < 1 or out.shape[0] != jnp.shape(x)[0]:
        raise ValueError(f"apply_fn returns shape {out.shape} for {jnp.shape(x)[0]} examples; allowed: (b, ...)")


# Which module calls are linear in their weights, and what their inputs look like, one row per application of the weights.


_CUSTOM = ("dot_general", "dot_general_cls", "mask", "conv_general_dilated", "conv_general_dilated_cls")


def _is_plain(module: nn.Module) -> bool:
    """The layer computes what its name says: nothing in it was replaced."""
    return module.promote_dtype is promote_dtype and all(getattr(module, name, None) is None for name in _CUSTOM)


class _Inputs(NamedTuple):
    """How the inputs of a layer enter its weights."""

    rows: Callable  # (b, *input) -> (b, rows, groups, inputs): one row per application of the weights
    products: Callable | None = None  # (b, *input) -> (b, rows, b, rows), inner products of the rows, where that is cheaper


def _dense_rows(module: nn.Dense) -> _Inputs | None:
    return _Inputs(lambda h: h.reshape(h.shape[0], -1, 1, h.shape[-1]))


def _dense_general_rows(module: nn.DenseGeneral) -> _Inputs | None:
    axes = (module.axis,) if isinstance(module.axis, int) else tuple(module.axis)
    trailing = tuple(range(-len(axes), 0))
    if module.batch_dims or axes != trailing:
        return None
    return _Inputs(lambda h: h.reshape(h.shape[0], -1, 1, math.prod(h.shape[h.ndim - len(axes) :])))


def _conv_rows(module: nn.Conv) -> _Inputs | None:
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

    def products(h):
        """Overlapping patches share pixels: their inner products are sums over the window of those of the pixels."""
        space, edges, slices, count = geometry(h)
        b, pixels, channels = h.shape[0], math.prod(space), h.shape[-1]
        if groups > 1 or h.size != b * pixels * channels or pixels**2 >= count**2 * len(slices) // 2:
            return None
        gram = _gram(h.reshape(b * pixels, channels)).reshape(b, *space, b, *space)
        gram = lax.pad(gram, jnp.zeros((), h.dtype), [(0, 0, 0), *edges, (0, 0, 0), *edges])
        steps = (1, *strides, 1, *strides)
        total = sum(lax.slice(gram, (0, *start, 0, *start), (b, *stop, b, *stop), steps) for start, stop in slices)
        return total.reshape(b, count, b, count)

    return _Inputs(rows, products)


_ROWS = {nn.Dense: _dense_rows, nn.DenseGeneral: _dense_general_rows, nn.Conv: _conv_rows}


class _Call(NamedTuple):
    """One module call whose weights enter linearly; ``None`` leaves are not covered by it."""

    kernel: int | None  # index of the weight among the leaves of params
    bias: int | None
    shape: tuple[int, ...]  # of the pre-activations of one example
    dtype: np.dtype
    groups: int
    inputs: _Inputs


class _Plan(NamedTuple):
    calls: tuple[_Call | None, ...]  # every call of a known module, in order; None: left alone
    covered: frozenset[int]  # leaves whose every use is in one of the calls


def _watched(on_call: Callable):
    """Flax context in which ``on_call(module, h, proceed)`` stands for each call of a known module.

    Calls under an inner transformation (scan, remat, a nested jit) are not offered: their inputs could not leave it.
    """
    level = flax.core.tracers.current_trace()
    inside = [False]

    def interceptor(next_fun, args, kwargs, context):
        known = type(context.module) in _ROWS and context.method_name == "__call__" and len(args) == 1 and not kwargs
        # A caller's own interceptor may change what the layer returns before it comes here.
        alone = len(list(getattr(nn.module, "_global_interceptor_stack", ()))) <= 1
        if inside[0] or not known or not alone or flax.core.tracers.current_trace() != level:
            return next_fun(*args, **kwargs)
        inside[0] = True
        try:
            return on_call(context.module, args[0], lambda: next_fun(*args))
        finally:
            inside[0] = False

    return nn.intercept_methods(interceptor)


def _plan(apply_fn, params, x) -> _Plan:
    """Finds the calls and the leaves that they cover, from shapes alone.

    The model is traced with two copies of the parameters: a known call gets the second copy, so a leaf of the first copy
    that still appears in the program is used elsewhere too (shared, tied, cast, or read outside a module), and is left to
    the Jacobian.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), params)
    calls: list[_Call | None] = []

    def traced(params, copy, example):
        index = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(params))}
        copies = jax.tree.leaves(copy)

        def on_call(module, h, proceed):
            own = dict(module.variables.get("params", {}))
            kernel, bias = index.get(id(own.get("kernel"))), index.get(id(own.get("bias")))
            known = _ROWS[type(module)](module) if _is_plain(module) else None
            if kernel is None or known is None or h.dtype != copies[kernel].dtype:
                calls.append(None)
                return proceed()
            own["kernel"] = copies[kernel]
            if bias is not None:
                own["bias"] = copies[bias]
            y = module.clone(parent=None).apply({"params": own}, h)
            groups = getattr(module, "feature_group_count", 1)
            calls.append(_Call(kernel, bias, y.shape, y.dtype, groups, known))
            return y

        with _watched(on_call):
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
    return _Plan(tuple(calls), frozenset(covered))


def _kernel(apply_fn, params, x, plan: _Plan):
    leaves, tree = jax.tree.flatten(params)
    out = jax.eval_shape(apply_fn, params, x)
    b, o = out.shape[0], math.prod(out.shape[1:])
    dtype = jnp.promote_types(out.dtype, jnp.float32)
    tapped = [call for call in plan.calls if call is not None]
    live = {i: leaf for i, leaf in enumerate(leaves) if i not in plan.covered}

    def one_example(taps, live, example):
        """Outputs of one example with a zero added to each known pre-activation; inputs of the known calls beside them."""
        inputs, seen = [], [0]

        def on_call(module, h, proceed):
            call = plan.calls[seen[0]] if plan.calls else None
            seen[0] += 1
            y = proceed()
            if call is None:
                return y
            inputs.append(h)
            return y + taps[len(inputs) - 1]

        merged = jax.tree.unflatten(tree, [live.get(i, leaf) for i, leaf in enumerate(leaves)])
        with _watched(on_call):
            out = apply_fn(merged, example[None])
        return out.reshape(o), inputs

    def derivatives(example):
        taps = [jnp.zeros(call.shape, call.dtype) for call in tapped]
        _, pullback, inputs = jax.vjp(lambda taps, live: one_example(taps, live, example), taps, live, has_aux=True)
        d_taps, d_live = jax.vmap(pullback)(jnp.eye(o, dtype=out.dtype))
        return inputs, d_taps, d_live

    inputs, d_taps, d_live = jax.vmap(derivatives)(x)

    weights: dict[int, list] = {}  # leaf -> [(rows (b, p, g, m), derivatives (b, o, p, g, c), call, its input)]
    biases: dict[int, list] = {}  # leaf -> [derivative (b, o, c)]
    for call, h, d in zip(tapped, inputs, d_taps, strict=True):
        if call.kernel is not None:
            size = math.prod(jnp.shape(leaves[call.kernel]))
            rows = call.inputs.rows(h)
            features = size // (rows.shape[2] * rows.shape[3])
            weights.setdefault(call.kernel, []).append((rows, d.reshape(b, o, rows.shape[1], call.groups, features), call, h))
        if call.bias is not None:
            features = math.prod(jnp.shape(leaves[call.bias]))
            biases.setdefault(call.bias, []).append(d.reshape(b, o, -1, features).sum(2))

    total = jnp.zeros((b * o, b * o), dtype)
    for uses in weights.values():
        rows, d = jnp.concatenate([use[0] for use in uses], 1), jnp.concatenate([use[1] for use in uses], 2)
        _, _, call, h = uses[0]
        products = call.inputs.products if len(uses) == 1 else None  # uses of one weight have products across them too
        total += _weight_gram(rows.astype(dtype), d.astype(dtype), products and (lambda h=h, f=products: f(h.astype(dtype))))
    for uses in biases.values():
        total += _gram(sum(uses).reshape(b * o, -1).astype(dtype))
    for jacobian in d_live.values():
        total += _gram(jacobian.reshape(b * o, -1).astype(dtype))
    return total


def _gram(a):
    return a @ a.T


def _weight_gram(
    rows: Float[Array, "b p g m"], d: Float[Array, "b o p g c"], products: Callable | None = None
) -> Float[Array, "bo bo"]:
    """Gram matrix of ``J[i, o] = sum_p rows[i, p] (x) d[i, o, p]`` over groups, by the cheaper of two orders.

    ``products() -> (b, p, b, p)`` gives the inner products of the rows where they are to be had for less, or None.
    """
    b, p, g, m = rows.shape
    o, c = d.shape[1], d.shape[4]
    if p == g == 1:  # (H H^T) * (D D^T)
        rows, d = rows.reshape(b, m), d.reshape(b * o, c)
        return (_gram(rows)[:, None, :, None] * _gram(d).reshape(b, o, b, o)).reshape(b * o, b * o)
    by_gradients = b * o * g * m * c * (p + b * o)
    by_pairs = b * b * p * p * g * (m + o * o * (c + 1))
    if by_gradients <= by_pairs:  # per-example gradients of the weights, one matrix product for each example and group
        d = jnp.moveaxis(d, 1, -2).reshape(b, p, g, o * c)
        gradients = lax.dot_general(rows, d, (((1,), (1,)), ((0, 2), (0, 2))))  # (b, g, m, o*c)
        return _gram(jnp.moveaxis(gradients.reshape(b, g * m, o, c), 2, 1).reshape(b * o, -1))
    inner = products() if products is not None else None
    if inner is not None:
        outer = _gram(d.reshape(b * o * p, c)).reshape(b, o, p, b, o, p)
        return jnp.sum(inner[:, None, :, :, None, :] * outer, axis=(2, 5)).reshape(b * o, b * o)
    # The sum over pairs is symmetric in the examples: four strips, each from its diagonal block on, are 10/16 of the work.
    upper, edges = jnp.zeros((b, o, b, o), rows.dtype), [b * s // 4 for s in range(5)]
    for first, last in itertools.pairwise(edges):
        if first < last:
            strip = _pair_sums(rows[first:last], d[first:last], rows[first:], d[first:])
            upper = upper.at[first:last, :, first:].set(strip)
    strip_of = np.searchsorted(edges, np.arange(b), "right")
    below = strip_of[:, None] > strip_of
    full = jnp.where(below[:, None, :, None], upper.transpose(2, 3, 0, 1), upper)
    return full.reshape(b * o, b * o)


def _pair_sums(rows, d, other_rows, other_d):
    inner = jnp.einsum("ipgm,jqgm->gipjq", rows, other_rows)
    outer = jnp.einsum("iopgc,jrqgc->giopjrq", d, other_d)
    return jnp.sum(inner[:, :, None, :, :, None, :] * outer, axis=(0, 3, 6))
