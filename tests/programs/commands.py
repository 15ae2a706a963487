"""The commands of the pages, one after the other, as a reader types them: python -m tests.programs.commands [--only=TEXT].

Each runs as it stands but for 20 steps and a width of 16, in a folder of its own.
Those of ``docs/claims`` and of ``experiments.claims`` run whole, for hours: ``make figures``. Slurm and ``make`` are left out.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHORT = {"steps": "20", "model.width": "16"}


def commands() -> list[str]:
    """Each ``python -m`` line of a block of a page once; those that read a run after those that make one.

    >>> any(command.startswith("python -m experiments.main --reproduce") for command in commands())
    True
    """
    pages = [ROOT / "README.md"]
    for folder in ("docs", "docs/howto", "docs/gallery"):
        pages += sorted((ROOT / folder).glob("*.md"))
    blocks = [
        block.replace("\\\n", " ")
        for page in pages
        for kind, block in re.findall(r"^```(.*)\n((?:.*\n)*?)^```", page.read_text(), re.MULTILINE)
        if kind in ("", "bash")
    ]
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("python -m experiments.")]
    found = [
        shlex.join(shlex.split(line, comments=True)) for line in lines if "experiments.claims" not in line and "..." not in line
    ]
    reads = lambda command: "runs/mine" in command and "--workdir=" not in command
    return sorted(dict.fromkeys(found), key=reads)


def shortened(command: str) -> str:
    """It with few steps and a small width, where it starts a run and names neither itself.

    >>> shortened("python -m experiments.main --config=configs/quickstart.py --config.steps=60")
    'python -m experiments.main --config=configs/quickstart.py --config.steps=60 --config.model.width=16'
    """
    if "--config=" not in command:
        return command
    more = [f"--config.{name}={value}" for name, value in SHORT.items() if name.split(".")[-1] not in command]
    return " ".join([command, *more])


def _make_folder(folder: Path) -> None:
    """The parts of the checkout that a command reads, and the data of the page *Use your own data*."""
    import numpy as np  # here: the list of commands needs none

    for name in ("catapult_jax", "experiments", "configs", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("_build", "__pycache__"))
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 600)
    x = generator.normal(size=(600, 16)) + 2 * np.eye(3, 16)[y]
    (folder / "mydata").mkdir()
    np.savez(folder / "mydata" / "blobs.npz", x_train=x[:400], y_train=y[:400], x_test=x[400:], y_test=y[400:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only the commands with this text")
    only = parser.parse_args().only
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        _make_folder(Path(folder))
        for command in commands():
            if only not in command:
                continue
            start = time.perf_counter()
            words = [sys.executable, *shlex.split(shortened(command))[1:]]
            environment = os.environ | {"PYTHONPATH": folder}
            done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)
            print(f"{done.returncode}  {time.perf_counter() - start:4.0f} s  {shortened(command)}", flush=True)
            if done.returncode:
                failed.append(command)
                print((done.stdout + done.stderr)[-1500:], flush=True)
    print(f"{len(failed)} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
