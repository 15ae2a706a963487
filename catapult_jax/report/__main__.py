"""``python -m catapult_jax.report DIR [--interactive]``: figures and pages from what a :class:`catapult_jax.Recorder` wrote."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from catapult_jax import records
from catapult_jax.report.build import build_report
from catapult_jax.report.interactive import build_interactive, needs_bokeh
from catapult_jax.report.members import Settings

_USAGE = "usage: python -m catapult_jax.report DIR [--interactive], the directory of a catapult_jax.Recorder"


def main(arguments: list[str]) -> Path:
    """Builds the report of a directory.

    Args:
      arguments: the directory, and ``--interactive`` for the interactive page beside the report.

    Returns:
      The path of the page; with ``--interactive`` that of the interactive one.

    Raises:
      SystemExit: after ``--help``; no directory, one without such a record, or an extra that is missing.
    """
    interactive = "--interactive" in arguments
    places = [argument for argument in arguments if argument != "--interactive"]
    if {"-h", "--help"} & set(places):
        print(_USAGE)
        raise SystemExit(0)
    if len(places) != 1 or places[0].startswith("-"):
        raise SystemExit(_USAGE)
    if interactive:
        try:
            needs_bokeh()
        except ImportError as missing:
            raise SystemExit(f"error: {missing}") from missing
    folder = Path(os.path.expanduser(places[0]))
    try:
        watch, record = records.read_json(folder / records.WATCH)["watch"], records.open_record(folder)
    except (FileNotFoundError, NotADirectoryError, KeyError) as error:
        raise SystemExit(f"error: DIR={str(folder)!r} holds no {records.WATCH} or no record; {_USAGE}") from error
    except records.DamagedFile as error:
        raise SystemExit(f"error: {error}") from error
    if not record.sizes["step"]:
        raise SystemExit(f"error: the record in {folder} has no steps yet; allowed: after the first flush")
    names = ("factor", "horizon", "smoothing", "momentum")
    settings = Settings(**{name: watch[name] for name in names}, top_k=watch["k"])
    try:
        page = build_report(record, settings, title=folder.name, folder=folder)
        if not interactive:
            return page
        print(page)
        return build_interactive(record, settings, title=folder.name, folder=folder)
    except OSError as error:
        raise SystemExit(
            f"error: the report can't be written in {folder} ({error.strerror or error}); allowed: the same command again, once there is room"
        ) from error


if __name__ == "__main__":
    print(main(sys.argv[1:]))
