"""The report of a run, rebuilt from its directory alone: python -m experiments.report RUN_DIR [--interactive]."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from catapult_jax import records
from catapult_jax.report import figures, interactive
from catapult_jax.report.analysis import event_rows
from catapult_jax.report.members import until_diverged
from catapult_jax.report.page import render
from experiments import directory
from experiments.command_line import FIELDS_HELP, explain_output_errors
from experiments.config import ConfigError, RunError, flat, home, testable
from experiments.figures import DIRECTIONS_CAPTION, directions_figure
from experiments.sections import Report, all_sections, fallback_text, overview, verdict_line
from experiments.values import CADENCES
from experiments.verdicts import NOT_TESTED, OF_RUN, Run, Verdict, of_run, read_run


def title_of(config: dict, about: dict) -> str:
    """The title of a run: it names the network and the data in use, which may be fallback data. ``about``: run.json."""
    return f"{config['title']}: {config['model']['name'].upper()} on {about['data']['name']}"


def build(run_dir: str | Path, *, with_interactive: bool = False) -> list[Verdict]:
    """Writes events.jsonl, figures and report.html from the record of a run.

    Args:
      run_dir: directory of the run.
      with_interactive: whether to write interactive.html too.

    Returns:
      The verdicts.

    Raises:
      FileNotFoundError: no run there.
      ConfigError: a run without a step on record.
      ImportError: the interactive page is asked for, and its extra is not installed.
    """
    if with_interactive:
        interactive.needs_bokeh()
    run_dir = Path(run_dir)
    record = records.open_record(run_dir).load()
    if not record.sizes["step"]:
        raise ConfigError(f"run_dir={str(run_dir)!r} has no step on record yet; allowed: a run after its first steps")
    config, about = (records.read_json(run_dir / name) for name in ("config.json", "run.json"))
    config, untested = _with_cadences(config, about)
    run, title = read_run(until_diverged(record), config), title_of(config, about)
    events = run.events(run.settings.factor)
    records.write_json_lines(run_dir / "events.jsonl", event_rows(run.record, run.settings, events))
    verdicts = [of_run(name, run) for name in config["claims"] if name in OF_RUN]
    if about["status"] == "running":
        verdicts = [_of_unfinished(v, run.record.sizes["step"], config["steps"]) for v in verdicts]
    report = Report(run, about, untested, verdicts, _write_figures(run, title, run_dir, fallback_text(about["data"])))
    records.write_text(run_dir / "report.html", render(title, all_sections(report)))
    if with_interactive:
        interactive.write_page(run.record, run.settings, events, overview(report), title=title, folder=run_dir)
    return verdicts


def _of_unfinished(v: Verdict, steps: int, of: int) -> Verdict:
    """A verdict of a run that is not finished is none."""
    return v._replace(verdict=NOT_TESTED, effect=f"the run has {steps} of {of} steps; so far: {v.verdict}; {v.effect}")


def verdict_lines(run_dir: str | Path, verdicts: list[Verdict]) -> list[str]:
    """The verdicts of a run as the terminal shows them, in the words of its report."""
    about = records.read_json(Path(run_dir) / "run.json")["data"]
    seeds = len(set(records.open_record(run_dir)["seed"].values.tolist()))
    return [verdict_line(v, about, seeds) for v in verdicts]


def _write_figures(run: Run, title: str, run_dir: Path, note: str) -> dict[str, tuple[Path, str]]:
    """The figures of the record, and that of agop.npz if the run has one: name -> (png, caption)."""
    folder, directions = run_dir / "figures", run_dir / "agop.npz"
    files = figures.write_all(run.record, run.settings, title, folder, run.events(run.settings.factor), note)
    if directions.is_file():
        name = "agop_directions"
        files[name] = (figures.save(directions_figure(directions), folder / name, note), f"{title}. {DIRECTIONS_CAPTION}")
    return files


def _with_cadences(config: dict[str, Any], about: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The config with the cadences that its preset chose, if it has one, and the claims that they do not test."""
    if not config["measure"].get("preset"):
        return config, []
    cadences = {f"{name}_every": about["instruments"]["cadences"].get(name, 0) for name in CADENCES}
    is_full = config["optimizer"]["batch_size"] in (None, config["data"]["train_size"])
    config = config | {"measure": config["measure"] | cadences | ({"loss_train_every": 1} if is_full else {})}
    tested = testable(config["claims"], flat(config))
    return config | {"claims": tested}, [name for name in config["claims"] if name not in tested]


def main(argv: list[str]) -> int:
    """Writes the report of a run; returns the exit status."""
    if set(argv[1:]) & {"-h", "--help"}:
        print(
            f"{(__doc__ or '').strip()}\n\nRUN_DIR: directory of a run (--workdir of experiments.main). --interactive: interactive.html too, "
            f"in which you zoom, choose members and read values. {FIELDS_HELP}"
        )
        return 0
    is_asked, argv = "--interactive" in argv, [argument for argument in argv if argument != "--interactive"]
    if len(argv) != 2:
        print("usage: python -m experiments.report RUN_DIR [--interactive]", file=sys.stderr)
        return 2
    try:
        argv = [argv[0], str(home(argv[1], "RUN_DIR"))]
        if not Path(argv[1], "run.json").is_file():
            raise FileNotFoundError(
                f"no run in {argv[1]}; allowed: the directory of one run; for the page of a sweep give the command of the sweep again"
            )
        with directory.lock(Path(argv[1])), directory.explain_write_errors(Path(argv[1])):
            verdicts = build(argv[1], with_interactive=is_asked)
    except (FileNotFoundError, ConfigError, RunError, ImportError, records.DamagedFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in verdict_lines(argv[1], verdicts):
        print(line)
    for name in ["report.html", *(["interactive.html"] if is_asked else [])]:
        print(f"wrote {Path(argv[1]) / name}")
    return 0


if __name__ == "__main__":
    with explain_output_errors():
        sys.exit(main(sys.argv))
