"""How many directions a rise of the loss needs: the smallest top eigenspace that holds nine tenths of it."""

from __future__ import annotations

import numpy as np

from catapult_jax.report.members import is_stochastic, running
from catapult_jax.report.statistics import BEYOND, beyond_zero, text_of
from experiments.verdicts.registry import MIN_SPIKES, NOT_MEASURABLE, RUN, Finding, Run, claim, grade

_PART = 0.9


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


@claim(
    of=RUN,
    every_step=("measure.lambda_max_batch_every", "measure.loss_train_every"),
    given=("measure.loss_modes",),
    title="A spike rises in at most five directions, fewer than an ordinary rise",
)
def spikes_need_few_directions(run: Run) -> Finding:
    """s90 of spikes, against that of the rises of single steps outside of spikes."""
    record, settings = run.record, run.settings
    statement = (
        f"In the median at most {settings.top_k} top eigenvectors of the kernel of the training set hold 90 % of the rise of a spike (factor "
        f"{settings.factor}, onset to peak), and the mean of the log of that number is below that of the rises of single steps outside of spikes "
        f"({BEYOND}, over seeds). Partly: one of the two"
    )
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
    spikes, others = (np.array([v for values in part.values() for v in values]) for part in (of_spikes, of_others))
    if len(spikes) < MIN_SPIKES or len(others) < MIN_SPIKES:
        return Finding(statement, NOT_MEASURABLE, f"{len(spikes)} spikes, {len(others)} other rises; fewer than {MIN_SPIKES}")
    table = [("rises", "number", "median", "middle half", "largest")]
    for words, values in (("spikes", spikes), ("other rises", others)):
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        table.append((words, str(len(values)), f"{median:g}", f"{low:g} to {high:g}", str(values.max())))
    both = [seed for seed in of_spikes if seed in of_others]
    fewer = [np.mean(np.log(of_spikes[seed])) - np.mean(np.log(of_others[seed])) for seed in both]
    effect = f"median {np.median(spikes):g} directions; other rises {np.median(others):g}"
    verdict = grade(bool(np.median(spikes) <= settings.top_k), beyond_zero(fewer, -1))
    return Finding(statement, verdict, effect, tuple(table), f"difference of the log {text_of(fewer)}")
