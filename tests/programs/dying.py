"""Runs a program and kills it when the Nth file of a record, or the Nth checkpoint, is written but not yet in its place:
python -m tests.programs.dying (record|checkpoint):N MODULE ARGS..."""

import os
import runpy
import signal
import sys
from pathlib import Path

ENDS = {"record": ".partial", "checkpoint": ".npz.tmp"}  # end of the name of a file that is not yet whole
_move, _replace = Path.replace, os.replace
_end, _left = "", 0


def _die_at(path) -> None:
    global _left
    if str(path).endswith(_end):
        _left -= 1
        if not _left:
            os.kill(os.getpid(), signal.SIGKILL)


def _dying_move(self: Path, target):
    _die_at(self)
    os.replace = _replace  # Path.replace calls it; so the file is counted once
    try:
        return _move(self, target)
    finally:
        os.replace = _dying_replace


def _dying_replace(source, target, **options):
    _die_at(source)
    return _replace(source, target, **options)


if __name__ == "__main__":
    kind, _, count = sys.argv[1].partition(":")
    Path.replace, os.replace, _end, _left = _dying_move, _dying_replace, ENDS[kind], int(count)
    module, sys.argv = sys.argv[2], sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
