"""``python -m catapult_jax.report DIR``: figures and one page from what a :class:`catapult_jax.Recorder` wrote."""

from __future__ import annotations

import sys
from pathlib import Path

from catapult_jax import records

try:
    from catapult_jax.report.build import build_report
    from catapult_jax.report.members import Settings
except ImportError as missing:
    raise SystemExit(
        f"error: the report needs {missing.name}; allowed: catapult_jax installed with its extra 'report'"
    ) from missing

_USAGE = "usage: python -m catapult_jax.report DIR, the directory of a catapult_jax.Recorder"


def main(arguments: list[str]) -> Path:
    """Builds the report of a directory.

    Args:
      arguments: the directory, and nothing else.

    Returns:
      The path of the page.

    Raises:
      SystemExit: no directory, or one without such a record.
    """
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        raise SystemExit(_USAGE)
    folder = Path(arguments[0])
    try:
        watch, record = records.read_json(folder / records.WATCH)["watch"], records.open_record(folder)
    except FileNotFoundError as error:
        raise SystemExit(f"error: DIR={str(folder)!r} holds no {records.WATCH} or no record; {_USAGE}") from error
    except records.DamagedFile as error:
        raise SystemExit(f"error: {error}") from error
    if not record.sizes["step"]:
        raise SystemExit(f"error: the record in {folder} has no steps yet; allowed: after the first flush")
    names = ("factor", "horizon", "smoothing", "momentum")
    settings = Settings(**{name: watch[name] for name in names}, top_k=watch["k"])
    return build_report(record, settings, title=folder.name, folder=folder)


if __name__ == "__main__":
    print(main(sys.argv[1:]))
