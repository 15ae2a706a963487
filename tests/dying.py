"""Runs a program that kills itself where the Nth file of a record is written, but not yet in its place: python -m tests.dying N MODULE ARGS..."""

import os
import runpy
import signal
import sys
from pathlib import Path

_replace = Path.replace
_left = 0


def _dying(self: Path, target):
    global _left
    if self.suffix == ".partial":  # so Zarr names it until it is whole
        _left -= 1
        if not _left:
            os.kill(os.getpid(), signal.SIGKILL)
    return _replace(self, target)


if __name__ == "__main__":
    Path.replace, _left = _dying, int(sys.argv[1])
    module, sys.argv = sys.argv[2], sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
