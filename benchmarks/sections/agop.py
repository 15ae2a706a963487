"""AGOP alignment from stacked input Jacobians against explicit d x d matrices, and its memory on images of CelebA's size.

The seconds are those of the alignment, without the Jacobians of 256 examples. At d = 192 there are more rows than columns, so
the Gram form also takes the smaller d x d matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import child, house, tables, timing

COLUMNS = {
    "model": "model",
    "batch": "n",
    "d": "d",
    "variant": "variant",
    "seconds": "s",
    "ratio": "/ Gram form",
    "compile_seconds": "compile s",
    "difference": "difference of the values",
    "before_mib": "before MiB",
    "peak_mib": "peak MiB",
    "above_mib": "above MiB",
    "promise": "promise",
    "met": "met",
    "note": "note",
}
EXAMPLES = {"cpu": 256, "smoke": 16}
DIMENSIONS = {"cpu": (192, 768, 3072), "smoke": (12, 48)}
MEMORY = {"cpu": (1024, 96), "smoke": (64, 16)}  # images, and pixels along a side
MEMORY_LIMIT = 2048  # MiB; one d x d matrix of such images would take 3 GB


def run(scale: str) -> Iterator[dict[str, Any]]:
    for d in DIMENSIONS.get(scale, DIMENSIONS["cpu"]):
        case = {"model": "-", "batch": EXAMPLES.get(scale, EXAMPLES["cpu"]), "d": d}
        make = lambda case=case: child.call(
            "benchmarks.sections.agop:seconds", {"n": case["batch"], "d": case["d"], "scale": scale}
        )
        yield from child.rows_or_reason(case, make)
    n, side = MEMORY.get(scale, MEMORY["cpu"])
    for kind in ("fcn", "cnn"):
        case = {"model": kind, "batch": n, "d": side * side * 3, "variant": "alignment of two networks"}
        make = lambda kind=kind: [child.call("benchmarks.sections.agop:memory", {"kind": kind, "n": n, "side": side})]
        for row in child.rows_or_reason(case, make):
            met = row["peak_mib"] < MEMORY_LIMIT if "peak_mib" in row else None
            yield row | tables.promise(f"less than {MEMORY_LIMIT} MiB", met)


def seconds(n: int, d: int, scale: str) -> list[dict[str, Any]]:
    import jax
    import jax.numpy as jnp

    from catapult_jax import agop_alignment

    rows, reference = (jax.random.normal(jax.random.key(seed), (n, d)) for seed in (0, 1))
    reference = rows + reference

    @jax.jit
    def explicit(a, b):
        with jax.default_matmul_precision("highest"):
            g, h = a.T @ a / n, b.T @ b / n
        return jnp.sum(g * h) / (jnp.linalg.norm(g) * jnp.linalg.norm(h))

    gram = jax.jit(agop_alignment)
    calls = {"Gram form": lambda: gram(rows, reference), "explicit": lambda: explicit(rows, reference)}
    timings = timing.take_turns(calls, rounds=timing.ROUNDS[scale])
    difference = abs(float(gram(rows, reference)) - float(explicit(rows, reference)))
    ratio = timings["explicit"]["seconds"] / timings["Gram form"]["seconds"]
    return [
        {"variant": "Gram form", **timings["Gram form"]},
        {"variant": "explicit d x d", **timings["explicit"], "ratio": ratio, "difference": difference},
    ]


def memory(kind: str, n: int, side: int) -> dict[str, Any]:
    import jax

    from catapult_jax import CNN, FCN, agop_alignment, input_jacobian

    model = CNN(depth=4, width=16, strides=(2, 2, 2)) if kind == "cnn" else FCN(depth=3, width=128)
    x = house.images(n, side=side)
    first, second = (house.initialised(model, x, seed) for seed in (1, 2))
    jax.block_until_ready((x, first, second))
    alignment = jax.jit(
        lambda first, second, x: agop_alignment(*(input_jacobian(model.apply, p, x, chunk_size=32) for p in (first, second)))
    )
    peak = timing.peak_of(lambda: alignment(first, second, x))
    return peak | {"seconds": timing.seconds_of(lambda: alignment(first, second, x))}
