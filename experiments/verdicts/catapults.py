"""Catapults of gradient descent: above the critical learning rate, after each raise of the learning rate, and in cycles."""

from __future__ import annotations

import numpy as np
import scipy

from catapult_jax.report.chance import exceedance_by_chance
from catapult_jax.report.members import active, by_setting, lambda_series
from catapult_jax.report.statistics import BEYOND, beyond_zero, rank_correlation, spread_text, text_of
from experiments.verdicts.registry import (
    MIN_SPIKES,
    NOT_MEASURABLE,
    NOT_REPRODUCED,
    NOT_TESTED,
    REPRODUCED,
    RUN,
    SWEEP,
    ZHU,
    Finding,
    Run,
    claim,
    decide,
    grade,
)
from experiments.verdicts.sweep_rows import rows_by_arm

_LATEST_ONSET = 5  # step at which a catapult has come at once
_LEVEL = 0.001  # of the exact test
_SURE = 0.95  # where so many windows have an exceedance, each spike is a catapult


@claim(
    of=RUN,
    every_step=("measure.lambda_max_batch_every",),
    title="Above the critical lr a catapult comes at once, in the top eigenspace",
    published="At 1.67 (FCN) and 1.78 (CNN) times the critical lr the loss of gradient descent spikes at once and comes back, inside the top-5 eigenspace",
    source=f"{ZHU}, Fig. 3",
)
def first_catapult(run: Run) -> Finding:
    """Fig. 3: above the critical lr at initialisation a catapult comes at once, in the top eigenspace, and lowers lambda_max."""
    record, settings = run.record, run.settings
    statement = (
        f"Every member that starts above the critical lr has a catapult (spike factor 1.2). Its onset is at step {_LATEST_ONSET} or before, it closes, at least "
        f"95 % of its rise is in the top-{settings.top_k} eigenspace, and lambda_max is smaller after it than before. Not measurable in a run of up to "
        f"{_LATEST_ONSET} steps, or where it hangs on a catapult that is still open at the end"
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
    held = [
        e.onset <= _LATEST_ONSET and e.end >= 0 and part >= 0.95 and after < 1
        for e, part, after in zip(catapults.values(), fraction, ratio, strict=True)
    ]
    effect = f"{sum(held)} of {len(chosen)} runs, peak over level {spread_text([e.peak_ratio for e in catapults.values()])}"
    details = f"onset at step {spread_text(onset)}; fraction of the rise {spread_text(fraction)}; lambda_max after / before {spread_text(ratio)}"
    if np.isnan([*fraction, *ratio]).any():
        return Finding(statement, NOT_MEASURABLE, "a fraction or a lambda_max is not known", details=details)
    if record.sizes["step"] <= _LATEST_ONSET:
        return Finding(statement, NOT_MEASURABLE, f"the run has {record.sizes['step']} steps only", details=details)
    is_open = sum(e.end < 0 for e in catapults.values())
    if is_open and sum(held) + is_open == len(chosen):
        return Finding(
            statement, NOT_MEASURABLE, f"{is_open} of {len(chosen)} catapults are still open at the last step", details=details
        )
    return Finding(statement, decide(sum(held) == len(chosen)), effect, details=details)


@claim(of=SWEEP, columns=("model.width", "first_peak_ratio"), title="The wider the network, the higher the first spike")
def peak_grows_with_width(rows: list[dict], config) -> Finding:
    """The height of the first spike of gradient descent against the width of the network."""
    del config
    statement = (
        "At one multiple of the critical lr at initialisation the rank correlation, within a seed, of the width with the peak of the first spike over "
        f"its level is positive ({BEYOND}). A run without a spike has a peak of 1"
    )
    by_width = rows_by_arm(rows, ("model.width",))
    if len(by_width) < 3:
        return Finding(statement, NOT_TESTED, "fewer than three widths")
    rho = [
        rank_correlation([row["model.width"] for row in members], [row["first_peak_ratio"] for row in members])
        for members in rows_by_arm(rows, ("seed",)).values()
    ]
    table = [("width", "peak over level", "critical lr at the start")]
    for (width,), members in by_width.items():
        peaks, critical = ([row[name] for row in members] for name in ("first_peak_ratio", "critical_lr0"))
        table.append((str(width), text_of(peaks), text_of(critical)))
    return Finding(statement, decide(beyond_zero(rho, 1)), f"rank correlation {text_of(rho)}", tuple(table))


@claim(
    of=RUN,
    every_step=("measure.lambda_max_batch_every",),
    title="A spike of gradient descent needs an lr above the critical lr of that moment",
    published="The loss of gradient descent spikes when its lr exceeds the critical lr set by the top eigenvalue of the current kernel",
    source=f"{ZHU}, section on GD",
)
def spikes_are_catapults(run: Run) -> Finding:
    """Spikes need an exceedance of the *current* critical lr, whatever the lr was relative to the initial one."""
    record = run.record
    statement = (
        f"No spike (factor {run.settings.factor}) starts before the first step with lr above the current critical lr, "
        "and every spike is a catapult: it has such a step from its onset to its peak. Partly: one of the two. Not measurable with fewer than "
        f"{MIN_SPIKES} spikes, or where more than {_SURE:.0%} of all windows as long as a spike have such a step"
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
        return Finding(statement, NOT_MEASURABLE, "no spike", details="; ".join(parts))
    early = sum(e.onset < first(m) for m, row in enumerate(events) for e in row)
    count = {kind: sum(e.kind == kind for e in spikes) for kind in ("catapult", "divergence", "death")}
    at_onset = sum(e.kind == "catapult" and e.lr > e.critical_lr for e in spikes)
    later = [e.lr / e.critical_lr for e in spikes if not e.lr > e.critical_lr]
    on_the_way = count["catapult"] - at_onset
    # with that chance a window as long as the spike, anywhere in its run, has such a step
    chance = np.mean([exceedance_by_chance(record, run.settings, m, e) for m, row in enumerate(events) for e in row])
    later_text = f"; {on_the_way} catapults start below the critical lr and exceed it on the way up" if on_the_way else ""
    effect = f"{count['catapult']} of {len(spikes)} spikes are catapults ({chance:.0%} by chance), {early} start before the first exceedance of the run{later_text}"
    details = (
        f"{at_onset} have an exceedance at the onset, lr / critical lr at the onset of the others {spread_text(later)}; "
        f"{count['divergence']} divergences, {count['death']} deaths; "
    ) + "; ".join(parts)
    if len(spikes) < MIN_SPIKES:
        return Finding(statement, NOT_MEASURABLE, f"fewer than {MIN_SPIKES} spikes: {effect}", details=details)
    if chance > _SURE:
        return Finding(statement, NOT_MEASURABLE, f"nearly every window has an exceedance: {effect}", details=details)
    verdict = grade(early == 0, count["catapult"] == len(spikes))
    return Finding(statement, verdict, effect, details=details)


@claim(
    of=RUN,
    every_step=("measure.lambda_max_batch_every",),
    title="Each raise of the lr above critical makes another catapult",
    published="Gradient descent whose lr is raised twice has a catapult after each raise",
    source=f"{ZHU}, Fig. 4",
)
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
    effect = f"{len(delays)} of {planned} raises, delay in steps {spread_text(delays)}"
    details = f"{len(raises)} raises were made, {len(above)} above the current critical lr"
    if not above:
        return Finding(statement, NOT_MEASURABLE, "no raise above the critical lr was made", details=details)
    if len(above) == len(delays) < planned:
        return Finding(statement, NOT_MEASURABLE, "too short for all raises; " + effect, details=details)
    return Finding(statement, REPRODUCED if len(delays) == planned else NOT_REPRODUCED, effect, details=details)


@claim(
    of=RUN,
    every_step=("measure.lambda_max_batch_every", "measure.loss_train_every"),
    title="Cycles whose lr exceeds the critical lr have catapults",
    published="Cyclic lrs make catapults in the cycles in which the lr exceeds the critical lr",
    source=f"{ZHU}, Remark 3",
)
def cycles_cause_catapults(run: Run) -> Finding:
    """A cyclic lr makes a spike in the cycles whose lr exceeds the current critical lr, the more so the larger its overshoot."""
    statement = (
        "Cycles with a step above the critical lr hold the onset of a spike more often than others: one-sided exact test of Fisher over all cycles with "
        f"p <= {_LEVEL}, in every seed ({BEYOND}), and among cycles of equal peak (the same test within peaks). Partly: the first test alone. The dose is "
        f"the log gain of the top mode, summed over the cycle. A spike is one above {run.settings.factor:g} times the level"
    )
    dose, spiked, seeds, peaks = _cycles(run)
    has_exceedance = dose > 0
    count = lambda chosen: f"{int(spiked[chosen].sum())} of {int(chosen.sum())}"
    effect = f"spikes in {count(has_exceedance)} cycles with an exceedance, in {count(~has_exceedance)} without"
    table = _dose_table(dose, spiked)
    if min(has_exceedance.sum(), (~has_exceedance).sum()) < MIN_SPIKES:
        return Finding(statement, NOT_MEASURABLE, f"fewer than {MIN_SPIKES} cycles of one kind", table, effect)
    p, _ = _fisher(spiked, has_exceedance, np.zeros(len(spiked)))
    p_of_peaks, least = _fisher(spiked, has_exceedance, peaks)
    more = [
        spiked[(seeds == seed) & has_exceedance].mean() - spiked[(seeds == seed) & ~has_exceedance].mean()
        for seed in np.unique(seeds)
        if has_exceedance[seeds == seed].any() and not has_exceedance[seeds == seed].all()
    ]
    beyond = beyond_zero(more, 1)
    verdict = grade(p <= _LEVEL, None if beyond is None else beyond and p_of_peaks <= _LEVEL)
    details = f"p = {p:.1e}, among cycles of equal peak {p_of_peaks:.2g}; more often by {text_of(more)} over {len(more)} seeds"
    if least > _LEVEL:
        effect += "; too few cycles of equal peak and other kind to tell the exceedance from the peak"
        details += f"; no outcome could give p below {least:.2g} among cycles of equal peak"
    return Finding(statement, verdict, effect, table, details)


def _fisher(spiked: np.ndarray, chosen: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """One-sided exact test: are the spiked cycles among the chosen ones more often than by chance, within groups? For one group that of Fisher.

    Its p, and the least p that so many spiked and chosen cycles in each group could give.
    """
    total, most, chances = 0, 0, np.ones(1)  # of the sum over groups of hypergeometric numbers
    for group in np.unique(groups):
        inside = groups == group
        size, spikes, draws = int(inside.sum()), int(spiked[inside].sum()), int(chosen[inside].sum())
        total += int((spiked & chosen)[inside].sum())
        most += min(spikes, draws)
        chances = np.convolve(chances, scipy.stats.hypergeom.pmf(np.arange(draws + 1), size, spikes, draws))
    return float(min(chances[total:].sum(), 1.0)), float(min(chances[most:].sum(), 1.0))


def _cycles(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each whole cycle at which a member is active: the summed log gain of the top mode, whether a spike begins in it, its seed and its peak."""
    record, settings, period = run.record, run.settings, run.config["schedule"]["period"]
    ratio = record["lr"].values / record["critical_lr_batch"].values
    gain = np.where(ratio > 1, 2 * np.log(np.maximum(np.abs(1 - 2 * ratio), 1)), 0.0)
    is_active, dose, spiked, seeds, peaks = active(record, settings), [], [], [], []
    peak = record["lr_given"].values if "lr_given" in record.coords else record["lr"].values.max(1)
    for m, events in enumerate(run.events(settings.factor)):
        for start in range(0, record.sizes["step"] - period + 1, period):
            cycle = slice(start, start + period)
            if is_active[m, cycle].all():
                dose.append(gain[m, cycle].sum())
                spiked.append(any(start <= e.onset < start + period for e in events))
                seeds.append(int(record["seed"].values[m]))
                peaks.append(float(peak[m]))
    return np.array(dose), np.array(spiked, bool), np.array(seeds), np.array(peaks)


def _dose_table(dose: np.ndarray, spiked: np.ndarray) -> tuple[tuple[str, ...], ...]:
    """How often a cycle has a spike: without an exceedance, and in thirds of the dose."""
    header = ("summed log gain in the cycle", "cycles", "with a spike")
    rows = [("0, no exceedance", str(int((dose == 0).sum())), _fraction(spiked[dose == 0]))]
    limits = np.quantile(dose[dose > 0], (0, 1 / 3, 2 / 3, 1)) if (dose > 0).any() else []
    for i in range(len(limits) - 1):
        chosen = (dose > 0) & (dose >= limits[i]) & ((dose < limits[i + 1]) | (i == len(limits) - 2))
        rows.append((f"{limits[i]:.2g} to {limits[i + 1]:.2g}", str(int(chosen.sum())), _fraction(spiked[chosen])))
    return (header, *rows)


def _fraction(flags: np.ndarray) -> str:
    return f"{flags.mean():.0%}" if len(flags) else "-"
