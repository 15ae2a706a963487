"""The long versions of the tests of reliability: python -m tests.programs.soak [--kills=60] [--files=3000] [--configs=3000] [--runs=150] [--write].

``--write`` puts the counts into docs/soak.json, with the environment; without it they are printed alone.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from catapult_jax import provenance, records
from experiments import reproduce
from tests.programs.dying import ENDS

ROOT = Path(__file__).parents[2]
_BASE = ["--config=configs/quickstart.py:smoke", "--config.model.width=16", "--config.data.name=digits", "--config.claims=()"]
_OFTEN = ["--config.steps=600", "--config.run.chunk_steps=2", "--config.run.checkpoint_every=4"]  # most of the time is writing
COMMANDS = {
    "one member": ["experiments.main", *_BASE, *_OFTEN, "--config.members.lr=(0.5,)"],
    "vmapped members, Adam, batches": [
        "experiments.main", *_BASE, *_OFTEN, "--config.members.seed=(0,1,2)", "--config.optimizer.name=adam",
        "--config.optimizer.batch_size=4", "--config.measure.lambda_max_batch_every=3", "--config.measure.loss_train_every=0",
    ],
    "convolutions, step by step": [
        "experiments.main", *_BASE, *_OFTEN, "--config.model.name=cnn", "--config.model.depth=2", "--config.model.width=4",
        "--config.members.lr=(0.5,)", "--config.optimizer.batch_size=4", "--config.optimizer.momentum=0.9", "--config.schedule.name=cyclic",
    ],
    "sweep": ["experiments.sweep", *_BASE, *_OFTEN, "--grid=model.activation=relu,tanh", "--config.steps=240"],
}  # fmt: skip


def _start(command: list[str], workdir: Path, cache: Path, dies: str = "") -> subprocess.Popen:
    """``dies``: where it kills itself, see :mod:`tests.programs.dying`; empty: nowhere."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache)}
    dying = ["tests.programs.dying", dies] if dies else []
    return subprocess.Popen(
        [sys.executable, "-m", *dying, *command, f"--workdir={workdir}"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def _to_the_end(command: list[str], workdir: Path, cache: Path) -> str:
    process = _start(command, workdir, cache)
    out, _ = process.communicate(timeout=600)
    if process.returncode:
        raise AssertionError(f"exit status {process.returncode} of {' '.join(command)}: {out[-2000:]}")
    return out


def _progress(workdir: Path) -> dict[Path, int]:
    """Time of the last change of each file that a run writes at every chunk."""
    return {path: path.stat().st_mtime_ns for pattern in ("progress.json", "*/progress.json") for path in workdir.glob(pattern)}


_HALVES = (ENDS["record"], ENDS["checkpoint"])


def _half_written(workdir: Path, halves) -> set[str]:
    """Files and folders whose names end in one of ``halves``. Others may come and go meanwhile."""
    paths = ((folder, name) for folder, *names in os.walk(workdir) for name in (*names[0], *names[1]))
    return {os.path.join(folder, name) for folder, name in paths if name.endswith(tuple(halves))}


def kill_and_resume(command: list[str], directory: Path, kills: int, seed: int) -> dict[str, int]:
    """Runs a command to its end once, and again with ``kill -9`` at random moments; the two must be the same, bit for bit.

    Every other kill comes up to a second after the first chunk of its start. The others come when a file of the record, or a checkpoint,
    is half written. A command that ends before the last kill runs again from an empty directory.

    Raises:
      AssertionError: the runs differ, or a command failed.
    """
    draw, cache = random.Random(seed), directory / "compiled"
    counts = {
        "kills": 0,
        "runs": 0,
        "sittings": 0,
        "in_checkpoint": 0,
        "in_record": 0,
        "runs_compared": 0,
        "numbers_compared": 0,
    }
    _to_the_end(command, directory / "whole", cache)
    while counts["kills"] < kills:
        workdir = directory / f"killed-{counts['runs']}"
        counts["runs"] += 1
        while counts["kills"] < kills:
            left, before = _half_written(workdir, _HALVES), _progress(workdir)
            places = ("", f"record:{draw.randint(1, 150)}", "", f"checkpoint:{draw.randint(1, 20)}")
            dies = places[counts["sittings"] % 4]
            process = _start(command, workdir, cache, dies)
            counts["sittings"] += 1
            if dies:
                ended = process.wait() != -signal.SIGKILL
            else:
                while process.poll() is None and _progress(workdir) == before:
                    time.sleep(0.01)
                time.sleep(draw.uniform(0, 1))
                ended = process.poll() is not None
                if not ended:
                    os.killpg(process.pid, signal.SIGKILL)
            out, _ = process.communicate()
            if ended:
                assert process.returncode == 0, out[-2000:]
                break
            counts["kills"] += 1
            for name, half in zip(("in_record", "in_checkpoint"), _HALVES, strict=True):
                counts[name] += bool(_half_written(workdir, [half]) - left)
        _to_the_end(command, workdir, cache)
        _compare(directory / "whole", workdir, counts)
    return counts


def _compare(whole: Path, parts: Path, counts: dict[str, int]) -> None:
    runs = [path.parent.relative_to(whole) for path in sorted(whole.rglob("run.json"))]
    assert runs, whole
    for run in runs:
        comparison = reproduce.compare(whole / run, parts / run)
        assert comparison.same, (run, comparison.differing)
        assert (whole / run / "config.json").read_text() == (parts / run / "config.json").read_text(), run
        counts["runs_compared"] += 1
        counts["numbers_compared"] += comparison.numbers
    if (whole / "summary.csv").is_file():
        assert (whole / "summary.csv").read_text() == (parts / "summary.csv").read_text()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--files", type=int, default=3000)
    parser.add_argument("--configs", type=int, default=3000)
    parser.add_argument("--runs", type=int, default=150)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    results: dict = {"environment": provenance.environment(), "kills": {}}
    for seed, (name, command) in enumerate(COMMANDS.items()):
        with tempfile.TemporaryDirectory() as directory:
            begin = time.monotonic()
            counts = kill_and_resume(command, Path(directory), -(-arguments.kills // len(COMMANDS)), seed)
            results["kills"][name] = counts | {"seconds": round(time.monotonic() - begin)}
        print(name, results["kills"][name], flush=True)
    from tests.programs import fuzz

    counts = {"files": arguments.files, "models": arguments.files, "configs": arguments.configs, "runs": arguments.runs}
    for name, try_so_many in (
        ("files", fuzz.files),
        ("models", fuzz.models_tried),
        ("configs", fuzz.command_lines_tried),
        ("runs", fuzz.runs),
    ):
        results[name] = tried = try_so_many(counts[name])
        print(name, tried, flush=True)
    for kind in ("in_checkpoint", "in_record"):
        assert not arguments.kills or sum(counts[kind] for counts in results["kills"].values()), f"no kill {kind}"
    if arguments.write:
        records.write_json(ROOT / "docs" / "soak.json", results, checksum=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
