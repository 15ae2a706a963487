"""Many steps of many members: inside one compiled scan, or one by one where XLA's loops are slow."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from catapult_jax.training.problem import MemberState, Problem, RunData
from catapult_jax.training.step import step

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array, Int


class State(NamedTuple):
    """What a run carries from one step to the next."""

    step: Int[Array, ""]  # number of the next step
    members: MemberState  # leading axis: member


def make_chunk(problem: Problem, *, scanned: bool) -> Callable[[State, RunData, int, int], tuple[State, dict[str, np.ndarray]]]:
    """Makes the function that runs a chunk of steps, with its compiled programs.

    Args:
      problem: what is fixed.
      scanned: True: inside one compiled scan; False: step by step.

    Returns:
      ``(state, data, steps, longest) -> (state, measurements (members, steps, ...))``. Calls with the same ``longest`` share one program.
    """
    if scanned:
        return partial(_scan_chunk, jax.jit(partial(_scan, problem), donate_argnums=0, static_argnames="longest"))
    return partial(_loop_chunk, problem, jax.jit(partial(step, problem), donate_argnums=1, static_argnames="due"))


def _scan_chunk(scan, state: State, data: RunData, steps: int, longest: int):
    state, measured = scan(state, data, np.int32(steps), longest=longest)
    return state, {name: values[:, :steps] for name, values in jax.device_get(measured).items()}


def _scan(problem: Problem, state: State, data: RunData, steps: Int[Array, ""], *, longest: int):
    """Runs ``longest`` steps and discards those after ``steps``, so that one program serves every length."""

    def body(state, i):
        wanted = i < steps
        members, measured = _step_members(problem, state.step, state.members, data, wanted)
        return State(state.step + wanted, members), measured

    state, measured = jax.lax.scan(body, state, jnp.arange(longest))
    return state, jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), measured)


def _step_members(problem: Problem, number, members: MemberState, data: RunData, wanted):
    if len(members.seed) > 1:
        step_of = lambda member, drawn: step(problem, number, member, data.shared | drawn, wanted)
        return jax.vmap(step_of)(members, data.by_member)
    # One member is not vmapped: XLA would transpose the gradient when it reads it, which on the CPU takes as long as three steps.
    alone = jax.tree.map(lambda a: a[0], members)
    return jax.tree.map(lambda a: a[None], step(problem, number, alone, data.of(0), wanted))


def _loop_chunk(problem: Problem, step_once, state: State, data: RunData, steps: int, longest: int):
    count = len(state.members.seed)
    members = [jax.tree.map(lambda a, i=i: a[i], state.members) for i in range(count)]
    arrays = [data.of(i) for i in range(count)]
    measured = [[] for _ in range(count)]
    first = int(state.step)
    for number in range(first, first + steps):
        # Steps at which the same instruments are due share one compiled program.
        due = frozenset(label for label, instrument in problem.instruments.items() if number % instrument.every == 0)
        for i in range(count):
            members[i], values = step_once(jnp.int32(number), members[i], arrays[i], due=due)
            measured[i].append(values)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    series = [jax.tree.map(lambda *values: np.stack(values), *values) for values in jax.device_get(measured)]
    return State(jnp.int32(first + steps), stacked), jax.tree.map(lambda *values: np.stack(values), *series)
