"""Test accuracies with and without catapults, each arm at its own tuned learning rate."""

from __future__ import annotations

import numpy as np

from experiments.analysis import critical_fraction, last
from experiments.statistics import BEYOND, MIN_SEEDS, beyond_zero, text_of
from experiments.verdicts.registry import NOT_TESTED, RUN, SWEEP, Finding, claim, decide
from experiments.verdicts.sweep_rows import at_the_edge, paired, tuned_arms

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


def _accuracy(rows: list[dict]) -> list[float]:
    return [100 * (1 - row["error_test"]) for row in rows]


def _accuracies(rows: list[dict], config) -> tuple[dict[tuple, list[dict]], tuple[tuple[str, ...], ...]]:
    """The arms at their tuned learning rates, and a table of them."""
    arms, on_mnist = tuned_arms(rows, _ARM_AXES, "error_val", finished=False), config["data"]["name"] == "mnist"
    header = ("test accuracy, %", "lr / critical lr at start", "critical steps")
    table = [("optimizer", "schedule", *["published, %"] * on_mnist, *header)]
    for arm in dict.fromkeys(tuple(row[axis] for axis in _ARM_AXES) for row in rows):
        if (own := arms.get(arm)) is None:
            table.append((*arm, *[str(PUBLISHED.get(arm, "-"))] * on_mnist, "-", "a seed diverged at every lr", "-"))
            continue
        edge = at_the_edge([row for row in rows if tuple(row[axis] for axis in _ARM_AXES) == arm], own[0]["lr_given"])
        published = [str(PUBLISHED.get(arm, "-"))] * on_mnist
        critical = text_of([row["critical_steps"] for row in own])
        table.append((*arm, *published, text_of(_accuracy(own)), f"{own[0]['lr_given']:.3g}{edge}", critical))
    return arms, tuple(table)


@claim(of=SWEEP, given=("measure.loss_test_every", "measure.lambda_max_batch_every", "data.validation_size"), columns=_COLUMNS)
def catapults_help_sgd(rows: list[dict], config) -> Finding:
    """SGD whose lr is cycled, with catapults, generalises better than SGD at a constant lr, each tuned."""
    one, other = ("sgd", "cyclic"), ("sgd", "constant")
    statement = (
        "Each arm at the lr of one grid, in multiples of its own critical lr at initialisation, with the smallest mean validation error: SGD with "
        f"a cyclic lr has a higher test accuracy than SGD with a constant one ({BEYOND} on the paired differences), and more steps above the "
        "critical lr"
    )
    arms, table = _accuracies(rows, config)
    if one not in arms or other not in arms:
        return Finding(statement, NOT_TESTED, "an arm diverged", table)
    gain = [-100 * d for d in paired(arms, one, other, "error_test")]
    more = paired(arms, one, other, "critical_steps")
    effect = f"accuracy {text_of(gain)} points higher, fraction of critical steps {text_of(more)} higher"
    return Finding(statement, decide(beyond_zero(gain, 1), beyond_zero(more, 1)), effect, table)


@claim(of=SWEEP, given=("measure.loss_test_every", "measure.lambda_max_batch_every", "data.validation_size"), columns=_COLUMNS)
def catapults_hurt_adagrad(rows: list[dict], config) -> Finding:
    """AdaGrad whose lr is cycled generalises worse than AdaGrad at a constant lr, each tuned."""
    one, other = ("adagrad", "cyclic"), ("adagrad", "constant")
    statement = (
        "Each arm at the lr of one grid, in multiples of its own critical lr at initialisation, with the smallest mean validation error: AdaGrad "
        f"with a cyclic lr has a lower test accuracy than AdaGrad with a constant one ({BEYOND} on the paired differences)"
    )
    arms, table = _accuracies(rows, config)
    if one not in arms or other not in arms:
        return Finding(statement, NOT_TESTED, "an arm diverged", table)
    loss = [100 * d for d in paired(arms, one, other, "error_test")]
    return Finding(statement, decide(beyond_zero(loss, 1)), f"accuracy {text_of(loss)} points lower", table)


@claim(of=SWEEP, given=("measure.loss_test_every", "measure.lambda_max_batch_every", "data.validation_size"), columns=_COLUMNS)
def published_accuracies(rows: list[dict], config) -> Finding:
    """The test accuracies of the student study's table."""
    tested = [("sgd", "constant"), ("adagrad", "constant"), ("adam", "constant")]
    statement = (
        "Mean test accuracy over seeds of SGD, AdaGrad and Adam at a constant, tuned lr within one point of the published table"
    )
    arms, table = _accuracies(rows, config)
    if config["data"]["name"] != "mnist" or any(arm not in arms for arm in tested):
        return Finding(statement, NOT_TESTED, "not on MNIST, or an arm diverged", table)
    if min(len(arms[arm]) for arm in tested) < MIN_SEEDS:
        return Finding(statement, NOT_TESTED, f"fewer than {MIN_SEEDS} seeds", table)
    off = {arm: float(np.mean(_accuracy(arms[arm]))) - PUBLISHED[arm] for arm in tested}
    effect = ", ".join(f"{arm[0]} " + (f"{d:+.2f} points" if np.isfinite(d) else "none") for arm, d in off.items())
    within = bool(max(map(abs, off.values())) <= 1) if np.isfinite([*off.values()]).all() else None
    return Finding(statement, decide(within), effect, table)


@claim(of=RUN, given=("measure.loss_test_every", "measure.lambda_max_batch_every", "data.validation_size", "members.cap"))
def catapults_help_beyond_cycles(record, config) -> Finding:
    """The same cycles with and without catapults: what is left of the gain when the lr is held below its critical value."""
    caps, rates = record["cap"].values, record["lr_given"].values
    statement = (
        "Under the same cycles of the lr, without a cap and held below the critical lr, each at the lr of one grid with the smallest mean validation "
        f"error: a higher test accuracy where catapults are allowed ({BEYOND} on the paired differences), and more steps above the critical lr"
    )
    ends = {key: last(record, config, key) for key in ("error_val", "error_test")}
    critical, seeds = np.array([critical_fraction(record, config, m) for m in range(len(caps))]), record["seed"].values
    arms, parts = {}, []
    for word, own in (("allowed", np.isinf(caps)), ("held", np.isfinite(caps))):
        mean = {rate: ends["error_val"][own & (rates == rate)].mean() for rate in np.unique(rates[own])}
        known = {rate: value for rate, value in mean.items() if np.isfinite(value)}
        if not known:
            return Finding(statement, NOT_TESTED, f"no lr at which every seed of the arm {word} came to an end that is known")
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
    effect = f"accuracy {text_of(gain)} points higher, fraction of critical steps {text_of(more)} higher; " + "; ".join(parts)
    return Finding(statement, decide(beyond_zero(gain, 1), beyond_zero(more, 1)), effect)
