"""What the cache of compiled programs saves: the smoke run of configs/cifar_gd.py twice, whole processes, one cache."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import child

COLUMNS = {"model": "config", "variant": "cache", "seconds": "s", "ratio": "/ empty", "note": "note"}


def run(scale: str) -> Iterator[dict[str, Any]]:
    del scale  # one size
    yield from child.rows_or_reason({"model": "cifar_gd:smoke"}, _twice)


def _twice() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        cold, warm = (_process(cache, Path(folder, name)) for name in ("first", "second"))
    yield {"variant": "empty", "seconds": cold}
    yield {"variant": "filled by the first run", "seconds": warm, "ratio": warm / cold}


def _process(cache: Path, workdir: Path) -> float:
    command = [
        sys.executable, "-m", "experiments.main", "--config=configs/cifar_gd.py:smoke",
        f"--compilation_cache={cache}", f"--workdir={workdir}",
    ]  # fmt: skip
    start = time.monotonic()
    done = subprocess.run(command, cwd=child.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise child.Failed(done.stderr.strip().splitlines()[-1][:300])
    return time.monotonic() - start
