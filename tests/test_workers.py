"""The runs of a sweep in one process and in several."""

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from configs import quickstart
from experiments import sweep, workers
from experiments.config import ConfigError


@pytest.fixture(autouse=True)
def no_data(monkeypatch, plain_figures):
    monkeypatch.delenv("CATAPULT_DATA_DIR", raising=False)


def table(directory):
    return list(csv.DictReader((directory / "summary.csv").read_text().splitlines()))


def test_run_all_goes_on_after_a_run_that_fails(tmp_path, monkeypatch):
    whole = workers.run

    def fails(config, directory):
        if config.model.width == 8:
            raise ConfigError("no")
        return whole(config, directory)

    monkeypatch.setattr(workers, "run", fails)
    with pytest.raises(sweep.RunError, match="1 of 2 runs failed"):
        sweep.run_sweep(quickstart.get_config("smoke"), ["model.width=8,32"], tmp_path / "s", 1)
    assert [row["model.width"] for row in table(tmp_path / "s")] == ["32", "32"]
    assert "no</p>" in (tmp_path / "s" / "summary.html").read_text()


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc")
def test_a_process_ends_with_its_parent(tmp_path):
    """SIGKILL of the parent tells its children nothing: each looks whether it is still there."""
    child = "import time; from experiments import signals; signals.end_with_parent(); print('here', flush=True); time.sleep(60)"
    parent = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True); import time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    assert process.stdout.readline() == "here\n"

    process.kill()
    process.wait()
    process.stdout.close()

    end = time.monotonic() + 30
    while time.monotonic() < end and (state := _state(pid)) not in ("", "Z"):
        time.sleep(0.1)
    assert state in ("", "Z")


def _state(pid):
    """The state of a process; empty: there is none, Z: it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_run_all_goes_on_after_a_process_that_is_killed(tmp_path, capsys):
    """The system kills a process when there is no memory left. The other runs are complete, and in the summary."""
    config = quickstart.get_config("smoke")
    config.members.lr, config.data.name, config.steps, config.run.chunk_steps = (0.5,), "digits", 1000, 1
    pids = []

    def kill():
        while not (processes := multiprocessing.active_children()) or not [*(tmp_path / "s").glob("*/progress.json")]:
            time.sleep(0.05)
        pids.append(processes[0].pid)
        os.kill(processes[0].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    with pytest.raises(sweep.RunError, match="1 of 3 runs failed; the summary shows the others"):
        sweep.run_sweep(config, ["model.activation=relu,tanh,gelu"], tmp_path / "s", 2)
    thread.join()
    assert len(pids) == 1 and len(rows := table(tmp_path / "s")) == 2
    assert {row["model.activation"] for row in rows} < {"relu", "tanh", "gelu"}
    assert "its process was killed by SIGKILL (often: no memory left); run the same command again" in capsys.readouterr().err
