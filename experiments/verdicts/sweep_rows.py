"""Rows of the summary of a sweep, one for each member of each run: arms and their differences."""

from __future__ import annotations

import numpy as np

ONLY_OPTIMIZERS = "allowed: a sweep over three or more optimizers and nothing else but members"


def rows_by_arm(rows: list[dict], axes: tuple[str, ...]) -> dict[tuple, list[dict]]:
    """The rows of each arm, in the order of the rows.

    Args:
      rows: one for each member of each run.
      axes: columns whose values make an arm.

    Returns:
      Rows by the values of the axes.
    """
    arms: dict[tuple, list[dict]] = {}
    for row in rows:
        arms.setdefault(tuple(row[axis] for axis in axes), []).append(row)
    return arms


def tuned_arms(rows: list[dict], axes: tuple[str, ...], metric: str, *, finished: bool) -> dict[tuple, list[dict]]:
    """The rows of each arm at its best learning rate: the one with the smallest mean ``metric`` over the seeds.

    Args:
      rows: one for each member of each run.
      axes: columns whose values make an arm.
      metric: column to minimise; it must be finite for every seed of a learning rate.
      finished: True: every seed must have reached the loss to stop at. False: no seed may have diverged or be dead.

    Returns:
      Rows by the values of the axes. An arm without such a learning rate is left out.
    """
    best = {arm: lr_with_least(members, metric, finished=finished) for arm, members in rows_by_arm(rows, axes).items()}
    return {arm: members for arm, members in best.items() if members}


def lr_with_least(rows: list[dict], metric: str, *, finished: bool) -> list[dict]:
    """The rows of the learning rate with the smallest mean ``metric`` over the seeds, as in :func:`tuned_arms`; empty: there is none."""
    ended = lambda row: (row["finished"] if finished else row["active"]) and np.isfinite(row[metric])
    complete = [seeds for seeds in rows_by_arm(rows, ("lr_given",)).values() if all(map(ended, seeds))]
    return min(complete, key=lambda seeds: np.mean([row[metric] for row in seeds])) if complete else []


def at_the_edge(rows: list[dict], lr: float) -> str:
    """A remark if the learning rate is the smallest or the largest of its grid.

    Args:
      rows: with every learning rate of the grid.
      lr: the learning rate.
    """
    grid = [row["lr_given"] for row in rows]
    return ", an end of the grid" if lr in (min(grid), max(grid)) else ""


def paired(arms: dict[tuple, list[dict]], arm: tuple, baseline: tuple, column: str) -> list[float]:
    """``arm`` minus ``baseline`` in a column, for each seed that both have."""
    values, baseline_values = ({row["seed"]: row[column] for row in arms[name]} for name in (arm, baseline))
    return [values[seed] - baseline_values[seed] for seed in values if seed in baseline_values]
