"""Follows the axis of the examples through a traced program: does each output row depend on one example alone?"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.extend
import numpy as np
from jax.extend import source_info_util

from catapult_jax.xla import INSPECTED_NUMBERS

Jaxpr, ClosedJaxpr, Literal = jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr, jax.extend.core.Literal


class Fixed(NamedTuple):
    """An array that depends on no example."""

    varies: frozenset[int]  # axes along which its values may differ


class Placed(NamedTuple):
    """Entry ``(o*b + i)*inner + k`` of this axis depends on example ``i`` alone, and in the same way for every ``i``."""

    axis: int
    inner: int


class Lost(NamedTuple):
    """It is not known on which examples the array depends."""

    why: str
    mixes: bool  # examples are combined: reduced over, or contracted
    where: str = ""  # in the user's source

    def __str__(self) -> str:
        return f"{self.why} ({self.where})" if self.where else self.why


def follow(closed: ClosedJaxpr, x: int, b: int) -> Lost | None:
    """None where every output row ``i`` of the program is the same function of example ``i``; otherwise what stands against it.

    Each primitive has a rule for the axis of the examples. It may be moved, or folded with other axes by a reshape. A rule that
    is missing, and an array that varies with the place in the batch, give ``Lost``; None is a proof.

    Args:
      closed: a program with one output, of shape ``(b, ...)``.
      x: index of the input whose first axis is that of the examples.
      b: number of examples, at least 2.
    """
    inputs = [Placed(0, 1) if i == x else _fixed(v.aval.shape) for i, v in enumerate(closed.jaxpr.invars)]
    (state,) = _run(closed.jaxpr, [_constant(c) for c in closed.consts], inputs, b)
    if isinstance(state, Lost):
        return state
    if isinstance(state, Fixed):
        return None if 0 not in state.varies else Lost("the outputs do not depend on the examples, but on their place", False)
    return None if state == Placed(0, 1) else Lost("the first axis of the outputs is not that of the examples", False)


def same_program(one: ClosedJaxpr, other: ClosedJaxpr, b: int, c: int) -> bool:
    """The programs for ``b`` and for ``c`` examples do the same operations, with the same numbers, in the same order."""
    return _same(one, other, b, c, scaled=False)


# Parameters that may be multiples of the batch size. Where the function depends on one, two examples and one give other outputs.
_SIZES = {"shape", "new_sizes", "sizes", "slice_sizes", "limit_indices", "length", "reps"}


def _same(u, v, b: int, c: int, scaled: bool) -> bool:
    if isinstance(u, (ClosedJaxpr, Jaxpr)):  # one class since JAX 0.11.2; before, the second has no consts
        if not isinstance(v, type(u)) or not _same(getattr(u, "consts", ()), getattr(v, "consts", ()), b, c, False):
            return False
        return _same_equations(getattr(u, "jaxpr", u), getattr(v, "jaxpr", v), b, c)
    if isinstance(u, dict):
        return u.keys() == v.keys() and all(_same(u[key], v[key], b, c, key in _SIZES) for key in u)
    if isinstance(u, (tuple, list)):
        return len(u) == len(v) and all(_same(s, t, b, c, scaled) for s, t in zip(u, v, strict=True))
    if isinstance(u, jax.core.Tracer) or isinstance(v, jax.core.Tracer):
        return u is v
    if isinstance(u, (np.ndarray, np.generic, jax.Array)):
        if jax.dtypes.issubdtype(u.dtype, jax.dtypes.prng_key):
            u, v = jax.random.key_data(u), jax.random.key_data(v)
        return np.shape(u) == np.shape(v) and bool(np.array_equal(np.asarray(u), np.asarray(v), equal_nan=u.dtype.kind == "f"))
    if isinstance(u, (int, float, complex, str, bool, type(None))):
        return u == v or (u != u and v != v) or (scaled and isinstance(u, int) and isinstance(v, int) and u * c == v * b)
    return True  # functions and shardings


def _same_equations(u: Jaxpr, v: Jaxpr, b: int, c: int) -> bool:
    equations = _read(u), _read(v)
    if len(equations[0]) != len(equations[1]):
        return False
    partner = dict(zip([*u.constvars, *u.invars], [*v.constvars, *v.invars], strict=True))

    def same_atom(s, t):
        if isinstance(s, Literal) or isinstance(t, Literal):
            return isinstance(s, Literal) and isinstance(t, Literal) and _same(s.val, t.val, b, c, False)
        return partner.get(s) is t

    for s, t in zip(*equations, strict=True):
        if s.primitive is not t.primitive or len(s.invars) != len(t.invars) or not all(map(same_atom, s.invars, t.invars)):
            return False
        if not _same(s.params, t.params, b, c, False):
            return False
        partner |= dict(zip(s.outvars, t.outvars, strict=True))
    return all(map(same_atom, u.outvars, v.outvars))


def _read(jaxpr: Jaxpr) -> list:
    """The equations that the outputs depend on."""
    wanted, equations = {v for v in jaxpr.outvars if not isinstance(v, Literal)}, []
    for eqn in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(eqn.outvars):
            equations.append(eqn)
            wanted |= {v for v in eqn.invars if not isinstance(v, Literal)}
    return equations[::-1]


def _fixed(shape) -> Fixed:
    return Fixed(frozenset(axis for axis, size in enumerate(shape) if size > 1))


def _constant(value) -> Fixed:
    """Axes along which an array that the function closes over varies, by its values where they are there."""
    varies = _fixed(np.shape(value)).varies
    is_key = jax.dtypes.issubdtype(getattr(value, "dtype", np.dtype(float)), jax.dtypes.prng_key)
    if isinstance(value, jax.core.Tracer) or is_key or np.size(value) > INSPECTED_NUMBERS:
        return Fixed(varies)
    array = np.asarray(value)
    return Fixed(frozenset(a for a in varies if not (array == array.take([0], a)).all()))


def _run(jaxpr: Jaxpr, consts: list, inputs: list, b: int) -> list:
    states = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))
    of = lambda atom: Fixed(frozenset()) if isinstance(atom, Literal) else states[atom]
    for eqn in jaxpr.eqns:
        outputs = _step(eqn, [of(v) for v in eqn.invars], b)
        states |= dict(zip(eqn.outvars, outputs, strict=True))
    return [of(v) for v in jaxpr.outvars]


def _step(eqn, states: list, b: int) -> list:
    """States of the outputs of one operation."""
    name = eqn.primitive.name
    lost = next((state for state in states if isinstance(state, Lost)), None)
    if lost is not None and name not in _CALLS:  # of a call, some outputs may not depend on it
        return [lost] * len(eqn.outvars)
    try:
        if name in _CALLS or name in _LOOPS:
            outputs, where = (_CALLS | _LOOPS)[name](eqn, states, b), source_info_util.summarize(eqn.source_info)
            return [s._replace(where=where) if isinstance(s, Lost) and not s.where else s for s in outputs]
        rule = _RULES.get(name)
        if not any(isinstance(state, Placed) for state in states):
            fixed = _FIXED_RULES[name](eqn, states) if name in _FIXED_RULES else None
            return [_fixed(v.aval.shape) if fixed is None else fixed for v in eqn.outvars]
        if rule is None:
            raise _Unfollowed("has no rule")
        state = rule(eqn, states, b)
    except _Unfollowed as error:
        state = Lost(f"{name} {error}", error.mixes, source_info_util.summarize(eqn.source_info))
    return [state] * len(eqn.outvars)


class _Unfollowed(Exception):
    def __init__(self, why: str, mixes: bool = False):
        super().__init__(why)
        self.mixes = mixes


_MIXES = _Unfollowed("combines the examples of the batch", mixes=True)
_ALONG = _Unfollowed("works along the axis of the examples")


# ---- rules for arrays that depend on no example: along which axes they vary


def _union(states) -> Fixed:
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
        """Not where a step along the axis leaves every digit ``(place // s) % n`` of the old index as it is."""
        return size > 1 and not all(stride % (s * n) == 0 or s % (stride * size) == 0 for s, n in digits)

    return Fixed(frozenset(axis for axis, digit in enumerate(zip(_strides(after), after, strict=True)) if may_vary(*digit)))


def _fixed_squeeze(eqn, states):
    kept = [axis for axis in range(len(eqn.invars[0].aval.shape)) if axis not in eqn.params["dimensions"]]
    return Fixed(frozenset(kept.index(axis) for axis in states[0].varies if axis in kept))


def _fixed_elementwise(eqn, states):
    return _union(states)


def _fixed_reduction(eqn, states):
    axes = eqn.params["axes"]
    return Fixed(frozenset(a - sum(axis < a for axis in axes) for a in _union(states).varies if a not in axes))


def _fixed_dot_general(eqn, states):
    """An axis of the product varies where that of its factor does."""
    varies = set()
    for i, state in enumerate(states):
        varies |= {axis for a, axis in enumerate(_axes_of_product(eqn, i)) if axis is not None and a in state.varies}
    return Fixed(frozenset(varies))


def _axes_of_product(eqn, i: int) -> list:
    """Where the axes of an operand of ``dot_general`` are in the product; None: contracted."""
    (contracted, batched), ranks = eqn.params["dimension_numbers"], [len(v.aval.shape) for v in eqn.invars]
    free = [[a for a in range(ranks[j]) if a not in (*contracted[j], *batched[j])] for j in (0, 1)]
    place = {a: n for n, a in enumerate(batched[i])} | {
        a: len(batched[0]) + i * len(free[0]) + n for n, a in enumerate(free[i])
    }
    return [place.get(a) for a in range(ranks[i])]


_FIXED_RULES = {
    "dot_general": _fixed_dot_general,
    "concatenate": lambda eqn, states: Fixed(_union(states).varies | {eqn.params["dimension"]}),
    **dict.fromkeys([f"reduce_{what}" for what in ("sum", "max", "min", "prod", "and", "or")], _fixed_reduction),
    "broadcast_in_dim": _fixed_broadcast,
    "reshape": _fixed_reshape,
    "squeeze": _fixed_squeeze,
    "transpose": lambda eqn, states: Fixed(frozenset(eqn.params["permutation"].index(a) for a in states[0].varies)),
    "tile": lambda eqn, states: states[0],
    "iota": lambda eqn, states: Fixed(frozenset({eqn.params["dimension"]})),
}


# ---- rules for arrays of which one at least depends on the examples


def _elementwise(eqn, states, b):
    """All arrays have one shape, or are scalars; those without examples must not vary along the axis of the examples."""
    places = {state for state in states if isinstance(state, Placed)}
    if len(places) > 1:
        raise _Unfollowed("meets two arrays with the examples on other axes")
    (place,) = places
    if any(isinstance(state, Fixed) and place.axis in state.varies for state in states):
        raise _Unfollowed("meets an array that varies with the place in the batch")
    return place


def _only(states) -> Placed:
    """The place of the first operand, where the others depend on no example."""
    if not isinstance(states[0], Placed) or any(isinstance(state, Placed) for state in states[1:]):
        raise _Unfollowed("takes examples in an operand for which it has no rule")
    return states[0]


def _untouched(axes_of):
    """An operation that keeps all axes, and must not work along that of the examples."""

    def rule(eqn, states, b):
        place = _only(states) if len(states) == 1 else _elementwise(eqn, states, b)
        if place.axis in axes_of(eqn):
            raise _ALONG
        return place

    return rule


def _cumulative(eqn, states, b):
    if _only(states).axis == eqn.params["axis"]:
        raise _MIXES
    return states[0]


def _reduction(eqn, states, b):
    place = _elementwise(eqn, states, b)
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
        raise _Unfollowed("has no entries")
    stride = place.inner * _strides(eqn.invars[0].aval.shape)[place.axis]  # of the examples, among all entries
    for axis, (step, size) in enumerate(zip(_strides(shape), shape, strict=True)):
        if size > 1 and stride % step == 0 and (step * size) % (stride * b) == 0:
            return Placed(axis, stride // step)
    raise _Unfollowed("spreads the examples over several axes")


def _squeeze(eqn, states, b):
    place = _only(states)
    return place._replace(axis=place.axis - sum(axis < place.axis for axis in eqn.params["dimensions"]))


def _transpose(eqn, states, b):
    place = _only(states)
    return place._replace(axis=eqn.params["permutation"].index(place.axis))


def _concatenate(eqn, states, b):
    place = _elementwise(eqn, states, b)
    if place.axis == eqn.params["dimension"]:
        raise _ALONG
    return place


def _pad(eqn, states, b):
    place = _only(states)
    if eqn.params["padding_config"][place.axis] != (0, 0, 0):
        raise _ALONG
    return place


def _slice(eqn, states, b):
    """Also where the start is computed: the whole axis of the examples must be taken."""
    place = _only(states)
    if eqn.invars[0].aval.shape[place.axis] != eqn.outvars[0].aval.shape[place.axis]:
        raise _ALONG
    return place


def _dynamic_update_slice(eqn, states, b):
    operand, update, *starts = states
    if any(isinstance(start, Placed) for start in starts):
        raise _Unfollowed("starts at a place that depends on an example")
    place = _elementwise(eqn, [operand, update], b)
    if eqn.invars[1].aval.shape[place.axis] != eqn.invars[0].aval.shape[place.axis]:
        raise _ALONG
    return place


def _dot_general(eqn, states, b):
    batched, found = eqn.params["dimension_numbers"][1], set()
    for i, state in enumerate(states):
        if isinstance(state, Fixed):
            continue
        axis, other = _axes_of_product(eqn, i)[state.axis], states[1 - i]
        if axis is None:
            raise _MIXES
        if state.axis in batched[i] and isinstance(other, Fixed) and batched[1 - i][axis] in other.varies:
            raise _Unfollowed("meets an array that varies with the place in the batch")
        found.add(state._replace(axis=axis))
    if len(found) > 1:
        raise _Unfollowed("pairs the examples of the batch")
    return found.pop()


def _convolution(eqn, states, b):
    numbers, place = eqn.params["dimension_numbers"], _only(states)
    if place.axis != numbers.lhs_spec[0] or eqn.params["batch_group_count"] != 1:
        raise _ALONG
    return place._replace(axis=numbers.out_spec[0])


def _window(eqn, states, b):
    place, p = _only(states[:1]), eqn.params
    if any(isinstance(state, Placed) for state in states[1:]):
        raise _Unfollowed("starts from a number that depends on an example")
    sizes = [p[key][place.axis] for key in ("window_dimensions", "window_strides", "base_dilation") if key in p]
    if any(size != 1 for size in sizes) or tuple(p["padding"][place.axis]) != (0, 0):
        raise _ALONG
    return place


def _gather(eqn, states, b):
    numbers, (operand, indices) = eqn.params["dimension_numbers"], states
    rank = len(eqn.outvars[0].aval.shape)
    index_axes = [axis for axis in range(rank) if axis not in numbers.offset_dims]  # of the output, in the order of the indices
    if isinstance(indices, Placed):
        if isinstance(operand, Placed):  # row by row: the axes of the examples go together
            pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
            if (operand.axis, indices.axis) not in pairs or operand.inner != indices.inner:
                raise _Unfollowed("takes entries of other examples")
        elif any(
            indices.axis == i and o in operand.varies
            for o, i in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
        ):
            raise _Unfollowed("meets an array that varies with the place in the batch")
        return indices._replace(axis=index_axes[indices.axis])
    for o, i in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        if o == operand.axis:
            if i in indices.varies:
                raise _Unfollowed("meets an array that varies with the place in the batch")
            return operand._replace(axis=index_axes[i])
    kept = [axis for axis in range(len(eqn.invars[0].aval.shape)) if axis not in numbers.collapsed_slice_dims]
    kept = [axis for axis in kept if axis not in numbers.operand_batching_dims]
    whole = eqn.params["slice_sizes"][operand.axis] == eqn.invars[0].aval.shape[operand.axis]
    if operand.axis not in kept or not whole:
        raise _ALONG
    return operand._replace(axis=numbers.offset_dims[kept.index(operand.axis)])


def _scatter(eqn, states, b):
    """All of an example's entries are set by its own row of the updates, or at its own indices."""
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
        raise _Unfollowed("sets entries at the places of examples")
    if place.axis in batched:
        expected = [place, place._replace(axis=batched[place.axis]), place._replace(axis=rows[batched[place.axis]])]
    elif place.axis in windows and place.axis not in numbers.scatter_dims_to_operand_dims:
        expected = [place, None, place._replace(axis=windows[place.axis])]
        if shapes[0][place.axis] != shapes[2][expected[2].axis]:
            raise _ALONG
    else:
        raise _ALONG
    for state, own in zip(states, expected, strict=True):
        if state != own and not (isinstance(state, Fixed) and (own is None or own.axis not in state.varies)):
            raise _Unfollowed("sets entries of other examples, or by the place in the batch")
    return place


def _leading(eqn, states, b):
    """Linear algebra: the last two axes belong to one matrix."""
    place = _elementwise(eqn, states, b)
    if place.axis >= len(eqn.invars[0].aval.shape) - 2:
        raise _ALONG
    return place


_ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clip complex conj
convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag
integer_pow is_finite le le_to lgamma log log1p logistic lt lt_to max min mul name ne neg nextafter not or polygamma pow
population_count pvary real reduce_precision regularized_incomplete_beta rem round rsqrt select_n sharding_constraint shift_left
shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta
""".split()

_RULES = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _cumulative),
    **dict.fromkeys(
        [f"reduce_{what}" for what in ("sum", "max", "min", "prod", "and", "or", "xor")] + ["argmax", "argmin"], _reduction
    ),
    **dict.fromkeys(("slice", "dynamic_slice"), _slice),
    **dict.fromkeys(("cholesky", "eigh", "lu", "qr", "householder_product", "svd", "triangular_solve"), _leading),
    **dict.fromkeys([f"reduce_window{what}" for what in ("", "_sum", "_max", "_min")], _window),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "dynamic_update_slice": _dynamic_update_slice,
    "fft": _untouched(lambda eqn: range(len(eqn.invars[0].aval.shape))[-len(eqn.params["fft_lengths"]) :]),
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _untouched(lambda eqn: eqn.params["dimensions"]),
    "sort": _untouched(lambda eqn: (eqn.params["dimension"],)),
    **dict.fromkeys(
        [f"scatter{what}" for what in ("", "_add", "-add", "_sub", "_mul", "_min", "_max")],
        _scatter,
    ),
    "split": _untouched(lambda eqn: (eqn.params["axis"],)),
    "squeeze": _squeeze,
    "tile": _untouched(lambda eqn: [axis for axis, times in enumerate(eqn.params["reps"]) if times > 1]),
    "top_k": _untouched(lambda eqn: (len(eqn.invars[0].aval.shape) - 1,)),
    "transpose": _transpose,
}
_FIXED_RULES |= dict.fromkeys(_ELEMENTWISE, _fixed_elementwise)


# ---- calls and loops


def _call(key: str):
    def rule(eqn, states, b):
        inner = eqn.params[key]
        if isinstance(inner, ClosedJaxpr):
            return _run(inner.jaxpr, [_constant(c) for c in inner.consts], states, b)
        return _run(inner, [], states, b)

    return rule


def _each(eqn, states, b):
    """As many outputs as inputs, and each is its input."""
    return states


_CALLS = {
    **dict.fromkeys(("jit", "pjit", "closed_call", "remat", "remat2", "checkpoint"), _call("jaxpr")),
    **dict.fromkeys(("custom_jvp_call", "custom_vjp_call", "core_call"), _call("call_jaxpr")),
    "optimization_barrier": _each,
}


def _join(one, other):
    """What holds for an array that is one or the other."""
    if isinstance(one, Lost) or isinstance(other, Lost):
        return one if isinstance(one, Lost) else other
    if isinstance(one, Fixed) and isinstance(other, Fixed):
        return _union((one, other))
    try:
        return _elementwise(None, (one, other), 0)
    except _Unfollowed as error:
        return Lost(f"a loop or a branch {error}", False)


def _settled(body, carry: list) -> tuple[list, list]:
    """The carry that holds in every turn, and what else the body returns then."""
    while True:  # a state can change twice at most, but for the axes that vary
        found = body(carry)
        joined = [_join(*pair) for pair in zip(carry, found[: len(carry)], strict=True)]
        if joined == carry:
            return carry, found[len(carry) :]
        carry = joined


def _scan(eqn, states, b):
    p = eqn.params
    if "ft_in" in p:  # since JAX 0.11.2: three trees, of the constants, the carry, and what is scanned
        counts = [len(list(part)) for part in p["ft_in"].unpack()[:2]]
    else:
        counts = [p["num_consts"], p["num_carry"]]
    consts, carry, xs = _split(states, *counts)
    if any(isinstance(state, Placed) and state.axis == 0 for state in xs):
        return _one_by_one(eqn, consts, carry, xs, b)
    less = lambda s: s._replace(axis=s.axis - 1) if isinstance(s, Placed) else Fixed(frozenset(a - 1 for a in s.varies if a))
    run = lambda carry: _call("jaxpr")(eqn, [*consts, *carry, *map(less, xs)], b)
    carry, ys = _settled(run, carry)
    return carry + [_stacked(state) for state in ys]


def _one_by_one(eqn, consts, carry, xs, b):
    """A scan over the axis of the examples, as ``lax.map`` makes: each turn may see its own example, and nothing else that changes."""
    is_fixed = all(isinstance(state, Fixed) for state in consts)
    if carry or not is_fixed:
        raise _Unfollowed("goes through the examples one after the other")
    return [_elementwise(eqn, [s if isinstance(s, Placed) else Fixed(s.varies & {0}) for s in xs], b)] * len(eqn.outvars)


def _stacked(state):
    if isinstance(state, Placed):
        return state._replace(axis=state.axis + 1)
    return state if isinstance(state, Lost) else Fixed(frozenset({0, *(axis + 1 for axis in state.varies)}))


def _while(eqn, states, b):
    p = eqn.params
    of_cond, of_body, carry = _split(states, p["cond_nconsts"], p["body_nconsts"])
    run = lambda key, states: _run(p[key].jaxpr, [_constant(c) for c in p[key].consts], states, b)
    carry, _ = _settled(lambda carry: run("body_jaxpr", [*of_body, *carry]), carry)
    if not isinstance(run("cond_jaxpr", [*of_cond, *carry])[0], Fixed):  # a vmap of a loop ends so too: nothing is mixed in it
        raise _Unfollowed("ends when all examples are done")
    return carry


def _cond(eqn, states, b):
    index, *operands = states
    if not isinstance(index, Fixed):
        raise _Unfollowed("chooses by an example")
    branches = [_run(br.jaxpr, [_constant(c) for c in br.consts], operands, b) for br in eqn.params["branches"]]
    return [functools.reduce(_join, outputs) for outputs in zip(*branches, strict=True)]


def _split(states: list, *counts: int) -> list:
    parts = []
    for count in counts:
        parts, states = [*parts, states[:count]], states[count:]
    return [*parts, states]


_LOOPS = {"scan": _scan, "while": _while, "cond": _cond}
