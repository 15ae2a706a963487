"""Members in one program against a program for each: whole processes as a user starts them, and single steps.

A whole process (configs/catapults_agop.py:rank2) has imports, compilation, steps and report.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import child, house, tables, timing

COLUMNS = {
    "model": "what runs",
    "members": "members",
    "variant": "variant",
    "seconds": "s",
    "ratio": "together / apart",
    "compile_seconds": "compile s",
    "above_mib": "above MiB",
    "peak_mib": "peak MiB",
    "promise": "promise",
    "met": "met",
    "note": "note",
}
SEEDS = {"cpu": (0, 1), "smoke": (0,)}
RAISES = {"cpu": (0, 1, 2, 3), "smoke": (0, 1)}
VMAPPED = {"cpu": (8, 128), "smoke": (2, 4)}  # members, examples in a batch


def run(scale: str) -> Iterator[dict[str, Any]]:
    count = len(SEEDS.get(scale, SEEDS["cpu"])) * len(RAISES.get(scale, RAISES["cpu"]))
    yield from child.rows_or_reason({"model": "catapults_agop:rank2", "members": count}, lambda: _processes(scale))
    members, batch = VMAPPED.get(scale, VMAPPED["cpu"])
    for measured in (False, True):
        what = f"fcn, b={batch}, " + ("step with exact critical lr" if measured else "bare step")
        arguments = {"members": members, "batch": batch, "measured": measured, "scale": scale}
        make = lambda a=arguments: child.call("benchmarks.sections.members:vmapped", a)
        yield from child.rows_or_reason({"model": what, "members": members}, make)


def _processes(scale: str) -> Iterator[dict[str, Any]]:
    seeds, raises = SEEDS.get(scale, SEEDS["cpu"]), RAISES.get(scale, RAISES["cpu"])
    with tempfile.TemporaryDirectory() as folder:
        together, peak = _process(seeds, raises, Path(folder, "together"), scale)
        inside = json.loads(Path(folder, "together", "run.json").read_text())["seconds"]
        each = [_process((s,), (r,), Path(folder, f"{s}-{r}"), scale) for s, r in itertools.product(seeds, raises)]
    apart, peaks = zip(*each, strict=True)
    ratio = together / sum(apart)
    yield (
        {"variant": "together, one process", "seconds": together, "peak_mib": peak, "note": f"{inside:.1f} s after the imports"}
        | {"ratio": ratio}
        | tables.promise("less than 1/3", ratio < 1 / 3)
    )
    yield {"variant": "apart, a process each", "seconds": sum(apart), "peak_mib": max(peaks)} | {
        "note": f"{min(apart):.1f} to {max(apart):.1f} s each"
    }


def _process(seeds, raises, directory: Path, scale: str) -> tuple[float, float]:
    """Seconds and peak MiB of a process that runs these members."""
    return child.run_experiment(
        "catapults_agop.py:rank2" + (",smoke" if scale == "smoke" else ""), directory,
        f"--config.members.seed={seeds}", f"--config.members.raises={raises}", "--config.claims=()",
    )  # fmt: skip


def vmapped(members: int, batch: int, measured: bool, scale: str) -> list[dict[str, Any]]:
    import jax
    import jax.numpy as jnp

    from catapult_jax import batch_loss, critical_lr

    model, x, y = house.network("fcn", scale), house.images(batch), house.targets(batch, 1, "mse")
    each = [house.initialised(model, x, seed) for seed in range(members)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

    def step(params, x, y):
        value, gradient = jax.value_and_grad(lambda p: batch_loss(model.apply(p, x), y, loss="mse"))(params)
        critical = critical_lr(model.apply, params, (x, y), loss="mse") if measured else None
        return jax.tree.map(lambda w, g: w - 1e-3 * g, params, gradient), value, critical

    single, vmapped_step = jax.jit(step), jax.jit(jax.vmap(step, in_axes=(0, None, None)))
    calls = {
        "together, vmapped": lambda: vmapped_step(stacked, x, y),
        "apart, one by one": lambda: [single(p, x, y) for p in each],
    }
    timings = timing.take_turns(calls, rounds=timing.ROUNDS[scale])
    ratio = timings["together, vmapped"]["seconds"] / timings["apart, one by one"]["seconds"]
    return [{"variant": name, **row} | ({"ratio": ratio} if "together" in name else {}) for name, row in timings.items()]
