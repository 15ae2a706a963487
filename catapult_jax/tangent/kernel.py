"""The exact tangent kernel of a batch: layer by layer where a layer has a rule, by per-example Jacobians elsewhere."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec, use_abstract_mesh

from catapult_jax.tangent import neural_tangents
from catapult_jax.tangent.checks import (
    batch_size,
    check_arguments,
    check_chunk_size,
    check_preconditioner,
    forward_mode_only,
    refuse_checked_shard_map,
)
from catapult_jax.tangent.coupling import refuse_coupled_examples
from catapult_jax.tangent.inverse_map import InverseMap
from catapult_jax.tangent.layer_gram import weight_gram
from catapult_jax.tangent.placement import placed_by_compiler
from catapult_jax.tangent.tied_gram import rows_of_uses, tied_gram
from catapult_jax.tangent.uses import Plan, outputs_and_inputs, plan
from catapult_jax.xla import (
    ORDERED_NUMBERS,
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
    x: PyTree,
    x2: PyTree | None = None,
    *,
    method: str = "auto",
    cotangents: Float[Array, "b o r"] | None = None,
    preconditioner: PyTree | None = None,
    chunk_size: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, "br cr"]:
    r"""Tangent kernel of a batch (empirical NTK), ``K = J J^T`` with ``J = d f / d params``; of two sets, ``K(x, x2) = J(x) J(x2)^T``.

    With cotangents ``C`` and a preconditioner ``P`` it is ``K = C^T J P^(-1) J^T C``.

    A layer that is linear in its weights has ``J_l[i] = sum_p H[i, p] (x) D[i, p]``. ``H`` are the inputs of the layer.
    ``D`` are the derivatives of the outputs in its pre-activations. One forward and one backward pass give both. A
    layer that is applied once per example needs no weight gradients: ``K_l = (H H^T) * (D D^T)``. These layers are
    found in the traced program: products, convolutions and lookups of which a parameter is one operand, whatever
    library wrote them. A parameter is covered only if nothing else in the program uses it, and any two uses take the
    same entries, in one order or transposed (tied embeddings), or have none in common. Every other parameter is taken
    by its per-example Jacobian, so the kernel is exact for any model.

    Matrix products run at the highest precision, whatever the default is. Call it under ``jax.jit``.

    Args:
      apply_fn: ``apply_fn(params, x) -> (b, ...)``. It must treat each example alone.
      params: Parameters; floating-point leaves.
      x: ``(b, ...)`` inputs; one array, or a pytree of arrays with one first axis.
      x2: ``(b2, ...)`` other inputs, like ``x``. None: the kernel of ``x`` with itself.
      method: ``"auto"``: layers where they have a rule, Jacobians elsewhere; the choice is logged. ``"structured"``:
        the same, but an error where a parameter is not covered; one that is added or multiplied entry by entry (a bias, a
        scale) may use its Jacobian, which is small. ``"jacobian"``: per-example Jacobians for every parameter. ``"neural_tangents"``:
        Jacobian contraction by that package, as a reference.
      cotangents: ``C``, ``r`` combinations of the outputs of each example. None: the outputs themselves. A loss whose
        Hessian has rank ``r < o`` needs only ``r`` of them.
      preconditioner: The diagonal of ``P``, positive, a pytree like ``params``. None: ones. Every weight then needs its
        per-example gradients, because the product form holds only without ``P``. :func:`top_eigenpairs` gives a few
        eigenvalues for less.
      chunk_size: Examples per chunk; None: all at once. Memory then depends on the chunk and the kernel alone, and
        derivatives are computed again for every pair of chunks. Where XLA is slow in loops (convolutions on the CPU),
        up to eight chunks are unrolled. With more chunks, the derivatives of all examples are computed once and kept.
      mesh: A device mesh with one axis, whose size divides ``b``. Each device computes, and keeps, the rows of its own
        examples. Where ``params`` or ``x`` are on a mesh with explicit axes, the kernel comes to all devices.

    Returns:
      ``(b*r, b*r)``, or ``(b*r, b2*r)`` with ``x2``, example-major: row ``i*r + j`` is combination (output) ``j`` of example ``i``. Units: squared
      output per squared parameter.

    Raises:
      ValueError: Unknown method; a parameter that is not floating point; outputs whose first axis is not the batch;
        ``structured`` where a parameter is not covered; shapes, a chunk size or a mesh that do not fit; options that
        ``neural_tangents`` does not have.
      CoupledExamplesError: The outputs of one example depend on other examples (BatchNorm in training mode).
      NeuralTangentsMissing: ``neural_tangents`` without that package.

    Source: Jacot, Gabriel, Hongler (2018), arXiv 1806.07572, for the kernel. The layer formula follows from
    ``y = H W`` and the chain rule.

    >>> import jax.numpy as jnp
    >>> linear = lambda params, x: x @ params["w"]
    >>> x = jnp.array([[1.0, 0.0], [1.0, 2.0]])
    >>> tangent_kernel(linear, {"w": jnp.zeros((2, 1))}, x).tolist()  # x x^T
    [[1.0, 1.0], [1.0, 5.0]]
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}; allowed: {', '.join(METHODS)}")
    refuse_checked_shard_map(params, x)
    out = check_arguments(apply_fn, params, x)
    _check_options(out, params, method, cotangents, preconditioner, chunk_size, mesh)
    refuse_coupled_examples(apply_fn, params, x)
    if x2 is not None:
        _check_second(apply_fn, params, x, x2, cotangents, method)
    if method == "neural_tangents":
        return neural_tangents.empirical_kernel(apply_fn, params, x)
    compute = partial(_kernel, apply_fn, out, method, chunk_size, mesh)
    return placed_by_compiler(compute, params, x, x2, cotangents, preconditioner)


def _check_second(apply_fn, params, x, x2, cotangents, method: str) -> None:
    check_arguments(apply_fn, params, x2)
    first, second = (jax.tree.map(lambda a: (jnp.shape(a)[1:], jnp.result_type(a)), tree) for tree in (x, x2))
    if first != second:
        raise ValueError(f"x2 has examples of other shapes than x ({second}); allowed: {first}")
    if cotangents is not None or method == "neural_tangents":
        raise ValueError("x2 with cotangents or method='neural_tangents'; allowed: neither of them")


def _kernel(apply_fn, out, method: str, chunk_size: int | None, mesh: Mesh | None, params, x, x2, cotangents, preconditioner):
    with jax.default_matmul_precision("highest"):
        with contextlib.nullcontext() if mesh is None else use_abstract_mesh(AbstractMesh((), ())):
            found = plan(apply_fn, params, x)  # with a mesh, its equations run inside shard_map, on no mesh
        if method == "auto":
            _announce(found, params)
        if method == "structured":
            _check_covered(found, params)
        if method == "jacobian":
            found = found._replace(uses=(), covered=frozenset())
        b, o = out.shape[0], math.prod(out.shape[1:])
        if cotangents is None:
            cotangents = jnp.broadcast_to(jnp.eye(o, dtype=out.dtype), (b, o, o))
        leaves, scales = jax.tree.leaves(params), _inverse_roots(preconditioner)
        if mesh is not None:
            return _kernel_on_mesh(found, leaves, scales, x, x2, cotangents, mesh)
        derivatives, block = partial(_derivatives, found, leaves), partial(_kernel_block, found, leaves, scales)
        if x2 is not None:
            of_outputs = lambda x: derivatives(x, jnp.broadcast_to(jnp.eye(o, dtype=out.dtype), (batch_size(x), o, o)))
            return _kernel_between(of_outputs, block, x, x2, chunk_size)
        if chunk_size is not None and chunk_size < b:
            slow_loops = loops_are_slow(apply_fn, params, x)
            return forward_mode_only(_kernel_in_chunks(derivatives, block, x, cotangents, chunk_size, slow_loops=slow_loops))
        examples = derivatives(x, cotangents)
        return block(examples, examples, same=True)


def describe_method(apply_fn: Callable, params: PyTree, x: PyTree) -> str:
    """How ``method="auto"`` treats each parameter, in one line.

    Args:
      apply_fn, params, x: As in :func:`tangent_kernel`.

    Returns:
      The number of parameters per method, and the names of the first three that need Jacobians.

    >>> describe_method(lambda w, x: x @ w @ w.T, jnp.zeros((2, 2)), jnp.zeros((1, 2)))  # used twice, once transposed
    '1 of 1 parameters layer by layer, 0 by per-example Jacobians'
    >>> describe_method(lambda w, x: x @ w @ w[::-1], jnp.zeros((2, 2)), jnp.zeros((1, 2)))  # in two other orders
    '0 of 1 parameters layer by layer, 1 by per-example Jacobians (all of them)'
    """
    return _describe(plan(apply_fn, params, x), params)


def _describe(found: Plan, params) -> str:
    paths = [jax.tree_util.keystr(path) or "all of them" for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    rest = [path for i, path in enumerate(paths) if i not in found.covered | found.entrywise]
    names = f" ({', '.join(rest[:3])}{', ...' if len(rest) > 3 else ''})" if rest else ""
    return f"{len(paths) - len(rest)} of {len(paths)} parameters layer by layer, {len(rest)} by per-example Jacobians{names}"


def _announce(found: Plan, params) -> None:
    """Logs how ``auto`` treats the parameters. Warns if many entries need their Jacobian."""
    text = _describe(found, params)
    _log.info("tangent_kernel: method='auto' takes %s", text)
    sizes = [math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params)]
    rest = sum(size for i, size in enumerate(sizes) if i not in found.covered | found.entrywise)
    if rest > SLOW_JACOBIAN_ENTRIES:
        warnings.warn(
            f"tangent_kernel: method='auto' takes {text}. This can be a hundred times slower; parameters that enter products, "
            "convolutions or lookups alone, in one order of their entries or transposed, are fast",
            stacklevel=3,
        )


def kernel_and_pullback(
    apply_fn: Callable[..., Float[Array, "b *o"]], params: PyTree, x: PyTree, basis: Float[Array, "o r"]
) -> tuple[Float[Array, "b *o"], Float[Array, "br br"], Callable[[Float[Array, "b r"]], PyTree]]:
    """Outputs, kernel of ``basis^T f`` and its pullback, ``a -> grad_params sum_ij a[i, j] (basis^T f_i)_j``.

    One forward pass and ``r`` backward passes to the pre-activations serve all three. The pullback adds only the
    gradients of the weights, ``sum_i H[i] (x) (a_i D[i])``. A training step whose gradient has this form computes no
    pass twice.

    Args:
      apply_fn, params, x: As in :func:`tangent_kernel`.
      basis: ``(o, r)``, the combinations of the outputs, the same for every example.

    Returns:
      Outputs ``(b, ...)``, kernel ``(b*r, b*r)``, and a function ``(b, r) -> `` pytree like ``params``.

    Raises:
      ValueError: As :func:`tangent_kernel`.
      CoupledExamplesError: As :func:`tangent_kernel`.

    Source: the chain rule.

    >>> outputs, K, pullback = kernel_and_pullback(lambda w, x: x @ w, jnp.ones(2), 2 * jnp.eye(2), jnp.ones((1, 1)))
    >>> K.tolist(), pullback(jnp.array([[1.0], [3.0]])).tolist()
    ([[4.0, 0.0], [0.0, 4.0]], [2.0, 6.0])
    """
    refuse_checked_shard_map(params, x)
    out = check_arguments(apply_fn, params, x)
    refuse_coupled_examples(apply_fn, params, x)
    leaves, tree = jax.tree.flatten(params)
    with jax.default_matmul_precision("highest"):
        found = plan(apply_fn, params, x)
        _announce(found, params)
        cotangents = jnp.broadcast_to(jnp.asarray(basis, out.dtype), (out.shape[0], *jnp.shape(basis)))
        examples = _derivatives(found, leaves, x, cotangents)
        kernel = _kernel_block(found, leaves, None, examples, examples, same=True)

    def pullback(a):
        with jax.default_matmul_precision("highest"):
            combine = lambda d: jnp.einsum("br,br...->b...", a.astype(d.dtype), d)
            gradients = {i: combine(jacobian).sum(0) for i, jacobian in examples.live.items()}
            for use, h, d in zip(found.uses, examples.inputs, examples.taps, strict=True):
                linear = lambda weight, use=use, h=h: jax.vmap(use.linear, (None, 0))(weight, h)
                (gradient,) = jax.vjp(linear, leaves[use.leaf])[1](combine(d))
                gradients[use.leaf] = gradients.get(use.leaf, 0) + gradient
            gradients = {i: jnp.zeros_like(leaf) for i, leaf in enumerate(leaves)} | gradients
            return jax.tree.unflatten(tree, [gradients[i].astype(leaf.dtype) for i, leaf in enumerate(leaves)])

    return examples.outputs.reshape(out.shape), kernel, pullback


# ---- checks of options


def _check_options(out, params, method, cotangents, preconditioner, chunk_size, mesh) -> None:
    b, o = out.shape[0], math.prod(out.shape[1:])
    if cotangents is not None and (jnp.ndim(cotangents) != 3 or jnp.shape(cotangents)[:2] != (b, o)):
        raise ValueError(f"cotangents has shape {jnp.shape(cotangents)}; allowed: ({b}, {o}, r)")
    if isinstance(preconditioner, InverseMap):
        raise ValueError(
            "preconditioner is an InverseMap; allowed in an exact kernel: a diagonal; catapult_jax.top_eigenpairs takes the map"
        )
    check_preconditioner(preconditioner, params)
    check_chunk_size(chunk_size)
    if mesh is not None and (len(mesh.axis_names) != 1 or b % mesh.size):
        raise ValueError(f"mesh has axes {dict(mesh.shape)} for {b} examples; allowed: one axis, of a size that divides them")
    if mesh is not None and chunk_size is not None:
        raise ValueError(f"chunk_size={chunk_size!r} with a mesh; allowed: one of them")
    if method == "neural_tangents" and any(a is not None for a in (cotangents, preconditioner, chunk_size, mesh)):
        raise ValueError(
            "method='neural_tangents' with cotangents, preconditioner, chunk_size or mesh; allowed: none of them, or another method"
        )


def _check_covered(found: Plan, params) -> None:
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    missing = [path for i, path in enumerate(paths) if i not in found.covered | found.entrywise]
    if missing:
        raise ValueError(
            f"method='structured' has no rule for parameters {', '.join(missing)}; allowed there: 'auto', 'jacobian'"
        )


def _inverse_roots(preconditioner) -> list | None:
    """The leaves of ``P^(-1/2)``."""
    if preconditioner is None:
        return None
    return [lax.rsqrt(jnp.asarray(p, at_least_float32(jnp.result_type(p)))) for p in jax.tree.leaves(preconditioner)]


# ---- derivatives of some examples, and the kernel between two sets of them


class _Derivatives(NamedTuple):
    """Inputs and derivatives of some examples. Every array has the examples on its first axis, so it can be cut there."""

    inputs: list  # of each use
    taps: list  # (b, r, *shape): derivatives of the combinations of outputs in the pre-activations of each use
    live: dict  # leaf -> (b, r, *leaf): Jacobian of the leaves that are not covered
    outputs: Array  # (b, o)


def _derivatives(found: Plan, leaves: list, x, cotangents) -> _Derivatives:
    live = {i: leaf for i, leaf in enumerate(leaves) if i not in found.covered}

    def of_example(example, cotangents):
        def run(taps, live):
            merged = [live.get(i, leaf) for i, leaf in enumerate(leaves)]
            outputs, inputs = outputs_and_inputs(found, merged, example, taps)
            return outputs.reshape(-1), inputs

        taps = [jnp.zeros(use.shape, use.dtype) for use in found.uses]
        out, pullback, inputs = jax.vjp(run, taps, live, has_aux=True)
        of_taps, of_live = jax.vmap(pullback)(cotangents.T.astype(out.dtype))
        return _Derivatives(inputs, of_taps, of_live, out)

    return jax.vmap(of_example)(x, cotangents)


def _kernel_block(found: Plan, leaves: list, scales: list | None, left: _Derivatives, right: _Derivatives, *, same: bool):
    """``(a*r, b*r)`` kernel between the examples on the left and those on the right. ``same``: these are the same examples."""
    first = jax.tree.leaves((left.taps, left.live))[0]
    (a, r), b = first.shape[:2], len(right.outputs)
    dtype = at_least_float32(first.dtype)
    scales = None if scales is None else [scale.astype(dtype) for scale in scales]
    uses_of: dict[tuple, dict[bool, list[int]]] = {}  # leaf and layout -> the numbers of the uses, straight and turned
    for i, use in enumerate(found.uses):
        uses_of.setdefault((use.leaf, use.layout), {}).setdefault(use.is_turned, []).append(i)

    def gram(leaf: int):
        """Gram matrix of the per-example gradients of a leaf."""
        sides = []
        for side, n in ((left, a), (right, b)):
            gradients = side.live[leaf].reshape(n * r, -1).astype(dtype)
            sides.append(gradients if scales is None else gradients * scales[leaf].reshape(1, -1))
        return sides[0] @ sides[1].T

    def factors(side: _Derivatives, numbers: list[int]):
        """Inputs of all uses of a weight, and the derivatives in their pre-activations."""
        taps = [found.uses[i].layer.by_place(side.taps[i]).astype(dtype) for i in numbers]
        return [side.inputs[i] for i in numbers], jnp.concatenate(taps, 2)

    total = jnp.zeros((a * r, b * r), dtype)
    for (leaf, _), orders in reversed(uses_of.items()):  # in the order of the backward pass
        rows = [rows_of_uses([found.uses[i] for i in numbers], dtype) for numbers in orders.values()]
        left_factors = [factors(left, numbers) for numbers in orders.values()]
        if sum(jax.eval_shape(each.of, h).size for each, (h, _) in zip(rows, left_factors, strict=True)) > ORDERED_NUMBERS:
            left_factors = after(total, left_factors)  # one layer after the other, in the same memory
        right_factors = left_factors if same else [factors(right, numbers) for numbers in orders.values()]
        scale = None if scales is None else found.uses[orders[False][0]].weights(scales[leaf])
        if len(rows) == 2:
            total += tied_gram(left_factors, right_factors, rows, scale, same=same)
        else:
            total += weight_gram(*left_factors, *right_factors, rows[0].of, rows[0].products, scale, same=same)
    for leaf in left.live:
        total += gram(leaf)
    return total


# ---- the kernel of many examples, from blocks


def _kernel_in_chunks(derivatives, block, x, cotangents, size: int, *, slow_loops: bool):
    """The kernel in strips, each from its diagonal block on. Each strip computes the derivatives of its chunks again.

    Where loops are slow, up to ``UNROLLED_KERNEL_CHUNKS`` chunks are unrolled. With more chunks, the derivatives of all
    examples are computed once, outside of the loops.
    """
    b, r = len(cotangents), cotangents.shape[2]
    count = math.ceil(b / size)
    padded = lambda v: jnp.concatenate([v, jnp.repeat(v[-1:], count * size - b, axis=0)]).reshape(count, size, *v.shape[1:])
    at = lambda tree, i: jax.tree.map(lambda a: a[i], tree)
    chunks = jax.tree.map(padded, (x, cotangents))
    unroll = slow_loops and count <= UNROLLED_KERNEL_CHUNKS
    kept = jax.tree.map(padded, derivatives(x, cotangents)) if slow_loops and not unroll else None
    of_chunk = lambda i: derivatives(*at(chunks, i)) if kept is None else at(kept, i)
    shape = jax.eval_shape(lambda: block(of_chunk(0), of_chunk(0), same=True))
    side = size * r
    kernel = jnp.zeros((count * side, count * side), shape.dtype)

    def put(kernel, pair, i, j):
        kernel = lax.dynamic_update_slice(kernel, pair, (i * side, j * side))
        return lax.dynamic_update_slice(kernel, pair.T, (j * side, i * side))

    if unroll:
        last = kernel
        for i in range(count):
            left = derivatives(*after(last, at(chunks, i)))
            last = block(left, left, same=True)
            kernel = put(kernel, last, i, i)
            for j in range(i + 1, count):
                last = block(left, derivatives(*after(last, at(chunks, j))), same=False)
                kernel = put(kernel, last, i, j)
        return kernel[: b * r, : b * r]

    def strip(i, kernel):
        left = of_chunk(i)
        kernel = put(kernel, block(left, left, same=True), i, i)
        return lax.fori_loop(i + 1, count, lambda j, kernel: put(kernel, block(left, of_chunk(j), same=False), i, j), kernel)

    return lax.fori_loop(0, count, strip, kernel)[: b * r, : b * r]


def _kernel_between(derivatives, block, x, x2, size: int | None):
    """The kernel between two sets, whole or in blocks of ``size`` examples of each."""
    if size is None or size >= max(batch_size(x), batch_size(x2)):
        return block(derivatives(x), derivatives(x2), same=False)
    pieces = lambda tree: [jax.tree.map(lambda a, i=i: a[i : i + size], tree) for i in range(0, batch_size(tree), size)]
    rows, last = [], None
    for left in pieces(x):
        columns = []
        for right in pieces(x2):  # one after the other, in the same memory
            both = (left, right) if last is None else after(last, (left, right))
            last = block(derivatives(both[0]), derivatives(both[1]), same=False)
            columns.append(last)
        rows.append(jnp.concatenate(columns, 1))
    return jnp.concatenate(rows)


def _kernel_on_mesh(found: Plan, leaves, scales, x, x2, cotangents, mesh: Mesh):
    """Each device computes the derivatives of its examples. They go round the ring and meet those of each device."""
    (axis,) = mesh.axis_names
    devices = mesh.size
    context = jax.sharding.get_abstract_mesh()  # of placed_by_compiler, if the mesh has explicit axes
    on = Mesh(mesh.devices, mesh.axis_names) if context.empty else context

    def rows(x, cotangents, leaves, scales, x2):
        left = right = _derivatives(found, leaves, x, cotangents)
        if x2 is not None:
            outputs = jnp.broadcast_to(cotangents[:1], (batch_size(x2), *cotangents.shape[1:]))
            return _kernel_block(found, leaves, scales, left, _derivatives(found, leaves, x2, outputs), same=False)
        side = len(cotangents) * cotangents.shape[2]
        me = lax.axis_index(axis)
        blocks = []
        for turn in range(devices):
            blocks.append(_kernel_block(found, leaves, scales, left, right, same=turn == 0))
            if turn + 1 < devices:
                right = jax.tree.map(lambda a: lax.ppermute(a, axis, [(i, (i - 1) % devices) for i in range(devices)]), right)
        # In turn t a device has the derivatives of the device t places on.
        ordered = jnp.stack(blocks)[(jnp.arange(devices) - me) % devices]
        return jnp.moveaxis(ordered, 0, 1).reshape(side, devices * side)

    spec, everywhere = PartitionSpec(axis), PartitionSpec()
    # Unchecked: a checked map would sum the derivatives of arrays that are the same on all devices.
    return jax.shard_map(
        rows, mesh=on, in_specs=(spec, spec, everywhere, everywhere, everywhere), out_specs=spec, check_vma=False
    )(x, cotangents, leaves, scales, x2)
