"""Spikes of the loss: where they come from, and when they are catapults."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from catapult_jax.detection import momentum_horizon
from catapult_jax.report.analysis import critical_fraction
from catapult_jax.report.members import active, by_setting, lambda_series, running
from catapult_jax.report.statistics import BEYOND, beyond_zero, spread_text, text_of
from catapult_jax.spikes import FACTORS
from experiments.verdicts.registry import MIN_SPIKES, NOT_REPRODUCED, NOT_TESTED, REPRODUCED, RUN, Finding, Run, claim, decide


@claim(of=RUN, title="TITLE", every_step=("measure.lambda_max_batch_every",))
def first_catapult(run: Run) -> Finding:
    """Fig. 3: above the critical lr at initialisation a catapult comes at once, in the top eigenspace, and lowers lambda_max."""
    record, settings = run.record, run.settings
    statement = (
        "Every member that starts above the critical lr has a catapult (spike factor 1.2). Its onset is at step 5 or before, it closes, at least "
        f"95 % of its rise is in the top-{settings.top_k} eigenspace, and lambda_max is smaller after it than before"
    )
    chosen = [m for m in range(record.sizes["member"]) if record["lr0_over_critical"].values[m] > 1]
    if not chosen:
        return Finding(statement, NOT_TESTED, "no member starts above the critical lr")
    events = run.events(1.2)
    firsts = {m: next((e for e in events[m] if e.kind == "catapult"), None) for m in chosen}
    catapults = {m: e for m, e in firsts.items() if e is not None}
    onset, fraction = [e.onset for e in catapults.values()], [e.fraction_top for e in catapults.values()]
    # If a spike has not closed at the end of the run, the last measured lambda_max counts as the one after it.
    name = lambda_series(record, settings)
    at_end = lambda m: float(record[name].values[m, -1]) if name else np.nan
    ratio = [(e.lambda_max_after if e.end >= 0 else at_end(m)) / e.lambda_max_before for m, e in catapults.items()]
    holds = (
        len(catapults) == len(chosen)
        and max(onset) <= 5
        and min(fraction) >= 0.95
        and max(ratio) < 1
        and min(e.end for e in catapults.values()) >= 0
    )
    effect = (
        f"{len(catapults)} of {len(chosen)} members have one; onset at step {spread_text(onset)}; fraction of the rise {spread_text(fraction)}; "
        f"peak over level {spread_text([e.peak_ratio for e in catapults.values()])}; lambda_max after / before {spread_text(ratio)}"
    )
    if np.isnan([*fraction, *ratio]).any():
        return Finding(statement, NOT_TESTED, "a fraction or a lambda_max is not known; " + effect)
    return Finding(statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


@claim(of=RUN, title="TITLE", every_step=("measure.lambda_max_batch_every",))
def spikes_are_catapults(run: Run) -> Finding:
    """Spikes need an exceedance of the *current* critical lr, whatever the lr was relative to the initial one."""
    record = run.record
    statement = (
        f"No spike (factor {run.settings.factor}) starts before the first step with lr above the current critical lr, "
        "and every spike is a catapult: it has such a step from its onset to its peak"
    )
    events = run.events(run.settings.factor)
    above = record["lr"].values > record["critical_lr_batch"].values
    first = lambda m: int(np.argmax(above[m])) if above[m].any() else np.inf
    parts = []
    for label, members in by_setting(record, run.settings):
        onsets = [events[m][0].onset for m in members if events[m]]
        crossings = [first(m) for m in members if above[m].any()]
        parts.append(
            f"{label}: {sum(len(events[m]) for m in members)} spikes, "
            f"first onset {spread_text(onsets)}, first exceedance {spread_text(crossings)}"
        )
    spikes = [e for row in events for e in row]
    if not spikes:
        return Finding(statement, NOT_TESTED, "no spike; " + "; ".join(parts))
    early = sum(e.onset < first(m) for m, row in enumerate(events) for e in row)
    count = {kind: sum(e.kind == kind for e in spikes) for kind in ("catapult", "divergence", "death")}
    at_onset = sum(e.kind == "catapult" and e.lr > e.critical_lr for e in spikes)
    later = [e.lr / e.critical_lr for e in spikes if not e.lr > e.critical_lr]
    effect = (
        f"{count['catapult']} of {len(spikes)} spikes are catapults, {at_onset} of them with an exceedance at the onset; lr / critical lr at "
        f"the onset of the others {spread_text(later)}; {count['divergence']} divergences, {count['death']} deaths; "
        f"{early} start before the first exceedance; "
    )
    holds = early == 0 and count["catapult"] == len(spikes)
    return Finding(statement, REPRODUCED if holds else NOT_REPRODUCED, effect + "; ".join(parts))


@claim(of=RUN, title="TITLE", every_step=("measure.lambda_max_batch_every",))
def catapult_follows_raise(run: Run) -> Finding:
    """Fig. 4: each raise of the lr above the current critical lr brings a catapult."""
    statement = "Each of the raises above the current critical lr is followed within 10 steps by the onset of a catapult (spike factor 1.2)"
    record, events = run.record, run.events(1.2)
    stage, planned = record["stage"].values, int(record["raises"].values.sum())
    raises = [(m, int(t)) for m in range(len(stage)) for t in np.flatnonzero(np.diff(stage[m])) + 1]
    above = [(m, t) for m, t in raises if record["lr"].values[m, t] > record["critical_lr_batch"].values[m, t]]
    delays = []
    for m, t in above:
        delays += [e.onset - t for e in events[m] if e.kind == "catapult" and t <= e.onset <= t + 10][:1]
    effect = (
        f"{len(raises)} of {planned} raises were made, {len(above)} above the current critical lr; "
        f"{len(delays)} followed by a catapult; delay in steps {spread_text(delays)}"
    )
    if not above:
        return Finding(statement, NOT_TESTED, effect)
    if len(above) == len(delays) < planned:
        return Finding(statement, NOT_TESTED, "too short for all raises; " + effect)
    holds = len(delays) == planned
    return Finding(statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


@claim(of=RUN, title="TITLE", every_step=("measure.lambda_max_batch_every", "measure.loss_train_every"))
def cycles_cause_catapults(run: Run) -> Finding:
    """A cyclic lr makes a spike in the cycles whose lr exceeds the current critical lr, and in no others."""
    statement = (
        "At least 90 % of the cycles of the lr in which it exceeds the current critical lr hold the onset of a spike, and at "
        "most 10 % of the others"
    )
    record, settings, period = run.record, run.settings, run.config["schedule"]["period"]
    events = run.events(settings.factor)
    above = record["lr"].values > record["critical_lr_batch"].values
    is_active = active(record, settings)
    with_spike: dict[bool, list[bool]] = {True: [], False: []}  # by whether the cycle has an exceedance
    parts = []
    for label, members in by_setting(record, settings):
        parts.append(f"{label}: {sum(len(events[m]) for m in members)} spikes in {len(members)} members")
        for m in members:
            for start in range(0, record.sizes["step"] - period + 1, period):
                cycle = slice(start, start + period)
                if is_active[m, cycle].all():
                    spike = any(start <= e.onset < start + period for e in events[m])
                    with_spike[bool(above[m, cycle].any())].append(spike)
    fraction = {kind: float(np.mean(cycles)) if cycles else float("nan") for kind, cycles in with_spike.items()}
    kinds = [e.kind for row in events for e in row]
    effect = (
        f"spikes in {sum(with_spike[True])} of {len(with_spike[True])} cycles with an exceedance and in {sum(with_spike[False])} of "
        f"{len(with_spike[False])} without; {kinds.count('catapult')} of {len(kinds)} spikes are catapults; " + "; ".join(parts)
    )
    if min(map(len, with_spike.values())) < MIN_SPIKES:
        return Finding(statement, NOT_TESTED, f"fewer than {MIN_SPIKES} cycles of one kind; " + effect)
    holds = fraction[True] >= 0.9 and fraction[False] <= 0.1
    return Finding(statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


class _Exceedances(NamedTuple):
    """Exceedances on the way up of the spikes of one factor, member by member."""

    hits: list[list[bool]]  # for each spike: there is one from onset to peak, or within the memory of the momentum before
    base: list[list[float]]  # for each spike: fraction of the windows of that length in the steps of that member that have one
    fractions: list[float]  # of the rise in the top eigenspace, for each spike of all members


def _exceedances_of_spikes(run: Run, factor: float) -> _Exceedances:
    """The spikes of one factor. Windows are over the steps at which a member is running."""
    record, memory = run.record, momentum_horizon(run.settings.momentum)
    exceedances = _Exceedances([], [], [])
    for m, events in enumerate(run.events(factor)):
        steps = running(record, run.settings, m).sum()
        above = (record["lr"].values[m] > record["critical_lr_batch"].values[m])[:steps]
        hits, base = [], []
        for e in events:
            if e.kind not in ("divergence", "death") and len(above):
                length = min(memory + e.peak - e.onset + 1, len(above))
                hits.append(e.kind == "catapult")
                base.append(float(np.lib.stride_tricks.sliding_window_view(above, length).any(1).mean()))
                exceedances.fractions.append(e.fraction_top)
        exceedances.hits.append(hits)
        exceedances.base.append(base)
    return exceedances


@claim(of=RUN, title="TITLE", every_step=("measure.lambda_max_batch_every", "measure.loss_train_every", "measure.lambda_max_train_every"))
def sgd_spikes_are_catapults(run: Run) -> Finding:
    """Spikes of the full training loss of SGD: an exceedance on the way up, and the rise in the top eigenspace."""
    record, settings, factor = run.record, run.settings, run.settings.factor
    part = "of the rise" if run.config["loss"] == "mse" else "of the rise of the Newton decrement"
    statement = (
        f"At least 95 % of the spikes of the full training loss (factor {factor}, divergences and deaths apart) have, from onset to peak, a step "
        "with lr above the critical lr of its batch. They have one more often than windows of the same length anywhere in the same runs (the base "
        f"rate; {BEYOND}). On average at least 90 % {part} lies in the top-{settings.top_k} eigenspace of the kernel of the training set"
    )
    critical = np.array([critical_fraction(record, settings, m) for m in range(record.sizes["member"])])
    critical = critical[~np.isnan(critical)]
    exceedances = _exceedances_of_spikes(run, factor)
    flat = lambda lists: np.array([value for values in lists for value in values], float)
    hits, base = flat(exceedances.hits), flat(exceedances.base)
    if not len(hits):
        return Finding(statement, NOT_TESTED, f"no spike; {text_of(critical)} of the steps critical")
    gain = [np.mean(h) - np.mean(b) for h, b in zip(exceedances.hits, exceedances.base, strict=True) if h]
    fractions = np.array(exceedances.fractions)[np.isfinite(exceedances.fractions)]
    at_onset = sum(e.lr > e.critical_lr for events in run.events(factor) for e in events)
    by_factor = []
    for other in FACTORS:
        others = _exceedances_of_spikes(run, other)
        if any(others.hits):
            other_hits, other_base = flat(others.hits), flat(others.base)
            by_factor.append(
                f"factor {other}: {other_hits.mean():.0%} of {len(other_hits)} (base rate {other_base.mean():.0%})"
            )
    effect = (
        f"{hits.mean():.0%} of {len(hits)} spikes have one on the way (base rate {base.mean():.0%}, difference over seeds {text_of(gain)}), "
        f"fraction of the rise in the top space {text_of(fractions)}; {at_onset} have one at the very onset; {', '.join(by_factor)}; "
        f"{text_of(critical)} of all steps are critical"
    )
    if len(hits) < MIN_SPIKES or not len(fractions):
        return Finding(statement, NOT_TESTED, f"fewer than {MIN_SPIKES} spikes, or no split of the training loss; " + effect)
    return Finding(statement, decide(bool(hits.mean() >= 0.95), bool(fractions.mean() >= 0.9), beyond_zero(gain, 1)), effect)
