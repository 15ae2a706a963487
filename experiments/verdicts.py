"""Claims of the source studies, checked on the record of a run or a sweep: a statement, the effect with its spread, a verdict."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from catapult_jax.events import FACTORS, Event, Prediction, find_events, momentum_horizon, prediction, scores

REPRODUCED, NOT_REPRODUCED, NOT_TESTED = "reproduced", "not reproduced", "not tested"


class Verdict(NamedTuple):
    claim: str
    statement: str  # what must hold, with its thresholds
    verdict: str
    effect: str  # sizes, over members


def run_events(record, config: dict[str, Any], *, factor: float | None = None) -> list[list[Event]]:
    """Events of each member, on the training loss where it is recorded at every step, otherwise on the batch loss.

    Where batches are drawn and the training loss was not recorded there are none: the noise of batches is no spike.
    """
    settings = config["events"]
    if is_stochastic(config) and "loss_train" not in record:
        return [[] for _ in range(record.sizes["member"])]
    loss = record[spike_series(record)]
    pick = lambda name, m: record[name].values[m] if name in record else None
    missing = np.full(record.sizes["step"], np.nan)
    events = []
    for m in range(record.sizes["member"]):
        critical = pick("critical_lr_batch", m)
        events.append(
            find_events(
                loss.values[m],
                record["lr"].values[m],
                missing if critical is None else critical,
                lambda_max=pick("lambda_max_batch", m),
                loss_top=pick("loss_train_top" if is_stochastic(config) else "loss_top", m),
                factor=settings["factor"] if factor is None else factor,
                delta=min(settings["delta"], ((settings["factor"] if factor is None else factor) - 1) / 2),
                horizon=settings["horizon"],
                momentum_horizon=momentum_horizon(config["optimizer"]["momentum"]),
            )
        )
    return events


def by_rate(record, config: dict[str, Any]) -> list[tuple[str, np.ndarray]]:
    """Members of each setting that was asked for, all seeds of it: (label, member numbers)."""
    absolute = config["optimizer"]["lr"] or config["members"]["lr"]
    labels = {
        "rate": "lr {:.4g}" if absolute else "{:.3g} x critical lr at start",
        "raises": "{} raises",
        "cap": "cap {:.3g}",
    }
    axes = [name for name in labels if name in record.coords and len(np.unique(record[name])) > 1] or ["rate"]
    settings = list(zip(*(record[name].values for name in axes), strict=True))
    label = lambda setting: ", ".join(labels[name].format(value) for name, value in zip(axes, setting, strict=True))
    # In the order of the members, which is that of the config.
    return [(label(s), np.array([m for m, other in enumerate(settings) if other == s])) for s in dict.fromkeys(settings)]


def spike_series(record) -> str:
    return "loss_train" if "loss_train" in record else "loss_batch"


def is_stochastic(config: dict[str, Any]) -> bool:
    return config["optimizer"]["batch_size"] not in (0, config["data"]["train_size"])


def _spread(values) -> str:
    values = np.asarray(values, float)
    if len(values) == 0:
        return "none"
    return f"median {np.median(values):.3g} (from {values.min():.3g} to {values.max():.3g}, n = {len(values)})"


def first_catapult(record, config) -> Verdict:
    """Fig. 3: above the critical lr at initialisation a catapult comes at once, in the top eigenspace, and lowers lambda_max."""
    k = config["measure"]["top_k"]
    statement = (
        "Every member that starts above the critical lr has a catapult (spike factor 1.2) whose onset is at step 5 or before, "
        f"that closes, with at least 95 % of its rise in the top-{k} eigenspace and a smaller lambda_max after it than before"
    )
    chosen = [m for m in range(record.sizes["member"]) if record["lr_relative"].values[m] > 1]
    events = run_events(record, config, factor=1.2)
    firsts = {m: next((e for e in events[m] if e.kind == "catapult"), None) for m in chosen}
    found = [e for e in firsts.values() if e is not None]
    if not chosen:
        return Verdict("first_catapult", statement, NOT_TESTED, "no member starts above the critical lr")
    onset, share = [e.onset for e in found], [e.share_top for e in found]
    # The kernel of a spike that has not closed by the end of the run is the last one measured.
    after = {
        m: e.lambda_max_after if e.end >= 0 else float(record["lambda_max_batch"].values[m, -1]) for m, e in firsts.items() if e
    }
    ratio = [after[m] / e.lambda_max_before for m, e in firsts.items() if e]
    holds = (
        len(found) == len(chosen)
        and max(onset) <= 5
        and min(share) >= 0.95
        and max(ratio) < 1
        and min(e.end for e in found) >= 0
    )
    effect = (
        f"{len(found)} of {len(chosen)} members have one; onset at step {_spread(onset)}; share of the rise {_spread(share)}; "
        f"peak over level {_spread([e.peak_ratio for e in found])}; lambda_max after / before {_spread(ratio)}"
    )
    return Verdict("first_catapult", statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


def spikes_are_catapults(record, config) -> Verdict:
    """Spikes need an exceedance of the *current* critical lr, whatever the lr was relative to the initial one."""
    statement = (
        f"No spike (factor {config['events']['factor']}) starts before the first step with lr above the current critical lr, "
        "and every spike has such a step at its onset"
    )
    events = run_events(record, config)
    above = record["lr"].values > record["critical_lr_batch"].values
    early, explained, total, per_rate = 0, 0, 0, []
    for m, found in enumerate(events):
        first = int(np.argmax(above[m])) if above[m].any() else np.inf
        early += sum(e.onset < first for e in found)
        explained += sum(e.lr > e.critical_lr for e in found)
        total += len(found)
    for label, members in by_rate(record, config):
        firsts = [events[m][0].onset for m in members if events[m]]
        crossings = [int(np.argmax(above[m])) for m in members if above[m].any()]
        per_rate.append(
            f"{label}: {sum(len(events[m]) for m in members)} spikes, "
            f"first onset {_spread(firsts)}, first exceedance {_spread(crossings)}"
        )
    if not total:
        return Verdict("spikes_are_catapults", statement, NOT_TESTED, "no spike; " + "; ".join(per_rate))
    lost = sum(e.kind == "divergence" for found in events for e in found)
    on_the_way = sum(above[m, e.onset : e.peak + 1].any() for m, found in enumerate(events) for e in found)
    ratio = record["lr"].values / record["critical_lr_batch"].values
    unexplained = [ratio[m, e.onset] for m, found in enumerate(events) for e in found if e.kind == "unexplained"]
    effect = (
        f"{explained} of {total} spikes have an exceedance at onset, {on_the_way} at a step from onset to peak; lr / critical lr at "
        f"the onset of the others {_spread(unexplained)}; {lost} divergences; {early} start before the first exceedance; "
    )
    holds = early == 0 and explained == total
    return Verdict("spikes_are_catapults", statement, REPRODUCED if holds else NOT_REPRODUCED, effect + "; ".join(per_rate))


def catapult_follows_raise(record, config) -> Verdict:
    """Fig. 4: each raise of the lr above the current critical lr brings a catapult."""
    statement = "Each of the raises above the current critical lr is followed within 10 steps by the onset of a catapult (spike factor 1.2)"
    stage = record["stage"].values
    wanted = config["schedule"]["raises"]
    events = run_events(record, config, factor=1.2)
    raises = [(m, int(t)) for m in range(len(stage)) for t in np.flatnonzero(np.diff(stage[m])) + 1]
    above = [(m, t) for m, t in raises if record["lr"].values[m, t] > record["critical_lr_batch"].values[m, t]]
    delays = []
    for m, t in above:
        after = [e.onset - t for e in events[m] if e.kind == "catapult" and t <= e.onset <= t + 10]
        delays += after[:1]
    effect = (
        f"{len(raises)} of {wanted * len(stage)} raises were made, {len(above)} above the current critical lr; "
        f"{len(delays)} followed by a catapult; delay in steps {_spread(delays)}"
    )
    if not above:
        return Verdict("catapult_follows_raise", statement, NOT_TESTED, effect)
    if len(above) == len(delays) < wanted * len(stage):
        return Verdict("catapult_follows_raise", statement, NOT_TESTED, "too short for all raises; " + effect)
    holds = len(delays) == wanted * len(stage)
    return Verdict("catapult_follows_raise", statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


def rise_predictions(record, config) -> dict[str, list[Prediction]]:
    """Exceedance as a predictor, for each member: of a rise of the loss on that batch in the step, of a rise of the loss on
    all examples, and of a step on the way from the onset to the peak of a spike of that loss."""
    tables: dict[str, list[Prediction]] = {"batch loss": [], "full training loss": [], "spikes of the full training loss": []}
    events = run_events(record, config)
    for m in range(record.sizes["member"]):
        critical = record["critical_lr_batch"].values[m]
        above = record["lr"].values[m] > critical
        before, after = record["loss_batch"].values[m], record["loss_batch_after"].values[m]
        full = record["loss_train"].values[m]
        going = ~record["done"].values[m] if "done" in record else np.ones(len(above), bool)
        known = np.isfinite(critical) & np.isfinite(before) & ~np.isnan(after) & going  # a frozen member predicts nothing
        tables["batch loss"].append(prediction(above[known], (after > before)[known]))
        known = np.isfinite(critical[:-1]) & np.isfinite(full[:-1]) & ~np.isnan(full[1:]) & going[:-1]
        tables["full training loss"].append(prediction(above[:-1][known], (full[1:] > full[:-1])[known]))
        climbing = np.zeros(len(full), bool)
        for event in events[m]:
            climbing[event.onset : event.peak] = True
        tables["spikes of the full training loss"].append(prediction(above[:-1][known], climbing[:-1][known]))
    return tables


def exceedance_predicts_rise(record, config) -> Verdict:
    """Fig. 5: with batch size one, the loss of a batch rises in the steps with lr above the critical lr of that batch."""
    statement = (
        "lr > critical_lr_batch predicts a rise of that batch's loss in the step: for each learning rate, over its seeds, "
        "precision at least 0.9 and recall at least 0.95"
    )
    name = "exceedance_predicts_rise"
    tables, alive = rise_predictions(record, config), record["alive"].values[:, -1]
    parts, holds, told = [], True, True
    for label, members in by_rate(record, config):
        members = [m for m in members if alive[m]]
        batch, full, spikes = ([tables[kind][m] for m in members] for kind in tables)
        batch_sum, full_sum, spikes_sum = _pooled(batch), _pooled(full), _pooled(spikes)
        parts.append(
            f"{label}, {len(members)} members: batch loss precision "
            f"{_pooled_spread(batch, 'precision')}, recall {_pooled_spread(batch, 'recall')}, base rate {batch_sum.base_rate:.3g}; "
            f"full training loss precision {full_sum.precision:.3g}, recall {full_sum.recall:.3g}, base rate {full_sum.base_rate:.3g}; "
            f"its spikes precision {spikes_sum.precision:.3g}, recall {spikes_sum.recall:.3g}, base rate {spikes_sum.base_rate:.3g}"
        )
        holds &= batch_sum.precision >= 0.9 and batch_sum.recall >= 0.95
        told &= not (np.isnan(batch_sum.precision) or np.isnan(batch_sum.recall))
    lost = int((~alive).sum())
    effect = "; ".join(parts) + (f"; {lost} members diverged and are left out" if lost else "")
    if not told:
        return Verdict(name, statement, NOT_TESTED, "a rate without exceedances or without rises; " + effect)
    return Verdict(name, statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


def _pooled(tables: list[Prediction]) -> Prediction:
    """The tables of several members as one."""
    return scores(*(sum(t[i] for t in tables) for i in range(4)))


def _pooled_spread(tables: list[Prediction], score: str) -> str:
    values = [getattr(t, score) for t in tables if not np.isnan(getattr(t, score))]
    return f"{getattr(_pooled(tables), score):.3g}" + (f" (seeds {min(values):.3g} to {max(values):.3g})" if values else "")


def interval(values) -> tuple[float, float, float]:
    """Mean, and its 95 % percentile bootstrap interval over the values (seeds); NaN limits for fewer than two.

    >>> interval([1.0, 1.0, 1.0])
    (1.0, 1.0, 1.0)
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        return (float(values.mean()) if len(values) else float("nan")), float("nan"), float("nan")
    found = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return float(values.mean()), float(found.low), float(found.high)


def text_of(values) -> str:
    mean, low, high = interval(values)
    return f"{mean:.3g}" if np.isnan(low) else f"{mean:.3g} [{low:.3g}, {high:.3g}]"


def last(record, name: str) -> np.ndarray:
    """The last measured value of each member, NaN where there is none or the member was lost."""
    values, alive = record[name].values, record["alive"].values[:, -1]
    found = [
        row[np.isfinite(row)][-1] if ok and np.isfinite(row).any() else np.nan for row, ok in zip(values, alive, strict=True)
    ]
    return np.array(found, float)


def catapult_counts(record, config) -> np.ndarray:
    """Catapults of each member."""
    return np.array([sum(e.kind == "catapult" for e in found) for found in run_events(record, config)])


def finished(record, config) -> np.ndarray:
    """Members that came down to the loss to stop at; without such a loss, those that were not lost."""
    alive = record["alive"].values[:, -1]
    return record["done"].values[:, -1] & alive if "done" in record else alive


def _rank_correlation(x, y) -> float:
    """Spearman's; NaN where one of the two does not vary."""
    if len(x) < 3 or len(np.unique(x)) < 2 or len(np.unique(y)) < 2:
        return float("nan")
    return float(stats.spearmanr(x, y).statistic)


class _OnTheWay(NamedTuple):
    """Spikes of one factor, and the exceedances from their onset to their peak."""

    hits: list[bool]  # one on the way
    base: list[float]  # share of all windows of that length in that run that hold one
    strict: int  # at the very onset
    shares: list[float]  # of the rise in the top space


def _on_the_way(record, config, factor: float) -> _OnTheWay:
    found = _OnTheWay([], [], 0, [])
    above = record["lr"].values > record["critical_lr_batch"].values
    for m, events in enumerate(run_events(record, config, factor=factor)):
        for e in events:
            length = max(e.peak - e.onset, 1)
            found.hits.append(above[m, e.onset : e.onset + length].any())
            found.base.append(np.lib.stride_tricks.sliding_window_view(above[m], length).any(1).mean())
            found.shares.append(e.share_top)
            found = found._replace(strict=found.strict + (e.kind == "catapult"))
    return found


def sgd_spikes_are_catapults(record, config) -> Verdict:
    """Spikes of the full training loss of SGD: an exceedance on the way up, and the rise in the top eigenspace."""
    k, factor = config["measure"]["top_k"], config["events"]["factor"]
    statement = (
        f"At least 95 % of the spikes of the full training loss (factor {factor}) have, from onset to peak, a step with lr above "
        "the critical lr of its batch, more than windows of the same length anywhere in the same runs have (the base rate), and "
        f"on average at least 90 % of the rise lies in the top-{k} eigenspace of the kernel of the training set"
    )
    name = "sgd_spikes_are_catapults"
    above = record["lr"].values > record["critical_lr_batch"].values
    found = _on_the_way(record, config, factor)
    if not found.hits:
        return Verdict(name, statement, NOT_TESTED, f"no spike; {above.mean():.3g} of the steps critical")
    shares = np.array(found.shares)[np.isfinite(found.shares)]
    by_factor = []
    for other in FACTORS:
        at = _on_the_way(record, config, other)
        if at.hits:
            by_factor.append(f"factor {other}: {np.mean(at.hits):.0%} of {len(at.hits)} (base rate {np.mean(at.base):.0%})")
    effect = (
        f"{np.mean(found.hits):.0%} of {len(found.hits)} spikes have one on the way (base rate {np.mean(found.base):.0%}), share of the "
        f"rise in the top space {text_of(shares)}; {found.strict} have one at the very onset; {', '.join(by_factor)}; "
        f"{above.mean():.1%} of all steps are critical"
    )
    holds = (
        np.mean(found.hits) >= 0.95 and np.mean(found.hits) > np.mean(found.base) and len(shares) > 0 and shares.mean() >= 0.9
    )
    return Verdict(name, statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


def cycles_cause_catapults(record, config) -> Verdict:
    """A cyclic lr makes a spike in the cycles whose lr exceeds the current critical lr, and in no others."""
    statement = (
        "At least 90 % of the cycles of the lr in which it exceeds the current critical lr hold the onset of a spike, and at "
        "most 10 % of the others"
    )
    name, period = "cycles_cause_catapults", config["schedule"]["period"]
    events = run_events(record, config)
    above = record["lr"].values > record["critical_lr_batch"].values
    alive = record["alive"].values
    with_spike: dict[bool, list[bool]] = {True: [], False: []}
    per_rate = []
    for label, members in by_rate(record, config):
        per_rate.append(f"{label}: {sum(len(events[m]) for m in members)} spikes in {len(members)} members")
        for m in members:
            for start in range(0, record.sizes["step"] - period + 1, period):
                cycle = slice(start, start + period)
                if alive[m, cycle].all():
                    spike = any(start <= e.onset < start + period for e in events[m])
                    with_spike[bool(above[m, cycle].any())].append(spike)
    share = {kind: float(np.mean(found)) if found else float("nan") for kind, found in with_spike.items()}
    kinds = [e.kind for found in events for e in found]
    effect = (
        f"spikes in {sum(with_spike[True])} of {len(with_spike[True])} cycles with an exceedance and in {sum(with_spike[False])} of "
        f"{len(with_spike[False])} without; {kinds.count('catapult')} of {len(kinds)} spikes have an exceedance at onset; "
        + "; ".join(per_rate)
    )
    if not with_spike[True] or not with_spike[False]:
        return Verdict(name, statement, NOT_TESTED, "all cycles are of one kind; " + effect)
    holds = share[True] >= 0.9 and share[False] <= 0.1
    return Verdict(name, statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


_SAME_LOSS = 0.8  # a member that ends below this multiple of the loss to stop at went past it in its last catapult


def catapults_raise_alignment(record, config) -> Verdict:
    """More catapults, trained to the same loss: higher AGOP alignment, lower test loss."""
    statement = (
        f"Among runs trained to the same loss ({config['run']['stop_loss']:g}), the rank correlation, within a seed, of the number "
        "of catapults with the AGOP alignment is positive and with the test loss negative: 95 % intervals over seeds on that side of 0"
    )
    name = "catapults_raise_alignment"
    counts, ok, seeds = catapult_counts(record, config), finished(record, config), record["seed"].values
    ok &= last(record, "loss_train") >= _SAME_LOSS * config["run"]["stop_loss"]
    series = {key: last(record, key) for key in ("loss_train", "agop_alignment", "loss_test", "error_test") if key in record}
    parts = []
    for label, members in by_rate(record, config):
        members = members[ok[members]]
        if len(members):
            shown = ", ".join(f"{key} {text_of(values[members])}" for key, values in series.items())
            parts.append(f"{label}: {len(members)} members, {text_of(counts[members])} catapults, {shown}")
    correlations = {}
    for key, values in list(series.items())[1:]:
        rho = [_rank_correlation(counts[own], values[own]) for seed in np.unique(seeds) for own in [(seeds == seed) & ok]]
        correlations[key] = [r for r in rho if np.isfinite(r)]
    lost = int((~ok).sum())
    effect = (
        "; ".join(f"rank correlation with {key} {text_of(rho)}" for key, rho in correlations.items())
        + "; "
        + "; ".join(parts)
        + (f"; {lost} members did not end between {_SAME_LOSS} and 1 times that loss and are left out" if lost else "")
    )
    if min(len(rho) for rho in correlations.values()) < 2:
        return Verdict(name, statement, NOT_TESTED, "too few members with different numbers of catapults; " + effect)
    holds = interval(correlations["agop_alignment"])[1] > 0 and interval(correlations["loss_test"])[2] < 0
    return Verdict(name, statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


def forbidding_catapults_hurts(record, config) -> Verdict:
    """The causal test: the same run with catapults forbidden from one step on, compared at equal training loss."""
    statement = (
        f"At equal training loss ({config['run']['stop_loss']:g}), a run that may have catapults has a higher AGOP alignment and a "
        "lower test loss than the same run (seed, batches, first steps) held below the critical lr: 95 % intervals of the paired "
        "difference over seeds on that side of 0"
    )
    name, caps, ok = "forbidding_catapults_hurts", record["cap"].values, finished(record, config)
    counts, events = catapult_counts(record, config), run_events(record, config)
    spikes = np.array([len(found) for found in events])
    ratio, going = record["lr"].values / record["critical_lr_batch"].values, ~record["done"].values
    ratios = np.array([row[own].mean() if own.any() else np.nan for row, own in zip(ratio, going, strict=True)])
    pairs = [
        (free, held)
        for free in np.flatnonzero(np.isinf(caps) & ok)
        for held in np.flatnonzero(np.isfinite(caps) & ok)
        if all(record[axis].values[free] == record[axis].values[held] for axis in ("seed", "rate"))
    ]
    series = {key: last(record, key) for key in ("agop_alignment", "loss_test", "error_test") if key in record}
    differences = {key: [values[free] - values[held] for free, held in pairs] for key, values in series.items()}
    free, held = (list(side) for side in zip(*pairs, strict=True)) if pairs else ([], [])
    effect = (
        f"{len(pairs)} pairs; catapults {text_of(counts[free])} allowed, {text_of(counts[held])} held "
        f"(spikes {text_of(spikes[free])}, {text_of(spikes[held])}); allowed minus held: "
        + ", ".join(f"{key} {text_of(found)}" for key, found in differences.items())
        + "; held: "
        + ", ".join(f"{key} {text_of(values[held])}" for key, values in series.items())
        + "; mean lr / critical lr of the steps "
        + ", ".join(f"{text_of(ratios[side])} {word}" for side, word in ((free, "allowed"), (held, "held")))
        + f"; {int((~ok).sum())} members did not come to that loss"
    )
    if len(pairs) < 3:
        return Verdict(name, statement, NOT_TESTED, "fewer than three pairs; " + effect)
    if counts[free].sum() == 0:
        return Verdict(name, statement, NOT_TESTED, "no catapult where they are allowed; " + effect)
    holds = interval(differences["agop_alignment"])[1] > 0 and interval(differences["loss_test"])[2] < 0
    return Verdict(name, statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


# Verdicts on a whole sweep: rows of its summary, one for each member of each run.


def _tuned(rows: list[dict], axis: str, metric: str) -> dict[Any, float]:
    """For each value of the axis, the learning rate with the smallest mean ``metric`` over seeds; all seeds must have come down."""
    best = {}
    for value in dict.fromkeys(row[axis] for row in rows):
        means = {}
        for rate in dict.fromkeys(row["rate"] for row in rows if row[axis] == value):
            own = [row for row in rows if row[axis] == value and row["rate"] == rate]
            if all(row["finished"] for row in own):
                means[rate] = np.mean([row[metric] for row in own])
        if means:
            best[value] = min(means, key=means.get)
    return best


def small_batches_help(rows: list[dict], config) -> Verdict:
    """Smaller batches: more catapults, higher alignment, lower test loss; at one shared lr, and at lrs tuned on validation."""
    name, axis = "small_batches_help", "optimizer.batch_size"
    statement = (
        f"Trained to the same loss ({config['run']['stop_loss']:g}), the rank correlation, within a seed, of the batch size with the "
        "test loss is positive and with the AGOP alignment negative (95 % intervals over seeds), (a) at the largest lr at which "
        "every seed of every batch size gets there, and (b) at the lr of each batch size that has the smallest mean validation "
        "loss over seeds, the same grid for all"
    )
    sizes = list(dict.fromkeys(row[axis] for row in rows))
    rates = dict.fromkeys(row["rate"] for row in rows)
    shared = [rate for rate in rates if all(row["finished"] for row in rows if row["rate"] == rate)]
    arms = {
        f"(a) shared lr {max(shared, default=float('nan')):.3g}": {size: max(shared) for size in sizes} if shared else {},
        "(b) tuned lr": _tuned(rows, axis, "loss_val"),
    }
    parts, holds, told = [], True, True
    for label, chosen in arms.items():
        own = [row for row in rows if chosen.get(row[axis]) == row["rate"]]
        correlations = {
            key: [
                rho
                for seed in dict.fromkeys(row["seed"] for row in own)
                for mine in [[row for row in own if row["seed"] == seed]]
                for rho in [_rank_correlation([row[axis] for row in mine], [row[key] for row in mine])]
                if np.isfinite(rho)
            ]
            for key in ("loss_test", "agop_alignment")
        }
        if len(chosen) < 3 or min(len(rho) for rho in correlations.values()) < 2:
            told = False
            parts.append(f"{label}: too few batch sizes came to that loss")
            continue
        holds &= interval(correlations["loss_test"])[1] > 0 and interval(correlations["agop_alignment"])[2] < 0
        by_size = []
        for size, rate in chosen.items():
            mine = [row for row in own if row[axis] == size]
            shown = ", ".join(
                f"{key} {text_of([row[key] for row in mine])}"
                for key in ("catapults", "agop_alignment", "loss_test", "error_test")
                if key in mine[0]
            )
            by_size.append(f"batch {size} (lr {rate:.3g}): {shown}")
        parts.append(
            f"{label}: "
            + ", ".join(f"rank correlation of batch size with {key} {text_of(rho)}" for key, rho in correlations.items())
            + "; "
            + "; ".join(by_size)
        )
    verdict = NOT_TESTED if not told else REPRODUCED if holds else NOT_REPRODUCED
    return Verdict(name, statement, verdict, ". ".join(parts))


# Instruments that must run at every step for a claim to be checked.
NEEDS = {
    "first_catapult": ("measure.batch_kernel_every",),
    "spikes_are_catapults": ("measure.batch_kernel_every",),
    "catapult_follows_raise": ("measure.batch_kernel_every",),
    "exceedance_predicts_rise": ("measure.batch_kernel_every", "measure.loss_after_every", "measure.train_loss_every"),
    "sgd_spikes_are_catapults": ("measure.batch_kernel_every", "measure.train_loss_every", "measure.train_kernel_every"),
    "cycles_cause_catapults": ("measure.batch_kernel_every", "measure.train_loss_every"),
    "catapults_raise_alignment": (),
    "forbidding_catapults_hurts": ("measure.batch_kernel_every", "measure.train_loss_every"),
    "small_batches_help": (),
}

OF_RUN = {
    "first_catapult": first_catapult,
    "spikes_are_catapults": spikes_are_catapults,
    "catapult_follows_raise": catapult_follows_raise,
    "exceedance_predicts_rise": exceedance_predicts_rise,
    "sgd_spikes_are_catapults": sgd_spikes_are_catapults,
    "cycles_cause_catapults": cycles_cause_catapults,
    "catapults_raise_alignment": catapults_raise_alignment,
    "forbidding_catapults_hurts": forbidding_catapults_hurts,
}
OF_SWEEP = {"small_batches_help": small_batches_help}
VERDICTS = OF_RUN | OF_SWEEP
