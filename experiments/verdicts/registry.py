"""The registry of claims, and what a record or a sweep says of one of them.

A claim is a function with the decorator :func:`claim`, which is its only registration. The function's name is the claim's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.analysis import dead_members, dead_text, running

REPRODUCED, NOT_REPRODUCED, NOT_TESTED = "reproduced", "not reproduced", "not tested"
RUN, SWEEP = "run", "sweep"  # what a claim is of
MIN_SPIKES = 10  # fewer decide nothing


class Finding(NamedTuple):
    """What a claim's function returns."""

    statement: str  # what must hold, with its thresholds
    verdict: str
    effect: str  # sizes, over members
    table: tuple[tuple[str, ...], ...] = ()  # header and rows, where there is more to tell


class Verdict(NamedTuple):
    """A finding with the name of its claim."""

    claim: str
    statement: str
    verdict: str
    effect: str
    table: tuple[tuple[str, ...], ...] = ()


class Claim(NamedTuple):
    """A registered claim."""

    check: Callable[..., Finding]  # of (record, config) for a run, of (rows, config) for a sweep
    of: str  # RUN or SWEEP
    every_step: tuple[str, ...]  # fields of the config that must be 1
    given: tuple[str, ...]  # fields of the config that must be set
    columns: tuple[str, ...]  # columns that every row of the sweep must have


CLAIMS: dict[str, Claim] = {}


def claim(
    *, of: str, every_step: tuple[str, ...] = (), given: tuple[str, ...] = (), columns: tuple[str, ...] = ()
) -> Callable[[Callable[..., Finding]], Callable[..., Finding]]:
    """Register the decorated function as the claim of its name.

    Args:
      of: ``RUN``: the function takes a record and a config. ``SWEEP``: it takes the rows of a sweep's summary and a config.
      every_step: Fields of the config that must be 1, for instruments that must run at every step.
      given: Fields of the config that must not be 0 or empty.
      columns: Columns of the rows of a sweep without which the claim is not tested.

    Returns:
      A decorator that returns the function unchanged.

    Raises:
      ValueError: A claim of that name is registered already, ``of`` is neither value, or a claim of a run has columns.
    """
    if of not in (RUN, SWEEP):
        raise ValueError(f"of={of!r}; allowed: {RUN!r} or {SWEEP!r}")
    if of == RUN and columns:
        raise ValueError(f"columns={columns!r}; allowed: none for a claim of a run, which has no rows")

    def register(check: Callable[..., Finding]) -> Callable[..., Finding]:
        name = check.__name__
        if name in CLAIMS:
            raise ValueError(f"claim={name!r} is registered already; allowed: a name of its own")
        CLAIMS[name] = Claim(check, of, every_step, given, columns)
        return check

    return register


class _View(Mapping):
    """One property of every registered claim that has it. The view follows the registry."""

    def __init__(self, select: Callable[[Claim], Any]):
        self._select = select

    def __getitem__(self, name: str) -> Any:
        if value := self._select(CLAIMS[name]):
            return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name, registered in CLAIMS.items() if self._select(registered))

    def __len__(self) -> int:
        return sum(1 for _ in self)


VERDICTS = _View(lambda registered: registered.check)
OF_RUN = _View(lambda registered: registered.check if registered.of == RUN else None)
OF_SWEEP = _View(lambda registered: registered.check if registered.of == SWEEP else None)
NEEDS = _View(lambda registered: registered.every_step)
NEEDS_SOME = _View(lambda registered: registered.given)


def decide(*tests: bool | None) -> str:
    """The verdict of several tests. One that fails decides; otherwise one that is None leaves the claim untested."""
    return NOT_REPRODUCED if False in tests else NOT_TESTED if None in tests else REPRODUCED


def of_run(name: str, record, config: dict[str, Any]) -> Verdict:
    """What a record says of a claim.

    Where the claim needs the critical lr of every step, it is not tested unless that is known at every step of every running member.
    """
    verdict = Verdict(name, *OF_RUN[name](record, config))
    dead = dead_members(record, config)
    if dead:
        verdict = verdict._replace(effect=f"{verdict.effect}; {dead_text(dead)} of {record.sizes['member']} members")
    if "measure.lambda_max_batch_every" not in CLAIMS[name].every_step:
        return verdict
    steps = np.array([running(record, config, m) for m in range(record.sizes["member"])])
    unknown = int((np.isnan(record["critical_lr_batch"].values) & steps).sum())
    if not unknown:
        return verdict
    return verdict._replace(
        verdict=NOT_TESTED, effect=f"the critical lr is not known at {unknown} of {int(steps.sum())} steps; {verdict.effect}"
    )


def of_sweep(name: str, rows: list[dict], config: dict[str, Any]) -> Verdict:
    """What the rows of a sweep say of a claim. It is not tested where a row lacks a column that the claim needs."""
    check = OF_SWEEP[name]
    missing = [column for column in CLAIMS[name].columns if not all(column in row for row in rows)]
    if missing:
        summary = " ".join(check.__doc__.split()).rstrip(".")
        return Verdict(name, summary, NOT_TESTED, f"not measured in every run: {', '.join(missing)}")
    verdict, dead = Verdict(name, *check(rows, config)), sum(row.get("dead_from", -1) >= 0 for row in rows)
    return verdict._replace(effect=f"{verdict.effect}; dead: {dead} of {len(rows)} members") if dead else verdict
