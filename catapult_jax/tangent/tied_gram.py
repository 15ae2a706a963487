"""Inner products of per-example gradients of one weight with several uses, some of which read the weight transposed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from catapult_jax.tangent.layer_gram import example_gradients, gram_of_gradients, order_costs, weight_gram
from catapult_jax.xla import HELD_NUMBERS, ORDERED_NUMBERS, PRODUCTS_PER_NUMBER, after

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree

    from catapult_jax.tangent.uses import Use


class Rows(NamedTuple):
    """How the inputs of all uses of a weight in one order of its entries enter it."""

    of: Callable  # inputs -> (n, p, g, m)
    products: Callable | None  # see :func:`catapult_jax.tangent.layer_gram.weight_gram`
    along: Callable  # inputs, vectors (b, r, q, g, m) -> (a, p, g, b, r, q): inner products of the rows with the vectors
    is_read: bool  # ``along`` reads the vectors at an index, and multiplies nothing


def rows_of_uses(uses: Sequence[Use], dtype) -> Rows:
    """The rows of uses of one weight in one order of its entries, place after place.

    Args:
      uses: Their inputs come as a list.
      dtype: Of the rows.

    Returns:
      The rows.
    """

    def of(inputs):
        return jnp.concatenate([use.layer.rows(h).astype(dtype) for use, h in zip(uses, inputs, strict=True)], 1)

    def along(inputs, vectors):
        return jnp.concatenate([_along(use, h, vectors) for use, h in zip(uses, inputs, strict=True)], 1)

    return Rows(of, _row_products(uses, dtype), along, all(use.layer.along is not None for use in uses))


def _along(use: Use, h, vectors):
    """Inner products ``(a, p, g, b, r, q)`` of the rows of one use with vectors ``(b, r, q, g, m)``."""
    if use.layer.along is not None:
        return use.layer.along(h, vectors)[:, :, None]
    return jnp.einsum("ipgm,jsqgm->ipgjsq", use.layer.rows(h).astype(vectors.dtype), vectors)


def _row_products(uses: Sequence[Use], dtype) -> Callable | None:
    """Cheap inner products of rows, if the layer has them and the weight has one use: there are none between two uses."""
    if len(uses) > 1 or (products := uses[0].layer.products) is None:
        return None
    floating = lambda h: h.astype(dtype) if jnp.issubdtype(h.dtype, jnp.floating) else h
    return lambda inputs, others: products(floating(inputs[0]), floating(others[0]))


def tied_gram(
    left: Sequence[tuple[PyTree, Float[Array, "a r p g c"]]],
    right: Sequence[tuple[PyTree, Float[Array, "b r p g c"]]],
    rows: Sequence[Rows],
    scale: Float[Array, "m g c"] | None = None,
    *,
    same: bool = False,
) -> Float[Array, "ar br"]:
    """Inner products of gradients ``J[i, o] = scale * (sum_p rows[i, p] (x) d[i, o, p] + sum_q e[i, o, q] (x) others[i, q])``.

    The second sum is over the places where the weight is read transposed: ``others`` are the rows there, ``e`` the derivatives. Without
    a scale, the matrix is that of each sum alone, and ``sum_pq <rows[i, p], e[j, s, q]> <d[i, o, p], others[j, q]>`` with its transpose.
    The shapes decide whether this is cheaper than the gradients.

    Args:
      left: Inputs of ``a`` examples, and derivatives in the pre-activations: of the uses that read the weight as it is, and of those that
        read it transposed.
      right: The same for ``b`` examples.
      rows: Of both.
      scale: Factors of the entries of the weight as it is. None: ones.
      same: Left and right are the same examples.

    Returns:
      ``(a*r, b*r)``, example-major.

    Source: the chain rule.

    >>> of, along = lambda h: h, lambda h, v: jnp.einsum("ipgm,jsqgm->ipgjsq", h, v)
    >>> rows, h, d = Rows(of, None, along, False), jnp.full((1, 1, 1, 1), 2.0), jnp.full((1, 1, 1, 1, 1), 3.0)
    >>> tied_gram([(h, d), (h, d)], [(h, d), (h, d)], [rows, rows]).tolist()  # (2 * 3 + 3 * 2)^2
    [[144.0]]
    """
    (inputs, d), (_, e) = left
    a, p, g, m = jax.eval_shape(rows[0].of, inputs).shape
    b, r, c, q = len(right[0][1]), d.shape[1], d.shape[4], e.shape[2]
    costs = [order_costs(a, b, r, layer, same=same) for layer in ((p, g, m, c), (q, g, c, m))]
    products = (not rows[0].is_read) * m + (not rows[1].is_read) * c
    across = (2 - same) * a * b * p * q * g * r * (products + r + 2 * PRODUCTS_PER_NUMBER)
    gradients = r * g * m * c * ((a + (not same) * b) * (p + q + 2 * PRODUCTS_PER_NUMBER) + a * b * r)
    if scale is not None or gradients <= across + sum(min(cost) for cost in costs):
        return _by_gradients(left, right, rows, scale, same=same)
    total = jnp.zeros((a * r, b * r), d.dtype)
    # One term after the other, in the same memory.
    later = lambda tree: after(total, tree) if total.size > ORDERED_NUMBERS else tree
    for k, each in enumerate(rows):
        first = later(left[k])
        total += weight_gram(first, first if same else right[k], each.of, each.products, same=same)
    mixed = _across(later(left[0]), right[1], *rows)
    if same:
        return total + mixed + mixed.T
    total += mixed
    return total + _across(later(right[0]), left[1], *rows).T


def _by_gradients(left, right, rows: Sequence[Rows], scale, *, same: bool):
    """The gradients of all uses, summed, then their inner products."""
    straight, turned = rows

    def parts(side):  # the output channels of the weight as it is are the inputs of the transposed one
        (inputs, d), (others, e) = side
        return (inputs, e), (d, turned.of(others))

    def gradients(whole, piece):
        (inputs, e), (d, others) = whole, piece
        return example_gradients(straight.of(inputs), d) + jnp.einsum("irqgm,iqgc->irgmc", e, others)

    row_numbers = math.prod(jax.eval_shape(straight.of, left[0][0]).shape[1:])
    return gram_of_gradients(parts(left), parts(right), gradients, scale, row_numbers, same=same)


def _across(left, right, straight: Rows, turned: Rows):
    """``sum_pq <rows[i, p], e[j, s, q]> <d[i, o, p], others[j, q]>``, for so many examples on the left at a time as memory allows."""
    others, e = right
    (_, d), b = left, len(e)
    numbers = b * d.shape[1] * d.shape[2] * e.shape[2] * d.shape[3]

    def of_examples(inputs, d):
        along_e = straight.along(inputs, e)  # (i, p, g, j, s, q)
        along_d = turned.along(others, d)  # (j, q, g, i, o, p)
        return jnp.einsum("ipgjsq,jqgiop->iojs", along_e, along_d)

    at_a_time = max(1, HELD_NUMBERS // max(1, numbers))
    if at_a_time < len(d):
        add_axis = lambda example: jax.tree.map(lambda v: v[None], example)
        mixed = lax.map(lambda example: of_examples(*add_axis(example))[0], left, batch_size=at_a_time)
    else:
        mixed = of_examples(*left)
    return mixed.reshape(len(d) * d.shape[1], -1)
