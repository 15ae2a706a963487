"""The page of claims: one row for each claim, with its verdict, then the details of each experiment."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from catapult_jax import records
from catapult_jax.events import DEFINITION
from catapult_jax.report.members import until_diverged
from configs import default
from experiments import config as configs
from experiments import directory, summary, sweep, verdicts
from experiments.catalogue import EXPERIMENTS, Experiment, config_name, config_of, reference_dir


class Results(NamedTuple):
    """The results of a complete experiment."""

    verdicts: list[verdicts.Verdict]
    data: str  # name of the data
    reference: dict[str, Any]  # facts about the AGOP reference, from run.json; empty: none
    seeds: int
    seconds: float  # of all runs
    code: str  # commit of the code
    figures: list[Path]


def results(experiment: Experiment, scale: str, workdir: Path) -> Results | str:
    """The results of an experiment, or the reason why there are none.

    Args:
      experiment: one of :data:`EXPERIMENTS`.
      scale: smoke, cpu or gpu.
      workdir: directory of all experiments.
    """
    config, top = config_of(experiment, scale, workdir), workdir / experiment.folder
    runs = sweep.plan(config, [])[0] if experiment.is_sweep else [({}, config)]
    run_dirs = [
        directory.directory_of_run(top, point, run_config) if experiment.is_sweep else top for point, run_config in runs
    ]
    if not all(map(directory.is_complete, run_dirs)):
        return "not run"
    # A run without a field is one with its default.
    defaults = configs.flat(json.loads(default.get_config().to_json()))
    stored = [defaults | configs.flat(records.read_json(run_dir / "config.json")) for run_dir in run_dirs]
    expected = [configs.flat(json.loads(run_config.to_json())) for _, run_config in runs]
    for fields in (*stored, *expected):
        del fields["claims"], fields["sweep"]  # they do not change the record
    if stored != expected:
        return "run with another config"
    infos = [records.read_json(run_dir / "run.json") for run_dir in run_dirs]
    if experiment.is_sweep:
        rows = summary.member_rows(runs, top)
        verdicts_of_claims = summary.find_verdicts(rows, config, tuple(experiment.claims), infos[0]["data"])
        figures = [top / "summary.png"]
    else:
        run = verdicts.read_run(until_diverged(records.open_record(top).load()), config.to_dict())
        verdicts_of_claims = [verdicts.of_run(name, run) for name in experiment.claims]
        figures = [top / "figures" / f"{name}.png" for name in experiment.figure.split(",")]
    join = lambda values: ", ".join(sorted(set(values)))
    reference = infos[0].get("agop_reference") or {}
    if any((info.get("agop_reference") or {}) != reference for info in infos):
        return "its runs have different AGOP references"
    return Results(
        verdicts_of_claims,
        data=join(info["data"]["name"] for info in infos),
        reference=reference,
        seeds=len(config.members.seed or ()) or 1,
        seconds=sum(info["seconds"] for info in infos),
        code=join(_short_commit(info["environment"]["commit"]) for info in infos),
        figures=figures,
    )


def _short_commit(commit: str | None) -> str:
    head, _, rest = (commit or "unknown").partition(" ")
    return f"{head[:10]} {rest}".strip()


def _commands(experiment: Experiment, scale: str, workdir: Path) -> list[str]:
    """The command lines of an experiment: first the reference, if it has one, then the run."""
    module, variant = config_name(experiment, scale)
    name = f"configs/{module}.py" + (f":{variant}" if variant else "")
    changed = dict(experiment.cpu) if scale == "cpu" else {}
    grid = [f" --grid={axis}" for axis in changed.pop("sweep", ())]
    commands = []
    if experiment.reference:
        trained = reference_dir(experiment, workdir)
        smoke = ",smoke" if scale == "smoke" else ""
        commands.append(
            f"python -m experiments.main --config=configs/reference.py:{experiment.reference}{smoke} --workdir={trained}"
        )
        changed["measure.agop_reference"] = str(trained / "model.npz")
    flags_of = "".join(f" --config.{k}={str(v).replace(' ', '')}" for k, v in changed.items())
    program = "sweep" if experiment.is_sweep else "main"
    return [*commands, f"python -m experiments.{program} --config={name}{''.join(grid)}{flags_of}"]


def _anchor(heading: str) -> str:
    """The anchor that a Markdown heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


_HEADER = ("claim", "source", "config", "seeds", "verdict", "effect, or why not", "figure")


def write_page(page: Path, scale: str, workdir: Path, failures: dict[str, str]) -> list[tuple]:
    """Write the page, and copy its figures to the folder beside it.

    Args:
      page: file to write.
      scale: smoke, cpu or gpu.
      workdir: directory of all experiments.
      failures: experiment -> reason why it is not tested.

    Returns:
      The rows of the table of claims.
    """
    table, details = [], []
    for experiment in EXPERIMENTS:
        name = experiment.name
        outcome = failures[name] if name in failures else results(experiment, scale, workdir)
        if isinstance(outcome, str):
            for text, source in experiment.claims.values():
                table.append((text, source, name, "-", verdicts.NOT_TESTED, outcome, "-"))
            continue
        copies = _copy_figures(experiment, outcome.figures, page)
        link = ", ".join(f"[figure]({copy})" for copy in copies) or "-"
        for verdict in outcome.verdicts:
            text, source = experiment.claims[verdict.claim]
            table.append(
                (text, source, f"[{name}](#{_anchor(name)})", outcome.seeds, verdict.verdict, short(verdict.effect), link)
            )
        details += _details(experiment, outcome, _commands(experiment, scale, workdir), details)
        details += [f"![{name}]({copy})\n" for copy in copies]
    lines = [
        "# Claims\n",
        f"Written by `python -m experiments.claims --scale={scale}`, from the runs whose commands are below. Brackets hold the 95 % percentile "
        "bootstrap interval of a mean over seeds. With five seeds it is too narrow: it misses the mean of a normal distribution in "
        'about 15 % of cases. Where a verdict depends on it, a sign test over seeds must hold too. "Not reproduced" means that the '
        "statement under the claim, with its thresholds, does not hold here. The statements and thresholds are ours.\n",
        f"Definition of the events: {DEFINITION}\n",
        _markdown((_HEADER, *table)),
        *details,
    ]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(lines), encoding="utf-8")
    return table


def _copy_figures(experiment: Experiment, figures: list[Path], page: Path) -> list[Path]:
    """Copy the figures that exist to the folder beside the page; returns their paths as seen from the page."""
    folder, copies = page.parent / "figures" / "claims", []
    for figure in filter(Path.is_file, figures):
        folder.mkdir(parents=True, exist_ok=True)
        copies.append(folder / f"{experiment.folder}{f'-{figure.stem}' if copies else ''}.png")
        shutil.copyfile(figure, copies[-1])
    return [copy.relative_to(page.parent) for copy in copies]


def _details(experiment: Experiment, outcome: Results, commands: list[str], before: list[str]) -> list[str]:
    """The section of an experiment. A table that is on the page ``before`` is left out."""
    facts = f"Data: {outcome.data}; {outcome.seeds} seeds; {outcome.seconds:.0f} s; code {outcome.code}."
    if reference := outcome.reference:
        facts += f" AGOP reference: {reference['name']}"
        error = f", test error {reference['error_test']:.3g}" if reference.get("error_test") is not None else ""
        facts += f"{error}, SHA-256 {reference['sha256'][:16]}." if "sha256" in reference else "."
    parts = [f"## {experiment.name}\n", "```\n" + "\n".join(commands) + "\n```\n", facts + "\n"]
    for verdict in outcome.verdicts:
        text, source = experiment.claims[verdict.claim]
        parts.append(f"**{verdict.verdict}**: {text} ({source}). Tested as: {verdict.statement}.\n\n{verdict.effect}.\n")
        table = _markdown(verdict.table) if verdict.table else ""
        if table and table not in (*before, *parts):
            parts.append(table)
    return parts


def _markdown(table: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown; its first row is the header."""
    header, *rows = table
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def short(effect: str) -> str:
    """The part of an effect before its first semicolon: the numbers behind the verdict.

    >>> short("5 of 5 members have one; onset at step 0")
    '5 of 5 members have one'
    """
    return effect.split(";")[0]
