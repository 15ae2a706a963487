"""Time saved by the cache of compiled programs: two processes run the smoke run of configs/cifar_gd.py with one cache."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import child

COLUMNS = {
    "model": "config",
    "variant": "cache",
    "seconds": "s",
    "ratio": "/ empty",
    "peak_mib": "peak MiB of the process",
    "note": "note",
}


def run(scale: str) -> Iterator[dict[str, Any]]:
    del scale  # one size
    yield from child.rows_or_reason({"model": "cifar_gd:smoke"}, _twice)


def _twice() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        (cold, cold_peak), (warm, warm_peak) = (
            child.run_experiment("cifar_gd.py:smoke", Path(folder, name), f"--compilation_cache={cache}")
            for name in ("first", "second")
        )
    yield {"variant": "empty", "seconds": cold, "peak_mib": cold_peak}
    yield {"variant": "filled by the first run", "seconds": warm, "ratio": warm / cold, "peak_mib": warm_peak}
