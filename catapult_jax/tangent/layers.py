"""Equations that are linear in a weight: how their inputs enter, and where the derivatives of their outputs belong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


class Layer(NamedTuple):
    """A weight applied at ``p`` places, in ``g`` groups of ``m`` inputs and ``c`` outputs.

    Its gradient for one example is ``J[m, g, c] = sum_p rows[p, g, m] d[p, g, c]``, with ``d`` the derivatives in the outputs.
    """

    rows: Callable  # inputs (b, ...) -> (b, p, g, m)
    by_place: Callable  # derivatives (b, r, *output) -> (b, r, p, g, c)
    weights: Callable  # weight -> (m, g, c)
    layout: str  # tells from another order of the entries
    # (a, ...), (b, ...) -> (a, p, b, p): inner products of the rows, where these cost less than the rows; or None
    products: Callable | None = None
    # (a, ...), (b, r, q, 1, m) -> (a, p, b, r, q): inner products of the rows with vectors, where these cost less than the rows
    along: Callable | None = None


def _product(eqn, i: int) -> Layer:
    """``dot_general``; operand ``i`` is the weight. Batch dimensions are groups, free dimensions of the inputs are places."""
    contracting, batch = eqn.params["dimension_numbers"]
    shapes = [atom.aval.shape for atom in eqn.invars]
    free = [[a for a in range(len(shapes[k])) if a not in (*contracting[k], *batch[k])] for k in (0, 1)]
    size = lambda k, axes: math.prod(shapes[k][a] for a in axes)
    p, g, m, c = size(1 - i, free[1 - i]), size(i, batch[i]), size(i, contracting[i]), size(i, free[i])
    order = (*free[1 - i], *batch[1 - i], *contracting[1 - i])
    # The axes of the outputs are the batch dimensions, the free ones of the left operand, and those of the right one.
    numbers = np.split(np.arange(eqn.outvars[0].aval.ndim), np.cumsum([len(batch[0]), len(free[0])]))
    places, outputs = (numbers[2], numbers[1]) if i == 0 else (numbers[1], numbers[2])

    def rows(h):
        return jnp.transpose(h, (0, *(a + 1 for a in order))).reshape(len(h), p, g, m)

    def by_place(d):
        d = jnp.transpose(d, (0, 1, *(int(a) + 2 for a in (*places, *numbers[0], *outputs))))
        return d.reshape(*d.shape[:2], p, g, c)

    def weights(w):
        return jnp.transpose(w, (*contracting[i], *batch[i], *free[i])).reshape(m, g, c)

    return Layer(rows, by_place, weights, f"product {contracting[i]} {batch[i]}")


def _lookup(eqn, i: int) -> Layer | None:
    """``gather`` of whole rows of a table, operand 0. An index outside of the table takes no row, unless it is clipped."""
    numbers, mode = eqn.params["dimension_numbers"], eqn.params["mode"]
    table, ids = (atom.aval for atom in eqn.invars)
    is_rows = numbers.collapsed_slice_dims == numbers.start_index_map == (0,) and not numbers.operand_batching_dims
    if i != 0 or not is_rows or tuple(eqn.params["slice_sizes"]) != (1, *table.shape[1:]):
        return None
    size, p, c = table.shape[0], math.prod(ids.shape[:-1]), math.prod(table.shape[1:])
    rest = [a for a in range(eqn.outvars[0].aval.ndim) if a not in numbers.offset_dims]

    def places(ids):
        ids = ids.reshape(len(ids), p)
        return jnp.clip(ids, 0, size - 1) if mode == lax.GatherScatterMode.CLIP else ids

    def rows(ids):
        return jax.nn.one_hot(places(ids)[:, :, None], size, dtype=table.dtype)

    def products(ids, others):
        ids, others = places(ids), places(others)
        same = (ids[:, :, None, None] == others) & ((ids >= 0) & (ids < size))[:, :, None, None]
        return same.astype(table.dtype)

    def along(ids, vectors):
        ids, of_id = places(ids), jnp.moveaxis(vectors[..., 0, :], -1, 0)
        is_inside = ((ids >= 0) & (ids < size))[:, :, None, None, None]
        return jnp.where(is_inside, of_id[jnp.clip(ids, 0, size - 1)], 0)

    def by_place(d):
        d = jnp.transpose(d, (0, 1, *(a + 2 for a in (*rest, *numbers.offset_dims))))
        return d.reshape(*d.shape[:2], p, 1, c)

    return Layer(rows, by_place, lambda w: w.reshape(size, 1, c), "lookup", products, along)


def _convolution(eqn, i: int) -> Layer | None:
    """``conv_general_dilated``; operand 1 is the kernel. A place is a window of the images."""
    p = eqn.params
    if i != 1 or p["batch_group_count"] != 1:
        return None
    of_images, of_kernel, of_outputs = p["dimension_numbers"]
    strides, dilation, input_dilation, groups = (
        p[name] for name in ("window_strides", "rhs_dilation", "lhs_dilation", "feature_group_count")
    )
    size = [eqn.invars[1].aval.shape[a] for a in of_kernel[2:]]
    images, _, *space = (eqn.invars[0].aval.shape[a] for a in of_images)
    channels = eqn.invars[0].aval.shape[of_images[1]]
    outputs = eqn.outvars[0].aval.shape[of_outputs[1]] // groups
    edges = [(lo, hi, d - 1) for (lo, hi), d in zip(p["padding"], input_dilation, strict=True)]
    padded = [lo + (n - 1) * d + 1 + hi for (lo, hi), n, d in zip(p["padding"], space, input_dilation, strict=True)]
    counts = [(n - (k - 1) * d - 1) // s + 1 for n, k, d, s in zip(padded, size, dilation, strides, strict=True)]
    starts = [[o * d for o, d in zip(offset, dilation, strict=True)] for offset in np.ndindex(*size)]
    stops = [[a + (n - 1) * s + 1 for a, n, s in zip(start, counts, strides, strict=True)] for start in starts]
    slices, windows = list(zip(starts, stops, strict=True)), math.prod(counts)

    def channels_last(h):  # (b, *images) -> (b * images, *space, channels)
        h = jnp.transpose(h, (0, of_images[0] + 1, *(a + 1 for a in of_images[2:]), of_images[1] + 1))
        return h.reshape(-1, *space, channels)

    def rows(h):
        b = len(h)
        h = channels_last(h)
        h = lax.pad(h, jnp.zeros((), h.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
        # Slices, because XLA extracts patches by a convolution, which is slower.
        places = [lax.slice(h, (0, *start, 0), (len(h), *stop, channels), (1, *strides, 1)) for start, stop in slices]
        patches = jnp.stack(places, axis=-2)  # (images, *counts, places, channels)
        patches = patches.reshape(*patches.shape[:-1], groups, channels // groups)
        patches = jnp.moveaxis(patches, -2, -3)
        return patches.reshape(b, images * windows, groups, len(slices) * channels // groups)

    def products(h, other):
        """Inner products of patches, as sums over the window of inner products of pixels, which overlapping patches share."""
        a, b, pixels = len(h), len(other), math.prod(space)
        if groups > 1 or images > 1 or pixels**2 >= windows**2 * len(slices) // 2:
            return None
        gram = channels_last(h).reshape(a * pixels, channels) @ channels_last(other).reshape(b * pixels, channels).T
        gram = lax.pad(gram.reshape(a, *space, b, *space), jnp.zeros((), h.dtype), [(0, 0, 0), *edges, (0, 0, 0), *edges])
        steps = (1, *strides, 1, *strides)
        terms = (lax.slice(gram, (0, *start, 0, *start), (a, *stop, b, *stop), steps) for start, stop in slices)
        return sum(terms, jnp.zeros((), gram.dtype)).reshape(a, windows, b, windows)

    def by_place(d):
        d = jnp.transpose(d, (0, 1, *(a + 2 for a in (of_outputs[0], *of_outputs[2:], of_outputs[1]))))
        return d.reshape(*d.shape[:2], images * windows, groups, outputs)

    def weights(w):
        w = jnp.transpose(w, (*of_kernel[2:], of_kernel[1], of_kernel[0]))
        return w.reshape(len(slices) * channels // groups, groups, outputs)

    return Layer(rows, by_place, weights, f"convolution {of_kernel} {groups}", products)


def over_steps(layer: Layer, steps: int, *, is_stacked: bool) -> Layer:
    """A layer in the body of a scan, over all its steps.

    Args:
      layer: Of one step.
      steps: Of the scan.
      is_stacked: Each step has a weight of its own, on the first axis of the weight: steps are groups. Otherwise the weight is the same
        at every step: steps are places.

    Returns:
      The layer; its inputs and its derivatives have the steps on the axis before those of one step.

    >>> one = Layer(lambda h: h[:, None, None], lambda d: d[:, :, None, None], lambda w: w[:, None], "")
    >>> [over_steps(one, 3, is_stacked=stacked).rows(jnp.ones((2, 3, 5))).shape for stacked in (False, True)]
    [(2, 3, 1, 5), (2, 1, 3, 5)]
    """

    def merged(v, places: int):
        """``(b, steps, ...)`` with the steps merged into the axis of the places, or into the next one, of the groups."""
        axis = places + is_stacked
        v = jnp.moveaxis(v, 1, axis)
        return v.reshape(*v.shape[:axis], -1, *v.shape[axis + 2 :])

    def rows(h):
        of_step = layer.rows(h.reshape(-1, *h.shape[2:]))
        return merged(of_step.reshape(len(h), steps, *of_step.shape[1:]), 1)

    def by_place(d):
        d = jnp.moveaxis(d, 2, 1)
        of_step = layer.by_place(d.reshape(-1, *d.shape[2:]))
        return merged(of_step.reshape(*d.shape[:2], *of_step.shape[1:]), 2)

    def weights(w):
        if not is_stacked:
            return layer.weights(w)
        w = jnp.moveaxis(jax.vmap(layer.weights)(w), 0, 1)  # (m, steps, g, c)
        return w.reshape(len(w), -1, w.shape[3])

    return Layer(rows, by_place, weights, layer.layout)


# Name of an operation -> its rule: (equation, number of the operand that is the weight) -> Layer, or None if it is none.
RULES = {"dot_general": _product, "gather": _lookup, "conv_general_dilated": _convolution}
