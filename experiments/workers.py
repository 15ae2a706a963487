"""The runs of a sweep: one after the other in this process, or several at a time in processes of their own."""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import signal
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from catapult_jax import records
from experiments import command_line, signals
from experiments import config as configs
from experiments.build import programs
from experiments.main import run


class Job(NamedTuple):
    """A run, as it is sent to a process."""

    config: dict[str, Any]
    directory: str
    cache: str | None  # directory of compiled programs

    @property
    def name(self) -> str:
        """Name of the directory, which names the run."""
        return Path(self.directory).name


def run_all(jobs: Sequence[Job], processes: int) -> dict[str, str]:
    """Run jobs. A run that fails or is killed does not stop the others.

    Args:
      jobs: with different names.
      processes: number of runs at a time.

    Returns:
      Name -> error message, for the runs that failed.

    Raises:
      SystemExit: stopped by a signal, after each run has saved its chunk.
    """
    if processes == 1 or len(jobs) < 2:
        with programs.shared_programs():
            errors = {job.name: _run(job) for job in jobs}
    else:
        errors = _run_in_processes(jobs, min(processes, len(jobs)))
    return {name: error for name, error in errors.items() if error}


def _run(job: Job) -> str | None:
    """Run a job; returns the error message, or None."""
    print(f"run {job.name}:", flush=True)
    try:
        command_line.keep_compiled(job.cache)
        run(ConfigDict(job.config), Path(job.directory))
    except (configs.ConfigError, configs.RunError, records.DamagedFile) as error:
        return configs.one_line(error)
    except Exception as error:  # any error, such as no memory left, must not stop the other runs
        traceback.print_exc()
        return f"{type(error).__name__}: {configs.one_line(error)}"
    return None


def _worker(connection) -> None:
    """Run the jobs that come through the connection, until it is closed."""
    signals.end_in_one_line()
    signals.end_with_parent()
    with contextlib.suppress(EOFError), programs.shared_programs():
        while True:
            connection.send(_run(connection.recv()))


def _run_in_processes(jobs: Sequence[Job], processes: int) -> dict[str, str | None]:
    """Run jobs in several processes at a time; returns the error message of each job, or None.

    If a process is killed, only its own run fails. (An executor of the standard library would give up all runs.)
    """
    context = multiprocessing.get_context("spawn")  # a fork would share the threads of a JAX that already runs
    waiting, idle, busy, errors, workers_told = list(jobs), [], {}, {}, False

    def start():
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker, args=(theirs,), daemon=True)
        process.start()
        theirs.close()  # so that the end of the process closes the pipe
        return process, ours

    with signals.collect() as received:
        while busy or (waiting and not received):
            if received and not workers_told:
                workers_told = True
                for process, _ in busy.values():
                    signals.stop_worker(process.pid)
            while waiting and not received and len(busy) < processes:
                process, connection = idle.pop() if idle else start()
                with contextlib.suppress(OSError):  # an idle process was killed: recv below fails too
                    connection.send(waiting[0])
                busy[connection] = process, waiting.pop(0).name
            for connection in multiprocessing.connection.wait(list(busy), timeout=1):
                process, name = busy.pop(connection)
                try:
                    errors[name] = connection.recv()
                    idle.append((process, connection))
                except (EOFError, OSError):
                    process.join()
                    errors[name] = _message_of_exit(process.exitcode)
    for process, connection in idle:
        connection.close()
        process.join()
    if received:
        signals.stop(received[0], "; each run that trained has saved; run the same command again to resume")
    return errors


def _message_of_exit(exitcode: int) -> str:
    how = f"was killed by {signal.Signals(-exitcode).name}" if exitcode < 0 else f"ended with exit status {exitcode}"
    memory = " (often: no memory left)" if exitcode == -signal.SIGKILL else ""
    return f"its process {how}{memory}; run the same command again to resume it"
