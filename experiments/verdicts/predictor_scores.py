"""Scores that may tell of a rise or a spike of the loss, what they should tell, and how well each one ranks the steps of a run.

The protocol, which docs/predictors.md states: a run is one member, with constant lr and seed. Every number is taken within a run. Means and
intervals are over runs, never over steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy  # scipy.optimize takes a while: it is loaded at its first use

from catapult_jax.criteria import spike_score
from catapult_jax.events import Event
from catapult_jax.metrics import auroc
from catapult_jax.report.members import running
from experiments.verdicts.registry import Run

MIN_OF_EACH = 5  # steps at which it happens, and at which it does not, that a run must have to count
FACTOR = 1.5  # of a spike
HORIZONS = (1, 2, 5, 10)  # steps within which a spike begins
WINDOW = 20  # steps before a step, for the 6-sigma score: the runs are shorter than the 128 of others
_PENALTY = 1.0  # of the squares of the weights of the logistic model
_CLIP = 5.0  # standard deviations, for its features

C1, C2, C3 = "c1 lr / critical lr of the batch", "c2 c1 with the Hessian", "c3 directional, batch"
C4, C5, C6 = "c4 c3 with the Hessian", "c5 directional, training set", "c6 Batch Sharpness"
C7, C7_TRACE, C8 = "c7 noise kernel, norm", "c7 noise kernel, trace", "c8 line search, batch"
C8_OTHER, C9, C10 = "c8 line search, another batch", "c9 Hessian along P^-1 g", "c10 heavy ball, mean square"
T1, T2, T3 = "T1 batch loss rises", "T2 training loss rises", "T3 training loss rises by a tenth"
T4 = {h: f"T4 spike begins within {h} step{'s' if h > 1 else ''}" for h in HORIZONS}
TARGETS = (T1, T2, T3, *T4.values())

_Series = dict[str, np.ndarray]  # name -> values, (steps,)


class Criterion(NamedTuple):
    """A score with the threshold 1, above which theory expects the target in this step."""

    of: Callable[[_Series], np.ndarray]
    series: tuple[str, ...]  # that it needs
    target: str


class Member(NamedTuple):
    """The steps of one run. Each array is ``(steps,)``."""

    seed: int
    scores: dict[str, np.ndarray]  # criterion or baseline -> score
    happens: dict[str, np.ndarray]  # target -> whether it happens
    counts: dict[str, np.ndarray]  # target -> whether the step counts


def _inverse(multiple: np.ndarray) -> np.ndarray:
    """The score of a multiple; infinite where there is no descent direction."""
    with np.errstate(divide="ignore"):
        return np.where(multiple > 0, 1 / np.where(multiple > 0, multiple, 1), np.where(np.isnan(multiple), np.nan, np.inf))


def _as_it_is(name: str, target: str) -> Criterion:
    return Criterion(lambda series: series[name], (name,), target)


CRITERIA = {
    C1: Criterion(lambda series: series["lr"] / series["critical_lr_batch"], ("lr", "critical_lr_batch"), T1),
    C2: _as_it_is("criterion_c2", T1),
    C3: Criterion(lambda series: _inverse(series["directional_batch"]), ("directional_batch",), T1),
    C4: _as_it_is("criterion_c4", T1),
    C5: Criterion(lambda series: _inverse(series["directional_train"]), ("directional_train",), T2),
    C6: _as_it_is("criterion_c6", T2),
    C7: _as_it_is("criterion_c7", T2),
    C7_TRACE: _as_it_is("criterion_c7_trace", T2),
    C8: _as_it_is("criterion_c8", T1),
    C8_OTHER: _as_it_is("criterion_c8_other", T2),
    C9: _as_it_is("criterion_c9", T1),
    C10: _as_it_is("criterion_c10", T2),
}
BASE_RATE = "base rate"  # a constant score: its average precision is the base rate
# Baseline -> its score, and the series that it needs. The scores are also the features of the logistic model, hence the logarithms.
BASELINES: dict[str, tuple[Callable[[_Series], np.ndarray], tuple[str, ...]]] = {
    BASE_RATE: (lambda series: np.zeros_like(series["lr"]), ("lr",)),
    "lr": (lambda series: np.log(series["lr"]), ("lr",)),
    "loss of the batch": (lambda series: np.log(series["loss_batch"]), ("loss_batch",)),
    "training loss": (lambda series: np.log(series["loss_train"]), ("loss_train",)),
    "|g|^2 / loss of the batch": (
        lambda series: np.log(series["gradient_norm2_batch"] / series["loss_batch"]),
        ("gradient_norm2_batch", "loss_batch"),
    ),
    "rise of the training loss in the last step": (
        lambda series: np.append(np.nan, np.diff(np.log(series["loss_train"]))),
        ("loss_train",),
    ),
    "fraction of the training loss in the top 5": (
        lambda series: series["loss_train_top5_fraction"],
        ("loss_train_top5_fraction",),
    ),
    "steps since the last spike": (lambda series: np.log1p(series["since_spike"]), ("since_spike",)),
    f"6-sigma score over {WINDOW} steps": (lambda series: spike_score(series["loss_train"], window=WINDOW), ("loss_train",)),
}
_ALWAYS = ("lr", "critical_lr_batch", "directional_batch", "directional_train", "loss_batch", "loss_batch_after", "loss_train")
_MORE = (
    *(name for criterion in CRITERIA.values() for name in criterion.series),
    "gradient_norm2_batch",
    "loss_train_top5_fraction",
)


# The steps of a run.


def members_of(run: Run) -> list[Member]:
    """The steps of each member of a run: scores, targets, and which steps count.

    A step counts if the member is running and all series are known; for T1 to T3 if the next training loss is finite; for T4 if no spike
    is open, and the record shows whether one begins within the horizon. Scores whose series are not measured at every step are left out.
    """
    measures_all = run.config["measure"]["criteria_every"] == 1
    names = dict.fromkeys((*_ALWAYS, *(name for name in _MORE if measures_all and name in run.record)))
    events = run.events(FACTOR)
    return [_member(run, m, tuple(names), events[m]) for m in range(run.record.sizes["member"])]


def _member(run: Run, m: int, names: tuple[str, ...], events: list[Event]) -> Member:
    series = {name: run.record[name].values[m].astype(float) for name in names}
    known = np.all([~np.isnan(values) for values in series.values()], 0) & running(run.record, run.settings, m)
    loss, steps = series["loss_train"], len(known)
    series["since_spike"] = since_spike(events, steps)
    following = np.append(loss[1:], np.nan)
    happens = {
        T1: series["loss_batch_after"] > series["loss_batch"],
        T2: following > loss,
        T3: following > 1.1 * loss,
    }
    counts = {name: known & np.isfinite(following) for name in happens}
    for h, name in T4.items():
        happens[name], is_seen = spike_begins(events, steps, h)
        counts[name] = known & is_seen & (happens[name] | np.isfinite(np.append(loss[h:], np.full(min(h, steps), np.nan))))
    functions = {name: (c.of, c.series) for name, c in CRITERIA.items()} | BASELINES
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = {name: of(series) for name, (of, needs) in functions.items() if set(needs) <= set(series)}
    return Member(int(run.record["seed"].values[m]), scores, happens, counts)


def spike_begins(events: list[Event], steps: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether a spike begins in this step or in the next ``horizon - 1`` ones, and at which steps none is open already.

    The onset of a spike is the last step at its level: with that step's update the loss begins to rise. The spike is open from the next
    step on, up to the step before the one at which it closes.

    Args:
      events: of one member.
      steps: number of steps.
      horizon: ``h``, 1 or more.

    >>> from catapult_jax import find_events
    >>> loss = np.array([1.0, 1.0, 1.0, 2.0, 3.0, 1.0, 0.9])
    >>> begins, outside = spike_begins(find_events(loss, np.ones(7), np.ones(7)), 7, 2)
    >>> begins.tolist()
    [False, True, True, False, False, False, False]
    >>> outside.tolist()
    [True, True, True, False, False, True, True]
    """
    begins, outside = np.zeros(steps, bool), np.ones(steps, bool)
    for event in events:
        begins[max(0, event.onset - horizon + 1) : event.onset + 1] = True
        outside[event.onset + 1 : event.end if event.end >= 0 else steps] = False
    return begins, outside


def since_spike(events: list[Event], steps: int) -> np.ndarray:
    """Steps since the last spike closed; before the first one, since the start.

    Args:
      events: of one member.
      steps: number of steps.
    """
    closed = np.zeros(steps, int)
    for event in events:
        if event.end >= 0:
            closed[event.end :] = event.end
    return (np.arange(steps) - closed).astype(float)


# How well a score ranks the steps.


def within_runs(
    members: list[Member], name: str, target: str, measure: Callable[[np.ndarray, np.ndarray], float] = auroc
) -> np.ndarray:
    """A measure of a score for a target, within each run.

    Args:
      members: from :func:`members_of`.
      name: of the score.
      target: one of :data:`TARGETS`.
      measure: of ``(scores, happened)``: :func:`auroc` or :func:`average_precision`.

    Returns:
      One number for each run; NaN for a run with too few steps of either kind.
    """
    return _within_runs(members, [member.scores[name] for member in members], target, measure)


def _within_runs(members: list[Member], scores: list[np.ndarray], target: str, measure: Callable) -> np.ndarray:
    values = []
    for member, score in zip(members, scores, strict=True):
        counts = member.counts[target]
        happened = member.happens[target][counts]
        has_both = min(happened.sum(), (~happened).sum()) >= MIN_OF_EACH
        values.append(measure(score[counts], happened) if has_both else np.nan)
    return np.array(values)


def difference(members: list[Member], name: str, other: str, target: str) -> np.ndarray:
    """Area under the ROC curve of a score minus that of another one: for each seed the mean of its runs that count.

    Args:
      members: from :func:`members_of`.
      name: of the score.
      other: of the score that is subtracted.
      target: one of :data:`TARGETS`.

    Returns:
      One number for each seed that has a run that counts.
    """
    values = within_runs(members, name, target) - within_runs(members, other, target)
    seeds = np.array([member.seed for member in members])
    counts = np.isfinite(values)
    return np.array([values[counts & (seeds == seed)].mean() for seed in np.unique(seeds[counts])])


# A logistic model of all baselines.


def logistic_within_runs(members: list[Member], target: str, criterion: str | None = None) -> np.ndarray:
    """Area under the ROC curve, within each run, of a logistic model that is fitted to all other runs.

    Args:
      members: from :func:`members_of`.
      target: one of :data:`TARGETS`.
      criterion: a feature beside the baselines; None: the baselines alone.

    Returns:
      One number for each run; NaN for a run with too few steps of either kind.
    """
    names = [name for name in BASELINES if name != BASE_RATE and name in members[0].scores]
    features = [np.stack([member.scores[name] for name in names], 1) for member in members]
    if criterion is not None:
        with np.errstate(divide="ignore"):
            extra = [np.log(np.clip(member.scores[criterion], 1e-3, 1e3)) for member in members]
        features = [np.column_stack([own, more]) for own, more in zip(features, extra, strict=True)]
    counts, happens = ([getattr(member, field)[target] for member in members] for field in ("counts", "happens"))
    predicted = []
    for m in range(len(members)):
        others = [i for i in range(len(members)) if i != m]
        x = np.concatenate([features[i][counts[i]] for i in others]) if others else features[m][:0]
        y = np.concatenate([happens[i][counts[i]] for i in others]) if others else happens[m][:0]
        predicted.append(_fitted(x, y, features[m]))
    return _within_runs(members, predicted, target, auroc)


def _fitted(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Log odds at the rows of ``at``, of a logistic model of ``y`` given ``x`` with an l2 penalty. Unknown features count as their mean."""
    if y.all() or not y.any():
        return np.zeros(len(at))
    limited = [np.clip(rows, -1e6, 1e6) for rows in (x, at)]
    known = np.ma.masked_invalid(limited[0])
    mean, spread = known.mean(0).filled(0.0), known.std(0).filled(0.0)
    scaled = [np.nan_to_num(np.clip((rows - mean) / np.where(spread > 0, spread, 1), -_CLIP, _CLIP)) for rows in limited]
    x, at = (np.column_stack([np.ones(len(rows)), rows]) for rows in scaled)
    sign = np.where(y, 1.0, -1.0)
    penalised = _PENALTY * np.append(0.0, np.ones(x.shape[1] - 1))  # not the constant

    def objective(w):
        margin = sign * (x @ w)
        slope = -sign * scipy.special.expit(-margin)
        return np.logaddexp(0, -margin).sum() + (penalised * w**2).sum() / 2, x.T @ slope + penalised * w

    return at @ scipy.optimize.minimize(objective, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x
