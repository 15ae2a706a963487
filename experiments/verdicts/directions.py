"""How many directions a rise of the loss needs: the smallest top eigenspace that holds nine tenths of it."""

from __future__ import annotations

import numpy as np

from catapult_jax.report.members import is_stochastic, running
from catapult_jax.report.statistics import BEYOND, MIN_SEEDS, beyond_zero, text_of
from experiments.verdicts.registry import MIN_SPIKES, NOT_MEASURABLE, RUN, Finding, Run, claim, decide

_PART = 0.9
_EIGENVECTORS = "top eigenvectors of the kernel of the training set"


def directions_of_rise(modes: np.ndarray, start: int, end: int, rise: float) -> int:
    """The number of top eigenvectors whose part of the loss rises by 90 % of the rise of the loss, or all of them.

    Args:
      modes: loss in each eigenvector, ``(step, mode)``, in descending order of the eigenvalues.
      start: step before the rise.
      end: step after it.
      rise: of the loss.

    >>> directions_of_rise(np.array([[1.0, 1.0], [1.5, 2.0]]), 0, 1, 1.5)
    2
    """
    reached = np.cumsum(modes[end] - modes[start]) >= _PART * rise
    return int(reached.argmax()) + 1 if reached.any() else modes.shape[1]


_NEEDS = {
    "of": RUN,
    "every_step": ("measure.lambda_max_batch_every", "measure.loss_train_every"),
    "given": ("measure.loss_modes",),
}


@claim(**_NEEDS, title="A spike rises in at most five directions")
def spikes_need_few_directions(run: Run) -> Finding:
    """The number of directions that a spike needs (s90)."""
    statement = f"In the median at most {run.settings.top_k} {_EIGENVECTORS} hold {_most_of_a_spike(run)}"
    of_spikes, of_others = _directions(run)
    if reason := _too_few(of_spikes, of_others):
        return Finding(statement, NOT_MEASURABLE, reason)
    median, seeds = np.median(_pooled(of_spikes)), len(np.unique(run.record["seed"].values))
    verdict = decide(bool(median <= run.settings.top_k) if len(of_spikes) >= MIN_SEEDS else None)
    details = f"only {len(of_spikes)} of {seeds} seeds have such spikes" if len(of_spikes) < seeds else ""
    return Finding(statement, verdict, f"median {median:g} directions", _table(of_spikes, of_others), details)


@claim(**_NEEDS, title="A spike rises in fewer directions than an ordinary rise")
def spikes_need_fewer_directions_than_other_rises(run: Run) -> Finding:
    """The control: s90 of spikes against that of the rises of single steps outside of spikes."""
    statement = (
        f"The mean of the log of the number of {_EIGENVECTORS} that hold {_most_of_a_spike(run)} is below that of the rises of single steps outside of "
        f"spikes ({BEYOND}, over seeds)"
    )
    of_spikes, of_others = _directions(run)
    if reason := _too_few(of_spikes, of_others):
        return Finding(statement, NOT_MEASURABLE, reason)
    both = [seed for seed in of_spikes if seed in of_others]
    fewer = [float(np.mean(np.log(of_spikes[seed])) - np.mean(np.log(of_others[seed]))) for seed in both]
    medians = f"median {np.median(_pooled(of_spikes)):g} directions; other rises {np.median(_pooled(of_others)):g}"
    effect = f"difference of the log {text_of(fewer)}; {medians}"
    return Finding(statement, decide(beyond_zero(fewer, -1)), effect, _table(of_spikes, of_others))


def _most_of_a_spike(run: Run) -> str:
    return f"90 % of the rise of a spike (factor {run.settings.factor}, onset to peak)"


def _directions(run: Run) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """The number of directions of each spike, and of each rise of a single step outside of spikes, by seed."""
    record, settings = run.record, run.settings
    name = "loss_train" if is_stochastic(settings) else "loss"
    of_spikes, of_others = {}, {}
    for m, events in enumerate(run.events(settings.factor)):
        steps, seed = int(running(record, settings, m).sum()), int(record["seed"].values[m])
        part = lambda kind, m=m, steps=steps: record[f"{name}_{kind}"].values[m, :steps].astype(float)
        modes, loss = part("modes"), part("top") + part("rest")
        is_rise = np.diff(loss) > 0
        for e in events:
            if e.kind not in ("divergence", "death"):
                number = directions_of_rise(modes, e.onset, e.peak, loss[e.peak] - loss[e.onset])
                of_spikes.setdefault(seed, []).append(number)
            is_rise[e.onset : e.end if e.end >= 0 else steps] = False
        for t in np.flatnonzero(is_rise & np.isfinite(modes).all(1)[:-1] & np.isfinite(modes).all(1)[1:]):
            of_others.setdefault(seed, []).append(directions_of_rise(modes, t, t + 1, loss[t + 1] - loss[t]))
    return of_spikes, of_others


def _pooled(of_seed: dict[int, list[int]]) -> np.ndarray:
    return np.array([value for values in of_seed.values() for value in values])


def _too_few(*rises: dict[int, list[int]]) -> str:
    """Why there is no verdict; empty: there are enough rises of both kinds."""
    spikes, others = (len(_pooled(of_seed)) for of_seed in rises)
    return f"{spikes} spikes, {others} other rises; fewer than {MIN_SPIKES}" if min(spikes, others) < MIN_SPIKES else ""


def _table(of_spikes: dict[int, list[int]], of_others: dict[int, list[int]]) -> tuple[tuple[str, ...], ...]:
    table = [("rises", "number", "median", "middle half", "largest")]
    for words, values in (("spikes", _pooled(of_spikes)), ("other rises", _pooled(of_others))):
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        table.append((words, str(len(values)), f"{median:g}", f"{low:g} to {high:g}", str(values.max())))
    return tuple(table)
