"""Run a config over a grid: python -m experiments.sweep --config=configs/batch_size.py:rank2 [--grid=FIELD=v1,v2 ...].

The axes seed, learning rate, raises and cap become members of one vmapped program. Every other axis makes runs.
Complete runs are skipped, and unfinished runs resume. A table and a figure summarise all runs.
"""

from __future__ import annotations

import ast
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from catapult_jax import records
from experiments import build, command_line, directory, rules, summary, verdicts, workers
from experiments import config as configs
from experiments.config import TYPE_NAMES, ConfigError, RunError
from experiments.main import default_workdir

_GRID = flags.DEFINE_multi_string(
    "grid",
    [],
    "FIELD=v1,v2,..., or FIELD+OTHER=v1+w1,v2+w2,... for fields that change together; may be given several times. Default: the field "
    "sweep of the config.",
)
_PROCESSES = flags.DEFINE_integer("processes", 1, "Number of runs at a time.", lower_bound=1)

# Fields of a member, and the field with the values of all members.
_OF_MEMBERS = {
    "seed": "members.seed",
    "optimizer.lr": "members.lr",
    "schedule.raises": "members.raises",
    "schedule.cap": "members.cap",
}

Runs = list[tuple[dict[str, Any], ConfigDict]]  # of each run: its values on the axes, and its config


def parse_joint_axis(text: str, config: ConfigDict) -> tuple[tuple[str, ...], list[tuple]]:
    """Parse an axis: ``"FIELD=v1,v2"``, or ``"FIELD+OTHER=v1+w1,v2+w2"`` for fields that change together.

    Args:
      text: of the axis.
      config: has the fields.

    Returns:
      The fields, and their values at each point.

    Raises:
      ConfigError: as :func:`parse_axis`; or points of another number of values than there are fields; or the same point twice.

    >>> from configs import quickstart
    >>> parse_joint_axis("model.width+model.depth=16+2,32+3", quickstart.get_config())
    (('model.width', 'model.depth'), [(16, 2), (32, 3)])
    """
    names, _, values = text.partition("=")
    fields = tuple(name.strip() for name in names.split("+"))
    if len(fields) == 1:
        name, parsed = parse_axis(text, config)
        return (name,), [(value,) for value in parsed]
    points = [tuple(part.split("+")) for part in values.split(",") if part.strip()]
    if len(set(points)) < len(points) or not points or any(len(point) != len(fields) for point in points):
        raise ConfigError(f"grid={text!r}; allowed: {names}=v1+w1,v2+w2,... with each point once")
    members = set(fields) & {*_OF_MEMBERS, *_OF_MEMBERS.values()}
    if members:
        raise ConfigError(f"grid={text!r}; allowed: fields that make runs, not {', '.join(sorted(members))}")
    parsed = [
        tuple(parse_axis(f"{name}={value}", config)[1][0] for name, value in zip(fields, point, strict=True))
        for point in points
    ]
    if len(set(parsed)) < len(parsed):
        raise ConfigError(f"grid={text!r}; allowed: {names}=v1+w1,v2+w2,... with each point once")
    return fields, parsed


def parse_axis(text: str, config: ConfigDict) -> tuple[str, tuple]:
    """Parse ``"FIELD=v1,v2"`` into a field and its values, with the type of the field.

    Args:
      text: of the axis.
      config: has the field.

    Raises:
      ConfigError: no such field, no values, the same value twice, or a value of another type.

    >>> from configs import quickstart
    >>> parse_axis("optimizer.lr=1,2.5", quickstart.get_config())
    ('optimizer.lr', (1.0, 2.5))
    """
    name, _, values = text.partition("=")
    fields = configs.flat(config)
    if not name:
        raise ConfigError(f"grid={text!r}; allowed: FIELD=v1,v2,...")
    if name not in fields:
        raise ConfigError(configs.no_field(name))
    kind = configs.types_of_fields(config)[name]
    if name in _OF_MEMBERS.values():
        kind = int if name in ("members.seed", "members.raises") else float
    elif kind is tuple:
        raise ConfigError(f"grid={text!r}; allowed: fields of one value, or members.*")
    parsed = tuple(_parse_value(part.strip(), kind, text) for part in values.split(",") if part.strip())
    if not parsed or len(set(parsed)) < len(parsed):
        raise ConfigError(f"grid={text!r}; allowed: FIELD=v1,v2,... with each value once")
    return name, parsed


def _parse_value(part: str, kind: type, text: str) -> Any:
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
        raise ConfigError(f"grid={text!r}: {part!r} has the wrong type; allowed: {TYPE_NAMES[kind]}")
    return value


def plan(config: ConfigDict, grid: Sequence[str]) -> tuple[Runs, list[str]]:
    """The runs of a sweep, all of them checked.

    Args:
      config: of the sweep.
      grid: axes as text; empty: the field ``sweep`` of the config.

    Returns:
      The runs, and the names of the axes that make runs.

    Raises:
      ConfigError: an axis that is not allowed, or a config that can't be run.
    """
    axes = [parse_joint_axis(text, config) for text in grid or config.sweep]
    names = [_OF_MEMBERS.get(name, name) for fields, _ in axes for name in fields]
    if len(set(names)) < len(names):
        raise ConfigError(f"grid={names}; allowed: each field once")
    base = config.copy_and_resolve_references()
    run_axes = []
    for fields, points in axes:
        name = _OF_MEMBERS.get(fields[0], fields[0])
        if name in _OF_MEMBERS.values():
            base.update_from_flattened_dict({name: tuple(value for (value,) in points)})
        else:
            run_axes.append([dict(zip(fields, values, strict=True)) for values in points])
    runs = []
    for parts in itertools.product(*run_axes):
        point = {name: value for part in parts for name, value in part.items()}
        run_config = base.copy_and_resolve_references()
        run_config.update_from_flattened_dict(point)
        rules.check(run_config)
        runs.append((point, configs.expanded(run_config)))
    return runs, [name for points in run_axes for name in points[0]]


def _refuse_on_axes(config: ConfigDict, grid: Sequence[str], given: dict[str, str]) -> None:
    """Refuse a field on the command line that an axis replaces."""
    for text in grid or config.sweep:
        for name in text.partition("=")[0].split("+"):
            name = _OF_MEMBERS.get(name.strip(), name.strip())
            if name in given and given[name] != "None":
                raise ConfigError(
                    f"{name}={given[name]} has no effect, since the axis {text!r} replaces it; allowed: one of them"
                )


def run_sweep(
    config: ConfigDict, grid: Sequence[str], workdir: Path, processes: int, cache: str | None = None
) -> list[verdicts.Verdict]:
    """Run what is not complete, then write the summary.

    Args:
      config: of the sweep.
      grid: axes as text; empty: the field ``sweep`` of the config.
      workdir: directory of the sweep.
      processes: number of runs at a time.
      cache: directory of compiled programs, or None.

    Returns:
      The verdicts of the sweep.

    Raises:
      ConfigError: before any run starts.
      RunError: a run failed. The other runs are complete, and the summary shows them.
    """
    runs, axes = plan(config, grid)
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"workdir={str(workdir)!r} is a file; allowed: a directory")
    if directory.is_new(workdir):
        directory.check_writable(workdir)
    elif not any(directory.is_new(path) or (path / "config.json").is_file() for path in workdir.iterdir() if path.is_dir()):
        raise ConfigError(
            f"workdir={str(workdir)!r} holds something else than a sweep; allowed: a new directory, or the directory of a sweep"
        )
    for run_config in {json.dumps(configs.flat(c.data), default=list): c for _, c in runs}.values():
        build.load_data(run_config)  # data that are not available end the sweep here, before it writes anything
    with directory.lock(workdir):
        return _run_sweep(config, runs, axes, workdir, processes, cache)


def _run_sweep(
    config: ConfigDict, runs: Runs, axes: list[str], workdir: Path, processes: int, cache: str | None
) -> list[verdicts.Verdict]:
    paths = [directory.directory_of_run(workdir, point, run_config) for point, run_config in runs]
    jobs = [
        workers.Job(run_config.to_dict(), str(path), cache)
        for (_, run_config), path in zip(runs, paths, strict=True)
        if not directory.is_complete(path)
    ]
    print(f"{len(runs)} runs, {len(runs) - len(jobs)} already complete")
    failures = workers.run_all(jobs, processes)
    for name, error in failures.items():
        print(f"error: {name}: {error}", file=sys.stderr)
    rows = summary.member_rows(runs, workdir)
    if not rows:
        raise RunError("no run of the sweep is complete; allowed: at least one, see the errors above")
    title = f"Sweep: {config.title}" if not axes else f"Sweep over {', '.join(axes)}: {config.title}"
    about = records.read_json(workdir / rows[0]["run"] / "run.json")["data"]
    with directory.explain_write_errors(workdir):
        results = summary.write_summary(rows, axes, config, workdir, f"{title}, on {about['name']}", failures, about)
    if failures:
        raise RunError(f"{len(failures)} of {len(runs)} runs failed; the summary shows the others: {workdir / 'summary.html'}")
    return results


def main(_argv: list[str]) -> int:
    """Run a sweep; returns the exit status."""
    if flags.FLAGS.reproduce:
        raise ConfigError(
            f"reproduce={flags.FLAGS.reproduce!r} is not for sweeps; allowed: python -m experiments.main --reproduce, for each run"
        )
    config = flags.FLAGS.config
    _refuse_on_axes(config, _GRID.value, command_line.given_fields(sys.argv))
    kind = "-".join(["sweep", *_GRID.value]).replace("/", "_")
    workdir = configs.home(flags.FLAGS.workdir, "workdir") if flags.FLAGS.workdir is not None else default_workdir(config, kind)
    results = run_sweep(config, _GRID.value, workdir, _PROCESSES.value, command_line.CACHE.value)
    for line in summary.verdict_lines(workdir, results):
        print(line)
    print(f"summary: {workdir / 'summary.html'}")
    return 0


if __name__ == "__main__":
    command_line.program(main)
