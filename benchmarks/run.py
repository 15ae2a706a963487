"""Measures what the project costs, and whether it keeps its promises: python -m benchmarks.run [--only SECTION ...] [--scale SCALE].

Each group of measurements runs in a process of its own; within one, variants take turns, and ratios are taken there. Results go
to benchmarks/results/performance.json (with every round) and performance.md (one table for each section); a section that is
not run keeps the results that it has. ``--scale=smoke`` shows in about ten minutes that everything runs, on networks too small to
tell anything, and writes elsewhere.
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
    """One section: its rows, the seconds that it took, and what it ran on."""
    section, rows, start = section_of(name), [], time.monotonic()
    for row in section.run(scale):
        rows.append(row)
        said = "  ".join(tables.cell(row.get(key)) for key in section.COLUMNS)
        print(f"[{name} {time.monotonic() - start:.0f} s] {said}", file=sys.stderr, flush=True)
    seconds = time.monotonic() - start
    return {"rows": rows, "seconds": seconds, "scale": scale, "environment": child.call("benchmarks.child:environment", {})}


def report(results: dict[str, Any]) -> str:
    """All sections that were ever measured, in their order."""
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
    given = parser.parse_args()
    out = given.out or (Path(tempfile.mkdtemp(prefix="benchmarks-")) if given.scale == "smoke" else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    # Numbers of different machines do not share a file.
    stem = "performance_gpu" if given.scale == "gpu" else "performance"
    stored = out / f"{stem}.json"
    results = json.loads(stored.read_text()) if stored.is_file() else {}
    for name in given.only or SECTIONS:
        results[name] = measure(name, given.scale)
        records.write_json(stored, results, checksum=False)
        (out / f"{stem}.md").write_text(report(results))
    print(report({name: results[name] for name in given.only or SECTIONS}))
    print(f"written: {stored}", file=sys.stderr)


if __name__ == "__main__":
    main()
