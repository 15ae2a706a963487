"""The registry of claims, and the verdict of a record or a sweep on one of them.

A claim is a function with the decorator :func:`claim`, which is its only registration. The function's name is the claim's name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from catapult_jax.events import Event
from catapult_jax.report import Settings
from catapult_jax.report.analysis import run_events
from catapult_jax.report.members import dead_members, dead_text, running
from catapult_jax.report.statistics import MIN_SEEDS
from experiments.settings import settings_of

if TYPE_CHECKING:
    import xarray

REPRODUCED, PARTLY, NOT_REPRODUCED = "reproduced", "partly", "not reproduced"
NOT_MEASURABLE, NOT_TESTED = "not measurable", "not tested"  # the runs can't decide; there are no such runs
ZHU, STUDY, OURS = "Zhu et al. 2024", "MNIST study", "ours"  # sources; the last one: no study makes the claim
RUN, SWEEP = "run", "sweep"  # a claim is tested on one of them
MIN_SPIKES = 10  # fewer decide nothing


class Run(NamedTuple):
    """The record of a run, with what its claims need."""

    record: xarray.Dataset  # series over (member, step)
    config: dict[str, Any]  # its fields, as in config.json
    settings: Settings
    events: Callable[[float], list[list[Event]]]  # spike factor -> events of each member; each factor is computed once


class Finding(NamedTuple):
    """The result of a claim's function."""

    statement: str  # with its thresholds
    verdict: str
    effect: str  # the size that the verdict rests on, with its interval
    table: tuple[tuple[str, ...], ...] = ()  # header and rows; empty: no table
    details: str = ""  # further sizes


class Verdict(NamedTuple):
    """A finding with the name of its claim."""

    claim: str
    statement: str  # the rest as in Finding
    verdict: str
    effect: str
    table: tuple[tuple[str, ...], ...] = ()
    details: str = ""


class Claim(NamedTuple):
    """A registered claim."""

    check: Callable[..., Finding]  # takes a Run, or the rows of a sweep and a config
    of: str  # RUN or SWEEP
    title: str  # for a table: the claim in a few words
    published: str  # what the source says, in our words; empty for a claim of ours
    source: str  # study, and the place in it; OURS
    min_seeds: int  # fewer seeds are a demonstration, not a test
    every_step: tuple[str, ...]  # fields of the config that must be 1
    given: tuple[str, ...]  # fields of the config that must be set
    columns: tuple[str, ...]  # columns that every row of the sweep must have


CLAIMS: dict[str, Claim] = {}


def claim(
    *,
    of: str,
    title: str,
    published: str = "",
    source: str = OURS,
    min_seeds: int = MIN_SEEDS,
    every_step: tuple[str, ...] = (),
    given: tuple[str, ...] = (),
    columns: tuple[str, ...] = (),
) -> Callable[[Callable[..., Finding]], Callable[..., Finding]]:
    """Register the decorated function as the claim of its name.

    Args:
      of: ``RUN``: the function takes a :class:`Run`. ``SWEEP``: it takes the rows of a sweep's summary and a config.
      title: the claim in a few words, for a table.
      published: what the source says, in our words. Empty: the claim is ours.
      source: the study and the place in it.
      min_seeds: a run with fewer seeds demonstrates the claim and does not test it.
      every_step: Fields of the config that must be 1, for instruments that must run at every step.
      given: Fields of the config that must not be 0 or empty.
      columns: Columns of the rows of a sweep without which the claim is not tested.

    Returns:
      A decorator that returns the function unchanged.

    Raises:
      ValueError: A claim of that name is registered, ``of`` is neither value, a claim of a run has columns, or only one of
        ``published`` and ``source`` is given.
    """
    if of not in (RUN, SWEEP):
        raise ValueError(f"of={of!r}; allowed: {RUN!r} or {SWEEP!r}")
    if of == RUN and columns:
        raise ValueError(f"columns={columns!r}; allowed: none for a claim of a run, which has no rows")
    if bool(published) == (source == OURS):
        raise ValueError(f"published={published!r}, source={source!r}; allowed: both, or none for a claim of ours")

    def register(check: Callable[..., Finding]) -> Callable[..., Finding]:
        name = check.__name__
        if name in CLAIMS:
            raise ValueError(f"claim={name!r} is registered already; allowed: another name")
        CLAIMS[name] = Claim(check, of, title, published, source, min_seeds, every_step, given, columns)
        return check

    return register


_WORDS_OF_OURS = {REPRODUCED: "holds", PARTLY: "holds in part", NOT_REPRODUCED: "does not hold"}


def words_of(name: str, verdict: str) -> str:
    """The verdict on a claim in words: a claim of ours is not reproduced, it holds.

    Args:
      name: of the claim.
      verdict: on it.
    """
    return _WORDS_OF_OURS.get(verdict, verdict) if name in CLAIMS and CLAIMS[name].source == OURS else verdict


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
    """The verdict of several tests. One that fails decides; otherwise one that is None leaves the claim open."""
    return NOT_REPRODUCED if False in tests else NOT_MEASURABLE if None in tests else REPRODUCED


def grade(*parts: bool | None) -> str:
    """The verdict of several parts of a claim: reproduced if all hold, partly if some do. One that is None leaves it open.

    >>> grade(True, True), grade(True, False), grade(False, False), grade(True, None)
    ('reproduced', 'partly', 'not reproduced', 'not measurable')
    """
    if None in parts:
        return NOT_MEASURABLE
    return REPRODUCED if all(parts) else PARTLY if any(parts) else NOT_REPRODUCED


def read_run(record: xarray.Dataset, config: dict[str, Any]) -> Run:
    """The record of a run with what its claims need.

    Args:
      record: series over (member, step); NaN after a member diverged, see :func:`catapult_jax.report.members.until_diverged`.
      config: fields of the run's config.
    """
    settings = settings_of(config)
    return Run(record, config, settings, functools.cache(lambda factor: run_events(record, settings, factor=factor)))


def of_run(name: str, run: Run) -> Verdict:
    """The verdict of a run on a claim.

    A claim that needs the critical lr of every step is not measurable if that is unknown at a step of a running member.
    """
    record, settings = run.record, run.settings
    verdict = Verdict(name, *OF_RUN[name](run))
    dead = dead_members(record, settings)
    if dead:
        verdict = _with_details(verdict, f"{dead_text(dead)} of {record.sizes['member']} members")
    if "measure.lambda_max_batch_every" not in CLAIMS[name].every_step:
        return verdict
    steps = np.array([running(record, settings, m) for m in range(record.sizes["member"])])
    unknown = int((np.isnan(record["critical_lr_batch"].values) & steps).sum())
    if not unknown:
        return verdict
    verdict = _with_details(verdict, verdict.effect)
    return verdict._replace(
        verdict=NOT_MEASURABLE, effect=f"the critical lr is not known at {unknown} of {int(steps.sum())} steps"
    )


def _with_details(verdict: Verdict, words: str) -> Verdict:
    return verdict._replace(details=f"{verdict.details}; {words}" if verdict.details else words)


def of_sweep(name: str, rows: list[dict], config: dict[str, Any]) -> Verdict:
    """The verdict of the rows of a sweep on a claim. A claim is not tested if a row lacks a column that it needs."""
    check = OF_SWEEP[name]
    missing = [column for column in CLAIMS[name].columns if not all(column in row for row in rows)]
    if missing:
        summary = " ".join(check.__doc__.split()).rstrip(".")
        return Verdict(name, summary, NOT_TESTED, f"not measured in every run: {', '.join(missing)}")
    verdict, dead = Verdict(name, *check(rows, config)), sum(row.get("dead_from", -1) >= 0 for row in rows)
    return _with_details(verdict, f"dead: {dead} of {len(rows)} members") if dead else verdict
