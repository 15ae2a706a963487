"""Signals: collected in a loop, otherwise the end of the program."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from experiments import signals


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_end_in_one_line_of_a_signal():
    done = run_python(
        "import os, signal\nfrom experiments import signals\nsignals.end_in_one_line()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\nprint('not reached')"
    )

    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "")
    assert done.stderr == "stopped by SIGTERM; run the same command again to resume\n"


def test_end_in_one_line_where_python_drops_exceptions():
    """An exception of a callback of the garbage collector is dropped."""
    done = run_python(
        "import gc, os, signal\nfrom experiments import signals\nsignals.end_in_one_line()\n"
        "gc.callbacks.append(lambda *_: os.kill(os.getpid(), signal.SIGTERM))\ngc.collect()\nprint('not reached')"
    )

    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "")
    assert done.stderr == "stopped by SIGTERM; run the same command again to resume\n"


@pytest.mark.parametrize("ignored", [False, True])
def test_end_of_the_terminal_ends_the_program_unless_it_is_ignored(ignored):
    done = run_python(
        f"import os, signal\nsignal.signal(signal.SIGHUP, signal.{'SIG_IGN' if ignored else 'SIG_DFL'})\nfrom experiments import signals\n"
        "signals.end_in_one_line()\nos.kill(os.getpid(), signal.SIGHUP)\nprint('reached')"
    )

    assert (done.returncode, done.stdout) == ((0, "reached\n") if ignored else (128 + signal.SIGHUP, ""))


def test_collect_restores_the_handlers():
    before = [signal.getsignal(number) for number in signals.STOPPING]

    with signals.collect() as received:
        os.kill(os.getpid(), signal.SIGINT)

    assert received == [signal.SIGINT]
    assert [signal.getsignal(number) for number in signals.STOPPING] == before


def test_collect_outside_the_main_thread_changes_nothing():
    handlers = []

    def work():
        with signals.collect() as received:
            handlers.append((signal.getsignal(signal.SIGTERM), received))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert handlers == [(before, [])]


def test_stop_ends_with_the_status_of_a_shell(capsys):
    with pytest.raises(SystemExit) as caught:
        signals.stop(signal.SIGINT, " at step 3")

    assert caught.value.code == 130
    assert capsys.readouterr().err == "stopped by SIGINT at step 3\n"
