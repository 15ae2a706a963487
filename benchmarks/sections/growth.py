"""Growth of the seconds of the exact kernel with the batch, the width and the outputs; the slope is of the logarithms.

The limit is one forward pass, and one backward pass for each output.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import child, house, timing

COLUMNS = {
    "model": "model",
    "varied": "varied",
    "size": "size",
    "seconds": "median s",
    "forward_passes": "forward passes",
    "limit": "limit",
    "compile_seconds": "compile s",
    "above_mib": "above MiB",
    "slope": "slope of log s",
    "note": "note",
}
# (model, what is varied, its values, examples)
SWEEPS = {
    "cpu": (
        ("fcn", "n", (32, 64, 128, 256, 512, 1024), 0),
        ("fcn", "width", (128, 256, 512, 1024, 2048), 128),
        ("fcn", "outputs", (1, 2, 5, 10), 64),
        ("vit", "outputs", (1, 2, 5, 10), 32),
    ),
    "smoke": (("fcn", "n", (4, 8), 0), ("fcn", "width", (8, 16), 4), ("vit", "outputs", (1, 2), 4)),
}


def run(scale: str) -> Iterator[dict[str, Any]]:
    for model, varied, sizes, n in SWEEPS.get(scale, SWEEPS["cpu"]):
        arguments = {"model": model, "varied": varied, "sizes": list(sizes), "n": n, "scale": scale}
        make = lambda a=arguments: child.call("benchmarks.sections.growth:sweep", a)
        yield from child.rows_or_reason({"model": model, "varied": varied}, make)


def sweep(model: str, varied: str, sizes: list[int], n: int, scale: str) -> list[dict[str, Any]]:
    import jax
    import numpy as np

    from catapult_jax import tangent_kernel

    def call_of(size):
        changes = {} if varied == "n" else {varied: size}
        f, params, x, _ = house.setup(model, scale, size if varied == "n" else n, **changes)
        kernel = jax.jit(lambda params, x: tangent_kernel(f, params, x))
        forward = jax.jit(f)
        return {f"{size}": lambda: kernel(params, x), f"{size} forward": lambda: forward(params, x)}

    calls = {name: call for size in sizes for name, call in call_of(size).items()}
    timings = timing.take_turns(calls, rounds=timing.ROUNDS[scale])
    once = [timings.pop(f"{size} forward")["seconds"] for size in sizes]
    slope = float(np.polyfit(np.log(sizes), np.log([row["seconds"] for row in timings.values()]), 1)[0])
    limit = lambda size: 1 + int(size) if varied == "outputs" else 2
    rows = [
        {"size": int(size), **row, "forward_passes": row["seconds"] / passes, "limit": limit(size)}
        for (size, row), passes in zip(timings.items(), once, strict=True)
    ]
    return [*rows, {"size": "all", "slope": slope}]
