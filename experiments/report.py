"""The report of a run, rebuilt from its directory alone: python -m experiments.report RUN_DIR."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from catapult_jax import records
from catapult_jax.report.page import render
from experiments import directory, figures
from experiments.analysis import run_events, until_diverged
from experiments.command_line import FIELDS_HELP
from experiments.config import ConfigError, RunError, flat, testable
from experiments.sections import Read, alignment, sections
from experiments.values import CADENCES
from experiments.verdicts import OF_RUN, Verdict, of_run


def title_of(config: dict, run: dict) -> str:
    """Title with the network and the data that were used, which need not be those that the config names."""
    return f"{config['title']}: {config['model']['name'].upper()} on {run['data']['name']}"


def build(run_dir: str | Path) -> list[Verdict]:
    """Writes events.jsonl, figures and report.html from the record of a run, and returns the verdicts.

    Raises:
      FileNotFoundError: no run there.
      ConfigError: a run without a step on record.
    """
    run_dir = Path(run_dir)
    record = records.open_record(run_dir).load()
    if not record.sizes["step"]:
        raise ConfigError(f"run_dir={str(run_dir)!r} has no step on record yet; allowed: a run after its first steps")
    record = until_diverged(record)
    config, run = (records.read_json(run_dir / name) for name in ("config.json", "run.json"))
    config, untested = _with_cadences(config, run)
    title = title_of(config, run)
    events = run_events(record, config)
    records.write_json_lines(run_dir / "events.jsonl", _event_lines(record, config, events))
    verdicts = [of_run(name, record, config) for name in config["claims"] if name in OF_RUN]
    drawn = figures.write_all(record, config, title, run_dir / "figures")
    read = Read(record, config, run, events, untested, verdicts, drawn)
    records.write_text(run_dir / "report.html", render(title, sections(read)))
    return verdicts


def _with_cadences(config: dict[str, Any], run: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The config with the cadences that its preset found, if it has one, and the claims that they do not test."""
    if not config["measure"].get("preset"):
        return config, []
    every = {f"{name}_every": run["instruments"]["cadences"].get(name, 0) for name in CADENCES}
    full = config["optimizer"]["batch_size"] in (None, config["data"]["train_size"])
    config = config | {"measure": config["measure"] | every | ({"loss_train_every": 1} if full else {})}
    tested = testable(config["claims"], flat(config))
    return config | {"claims": tested}, [name for name in config["claims"] if name not in tested]


def _event_lines(record, config: dict[str, Any], events) -> list[dict[str, Any]]:
    """Lines of events.jsonl."""
    member = lambda m: {
        "member": m,
        "seed": int(record["seed"].values[m]),
        "lr0_over_critical": float(record["lr0_over_critical"].values[m]),
    }
    return [
        member(m) | {"factor": config["events"]["factor"]} | event._asdict() | alignment(record, m, event)
        for m, found in enumerate(events)
        for event in found
    ]


def main(argv: list[str]) -> int:
    """Writes the report of a run; returns the exit status."""
    if set(argv[1:]) & {"-h", "--help"}:
        print(f"{__doc__.strip()}\n\nRUN_DIR: directory of a run (--workdir of experiments.main). {FIELDS_HELP}")
        return 0
    if len(argv) != 2:
        print("usage: python -m experiments.report RUN_DIR", file=sys.stderr)
        return 2
    argv = [argv[0], str(Path(argv[1]).expanduser())]
    try:
        if not Path(argv[1], "run.json").is_file():
            raise FileNotFoundError(f"no run in {argv[1]}")
        with directory.lock(Path(argv[1])), directory.explain_write_errors(Path(argv[1])):
            verdicts = build(argv[1])
    except (FileNotFoundError, ConfigError, RunError, records.DamagedFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for v in verdicts:
        print(f"{v.verdict}: {v.claim}: {v.effect}")
    print(f"wrote {Path(argv[1]) / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(main(sys.argv))
