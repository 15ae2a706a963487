"""The summary of a sweep: summary.csv with one row for each member, and summary.html with means, verdicts and a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
from ml_collections import ConfigDict

from catapult_jax import records
from catapult_jax.report import analysis, figures, members, page, statistics
from catapult_jax.report.sections import END_SERIES
from experiments import directory, verdicts
from experiments.figures import SWEEP_CAPTION, sweep_figure
from experiments.sections import fallback_text, fallback_warning, verdict_block, verdict_line
from experiments.settings import settings_of

if TYPE_CHECKING:
    import xarray

    from catapult_jax.events import Event
    from catapult_jax.report import Settings

Rows = list[dict[str, Any]]

_ENDS = (*END_SERIES, "weight_norm", "lambda_max_train", "lambda_max_probe")  # series whose last values are columns
# How well lr > critical_lr_batch predicts that the loss of the batch rises in the step; beside the counts of analysis.CONFUSION.
_PREDICTION = ("precision", "recall", "base_rate")
_CURVES = "curves"  # in a row: errors by epoch; for claims, not for the table


def member_rows(runs: Sequence[tuple[dict, ConfigDict]], workdir: Path) -> Rows:
    """One row for each member of each complete run.

    Args:
      runs: values on the axes, and config, of each run of the sweep.
      workdir: directory of the sweep.
    """
    rows: Rows = []
    for point, config in runs:
        run_dir = directory.directory_of_run(workdir, point, config)
        if directory.is_complete(run_dir):
            rows += _rows_of_run(point, run_dir)
    return rows


def _rows_of_run(point: dict, run_dir: Path) -> Rows:
    record = members.until_diverged(records.open_record(run_dir).load())
    settings = settings_of(records.read_json(run_dir / "config.json"))
    events = analysis.run_events(record, settings)
    ends = {name: members.last(record, settings, name) for name in _ENDS if name in record}
    has_critical_lr = "critical_lr_batch" in record
    has_prediction = has_critical_lr and "loss_batch_after" in record
    catapults, finished = analysis.catapult_counts(events), members.finished(record, settings)
    spikes = [len(events_of_member) for events_of_member in events]
    has_events = members.has_events(record, settings)
    setting = {m: name for name, numbers in members.by_setting(record, settings) for m in numbers}
    active, dead = members.active(record, settings)[:, -1], members.dead_steps(record, settings)
    coordinates = [name for name in ("seed", "lr_given", "lr0", "raises", "cap", "intervention") if name in record.coords]
    curves, start = _curves(record, settings), _starts(record, events, run_dir)
    rows = []
    for m in range(record.sizes["member"]):
        # A member that stopped ends at the first such step.
        stopped = record["stopped"].values[m] if "stopped" in record else np.zeros(1, bool)
        steps = int(stopped.argmax()) if stopped.any() else record.sizes["step"]
        prediction = analysis.batch_prediction(record, settings, m) if has_prediction else None
        rows.append(
            point
            | {name: _short(record[name].values[m].item()) for name in coordinates}
            | {
                "setting": setting[m],
                "finished": bool(finished[m]),
                "active": bool(active[m]),
                "dead_from": int(dead[m]),
                "steps": steps,
            }
            | ({"catapults": int(catapults[m])} if has_events and has_critical_lr else {})
            | ({"spikes": spikes[m]} if has_events else {})
            | ({"critical_steps": analysis.critical_fraction(record, settings, m)} if has_critical_lr else {})
            | ({name: getattr(prediction, name) for name in (*analysis.CONFUSION, *_PREDICTION)} if prediction else {})
            | {name: _short(values[m].item()) for name, values in start.items()}
            | {name: float(values[m]) for name, values in ends.items()}
            | {"run": run_dir.name}
            | ({_CURVES: curves[m]} if curves else {})
        )
    return rows


def _starts(record: xarray.Dataset, events: list[list[Event]], run_dir: Path) -> dict[str, np.ndarray]:
    """Of each member: critical lr at initialisation, height of the first spike, alignment before training, and that of two references."""
    columns = {}
    if "critical_lr0" in record.coords:
        columns["critical_lr0"] = record["critical_lr0"].values
    if events:
        columns["first_peak_ratio"] = np.array([row[0].peak_ratio if row else 1.0 for row in events])
    if "agop_alignment" in record:
        columns["agop_alignment_start"] = record["agop_alignment"].values[:, 0]
        ceiling = (records.read_json(run_dir / "run.json").get("agop_reference") or {}).get("ceiling")
        if ceiling is not None:
            columns["agop_ceiling"] = np.full(record.sizes["member"], float(ceiling))
    return columns


def _curves(record: xarray.Dataset, settings: Settings) -> list[dict[str, np.ndarray]]:
    """The errors of each member at the end of each epoch at which they were measured, with the epochs; empty: not on record."""
    names = [name for name in ("error_val", "error_test") if name in record]
    if not names:
        return []
    steps = np.arange(0, record.sizes["step"], members.steps_of_an_epoch(settings))
    steps = steps[np.isfinite(record[names[-1]].values[:, steps]).any(0)]
    epoch = steps // members.steps_of_an_epoch(settings)
    return [{"epoch": epoch} | {name: record[name].values[m, steps] for name in names} for m in range(record.sizes["member"])]


def _short(value: Any) -> Any:
    """Round a float to seven digits: 0.4 in place of the 32-bit number nearest to it."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _columns(rows: Rows) -> list[str]:
    """The columns of all rows, without the curves. The runs of a sweep need not measure the same series."""
    return list(dict.fromkeys(name for row in rows for name in row if name != _CURVES))


def find_verdicts(rows: Rows, config: ConfigDict, names: Sequence[str], about: dict[str, Any]) -> list[verdicts.Verdict]:
    """The verdicts of the claims about sweeps.

    Args:
      rows: from :func:`member_rows`.
      config: of the sweep.
      names: of claims; claims about single runs are skipped.
      about: the data of the runs, from run.json. They may be fallback data.
    """
    fields = config.to_dict()
    fields["data"]["name"] = about["name"]
    return [verdicts.of_sweep(name, rows, fields) for name in names if name in verdicts.OF_SWEEP]


def write_summary(
    rows: Rows,
    axes: Sequence[str],
    config: ConfigDict,
    workdir: Path,
    title: str,
    failures: dict[str, str],
    about: dict[str, Any],
) -> list[verdicts.Verdict]:
    """Write summary.csv, summary.png and summary.html.

    Args:
      rows: from :func:`member_rows`.
      axes: fields that differ between the runs.
      config: of the sweep.
      workdir: directory of the sweep.
      title: of the page.
      failures: run -> error message.
      about: the data of the runs, from run.json.

    Returns:
      The verdicts of the sweep.
    """
    _write_csv(rows, workdir)
    results = find_verdicts(rows, config, config.claims, about)
    blocks = [
        *fallback_warning(about),
        *(page.warning(f"{name}: {error}") for name, error in failures.items()),
        *_lost(rows, axes),
    ]
    tables = [v.table for v in results]
    shown = [v._replace(table=() if v.table in tables[:i] else v.table) for i, v in enumerate(results)]
    blocks += [verdict_block(v, about, _seeds(rows)) for v in shown]
    picture = figures.save(sweep_figure(rows, tuple(axes) or ("lr_given",)), workdir / "summary", fallback_text(about))
    finished = sum(bool(row["finished"]) for row in rows)
    blocks.append(page.image(picture, f"{title}. {SWEEP_CAPTION} n = {finished} members that finished, of {len(rows)}."))
    links = page.links({name: f"./{quote(name)}/report.html" for name in dict.fromkeys(row["run"] for row in rows)})
    sections = [
        page.Section("", blocks),
        page.Section("Mean over the seeds that finished, with its 95 % bootstrap interval", [_means(rows, axes)]),
        page.Section("Runs", [links]),
    ]
    records.write_text(workdir / "summary.html", page.render(title, sections))
    return results


def verdict_lines(workdir: Path, results: list[verdicts.Verdict]) -> list[str]:
    """The verdicts of a sweep as the terminal shows them, in the words of its summary, with the rows of their tables."""
    with (workdir / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    about = records.read_json(workdir / rows[0]["run"] / "run.json")["data"]
    tables = [["  " + ", ".join(row) for row in v.table] for v in results]
    return [line for v, table in zip(results, tables, strict=True) for line in (verdict_line(v, about, _seeds(rows)), *table)]


def _seeds(rows: Rows) -> int:
    """Number of seeds of a sweep."""
    return len({row["seed"] for row in rows})


def _write_csv(rows: Rows, workdir: Path) -> None:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, _columns(rows), lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    records.write_text(workdir / "summary.csv", file.getvalue())


def _lost(rows: Rows, axes: Sequence[str]) -> list[page.Block]:
    """A warning and a table of the members that diverged or whose network is dead."""
    lost = [row for row in rows if not row["active"]]
    if not lost:
        return []
    names, dead = (*axes, "setting", "seed"), sum(row["dead_from"] >= 0 for row in lost)
    end = lambda row: f"dead from step {row['dead_from']}" if row["dead_from"] >= 0 else "diverged"
    return [
        page.warning(
            f"{len(lost)} of {len(rows)} members did not finish: {len(lost) - dead} diverged, {dead} with a dead network."
        ),
        page.table((*names, "how it ended"), [(*(row[name] for name in names), end(row)) for row in lost]),
    ]


def _means(rows: Rows, axes: Sequence[str]) -> page.Block:
    """A table with one row for each setting: means over the seeds that finished."""
    setting_of = lambda row: tuple(row[name] for name in (*axes, "setting"))
    columns = _columns(rows)
    metrics = [name for name in ("catapults", "spikes", "steps", "critical_steps", *_PREDICTION, *_ENDS) if name in columns]
    table = []
    for setting in dict.fromkeys(map(setting_of, rows)):
        of_setting = [row for row in rows if setting_of(row) == setting]
        finished = [row for row in of_setting if row["finished"]]
        means = (statistics.text_of([row[name] for row in finished if name in row]) for name in metrics)
        table.append((*setting, f"{len(finished)} of {len(of_setting)}", *means))
    return page.table((*axes, "setting", "finished", *metrics), table)
