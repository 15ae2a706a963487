"""lambda_max without a kernel: 10,000 examples with 10 outputs, and a vision transformer of 25 million parameters.

mse, random data, one eigenpair to one percent. Warm: from the eigenvectors of one step of SGD (half the critical lr)
earlier. The seconds are those of one call after the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import child, house, tables, timing

COLUMNS = {
    "model": "model",
    "parameters": "parameters",
    "batch": "n",
    "outputs": "outputs",
    "variant": "start",
    "products": "products",
    "seconds": "median s",
    "forward_passes": "forward passes",
    "limit": "limit",
    "compile_seconds": "first call, extra s",
    "eigenvalue": "lambda_max",
    "bound": "bound / lambda_max",
    "before_mib": "before MiB",
    "peak_mib": "peak MiB",
    "promise": "promise",
    "met": "met",
    "note": "note",
}
# (model, changes of the network in house.py, examples, outputs, examples in a chunk)
CASES = {
    "cpu": (
        ("fcn", dict(depth=3, width=256), 10_000, 10, 500),
        ("vit", dict(depth=12, width=512, heads=8), 32, 1, None),  # 8 depth width^2 and the patches: 25 million
    ),
    "smoke": (("fcn", dict(depth=2, width=8), 25, 2, 10), ("vit", dict(depth=1, width=8), 4, 1, None)),
}


def run(scale: str) -> Iterator[dict[str, Any]]:
    for model, changes, batch, outputs, chunk_size in CASES.get(scale, CASES["cpu"]):
        case = {"model": model, "batch": batch, "outputs": outputs}
        arguments = case | {"changes": changes, "chunk_size": chunk_size, "scale": scale}
        make = lambda a=arguments: child.call("benchmarks.sections.large:top", a, seconds=1800)
        yield from child.rows_or_reason(case, make)


def top(model: str, batch: int, outputs: int, changes: dict, chunk_size: int | None, scale: str) -> list[dict[str, Any]]:
    import jax

    from catapult_jax import batch_loss, top_eigenpairs
    from catapult_jax.xla import loops_are_slow

    f, params, x, y = house.setup(model, scale, batch, outputs=outputs, **changes)
    jax.block_until_ready((params, x, y))

    def pairs():
        """Compiled anew, so that the first call of each start includes its compilation."""
        search = lambda params, x, y, start: top_eigenpairs(
            f, params, (x, y), k=1, loss="mse", warm_start=start, tol=0.01, chunk_size=chunk_size
        )
        return search if loops_are_slow(f, params, x) else jax.jit(search)

    earlier = pairs()(params, x, y, None)
    gradient = jax.jit(jax.grad(lambda params: batch_loss(f(params, x), y, loss="mse")))(params)
    params = jax.tree.map(lambda w, g: w - g / earlier.eigenvalues[0], params, gradient)

    starts = {"cold": None, "warm": earlier.directions}
    call_of = lambda search, start: lambda: search(params, x, y, start)
    calls = {name: call_of(pairs(), start) for name, start in starts.items()}
    forward = jax.jit(f)
    calls["forward"] = lambda: forward(params, x)
    timings = timing.take_turns(calls, rounds=min(timing.SLOW_ROUNDS, timing.ROUNDS[scale]))
    once = timings.pop("forward")["seconds"]
    del calls["forward"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    rows = []
    for name, call in calls.items():
        result = call()
        value = float(result.eigenvalues[0])
        rows.append(
            {"variant": name, "parameters": count, "products": float(result.products), "eigenvalue": value, **timings[name]}
            | {"forward_passes": timings[name]["seconds"] / once, "limit": 4 * float(result.products)}
            | {"bound": float(result.bounds[0]) / value, "note": "" if bool(result.converged) else "did not converge"}
            | tables.promise("known to 1 %", bool(result.converged) and float(result.bounds[0]) <= 0.01 * value)
        )
    return rows
