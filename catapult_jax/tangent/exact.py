"""The exact tangent kernel of a batch: layer by layer where a layer's structure is known, by Jacobians elsewhere."""

from __future__ import annotations

import itertools
import logging
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from catapult_jax.tangent import layers, neural_tangents
from catapult_jax.tangent.checks import check_arguments, check_preconditioner, forward_mode_only
from catapult_jax.tangent.coupling import refuse_coupled_examples
from catapult_jax.xla import (
    HELD_NUMBERS,
    MOST_STRIPS,
    ORDERED_NUMBERS,
    PRODUCTS_PER_NUMBER,
    SLOW_JACOBIAN_ENTRIES,
    UNROLLED_KERNEL_CHUNKS,
    after,
    at_least_float32,
    loops_are_slow,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree

_log = logging.getLogger("catapult_jax")

METHODS = ("auto", "structured", "jacobian", "neural_tangents")


def tangent_kernel(
    apply_fn: Callable[..., Float[Array, "b *o"]],
    params: PyTree,
    x: Array,
    *,
    method: str = "auto",
    cotangents: Float[Array, "b o r"] | None = None,
    preconditioner: PyTree | None = None,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "br br"]:
    r"""Tangent kernel of a batch, ``K = J J^T`` with ``J = d f / d params``; ``K = C^T J P^(-1) J^T C`` where those are given.

    ``structured`` uses, for a layer that is linear in its weights, ``J_l[i] = sum_p H[i, p] (x) D[i, p]``, with ``H`` the
    layer's inputs and ``D`` the derivatives of the outputs in its pre-activations: one forward and one backward pass to
    pre-activations, and no weight gradients where a layer is applied once per example:
    ``K_l = (H H^T) * (D D^T)``. Layers are found by intercepting Flax's own module calls (Dense, DenseGeneral, Conv, Embed). A
    parameter counts as covered only when nothing else in the model uses it; ``auto`` takes every other parameter by its
    per-example Jacobian, so the answer is exact for any model. So are scales and biases of normalisations, whose Jacobian is small.
    Arithmetic runs at the highest matmul precision whatever the default. The caller jits.

    Args:
      apply_fn: ``apply_fn(params, x) -> (b, ...)``; must treat each example alone.
      params: parameters with respect to which the kernel is taken, floating-point leaves.
      x: ``(b, ...)`` inputs.
      method: ``"auto"`` (logs what it takes), ``"structured"`` (an error where a parameter is not covered), ``"jacobian"`` (per-example
        Jacobians for every parameter), ``"neural_tangents"`` (its Jacobian contraction; the reference).
      cotangents: ``C``, the ``r`` combinations of the outputs of each example whose kernel is wanted; None: the outputs. A loss
        whose Hessian has rank ``r < o`` needs no more than ``r`` of them.
      preconditioner: the diagonal of ``P``, a pytree like ``params``, positive; None: one. Every weight then takes its per-example
        gradients, since the product form is lost: for one eigenvalue :func:`top_eigenpairs` is cheaper.
      chunk_size: examples that are worked on at a time; derivatives are then taken again for every pair of chunks, and memory is
        bounded by the chunk and the kernel itself. None: all. Where XLA is slow in loops (convolutions on the CPU) up to eight chunks are
        unrolled, half a minute of compilation for a Wide ResNet; of more the derivatives are taken once for all examples, and only what is made
        of them is bounded.
      mesh: a device mesh with one axis that divides ``b``: each device makes the rows of its share of the examples, which stay there.

    Returns:
      ``(b*r, b*r)``, example-major: row ``i*r + j`` is combination (output) ``j`` of example ``i``. Units: squared output per squared
      parameter.

    Raises:
      ValueError: unknown method; a parameter that is not floating point; outputs whose first axis is not the batch;
        ``structured`` where a parameter is not covered; shapes, a chunk size or a mesh that don't fit; options that
        ``neural_tangents`` does not have.
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
    apply_fn = seen_through(apply_fn)
    out = check_arguments(apply_fn, params, x)
    _check_options(out, params, method, cotangents, preconditioner, chunk_size, mesh)
    refuse_coupled_examples(apply_fn, params, x)
    if method == "neural_tangents":
        return neural_tangents.empirical_kernel(apply_fn, params, x)
    with jax.default_matmul_precision("highest"):
        plan = layers.plan(apply_fn, params, x) if method != "jacobian" else layers.NOTHING
        if method == "auto":
            _tell(plan, params)
        if method == "structured":
            paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
            missing = [path for i, path in enumerate(paths) if i not in plan.covered | plan.norms]
            if missing:
                raise ValueError(
                    f"method='structured' has no rule for parameters {', '.join(missing)}; allowed there: 'auto', 'jacobian'"
                )
        b, o = out.shape[0], math.prod(out.shape[1:])
        if cotangents is None:
            cotangents = jnp.broadcast_to(jnp.eye(o, dtype=out.dtype), (b, o, o))
        derivatives = partial(_derivatives, apply_fn, params, plan)
        block = partial(_block, plan, jax.tree.leaves(params), _inverse_roots(preconditioner))
        if mesh is not None:
            return _sharded(derivatives, block, x, cotangents, mesh)
        if chunk_size is not None and chunk_size < b:
            slow_loops = loops_are_slow(apply_fn, params, x)
            return forward_mode_only(_chunked(derivatives, block, x, cotangents, chunk_size, slow_loops=slow_loops))
        found = derivatives(x, cotangents)
        return block(found, found, same=True)


def method_taken(apply_fn: Callable, params: PyTree, x: Array) -> str:
    """What ``method="auto"`` takes for each parameter, in one line.

    >>> method_taken(lambda w, x: x @ w, jnp.zeros(2), jnp.zeros((1, 2)))
    '0 of 1 parameters layer by layer, 1 by per-example Jacobians (all of them)'
    """
    return _taken(layers.plan(seen_through(apply_fn), params, x), params)


def _taken(plan: layers.Plan, params) -> str:
    paths = [jax.tree_util.keystr(path) or "all of them" for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    rest = [path for i, path in enumerate(paths) if i not in plan.covered]
    names = f" ({', '.join(rest[:3])}{', ...' if len(rest) > 3 else ''})" if rest else ""
    return f"{len(plan.covered)} of {len(paths)} parameters layer by layer, {len(rest)} by per-example Jacobians{names}"


def _tell(plan: layers.Plan, params) -> None:
    """Says what ``auto`` takes: in the log ``catapult_jax``, and in a warning where no layer of a large model is known."""
    text = _taken(plan, params)
    _log.info("tangent_kernel: method='auto' takes %s", text)
    if not plan.covered and sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params)) > SLOW_JACOBIAN_ENTRIES:
        warnings.warn(
            f"tangent_kernel: method='auto' takes {text}, which can be a hundred times slower; layers of Flax linen (Dense, DenseGeneral, "
            "Conv, Embed) are known",
            stacklevel=3,
        )


def kernel_and_pullback(
    apply_fn: Callable[..., Float[Array, "b *o"]], params: PyTree, x: Array, basis: Float[Array, "o r"]
) -> tuple[Float[Array, "b *o"], Float[Array, "br br"], Callable[[Float[Array, "b r"]], PyTree]]:
    """Outputs, the kernel of the ``r`` combinations ``basis^T f`` of each example, and ``a -> grad_params sum_ij a[i, j] (basis^T f_i)_j``.

    All three from one forward pass and ``r`` backward passes to pre-activations: the pull-back adds only the gradients of the weights,
    ``sum_i H[i] (x) (a_i D[i])``. So a training step whose gradient is of that form pays for no pass twice.

    Raises:
      ValueError, CoupledExamplesError: as :func:`tangent_kernel`.

    Source: the chain rule.
    """
    apply_fn = seen_through(apply_fn)
    out = check_arguments(apply_fn, params, x)
    refuse_coupled_examples(apply_fn, params, x)
    leaves, tree = jax.tree.flatten(params)
    with jax.default_matmul_precision("highest"):
        plan = layers.plan(apply_fn, params, x)
        _tell(plan, params)
        cotangents = jnp.broadcast_to(jnp.asarray(basis, out.dtype), (len(x), *jnp.shape(basis)))
        found = _derivatives(apply_fn, params, plan, x, cotangents)
        kernel = _block(plan, leaves, None, found, found, same=True)

    def pullback(a):
        with jax.default_matmul_precision("highest"):
            combine = lambda d: jnp.einsum("br,br...->b...", a.astype(d.dtype), d)
            gradients = {i: combine(jacobian).sum(0) for i, jacobian in found.live.items()}
            for call, h, d in zip((c for c in plan.calls if c is not None), found.inputs, found.taps, strict=True):
                d = combine(d)
                if call.kernel is not None:
                    linear = lambda weight, call=call, h=h: jax.vmap(call.linear, (None, 0))(weight, h)
                    own = jax.vjp(linear, leaves[call.kernel])[1](d)[0]
                    gradients[call.kernel] = gradients.get(call.kernel, 0) + own
                if call.bias is not None:
                    shape = jnp.shape(leaves[call.bias])
                    own = d.reshape(-1, math.prod(shape)).sum(0).reshape(shape)
                    gradients[call.bias] = gradients.get(call.bias, 0) + own
            return jax.tree.unflatten(tree, [gradients[i].astype(leaf.dtype) for i, leaf in enumerate(leaves)])

    return found.outputs.reshape(out.shape), kernel, pullback


def seen_through(apply_fn: Callable) -> Callable:
    """The function without a jit around it, under which no layer could be seen."""
    return apply_fn.__wrapped__ if hasattr(apply_fn, "lower") and hasattr(apply_fn, "__wrapped__") else apply_fn


def _check_options(out, params, method, cotangents, preconditioner, chunk_size, mesh) -> None:
    b, o = out.shape[0], math.prod(out.shape[1:])
    if cotangents is not None and (jnp.ndim(cotangents) != 3 or jnp.shape(cotangents)[:2] != (b, o)):
        raise ValueError(f"cotangents has shape {jnp.shape(cotangents)}; allowed: ({b}, {o}, r)")
    check_preconditioner(preconditioner, params)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size!r}; allowed: 1 or more, or None")
    if mesh is not None and (len(mesh.axis_names) != 1 or b % mesh.size):
        raise ValueError(f"mesh has axes {dict(mesh.shape)} for {b} examples; allowed: one axis, of a size that divides them")
    if mesh is not None and chunk_size is not None:
        raise ValueError(f"chunk_size={chunk_size!r} with a mesh; allowed: one of them")
    if method == "neural_tangents" and any(a is not None for a in (cotangents, preconditioner, chunk_size, mesh)):
        raise ValueError(
            "method='neural_tangents' with cotangents, preconditioner, chunk_size or mesh; allowed: none of them, or another method"
        )


def _inverse_roots(preconditioner) -> list | None:
    if preconditioner is None:
        return None
    return [lax.rsqrt(jnp.asarray(p, at_least_float32(jnp.result_type(p)))) for p in jax.tree.leaves(preconditioner)]


class _Derivatives(NamedTuple):
    """What the kernel of any examples is made of; every array begins with their axis, and can be cut along it."""

    inputs: list  # of each call in the plan
    taps: list  # (b, r, *shape): derivatives of the combinations of outputs in the call's pre-activations
    live: dict  # leaf -> (b, r, *leaf): Jacobian of the leaves that are in no call
    outputs: Array  # (b, o)


def _derivatives(apply_fn, params, plan: layers.Plan, x, cotangents) -> _Derivatives:
    leaves, tree = jax.tree.flatten(params)
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
        with layers.watched(on_call):
            out = apply_fn(merged, example[None])
        return out.reshape(-1), inputs

    def of_one(example, cotangents):
        taps = [jnp.zeros(call.shape, call.dtype) for call in tapped]
        out, pullback, inputs = jax.vjp(lambda taps, live: one_example(taps, live, example), taps, live, has_aux=True)
        return _Derivatives(inputs, *jax.vmap(pullback)(cotangents.T.astype(out.dtype)), out)

    return jax.vmap(of_one)(x, cotangents)


def _block(plan: layers.Plan, leaves: list, scales: list | None, left: _Derivatives, right: _Derivatives, *, same: bool):
    """``(a*r, b*r)`` kernel of the examples on the left with those on the right; ``same``: they are the same."""
    tapped = [call for call in plan.calls if call is not None]
    some = jax.tree.leaves((left.taps, left.live))[0]
    a, r = some.shape[:2]
    b = jax.tree.leaves((right.taps, right.live))[0].shape[0]
    dtype = at_least_float32(some.dtype)
    scales = None if scales is None else [scale.astype(dtype) for scale in scales]
    uses: dict[int, list[int]] = {}  # leaf -> its calls
    shifts: dict[int, list[int]] = {}
    for i, call in enumerate(tapped):
        if call.kernel is not None:
            uses.setdefault(call.kernel, []).append(i)
        if call.bias is not None:
            shifts.setdefault(call.bias, []).append(i)

    def weight(side: _Derivatives, leaf: int):
        """Inputs of all calls of a weight, and derivatives (n, r, p, g, c)."""
        derivatives = []
        for i in uses[leaf]:
            n, p, g, m = jax.eval_shape(tapped[i].inputs.rows, side.inputs[i]).shape
            derivatives.append(side.taps[i].reshape(n, r, p, g, math.prod(jnp.shape(leaves[leaf])) // (g * m)).astype(dtype))
        return [side.inputs[i] for i in uses[leaf]], jnp.concatenate(derivatives, 2)

    def rows_of(inputs: list, leaf: int):
        """Rows (n, p, g, m) of all calls of a weight."""
        return jnp.concatenate([tapped[i].inputs.rows(h).astype(dtype) for i, h in zip(uses[leaf], inputs, strict=True)], 1)

    def gram(of_side: Callable, leaf: int):
        """Gram matrix of per-example gradients as small as the leaf itself."""
        sides = []
        for side, n in ((left, a), (right, b)):
            gradients = of_side(side).reshape(n * r, -1).astype(dtype)
            sides.append(gradients if scales is None else gradients * scales[leaf].reshape(1, -1))
        return sides[0] @ sides[1].T

    floating = lambda h: h.astype(dtype) if jnp.issubdtype(h.dtype, jnp.floating) else h
    total = jnp.zeros((a * r, b * r), dtype)
    for leaf, calls in reversed(uses.items()):  # as the backward pass comes to them
        mine = weight(left, leaf)
        if jax.eval_shape(partial(rows_of, leaf=leaf), mine[0]).size > ORDERED_NUMBERS:
            mine = after(total, mine)  # one layer after the other, in the same memory
        other = mine if same else weight(right, leaf)
        products = None
        if len(calls) == 1 and (of := tapped[calls[0]].inputs.products) is not None:  # uses of one weight have products across
            products = lambda inputs, others, of=of: of(floating(inputs[0]), floating(others[0]))
        scale = None if scales is None else scales[leaf]
        total += _weight_gram(mine, other, partial(rows_of, leaf=leaf), products, scale, same=same)
    for leaf, calls in shifts.items():
        features = math.prod(jnp.shape(leaves[leaf]))
        summed = lambda side, calls=calls, c=features: sum(
            side.taps[i].reshape(len(side.taps[i]), r, -1, c).sum(2) for i in calls
        )
        total += gram(summed, leaf)
    for leaf in left.live:
        total += gram(lambda side, leaf=leaf: side.live[leaf], leaf)
    return total


def _weight_gram(
    left: tuple[PyTree, Float[Array, "a r p g c"]],
    right: tuple[PyTree, Float[Array, "b r p g c"]],
    rows_of: Callable,
    products: Callable | None = None,
    scale: Float[Array, "..."] | None = None,
    *,
    same: bool = False,
) -> Float[Array, "ar br"]:
    """Inner products of ``J[i, o] = scale * sum_p rows[i, p] (x) d[i, o, p]`` over groups, by the cheapest of three orders.

    ``left``, ``right``: inputs and ``d``; ``rows_of(inputs) -> (n, p, g, m)``, made when they are wanted, since they may be larger.
    ``products(inputs, others) -> (a, p, b, p)`` gives the inner products of the rows where they are to be had for less, or None.
    """
    (inputs, d), (other_inputs, other_d) = left, right
    a, p, g, m = jax.eval_shape(rows_of, inputs).shape
    b, r, c = len(other_d), d.shape[1], d.shape[4]
    if p == g == 1 and scale is None:  # (H H^T) * (D D^T)
        inner = rows_of(inputs).reshape(a, m) @ rows_of(other_inputs).reshape(b, m).T
        outer = d.reshape(a * r, c) @ other_d.reshape(b * r, c).T
        return (inner[:, None, :, None] * outer.reshape(a, r, b, r)).reshape(a * r, b * r)
    by_gradients = r * g * m * c * ((a + (not same) * b) * (p + PRODUCTS_PER_NUMBER) + a * b * r)
    outer_first = a * b * p * p * g * (m + r * r * (c + PRODUCTS_PER_NUMBER))
    outer_last = a * b * p * g * (p * m + p * r * c + r * r * c + PRODUCTS_PER_NUMBER * r * c)
    if scale is not None or by_gradients <= min(outer_first, outer_last):
        return _by_gradients(left, right, rows_of, scale, same=same)
    is_first = outer_first <= outer_last
    pairs = partial(_by_pairs, rows_of=rows_of, products=products, outer_first=is_first)
    if not same:
        return pairs(left, right).reshape(a * r, b * r)
    # The sum over pairs is symmetric in the examples: strips, each from its diagonal block on; four are 10/16 of the work.
    numbers = a * b * p * g * (p * r * r if is_first else max(p, r * c))
    strips = min(max(4, math.ceil(numbers / HELD_NUMBERS)), MOST_STRIPS)
    upper, edges = jnp.zeros((b, r, b, r), d.dtype), [b * s // strips for s in range(strips + 1)]
    strip = upper
    for first, last in itertools.pairwise(edges):
        if first < last:
            pieces = [jax.tree.map(lambda v, i=i: v[i], left) for i in (slice(first, last), slice(first, None))]
            strip = pairs(*after(strip, pieces))  # one strip after the other, in the same memory
            upper = upper.at[first:last, :, first:].set(strip)
    strip_of = np.searchsorted(edges, np.arange(b), "right")
    below = strip_of[:, None] > strip_of
    full = jnp.where(below[:, None, :, None], upper.transpose(2, 3, 0, 1), upper)
    return full.reshape(b * r, b * r)


def _by_gradients(left, right, rows_of, scale, *, same: bool):
    """Per-example gradients of the weights, and their inner products; so many output channels, and examples, at a time."""
    (inputs, d), (other_inputs, other_d) = left, right
    (a, p, g, m), (b, r, c) = jax.eval_shape(rows_of, inputs).shape, (len(other_d), d.shape[1], d.shape[4])
    least = max(1, math.ceil(max(a, b) * r * g * m * c / HELD_NUMBERS))
    slices = next(s for s in range(min(least, c), c + 1) if c % s == 0)
    scale = None if scale is None else jnp.moveaxis(scale.reshape(m, g, slices, c // slices), (1, 2), (0, 2))
    cut = lambda d: jnp.moveaxis(d.reshape(*d.shape[:4], slices, c // slices), 4, 0)

    def of_examples(inputs, d):  # d (n, r, p, g, c)
        d = jnp.moveaxis(d, 1, -2)
        d = d.reshape(*d.shape[:3], -1)  # (n, p, g, r*c)
        found = lax.dot_general(rows_of(inputs), d, (((1,), (1,)), ((0, 2), (0, 2))))  # (n, g, m, r*c)
        return jnp.moveaxis(found.reshape(*found.shape[:3], r, -1), 3, 1)  # (n, r, g, m, c)

    def gradients(inputs, d, scale):
        at_a_time = max(1, HELD_NUMBERS // (p * g * m))
        if at_a_time < len(d):
            one_example = lambda example: jax.tree.map(lambda v: v[None], example)
            found = lax.map(lambda example: of_examples(*one_example(example))[0], (inputs, d), batch_size=at_a_time)
        else:
            found = of_examples(inputs, d)
        found = found if scale is None else found * scale[None, None]
        return found.reshape(len(d) * r, -1)

    def one(total, piece):
        d, other_d, scale = piece
        mine = gradients(inputs, d, scale)
        return total + mine @ (mine if same else gradients(other_inputs, other_d, scale)).T, None

    zero = jnp.zeros((a * r, b * r), d.dtype)
    pieces = (cut(d), cut(other_d), None if scale is None else jnp.moveaxis(scale, 2, 0))
    if slices == 1:
        return one(zero, jax.tree.map(lambda piece: piece[0], pieces))[0]
    return lax.scan(one, zero, pieces)[0]


def _by_pairs(left, right, *, rows_of, products, outer_first: bool):
    """``sum_pq <rows[i, p], rows[j, q]> <d[i, o, p], d[j, r, q]>``; the sum over ``q`` before the second inner product, or after it."""
    (inputs, d), (other_inputs, other_d) = left, right
    inner = products(inputs, other_inputs) if products is not None else None
    if inner is None:
        inner = jnp.einsum("ipgm,jqgm->gipjq", rows_of(inputs), rows_of(other_inputs))
    else:
        inner = inner[None]
    if outer_first:
        outer = jnp.einsum("iopgc,jrqgc->giopjrq", d, other_d)
        return jnp.sum(inner[:, :, None, :, :, None, :] * outer, axis=(0, 3, 6))
    summed = jnp.einsum("gipjq,jrqgc->gjiprc", inner, other_d)
    return jnp.einsum("iopgc,gjiprc->iojr", d, summed)


def _chunked(derivatives, block, x, cotangents, size: int, *, slow_loops: bool):
    """Strip by strip, each from its diagonal block on; the derivatives of a chunk are taken again in each strip. Where loops are slow
    the pairs of chunks are unrolled, up to ``UNROLLED_KERNEL_CHUNKS`` of them; of more the derivatives of all examples are taken at once, outside of the loops."""
    b, r = len(x), cotangents.shape[2]
    count = math.ceil(b / size)
    padded = lambda v: jnp.concatenate([v, jnp.repeat(v[-1:], count * size - b, axis=0)]).reshape(count, size, *v.shape[1:])
    at = lambda tree, i: jax.tree.map(lambda a: a[i], tree)
    chunks = (padded(x), padded(cotangents))
    unroll = slow_loops and count <= UNROLLED_KERNEL_CHUNKS
    kept = jax.tree.map(padded, derivatives(x, cotangents)) if slow_loops and not unroll else None
    of_chunk = lambda i: derivatives(*at(chunks, i)) if kept is None else at(kept, i)
    shape = jax.eval_shape(lambda: block(of_chunk(0), of_chunk(0), same=True))
    side = size * r
    kernel = jnp.zeros((count * side, count * side), shape.dtype)

    def put(kernel, found, i, j):
        kernel = lax.dynamic_update_slice(kernel, found, (i * side, j * side))
        return lax.dynamic_update_slice(kernel, found.T, (j * side, i * side))

    if unroll:
        last = kernel
        for i in range(count):
            mine = derivatives(*after(last, at(chunks, i)))
            last = block(mine, mine, same=True)
            kernel = put(kernel, last, i, i)
            for j in range(i + 1, count):
                last = block(mine, derivatives(*after(last, at(chunks, j))), same=False)
                kernel = put(kernel, last, i, j)
        return kernel[: b * r, : b * r]

    def strip(i, kernel):
        mine = of_chunk(i)
        kernel = put(kernel, block(mine, mine, same=True), i, i)
        return lax.fori_loop(i + 1, count, lambda j, kernel: put(kernel, block(mine, of_chunk(j), same=False), i, j), kernel)

    return lax.fori_loop(0, count, strip, kernel)[: b * r, : b * r]


def _sharded(derivatives, block, x, cotangents, mesh: Mesh):
    """Each device takes the derivatives of its examples; those go round the ring, and meet every device's own."""
    (axis,) = mesh.axis_names
    devices = mesh.size
    mesh = Mesh(mesh.devices, mesh.axis_names)  # the axis of a mesh may be explicit in types; here the compiler places

    def rows(x, cotangents):
        mine = other = derivatives(x, cotangents)
        side = len(x) * cotangents.shape[2]
        me = lax.axis_index(axis)
        found = []
        for turn in range(devices):
            found.append(block(mine, other, same=turn == 0))
            if turn + 1 < devices:
                other = jax.tree.map(lambda a: lax.ppermute(a, axis, [(i, (i - 1) % devices) for i in range(devices)]), other)
        # The block of turn t is with the device t places on.
        found = jnp.stack(found)[(jnp.arange(devices) - me) % devices]
        return jnp.moveaxis(found, 0, 1).reshape(side, devices * side)

    spec = PartitionSpec(axis)
    # Unchecked, since a checked map would sum the derivatives in what is the same on all devices over them.
    return jax.shard_map(rows, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False)(x, cotangents)
