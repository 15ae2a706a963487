"""The directory of a run: what it must hold, and that one process has it at a time."""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from catapult_jax import records
from experiments import config as configs

LOCK = "lock"  # a file that is empty, and stays
_LONGEST = 200  # bytes of a name, of the 255 that file systems take


def earlier_run(workdir: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """What run.json says of the run that is there; None: there is none yet.

    Raises:
      ConfigError: the directory holds a run of another config, or files of something else.
    """
    stored = workdir / "config.json"
    if stored.is_file():
        old, new = (configs.flat(c) for c in (_read(stored), config))
        changed = sorted(name for name in new if old.get(name) != new[name] and name != "sweep")  # as in configs.identity
        if changed:
            name = changed[0]
            raise configs.ConfigError(
                f"workdir={str(workdir)!r} holds a run with {name}={old.get(name)!r}, not {new[name]!r}; allowed: the same config, or another workdir"
            )
    elif workdir.exists() and not is_new(workdir):
        raise configs.ConfigError(f"workdir={str(workdir)!r} is not empty and holds no run; allowed: a new directory")
    about = workdir / "run.json"
    return _read(about) if about.is_file() else None


def _read(path: Path) -> Any:
    try:
        return records.read_json(path)
    except (OSError, records.DamagedFile) as error:
        raise configs.ConfigError(
            f"{configs.one_line(error)}; allowed: a copy of that file from before, or another workdir, where the run is made anew"
        ) from error


def name_of(text: str, identity: str) -> str:
    """``TEXT-IDENTITY``, cut in its text where a file system would not take so long a name."""
    return f"{text.encode()[:_LONGEST].decode(errors='ignore')}-{identity}"


def is_new(workdir: Path) -> bool:
    """Not there, or empty but for what a run leaves that was killed before its first file was whole.

    Raises:
      ConfigError: a name that can't be.
    """
    ours = (LOCK, "config.json.tmp")
    try:
        return not workdir.exists() or (workdir.is_dir() and all(entry.name in ours for entry in workdir.iterdir()))
    except OSError as error:
        raise configs.ConfigError(
            f"workdir={str(workdir)!r} can't be made ({error.strerror}); allowed: a directory to write in"
        ) from error


def check_writable(workdir: Path) -> None:
    """Whether a directory that is not there, or is empty, can be made and written in; nothing is left behind.

    Raises:
      ConfigError: it can't.
    """
    try:
        there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise configs.ConfigError(
            f"workdir={str(workdir)!r} can't be made ({error.strerror}); allowed: a directory to write in"
        ) from error


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Keeps the directory, made if need be, to this process; the lock goes with the process, however it ends.

    Raises:
      ConfigError: it can't be made, or another process has it.
    """
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((workdir / LOCK).open("a"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise configs.ConfigError(
                f"workdir={str(workdir)!r} is in use by another process; allowed: another workdir, or this one when that has ended"
            ) from error
        except OSError as error:
            raise configs.ConfigError(
                f"workdir={str(workdir)!r} can't be made ({error.strerror}); allowed: a directory to write in"
            ) from error
        yield


@contextlib.contextmanager
def written(workdir: Path) -> Iterator[None]:
    """An error of the file system in here is one line that says how to go on.

    Raises:
      RunError: a file could not be written.
    """
    try:
        yield
    except OSError as error:
        raise configs.RunError(
            f"workdir={str(workdir)!r} can't be written ({error.strerror or error}); what it holds is whole: "
            "the same command goes on from there once there is room"
        ) from error
