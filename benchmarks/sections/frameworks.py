"""The exact kernel of the same network in five frameworks, and of a transformer whose blocks are scanned or unrolled.

``ratio`` is the time over that of linen, or of the unrolled transformer; the variants take turns in one process. ``difference`` is the
largest difference of the kernels, relative to the largest entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import child, tables, timing

COLUMNS = {
    "model": "model",
    "batch": "batch",
    "variant": "variant",
    "seconds": "median s",
    "ratio": "ratio",
    "difference": "difference",
    "compile_seconds": "compile s",
    "promise": "promise",
    "met": "met",
    "note": "note",
}
FCN, CNN, TRANSFORMER = "fcn", "cnn", "transformer of 4 blocks"
BATCH = {FCN: 128, CNN: 32, TRANSFORMER: 16}
MOST = {FCN: 1.1, CNN: 1.1, TRANSFORMER: 1.3}
REFERENCE = {FCN: "linen", CNN: "linen", TRANSFORMER: "unrolled"}


def run(scale: str) -> Iterator[dict[str, Any]]:
    for model, batch in BATCH.items():
        case = {"model": model, "batch": 4 if scale == "smoke" else batch}
        make = lambda case=case: child.call("benchmarks.sections.frameworks:compare", case | {"scale": scale})
        yield from child.rows_or_reason(case, make)


def compare(model: str, batch: int, scale: str) -> list[dict[str, Any]]:
    import jax
    import numpy as np

    from catapult_jax import tangent_kernel

    x, variants = _variants(model, batch, scale)
    compiled = {
        name: jax.jit(lambda p, x, f=f: tangent_kernel(f, p, x, method="structured")) for name, (f, _) in variants.items()
    }
    calls = {name: lambda name=name: compiled[name](variants[name][1], x) for name in variants}
    timings = timing.take_turns(calls, rounds=3 * timing.ROUNDS[scale], memory=False)
    kernels = {name: np.asarray(call(), np.float64) for name, call in calls.items()}
    reference, rows = REFERENCE[model], []
    for name in variants:
        ratio = timings[name]["seconds"] / timings[reference]["seconds"]
        difference = float(np.abs(kernels[name] - kernels[reference]).max() / np.abs(kernels[reference]).max())
        row = {"variant": name, **timings[name], "ratio": ratio, "difference": difference}
        kept = ratio <= MOST[model] and difference <= 1e-6
        text = f"at most {MOST[model]} times {reference}, difference at most 1e-6"
        rows.append(row | ({} if name == reference else tables.promise(text, kept)))
    return rows


def _variants(model: str, batch: int, scale: str):
    import jax

    from benchmarks import networks

    small = scale == "smoke"
    if model == TRANSFORMER:
        width = 16 if small else 128
        x = jax.random.normal(jax.random.key(1), (batch, 32, width))
        return x, {
            "unrolled": networks.transformer(4, width, 4, scanned=False),
            "scanned": networks.transformer(4, width, 4, scanned=True),
        }
    if model == FCN:
        layers, shape = networks.fcn(5, 32 if small else 1024, 3072, 1), (batch, 3072)
    else:
        side = 4 if small else 8
        layers, shape = networks.cnn(4, 8 if small else 128, 3, side, 1), (batch, side, side, 3)
    x = jax.random.normal(jax.random.key(1), shape)
    return x, {name: make(layers) for name, make in networks.FRAMEWORKS.items()}
