"""Seconds and memory of calls; variants take turns, so that a slow minute of the machine slows all of them."""

from __future__ import annotations

import functools
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.child import MIB_LIMIT

ROUNDS = {"cpu": 7, "gpu": 30, "smoke": 2}
SLOW_SECONDS, SLOW_ROUNDS = 2.0, 3
FAST_SECONDS, FAST_TIMES = 0.1, 3  # a faster call is timed three times in each round after the first
SETTLED_SECONDS = 0.5  # a faster call is first called once without timing

Call = Callable[[], Any]


def seconds_of(call: Call) -> float:
    import jax

    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def take_turns(calls: dict[str, Call], *, rounds: int, memory: bool = True) -> dict[str, dict[str, Any]]:
    """Times each call in ``rounds`` rounds, in turns.

    A fast call follows an untimed call of the same variant. Otherwise it would pay for the variant before it, which fills the
    caches with other arrays and frees memory.

    Returns:
      For each call: median seconds, the seconds of every round, and the seconds of compilation (first call minus median). With
      ``memory`` also the memory of one more call, see :func:`peak_of`.
    """
    first = {name: seconds_of(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if len(times[name]) < SLOW_ROUNDS or times[name][0] < SLOW_SECONDS:
                if not times[name] or times[name][-1] < SETTLED_SECONDS:
                    seconds_of(call)
                fast = bool(times[name]) and times[name][-1] < FAST_SECONDS
                times[name] += [seconds_of(call) for _ in range(FAST_TIMES if fast else 1)]
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        name: {"seconds": median[name], "rounds": times[name], "compile_seconds": max(0.0, first[name] - median[name])}
        | (peak_of(call) if memory else {})
        for name, call in calls.items()
    }


def planned(function: Callable, *arguments: Any) -> Callable[[], Any]:
    """A function that compiles at its first call; MemoryError if XLA plans for more memory than a process may have."""
    import jax

    @functools.cache
    def compiled():
        program = jax.jit(function).lower(*arguments).compile()
        plan = plan_mib(program)
        if plan is not None and plan > MIB_LIMIT:
            raise MemoryError(f"not run: it needs {plan / 1024:.0f} GiB of temporary arrays")
        return program

    return compiled


def plan_mib(program) -> float | None:
    """MiB of temporary arrays that XLA plans for a compiled program; None if the backend does not say."""
    analysis = program.memory_analysis()
    return None if analysis is None else analysis.temp_size_in_bytes / 2**20


def peak_mib() -> float:
    """Peak MiB of this process so far: memory of the accelerator if there is one, else resident memory."""
    import resource
    import sys

    import jax

    stats = jax.devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use"] / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def peak_of(call: Call) -> dict[str, float]:
    """MiB of this process before one call, the peak until its end, and the difference.

    Compile the call first, so that its compilation does not count. On Linux the peak is reset before the call, and freed memory
    goes back to the system, so that it hides nothing.
    """
    import jax

    before = _reset_peak()
    jax.block_until_ready(call())
    peak = peak_mib() if before is None else _status_mib("VmHWM")
    return {"before_mib": before, "peak_mib": peak, "above_mib": None if before is None else peak - before}


def _reset_peak() -> float | None:
    """Resets the peak and returns the resident MiB; None if the system does not allow it."""
    import ctypes

    import jax

    if jax.devices()[0].memory_stats() or not Path("/proc/self/clear_refs").exists():
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # a container may forbid it
        return None
    return _status_mib("VmRSS")


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))
