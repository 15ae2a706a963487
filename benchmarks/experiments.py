"""Cost of members and of the AGOP: python -m benchmarks.experiments.

- sixteen members of configs/catapults_agop.py:rank2 as one program, against the same sixteen as one program each (whole processes, as a
  user starts them: imports, compilation, steps, report);
- peak memory of the AGOP alignment on images of CelebA's size (96 x 96 x 3), where a d x d matrix alone would take 3 GB.

Results go to benchmarks/results/experiments.json and experiments.md.
"""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
SEEDS, RAISES = (0, 1, 2, 3), (0, 1, 2, 3)
EXAMPLES, SIDE = 1024, 96


def run_members(seeds, raises, directory: Path) -> float:
    """Seconds of one process that runs these members."""
    command = [
        sys.executable, "-m", "experiments.main", "--config=configs/catapults_agop.py:rank2", f"--workdir={directory}",
        f"--config.members.seed={seeds}", f"--config.members.raises={raises}", "--config.claims=()",
    ]  # fmt: skip
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def agop_memory(kind: str) -> dict[str, float]:
    """Peak resident MiB of a process, before and after the alignment of two networks on images, and its seconds."""
    import jax

    from catapult_jax import CNN, FCN, agop_alignment, input_jacobian

    model = CNN(depth=4, width=16, strides=(2, 2, 2)) if kind == "cnn" else FCN(depth=3, width=128)
    x = jax.random.normal(jax.random.key(0), (EXAMPLES, SIDE, SIDE, 3))
    one, two = (model.init(jax.random.key(seed), x[:1]) for seed in (1, 2))
    jax.block_until_ready((x, one, two))
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    before, start = peak(), time.perf_counter()
    alignment = jax.jit(
        lambda one, two, x: agop_alignment(*(input_jacobian(model.apply, p, x, chunk_size=32) for p in (one, two)))
    )
    jax.block_until_ready(alignment(one, two, x))
    return {"before_mib": before, "peak_mib": peak(), "seconds": time.perf_counter() - start}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(agop_memory(sys.argv[1])))
        return
    from catapult_jax import records

    with tempfile.TemporaryDirectory() as folder:
        together = run_members(SEEDS, RAISES, Path(folder, "together"))
        apart = [run_members((s,), (r,), Path(folder, f"{s}-{r}")) for s, r in itertools.product(SEEDS, RAISES)]
        inside = json.loads(Path(folder, "together", "run.json").read_text())["seconds"]
    memory = {
        kind: json.loads(
            subprocess.run(
                [sys.executable, "-m", "benchmarks.experiments", kind], check=True, capture_output=True, text=True
            ).stdout.splitlines()[-1]
        )
        for kind in ("fcn", "cnn")
    }
    ratio = together / sum(apart)
    lines = [
        "| what | value | promise | met |",
        "|---|---|---|---|",
        f"| 16 members together, whole process | {together:.1f} s ({inside:.1f} s after the imports) | - | - |",
        f"| 16 members apart, 16 processes | {sum(apart):.1f} s ({min(apart):.1f} to {max(apart):.1f} each) | - | - |",
        f"| together / apart | {ratio:.3f} | less than 1/3 | {'yes' if ratio < 1 / 3 else 'NO'} |",
    ]
    for kind, m in memory.items():
        met = "yes" if m["peak_mib"] < 2048 else "NO"
        what = f"AGOP alignment, {kind}, {EXAMPLES} images {SIDE}x{SIDE}x3: peak memory"
        value = f"{m['peak_mib']:.0f} MiB ({m['before_mib']:.0f} before), {m['seconds']:.1f} s with compilation"
        lines.append(f"| {what} | {value} | less than 2048 MiB | {met} |")
    table = "\n".join(lines)
    print(table)
    (HERE / "results").mkdir(exist_ok=True)
    results = {
        "environment": records.environment(),
        "together": together,
        "inside": inside,
        "apart": apart,
        "agop_memory": memory,
    }
    records.write_json(HERE / "results" / "experiments.json", results)
    (HERE / "results" / "experiments.md").write_text(table + "\n")


if __name__ == "__main__":
    main()
