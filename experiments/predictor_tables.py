"""The complete tables of criteria for spikes, in Markdown, from runs of configs/predictors.py: python -m experiments.predictor_tables RUN_DIR ...

First one row for each run, with the criteria of the hypotheses. Then for each run: the area under the ROC curve and under the precision-recall curve of every criterion and baseline for every target, what each
criterion adds to a logistic model of the baselines, precision and recall at the threshold 1, and the reliability of the scores. The protocol
is on docs/predictors.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from catapult_jax import records
from catapult_jax.metrics import auroc, average_precision
from catapult_jax.report.members import until_diverged
from catapult_jax.report.statistics import number_text
from experiments import config as configs
from experiments.markdown import markdown_table
from experiments.verdicts import Run, read_run
from experiments.verdicts.predictor_scores import (
    C1,
    C3,
    C5,
    C7_TRACE,
    CRITERIA,
    T1,
    T2,
    T4,
    TARGETS,
    Member,
    logistic_within_runs,
    members_of,
    within_runs,
)
from experiments.verdicts.predictors import HORIZON, above_one, cell

Rows = list[tuple[str, ...]]  # the first one is the header

BINS = (0.0, 0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0, np.inf)  # of a score, for its reliability
_MODEL = "all baselines, logistic model"


def tables(run: Run) -> dict[str, Rows]:
    """The tables of a run.

    Args:
      run: of configs/predictors.py, or another one with the series that its claims need.

    Returns:
      Title -> rows.
    """
    members = members_of(run)
    return {
        "AUROC within a run, mean over runs with its 95 % bootstrap interval": [
            *_areas(members, auroc),
            (_MODEL, *(cell(logistic_within_runs(members, target)) for target in TARGETS)),
        ],
        "AUPRC within a run; the row base rate is that of a guess": _areas(members, average_precision),
        "AUROC that a criterion adds to the logistic model of all baselines": gains(members),
        "Precision, recall at the threshold 1 (base rate), all steps of all runs": at_threshold(members),
        "Reliability: frequency of the target (steps) by the score, all steps of all runs": reliability(members),
    }


def _areas(members: list[Member], measure: Callable[[np.ndarray, np.ndarray], float]) -> Rows:
    of = lambda name: (name, *(cell(within_runs(members, name, target, measure)) for target in TARGETS))
    return [("score", *TARGETS), *map(of, members[0].scores)]


def _criteria(members: list[Member]) -> list[str]:
    return [name for name in CRITERIA if name in members[0].scores]


def gains(members: list[Member]) -> Rows:
    """How much the area under the ROC curve of the logistic model of all baselines grows by each criterion.

    Args:
      members: from :func:`members_of`.
    """
    alone = {target: logistic_within_runs(members, target) for target in TARGETS}
    of = lambda name: (name, *(cell(logistic_within_runs(members, target, name) - alone[target]) for target in TARGETS))
    return [("criterion", *TARGETS), *map(of, _criteria(members))]


def at_threshold(members: list[Member]) -> Rows:
    """Precision and recall of each criterion above 1, untuned.

    Args:
      members: from :func:`members_of`.
    """
    targets = (T1, T2, T4[HORIZON])

    def text(name, target):
        table = above_one(members, name, target)
        return f"{number_text(table.precision)}, {number_text(table.recall)} ({number_text(table.base_rate)})"

    return [("criterion", *targets), *((name, *(text(name, target) for target in targets)) for name in _criteria(members))]


def reliability(members: list[Member]) -> Rows:
    """How often the target of each criterion happens, by bins of its score.

    Args:
      members: from :func:`members_of`.
    """
    bins = list(pairwise(BINS))
    header = ("criterion", "target", *(f"{low:g} to {high:g}" for low, high in bins))
    return [header, *(_reliability_row(members, name, bins) for name in _criteria(members))]


def _reliability_row(members: list[Member], name: str, bins: list[tuple[float, float]]) -> tuple[str, ...]:
    target = CRITERIA[name].target
    score = np.concatenate([member.scores[name][member.counts[target]] for member in members])
    happened = np.concatenate([member.happens[target][member.counts[target]] for member in members])
    cells = []
    for low, high in bins:
        inside = (score >= low) & ((score < high) | np.isinf(high))
        cells.append(f"{happened[inside].mean():.2f} ({inside.sum()})" if inside.any() else "")
    return (name, target, *cells)


def head_table(runs: Sequence[Run]) -> Rows:
    """One row for each run: the area under the ROC curve of the criteria of the hypotheses, beside the model of all baselines.

    Args:
      runs: of configs/predictors.py.
    """
    columns = [(T1, (C1, C3)), (T2, (C1, C5)), (T4[HORIZON], (C1, C3, C5, C7_TRACE))]
    rows: Rows = [
        ("run", *(f"{target}: {name}" for target, names in columns for name in (*(n.split()[0] for n in names), "baselines")))
    ]
    for run in runs:
        members, cells = members_of(run), []
        for target, names in columns:
            cells += [cell(within_runs(members, name, target)) for name in names]
            cells.append(cell(logistic_within_runs(members, target)))
        rows.append((f"{run.config['optimizer']['name']}, {run.config['data']['name']}", *cells))
    return rows


def main(argv: list[str]) -> int:
    """Print the tables of each run; returns the exit status."""
    if len(argv) < 2 or set(argv[1:]) & {"-h", "--help"}:
        print((__doc__ or "").strip())
        return 0 if len(argv) > 1 else 2
    try:
        runs = [
            read_run(until_diverged(records.open_record(folder).load()), records.read_json(folder / "config.json"))
            for folder in (configs.home(name, "RUN_DIR") for name in argv[1:])
        ]
    except (FileNotFoundError, configs.ConfigError, records.DamagedFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for folder, run in zip(argv[1:], runs, strict=True):
        if run.config["measure"]["criteria_every"] != 1:
            print(
                f"error: {folder!r} has measure.criteria_every={run.config['measure']['criteria_every']}; allowed: a run of configs/predictors.py",
                file=sys.stderr,
            )
            return 2
    print("# Criteria for spikes: complete tables\n")
    print(
        "Written by `python -m experiments.predictor_tables RUN_DIR ...`; the protocol is on [predictors.md](../predictors.md).\n"
    )
    print(f"## All runs, AUROC\n\n{markdown_table(head_table(runs))}")
    for run in runs:
        print(f"## {run.config['title']}\n")
        for title, rows in tables(run).items():
            print(f"**{title}**\n\n{markdown_table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
