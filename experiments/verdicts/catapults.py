"""Spikes of the loss: where they come from, and when they are catapults."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from catapult_jax.detection import momentum_horizon
from catapult_jax.spikes import FACTORS
from experiments import optimizers
from experiments.analysis import active, by_setting, critical_fraction, lambda_series, run_events, running
from experiments.statistics import BEYOND, beyond_zero, spread_text, text_of
from experiments.verdicts.registry import MIN_SPIKES, NOT_REPRODUCED, NOT_TESTED, REPRODUCED, RUN, Finding, claim, decide


@claim(of=RUN, every_step=("measure.lambda_max_batch_every",))
def first_catapult(record, config) -> Finding:
    """Fig. 3: above the critical lr at initialisation a catapult comes at once, in the top eigenspace, and lowers lambda_max."""
    k = config["measure"]["top_k"]
    statement = (
        "Every member that starts above the critical lr has a catapult (spike factor 1.2) whose onset is at step 5 or before, "
        f"that closes, with at least 95 % of its rise in the top-{k} eigenspace and a smaller lambda_max after it than before"
    )
    chosen = [m for m in range(record.sizes["member"]) if record["lr0_over_critical"].values[m] > 1]
    events = run_events(record, config, factor=1.2)
    firsts = {m: next((e for e in events[m] if e.kind == "catapult"), None) for m in chosen}
    found = [e for e in firsts.values() if e is not None]
    if not chosen:
        return Finding(statement, NOT_TESTED, "no member starts above the critical lr")
    onset, share = [e.onset for e in found], [e.fraction_top for e in found]
    # The kernel of a spike that has not closed by the end of the run is the last one measured.
    name = lambda_series(record, config)
    ending = lambda m: float(record[name].values[m, -1]) if name else np.nan
    after = {m: e.lambda_max_after if e.end >= 0 else ending(m) for m, e in firsts.items() if e}
    ratio = [after[m] / e.lambda_max_before for m, e in firsts.items() if e]
    holds = (
        len(found) == len(chosen)
        and max(onset) <= 5
        and min(share) >= 0.95
        and max(ratio) < 1
        and min(e.end for e in found) >= 0
    )
    effect = (
        f"{len(found)} of {len(chosen)} members have one; onset at step {spread_text(onset)}; fraction of the rise {spread_text(share)}; "
        f"peak over level {spread_text([e.peak_ratio for e in found])}; lambda_max after / before {spread_text(ratio)}"
    )
    if np.isnan([*share, *ratio]).any():
        return Finding(statement, NOT_TESTED, "a fraction or a lambda_max that is not known; " + effect)
    return Finding(statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


@claim(of=RUN, every_step=("measure.lambda_max_batch_every",))
def spikes_are_catapults(record, config) -> Finding:
    """Spikes need an exceedance of the *current* critical lr, whatever the lr was relative to the initial one."""
    statement = (
        f"No spike (factor {config['events']['factor']}) starts before the first step with lr above the current critical lr, "
        "and every spike is a catapult: it has such a step from its onset to its peak"
    )
    events = run_events(record, config)
    above = record["lr"].values > record["critical_lr_batch"].values
    early, explained, total, per_rate = 0, 0, 0, []
    for m, found in enumerate(events):
        first = int(np.argmax(above[m])) if above[m].any() else np.inf
        early += sum(e.onset < first for e in found)
        explained += sum(e.kind == "catapult" for e in found)
        total += len(found)
    for label, members in by_setting(record, config):
        firsts = [events[m][0].onset for m in members if events[m]]
        crossings = [int(np.argmax(above[m])) for m in members if above[m].any()]
        per_rate.append(
            f"{label}: {sum(len(events[m]) for m in members)} spikes, "
            f"first onset {spread_text(firsts)}, first exceedance {spread_text(crossings)}"
        )
    if not total:
        return Finding(statement, NOT_TESTED, "no spike; " + "; ".join(per_rate))
    kinds = [e.kind for found in events for e in found]
    at_onset = sum(e.kind == "catapult" and e.lr > e.critical_lr for found in events for e in found)
    later = [e.lr / e.critical_lr for found in events for e in found if not e.lr > e.critical_lr]
    effect = (
        f"{explained} of {total} spikes are catapults, {at_onset} of them with an exceedance at the onset; lr / critical lr at "
        f"the onset of the others {spread_text(later)}; {kinds.count('divergence')} divergences, {kinds.count('death')} deaths; {early} start before the first exceedance; "
    )
    holds = early == 0 and explained == total
    return Finding(statement, REPRODUCED if holds else NOT_REPRODUCED, effect + "; ".join(per_rate))


@claim(of=RUN, every_step=("measure.lambda_max_batch_every",))
def catapult_follows_raise(record, config) -> Finding:
    """Fig. 4: each raise of the lr above the current critical lr brings a catapult."""
    statement = "Each of the raises above the current critical lr is followed within 10 steps by the onset of a catapult (spike factor 1.2)"
    stage = record["stage"].values
    wanted = int(record["raises"].values.sum())
    events = run_events(record, config, factor=1.2)
    raises = [(m, int(t)) for m in range(len(stage)) for t in np.flatnonzero(np.diff(stage[m])) + 1]
    above = [(m, t) for m, t in raises if record["lr"].values[m, t] > record["critical_lr_batch"].values[m, t]]
    delays = []
    for m, t in above:
        after = [e.onset - t for e in events[m] if e.kind == "catapult" and t <= e.onset <= t + 10]
        delays += after[:1]
    effect = (
        f"{len(raises)} of {wanted} raises were made, {len(above)} above the current critical lr; "
        f"{len(delays)} followed by a catapult; delay in steps {spread_text(delays)}"
    )
    if not above:
        return Finding(statement, NOT_TESTED, effect)
    if len(above) == len(delays) < wanted:
        return Finding(statement, NOT_TESTED, "too short for all raises; " + effect)
    holds = len(delays) == wanted
    return Finding(statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


@claim(of=RUN, every_step=("measure.lambda_max_batch_every", "measure.loss_train_every"))
def cycles_cause_catapults(record, config) -> Finding:
    """A cyclic lr makes a spike in the cycles whose lr exceeds the current critical lr, and in no others."""
    statement = (
        "At least 90 % of the cycles of the lr in which it exceeds the current critical lr hold the onset of a spike, and at "
        "most 10 % of the others"
    )
    period = config["schedule"]["period"]
    events = run_events(record, config)
    above = record["lr"].values > record["critical_lr_batch"].values
    is_active = active(record, config)
    with_spike: dict[bool, list[bool]] = {True: [], False: []}
    per_rate = []
    for label, members in by_setting(record, config):
        per_rate.append(f"{label}: {sum(len(events[m]) for m in members)} spikes in {len(members)} members")
        for m in members:
            for start in range(0, record.sizes["step"] - period + 1, period):
                cycle = slice(start, start + period)
                if is_active[m, cycle].all():
                    spike = any(start <= e.onset < start + period for e in events[m])
                    with_spike[bool(above[m, cycle].any())].append(spike)
    share = {kind: float(np.mean(found)) if found else float("nan") for kind, found in with_spike.items()}
    kinds = [e.kind for found in events for e in found]
    effect = (
        f"spikes in {sum(with_spike[True])} of {len(with_spike[True])} cycles with an exceedance and in {sum(with_spike[False])} of "
        f"{len(with_spike[False])} without; {kinds.count('catapult')} of {len(kinds)} spikes are catapults; "
        + "; ".join(per_rate)
    )
    if min(map(len, with_spike.values())) < MIN_SPIKES:
        return Finding(statement, NOT_TESTED, f"fewer than {MIN_SPIKES} cycles of one kind; " + effect)
    holds = share[True] >= 0.9 and share[False] <= 0.1
    return Finding(statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


class _OnTheWay(NamedTuple):
    """Spikes of one factor, member by member, and the exceedances on their way up."""

    hits: list[list[bool]]  # catapults: one from onset to peak, or within the momentum's memory before
    base: list[list[float]]  # fraction of all windows of that length in the steps of that member that hold one
    shares: list[float]  # of the rise in the top space


def _on_the_way(record, config, factor: float) -> _OnTheWay:
    """The spikes of one factor. Windows are over the steps at which a member is running."""
    found, memory = _OnTheWay([], [], []), momentum_horizon(optimizers.momentum(config["optimizer"]))
    for m, events in enumerate(run_events(record, config, factor=factor)):
        above = (record["lr"].values[m] > record["critical_lr_batch"].values[m])[: running(record, config, m).sum()]
        hits, base = [], []
        for e in events:
            if e.kind not in ("divergence", "death") and len(above):
                length = min(memory + e.peak - e.onset + 1, len(above))
                hits.append(e.kind == "catapult")
                base.append(float(np.lib.stride_tricks.sliding_window_view(above, length).any(1).mean()))
                found.shares.append(e.fraction_top)
        found.hits.append(hits)
        found.base.append(base)
    return found


@claim(of=RUN, every_step=("measure.lambda_max_batch_every", "measure.loss_train_every", "measure.lambda_max_train_every"))
def sgd_spikes_are_catapults(record, config) -> Finding:
    """Spikes of the full training loss of SGD: an exceedance on the way up, and the rise in the top eigenspace."""
    k, factor = config["measure"]["top_k"], config["events"]["factor"]
    part = "of the rise" if config["loss"] == "mse" else "of the rise of the Newton decrement"
    statement = (
        f"At least 95 % of the spikes of the full training loss (factor {factor}, divergences and deaths apart) have, from onset to peak, a step "
        "with lr above the critical lr of its batch, more often than windows of the same length anywhere in the same runs (the base "
        f"rate; {BEYOND}), and on average at least 90 % {part} lies in the top-{k} eigenspace of the kernel of the training set"
    )
    critical = np.array([critical_fraction(record, config, m) for m in range(record.sizes["member"])])
    critical = critical[~np.isnan(critical)]
    found = _on_the_way(record, config, factor)
    flat = lambda lists: np.array([value for values in lists for value in values], float)
    hits, base = flat(found.hits), flat(found.base)
    if not len(hits):
        return Finding(statement, NOT_TESTED, f"no spike; {text_of(critical)} of the steps critical")
    gain = [np.mean(h) - np.mean(b) for h, b in zip(found.hits, found.base, strict=True) if h]
    shares = np.array(found.shares)[np.isfinite(found.shares)]
    at_onset = sum(e.lr > e.critical_lr for events in run_events(record, config, factor=factor) for e in events)
    by_factor = []
    for other in FACTORS:
        at = _on_the_way(record, config, other)
        if any(at.hits):
            count, rates = sum(map(len, at.hits)), (flat(at.hits).mean(), flat(at.base).mean())
            by_factor.append(f"factor {other}: {rates[0]:.0%} of {count} (base rate {rates[1]:.0%})")
    effect = (
        f"{hits.mean():.0%} of {len(hits)} spikes have one on the way (base rate {base.mean():.0%}, difference over seeds {text_of(gain)}), "
        f"fraction of the rise in the top space {text_of(shares)}; {at_onset} have one at the very onset; {', '.join(by_factor)}; "
        f"{text_of(critical)} of all steps are critical"
    )
    if len(hits) < MIN_SPIKES or not len(shares):
        return Finding(statement, NOT_TESTED, f"fewer than {MIN_SPIKES} spikes, or no split of the training loss; " + effect)
    return Finding(statement, decide(bool(hits.mean() >= 0.95), bool(shares.mean() >= 0.9), beyond_zero(gain, 1)), effect)
