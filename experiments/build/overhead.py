"""What each instrument costs, measured in the first steps, and the cadences that keep a preset within its overhead."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from catapult_jax import training
from catapult_jax.training.instruments import Instrument

_SECONDS = 0.3  # of each timing, at least
_ROUNDS = 3
_ROUND = (1, 2, 10, 20, 100, 200, 1000)  # each divides the next: few sets of instruments are due together
_LEAST = 0.05  # of a step, left to what need not be measured at every step


def measure(
    build: Callable[[dict[str, Instrument]], training.Trainer], candidates: dict[str, Instrument], members: training.Members
) -> dict[str, float]:
    """Cost of one measurement by each instrument, over the bare step: the fastest of steps with it alone against those of none.

    What is timed is the program of a run: all members, compiled together with the step, at the cadence that the instrument has. At every
    step it may share the step's derivatives; at another cadence it takes its own.
    """
    times = {}
    trainers = {"": build({})} | {name: build({name: i}) for name, i in candidates.items()}
    cadence = {"": 1} | {name: i.every for name, i in candidates.items()}
    begun, _ = trainers[""].init(members)
    # Copies, since a run overwrites its state.
    states = {name: jax.tree.map(jnp.copy, trainer.reset_instruments(begun)) for name, trainer in trainers.items()}

    def seconds(name: str, steps: int) -> float:
        start = time.perf_counter()
        states[name], _ = trainers[name].run(states[name], steps, steps)
        return time.perf_counter() - start

    for name in trainers:
        seconds(name, 1)  # compiles, and searches start from nowhere
        steps = max(2, min(50, math.ceil(_SECONDS / seconds(name, 1))))
        steps = math.ceil(steps / cadence[name]) * cadence[name]
        seconds(name, steps)  # compiles the chunk
        times[name] = (steps, [])
    for _ in range(_ROUNDS):  # in turn, so that a slow moment of the machine is shared
        for name, (steps, found) in times.items():
            found.append(seconds(name, steps) / steps)
    best = {name: min(found) for name, (_, found) in times.items()}
    jax.clear_caches()  # programs that are not run again
    return {name: max(best[name] / best[""] - 1, 0.0) * cadence[name] for name in candidates}


def cadences(
    costs: dict[str, float],
    always: set[str],
    max_overhead: float,
    longest: int | None = None,
    apart: dict[str, float] | None = None,
) -> dict[str, int]:
    """How often each instrument is run, so that a step costs ``max_overhead`` bare ones on average.

    ``always``: at every step, whatever it costs. What they leave is shared evenly by the others, and what one does not need goes to
    the next. ``longest``: no cadence beyond it. ``apart``: what one costs that is not run at every step, where that is more.

    >>> cadences({"kernel": 0.2, "test": 0.05, "train": 1.2}, {"kernel"}, 1.5)
    {'kernel': 1, 'test': 1, 'train': 10}
    >>> cadences({"kernel": 0.6}, set(), 1.5, apart={"kernel": 1.2})
    {'kernel': 10}
    """
    apart = costs | (apart or {})
    left = max(max_overhead - 1 - sum(costs[name] for name in always), _LEAST)
    found = dict.fromkeys(costs, 1)
    others = sorted((name for name in costs if name not in always), key=costs.get)
    for i, name in enumerate(others):
        share = left / (len(others) - i)
        cost = lambda every, name=name: (costs if every == 1 else apart)[name]
        found[name] = min(
            next(every for every in _ROUND if every * share >= cost(every) or every == _ROUND[-1]), longest or math.inf
        )
        left -= cost(found[name]) / found[name]
    return found
