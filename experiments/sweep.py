"""Runs a config over a grid: python -m experiments.sweep --config=configs/batch_size.py:rank2 [--grid=FIELD=v1,v2 ...].

Axes that only change numbers of a member (seed, learning rate, raises, cap) become members of one vmapped program; every other axis makes
runs. Runs that are complete are skipped, unfinished ones go on where they stopped, and one table and one figure tell of all.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import io
import itertools
import json
import multiprocessing.connection
import signal
import sys
import traceback
from pathlib import Path
from urllib.parse import quote

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from catapult_jax import records
from catapult_jax.report import analysis, figures, members, page, statistics
from catapult_jax.report.sections import END_SERIES
from experiments import build, command_line, rules, signals, verdicts
from experiments import config as configs
from experiments.build import programs
from experiments.config import ConfigError, RunError
from experiments.directory import check_writable, held, is_new, name_of, written
from experiments.figures import SWEEP_CAPTION, sweep_figure
from experiments.main import default_workdir, run
from experiments.sections import fallback_warning, verdict_block
from experiments.settings import settings_of

_GRID = flags.DEFINE_multi_string("grid", [], "FIELD=v1,v2,...; may be given several times. Default: the config's own sweep.")
_PROCESSES = flags.DEFINE_integer("processes", 1, "Runs at a time.", lower_bound=1)

# Fields of one member, and the tuple of all members that stands before them.
_OF_MEMBERS = {
    "seed": "members.seed",
    "optimizer.lr": "members.lr",
    "schedule.raises": "members.raises",
    "schedule.cap": "members.cap",
}


_PREDICTION = (
    "precision",
    "recall",
    "base_rate",
)  # beside the counts: of lr > critical_lr_batch, for a rise of that batch's loss in the step


def parse_axis(text: str, config: ConfigDict) -> tuple[str, tuple]:
    """``"FIELD=v1,v2"`` as a field and its values, of the type that the field has.

    Raises:
      ConfigError: no such field, no values, a value twice, or one of another type.
    """
    name, _, values = text.partition("=")
    fields = configs.flat(config)
    if name not in fields:
        raise ConfigError(configs.no_field(name))
    kind = configs.types_of_fields(config)[name]
    if name in _OF_MEMBERS.values():
        kind = int if name in ("members.seed", "members.raises") else float
    elif kind is tuple:
        raise ConfigError(f"grid={text!r}; allowed: fields of one value, or members.*")
    parsed = tuple(_value(part.strip(), kind, text) for part in values.split(",") if part.strip())
    if not parsed or len(set(parsed)) < len(parsed):
        raise ConfigError(f"grid={text!r}; allowed: FIELD=v1,v2,... with each value once")
    return name, parsed


def _value(part: str, kind: type, text: str):
    if part == "None":
        return None
    if kind is str:
        return part
    try:
        value = ast.literal_eval(part)
    except (ValueError, SyntaxError):
        value = None
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"grid={text!r}: {part!r} is no {kind.__name__}; allowed: values of that type")
    return value


def plan(config: ConfigDict, grid: list[str]) -> tuple[list[tuple[dict, ConfigDict]], list[str]]:
    """The runs of a sweep: ``[(values of its axes, config)]``, and the names of the axes that make runs.

    Raises:
      ConfigError: an axis that can't be, or a config that can't be run; nothing has been started then.
    """
    axes = [parse_axis(text, config) for text in grid or config.sweep]
    names = [_OF_MEMBERS.get(name, name) for name, _ in axes]
    if len(set(names)) < len(names):
        raise ConfigError(f"grid={names}; allowed: each field once")
    base = config.copy_and_resolve_references()
    structural = []
    for name, values in axes:
        if name in _OF_MEMBERS or name in _OF_MEMBERS.values():
            base.update_from_flattened_dict({_OF_MEMBERS.get(name, name): values})
        else:
            structural.append((name, values))
    runs = []
    for values in itertools.product(*(values for _, values in structural)):
        chosen = dict(zip((name for name, _ in structural), values, strict=True))
        one = base.copy_and_resolve_references()
        one.update_from_flattened_dict(chosen)
        rules.check(one)
        one = configs.expanded(one)
        runs.append((chosen, one))
    return runs, [name for name, _ in structural]


def directory_of(workdir: Path, chosen: dict, config: ConfigDict) -> Path:
    """Directory of one run of a sweep."""
    label = "-".join(f"{name.rsplit('.', 1)[-1]}={value}" for name, value in chosen.items()).replace("/", "_")
    return workdir / name_of(label or "run", configs.identity(config))


def is_complete(directory: Path) -> bool:
    """The run ended, and its report, which is written last, is there."""
    try:
        ended = records.read_json(directory / "run.json")["status"] != "running"
    except (FileNotFoundError, records.DamagedFile, KeyError):  # what is damaged is said when it is run
        return False
    return ended and (directory / "report.html").is_file() and not records.damage(directory)


def _one(config: dict, directory: str, cache: str | None) -> str | None:
    """Runs one config, perhaps in a process of its own; returns what went wrong, if it did."""
    try:
        command_line.keep_compiled(cache)
        run(ConfigDict(config), Path(directory))
    except (ConfigError, RunError, records.DamagedFile) as error:
        return configs.one_line(error)
    except Exception as error:  # one run that is too large for the machine must not take the others with it
        traceback.print_exc()
        return f"{type(error).__name__}: {configs.one_line(error)}"
    return None


def _worker(connection) -> None:
    """Runs what it is sent, one config after the other, until there is no more."""
    signals.end_in_one_line()
    with contextlib.suppress(EOFError), programs.shared_programs():
        while True:
            connection.send(_one(*connection.recv()))


def _in_processes(work: list[tuple], processes: int) -> dict[str, str | None]:
    """Runs configs in so many processes at a time; a process that is killed costs its own run.

    Returns what went wrong in each run, if it did. (An executor would give up all runs with one process.)

    Raises:
      SystemExit: stopped by a signal, after each process has finished its chunk.
    """
    context = multiprocessing.get_context("spawn")  # a forked process would share the threads of a JAX that is already running
    waiting, idle, busy, failures, told = list(work), [], {}, {}, False

    def start():
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker, args=(theirs,), daemon=True)
        process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        return process, ours

    with signals.kept() as received:
        while busy or (waiting and not received):
            if received and not told:
                told = True
                for process, _ in busy.values():
                    signals.stop_worker(process.pid)
            while waiting and not received and len(busy) < processes:
                process, connection = idle.pop() if idle else start()
                with contextlib.suppress(OSError):  # it was killed since: found below, when it is read
                    connection.send(waiting[0])
                busy[connection] = process, Path(waiting.pop(0)[1]).name
            for connection in multiprocessing.connection.wait(list(busy), timeout=1):
                process, name = busy.pop(connection)
                try:
                    failures[name] = connection.recv()
                    idle.append((process, connection))
                except (EOFError, OSError):
                    process.join()
                    failures[name] = _end_of(process.exitcode)
    for process, connection in idle:
        connection.close()
        process.join()
    if received:
        signals.stop(received[0], "; record and checkpoint of each run are written; the same command goes on")
    return failures


def _end_of(exitcode: int) -> str:
    how = f"was killed by {signal.Signals(-exitcode).name}" if exitcode < 0 else f"ended with exit status {exitcode}"
    memory = " (often: no memory left)" if exitcode == -signal.SIGKILL else ""
    return f"its process {how}{memory}; the same command goes on with it"


def _short(value):
    """0.4 rather than the nearest number of 32 bits."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def summary(runs: list[tuple[dict, ConfigDict]], workdir: Path) -> list[dict]:
    """One row for each member of each run that is complete."""
    rows = []
    for chosen, one in runs:
        directory = directory_of(workdir, chosen, one)
        if not is_complete(directory):
            continue
        record, config = (
            members.until_diverged(records.open_record(directory).load()),
            records.read_json(directory / "config.json"),
        )
        settings = settings_of(config)
        events = analysis.run_events(record, settings)
        ends = {name: members.last(record, settings, name) for name in END_SERIES if name in record}
        critical = "critical_lr_batch" in record
        predicted = critical and "loss_batch_after" in record
        catapults, ok = analysis.catapult_counts(events), members.finished(record, settings)
        spikes = [len(row) for row in events]
        looked = members.has_events(record, settings)
        label = {m: name for name, numbers in members.by_setting(record, settings) for m in numbers}
        active, dead = members.active(record, settings)[:, -1], members.dead_steps(record, settings)
        coordinates = [name for name in ("seed", "lr_given", "lr0", "raises", "cap") if name in record.coords]
        for m in range(record.sizes["member"]):
            # A member that stopped ends at the first step at which it did.
            stopped = record["stopped"].values[m] if "stopped" in record else np.zeros(1, bool)
            steps = int(stopped.argmax()) if stopped.any() else record.sizes["step"]
            found = analysis.batch_prediction(record, settings, m) if predicted else None
            rows.append(
                chosen
                | {name: _short(record[name].values[m].item()) for name in coordinates}
                | {
                    "setting": label[m],
                    "finished": bool(ok[m]),
                    "active": bool(active[m]),
                    "dead_from": int(dead[m]),
                    "steps": steps,
                }
                | ({"catapults": int(catapults[m])} if looked and critical else {})
                | ({"spikes": spikes[m]} if looked else {})
                | ({"critical_steps": analysis.critical_fraction(record, settings, m)} if critical else {})
                | ({name: getattr(found, name) for name in (*analysis.CONFUSION, *_PREDICTION)} if found else {})
                | {name: float(values[m]) for name, values in ends.items()}
                | {"run": directory.name}
            )
    return rows


def _columns(rows: list[dict]) -> list[str]:
    """The columns of all rows: runs of one sweep need not measure the same."""
    return list(dict.fromkeys(name for row in rows for name in row))


def find_verdicts(rows: list[dict], config: ConfigDict, names, about: dict) -> list[verdicts.Verdict]:
    """``about``: the data that the runs were on, which need not be those that the config names."""
    fields = config.to_dict()
    fields["data"]["name"] = about["name"]
    return [verdicts.of_sweep(name, rows, fields) for name in names if name in verdicts.OF_SWEEP]


def write_summary(
    rows: list[dict], axes: list[str], config: ConfigDict, workdir: Path, title: str, failures: dict[str, str], about: dict
) -> list[verdicts.Verdict]:
    """summary.csv, summary.png and summary.html; returns the verdicts. ``about``: the data that the runs were on."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    records.write_text(workdir / "summary.csv", file.getvalue())
    found = find_verdicts(rows, config, config.claims, about)
    dead = [row for row in rows if row["dead_from"] >= 0]
    top = [*fallback_warning(about), *(page.warning(f"{name}: {why}") for name, why in failures.items())]
    if dead:
        names = (*axes, "setting", "seed")
        top.append(page.warning(f"The network of {len(dead)} of {len(rows)} members is dead; they did not finish:"))
        top.append(page.table((*names, "dead from step"), [(*(r[a] for a in names), r["dead_from"]) for r in dead]))
    tables = [v.table for v in found]
    top += [verdict_block(v._replace(table=() if v.table in tables[:i] else v.table)) for i, v in enumerate(found)]
    picture = figures.save(sweep_figure(rows, tuple(axes) or ("lr_given",), title), workdir / "summary")
    top.append(page.image(picture, SWEEP_CAPTION))
    settings = list(dict.fromkeys(tuple(row[name] for name in (*axes, "setting")) for row in rows))
    metrics = ("catapults", "spikes", "steps", "critical_steps", *_PREDICTION, *END_SERIES)
    metrics = [name for name in metrics if name in _columns(rows)]
    table = []
    for setting in settings:
        own = [row for row in rows if tuple(row[name] for name in (*axes, "setting")) == setting]
        ended = [row for row in own if row["finished"]]
        table.append(
            (
                *setting,
                f"{len(ended)} of {len(own)}",
                *(statistics.text_of([row[name] for row in ended if name in row]) for name in metrics),
            )
        )
    means = page.table((*axes, "setting", "finished", *metrics), table)
    runs = page.links({name: f"./{quote(name)}/report.html" for name in dict.fromkeys(row["run"] for row in rows)})
    sections = [
        page.Section("", top),
        page.Section("Mean over the seeds that finished, with its 95 % bootstrap interval", [means]),
        page.Section("Runs", [runs]),
    ]
    records.write_text(workdir / "summary.html", page.render(title, sections))
    return found


def run_sweep(
    config: ConfigDict, grid: list[str], workdir: Path, processes: int, cache: str | None = None
) -> list[verdicts.Verdict]:
    """Runs what is not complete yet, then writes the summary.

    Raises:
      ConfigError: before anything is started.
      RunError: a run failed; the others have been run, and the summary is of those.
    """
    runs, axes = plan(config, grid)
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"workdir={str(workdir)!r} is a file; allowed: a directory")
    if not is_new(workdir) and not any(
        is_new(path) or (path / "config.json").is_file() for path in workdir.iterdir() if path.is_dir()
    ):
        raise ConfigError(
            f"workdir={str(workdir)!r} holds something else than a sweep; allowed: a new directory or that of a sweep"
        )
    if is_new(workdir):
        check_writable(workdir)
    for one in {json.dumps(configs.flat(one.data), default=list): one for _, one in runs}.values():
        build.load_data(one)  # what can't be had is said before anything is made
    with held(workdir):
        return _run_sweep(config, runs, axes, workdir, processes, cache)


def _run_sweep(config: ConfigDict, runs, axes, workdir: Path, processes: int, cache: str | None) -> list[verdicts.Verdict]:
    todo = [(chosen, one) for chosen, one in runs if not is_complete(directory_of(workdir, chosen, one))]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} already complete")
    work = [(one.to_dict(), str(directory_of(workdir, chosen, one)), cache) for chosen, one in todo]
    failures = {}
    if processes == 1 or len(work) < 2:
        with programs.shared_programs():
            for one, directory, _ in work:
                failures[Path(directory).name] = _one(one, directory, cache)
    else:
        failures = _in_processes(work, min(processes, len(work)))
    failures = {name: why for name, why in failures.items() if why}
    for name, why in failures.items():
        print(f"error: {name}: {why}", file=sys.stderr)
    rows = summary(runs, workdir)
    if not rows:
        raise RunError("no run of the sweep was completed")
    title = f"Sweep: {config.title}" if not axes else f"Sweep over {', '.join(axes)}: {config.title}"
    about = records.read_json(workdir / rows[0]["run"] / "run.json")["data"]
    with written(workdir):
        found = write_summary(rows, axes, config, workdir, f"{title}, on {about['name']}", failures, about)
    if failures:
        raise RunError(f"{len(failures)} of {len(runs)} runs failed; the summary is of the others: {workdir / 'summary.html'}")
    return found


def main(_argv: list[str]) -> int:
    """Runs a sweep; returns the exit status."""
    if flags.FLAGS.reproduce:
        raise ConfigError(
            f"reproduce={flags.FLAGS.reproduce!r} is not for sweeps; allowed: python -m experiments.main --reproduce, run by run"
        )
    config = flags.FLAGS.config
    given = flags.FLAGS.workdir
    kind = "-".join(["sweep", *_GRID.value]).replace("/", "_")
    workdir = Path(given).expanduser() if given else default_workdir(config, kind)
    for verdict in run_sweep(config, _GRID.value, workdir, _PROCESSES.value, command_line.CACHE.value):
        print(f"{verdict.verdict}: {verdict.claim}: {verdict.effect}")
        for row in verdict.table:
            print("  " + ", ".join(row))
    print(f"summary: {workdir / 'summary.html'}")
    return 0


if __name__ == "__main__":
    command_line.program(main)
