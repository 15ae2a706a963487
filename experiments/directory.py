"""The directory of a run: what it may hold, and the lock that gives it to one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from catapult_jax import records
from experiments import config as configs

LOCK = "lock"  # name of the lock file, which is empty and is never removed
_MOST_BYTES = 200  # of the text in a name; file systems allow 255 bytes for the whole name


def earlier_run(workdir: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The contents of run.json, if the directory holds a run of this config.

    Args:
      workdir: directory of the run.
      config: fields of the run, as JSON gives them.

    Returns:
      The contents of run.json, or None if there is no run yet.

    Raises:
      ConfigError: the directory holds a run of another config, or other files, or a damaged file.
    """
    stored = workdir / "config.json"
    if stored.is_file():
        old, new = configs.stored_fields(_read(stored)), configs.flat(config)
        changed = sorted(name for name in new if old[name] != new[name] and name != "sweep")  # as in configs.identity
        if changed:
            name = changed[0]
            raise configs.ConfigError(
                f"workdir={str(workdir)!r} holds a run with {name}={old[name]!r}, not {new[name]!r}; allowed: the same config, or another workdir"
            )
    elif workdir.exists() and not is_new(workdir):
        raise configs.ConfigError(f"workdir={str(workdir)!r} is not empty and holds no run; allowed: a new directory")
    run_json = workdir / "run.json"
    if run_json.is_file():
        return _read(run_json)
    if kept := [name for name in ("checkpoints", "record.zarr") if (workdir / name).exists()]:
        raise configs.ConfigError(
            f"workdir={str(workdir)!r} has {kept[0]} but no run.json, which says what made them; allowed: a copy of that file, or another workdir"
        )
    return None


def _read(path: Path) -> Any:
    """A JSON file of a run; one that can't be read is a ConfigError."""
    try:
        return records.read_json(path)
    except (OSError, records.DamagedFile) as error:
        raise configs.ConfigError(
            f"{configs.one_line(error)}; allowed: a copy of that file that is not damaged, or another workdir for a new run"
        ) from error


def directory_name(text: str, identity: str) -> str:
    """``TEXT-IDENTITY``; a long text is cut, so that every file system takes the name.

    >>> directory_name("quickstart-smoke", "0123abcd")
    'quickstart-smoke-0123abcd'
    """
    return f"{text.encode()[:_MOST_BYTES].decode(errors='ignore')}-{identity}"


def is_new(workdir: Path) -> bool:
    """Whether there is no run in a directory: it does not exist, is empty, or holds only what a run writes first.

    Raises:
      ConfigError: no directory can have this path.
    """
    first_files = (LOCK, "config.json.tmp")  # left by a run that was killed before its first file was whole
    try:
        return not workdir.exists() or (workdir.is_dir() and all(entry.name in first_files for entry in workdir.iterdir()))
    except OSError as error:
        raise _not_creatable(workdir, error) from error


def check_writable(workdir: Path, name: str = "workdir") -> None:
    """Check that a new directory can be created and written to. Nothing is left behind.

    Args:
      workdir: the directory.
      name: of the flag that gave it, for the message.

    Raises:
      ConfigError: it can't.
    """
    if "::" in str(workdir):  # Zarr takes it for a chain of file systems
        raise configs.ConfigError(f"{name}={str(workdir)!r} has '::' in it; allowed: a path without")
    try:
        parent = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise _not_creatable(workdir, error, name) from error


def directory_of_run(workdir: Path, point: dict[str, Any], config: ConfigDict) -> Path:
    """The directory of one run of a sweep.

    Args:
      workdir: directory of the sweep.
      point: values of the run on the axes of the sweep.
      config: of the run.
    """
    label = "-".join(f"{name.rsplit('.', 1)[-1]}={value}" for name, value in point.items()).replace("/", "_")
    return workdir / directory_name(label or "run", configs.identity(config))


def is_complete(run_dir: Path) -> bool:
    """Whether the run has ended, its report is written, which comes last, and neither its config nor its record is damaged."""
    try:
        has_ended = records.read_json(run_dir / "run.json")["status"] != "running" and bool(
            records.read_json(run_dir / "config.json")
        )
    except (FileNotFoundError, records.DamagedFile, KeyError):  # the run itself reports a damaged file
        return False
    return has_ended and (run_dir / "report.html").is_file() and not records.damage(run_dir)


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Create the directory if needed, and lock it for this process. The lock ends with the process, even if it is killed.

    Raises:
      ConfigError: the directory can't be created, or another process has the lock.
    """
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((workdir / LOCK).open("a"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise configs.ConfigError(
                f"workdir={str(workdir)!r} is in use by another process; allowed: another workdir, or this one after that process has ended"
            ) from error
        except OSError as error:
            raise _not_creatable(workdir, error) from error
        yield


def _not_creatable(workdir: Path, error: OSError, name: str = "workdir") -> configs.ConfigError:
    return configs.ConfigError(
        f"{name}={str(workdir)!r} can't be created or written to ({error.strerror}); allowed: a directory that you can write to"
    )


@contextlib.contextmanager
def explain_write_errors(workdir: Path) -> Iterator[None]:
    """Turn an error of the file system into one line that says how to go on.

    Raises:
      RunError: a file could not be written.
    """
    try:
        yield
    except BrokenPipeError:  # of the output, not of a file
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise configs.RunError(
            f"{error.filename} can't be read or written ({error.strerror}); allowed: the file that the run wrote there, or another workdir"
        ) from error
    except OSError as error:
        raise configs.RunError(
            f"workdir={str(workdir)!r} can't be written ({error.strerror or error}); the files in it are whole; allowed: "
            "the same command again, which resumes the run, once there is room"
        ) from error
