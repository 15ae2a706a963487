"""Compares the programs of one function for two batch sizes."""

from __future__ import annotations

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from catapult_jax.tangent.equations import needed_equations


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
