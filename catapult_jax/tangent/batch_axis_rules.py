"""One rule for each operation of a traced program: on which axis are the examples afterwards?

A rule takes an equation of the program, the states of its operands and the batch size ``b``, and returns the state of
its outputs. It raises :class:`Unfollowed` where it can't tell.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Fixed(NamedTuple):
    """State of an array that depends on no example."""

    varies: frozenset[int]  # axes along which its values may differ


class Placed(NamedTuple):
    """State of an array with the examples on one axis.

    Entry ``(o*b + i)*inner + k`` of this axis depends on example ``i`` alone, and in the same way for every ``i``.
    """

    axis: int  # with the examples
    inner: int  # entries of one example that follow each other on the axis


class Lost(NamedTuple):
    """State of an array that may depend on any example."""

    why: str  # "<operation> <what it does>"
    mixes: bool  # the operation combines the examples: it reduces over them or contracts them
    where: str = ""  # file and line in the user's source

    def __str__(self) -> str:
        return f"{self.why} ({self.where})" if self.where else self.why


def fixed(shape: tuple[int, ...]) -> Fixed:
    """State of an array of this shape that depends on no example, and may vary along all axes.

    Args:
      shape: Of the array.

    Returns:
      The state; an axis of length one can't vary.

    >>> fixed((3, 1))
    Fixed(varies=frozenset({0}))
    """
    return Fixed(frozenset(axis for axis, size in enumerate(shape) if size > 1))


class Unfollowed(Exception):
    """A rule can't follow the examples through an operation. ``mixes``: the operation combines them."""

    def __init__(self, why: str, mixes: bool = False):
        super().__init__(why)
        self.mixes = mixes


_MIXES = Unfollowed("combines the examples of the batch", mixes=True)
_ALONG = Unfollowed("works along the axis of the examples")


# ---- arrays that depend on no example: along which axes do they vary?


def union(states) -> Fixed:
    """State of an array that varies where any of these does.

    Args:
      states: Of arrays that depend on no example.

    Returns:
      The state.

    >>> sorted(union([Fixed(frozenset({0})), Fixed(frozenset({2}))]).varies)
    [0, 2]
    """
    return Fixed(frozenset().union(*(state.varies for state in states)))


def _fixed_broadcast(eqn, states):
    dimensions = eqn.params["broadcast_dimensions"]
    return Fixed(frozenset(dimensions[axis] for axis in states[0].varies))


def _strides(shape) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _fixed_reshape(eqn, states):
    before, after = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if 0 in after:
        return Fixed(frozenset())
    digits = [(_strides(before)[axis], before[axis]) for axis in states[0].varies]

    def may_vary(stride, size):
        """Whether a step along the axis may change a digit ``(place // s) % n`` of the old index."""
        return size > 1 and not all(stride % (s * n) == 0 or s % (stride * size) == 0 for s, n in digits)

    return Fixed(frozenset(axis for axis, digit in enumerate(zip(_strides(after), after, strict=True)) if may_vary(*digit)))


def _fixed_squeeze(eqn, states):
    kept = [axis for axis in range(len(eqn.invars[0].aval.shape)) if axis not in eqn.params["dimensions"]]
    return Fixed(frozenset(kept.index(axis) for axis in states[0].varies if axis in kept))


def _fixed_elementwise(eqn, states):
    return union(states)


def _fixed_reduction(eqn, states):
    axes = eqn.params["axes"]
    return Fixed(frozenset(a - sum(axis < a for axis in axes) for a in union(states).varies if a not in axes))


def _fixed_pad(eqn, states):
    padded = (axis for axis, widths in enumerate(eqn.params["padding_config"]) if any(widths))
    return Fixed(states[0].varies | set(padded))


def _fixed_dot_general(eqn, states):
    """An axis of the product varies where the axis of its factor does."""
    varies = set()
    for i, state in enumerate(states):
        varies |= {axis for a, axis in enumerate(_axes_of_product(eqn, i)) if axis is not None and a in state.varies}
    return Fixed(frozenset(varies))


def _axes_of_product(eqn, i: int) -> list:
    """Axis of the product for each axis of operand ``i`` of ``dot_general``; None: contracted."""
    (contracted, batched), ranks = eqn.params["dimension_numbers"], [len(v.aval.shape) for v in eqn.invars]
    free = [[a for a in range(ranks[j]) if a not in (*contracted[j], *batched[j])] for j in (0, 1)]
    place = {a: n for n, a in enumerate(batched[i])} | {
        a: len(batched[0]) + i * len(free[0]) + n for n, a in enumerate(free[i])
    }
    return [place.get(a) for a in range(ranks[i])]


_CUMULATIVE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")

FIXED_RULES = {
    "dot_general": _fixed_dot_general,
    "concatenate": lambda eqn, states: Fixed(union(states).varies | {eqn.params["dimension"]}),
    **dict.fromkeys([f"reduce_{what}" for what in ("sum", "max", "min", "prod", "and", "or")], _fixed_reduction),
    "broadcast_in_dim": _fixed_broadcast,
    "reshape": _fixed_reshape,
    "squeeze": _fixed_squeeze,
    "transpose": lambda eqn, states: Fixed(frozenset(eqn.params["permutation"].index(a) for a in states[0].varies)),
    **dict.fromkeys(("tile", "slice", "dynamic_slice", "split", "rev"), lambda eqn, states: states[0]),
    **dict.fromkeys(_CUMULATIVE, lambda eqn, states: Fixed(states[0].varies | {eqn.params["axis"]})),
    "pad": _fixed_pad,
    "iota": lambda eqn, states: Fixed(frozenset({eqn.params["dimension"]})),
}


# ---- operations with an operand that depends on the examples


def elementwise(eqn, states, b) -> Placed:
    """The common place of the operands, which have one shape or are scalars. A fixed one must not vary along the examples.

    Args:
      eqn: The operation; not used.
      states: Of the operands.
      b: Batch size; not used.

    Returns:
      The place of the result.

    Raises:
      Unfollowed: Operands have the examples on other axes, or a fixed one varies along them.

    >>> elementwise(None, [Placed(0, 1), Fixed(frozenset({1}))], 2)
    Placed(axis=0, inner=1)
    """
    places = {state for state in states if isinstance(state, Placed)}
    if len(places) > 1:
        raise Unfollowed("meets two arrays with the examples on other axes")
    (place,) = places
    if any(isinstance(state, Fixed) and place.axis in state.varies for state in states):
        raise Unfollowed("meets an array that varies with the place in the batch")
    return place


def _only(states) -> Placed:
    """The place of the first operand. Raises Unfollowed if it does not hold the examples, or another operand does."""
    if not isinstance(states[0], Placed) or any(isinstance(state, Placed) for state in states[1:]):
        raise Unfollowed("takes examples in an operand for which it has no rule")
    return states[0]


def _works_along(axes_of):
    """Rule of an operation that keeps all axes and works along some of them: these must not hold the examples."""

    def rule(eqn, states, b):
        place = _only(states) if len(states) == 1 else elementwise(eqn, states, b)
        if place.axis in axes_of(eqn):
            raise _ALONG
        return place

    return rule


def _cumulative(eqn, states, b):
    if _only(states).axis == eqn.params["axis"]:
        raise _MIXES
    return states[0]


def _reduction(eqn, states, b):
    place = elementwise(eqn, states, b)
    axes = eqn.params["axes"] if "axes" in eqn.params else eqn.params["dimensions"]
    if place.axis in axes:
        raise _MIXES
    return place._replace(axis=place.axis - sum(axis < place.axis for axis in axes))


def _broadcast(eqn, states, b):
    place = _only(states)
    return place._replace(axis=eqn.params["broadcast_dimensions"][place.axis])


def _reshape(eqn, states, b):
    place, shape = _only(states), eqn.outvars[0].aval.shape
    if 0 in shape:
        raise Unfollowed("has no entries")
    stride = (
        place.inner * _strides(eqn.invars[0].aval.shape)[place.axis]
    )  # from one example to the next, in entries of the array
    for axis, (step, size) in enumerate(zip(_strides(shape), shape, strict=True)):
        if size > 1 and stride % step == 0 and (step * size) % (stride * b) == 0:
            return Placed(axis, stride // step)
    raise Unfollowed("spreads the examples over several axes")


def _squeeze(eqn, states, b):
    place = _only(states)
    return place._replace(axis=place.axis - sum(axis < place.axis for axis in eqn.params["dimensions"]))


def _transpose(eqn, states, b):
    place = _only(states)
    return place._replace(axis=eqn.params["permutation"].index(place.axis))


def _concatenate(eqn, states, b):
    place = elementwise(eqn, states, b)
    if place.axis == eqn.params["dimension"]:
        raise _ALONG
    return place


def _pad(eqn, states, b):
    place = _only(states)
    if eqn.params["padding_config"][place.axis] != (0, 0, 0):
        raise _ALONG
    return place


def _slice(eqn, states, b):
    """Rule of fixed and of computed starts: the slice must have the whole axis of the examples."""
    place = _only(states)
    if eqn.invars[0].aval.shape[place.axis] != eqn.outvars[0].aval.shape[place.axis]:
        raise _ALONG
    return place


def _dynamic_update_slice(eqn, states, b):
    operand, update, *starts = states
    if any(isinstance(start, Placed) for start in starts):
        raise Unfollowed("starts at a place that depends on an example")
    place = elementwise(eqn, [operand, update], b)
    if eqn.invars[1].aval.shape[place.axis] != eqn.invars[0].aval.shape[place.axis]:
        raise _ALONG
    return place


def _dot_general(eqn, states, b):
    batched, places = eqn.params["dimension_numbers"][1], set()
    for i, state in enumerate(states):
        if isinstance(state, Fixed):
            continue
        axis, other = _axes_of_product(eqn, i)[state.axis], states[1 - i]
        if axis is None:
            raise _MIXES
        if state.axis in batched[i] and isinstance(other, Fixed) and batched[1 - i][axis] in other.varies:
            raise Unfollowed("meets an array that varies with the place in the batch")
        places.add(state._replace(axis=axis))
    if len(places) > 1:
        raise Unfollowed("pairs the examples of the batch")
    return places.pop()


def _convolution(eqn, states, b):
    numbers, place = eqn.params["dimension_numbers"], _only(states)
    if place.axis != numbers.lhs_spec[0] or eqn.params["batch_group_count"] != 1:
        raise _ALONG
    return place._replace(axis=numbers.out_spec[0])


def _window(eqn, states, b):
    place, p = _only(states[:1]), eqn.params
    if any(isinstance(state, Placed) for state in states[1:]):
        raise Unfollowed("starts from a number that depends on an example")
    sizes = [p[key][place.axis] for key in ("window_dimensions", "window_strides", "base_dilation") if key in p]
    if any(size != 1 for size in sizes) or tuple(p["padding"][place.axis]) != (0, 0):
        raise _ALONG
    return place


def _gather(eqn, states, b):
    numbers, (operand, indices) = eqn.params["dimension_numbers"], states
    rank = len(eqn.outvars[0].aval.shape)
    index_axes = [axis for axis in range(rank) if axis not in numbers.offset_dims]  # of the output, in the order of the indices
    if isinstance(indices, Placed):
        if isinstance(operand, Placed):  # row by row: both have the examples on the same batching axis
            pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
            if (operand.axis, indices.axis) not in pairs or operand.inner != indices.inner:
                raise Unfollowed("takes entries of other examples")
        elif any(
            indices.axis == i and o in operand.varies
            for o, i in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
        ):
            raise Unfollowed("meets an array that varies with the place in the batch")
        return indices._replace(axis=index_axes[indices.axis])
    for o, i in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        if o == operand.axis:
            if i in indices.varies:
                raise Unfollowed("meets an array that varies with the place in the batch")
            return operand._replace(axis=index_axes[i])
    kept = [axis for axis in range(len(eqn.invars[0].aval.shape)) if axis not in numbers.collapsed_slice_dims]
    kept = [axis for axis in kept if axis not in numbers.operand_batching_dims]
    whole = eqn.params["slice_sizes"][operand.axis] == eqn.invars[0].aval.shape[operand.axis]
    if operand.axis not in kept or not whole:
        raise _ALONG
    return operand._replace(axis=numbers.offset_dims[kept.index(operand.axis)])


def _scatter(eqn, states, b):
    """Rule of updates: each example's entries are set by the same example's row of the updates, or at its indices."""
    numbers, (operand, _, updates) = eqn.params["dimension_numbers"], states
    shapes = [v.aval.shape for v in eqn.invars]
    hidden = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    windows = dict(zip([a for a in range(len(shapes[0])) if a not in hidden], numbers.update_window_dims, strict=True))
    rows = [axis for axis in range(len(shapes[2])) if axis not in numbers.update_window_dims]
    batched = dict(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True))
    of_updates = {update: axis for axis, update in windows.items()} | {rows[i]: axis for axis, i in batched.items()}
    if isinstance(operand, Placed):
        place = operand
    elif isinstance(updates, Placed) and updates.axis in of_updates:
        place = updates._replace(axis=of_updates[updates.axis])
    else:
        raise Unfollowed("sets entries at the places of examples")
    if place.axis in batched:
        expected = [place, place._replace(axis=batched[place.axis]), place._replace(axis=rows[batched[place.axis]])]
    elif place.axis in windows and place.axis not in numbers.scatter_dims_to_operand_dims:
        expected = [place, None, place._replace(axis=windows[place.axis])]
        if shapes[0][place.axis] != shapes[2][expected[2].axis]:
            raise _ALONG
    else:
        raise _ALONG
    for state, wanted in zip(states, expected, strict=True):
        if state != wanted and not (isinstance(state, Fixed) and (wanted is None or wanted.axis not in state.varies)):
            raise Unfollowed("sets entries of other examples, or by the place in the batch")
    return place


def _per_matrix(eqn, states, b):
    """Rule of linear algebra: the last two axes are those of one matrix."""
    place = elementwise(eqn, states, b)
    if place.axis >= len(eqn.invars[0].aval.shape) - 2:
        raise _ALONG
    return place


ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clip complex conj
convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag
integer_pow is_finite le le_to lgamma log log1p logistic lt lt_to max min mul name ne neg nextafter not or polygamma pow
population_count pvary real reduce_precision regularized_incomplete_beta rem round rsqrt select_n sharding_constraint shift_left
shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta
""".split()

RULES = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys(_CUMULATIVE, _cumulative),
    **dict.fromkeys(
        [f"reduce_{what}" for what in ("sum", "max", "min", "prod", "and", "or", "xor")] + ["argmax", "argmin"], _reduction
    ),
    **dict.fromkeys(("slice", "dynamic_slice"), _slice),
    **dict.fromkeys(("cholesky", "eigh", "lu", "qr", "householder_product", "svd", "triangular_solve"), _per_matrix),
    **dict.fromkeys([f"reduce_window{what}" for what in ("", "_sum", "_max", "_min")], _window),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "dynamic_update_slice": _dynamic_update_slice,
    "fft": _works_along(lambda eqn: range(len(eqn.invars[0].aval.shape))[-len(eqn.params["fft_lengths"]) :]),
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _works_along(lambda eqn: eqn.params["dimensions"]),
    "sort": _works_along(lambda eqn: (eqn.params["dimension"],)),
    **dict.fromkeys(
        [f"scatter{what}" for what in ("", "_add", "-add", "_sub", "_mul", "_min", "_max")],
        _scatter,
    ),
    "split": _works_along(lambda eqn: (eqn.params["axis"],)),
    "squeeze": _squeeze,
    "tile": _works_along(lambda eqn: [axis for axis, times in enumerate(eqn.params["reps"]) if times > 1]),
    "top_k": _works_along(lambda eqn: (len(eqn.invars[0].aval.shape) - 1,)),
    "transpose": _transpose,
}
FIXED_RULES |= dict.fromkeys(ELEMENTWISE, _fixed_elementwise)
