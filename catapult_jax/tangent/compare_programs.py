"""Compares the programs of one function for two batch sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from catapult_jax.tangent.batch_axis_rules import ELEMENTWISE
from catapult_jax.tangent.equations import CALLS, called_program, needed_equations

_LOOPS = ("scan", "while", "cond")
_MOVES = ("broadcast_in_dim", "reshape", "squeeze", "transpose")


def same_program(left: ClosedJaxpr, right: ClosedJaxpr, b: int, c: int) -> bool:
    """Whether two programs do the same operations, with the same numbers, in the same order.

    Shapes may differ by the batch size. Operations that no output needs do not count.

    Args:
      left: The program for ``b`` examples.
      right: The program for ``c`` examples.
      b, c: Batch sizes.

    Returns:
      True or False.

    >>> program = lambda f, b: jax.make_jaxpr(f)(np.ones(b, np.float32))
    >>> same_program(program(jnp.negative, 2), program(jnp.negative, 3), 2, 3)
    True
    >>> divided = lambda x: x / len(x)
    >>> same_program(program(divided, 2), program(divided, 3), 2, 3)
    False
    """
    return _same(left, right, b, c, scaled=False)


# Parameters of operations that may be multiples of the batch size. If the result depended on one, two examples together
# would give other outputs than each alone.
_SIZES = {"shape", "new_sizes", "sizes", "slice_sizes", "limit_indices", "length", "reps"}


def _same(u, v, b: int, c: int, scaled: bool) -> bool:
    """Whether two parts of the programs are equal. ``scaled``: integers with ``u / b == v / c`` count as equal."""
    if isinstance(u, (ClosedJaxpr, Jaxpr)):  # one class from JAX 0.11.2 on; in older releases a Jaxpr has no consts
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
        if isinstance(u, jax.Array) and jnp.issubdtype(u.dtype, jax.dtypes.prng_key):
            u, v = jax.random.key_data(u), jax.random.key_data(v)
        return np.shape(u) == np.shape(v) and bool(np.array_equal(np.asarray(u), np.asarray(v), equal_nan=u.dtype.kind == "f"))
    if isinstance(u, (int, float, complex, str, bool, type(None))):
        return u == v or (u != u and v != v) or (scaled and isinstance(u, int) and isinstance(v, int) and u * c == v * b)
    return True  # functions and shardings are not compared


def _same_equations(u, v, b: int, c: int) -> bool:
    """Whether two programs have the same needed equations, on the same variables."""
    equations = needed_equations(u), needed_equations(v)
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


def size_is_unseen(left: ClosedJaxpr, right: ClosedJaxpr, b: int, c: int, examples: Sequence[int]) -> bool:
    """Whether the numbers in programs that are the same cannot depend on the batch size.

    A sum over ones, one for each example, is the same operation for every batch size, and gives another number. It is such an operation
    that is looked for: on arrays that depend on no example and whose shape has the batch size, other than elementwise; or on an array of
    examples that has the batch size in more than one axis. Loops and branches count as such operations, too.

    Args:
      left: The program for ``b`` examples.
      right: The program for ``c`` examples, with the same operations (:func:`same_program`).
      b, c: Batch sizes.
      examples: Numbers of the inputs that hold the examples.

    Returns:
      True or False.

    >>> program = lambda f, b: jax.make_jaxpr(f)(np.ones((b, 2), np.float32))
    >>> size_is_unseen(program(jnp.sin, 3), program(jnp.sin, 2), 3, 2, [0])
    True
    >>> counted = lambda x: x / jnp.ones_like(x[:, 0]).sum()
    >>> size_is_unseen(program(counted, 3), program(counted, 2), 3, 2, [0])
    False
    """
    return _outputs_of_examples(left.jaxpr, right.jaxpr, b, c, [i in examples for i in range(len(left.in_avals))]) is not None


def _outputs_of_examples(u, v, b: int, c: int, of_examples: list[bool]) -> list[bool] | None:
    """Which outputs depend on examples, given which inputs do; None: a number may depend on the batch size."""
    depends = {var for var, flag in zip(u.invars, of_examples, strict=True) if flag}
    is_in = lambda atom: not isinstance(atom, Literal) and atom in depends
    for s, t in zip(needed_equations(u), needed_equations(v), strict=True):
        flags, name = list(map(is_in, s.invars)), s.primitive.name
        if name in CALLS:
            outputs = _outputs_of_examples(called_program(s)[0], called_program(t)[0], b, c, flags)
        elif name in _LOOPS:
            outputs = None
        else:
            outputs = flags if name == "optimization_barrier" else [any(flags)] * len(s.outvars)
            if not _is_unseen(s, t, b, c, flags, outputs):
                outputs = None
        if outputs is None:
            return None
        depends |= {var for var, flag in zip(s.outvars, outputs, strict=True) if flag}
    return list(map(is_in, u.outvars))


def _is_unseen(s, t, b: int, c: int, flags: list[bool], outputs: list[bool]) -> bool:
    """Whether one operation can't make a number that depends on the batch size."""
    pairs = zip([*s.invars, *s.outvars], [*t.invars, *t.outvars], [*flags, *outputs], strict=True)
    shapes = [(p.aval.shape, q.aval.shape, flag) for p, q, flag in pairs]
    if not any(flags) and s.primitive.name not in (*ELEMENTWISE, *_MOVES, "optimization_barrier"):
        return all(p == q for p, q, _ in shapes)
    return all(math.prod(p) * c == math.prod(q) * b for p, q, flag in shapes if flag)


def same_names(left: ClosedJaxpr, right: ClosedJaxpr) -> bool:
    """Whether two programs do the same operations in the same order, without those that only move numbers.

    For one example the axis of examples has length one, and JAX broadcasts less.

    Args:
      left, right: Programs.

    Returns:
      True or False.

    >>> program = lambda f, b: jax.make_jaxpr(f)(np.ones((b, 2), np.float32))
    >>> same_names(program(jnp.sin, 1), program(jnp.sin, 2)), same_names(program(jnp.sin, 1), program(jnp.cos, 2))
    (True, False)
    """
    return _names(left.jaxpr) == _names(right.jaxpr)


def _names(jaxpr) -> list[str]:
    """Operations with their literal operands; those of inner programs in the place of a call."""
    names = []
    for eqn in needed_equations(jaxpr):
        if eqn.primitive.name in CALLS:
            names += _names(called_program(eqn)[0])
        elif eqn.primitive.name not in _MOVES:
            names.append(f"{eqn.primitive.name} {[v.val for v in eqn.invars if isinstance(v, Literal)]}")
    return names
