"""SIGTERM, SIGINT and SIGHUP: a run that trains ends its chunk and saves; elsewhere the program ends at once, with one line."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

# SIGHUP comes when the terminal is closed; ``nohup`` ignores it, and so do we then.
STOPPING = tuple(
    n for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN
)
# A sweep stops its workers with this signal, since on Ctrl-C the terminal sends SIGINT to them as well.
_FROM_PARENT = signal.SIGUSR1


def end_in_one_line() -> None:
    """From now on a signal ends the program at once, with one line. For the parts of a program that have nothing to save.

    An exception would not do: Python drops it where it calls back from a library, and threads of XLA can crash at the end of the interpreter.
    """

    def end(number, _frame):
        with contextlib.suppress(Exception):  # closed, or in the middle of a print
            sys.stdout.flush()
        with contextlib.suppress(OSError):
            os.write(2, f"stopped by {signal.Signals(number).name}; run the same command again to resume\n".encode())
        os._exit(128 + number)

    for number in STOPPING:
        signal.signal(number, end)


def end_with_parent() -> None:
    """From now on the end of the parent process, as by SIGKILL, is a SIGTERM for this one: it saves and ends."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def collect() -> Iterator[list[int]]:
    """Collect signals in a list, so that a loop can look at it and end in good order. A second signal ends the process at once.

    Outside the main thread, which alone receives signals, the list stays empty.
    """
    received: list[int] = []

    def append(number, _frame):
        received.append(signal.SIGTERM if number == _FROM_PARENT else number)
        for other in STOPPING if number != _FROM_PARENT else ():
            signal.signal(other, signal.SIG_DFL)

    numbers = (*STOPPING, _FROM_PARENT) if multiprocessing.parent_process() else STOPPING
    try:
        before = {number: signal.signal(number, append) for number in numbers}
    except ValueError:  # not in the main thread
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop(number: int, text: str) -> None:
    """Print one line and end the process, with the exit status that a shell gives to a signal.

    Args:
      number: of the signal.
      text: follows the name of the signal in the line.

    Raises:
      SystemExit: always.
    """
    print(f"stopped by {signal.Signals(number).name}{text}", file=sys.stderr)
    raise SystemExit(128 + number)


def stop_worker(pid: int) -> None:
    """Ask a worker process of a sweep to save and end."""
    os.kill(pid, _FROM_PARENT)
