"""Time saved on the CPU by work-arounds for XLA; catapult_jax/xla.py lists them.

XLA runs convolutions slowly in loops. The first rows measure this effect, and the kernel and the AGOP in chunks. Chunks
of both are unrolled, one after the other in the same memory. The last rows measure work-arounds that have no other test:
with a ratio near one or below one, the work-around can go.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from benchmarks import child, house, tables, timing

COLUMNS = {
    "model": "model",
    "batch": "n",
    "variant": "variant",
    "seconds": "median s",
    "ratio": "/ row above",
    "forward_passes": "forward passes",
    "compile_seconds": "compile s",
    "above_mib": "above MiB",
    "promise": "promise",
    "met": "met",
    "note": "note",
}
SIZES = {"cpu": (32, 16), "smoke": (4, 2)}  # examples, and examples in a chunk
SUMMED = {"cpu": (3072, 1024), "smoke": (64, 8)}  # entries of the two arrays
SIDE = {"cpu": 320, "smoke": 8}  # of the matrices for LAPACK
STEPS = 4  # of the scan
LIMIT, AGOP_LIMIT = 3.0, 1.5


def run(scale: str) -> Iterator[dict[str, Any]]:
    n, chunk_size = SIZES.get(scale, SIZES["cpu"])
    arguments = {"n": n, "scale": scale}
    yield from child.rows_or_reason({"batch": n}, lambda: child.call("benchmarks.sections.loops:gradients", arguments))
    arguments |= {"chunk_size": chunk_size}
    for function in ("kernels", "agops"):
        make = lambda f=function: child.call(f"benchmarks.sections.loops:{f}", arguments)
        yield from child.rows_or_reason({"batch": n}, make)
    yield from child.rows_or_reason({}, lambda: child.call("benchmarks.sections.loops:sums", {"scale": scale}))
    yield from child.rows_or_reason({}, lambda: child.call("benchmarks.sections.loops:compilations", {"scale": scale}))
    yield from child.rows_or_reason({}, lambda: _lapack(scale))


def sums(scale: str) -> list[dict[str, Any]]:
    """Inner product of a direction with itself, scaled as by Adam: that of `catapult_jax.xla` and a plain one."""
    import jax
    import jax.numpy as jnp

    from catapult_jax.xla import sum_of_products

    direction, moment = (jax.random.normal(jax.random.key(i), SUMMED.get(scale, SUMMED["cpu"])) for i in range(2))
    scaled = lambda a, nu: a / (jnp.sqrt(jnp.abs(nu)) + 1e-8)
    ours = jax.jit(lambda a, nu: sum_of_products(a, scaled(a, nu)))
    plain = jax.jit(lambda a, nu: jnp.sum(a * scaled(a, nu)))
    calls = {"sum in parts": lambda: ours(direction, moment), "plain sum": lambda: plain(direction, moment)}
    return _rows("-", calls, scale, None)


def compilations(scale: str) -> list[dict[str, Any]]:
    """Seconds to compile a model for two examples, as the search for coupled examples does; the shorter of two trials."""
    import time

    import jax

    from catapult_jax.xla import QUICK

    f, params, x, _ = house.setup("wrn", scale, 2)
    rows = []
    for variant, options in (("compiled in a hurry", QUICK), ("compiled in full", None)):
        seconds = []
        for _ in range(2):
            lowered = jax.jit(lambda params, x: f(params, x), compiler_options=options).lower(params, x)
            start = time.perf_counter()
            lowered.compile()
            seconds.append(time.perf_counter() - start)
        rows.append({"model": "wrn", "batch": 2, "variant": variant, "compile_seconds": min(seconds)})
    rows[1]["ratio"] = rows[1]["compile_seconds"] / rows[0]["compile_seconds"]
    return rows


def _lapack(scale: str) -> list[dict[str, Any]]:
    """Eigenvalues with one thread of LAPACK, and with one for each core, each in its own process."""
    rows = []
    for threads in (1, os.cpu_count() or 1):
        variables = {name: str(threads) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")}
        row = child.call("benchmarks.sections.loops:eigenvalues", {"scale": scale}, variables=variables)
        rows.append({"model": "-", "variant": f"eigenvalues, LAPACK with {threads} threads", **row})
    rows[1]["ratio"] = rows[1]["seconds"] / rows[0]["seconds"]
    return rows


def eigenvalues(scale: str) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    side = SIDE.get(scale, SIDE["cpu"])
    rows = jax.random.normal(jax.random.key(0), (side, 4 * side))
    solve = jax.jit(lambda rows: [jnp.linalg.eigvalsh(i * rows @ rows.T) for i in range(1, 9)])
    return timing.take_turns({"eigenvalues": lambda: solve(rows)}, rounds=timing.ROUNDS[scale])["eigenvalues"]


def gradients(n: int, scale: str) -> list[dict[str, Any]]:
    import jax

    from catapult_jax import CNN, batch_loss

    model, x, y = CNN(depth=3, width=16, strides=(2, 1)), house.images(n), house.targets(n, 1, "mse")
    params = house.initialised(model, x)

    def step(params, x, y):
        gradient = jax.grad(lambda p: batch_loss(model.apply(p, x), y, loss="mse"))(params)
        return jax.tree.map(lambda w, g: w - 1e-3 * g, params, gradient)

    plain = jax.jit(step)
    scanned = jax.jit(lambda params, x, y: jax.lax.scan(lambda p, _: (step(p, x, y), None), params, length=STEPS)[0])

    def one_by_one():
        new = params
        for _ in range(STEPS):
            new = plain(new, x, y)
        return new

    calls = {"steps one by one": one_by_one, "steps in lax.scan": lambda: scanned(params, x, y)}
    return _rows(f"cnn of width 16, {STEPS} steps of SGD", calls, scale, None)


def kernels(n: int, chunk_size: int, scale: str) -> list[dict[str, Any]]:
    from catapult_jax import tangent_kernel

    return _in_chunks("cnn", "kernel", tangent_kernel, n, chunk_size, scale, LIMIT)


def agops(n: int, chunk_size: int, scale: str) -> list[dict[str, Any]]:
    from catapult_jax import input_jacobian

    return _in_chunks("cnn_64", "input Jacobians", input_jacobian, n, chunk_size, scale, AGOP_LIMIT)


def _in_chunks(model: str, what: str, function, n: int, chunk_size: int, scale: str, limit: float | None):
    import jax

    f, params, x, _ = house.setup(model, scale, n)
    functions = {
        size: jax.jit(lambda params, x, size=size: function(f, params, x, chunk_size=size)) for size in (None, chunk_size)
    }
    calls = {
        f"{what}, all at once": lambda: functions[None](params, x),
        f"{what}, chunks of {chunk_size}": lambda: functions[chunk_size](params, x),
    }
    forward = jax.jit(f)
    return _rows(model, calls, scale, limit, lambda: forward(params, x))


def _rows(model: str, calls: dict[str, timing.Call], scale: str, limit: float | None, forward: timing.Call | None = None):
    """Rows of two calls, and their ratio; in forward passes too if ``forward`` is given."""
    timings = timing.take_turns(calls | ({"forward": forward} if forward else {}), rounds=timing.ROUNDS[scale])
    once = timings.pop("forward")["seconds"] if forward else None
    if once:
        timings = {name: row | {"forward_passes": row["seconds"] / once} for name, row in timings.items()}
    (plain, first), (other, second) = timings.items()
    ratio = second["seconds"] / first["seconds"]
    promise = tables.at_most(limit, ratio, "times all at once")
    return [{"model": model, "variant": plain, **first}, {"model": model, "variant": other, **second, "ratio": ratio} | promise]
