"""Runs one function in its own process, within limits of time and memory, so that its peak memory can be measured."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MIB_LIMIT = 12 * 1024


class Failed(Exception):
    """The function could not be measured; the message says why, in one line."""


def call(
    function: str,
    arguments: dict[str, Any],
    *,
    seconds: float = 900.0,
    mib: float = MIB_LIMIT,
    cache: str | None = None,
    variables: dict[str, str] | None = None,
) -> Any:
    """Result of ``function``, run in a process of its own.

    Args:
      function: "module:name".
      arguments: keyword arguments; they and the result are JSON.
      seconds, mib: limits of time and of resident memory.
      cache: folder of compiled programs; None: no cache.
      variables: environment variables to set.

    Raises:
      Failed: the function raised an error or exceeded a limit.
    """
    # With a cache of compiled programs the compile seconds would mean nothing.
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    if cache is not None:
        environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment |= variables or {}
    command = [sys.executable, "-m", "benchmarks.child", function, json.dumps(arguments)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=err)
        try:
            _watch(process, seconds, mib)
        finally:
            process.kill()
            process.wait()
        out.seek(0)
        err.seek(0)
        if process.returncode:
            last = (err.read().strip().splitlines() or [""])[-1][:300]
            # A Python error ends with its message; after a signal the last line may be anything.
            raise Failed(last if process.returncode == 1 and last else f"ended with status {process.returncode}: {last}")
        return json.loads(out.read().splitlines()[-1])


def _watch(process: subprocess.Popen, seconds: float, mib: float) -> None:
    start = time.monotonic()
    while True:
        try:
            process.wait(0.1)
            return
        except subprocess.TimeoutExpired:
            if time.monotonic() - start > seconds:
                raise Failed(f"stopped: more than {seconds:.0f} s") from None
            if _resident_mib(process.pid) > mib:
                raise Failed(f"stopped: more than {mib / 1024:.0f} GiB of memory") from None


def _resident_mib(pid: int) -> float:
    """Resident MiB of a process; 0 on systems without /proc."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def rows_or_reason(identity: dict[str, Any], make: Callable[[], Iterable[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of ``make``, each with ``identity`` first; one row with the reason if ``make`` fails."""
    try:
        return [identity | row for row in make()]
    except Failed as error:
        return [identity | {"note": str(error)}]


def run_experiment(config: str, workdir: Path, *flags: str) -> tuple[float, float]:
    """Seconds and peak resident MiB of a process that runs a config as a user starts it: imports, compilation, steps, report.

    Raises:
      Failed: the process ended with an error.
    """
    command = [sys.executable, "-m", "experiments.main", f"--config=configs/{config}", f"--workdir={workdir}", *flags]
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=err)
        try:
            _, status, usage = os.wait4(process.pid, 0)  # the usage of this child only
        except BaseException:
            process.kill()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            err.seek(0)
            raise Failed((err.read().strip().splitlines() or [f"ended with status {process.returncode}"])[-1][:300])
    return time.monotonic() - start, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def environment() -> dict[str, Any]:

    from catapult_jax import provenance

    return provenance.environment()


if __name__ == "__main__":
    module, name = sys.argv[1].split(":")
    print(json.dumps(getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))))
