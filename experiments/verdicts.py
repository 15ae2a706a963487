"""Claims of the source studies, checked on the record of a run or a sweep: a statement, the effect with its spread, a verdict."""

from __future__ import annotations

import functools
import warnings
from typing import Any, NamedTuple

import numpy as np
import scipy  # scipy.stats takes half a second: it is loaded where a verdict first needs it

from catapult_jax.events import FACTORS, Event, Prediction, dead_from, find_events, momentum_horizon, prediction, scores
from experiments import optimizers

REPRODUCED, NOT_REPRODUCED, NOT_TESTED = "reproduced", "not reproduced", "not tested"


class Verdict(NamedTuple):
    claim: str
    statement: str  # what must hold, with its thresholds
    verdict: str
    effect: str  # sizes, over members
    table: tuple[tuple[str, ...], ...] = ()  # header and rows, where there is more to tell


def run_events(record, config: dict[str, Any], *, factor: float | None = None) -> list[list[Event]]:
    """Events of each member, on the training loss where it is recorded at every step, otherwise on the batch loss.

    Where batches are drawn and the training loss was not recorded there are none: the noise of batches is no spike.
    """
    settings = config["events"]
    if not has_events(record, config):
        return [[] for _ in range(record.sizes["member"])]
    loss, split = record[spike_series(record)], "loss_train" if is_stochastic(config) else "loss"
    pick = lambda name, m: record[name].values[m] if name in record else None
    missing, factor = np.full(record.sizes["step"], np.nan), settings["factor"] if factor is None else factor
    events = []
    for m in range(record.sizes["member"]):
        active = record["alive"].values[m]
        known = slice(0, None if active[-1] else int(active.argmin()) + 1)  # up to the step at which it diverged
        critical = pick("critical_lr_batch", m)
        critical = missing if critical is None else critical
        if "lambda_max_batch" in record:  # with a decay the critical lr of a kernel of zero is not infinite
            critical = np.where(record["lambda_max_batch"].values[m] == 0, np.inf, critical)
        options = {
            "factor": factor,
            "delta": min(settings["delta"], (factor - 1) / 2),
            "horizon": settings["horizon"],
            "momentum_horizon": momentum_horizon(optimizers.momentum(config["optimizer"])),
            "dead_steps": _steps_of_an_epoch(config),
        }
        series = (
            loss.values[m], record["lr"].values[m], critical, pick(lambda_series(record, config), m),
            pick(f"{split}_top", m), pick(f"{split}_rest", m),
        )  # fmt: skip
        as_bytes = tuple(None if values is None else np.float32(values[known]).tobytes() for values in series)
        events.append(list(_found(as_bytes, tuple(options.items()))))
    return events


@functools.lru_cache(maxsize=32)
def _found(series: tuple[bytes | None, ...], options: tuple) -> tuple[Event, ...]:
    """Events of these series. A report asks for the same ones many times."""
    loss, lr, critical, *rest = (None if values is None else np.frombuffer(values, np.float32) for values in series)
    named = dict(zip(("lambda_max", "loss_top", "loss_rest"), rest, strict=True))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the loss changes by")  # it is the training loss
        return tuple(find_events(loss, lr, critical, **named, **dict(options)))


def lambda_series(record, config: dict[str, Any]) -> str | None:
    """The series of lambda_max whose values are all of the same examples; None: only those of random batches, or none."""
    same = ("lambda_max_train", "lambda_max_probe", *(() if is_stochastic(config) else ("lambda_max_batch",)))
    return next((name for name in same if name in record), None)


def _steps_of_an_epoch(config: dict[str, Any]) -> int:
    """Steps in which every example is in a batch once."""
    return config["data"]["train_size"] // config["optimizer"]["batch_size"] if is_stochastic(config) else 1


def dead_steps(record, config: dict[str, Any]) -> np.ndarray:
    """For each member the step from which on its network is dead, -1: it is not; see :func:`catapult_jax.dead_from`.

    Where only the kernels of random batches are on record, they must be zero for an epoch, to the end. A member that diverged is not dead.
    """
    found, name = np.full(record.sizes["member"], -1), lambda_series(record, config)
    name, steps = (name, 1) if name else ("lambda_max_batch", _steps_of_an_epoch(config))
    if name in record:
        for m in np.flatnonzero(record["alive"].values[:, -1]):
            found[m] = dead_from(record[name].values[m], record[spike_series(record)].values[m], steps=steps)
    return found


def dead_members(record, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Members whose network is dead: ``member``, ``step`` from which on."""
    return [{"member": m, "step": int(step)} for m, step in enumerate(dead_steps(record, config)) if step >= 0]


def dead_text(dead: list[dict[str, Any]]) -> str:
    """How many are dead, and which."""
    return f"dead: {len(dead)} ({', '.join('member {member} from step {step}'.format(**one) for one in dead)})"


def active(record, config: dict[str, Any]) -> np.ndarray:
    """(member, step): the member has not diverged and is not dead."""
    dead, steps = dead_steps(record, config)[:, None], np.arange(record.sizes["step"])
    return record["alive"].values & ~((dead >= 0) & (steps >= dead))


def uncertain_steps(record) -> np.ndarray:
    """(member, step): the lr is so near its critical value that it can't be told on which side, for rounding and, with kernel-vector
    products, for the bound on the eigenvalue."""
    if "critical_lr_batch" not in record:
        return np.zeros(record["lr"].shape, bool)
    margin = np.full(record["lr"].shape, record.attrs.get("critical_lr_margin", 0.0))
    if "eigenvalue_bounds" in record:
        with np.errstate(divide="ignore", invalid="ignore"):
            margin = np.fmax(margin, record["eigenvalue_bounds"].values[..., 0] / record["eigenvalues"].values[..., 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.abs(record["lr"].values / record["critical_lr_batch"].values - 1) <= margin


def lost_members(record, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Members that diverged: ``member``, ``step`` from which it is frozen, ``cause``."""
    alive = record["alive"].values
    found = []
    for m in np.flatnonzero(~alive[:, -1]):
        step = int(np.argmin(alive[m]))
        finite = all(np.isfinite(record[name].values[m, step]) for name in ("loss_batch", "loss_train") if name in record)
        cause = f"a spike did not close within {config['events']['horizon']} steps" if finite else "the loss was not finite"
        found.append({"member": int(m), "step": step, "cause": cause})
    return found


def until_lost(record):
    """The record with NaN for what was measured of a member after the step at which it was lost: it is frozen there."""
    lost = np.cumsum(~record["alive"].values, axis=1) > 1
    if not lost.any():
        return record
    record = record.copy(deep=True)
    for array in record.data_vars.values():
        if array.dims[:2] == ("member", "step") and array.dtype.kind == "f":
            array.values[lost] = np.nan
    return record


def has_events(record, config: dict[str, Any]) -> bool:
    """Whether spikes could be looked for: with batches, the training loss is on record."""
    return "loss_train" in record or not is_stochastic(config)


def by_setting(record, config: dict[str, Any]) -> list[tuple[str, np.ndarray]]:
    """Members of each setting that was asked for, all seeds of it: (label, member numbers)."""
    absolute = config["optimizer"]["lr"] or config["members"]["lr"]
    labels = {
        "rate": "lr {:.4g}" if absolute else "{:.4g} x critical lr at start",
        "raises": "{} raises",
        "cap": "cap {:.4g}",
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
    """Of the values that are known."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return "none"
    return f"median {np.median(values):.3g} (from {values.min():.3g} to {values.max():.3g}, n = {len(values)})"


def number_text(value: float) -> str:
    """Three digits; a value that is not known is no number."""
    return "none" if np.isnan(value) else f"{value:.3g}"


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
        f"{len(found)} of {len(chosen)} members have one; onset at step {_spread(onset)}; share of the rise {_spread(share)}; "
        f"peak over level {_spread([e.peak_ratio for e in found])}; lambda_max after / before {_spread(ratio)}"
    )
    if np.isnan([*share, *ratio]).any():
        return Verdict("first_catapult", statement, NOT_TESTED, "a share or a lambda_max that is not known; " + effect)
    return Verdict("first_catapult", statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


def spikes_are_catapults(record, config) -> Verdict:
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
            f"first onset {_spread(firsts)}, first exceedance {_spread(crossings)}"
        )
    if not total:
        return Verdict("spikes_are_catapults", statement, NOT_TESTED, "no spike; " + "; ".join(per_rate))
    kinds = [e.kind for found in events for e in found]
    at_onset = sum(e.kind == "catapult" and e.lr > e.critical_lr for found in events for e in found)
    later = [e.lr / e.critical_lr for found in events for e in found if not e.lr > e.critical_lr]
    effect = (
        f"{explained} of {total} spikes are catapults, {at_onset} of them with an exceedance at the onset; lr / critical lr at "
        f"the onset of the others {_spread(later)}; {kinds.count('divergence')} divergences, {kinds.count('death')} deaths; {early} start before the first exceedance; "
    )
    holds = early == 0 and explained == total
    return Verdict("spikes_are_catapults", statement, REPRODUCED if holds else NOT_REPRODUCED, effect + "; ".join(per_rate))


def catapult_follows_raise(record, config) -> Verdict:
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
        f"{len(delays)} followed by a catapult; delay in steps {_spread(delays)}"
    )
    if not above:
        return Verdict("catapult_follows_raise", statement, NOT_TESTED, effect)
    if len(above) == len(delays) < wanted:
        return Verdict("catapult_follows_raise", statement, NOT_TESTED, "too short for all raises; " + effect)
    holds = len(delays) == wanted
    return Verdict("catapult_follows_raise", statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


def batch_prediction(record, config, m: int) -> Prediction:
    """Exceedance as a predictor of a rise of the loss on the same batch in the step, for one member."""
    critical = record["critical_lr_batch"].values[m]
    before, after = record["loss_batch"].values[m], record["loss_batch_after"].values[m]
    known = (
        np.isfinite(critical) & np.isfinite(before) & ~np.isnan(after) & _going(record, config, m)
    )  # a frozen member predicts nothing
    return prediction((record["lr"].values[m] > critical)[known], (after > before)[known])


def _going(record, config, m: int) -> np.ndarray:
    """Steps at which a member was neither done nor lost nor dead."""
    going = active(record, config)[m]
    return going & ~record["done"].values[m] if "done" in record else going


def critical_share(record, config, m: int) -> float:
    """Share of the steps with a known critical lr, until the member was done, at which the lr was above it."""
    critical = record["critical_lr_batch"].values[m]
    known = ~np.isnan(critical) & _going(record, config, m)
    return float((record["lr"].values[m] > critical)[known].mean()) if known.any() else float("nan")


def rise_predictions(record, config) -> dict[str, list[Prediction]]:
    """Exceedance as a predictor, for each member: of a rise of the loss on that batch in the step, of a rise of the loss on
    all examples, and of a step on the way from the onset to the peak of a spike of that loss."""
    tables: dict[str, list[Prediction]] = {"batch loss": [], "full training loss": [], "spikes of the full training loss": []}
    events = run_events(record, config)
    for m in range(record.sizes["member"]):
        critical = record["critical_lr_batch"].values[m]
        above, going = record["lr"].values[m] > critical, _going(record, config, m)
        full = record["loss_train"].values[m]
        tables["batch loss"].append(batch_prediction(record, config, m))
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
    tables, alive = rise_predictions(record, config), active(record, config)[:, -1]
    parts, holds, told = [], True, True
    for label, members in by_setting(record, config):
        members = [m for m in members if alive[m]]
        batch, full, spikes = ([tables[kind][m] for m in members] for kind in tables)
        batch_sum, full_sum, spikes_sum = _pooled(batch), _pooled(full), _pooled(spikes)
        parts.append(
            f"{label}, {len(members)} members: batch loss precision "
            f"{_pooled_spread(batch, 'precision')}, recall {_pooled_spread(batch, 'recall')}, base rate {number_text(batch_sum.base_rate)}; "
            f"full training loss {_scores_text(full_sum)}; its spikes {_scores_text(spikes_sum)}"
        )
        holds &= batch_sum.precision >= 0.9 and batch_sum.recall >= 0.95
        told &= not (np.isnan(batch_sum.precision) or np.isnan(batch_sum.recall))
    lost = int((~alive).sum())
    effect = "; ".join(parts) + (f"; {lost} members diverged or are dead, and are left out" if lost else "")
    if not told:
        return Verdict(name, statement, NOT_TESTED, "a rate without exceedances or without rises; " + effect)
    return Verdict(name, statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


def _scores_text(table: Prediction) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {number_text(getattr(table, name))}" for name in ("precision", "recall", "base_rate")
    )


def _pooled(tables: list[Prediction]) -> Prediction:
    """The tables of several members as one."""
    return scores(*(sum(t[i] for t in tables) for i in range(4)))


def _pooled_spread(tables: list[Prediction], score: str) -> str:
    values = [getattr(t, score) for t in tables if not np.isnan(getattr(t, score))]
    return number_text(getattr(_pooled(tables), score)) + (f" (seeds {min(values):.3g} to {max(values):.3g})" if values else "")


CONFUSION = ("true_positive", "false_positive", "false_negative", "true_negative")
_MIN_SEEDS = 5  # fewer decide nothing
_BEYOND = "95 % interval over seeds and sign test"


def interval(values) -> tuple[float, float, float]:
    """Mean, and its 95 % percentile bootstrap interval over the values (seeds); NaN limits for fewer than two.

    >>> interval([1.0, 1.0, 1.0])
    (1.0, 1.0, 1.0)
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        return (float(values.mean()) if len(values) else float("nan")), float("nan"), float("nan")
    if np.ptp(values) == 0 or np.isnan(values).any():
        return float(values.mean()), float(values.mean()), float(values.mean())
    found = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return float(values.mean()), float(found.low), float(found.high)


def beyond_zero(values, sign: int) -> bool | None:
    """Whether values, one for each seed, lie on one side of zero; None for fewer than five, or if one is not known.

    Both must hold: the 95 % bootstrap interval of the mean lies on that side, and so do so many seeds that a sign test gives
    p <= 0.05 (5 of 5, 7 of 8). With few seeds the interval alone is too narrow.

    >>> beyond_zero([0.1, 0.2, 0.1, 0.3, 0.2], 1), beyond_zero([0.1, 0.2, 0.1, 0.3, -0.1], 1), beyond_zero([0.1], 1)
    (True, False, None)
    """
    values = sign * np.asarray(values, float)
    if len(values) < _MIN_SEEDS or not np.isfinite(values).all():
        return None
    test = scipy.stats.binomtest(int((values > 0).sum()), len(values), alternative="greater")
    return bool(interval(values)[1] > 0 and test.pvalue <= 0.05)


def text_of(values) -> str:
    mean, low, high = interval(values)
    if np.isnan(mean):
        return "none"
    return f"{mean:.3g}" if np.isnan(low) else f"{mean:.3g} [{low:.3g}, {high:.3g}]"


def last(record, config, name: str) -> np.ndarray:
    """The last measured value of each member, for one that came to the loss to stop at the last one since; NaN where there is
    none, or the member was lost or is dead."""
    values, alive = record[name].values.astype(float), active(record, config)[:, -1]
    done = record["done"].values if "done" in record else np.zeros(values.shape, bool)
    values = np.where(done.any(1, keepdims=True) & ~done, np.nan, values)
    found = [
        row[np.isfinite(row)][-1] if ok and np.isfinite(row).any() else np.nan for row, ok in zip(values, alive, strict=True)
    ]
    return np.array(found, float)


def catapult_counts(record, config) -> np.ndarray:
    """Catapults of each member."""
    return np.array([sum(e.kind == "catapult" for e in found) for found in run_events(record, config)])


_SAME_LOSS = 0.8  # a member that ends below this multiple of the loss to stop at went past it


def finished(record, config) -> np.ndarray:
    """Members that ended at the loss to stop at, between 0.8 and 1 times it; without such a loss, those that are neither lost nor dead."""
    alive = active(record, config)[:, -1]
    if "done" not in record:
        return alive.copy()
    return (
        record["done"].values[:, -1] & alive & (last(record, config, "loss_train") >= _SAME_LOSS * config["run"]["stop_loss"])
    )


def _rank_correlation(x, y) -> float:
    """Spearman's; 0 where ``y`` does not vary, NaN where ``x`` takes fewer than three values, or a value is not known."""
    if len(np.unique(x)) < 3 or np.isnan([*x, *y]).any():
        return float("nan")
    return float(scipy.stats.spearmanr(x, y).statistic) if len(np.unique(y)) > 1 else 0.0


def _decide(*tests: bool | None) -> str:
    """One that fails decides; otherwise one that can't be told."""
    return NOT_REPRODUCED if False in tests else NOT_TESTED if None in tests else REPRODUCED


class _OnTheWay(NamedTuple):
    """Spikes of one factor, member by member, and the exceedances on their way up."""

    hits: list[list[bool]]  # catapults: one from onset to peak, or within the momentum's memory before
    base: list[list[float]]  # share of all windows of that length in the steps of that member that hold one
    shares: list[float]  # of the rise in the top space


def _on_the_way(record, config, factor: float) -> _OnTheWay:
    found, memory = _OnTheWay([], [], []), momentum_horizon(optimizers.momentum(config["optimizer"]))
    for m, events in enumerate(run_events(record, config, factor=factor)):
        above = (record["lr"].values[m] > record["critical_lr_batch"].values[m])[: _going(record, config, m).sum()]
        hits, base = [], []
        for e in events:
            if e.kind not in ("divergence", "death") and len(above):
                length = min(memory + e.peak - e.onset + 1, len(above))
                hits.append(e.kind == "catapult")
                base.append(float(np.lib.stride_tricks.sliding_window_view(above, length).any(1).mean()))
                found.shares.append(e.share_top)
        found.hits.append(hits)
        found.base.append(base)
    return found


_MIN_SPIKES = 10  # fewer decide nothing


def sgd_spikes_are_catapults(record, config) -> Verdict:
    """Spikes of the full training loss of SGD: an exceedance on the way up, and the rise in the top eigenspace."""
    k, factor = config["measure"]["top_k"], config["events"]["factor"]
    part = "of the rise" if config["loss"] == "mse" else "of the rise of the Newton decrement"
    statement = (
        f"At least 95 % of the spikes of the full training loss (factor {factor}, divergences and deaths apart) have, from onset to peak, a step "
        "with lr above the critical lr of its batch, more often than windows of the same length anywhere in the same runs (the base "
        f"rate; {_BEYOND}), and on average at least 90 % {part} lies in the top-{k} eigenspace of the kernel of the training set"
    )
    name = "sgd_spikes_are_catapults"
    critical = np.array([critical_share(record, config, m) for m in range(record.sizes["member"])])
    critical = critical[~np.isnan(critical)]
    found = _on_the_way(record, config, factor)
    flat = lambda lists: np.array([value for values in lists for value in values], float)
    hits, base = flat(found.hits), flat(found.base)
    if not len(hits):
        return Verdict(name, statement, NOT_TESTED, f"no spike; {text_of(critical)} of the steps critical")
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
        f"share of the rise in the top space {text_of(shares)}; {at_onset} have one at the very onset; {', '.join(by_factor)}; "
        f"{text_of(critical)} of all steps are critical"
    )
    if len(hits) < _MIN_SPIKES or not len(shares):
        return Verdict(
            name, statement, NOT_TESTED, f"fewer than {_MIN_SPIKES} spikes, or no split of the training loss; " + effect
        )
    return Verdict(
        name, statement, _decide(bool(hits.mean() >= 0.95), bool(shares.mean() >= 0.9), beyond_zero(gain, 1)), effect
    )


def cycles_cause_catapults(record, config) -> Verdict:
    """A cyclic lr makes a spike in the cycles whose lr exceeds the current critical lr, and in no others."""
    statement = (
        "At least 90 % of the cycles of the lr in which it exceeds the current critical lr hold the onset of a spike, and at "
        "most 10 % of the others"
    )
    name, period = "cycles_cause_catapults", config["schedule"]["period"]
    events = run_events(record, config)
    above = record["lr"].values > record["critical_lr_batch"].values
    alive = active(record, config)
    with_spike: dict[bool, list[bool]] = {True: [], False: []}
    per_rate = []
    for label, members in by_setting(record, config):
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
        f"{len(with_spike[False])} without; {kinds.count('catapult')} of {len(kinds)} spikes are catapults; "
        + "; ".join(per_rate)
    )
    if min(map(len, with_spike.values())) < _MIN_SPIKES:
        return Verdict(name, statement, NOT_TESTED, f"fewer than {_MIN_SPIKES} cycles of one kind; " + effect)
    holds = share[True] >= 0.9 and share[False] <= 0.1
    return Verdict(name, statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


def catapults_raise_alignment(record, config) -> Verdict:
    """More catapults, trained to the same loss: higher AGOP alignment, lower test loss."""
    statement = (
        f"Among runs trained to the same loss ({_SAME_LOSS} to 1 times {config['run']['stop_loss']:g}), the rank correlation, within a "
        f"seed, of the number of catapults with the AGOP alignment is positive and with the test loss negative ({_BEYOND}), and at "
        "most one member in five did not end there"
    )
    name = "catapults_raise_alignment"
    counts, ok, seeds = catapult_counts(record, config), finished(record, config), record["seed"].values
    series = {
        key: last(record, config, key) for key in ("agop_alignment", "loss_test", "error_test", "loss_train") if key in record
    }
    parts = []
    for label, members in by_setting(record, config):
        ended = members[ok[members]]
        shown = ", ".join(f"{key} {text_of(values[ended])}" for key, values in series.items())
        parts.append(f"{label}: {len(ended)} of {len(members)} members, {text_of(counts[ended])} catapults, {shown}")
    correlations = {
        key: [_rank_correlation(counts[own], series[key][own]) for seed in np.unique(seeds) for own in [(seeds == seed) & ok]]
        for key in ("agop_alignment", "loss_test", "error_test")
        if key in series
    }
    effect = ", ".join(f"rank correlation of catapults with {key} {text_of(rho)}" for key, rho in correlations.items())
    effect += "; " + "; ".join(parts)
    if (~ok).mean() > 0.2:
        return Verdict(name, statement, NOT_TESTED, f"{(~ok).sum()} of {len(ok)} members did not end at that loss; " + effect)
    tests = beyond_zero(correlations["agop_alignment"], 1), beyond_zero(correlations["loss_test"], -1)
    return Verdict(name, statement, _decide(*tests), effect)


def forbidding_catapults_hurts(record, config) -> Verdict:
    """The causal test: the same run with catapults forbidden from one step on, compared at equal training loss."""
    start = config["schedule"]["cap_from"]
    statement = (
        f"At equal training loss ({_SAME_LOSS} to 1 times {config['run']['stop_loss']:g}), a run that may have catapults has more of them "
        f"from step {start} on, a higher AGOP alignment and a lower test loss than the same run (seed, batches, first {start} steps) held "
        f"below the critical lr: {_BEYOND} on the paired differences"
    )
    name, caps, ok = "forbidding_catapults_hurts", record["cap"].values, finished(record, config)
    events = run_events(record, config)
    counts = np.array([sum(e.kind == "catapult" and e.onset >= start for e in found) for found in events])
    ratio, going = record["lr"].values / record["critical_lr_batch"].values, ~record["done"].values
    ratios = np.array([row[own].mean() if own.any() else np.nan for row, own in zip(ratio, going, strict=True)])
    series = {"catapults": counts} | {
        key: last(record, config, key) for key in ("agop_alignment", "loss_test", "error_test", "loss_train") if key in record
    }
    series["lr / critical lr"] = ratios
    members = {
        (seed, rate, cap): m
        for m, (seed, rate, cap) in enumerate(zip(record["seed"].values, record["rate"].values, caps, strict=True))
    }
    by_seed: dict[Any, list[tuple[int, int]]] = {}  # pairs of one seed are no independent ones
    for (seed, rate, cap), held in members.items():
        free = members.get((seed, rate, np.float32(np.inf)))
        if cap < 1 and free is not None and ok[free] and ok[held]:
            by_seed.setdefault(seed, []).append((free, held))
    differences = {
        key: [np.mean([values[free] - values[held] for free, held in pairs]) for pairs in by_seed.values()]
        for key, values in series.items()
    }
    sides = {word: [pair[i] for pairs in by_seed.values() for pair in pairs] for i, word in enumerate(("allowed", "held"))}
    effect = (
        "allowed minus held: "
        + ", ".join(f"{key} {text_of(found)}" for key, found in differences.items())
        + "; "
        + "; ".join(f"{word}: " + ", ".join(f"{k} {text_of(v[own])}" for k, v in series.items()) for word, own in sides.items())
        + f"; {len(by_seed)} seeds; {int((~ok).sum())} of {len(ok)} members did not end at that loss"
    )
    more = beyond_zero(differences["catapults"], 1)
    if not more:
        return Verdict(name, statement, NOT_TESTED, "too few seeds, or no more catapults where they are allowed; " + effect)
    tests = beyond_zero(differences["agop_alignment"], 1), beyond_zero(differences["loss_test"], -1)
    return Verdict(name, statement, _decide(*tests), effect)


def catapults_help_beyond_cycles(record, config) -> Verdict:
    """The same cycles with and without catapults: what is left of the gain when the lr is held below its critical value."""
    name, caps, rates = "catapults_help_beyond_cycles", record["cap"].values, record["rate"].values
    statement = (
        "Under the same cycles of the lr, without a cap and held below the critical lr, each at the lr of one grid with the smallest mean validation "
        f"error: a higher test accuracy where catapults are allowed ({_BEYOND} on the paired differences), and more steps above the critical lr"
    )
    ends = {key: last(record, config, key) for key in ("error_val", "error_test")}
    critical, seeds = np.array([critical_share(record, config, m) for m in range(len(caps))]), record["seed"].values
    arms, parts = {}, []
    for word, own in (("allowed", np.isinf(caps)), ("held", np.isfinite(caps))):
        mean = {rate: ends["error_val"][own & (rates == rate)].mean() for rate in np.unique(rates[own])}
        known = {rate: value for rate, value in mean.items() if np.isfinite(value)}
        if not known:
            return Verdict(
                name, statement, NOT_TESTED, f"no lr at which every seed of the arm {word} came to an end that is known"
            )
        rate = min(known, key=known.get)
        arms[word] = {seeds[m]: m for m in np.flatnonzero(own & (rates == rate))}
        members = [*arms[word].values()]
        edge = ", an end of the grid" if rate in (min(mean), max(mean)) else ""
        parts.append(
            f"{word}: {text_of(100 * (1 - ends['error_test'][members]))} %, {rate:.3g} x critical lr at start{edge}, critical steps {text_of(critical[members])}"
        )
    pairs = [(m, arms["held"][seed]) for seed, m in arms["allowed"].items() if seed in arms["held"]]
    gain = [100 * (ends["error_test"][held] - ends["error_test"][free]) for free, held in pairs]
    more = [critical[free] - critical[held] for free, held in pairs]
    effect = f"accuracy {text_of(gain)} points higher, share of critical steps {text_of(more)} higher; " + "; ".join(parts)
    return Verdict(name, statement, _decide(beyond_zero(gain, 1), beyond_zero(more, 1)), effect)


def adagrad_outgrows_its_lr(record, config) -> Verdict:
    """With AdaGrad under a cyclic lr the critical lr grows until no lr of the schedule is critical."""
    statement = (
        "In every seed the exact critical lr of AdaGrad, as the median of the last cycle over that of the first, has grown, no step of the last quarter is "
        "critical, and the bound s_min * critical_lr(sgd) is above the largest lr from some step of the run on, as predicted by the study"
    )
    name, period = "adagrad_outgrows_its_lr", config["schedule"]["period"]
    lr, exact, bound = (record[key].values for key in ("lr", "critical_lr_batch", "critical_lr_bound_batch"))
    least, ok = record["preconditioner_min"].values, active(record, config)[:, -1]
    above, steps = lr > exact, lr.shape[1]
    growth = np.median(exact[:, -period:], 1) / np.median(exact[:, :period], 1)
    late = above[:, -steps // 4 :].mean(1)
    # Steps from which on it holds; at the largest lr of the schedule, since the lr of a step hangs on its place in the cycle.
    from_on = lambda holds: [int(np.flatnonzero(~row)[-1]) + 1 if not row.all() else 0 for row in holds]
    peak = lr.max(1, keepdims=True)
    observed, largest, predicted = from_on(~above), from_on(exact > peak), from_on(bound > peak)
    told = [p for p in predicted if p < steps]

    def in_time(found):
        known = [f for f in found if f < steps]
        return f"{len(known)} of {len(found)} seeds" + (f", step {_spread(known)}" if known else "")

    violations = int((bound > exact * 1.01).sum())  # the exact one may come from products, to one percent
    effect = (
        f"critical lr of the last cycle over the first {text_of(growth)}, critical steps {text_of(above.mean(1))} of all, {text_of(late)} of the last quarter; "
        f"no step is critical any more in {in_time(observed)}; nor would one be at the largest lr in {in_time(largest)}; predicted by the bound "
        f"in {in_time(predicted)}; exact over bound {_spread(np.median(exact / bound, 1))}; {violations} of {exact.size} steps with the bound above the exact one; smallest "
        f"entry of P {text_of(least[:, 0])} at first, {text_of(least[:, -1])} at last"
    )
    if not ok.all():
        return Verdict(name, statement, NOT_TESTED, f"{(~ok).sum()} members were lost or are dead; " + effect)
    if not above.any(1).all():
        return Verdict(name, statement, NOT_TESTED, "a seed without a critical step; " + effect)
    if np.isnan(bound).any():
        return Verdict(name, statement, NOT_TESTED, f"the bound is not known at {int(np.isnan(bound).sum())} steps; " + effect)
    holds = bool((growth > 1).all() and not late.any() and len(told) == len(predicted))
    return Verdict(name, statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


def catapults_condition_the_kernel(record, config) -> Verdict:
    """A catapult leaves a kernel of smaller norm and smaller condition number."""
    statement = (
        "Of the catapults that close, at least 90 % leave a smaller spectral norm, and of those whose condition numbers can be compared at least 90 % a smaller "
        "condition number, of the tangent kernel of the training set than at their onset"
    )
    name = "catapults_condition_the_kernel"
    norms, before, after, lost = [], [], [], 0
    for m, found in enumerate(run_events(record, config)):
        values = record["condition_number_batch"].values[m].astype(float)
        for e in found:
            if e.kind == "catapult" and e.end >= 0:
                norms.append(e.lambda_max_after / e.lambda_max_before)
                before.append(values[e.onset])
                after.append(values[e.end])
            lost += e.kind == "catapult" and e.end < 0
    norms, before, after = np.array(norms), np.array(before), np.array(after)
    norms = norms[~np.isnan(norms)]
    # Infinite: lost in the rounding of the smallest eigenvalue; larger than any that is known, and not comparable with itself.
    known = ~(np.isnan(before) | np.isnan(after) | (np.isinf(before) & np.isinf(after)))
    both = np.isfinite(before) & np.isfinite(after)
    smaller = after[known] < before[known]
    effect = (
        f"norm smaller after {int((norms < 1).sum())} of {len(norms)} catapults, after / before {_spread(norms)}; condition number smaller after "
        f"{int(smaller.sum())} of {int(known.sum())} where it is known, after / before {_spread(after[both] / before[both])}; {lost} do not close"
    )
    if len(norms) < _MIN_SPIKES or known.sum() < _MIN_SPIKES:
        return Verdict(name, statement, NOT_TESTED, f"fewer than {_MIN_SPIKES} catapults; " + effect)
    holds = (norms < 1).mean() >= 0.9 and smaller.mean() >= 0.9
    return Verdict(name, statement, REPRODUCED if holds else NOT_REPRODUCED, effect)


# Verdicts on a whole sweep: rows of its summary, one for each member of each run.


def _arms(rows: list[dict], axes: tuple[str, ...], metric: str, *, finished: bool) -> dict[tuple, list[dict]]:
    """For each value of the axes the rows of one learning rate, that with the smallest mean ``metric`` over seeds, which must be
    known of each.

    ``finished``: every seed must have come to the loss to stop at; otherwise it must only not have been lost.
    """
    arms = {}
    for arm in dict.fromkeys(tuple(row[axis] for axis in axes) for row in rows):
        own = [row for row in rows if tuple(row[axis] for axis in axes) == arm]
        by_rate = [[row for row in own if row["rate"] == rate] for rate in dict.fromkeys(row["rate"] for row in own)]
        ended = lambda row: (row["finished"] if finished else row["alive"]) and np.isfinite(row[metric])
        whole = [r for r in by_rate if all(map(ended, r))]
        if whole:
            arms[arm] = min(whole, key=lambda r: np.mean([row[metric] for row in r]))
    return arms


def _at_the_edge(rows: list[dict], rate: float) -> str:
    rates = [row["rate"] for row in rows]
    return ", an end of the grid" if rate in (min(rates), max(rates)) else ""


def _paired(arms: dict[tuple, list[dict]], one: tuple, other: tuple, key: str) -> list[float]:
    """Differences of two arms, seed by seed."""
    values = [{row["seed"]: row[key] for row in arms[arm]} for arm in (one, other)]
    return [values[0][seed] - values[1][seed] for seed in values[0] if seed in values[1]]


def small_batches_help(rows: list[dict], config) -> Verdict:
    """Smaller batches: more catapults, higher alignment, lower test loss; at one shared lr, and at lrs tuned on validation."""
    name, axis = "small_batches_help", "optimizer.batch_size"
    statement = (
        f"Trained to the same loss ({_SAME_LOSS} to 1 times {config['run']['stop_loss']:g}), the rank correlation, within a seed, of the "
        f"batch size with the test loss is positive, with the AGOP alignment and the number of catapults negative ({_BEYOND}), (a) at "
        "the largest lr of the grid at which every seed of every batch size ends there, and (b) at the lr of each batch size that has "
        "the smallest mean validation loss over seeds, the same grid for all"
    )
    sizes = list(dict.fromkeys(row.get(axis) for row in rows))
    if len(sizes) < 3 or len({row["run"] for row in rows}) > len(sizes):
        return Verdict(
            name, statement, NOT_TESTED, "allowed: a sweep over three or more batch sizes and nothing else but members"
        )
    rates = list(dict.fromkeys(row["rate"] for row in rows))
    shared = [rate for rate in rates if all(row["finished"] for row in rows if row["rate"] == rate)]
    arms = {
        "(a) shared lr": {size: max(shared) for size in sizes} if shared else {},
        "(b) tuned lr": {arm[0]: own[0]["rate"] for arm, own in _arms(rows, (axis,), "loss_val", finished=True).items()},
    }
    signs = {"loss_test": 1, "agop_alignment": -1, "catapults": -1}
    heads, parts, tests = [], [], []
    for label, chosen in arms.items():
        own = [row for row in rows if chosen.get(row[axis]) == row["rate"]]
        seeds = [[row for row in own if row["seed"] == seed] for seed in dict.fromkeys(row["seed"] for row in own)]
        rho = {key: [_rank_correlation([r[axis] for r in mine], [r[key] for r in mine]) for mine in seeds] for key in signs}
        if len(chosen) < len(sizes):
            heads.append(f"{label}: only {len(chosen)} of {len(sizes)} batch sizes came to that loss")
            tests.append(None)
            continue
        tests += [beyond_zero(rho[key], sign) for key, sign in signs.items()]
        heads.append(f"{label}: rank correlation of batch size with " + ", ".join(f"{k} {text_of(v)}" for k, v in rho.items()))
        for size, rate in chosen.items():
            mine = [row for row in own if row[axis] == size]
            shown = ", ".join(f"{k} {text_of([row[k] for row in mine])}" for k in (*signs, "error_test") if k in mine[0])
            edge = _at_the_edge(rows, rate) if label.startswith("(b)") else ""
            parts.append(f"{label}, batch {size} ({rate:.3g}{edge}): {shown}")
    return Verdict(name, statement, _decide(*tests), ", ".join(heads) + "; " + "; ".join(parts))


_ONLY_OPTIMIZERS = "allowed: a sweep over three or more optimizers and nothing else but members"


def alignment_over_optimizers(rows: list[dict], config) -> Verdict:
    """Over optimizers, each at its own tuned lr: a higher AGOP alignment, a lower test loss."""
    name, axis = "alignment_over_optimizers", "optimizer.name"
    statement = (
        f"Over three or more optimizers, those of the sweep of which every seed comes to the same loss ({_SAME_LOSS} to 1 times "
        f"{config['run']['stop_loss']:g}) at some lr, each at the lr of the grid with the smallest mean validation loss, the rank correlation, within a seed, of the AGOP alignment with the "
        f"test loss is negative ({_BEYOND})"
    )
    names = list(dict.fromkeys(row.get(axis) for row in rows))
    if len(names) < 3 or len({row["run"] for row in rows}) > len(names):
        return Verdict(name, statement, NOT_TESTED, _ONLY_OPTIMIZERS)
    arms = _arms(rows, (axis,), "loss_val", finished=True)
    counted = ("catapults", "critical_steps") if "critical_steps" in rows[0] else ()  # where the critical lr was measured
    shown = ("agop_alignment", "loss_test", *(["error_test"] if "error_test" in rows[0] else []), *counted)
    table = [("optimizer", "lr / critical lr at start", *(k.replace("_", " ") for k in shown))]
    for other in names:
        own = arms.get((other,))
        if own is None:
            table.append((other, "none at which every seed came to that loss", *("-" for _ in shown)))
            continue
        edge = _at_the_edge([row for row in rows if row[axis] == other], own[0]["rate"])
        table.append((other, f"{own[0]['rate']:.3g}{edge}", *(text_of([row[k] for row in own]) for k in shown)))
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    of_seed = [[row for own in arms.values() for row in own if row["seed"] == seed] for seed in seeds]
    rho = [_rank_correlation([r["agop_alignment"] for r in own], [r["loss_test"] for r in own]) for own in of_seed]
    effect = f"rank correlation {text_of(rho)} over {len(arms)} optimizers"
    verdict = _decide(beyond_zero(rho, -1)) if len(arms) >= 3 else NOT_TESTED
    return Verdict(name, statement, verdict, effect, tuple(table))


def exceedance_predicts_for_every_optimizer(rows: list[dict], config) -> Verdict:
    """For every optimizer, lr above its own critical lr foretells a rise of the loss of the batch better than chance."""
    name, axis = "exceedance_predicts_for_every_optimizer", "optimizer.name"
    statement = (
        "For every optimizer, over all steps of its grid of learning rates, each member until it was lost or done: the precision of lr > "
        f"critical_lr_batch as a predictor of a rise of that batch's loss in the step is above what chance gives ({_BEYOND}; the steps of a seed are "
        "counted together; chance: the same number of predictions in each member, at random, so that rates at which all steps are critical gain nothing)"
    )
    names = list(dict.fromkeys(row.get(axis) for row in rows))
    if len(names) < 3 or len({row["run"] for row in rows}) > len(names):
        return Verdict(name, statement, NOT_TESTED, _ONLY_OPTIMIZERS)
    table, parts, tests = [("optimizer", "members", "lost", "steps", "precision", "by chance", "recall", "base rate")], [], []
    for optimizer in names:
        own = [row for row in rows if row[axis] == optimizer]
        found, chance = [], []
        for seed in dict.fromkeys(row["seed"] for row in own):
            members = [scores(*(row[count] for count in CONFUSION)) for row in own if row["seed"] == seed]
            predicted = [m.true_positive + m.false_positive for m in members]
            by_chance = sum(p * m.base_rate for p, m in zip(predicted, members, strict=True) if p)
            found.append(_pooled(members))
            chance.append(by_chance / sum(predicted) if sum(predicted) else np.nan)
        gain = [one.precision - by_chance for one, by_chance in zip(found, chance, strict=True)]
        tests.append(beyond_zero(gain, 1))
        parts.append(f"{optimizer} {_known_text(gain)}")
        precision, recall, base = ([getattr(one, score) for one in found] for score in ("precision", "recall", "base_rate"))
        lost, steps = sum(not row["alive"] for row in own), sum(row[count] for row in own for count in CONFUSION)
        numbers = (str(optimizer), str(len(own)), str(lost), str(steps))
        table.append((*numbers, *map(_known_text, (precision, chance, recall, base))))
    return Verdict(name, statement, _decide(*tests), "precision above chance: " + ", ".join(parts), tuple(table))


def _known_text(values: list[float]) -> str:
    """The mean over seeds at which it is known, with their number where it is not that of all."""
    known = [v for v in values if np.isfinite(v)]
    return text_of(known) + (f" ({len(known)} of {len(values)} seeds)" if 0 < len(known) < len(values) else "")


# Test accuracies in percent of the two-layer net on MNIST, as published by the student study; math.md, section 6.
PUBLISHED = {
    ("sgd", "constant"): 95.38,
    ("sgd", "cyclic"): 97.65,
    ("adagrad", "constant"): 97.09,
    ("adagrad", "cyclic"): 95.91,
    ("adam", "constant"): 98.12,
}
_ARM_AXES = ("optimizer.name", "schedule.name")


def _accuracy(rows: list[dict]) -> list[float]:
    return [100 * (1 - row["error_test"]) for row in rows]


def _accuracies(rows: list[dict], config) -> tuple[dict[tuple, list[dict]], tuple[tuple[str, ...], ...]]:
    """The arms at their tuned learning rates, and a table of them."""
    arms, on_mnist = _arms(rows, _ARM_AXES, "error_val", finished=False), config["data"]["name"] == "mnist"
    header = ("test accuracy, %", "lr / critical lr at start", "critical steps")
    table = [("optimizer", "schedule", *["published, %"] * on_mnist, *header)]
    for arm in dict.fromkeys(tuple(row[axis] for axis in _ARM_AXES) for row in rows):
        if (own := arms.get(arm)) is None:
            table.append((*arm, *[str(PUBLISHED.get(arm, "-"))] * on_mnist, "-", "a seed was lost at every lr", "-"))
            continue
        edge = _at_the_edge([row for row in rows if tuple(row[axis] for axis in _ARM_AXES) == arm], own[0]["rate"])
        published = [str(PUBLISHED.get(arm, "-"))] * on_mnist
        critical = text_of([row["critical_steps"] for row in own])
        table.append((*arm, *published, text_of(_accuracy(own)), f"{own[0]['rate']:.3g}{edge}", critical))
    return arms, tuple(table)


def catapults_help_sgd(rows: list[dict], config) -> Verdict:
    """SGD whose lr is cycled, with catapults, generalises better than SGD at a constant lr, each tuned."""
    name, one, other = "catapults_help_sgd", ("sgd", "cyclic"), ("sgd", "constant")
    statement = (
        "Each arm at the lr of one grid, in multiples of its own critical lr at initialisation, with the smallest mean validation error: SGD with "
        f"a cyclic lr has a higher test accuracy than SGD with a constant one ({_BEYOND} on the paired differences), and more steps above the "
        "critical lr"
    )
    arms, table = _accuracies(rows, config)
    if one not in arms or other not in arms:
        return Verdict(name, statement, NOT_TESTED, "an arm was lost", table)
    gain = [-100 * d for d in _paired(arms, one, other, "error_test")]
    more = _paired(arms, one, other, "critical_steps")
    effect = f"accuracy {text_of(gain)} points higher, share of critical steps {text_of(more)} higher"
    return Verdict(name, statement, _decide(beyond_zero(gain, 1), beyond_zero(more, 1)), effect, table)


def catapults_hurt_adagrad(rows: list[dict], config) -> Verdict:
    """AdaGrad whose lr is cycled generalises worse than AdaGrad at a constant lr, each tuned."""
    name, one, other = "catapults_hurt_adagrad", ("adagrad", "cyclic"), ("adagrad", "constant")
    statement = (
        "Each arm at the lr of one grid, in multiples of its own critical lr at initialisation, with the smallest mean validation error: AdaGrad "
        f"with a cyclic lr has a lower test accuracy than AdaGrad with a constant one ({_BEYOND} on the paired differences)"
    )
    arms, table = _accuracies(rows, config)
    if one not in arms or other not in arms:
        return Verdict(name, statement, NOT_TESTED, "an arm was lost", table)
    loss = [100 * d for d in _paired(arms, one, other, "error_test")]
    return Verdict(name, statement, _decide(beyond_zero(loss, 1)), f"accuracy {text_of(loss)} points lower", table)


def published_accuracies(rows: list[dict], config) -> Verdict:
    """The test accuracies of the student study's table."""
    name, tested = "published_accuracies", [("sgd", "constant"), ("adagrad", "constant"), ("adam", "constant")]
    statement = (
        "Mean test accuracy over seeds of SGD, AdaGrad and Adam at a constant, tuned lr within one point of the published table"
    )
    arms, table = _accuracies(rows, config)
    if config["data"]["name"] != "mnist" or any(arm not in arms for arm in tested):
        return Verdict(name, statement, NOT_TESTED, "not on MNIST, or an arm was lost", table)
    if min(len(arms[arm]) for arm in tested) < _MIN_SEEDS:
        return Verdict(name, statement, NOT_TESTED, f"fewer than {_MIN_SEEDS} seeds", table)
    off = {arm: float(np.mean(_accuracy(arms[arm]))) - PUBLISHED[arm] for arm in tested}
    effect = ", ".join(f"{arm[0]} " + (f"{d:+.2f} points" if np.isfinite(d) else "none") for arm, d in off.items())
    within = bool(max(map(abs, off.values())) <= 1) if np.isfinite([*off.values()]).all() else None
    return Verdict(name, statement, _decide(within), effect, table)


# Instruments that must run at every step for a claim to be checked.
NEEDS = {
    "first_catapult": ("measure.batch_kernel_every",),
    "spikes_are_catapults": ("measure.batch_kernel_every",),
    "catapult_follows_raise": ("measure.batch_kernel_every",),
    "exceedance_predicts_rise": ("measure.batch_kernel_every", "measure.loss_after_every", "measure.train_loss_every"),
    "sgd_spikes_are_catapults": ("measure.batch_kernel_every", "measure.train_loss_every", "measure.train_kernel_every"),
    "cycles_cause_catapults": ("measure.batch_kernel_every", "measure.train_loss_every"),
    "forbidding_catapults_hurts": ("measure.batch_kernel_every", "measure.train_loss_every"),
    "adagrad_outgrows_its_lr": ("measure.batch_kernel_every", "measure.preconditioner_every"),
    "catapults_condition_the_kernel": ("measure.batch_kernel_every",),
    "exceedance_predicts_for_every_optimizer": ("measure.batch_kernel_every", "measure.loss_after_every"),
}
# Fields that must not be 0 for one.
NEEDS_SOME = {
    "catapults_raise_alignment": ("run.stop_loss", "measure.test_every", "measure.agop_every", "measure.batch_kernel_every"),
    "forbidding_catapults_hurts": ("run.stop_loss", "measure.test_every", "measure.agop_every", "members.cap"),
    "small_batches_help": (
        "run.stop_loss", "measure.test_every", "measure.agop_every", "measure.batch_kernel_every", "data.validation_size",
    ),
    "alignment_over_optimizers": ("run.stop_loss", "measure.test_every", "measure.agop_every", "data.validation_size"),
    "catapults_help_sgd": ("measure.test_every", "measure.batch_kernel_every", "data.validation_size"),
    "published_accuracies": ("measure.test_every", "measure.batch_kernel_every", "data.validation_size"),
    "catapults_hurt_adagrad": ("measure.test_every", "measure.batch_kernel_every", "data.validation_size"),
    "catapults_help_beyond_cycles": ("measure.test_every", "measure.batch_kernel_every", "data.validation_size", "members.cap"),
}  # fmt: skip

OF_RUN = {
    "first_catapult": first_catapult,
    "spikes_are_catapults": spikes_are_catapults,
    "catapult_follows_raise": catapult_follows_raise,
    "exceedance_predicts_rise": exceedance_predicts_rise,
    "sgd_spikes_are_catapults": sgd_spikes_are_catapults,
    "cycles_cause_catapults": cycles_cause_catapults,
    "catapults_raise_alignment": catapults_raise_alignment,
    "forbidding_catapults_hurts": forbidding_catapults_hurts,
    "adagrad_outgrows_its_lr": adagrad_outgrows_its_lr,
    "catapults_condition_the_kernel": catapults_condition_the_kernel,
    "catapults_help_beyond_cycles": catapults_help_beyond_cycles,
}
OF_SWEEP = {
    "small_batches_help": small_batches_help,
    "alignment_over_optimizers": alignment_over_optimizers,
    "exceedance_predicts_for_every_optimizer": exceedance_predicts_for_every_optimizer,
    "catapults_help_sgd": catapults_help_sgd,
    "published_accuracies": published_accuracies,
    "catapults_hurt_adagrad": catapults_hurt_adagrad,
}
VERDICTS = OF_RUN | OF_SWEEP
# Columns of the rows of a sweep without which a claim is not tested.
_COLUMNS = {
    "small_batches_help": ("catapults", "loss_val", "loss_test", "agop_alignment"),
    "alignment_over_optimizers": ("loss_val", "loss_test", "agop_alignment"),
    "exceedance_predicts_for_every_optimizer": CONFUSION,
    **dict.fromkeys(
        ("catapults_help_sgd", "published_accuracies", "catapults_hurt_adagrad"),
        (*_ARM_AXES, "error_val", "error_test", "critical_steps"),
    ),
}


def of_run(name: str, record, config: dict[str, Any]) -> Verdict:
    """What a record says of a claim. Where the claim rests on the critical lr of every step, it must be known at every step of every
    member that goes on; otherwise nothing is said."""
    found = OF_RUN[name](record, config)
    dead = dead_members(record, config)
    if dead:
        found = found._replace(effect=f"{found.effect}; {dead_text(dead)} of {record.sizes['member']} members")
    if "measure.batch_kernel_every" not in NEEDS.get(name, ()):
        return found
    going = np.array([_going(record, config, m) for m in range(record.sizes["member"])])
    unknown = int((np.isnan(record["critical_lr_batch"].values) & going).sum())
    if not unknown:
        return found
    return found._replace(
        verdict=NOT_TESTED, effect=f"the critical lr is not known at {unknown} of {int(going.sum())} steps; {found.effect}"
    )


def of_sweep(name: str, rows: list[dict], config: dict[str, Any]) -> Verdict:
    """What the rows of a sweep say of a claim; nothing where a preset did not measure what it rests on."""
    missing = [column for column in _COLUMNS[name] if not all(column in row for row in rows)]
    if missing:
        return Verdict(
            name,
            " ".join(OF_SWEEP[name].__doc__.split()).rstrip("."),
            NOT_TESTED,
            f"not measured in every run: {', '.join(missing)}",
        )
    found, dead = OF_SWEEP[name](rows, config), sum(row.get("dead_from", -1) >= 0 for row in rows)
    return found._replace(effect=f"{found.effect}; dead: {dead} of {len(rows)} members") if dead else found
