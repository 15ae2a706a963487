"""Spikes of the training loss of SGD: where they lie, what they leave, and whether an exceedance comes before them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from catapult_jax.detection import momentum_horizon
from catapult_jax.events import Event
from catapult_jax.report.analysis import critical_fraction
from catapult_jax.report.members import running
from catapult_jax.report.statistics import BEYOND, MIN_SEEDS, beyond_zero, text_of
from catapult_jax.spikes import FACTORS
from experiments.verdicts.registry import (
    MIN_SPIKES,
    NOT_MEASURABLE,
    PARTLY,
    REPRODUCED,
    RUN,
    ZHU,
    Finding,
    Run,
    claim,
    decide,
)

_NEEDS = ("measure.lambda_max_batch_every", "measure.loss_train_every")
_MATCH = 0.1  # a control window starts at a lambda_max within this fraction of that of the spike


def _spikes(run: Run, factor: float) -> list[list[Event]]:
    """The spikes of each member, without divergences and deaths."""
    return [[e for e in events if e.kind not in ("divergence", "death")] for events in run.events(factor)]


def _too_few(statement: str, count: int, details: str = "") -> Finding:
    return Finding(statement, NOT_MEASURABLE, f"fewer than {MIN_SPIKES} spikes: {count}", details=details)


def _by_seed(run: Run, of_member: list[list[float]]) -> dict[int, float]:
    """The mean over the values of all members of each seed that has some."""
    seeds = run.record["seed"].values
    pooled = {
        int(seed): [v for m in np.flatnonzero(seeds == seed) for v in of_member[m] if np.isfinite(v)]
        for seed in np.unique(seeds)
    }
    return {seed: float(np.mean(values)) for seed, values in pooled.items() if values}


def _of_seeds(run: Run, values: list[float]) -> str:
    """The number of seeds that have a value, where not all have one."""
    seeds = len(np.unique(run.record["seed"].values))
    return f"; only {len(values)} of {seeds} seeds have such spikes" if len(values) < seeds else ""


def _mean_text(of_seed: dict[int, float]) -> str:
    return text_of([*of_seed.values()])


@claim(
    of=RUN,
    every_step=(*_NEEDS, "measure.lambda_max_train_every"),
    title="Spikes of SGD lie in the top eigenspace",
    published="The spikes of the training loss of SGD lie in the space of the top eigenvectors of the tangent kernel",
    source=f"{ZHU}, abstract",
)
def spikes_lie_in_the_top_space(run: Run) -> Finding:
    """The fraction of the rise of a spike inside the top eigenspace."""
    statement = f"On average over seeds at least 90 % of the {_rise(run)} lies in the {_top_space(run)}"
    inside = _fractions_inside(run)
    fractions = np.array([value for values in inside for value in values if np.isfinite(value)])
    if len(fractions) < MIN_SPIKES:
        return _too_few(statement, len(fractions))
    of_seed = [*_by_seed(run, inside).values()]
    verdict = decide(bool(np.mean(of_seed) >= 0.9) if len(of_seed) >= MIN_SEEDS else None)
    details = f"{len(fractions)} spikes{_of_seeds(run, of_seed)}"
    return Finding(statement, verdict, f"{text_of(of_seed)} of the rise", details=details)


@claim(
    of=RUN,
    every_step=(*_NEEDS, "measure.lambda_max_train_every"),
    title="Spikes of SGD lie in the top eigenspace more than other rises do",
)
def spikes_lie_there_more_than_other_rises(run: Run) -> Finding:
    """The control: the fraction of the rise of a spike inside the top eigenspace, against that of all other rises."""
    statement = f"The mean fraction of the {_rise(run)} that lies in the {_top_space(run)} is above that of all rises outside of spikes ({BEYOND}, over seeds)"
    inside = _fractions_inside(run)
    number = sum(np.isfinite(value) for values in inside for value in values)
    if number < MIN_SPIKES:
        return _too_few(statement, number)
    of_spikes, of_others = _by_seed(run, inside), _by_seed(run, _ordinary_rises(run, _spikes(run, run.settings.factor)))
    more = [of_spikes[seed] - of_others[seed] for seed in of_spikes if seed in of_others]
    effect = f"{_mean_text(of_spikes)} of the rise; other rises {_mean_text(of_others)}"
    details = f"{number} spikes; difference over seeds {text_of(more)}{_of_seeds(run, more)}"
    return Finding(statement, decide(beyond_zero(more, 1)), effect, details=details)


def _rise(run: Run) -> str:
    part = "rise" if run.config["loss"] == "mse" else "rise of the Newton decrement"
    return f"{part} of a spike (factor {run.settings.factor}, onset to peak)"


def _top_space(run: Run) -> str:
    return f"top-{run.settings.top_k} eigenspace of the kernel of the training set"


def _fractions_inside(run: Run) -> list[list[float]]:
    return [[e.fraction_top for e in events] for events in _spikes(run, run.settings.factor)]


def _ordinary_rises(run: Run, spikes: list[list[Event]]) -> list[list[float]]:
    """For each member the fraction of all rises outside of spikes that is in the top space: their sums, so that no tiny rise counts much."""
    record = run.record
    fractions = []
    for m, events in enumerate(spikes):
        steps = int(running(record, run.settings, m).sum())
        top, loss = (record[name].values[m, :steps].astype(float) for name in ("loss_train_top", "loss_train"))
        rest = record["loss_train_rest"].values[m, :steps].astype(float)
        change, of_top = np.diff(top + rest), np.diff(top)
        is_rise = (np.diff(loss) > 0) & np.isfinite(change)
        for e in events:
            is_rise[e.onset : e.end if e.end >= 0 else steps] = False
        total = change[is_rise].sum()
        fractions.append([float(of_top[is_rise].sum() / total)] if is_rise.any() and total > 0 else [])
    return fractions


@claim(
    of=RUN,
    every_step=(*_NEEDS, "measure.lambda_max_train_every"),
    title="Spikes of SGD lower the norm of the kernel",
    published="The spectral norm of the tangent kernel falls over the spikes of SGD, as it does over a catapult of gradient descent",
    source=f"{ZHU}, section on SGD",
)
def spikes_lower_lambda_max(run: Run) -> Finding:
    """Lambda_max of the training kernel over a spike, against control windows of equal length that start at the same lambda_max."""
    statement = (
        f"From onset to close of a spike (factor {run.settings.factor}), log lambda_max of the kernel of the training set falls by more than over windows "
        f"of the same length in the same run, outside of spikes, that start at a lambda_max within {_MATCH:.0%} ({BEYOND}, over seeds)"
    )
    record, falls, change, closed = run.record, [], [], 0
    for m, events in enumerate(_spikes(run, run.settings.factor)):
        steps = int(running(record, run.settings, m).sum())
        log_lambda = np.log(record["lambda_max_train"].values[m, :steps].astype(float))
        inside = np.zeros(steps, bool)
        for e in events:
            inside[e.onset : (e.end if e.end >= 0 else steps) + 1] = True
        of_member, raw = [], []
        for e in events:
            if e.end < 0 or e.end >= steps:
                continue
            closed += 1
            length = e.end - e.onset
            starts = np.arange(max(steps - length, 0))
            clear = np.convolve(inside, np.ones(length + 1), "valid")[: len(starts)] == 0
            matched = starts[clear & (np.abs(log_lambda[starts] - log_lambda[e.onset]) <= np.log1p(_MATCH))]
            if len(matched):
                control = np.mean(log_lambda[matched + length] - log_lambda[matched])
                raw.append(log_lambda[e.end] - log_lambda[e.onset])
                of_member.append(raw[-1] - control)
        falls.append(of_member)
        change.append(raw)
    matched_spikes = sum(map(len, falls))
    details = (
        f"{closed} spikes close, {matched_spikes} of them have a control window; change over the spike alone {_mean_text(_by_seed(run, change))}"
        f"{_of_seeds(run, [*_by_seed(run, falls).values()])}"
    )
    if matched_spikes < MIN_SPIKES:
        return _too_few(statement, matched_spikes, details)
    of_seed = [*_by_seed(run, falls).values()]
    return Finding(
        statement, decide(beyond_zero(of_seed, -1)), f"log lambda_max, minus controls: {text_of(of_seed)}", details=details
    )


class _Exceedances(NamedTuple):
    """Exceedances on the way up of the spikes of one factor, member by member."""

    hits: list[
        list[float]
    ]  # for each spike 1 if there is one from onset to peak, or within the memory of the momentum before, else 0
    gain: list[
        list[float]
    ]  # the same minus the fraction of the windows of that length in the steps of that member that have one


def _exceedances_of_spikes(run: Run, factor: float) -> _Exceedances:
    """The spikes of one factor. Windows are over the steps at which a member is running."""
    record, memory = run.record, momentum_horizon(run.settings.momentum)
    exceedances = _Exceedances([], [])
    for m, events in enumerate(_spikes(run, factor)):
        steps = running(record, run.settings, m).sum()
        above = (record["lr"].values[m] > record["critical_lr_batch"].values[m])[:steps]
        hits, gain = [], []
        for e in events if len(above) else []:
            length = min(memory + e.peak - e.onset + 1, len(above))
            base = float(np.lib.stride_tricks.sliding_window_view(above, length).any(1).mean())
            hits.append(float(e.kind == "catapult"))
            gain.append(hits[-1] - base)
        exceedances.hits.append(hits)
        exceedances.gain.append(gain)
    return exceedances


def _exceedances_before_spikes(run: Run) -> Finding:
    """Whether the spikes of the training loss have an exceedance on the way, by their size and against chance."""
    factor = run.settings.factor
    statement = (
        f"At least 95 % of the spikes of the training loss (factor {factor}, divergences and deaths apart) have, from onset to peak, a step with lr above "
        "the critical lr of its batch, and they have one more often than windows of the same length anywhere in the same runs "
        f"({BEYOND}). Partly: the latter alone"
    )
    by_factor = {other: _exceedances_of_spikes(run, other) for other in sorted({*FACTORS, factor})}
    table = [("factor of the spike", "spikes", "with an exceedance on the way", "by chance")]
    for other, exceedances in by_factor.items():
        hits, gain = (np.array([v for values in part for v in values]) for part in exceedances)
        if len(hits):
            table.append((f"{other:g}", str(len(hits)), f"{hits.mean():.0%}", f"{(hits - gain).mean():.0%}"))
    exceedances = by_factor[factor]
    hits = np.array([v for values in exceedances.hits for v in values])
    critical = [critical_fraction(run.record, run.settings, m) for m in range(run.record.sizes["member"])]
    details = f"{text_of([c for c in critical if not np.isnan(c)])} of all steps are critical"
    if len(hits) < MIN_SPIKES:
        return _too_few(statement, len(hits), details)._replace(table=tuple(table))
    gain = [*_by_seed(run, exceedances.gain).values()]
    details += _of_seeds(run, gain)
    above_chance = beyond_zero(gain, 1)
    effect = f"{hits.mean():.0%} of {len(hits)} spikes; above chance by {text_of(gain)}"
    if above_chance is None:
        return Finding(statement, decide(None), effect, tuple(table), details)
    verdict = REPRODUCED if above_chance and hits.mean() >= 0.95 else PARTLY if above_chance else decide(False)
    return Finding(statement, verdict, effect, tuple(table), details)


@claim(
    of=RUN,
    every_step=_NEEDS,
    title="Spikes of SGD come when the lr exceeds the critical lr of a batch",
    published="The spikes of the training loss of SGD are catapults: on the way the lr exceeds the critical lr of a batch",
    source=f"{ZHU}, abstract",
)
def spikes_have_exceedances(run: Run) -> Finding:
    """An exceedance on the way up of the spikes of the training loss, by their size and against chance."""
    return _exceedances_before_spikes(run)


@claim(
    of=RUN,
    every_step=_NEEDS,
    title="With batch size one, spikes of the training loss come with lr > critical lr",
    published="With batch size one the training loss spikes where the lr exceeds the critical lr of the example",
    source=f"{ZHU}, Fig. 5",
)
def spikes_have_exceedances_at_batch_one(run: Run) -> Finding:
    """The second part of Fig. 5: spikes of the whole training loss and exceedances on single examples."""
    return _exceedances_before_spikes(run)
