"""SIGTERM and SIGINT: a run that trains finishes its chunk and saves; everywhere else a program ends at once, in one line."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator

STOPPING = (signal.SIGTERM, signal.SIGINT)
_FROM_PARENT = signal.SIGUSR1  # of a sweep to its workers, which on Ctrl-C have the terminal's signal as well


def end_in_one_line() -> None:
    """For programs: what a signal ends in where nothing has to be saved."""

    def end(number, _frame):
        print(f"stopped by {signal.Signals(number).name}; the same command goes on", file=sys.stderr)
        sys.exit(128 + number)

    for number in STOPPING:
        signal.signal(number, end)


@contextlib.contextmanager
def kept() -> Iterator[list[int]]:
    """Signals that arrive in here are kept in a list, for the loop to end in good order. A second one ends the process at once."""
    received: list[int] = []

    def keep(number, _frame):
        received.append(signal.SIGTERM if number == _FROM_PARENT else number)
        for other in STOPPING if number != _FROM_PARENT else ():
            signal.signal(other, signal.SIG_DFL)

    numbers = (*STOPPING, _FROM_PARENT) if multiprocessing.parent_process() else STOPPING
    try:
        before = {number: signal.signal(number, keep) for number in numbers}
    except ValueError:  # not in the main thread, which alone has signals
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(number: int, text: str) -> None:
    """Ends the process with the exit status that a shell gives to a signal, after one line.

    Raises:
      SystemExit: always.
    """
    print(f"stopped by {signal.Signals(number).name}{text}", file=sys.stderr)
    raise SystemExit(128 + number)


def stop_worker(pid: int) -> None:
    """Asks a worker of a sweep to save and end."""
    os.kill(pid, _FROM_PARENT)
