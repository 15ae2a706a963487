"""Claims of the source studies, checked on the record of a run: a statement, the effect with its spread, a verdict."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from catapult_jax.events import Event, Prediction, find_events, prediction, scores

REPRODUCED, NOT_REPRODUCED, NOT_TESTED = "reproduced", "not reproduced", "not tested"


class Verdict(NamedTuple):
    claim: str
    statement: str  # what must hold, with its thresholds
    verdict: str
    effect: str  # sizes, over members


def run_events(record, config: dict[str, Any], *, factor: float | None = None) -> list[list[Event]]:
    """Events of each member, on the training loss where it is recorded at every step, otherwise on the batch loss."""
    settings = config["events"]
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
                # The split is of the batch loss, so it has a share in a rise of the training loss only where they are one.
                loss_top=pick("loss_top", m) if not is_stochastic(config) else None,
                factor=settings["factor"] if factor is None else factor,
                delta=min(settings["delta"], ((settings["factor"] if factor is None else factor) - 1) / 2),
                horizon=settings["horizon"],
            )
        )
    return events


def by_rate(record, config: dict[str, Any]) -> list[tuple[str, np.ndarray]]:
    """Members of each learning rate that was asked for: (label, member numbers)."""
    rates = record["rate"].values
    absolute = config["optimizer"]["lr"] or config["members"]["lr"]
    label = "lr {:.4g}" if absolute else "{:.3g} x critical lr at start"
    return [(label.format(rate), np.flatnonzero(rates == rate)) for rate in np.unique(rates)]


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


def rise_predictions(record) -> dict[str, list[Prediction]]:
    """Exceedance as a predictor of a rise in the step, for each member: of the loss on that batch, and on all examples."""
    tables: dict[str, list[Prediction]] = {"batch loss": [], "full training loss": []}
    for m in range(record.sizes["member"]):
        critical = record["critical_lr_batch"].values[m]
        above = record["lr"].values[m] > critical
        before, after = record["loss_batch"].values[m], record["loss_batch_after"].values[m]
        full = record["loss_train"].values[m]
        known = np.isfinite(critical) & np.isfinite(before) & ~np.isnan(after)  # a frozen member predicts nothing
        tables["batch loss"].append(prediction(above[known], (after > before)[known]))
        known = np.isfinite(critical[:-1]) & np.isfinite(full[:-1]) & ~np.isnan(full[1:])
        tables["full training loss"].append(prediction(above[:-1][known], (full[1:] > full[:-1])[known]))
    return tables


def exceedance_predicts_rise(record, config) -> Verdict:
    """Fig. 5: with batch size one, the loss of a batch rises in the steps with lr above the critical lr of that batch."""
    statement = (
        "lr > critical_lr_batch predicts a rise of that batch's loss in the step: for each learning rate, over its seeds, "
        "precision at least 0.9 and recall at least 0.95"
    )
    name = "exceedance_predicts_rise"
    tables, alive = rise_predictions(record), record["alive"].values[:, -1]
    parts, holds, told = [], True, True
    for label, members in by_rate(record, config):
        members = [m for m in members if alive[m]]
        batch, full = ([tables[kind][m] for m in members] for kind in ("batch loss", "full training loss"))
        batch_sum, full_sum = _pooled(batch), _pooled(full)
        parts.append(
            f"{label}, {len(members)} members: batch loss precision "
            f"{_pooled_spread(batch, 'precision')}, recall {_pooled_spread(batch, 'recall')}, base rate {batch_sum.base_rate:.3g}; "
            f"full training loss precision {full_sum.precision:.3g}, recall {full_sum.recall:.3g}, base rate {full_sum.base_rate:.3g}"
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


# Instruments that must run at every step for a claim to be checked.
NEEDS = {
    "first_catapult": ("measure.batch_kernel_every",),
    "spikes_are_catapults": ("measure.batch_kernel_every",),
    "catapult_follows_raise": ("measure.batch_kernel_every",),
    "exceedance_predicts_rise": ("measure.batch_kernel_every", "measure.loss_after_every", "measure.train_loss_every"),
}

CLAIMS = {
    "first_catapult": first_catapult,
    "spikes_are_catapults": spikes_are_catapults,
    "catapult_follows_raise": catapult_follows_raise,
    "exceedance_predicts_rise": exceedance_predicts_rise,
}
