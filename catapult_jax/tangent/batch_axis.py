"""Follows the axis of the examples through a traced program, to prove that each output row depends on one example alone."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from catapult_jax.tangent.batch_axis_rules import FIXED_RULES, RULES, Fixed, Lost, Placed, Unfollowed, elementwise, fixed, union
from catapult_jax.tangent.equations import CALLS, called_program, scan_operands
from catapult_jax.xla import INSPECTED_NUMBERS


def follow(closed: ClosedJaxpr, x: Sequence[int], b: int) -> Lost | None:
    """Try to prove that every output row ``i`` of a program is the same function of example ``i``.

    Each operation has a rule for the axis of the examples. An operation may move the axis, and a reshape may fold it
    with others. An operation without a rule, or an array that varies with the place in the batch, ends the proof.

    Args:
      closed: A program with one output, of shape ``(b, ...)``.
      x: Numbers of the inputs whose first axis has the examples.
      b: Number of examples, at least 2.

    Returns:
      None: it is proved. Otherwise the reason why not.

    >>> follow(jax.make_jaxpr(lambda x: 2 * x)(np.ones((2, 3))), [0], 2)  # proved
    >>> follow(jax.make_jaxpr(lambda x: x - x.sum(0))(np.ones((2, 3))), [0], 2).why
    'reduce_sum combines the examples of the batch'
    """
    inputs = [Placed(0, 1) if i in x else fixed(v.aval.shape) for i, v in enumerate(closed.jaxpr.invars)]
    (state,) = _run(closed.jaxpr, [_constant(c) for c in closed.consts], inputs, b)
    if isinstance(state, Lost):
        return state
    if isinstance(state, Fixed):
        return (
            None if 0 not in state.varies else Lost("the outputs depend on the places in the batch, not on the examples", False)
        )
    return None if state == Placed(0, 1) else Lost("the first axis of the outputs is not that of the examples", False)


def _constant(value) -> Fixed:
    """State of an array that the function closes over, from its values unless these are traced or many."""
    varies = fixed(np.shape(value)).varies
    is_key = jnp.issubdtype(getattr(value, "dtype", np.dtype(float)), jax.dtypes.prng_key)
    if isinstance(value, jax.core.Tracer) or is_key or np.size(value) > INSPECTED_NUMBERS:
        return Fixed(varies)
    array = np.asarray(value)
    return Fixed(frozenset(a for a in varies if not (array == array.take([0], a)).all()))


def _run(jaxpr: Jaxpr, consts: list, inputs: list, b: int) -> list:
    """States of the outputs of a program."""
    states = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))
    state_of = lambda atom: Fixed(frozenset()) if isinstance(atom, Literal) else states[atom]
    for eqn in jaxpr.eqns:
        outputs = _step(eqn, [state_of(v) for v in eqn.invars], b)
        states |= dict(zip(eqn.outvars, outputs, strict=True))
    return [state_of(v) for v in jaxpr.outvars]


def _step(eqn, states: list, b: int) -> list:
    """States of the outputs of one operation."""
    name = eqn.primitive.name
    lost = next((state for state in states if isinstance(state, Lost)), None)
    if lost is not None and name not in _CALLS:  # some outputs of a call may not depend on the lost operand
        return [lost] * len(eqn.outvars)
    try:
        if name in _CALLS or name in _LOOPS:
            outputs, where = (_CALLS | _LOOPS)[name](eqn, states, b), source_info_util.summarize(eqn.source_info)
            return [s._replace(where=where) if isinstance(s, Lost) and not s.where else s for s in outputs]
        rule = RULES.get(name)
        if not any(isinstance(state, Placed) for state in states):
            if name in FIXED_RULES:
                return [FIXED_RULES[name](eqn, states)] * len(eqn.outvars)
            return [fixed(v.aval.shape) for v in eqn.outvars]
        if rule is None:
            raise Unfollowed("has no rule")
        state = rule(eqn, states, b)
    except Unfollowed as error:
        state = Lost(f"{name} {error}", error.mixes, source_info_util.summarize(eqn.source_info))
    return [state] * len(eqn.outvars)


# ---- calls and loops


def _call(eqn, states, b):
    """Rule of an operation that calls a program."""
    jaxpr, consts = called_program(eqn)
    return _run(jaxpr, [_constant(c) for c in consts], states, b)


def _identity(eqn, states, b):
    """Rule of an operation that returns its operands."""
    return states


_CALLS = {**dict.fromkeys(CALLS, _call), "optimization_barrier": _identity}


def _join(left, right):
    """State of an array that is either of two arrays."""
    if isinstance(left, Lost) or isinstance(right, Lost):
        return left if isinstance(left, Lost) else right
    if isinstance(left, Fixed) and isinstance(right, Fixed):
        return union((left, right))
    try:
        return elementwise(None, (left, right), 0)
    except Unfollowed as error:
        return Lost(f"a loop or a branch {error}", False)


def _fixed_point(body, carry: list) -> tuple[list, list]:
    """States of the carry that hold in every turn of a loop, and the states of the other outputs of its body."""
    while True:  # it ends: a state goes from Fixed to Placed to Lost, and axes that vary are only added
        outputs = body(carry)
        joined = [_join(*pair) for pair in zip(carry, outputs[: len(carry)], strict=True)]
        if joined == carry:
            return carry, outputs[len(carry) :]
        carry = joined


def _scan(eqn, states, b):
    consts, carry, xs = ([states[i] for i in numbers] for numbers in scan_operands(eqn))
    if any(isinstance(state, Placed) and state.axis == 0 for state in xs):
        return _scan_over_examples(eqn, consts, carry, xs, b)
    slice_of = lambda s: (
        s._replace(axis=s.axis - 1) if isinstance(s, Placed) else Fixed(frozenset(a - 1 for a in s.varies if a))
    )
    body = lambda carry: _call(eqn, [*consts, *carry, *map(slice_of, xs)], b)
    carry, ys = _fixed_point(body, carry)
    return carry + [_stacked(state) for state in ys]


def _scan_over_examples(eqn, consts, carry, xs, b):
    """Rule of a scan over the axis of the examples, as in ``lax.map``: only the example may change from turn to turn."""
    is_fixed = all(isinstance(state, Fixed) for state in consts)
    if carry or not is_fixed:
        raise Unfollowed("goes through the examples one after the other")
    return [elementwise(eqn, [s if isinstance(s, Placed) else Fixed(s.varies & {0}) for s in xs], b)] * len(eqn.outvars)


def _stacked(state):
    """State of the outputs of a scan, which get a first axis."""
    if isinstance(state, Placed):
        return state._replace(axis=state.axis + 1)
    return state if isinstance(state, Lost) else Fixed(frozenset({0, *(axis + 1 for axis in state.varies)}))


def _while(eqn, states, b):
    p = eqn.params
    cond_consts, body_consts, carry = _split(states, p["cond_nconsts"], p["body_nconsts"])
    run = lambda key, states: _run(p[key].jaxpr, [_constant(c) for c in p[key].consts], states, b)
    carry, _ = _fixed_point(lambda carry: run("body_jaxpr", [*body_consts, *carry]), carry)
    if not isinstance(run("cond_jaxpr", [*cond_consts, *carry])[0], Fixed):  # as under vmap, where nothing is mixed
        raise Unfollowed("ends when all examples are done")
    return carry


def _cond(eqn, states, b):
    index, *operands = states
    if not isinstance(index, Fixed):
        raise Unfollowed("chooses by an example")
    branches = [_run(br.jaxpr, [_constant(c) for c in br.consts], operands, b) for br in eqn.params["branches"]]
    return [functools.reduce(_join, outputs) for outputs in zip(*branches, strict=True)]


def _split(states: list, *counts: int) -> list:
    parts = []
    for count in counts:
        parts, states = [*parts, states[:count]], states[count:]
    return [*parts, states]


_LOOPS = {"scan": _scan, "while": _while, "cond": _cond}
