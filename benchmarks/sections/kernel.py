"""The kernel against neural_tangents and against plain per-example Jacobians, on the same random inputs.

Each competitor takes turns with our kernel in a process of its own, and ``ratio`` is its seconds over ours there.

- ``above``: peak resident memory during one call of the compiled program, minus that of the process before the call,
  which holds program, parameters and inputs.
- ``forward passes``: how many forward passes of the same examples take as long. ``limit``: one, and one more for the
  derivatives of each output.
- ``plan``: the memory that XLA plans for temporary arrays.

A competitor stops if it needs more than 12 GiB, or more than 40 s without a promise. Its row says so.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import child, house, tables, timing

COLUMNS = {
    "model": "model",
    "batch": "batch",
    "outputs": "outputs",
    "variant": "variant",
    "seconds": "median s",
    "ours_seconds": "ours s",
    "ratio": "/ ours",
    "forward_passes": "forward passes",
    "limit": "limit",
    "compile_seconds": "compile s",
    "before_mib": "before MiB",
    "peak_mib": "peak MiB",
    "above_mib": "above MiB",
    "plan_mib": "plan MiB",
    "promise": "promise",
    "met": "met",
    "note": "note",
}
OURS, JACOBIAN, NT_1, NT_2, NT_3 = "ours", "jacobian", "neural_tangents 1", "neural_tangents 2", "neural_tangents 3"
FORWARD = "forward"
COMPETITORS = (JACOBIAN, NT_3, NT_1, NT_2)
BATCH = {"fcn": 128, "cnn": 32, "cnn_64": 128, "wrn": 32, "vit": 32}
SMOKE_BATCH, SMOKE_MODELS = 4, ("fcn", "cnn_64")
SECONDS, SHORT = 600.0, 40.0  # limits of a process; SHORT without a promise


def run(scale: str) -> Iterator[dict[str, Any]]:
    for model, batch in BATCH.items():
        if scale == "smoke" and model not in SMOKE_MODELS:
            continue
        for outputs in (1,) if model == "cnn_64" else (1, 10):
            case = {"model": model, "batch": SMOKE_BATCH if scale == "smoke" else batch, "outputs": outputs}
            rows = {}
            with tempfile.TemporaryDirectory() as cache:
                for variant in (OURS, *COMPETITORS):
                    make = lambda v=variant, c=case, cache=cache: [_row(c, v, scale, cache)]
                    (row,) = child.rows_or_reason(case | {"variant": variant}, make)
                    rows[variant] = row if "seconds" in row else row | _promised(case, variant, None)
                    yield rows[variant]
            promised = model != "fcn"
            yield from (case | row for row in _memory_against(rows[OURS], rows[NT_3], promised))


def _memory_against(ours: dict[str, Any], theirs: dict[str, Any], promised: bool) -> Iterator[dict[str, Any]]:
    for key, what in (("above_mib", "peak memory"), ("plan_mib", "planned memory")):
        if ours.get(key) and theirs.get(key):
            ratio = ours[key] / theirs[key]
            note = f"ours {ours[key]:.4g} MiB, {NT_3} {theirs[key]:.4g} MiB"
            row = {"variant": f"{what}, ours / {NT_3}", "ratio": ratio, "note": note}
            yield row | (tables.promise("at most half", ratio <= 0.5) if key == "above_mib" and promised else {})


def _row(case: dict[str, Any], variant: str, scale: str, cache: str) -> dict[str, Any]:
    arguments, limit = (
        case | {"variant": variant, "scale": scale},
        SECONDS if variant == OURS or _promised(case, variant, None) else SHORT,
    )
    row = child.call("benchmarks.sections.kernel:seconds", arguments, seconds=limit, cache=cache)
    row |= _promised(case, variant, row.get("ratio"))
    try:
        return row | child.call("benchmarks.sections.kernel:memory", arguments, seconds=limit, cache=cache)
    except child.Failed as error:  # keep the seconds
        return row | {"note": f"memory: {error}"}


def _promised(case: dict[str, Any], variant: str, ratio: float | None) -> dict[str, str]:
    least, text = {
        NT_1: (100, "at least 100 times slower than ours") if (case["model"], case["outputs"]) == ("fcn", 1) else (0, ""),
        NT_2: (100, "at least 100 times slower than ours") if (case["model"], case["outputs"]) == ("fcn", 1) else (0, ""),
        NT_3: (1, "slower than ours"),
        JACOBIAN: (1, "not faster than ours"),
    }.get(variant, (0, ""))
    return tables.promise(text, None if ratio is None else ratio >= least) if text else {}


def seconds(model: str, batch: int, outputs: int, variant: str, scale: str) -> dict[str, Any]:
    compiled, inputs = programs(model, batch, outputs, list(dict.fromkeys((FORWARD, OURS, variant))), scale)
    calls = {name: lambda program=program: program()(*inputs) for name, program in compiled.items()}
    timings = timing.take_turns(calls, rounds=timing.ROUNDS[scale], memory=False)  # `memory` runs in its own process
    row, ours = timings[variant] | {"plan_mib": timing.plan_mib(compiled[variant]())}, timings[OURS]["seconds"]
    row |= {"forward_passes": row["seconds"] / timings[FORWARD]["seconds"], "limit": 1 + outputs}
    return row if variant == OURS else row | {"ours_seconds": ours, "ratio": row["seconds"] / ours}


def memory(model: str, batch: int, outputs: int, variant: str, scale: str) -> dict[str, float]:
    compiled, inputs = programs(model, batch, outputs, [variant], scale)
    program = compiled[variant]()
    return timing.peak_of(lambda: program(*inputs))


def programs(model: str, batch: int, outputs: int, names: list[str], scale: str) -> tuple[dict[str, Callable], tuple]:
    """The variants, each compiled at its first call, and their inputs."""
    import jax

    from catapult_jax import tangent_kernel
    from catapult_jax.tangent import neural_tangents

    f, params, x, _ = house.setup(model, scale, batch, outputs=outputs)
    if any(name.startswith("neural_tangents") for name in names):
        neural_tangents.load()  # so that the import does not count as memory of the call
    implementations = {NT_1: 1, NT_2: 2, NT_3: 3}

    def function(name):
        if name == FORWARD:
            return f
        if name in implementations:
            return lambda p, x: neural_tangents.empirical_kernel(f, p, x, implementation=implementations[name])
        return lambda p, x: tangent_kernel(f, p, x, method="jacobian" if name == JACOBIAN else "auto")

    return {name: timing.planned(function(name), params, x) for name in names}, jax.block_until_ready((params, x))
