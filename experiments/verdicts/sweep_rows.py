"""Rows of the summary of a sweep, one for each member of each run: arms and their differences."""

from __future__ import annotations

import numpy as np

ONLY_OPTIMIZERS = "allowed: a sweep over three or more optimizers and nothing else but members"


def tuned_arms(rows: list[dict], axes: tuple[str, ...], metric: str, *, finished: bool) -> dict[tuple, list[dict]]:
    """The rows of each arm at its best learning rate: the one with the smallest mean ``metric`` over the seeds.

    Args:
      rows: One for each member of each run.
      axes: Columns whose values make an arm.
      metric: Column to minimise; it must be finite for every seed of a learning rate.
      finished: True: every seed must have reached the loss to stop at. False: no seed may have diverged.

    Returns:
      Rows by the values of the axes. An arm without such a learning rate is left out.
    """
    arms = {}
    for arm in dict.fromkeys(tuple(row[axis] for axis in axes) for row in rows):
        own = [row for row in rows if tuple(row[axis] for axis in axes) == arm]
        by_rate = [[row for row in own if row["lr_given"] == rate] for rate in dict.fromkeys(row["lr_given"] for row in own)]
        ended = lambda row: (row["finished"] if finished else row["active"]) and np.isfinite(row[metric])
        whole = [r for r in by_rate if all(map(ended, r))]
        if whole:
            arms[arm] = min(whole, key=lambda r: np.mean([row[metric] for row in r]))
    return arms


def at_the_edge(rows: list[dict], rate: float) -> str:
    """A remark where the learning rate is the smallest or the largest of its grid."""
    rates = [row["lr_given"] for row in rows]
    return ", an end of the grid" if rate in (min(rates), max(rates)) else ""


def paired(arms: dict[tuple, list[dict]], one: tuple, other: tuple, key: str) -> list[float]:
    """``one`` minus ``other`` in column ``key``, for each seed that both have."""
    values = [{row["seed"]: row[key] for row in arms[arm]} for arm in (one, other)]
    return [values[0][seed] - values[1][seed] for seed in values[0] if seed in values[1]]
