"""The cost of each instrument, timed in the first steps; and the cadences that keep a preset within its overhead."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from catapult_jax import training
from catapult_jax.training.measurement import Instrument

_SECONDS = 0.3  # of a timing, at least
_ROUNDS = 3
_CADENCES = (1, 2, 10, 20, 100, 200, 1000)  # each divides the next, so that few different sets of instruments are due together
_LEAST = 0.05  # of a bare step: overhead that is left for the instruments that are not needed at every step


def measure(
    build: Callable[[dict[str, Instrument]], training.Trainer], candidates: dict[str, Instrument], members: training.Members
) -> dict[str, float]:
    """Time each instrument in the program of a run: all members, compiled together with the step, at the cadence of the instrument.

    At a cadence of 1 an instrument may share the derivatives of the step; at other cadences it computes its own.

    Args:
      build: from instruments by name to a trainer.
      candidates: instruments by name, timed one at a time.
      members: of the run.

    Returns:
      Name -> cost of one measurement, in bare steps. Each time is the fastest of several rounds.
    """
    times = {}
    trainers = {"": build({})} | {name: build({name: i}) for name, i in candidates.items()}
    cadence = {"": 1} | {name: i.every for name, i in candidates.items()}
    initial, _ = trainers[""].init(members)
    # Copies, since a run overwrites its state.
    states = {name: jax.tree.map(jnp.copy, trainer.reset_instruments(initial)) for name, trainer in trainers.items()}

    def seconds(name: str, steps: int) -> float:
        start = time.perf_counter()
        states[name], _ = trainers[name].run(states[name], steps, steps)
        return time.perf_counter() - start

    for name in trainers:
        seconds(name, 1)  # compiles, and gives matrix-free searches their warm start
        steps = max(2, min(50, math.ceil(_SECONDS / seconds(name, 1))))
        steps = math.ceil(steps / cadence[name]) * cadence[name]
        seconds(name, steps)  # compiles the chunk
        times[name] = (steps, [])
    for _ in range(_ROUNDS):  # in turn, so that a slow moment of the machine does not hit one instrument alone
        for name, (steps, rounds) in times.items():
            rounds.append(seconds(name, steps) / steps)
    best = {name: min(rounds) for name, (_, rounds) in times.items()}
    jax.clear_caches()  # these programs are not run again
    return {name: max(best[name] / best[""] - 1, 0.0) * cadence[name] for name in candidates}


def cadences(
    costs: dict[str, float],
    always: set[str],
    max_overhead: float,
    longest: int | None = None,
    apart: dict[str, float] | None = None,
) -> dict[str, int]:
    """Choose cadences so that a measured step costs ``max_overhead`` bare steps on average.

    The instruments in ``always`` are paid first. The others share the rest evenly, the cheapest first; what it does not need goes to
    the next.

    Args:
      costs: name -> cost of one measurement at a cadence of 1, in bare steps.
      always: names of the instruments that are needed at every step, at any cost.
      max_overhead: cost of a measured step in bare steps, above 1.
      longest: largest cadence, or None.
      apart: name -> cost of one measurement at other cadences, where it differs.

    Returns:
      Name -> cadence in steps.

    >>> cadences({"kernel": 0.2, "test": 0.05, "train": 1.2}, {"kernel"}, 1.5)
    {'kernel': 1, 'test': 1, 'train': 10}
    >>> cadences({"kernel": 0.6}, set(), 1.5, apart={"kernel": 1.2})
    {'kernel': 10}
    """
    apart = costs | (apart or {})
    left = max(max_overhead - 1 - sum(costs[name] for name in always), _LEAST)
    chosen = dict.fromkeys(costs, 1)
    others = sorted((name for name in costs if name not in always), key=costs.get)
    for i, name in enumerate(others):
        share = left / (len(others) - i)
        cost = lambda every, name=name: (costs if every == 1 else apart)[name]
        chosen[name] = min(
            next(every for every in _CADENCES if every * share >= cost(every) or every == _CADENCES[-1]), longest or math.inf
        )
        left -= cost(chosen[name]) / chosen[name]
    return chosen
