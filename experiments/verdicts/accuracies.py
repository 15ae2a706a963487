"""Test accuracies of the student study on MNIST: its table, and what cycles of the learning rate change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from catapult_jax.report.analysis import critical_fraction
from catapult_jax.report.members import last
from catapult_jax.report.statistics import BEYOND, beyond_zero, number_text, text_of
from experiments.verdicts.registry import (
    NOT_MEASURABLE,
    NOT_TESTED,
    PARTLY,
    REPRODUCED,
    RUN,
    STUDY,
    SWEEP,
    Finding,
    Run,
    claim,
    decide,
    grade,
)
from experiments.verdicts.sweep_rows import at_the_edge, lr_with_least, paired, rows_by_arm, tuned_arms

# Test accuracies in percent of the two-layer network on MNIST, as published by the student study; math.md, section 6.
PUBLISHED = {
    ("sgd", "constant"): 95.38,
    ("sgd", "cyclic"): 97.65,
    ("adagrad", "constant"): 97.09,
    ("adagrad", "cyclic"): 95.91,
    ("adam", "constant"): 98.12,
}
_ARM_AXES = ("optimizer.name", "schedule.name")
_COLUMNS = (*_ARM_AXES, "error_val", "error_test", "critical_steps")
_GIVEN = ("measure.loss_test_every", "measure.lambda_max_batch_every", "data.validation_size")
_SHOWN_EPOCHS = (1, 5, 10, 20, 30)
_WITHIN = 1.0  # points
_MOST = 3  # arms within that many points, for "partly"


def _accuracy(rows: Sequence[dict]) -> list[float]:
    """Test accuracies in percent."""
    return [100 * (1 - row["error_test"]) for row in rows]


def _tuned_table(rows: list[dict], arms: Sequence[tuple]) -> tuple[dict[tuple, list[dict]], tuple[tuple[str, ...], ...]]:
    """The arms at their tuned learning rates, and a table of them."""
    tuned = tuned_arms(rows, _ARM_AXES, "error_val", finished=False)
    by_arm = rows_by_arm(rows, _ARM_AXES)
    table = [("optimizer", "schedule", "test accuracy, %", "lr / critical lr at start", "critical steps")]
    for arm in arms:
        if arm not in tuned:
            table.append((*arm, "-", "a seed diverged at every lr", "-"))
            continue
        lr = tuned[arm][0]["lr_given"]
        critical = text_of([row["critical_steps"] for row in tuned[arm]])
        table.append((*arm, text_of(_accuracy(tuned[arm])), f"{lr:.3g}{at_the_edge(by_arm[arm], lr)}", critical))
    return tuned, tuple(table)


@claim(
    of=SWEEP,
    given=_GIVEN,
    columns=(*_COLUMNS, "curves"),
    title="Test accuracies of five arms on MNIST",
    published="A two-layer network reaches 95.38 (SGD), 97.65 (SGD with catapults), 97.09 (AdaGrad), 95.91 (AdaGrad with catapults), 98.12 % (Adam)",
    source=f"{STUDY}, table",
)
def published_accuracies(rows: list[dict], config) -> Finding:
    """The test accuracies of the student study's table, at the number of epochs that fits them best."""
    statement = (
        "The study does not state its number of epochs. At one number of epochs from 1 to 30, the same for all arms, the mean test accuracies of all "
        f"five arms lie within {_WITHIN:g} point of the published ones; partly: those of at least {_MOST}. Each arm takes the lr of one grid with the smallest "
        "mean validation error at that epoch"
    )
    by_arm = rows_by_arm(rows, _ARM_AXES)
    if config["data"]["name"] != "mnist" or any(arm not in by_arm for arm in PUBLISHED):
        return Finding(statement, NOT_TESTED, "not on MNIST, or an arm is missing")
    epochs = rows[0]["curves"]["epoch"]
    curves = {arm: _tuned_curve(by_arm[arm], epochs) for arm in PUBLISHED}
    distance = np.stack([np.abs(curves[arm] - PUBLISHED[arm]) for arm in PUBLISHED])
    within = (distance <= _WITHIN).sum(0)
    usable = np.flatnonzero(np.isfinite(distance).all(0) & (epochs >= 1))
    if not len(usable):
        return Finding(statement, NOT_MEASURABLE, "no epoch at which every arm has an lr without divergence")
    best = min(usable, key=lambda i: (-within[i], distance[:, i].sum()))
    shown = [i for i in usable if epochs[i] in _SHOWN_EPOCHS]
    table = [("optimizer", "schedule", "published, %", f"{epochs[best]} epochs", *(f"{epochs[i]} epochs" for i in shown))]
    for arm, published in PUBLISHED.items():
        table.append((*arm, f"{published}", *(f"{curves[arm][i]:.2f}" for i in (best, *shown))))
    verdict = REPRODUCED if within[best] == len(PUBLISHED) else PARTLY if within[best] >= _MOST else decide(False)
    effect = f"{within[best]} of {len(PUBLISHED)} arms within {_WITHIN:g} point, after {epochs[best]} epochs"
    return Finding(statement, verdict, effect, tuple(table))


def _tuned_curve(rows: list[dict], epochs: np.ndarray) -> np.ndarray:
    """The mean test accuracy of an arm at each epoch, at the lr with the smallest mean validation error at that epoch; NaN: no such lr."""
    accuracies = np.full(len(epochs), np.nan)
    for i in range(len(epochs)):
        at = [row | {"error_val": row["curves"]["error_val"][i], "error_test": row["curves"]["error_test"][i]} for row in rows]
        best = lr_with_least(at, "error_val", finished=False)
        if best:
            accuracies[i] = np.mean(_accuracy(best))
    return accuracies


class _Peak(NamedTuple):
    """Cycles up to an lr against this lr held constant."""

    gain: np.ndarray  # of the cycles, in points, for each seed
    critical_steps: list[float]  # with cycles, for each seed
    constant: float  # mean accuracy without cycles, in percent


def _same_peaks(rows: list[dict], name: str) -> tuple[list[tuple], dict[float, _Peak]]:
    """The rows of a table, one for each peak of the lr; and the peaks at which no seed diverged."""
    arms = rows_by_arm(rows, (*_ARM_AXES, "lr_given"))
    table, peaks = [], {}
    for lr in dict.fromkeys(row["lr_given"] for row in rows):
        cyclic, constant = (arms.get((name, schedule, lr), []) for schedule in ("cyclic", "constant"))
        if not cyclic or not constant or not all(row["active"] for row in (*cyclic, *constant)):
            table.append((f"{lr:.3g}", "a seed diverged, or no run", "", "", ""))
            continue
        pair = {("cyclic",): cyclic, ("constant",): constant}
        gain = -100 * np.array(paired(pair, ("cyclic",), ("constant",), "error_test"))
        peaks[lr] = peak = _Peak(gain, [row["critical_steps"] for row in cyclic], float(np.mean(_accuracy(constant))))
        numbers = (text_of(_accuracy(constant)), text_of(_accuracy(cyclic)), text_of(gain), text_of(peak.critical_steps))
        table.append((f"{lr:.3g}", *numbers))
    return table, peaks


_PEAK_HEADER = ("lr / critical lr at start", "constant, %", "cyclic, %", "gain, points", "critical steps with cycles")


@claim(
    of=SWEEP,
    given=_GIVEN,
    columns=_COLUMNS,
    title="SGD has a higher test accuracy with cycles than at their peak held constant",
    published="SGD with a cyclic lr, which makes catapults, has a higher test accuracy (97.65 %) than SGD without (95.38 %)",
    source=f"{STUDY}, table",
)
def catapults_help_sgd(rows: list[dict], config) -> Finding:
    """SGD whose lr is cycled up to a peak generalises better than SGD at that lr."""
    del config
    return _at_the_same_peaks(rows, "sgd", 1)


@claim(
    of=SWEEP,
    given=_GIVEN,
    columns=_COLUMNS,
    title="AdaGrad has a lower test accuracy with cycles than at their peak held constant",
    published="AdaGrad with a cyclic lr has a lower test accuracy (95.91 %) than AdaGrad without (97.09 %)",
    source=f"{STUDY}, table",
)
def catapults_hurt_adagrad(rows: list[dict], config) -> Finding:
    """AdaGrad whose lr is cycled up to a peak generalises worse than AdaGrad at that lr."""
    del config
    return _at_the_same_peaks(rows, "adagrad", -1)


def _at_the_same_peaks(rows: list[dict], name: str, sign: int) -> Finding:
    """Whether cycles with critical steps raise (1) or lower (-1) the test accuracy of an optimizer, at each peak of the lr."""
    higher, gain_or_loss = ("higher", "gain") if sign > 0 else ("lower", "loss")
    statement = (
        f"After 30 epochs, at every peak of one grid at which no seed diverges and cycles have critical steps in every seed: a {higher} test accuracy with cycles up "
        f"to this lr than at this lr held constant ({BEYOND} on the paired differences). Partly: at some of the peaks"
    )
    table, peaks = _same_peaks(rows, name)
    tested = [peak for peak in peaks.values() if min(peak.critical_steps) > 0]
    if not tested:
        return Finding(statement, NOT_MEASURABLE, "no peak with critical steps and without divergence", (_PEAK_HEADER, *table))
    holds = [beyond_zero(peak.gain, sign) for peak in tested]
    in_order = sorted(tested, key=lambda peak: float(np.mean(sign * peak.gain)))
    sizes = [f"{text_of(sign * peak.gain)} points from {number_text(peak.constant)} %" for peak in in_order]
    words = f"{gain_or_loss} {sizes[0]}" if len(sizes) == 1 else f"smallest {gain_or_loss} {sizes[0]}, largest {sizes[-1]}"
    effect = f"at {sum(map(bool, holds))} of {len(holds)} peaks; {words}"
    return Finding(statement, grade(*holds), effect, (_PEAK_HEADER, *table))


@claim(of=SWEEP, given=_GIVEN, columns=_COLUMNS, title="Cycles help SGD also where both lrs are tuned")
def cycles_help_tuned_sgd(rows: list[dict], config) -> Finding:
    """SGD with cycles against SGD at a constant lr, each at its own tuned lr."""
    del config
    return _tuned_gain(rows, ("sgd", "cyclic"), ("sgd", "constant"), "SGD with a cyclic lr", "SGD with a constant one")


@claim(of=SWEEP, given=_GIVEN, columns=_COLUMNS, title="Cycles help SGD more than one decay of the lr at the end")
def cycles_help_beyond_decay(rows: list[dict], config) -> Finding:
    """SGD with cycles against SGD at a constant lr that falls at the end, as every cycle does; each at its own tuned lr."""
    del config
    return _tuned_gain(rows, ("sgd", "cyclic"), ("sgd", "decay"), "SGD with a cyclic lr", "SGD whose lr falls once, at the end")


def _tuned_gain(rows: list[dict], arm: tuple, control: tuple, words: str, of_control: str) -> Finding:
    """Whether an arm has a higher test accuracy than a control, each at its tuned lr."""
    statement = (
        f"After 30 epochs, each at the lr of one grid with the smallest mean validation error: {words} has a higher test accuracy than {of_control} "
        f"({BEYOND} on the paired differences)"
    )
    tuned, table = _tuned_table(rows, (arm, control))
    if not {arm, control} <= set(rows_by_arm(rows, _ARM_AXES)):
        return Finding(statement, NOT_TESTED, "an arm is missing", table)
    if arm not in tuned or control not in tuned:
        return Finding(statement, NOT_MEASURABLE, "a seed of an arm diverged at every lr", table)
    gain = [-100 * difference for difference in paired(tuned, arm, control, "error_test")]
    return Finding(statement, decide(beyond_zero(gain, 1)), f"{text_of(gain)} points higher", table)


def _best_lr(errors: np.ndarray, lrs: np.ndarray, arm: np.ndarray) -> tuple[float, str] | None:
    """The lr of an arm with the smallest mean error, and a remark if it is an end of the grid; None: no mean is finite."""
    means = {lr: errors[arm & (lrs == lr)].mean() for lr in np.unique(lrs[arm])}
    finite = {lr: mean for lr, mean in means.items() if np.isfinite(mean)}
    if not finite:
        return None
    lr = min(finite, key=lambda lr: finite[lr])
    return lr, ", an end of the grid" if lr in (min(means), max(means)) else ""


@claim(of=RUN, given=(*_GIVEN, "members.cap"), title="Cycles with catapults beat the same cycles capped below critical")
def catapults_help_beyond_cycles(run: Run) -> Finding:
    """The same cycles with and without catapults: the gain that remains when the lr stays below its critical value."""
    record, settings = run.record, run.settings
    caps, lrs, seeds = (record[name].values for name in ("cap", "lr_given", "seed"))
    statement = (
        "Under the same cycles of the lr, once without a cap and once capped at 0.9 times the critical lr, each at the lr of one grid with the smallest "
        f"mean validation error: a higher test accuracy where catapults are allowed ({BEYOND} on the paired differences), and more steps above "
        "the critical lr"
    )
    error_val, error_test = (last(record, settings, name) for name in ("error_val", "error_test"))
    critical = np.array([critical_fraction(record, settings, m) for m in range(len(caps))])
    arms, parts = {}, []
    for word, arm in (("free", np.isinf(caps)), ("capped", np.isfinite(caps))):
        if (best := _best_lr(error_val, lrs, arm)) is None:
            return Finding(
                statement, NOT_MEASURABLE, f"arm {word}: there is no lr at which the validation error of every seed is known"
            )
        lr, edge = best
        arms[word] = {seeds[m]: m for m in np.flatnonzero(arm & (lrs == lr))}
        members = [*arms[word].values()]
        parts.append(
            f"{word}: {text_of(100 * (1 - error_test[members]))} %, {lr:.3g} x critical lr at start{edge}, "
            f"critical steps {text_of(critical[members])}"
        )
    pairs = [(m, arms["capped"][seed]) for seed, m in arms["free"].items() if seed in arms["capped"]]
    gain = [100 * (error_test[capped] - error_test[free]) for free, capped in pairs]
    more = [critical[free] - critical[capped] for free, capped in pairs]
    details = f"fraction of critical steps {text_of(more)} higher; " + "; ".join(parts)
    verdict = decide(beyond_zero(gain, 1), beyond_zero(more, 1))
    return Finding(statement, verdict, f"{text_of(gain)} points higher", details=details)
