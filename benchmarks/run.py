"""Measures costs and checks the promises: python -m benchmarks.run [--only SECTION ...] [--scale SCALE].

Each group of measurements runs in its own process. Within a process the variants take turns, and ratios are taken there.
Results go to benchmarks/results: performance.json has every round, performance.md one table for each section. A section that
does not run keeps its results. ``--scale=smoke`` tests in about ten minutes that everything runs. Its networks are too small
for meaningful numbers, so it writes to a temporary folder.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import child, tables
from catapult_jax import records

SECTIONS = (
    "step",
    "preset",
    "kernel",
    "frameworks",
    "losses",
    "watch",
    "line_search",
    "eigen",
    "certainty",
    "along",
    "optimizers",
    "agop",
    "members",
    "growth",
    "large",
    "compile",
    "loops",
)
RESULTS = Path(__file__).parent / "results"


def section_of(name: str):
    return importlib.import_module(f"benchmarks.sections.{name}")


def measure(name: str, scale: str) -> dict[str, Any]:
    """One section: its rows, seconds, scale and environment."""
    section, rows, start = section_of(name), [], time.monotonic()
    for row in section.run(scale):
        rows.append(row)
        cells = "  ".join(tables.cell(row.get(key)) for key in section.COLUMNS)
        print(f"[{name} {time.monotonic() - start:.0f} s] {cells}", file=sys.stderr, flush=True)
    seconds = time.monotonic() - start
    return {"rows": rows, "seconds": seconds, "scale": scale, "environment": child.call("benchmarks.child:environment", {})}


def report(results: dict[str, Any]) -> str:
    """All measured sections as Markdown, in the order of ``SECTIONS``."""
    parts = ["# Performance\n\nMade by `python -m benchmarks.run`; ratios are taken within one run."]
    for name in (name for name in SECTIONS if name in results):
        result, section = results[name], section_of(name)
        e = result["environment"]
        where = f"{', '.join(sorted(set(e['devices'])))}, {e['cores']} cores, jax {e['packages']['jax']}, Python {e['python']}"
        missed = sum(row.get("met") == "NO" for row in result["rows"])
        kept = sum(row.get("met") == "yes" for row in result["rows"])
        text = " ".join(section.__doc__.split("\n\n")[0].split())
        line = f"{result['seconds']:.0f} s at scale {result['scale']} on {where}; promises kept: {kept}, not kept: {missed}."
        parts.append(f"## {name}\n\n{text}\n\n{line}\n\n{tables.markdown(result['rows'], section.COLUMNS)}")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SECTIONS, nargs="+", action="extend", help="default: all")
    parser.add_argument("--scale", choices=("cpu", "gpu", "smoke"), default="cpu", help="default: cpu")
    parser.add_argument("--out", type=Path, help="folder; default: benchmarks/results, and a temporary one for smoke")
    options = parser.parse_args()
    out = options.out or (Path(tempfile.mkdtemp(prefix="benchmarks-")) if options.scale == "smoke" else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    # CPU and GPU numbers go to different files.
    stem = "performance_gpu" if options.scale == "gpu" else "performance"
    stored = out / f"{stem}.json"
    results = json.loads(stored.read_text()) if stored.is_file() else {}
    for name in options.only or SECTIONS:
        results[name] = measure(name, options.scale)
        records.write_json(stored, results, checksum=False)
        (out / f"{stem}.md").write_text(report(results))
    print(report({name: results[name] for name in options.only or SECTIONS}))
    print(f"written: {stored}", file=sys.stderr)


if __name__ == "__main__":
    main()
