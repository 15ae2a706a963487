"""The results of the experiments behind the page of claims: of complete runs, or those that were kept beside the page.

A result is small, its runs are not. So each result is kept as a file beside the page, and the page can be written from any subset of the runs.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from catapult_jax import records
from catapult_jax.report.members import until_diverged
from experiments import config as configs
from experiments import directory, summary, sweep, verdicts
from experiments.catalogue import EXPERIMENTS, Experiment, config_of
from experiments.verdicts import Verdict

NEEDS_GPU = "needs a GPU"
OTHER_CONFIG = "run with another config"
OTHER_CRITERION = "judged by another criterion"


class Results(NamedTuple):
    """The results of a complete experiment."""

    verdicts: list[Verdict]
    data: str  # name of the data
    reference: dict[str, Any]  # facts about the AGOP reference; empty: none
    seconds: float  # of all runs
    code: str  # commit of the code
    figures: list[str]  # paths, as seen from the page


def keep_failures(page: Path, failures: dict[str, str | None]) -> None:
    """Keep why experiments could not run, beside the page.

    Args:
      page: file of the page.
      failures: experiment -> reason; None: it ran.
    """
    path = _failures(page)
    path.parent.mkdir(parents=True, exist_ok=True)
    left = {name: reason for name, reason in (_kept_failures(page) | failures).items() if reason}
    records.write_json(path, left)


def _failures(page: Path) -> Path:
    return page.with_suffix("") / "failures.json"


def _kept_failures(page: Path) -> dict[str, str]:
    return records.read_json(_failures(page)) if _failures(page).is_file() else {}


def collect(page: Path, scale: str, workdir: Path) -> dict[str, Results | str]:
    """The results of all experiments: those of complete runs, which are then kept beside the page, else those kept before.

    A kept result counts if its config is that of today, and if its claims have the criteria of the runs that are judged now. Variants of ours
    may have criteria of their own, as another loss has.

    Args:
      page: file of the page. Its folder of details has the kept results, ``figures/claims`` the figures.
      scale: smoke, quick, cpu or gpu.
      workdir: directory of all runs.

    Returns:
      Experiment -> its results, or the reason why there are none.

    Raises:
      DamagedFile: a kept result is not as it was written.
    """
    outcomes: dict[str, Results | str] = {}
    criteria: dict[str, str] = {}  # of the runs on disk
    failures = _kept_failures(page)
    for experiment in EXPERIMENTS:
        found = of_runs(experiment, scale, workdir)
        if isinstance(found, Results):
            found = found._replace(figures=_copy_figures(experiment, found.figures, page))
            _keep(found, experiment, scale, workdir, page)
            if not experiment.is_variant:
                criteria |= {verdict.claim: _without_numbers(verdict.statement) for verdict in found.verdicts}
        outcomes[experiment.name] = found
    for experiment in EXPERIMENTS:
        reason = outcomes[experiment.name]
        if isinstance(reason, str):
            kept = _kept(experiment, scale, workdir, page, criteria)
            outcomes[experiment.name] = kept if isinstance(kept, Results) else failures.get(experiment.name, kept or reason)
    return outcomes


def of_runs(experiment: Experiment, scale: str, workdir: Path) -> Results | str:
    """The results of an experiment from its runs, or the reason why there are none. The figures are still those of the runs.

    Args:
      experiment: one of :data:`EXPERIMENTS`.
      scale: smoke, quick, cpu or gpu.
      workdir: directory of all experiments.
    """
    config, top = config_of(experiment, scale, workdir), workdir / experiment.folder
    runs = sweep.plan(config, [])[0] if experiment.is_sweep else [({}, config)]
    run_dirs = [
        directory.directory_of_run(top, point, run_config) if experiment.is_sweep else top for point, run_config in runs
    ]
    if not all(map(directory.is_complete, run_dirs)):
        return NEEDS_GPU if experiment.needs_gpu and scale != "gpu" else "not run"
    if _fields_on_disk(run_dirs) != [_comparable(_fields(run_config)) for _, run_config in runs]:
        return OTHER_CONFIG
    infos = [records.read_json(run_dir / "run.json") for run_dir in run_dirs]
    if experiment.is_sweep:
        rows = summary.member_rows(runs, top)
        verdicts_of_claims = summary.find_verdicts(rows, config, experiment.claims, infos[0]["data"])
        figures = [top / "summary.png"]
    else:
        run = verdicts.read_run(until_diverged(records.open_record(top).load()), config.to_dict())
        verdicts_of_claims = [verdicts.of_run(name, run) for name in experiment.claims]
        figures = [top / "figures" / f"{name}.png" for name in experiment.figures]
    join = lambda values: ", ".join(sorted(set(values)))
    reference = infos[0].get("agop_reference") or {}
    if any((info.get("agop_reference") or {}).get("sha256") != reference.get("sha256") for info in infos):
        return "its runs have different AGOP references"
    return Results(
        verdicts_of_claims,
        data=join(info["data"]["name"] for info in infos),
        reference=_facts(reference),
        seconds=sum(info["seconds"] for info in infos),
        code=join(_short_commit(info["environment"]["commit"]) for info in infos),
        figures=list(map(str, figures)),
    )


def _fields(config: Any) -> dict[str, Any]:
    return configs.flat(json.loads(config.to_json()))


def _fields_on_disk(run_dirs: Sequence[Path]) -> list[dict[str, Any]]:
    """The fields of stored runs."""
    return [_comparable(configs.stored_fields(records.read_json(run_dir / "config.json"))) for run_dir in run_dirs]


def _comparable(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that change a record."""
    return {name: value for name, value in fields.items() if name not in ("claims", "sweep")}


def _facts(reference: dict[str, Any]) -> dict[str, Any]:
    """What the page says about an AGOP reference."""
    facts = {name: reference[name] for name in ("name", "error_test", "ceiling") if reference.get(name) is not None}
    return facts | ({"weights": reference["sha256"][:16]} if "sha256" in reference else {})


def _short_commit(commit: str | None) -> str:
    head, _, rest = (commit or "unknown").partition(" ")
    return f"{head[:10]} {rest}".strip()


def _copy_figures(experiment: Experiment, figures: list[str], page: Path) -> list[str]:
    """Copy the figures that exist to the folder beside the page; returns their paths as seen from the page."""
    folder, copies = page.parent / "figures" / "claims", []
    for figure in filter(Path.is_file, map(Path, figures)):
        folder.mkdir(parents=True, exist_ok=True)
        copies.append(folder / f"{experiment.folder}{f'-{figure.stem}' if copies else ''}.png")
        shutil.copyfile(figure, copies[-1])
    return [str(copy.relative_to(page.parent)) for copy in copies]


# Kept results.


def _path(experiment: Experiment, page: Path) -> Path:
    return page.with_suffix("") / f"{experiment.folder}.json"


def _settings(experiment: Experiment, scale: str, workdir: Path) -> dict[str, Any]:
    """The fields of an experiment that change its results. Paths of other runs are as seen from the directory of all runs."""
    fields = _fields(config_of(experiment, scale, workdir))
    inside = lambda value: value.removeprefix(f"{workdir}/") if isinstance(value, str) else value
    return {name: inside(value) for name, value in fields.items() if name != "claims"}


def _keep(results: Results, experiment: Experiment, scale: str, workdir: Path, page: Path) -> None:
    path = _path(experiment, page)
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = results._asdict() | {"verdicts": [verdict._asdict() for verdict in results.verdicts]}
    records.write_json(path, fields | {"config": _settings(experiment, scale, workdir)})


def _kept(experiment: Experiment, scale: str, workdir: Path, page: Path, criteria: dict[str, str]) -> Results | str | None:
    """The result that is kept, or the reason why it does not count; None: there is none."""
    try:
        fields = records.read_json(_path(experiment, page))
    except FileNotFoundError:
        return None
    now = _settings(experiment, scale, workdir)
    try:
        then = fields.pop("config")
        if configs.stored_fields({}) | then != configs.stored_fields({}) | now:
            return OTHER_CONFIG
        tables = lambda verdict: tuple(map(tuple, verdict["table"]))
        kept = Results(**fields)._replace(verdicts=[Verdict(**v | {"table": tables(v)}) for v in fields["verdicts"]])
    except (KeyError, TypeError) as error:  # written by another version
        raise records.DamagedFile(f"{_path(experiment, page)} is damaged: it has not the fields of a result") from error
    by_claim = {verdict.claim: verdict for verdict in kept.verdicts}
    if not set(experiment.claims) <= set(by_claim):
        return "run before one of its claims was made"
    judged_now = [] if experiment.is_variant else [name for name in experiment.claims if name in criteria]
    if any(_without_numbers(by_claim[name].statement) != criteria[name] for name in judged_now):
        return OTHER_CRITERION
    return kept


def _without_numbers(statement: str) -> str:
    """A criterion without its numbers: they may differ between the settings of a claim, as a training loss does."""
    return re.sub(r"\d+(\.\d+)?", "0", statement)
