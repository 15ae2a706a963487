"""The equations of a traced program: which ones are needed, and the programs and operands inside them."""

from __future__ import annotations

from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal

CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "remat",
    "remat2",
    "checkpoint",
    "custom_jvp_call",
    "custom_vjp_call",
)  # of a program


def needed_equations(jaxpr: Jaxpr) -> list[JaxprEqn]:
    """The equations that the outputs depend on.

    Args:
      jaxpr: A program.

    Returns:
      Its equations, in order.

    >>> import jax, jax.numpy as jnp
    >>> program = jax.make_jaxpr(lambda x: (jnp.sin(x), jnp.cos(x))[0])(1.0)
    >>> [eqn.primitive.name for eqn in needed_equations(program.jaxpr)]
    ['sin']
    """
    needed, equations = {v for v in jaxpr.outvars if not isinstance(v, Literal)}, []
    for eqn in reversed(jaxpr.eqns):
        if not needed.isdisjoint(eqn.outvars):
            equations.append(eqn)
            needed |= {v for v in eqn.invars if not isinstance(v, Literal)}
    return equations[::-1]


def called_program(eqn: JaxprEqn) -> tuple[Jaxpr, Any]:
    """The program that an equation calls, or the body of a scan, and its constants.

    Args:
      eqn: A call, such as ``jit``, ``checkpoint`` or ``custom_jvp_call``, or a ``scan``.

    Returns:
      The program and its constants.

    >>> import jax, jax.numpy as jnp
    >>> program = jax.make_jaxpr(jax.jit(jnp.sin))(1.0)
    >>> [eqn.primitive.name for eqn in called_program(program.jaxpr.eqns[0])[0].eqns]
    ['sin']
    """
    inner = eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"]
    # With constants or without. From JAX 0.11.2 on there is one class for both.
    return getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())


def inner_programs(jaxpr: Jaxpr) -> list[Jaxpr]:
    """The programs inside a program, such as those of calls and the bodies of scans; branches are left out.

    Args:
      jaxpr: A program.

    Returns:
      Programs, in the order of its equations.

    >>> import jax, jax.numpy as jnp
    >>> program = jax.make_jaxpr(jax.jit(jnp.sin))(1.0)
    >>> [eqn.primitive.name for inner in inner_programs(program.jaxpr) for eqn in inner.eqns]
    ['sin']
    """
    values = (v for eqn in jaxpr.eqns for v in eqn.params.values())
    return [getattr(v, "jaxpr", v) for v in values if hasattr(v, "eqns") or hasattr(v, "jaxpr")]


def scan_operands(eqn: JaxprEqn) -> tuple[range, range, range]:
    """The operands of a scan: numbers of the constants, of the carry at the start, and of the scanned arrays.

    Args:
      eqn: An equation whose operation is ``scan``.

    Returns:
      Three ranges.

    >>> import jax, numpy as np
    >>> program = jax.make_jaxpr(lambda c, x: jax.lax.scan(lambda h, x: (h + c * x, None), 0.0, x))(1.0, np.ones(3))
    >>> scan_operands(program.jaxpr.eqns[-1])
    (range(0, 1), range(1, 2), range(2, 3))
    """
    p = eqn.params
    if "ft_in" in p:  # from JAX 0.11.2 on: trees of the constants, the carry and the scanned arrays
        consts, carry = (len(list(part)) for part in p["ft_in"].unpack()[:2])
    else:
        consts, carry = p["num_consts"], p["num_carry"]
    return range(consts), range(consts, consts + carry), range(consts + carry, len(eqn.invars))
