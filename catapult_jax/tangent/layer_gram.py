"""Inner products of per-example gradients of one weight, in the cheapest of three orders of the sums."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from catapult_jax.xla import HELD_NUMBERS, MOST_STRIPS, PRODUCTS_PER_NUMBER, after

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree


def weight_gram(
    left: tuple[PyTree, Float[Array, "a r p g c"]],
    right: tuple[PyTree, Float[Array, "b r p g c"]],
    rows_of: Callable,
    products: Callable | None = None,
    scale: Float[Array, "..."] | None = None,
    *,
    same: bool = False,
) -> Float[Array, "ar br"]:
    """Inner products ``<J[i, o], J[j, q]>`` of the gradients ``J[i, o] = scale * sum_p rows[i, p] (x) d[i, o, p]``.

    ``p`` is a place where the weight is applied, ``g`` a group of channels. Three orders of the sums give the same
    matrix: gradients first, the inner products of ``d`` first, or last. The shapes decide which one is cheapest.

    Args:
      left: Inputs of ``a`` examples, and ``d``, the derivatives in their pre-activations.
      right: The same for ``b`` examples.
      rows_of: ``rows_of(inputs) -> (n, p, g, m)``. Rows may be larger than inputs, so they are computed where they are
        used.
      products: ``products(inputs, others) -> (a, p, b, p)``, the inner products of the rows where these cost less than
        the rows; it may return None. None: the layer has none.
      scale: Factors of the entries of the weight. None: ones.
      same: Left and right are the same examples.

    Returns:
      ``(a*r, b*r)``, example-major.

    Source: the chain rule; the orders are those of a product of three matrices.

    >>> h, d = jnp.array([1.0, 2.0]).reshape(2, 1, 1, 1), jnp.ones((2, 1, 1, 1, 3))
    >>> weight_gram((h, d), (h, d), lambda h: h).tolist()  # (h h^T) * (d d^T)
    [[3.0, 6.0], [6.0, 12.0]]
    """
    (inputs, d), (other_inputs, other_d) = left, right
    a, p, g, m = jax.eval_shape(rows_of, inputs).shape
    b, r, c = len(other_d), d.shape[1], d.shape[4]
    if p == g == 1 and scale is None:  # (H H^T) * (D D^T)
        inner = rows_of(inputs).reshape(a, m) @ rows_of(other_inputs).reshape(b, m).T
        outer = d.reshape(a * r, c) @ other_d.reshape(b * r, c).T
        return (inner[:, None, :, None] * outer.reshape(a, r, b, r)).reshape(a * r, b * r)
    costs = order_costs(a, b, r, (p, g, m, c), same=same)
    if scale is not None or costs[0] <= min(costs[1:]):
        J = partial(_gradients, rows_of)
        return gram_of_gradients((inputs, d), (other_inputs, other_d), J, scale, p * g * m, same=same)
    is_first = costs[1] <= costs[2]
    pairs = partial(_by_pairs, rows_of=rows_of, products=products, outer_first=is_first)
    if not same:
        return pairs(left, right).reshape(a * r, b * r)
    numbers = a * b * p * g * (p * r * r if is_first else max(p, r * c))
    strips = min(max(4, math.ceil(numbers / HELD_NUMBERS)), MOST_STRIPS)
    return _symmetric_in_strips(pairs, left, strips).reshape(b * r, b * r)


def _symmetric_in_strips(pairs: Callable, examples, strips: int):
    """``pairs(examples, examples)``, which is symmetric, in strips from the diagonal on. Four are 10/16 of the work."""
    _, d = examples
    b, r = d.shape[:2]
    upper, edges = jnp.zeros((b, r, b, r), d.dtype), [b * s // strips for s in range(strips + 1)]
    strip = upper
    for first, last in itertools.pairwise(edges):
        if first < last:
            pieces = [jax.tree.map(lambda v, i=i: v[i], examples) for i in (slice(first, last), slice(first, None))]
            strip = pairs(*after(strip, pieces))  # one strip after the other, in the same memory
            upper = upper.at[first:last, :, first:].set(strip)
    strip_of = np.searchsorted(edges, np.arange(b), "right")
    below = strip_of[:, None] > strip_of
    return jnp.where(below[:, None, :, None], upper.transpose(2, 3, 0, 1), upper)


def _gradients(rows_of: Callable, inputs, d):
    return example_gradients(rows_of(inputs), d)


def order_costs(a: int, b: int, r: int, layer: tuple[int, int, int, int], *, same: bool) -> tuple[float, float, float]:
    """Cost of the inner products of the gradients of a layer, in multiplications.

    Args:
      a, b: Examples on the left and on the right.
      r: Combinations of the outputs of an example.
      layer: ``(p, g, m, c)``, as in :class:`catapult_jax.tangent.layers.Layer`.
      same: Left and right are the same examples.

    Returns:
      With the gradients first, the inner products of ``d`` first, and last.

    >>> order_costs(2, 2, 1, (1, 1, 3, 5), same=True)
    (7770, 1056, 5172)
    """
    p, g, m, c = layer
    by_gradients = r * g * m * c * ((a + (not same) * b) * (p + PRODUCTS_PER_NUMBER) + a * b * r)
    outer_first = a * b * p * p * g * (m + r * r * (c + PRODUCTS_PER_NUMBER))
    outer_last = a * b * p * g * (p * m + p * r * c + r * r * c + PRODUCTS_PER_NUMBER * r * c)
    return by_gradients, outer_first, outer_last


def example_gradients(rows: Float[Array, "n p g m"], d: Float[Array, "n r p g c"]) -> Float[Array, "n r g m c"]:
    """Gradients ``sum_p rows[i, p] (x) d[i, o, p]`` of each example.

    Args:
      rows: ``(n, p, g, m)``.
      d: ``(n, r, p, g, c)``.

    Returns:
      ``(n, r, g, m, c)``.

    >>> example_gradients(jnp.array([[[[1.0, 2.0]]]]), jnp.array([[[[[3.0]]]]])).tolist()
    [[[[[3.0], [6.0]]]]]
    """
    r = d.shape[1]
    d = jnp.moveaxis(d, 1, -2)
    d = d.reshape(*d.shape[:3], -1)  # (n, p, g, r*c)
    J = lax.dot_general(rows, d, (((1,), (1,)), ((0, 2), (0, 2))))  # (n, g, m, r*c)
    return jnp.moveaxis(J.reshape(*J.shape[:3], r, -1), 3, 1)


def gram_of_gradients(
    left: tuple[PyTree, PyTree],
    right: tuple[PyTree, PyTree],
    gradients: Callable,
    scale: Float[Array, "m g c"] | None,
    row_numbers: int,
    *,
    same: bool,
) -> Float[Array, "ar br"]:
    """Per-example gradients first, then their inner products. Memory bounds the output channels and examples at a time.

    Args:
      left: What the gradients of ``a`` examples are made of: arrays that every output channel needs, and arrays that have the output
        channels on their last axis. The first axis of both is that of the examples.
      right: The same for ``b`` examples.
      gradients: ``gradients(*left) -> (a, r, g, m, c)``; with some of the channels, the gradients in those.
      scale: Factors of the entries of the weight. None: ones.
      row_numbers: Numbers that the gradients of one example need on the way.
      same: Left and right are the same examples.

    Returns:
      ``(a*r, b*r)``, example-major.

    >>> outer, ones = lambda h, d: (h[:, :, None] * d[:, None])[:, None, None], (jnp.ones((2, 3)), jnp.ones((2, 5)))
    >>> gram_of_gradients(ones, ones, outer, None, 0, same=True).tolist()
    [[15.0, 15.0], [15.0, 15.0]]
    """
    J = jax.eval_shape(gradients, *left)
    (a, r, g, m, c), b = J.shape, len(jax.tree.leaves(right[1])[0])
    least = max(1, math.ceil(max(a, b) * r * g * m * c / HELD_NUMBERS))
    slices = next(s for s in range(min(least, c), c + 1) if c % s == 0)
    cut = lambda v: jnp.moveaxis(v.reshape(*v.shape[:-1], slices, c // slices), -2, 0)

    def scaled(whole, piece, scale):
        n, at_a_time = len(jax.tree.leaves(piece)[0]), max(1, HELD_NUMBERS // max(1, row_numbers))
        if at_a_time < n:
            add_axis = lambda example: jax.tree.map(lambda v: v[None], example)
            J = lax.map(lambda example: gradients(*add_axis(example))[0], (whole, piece), batch_size=at_a_time)
        else:
            J = gradients(whole, piece)
        J = J if scale is None else J * scale[None, None]
        return J.reshape(n * r, -1)

    def add_slice(total, pieces):
        piece, other, scale = pieces
        J = scaled(left[0], piece, scale)
        return total + J @ (J if same else scaled(right[0], other, scale)).T, None

    zero = jnp.zeros((a * r, b * r), J.dtype)
    of_weight = None if scale is None else cut(jnp.moveaxis(scale, 1, 0))
    pieces = (jax.tree.map(cut, left[1]), jax.tree.map(cut, right[1]), of_weight)
    if slices == 1:
        return add_slice(zero, jax.tree.map(lambda piece: piece[0], pieces))[0]
    return lax.scan(add_slice, zero, pieces)[0]


def _by_pairs(left, right, *, rows_of, products, outer_first: bool):
    """``sum_pq <rows[i, p], rows[j, q]> <d[i, o, p], d[j, r, q]>``.

    ``outer_first``: both inner products are computed before the sums over places. Otherwise the sum over ``q`` comes
    before the inner product of ``d``.
    """
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
