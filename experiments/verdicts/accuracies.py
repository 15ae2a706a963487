"""Test accuracies with and without catapults, each arm at its own tuned learning rate."""

from __future__ import annotations

import numpy as np

from catapult_jax.report.analysis import critical_fraction
from catapult_jax.report.members import last
from catapult_jax.report.statistics import BEYOND, MIN_SEEDS, beyond_zero, text_of
from experiments.verdicts.registry import NOT_TESTED, RUN, SWEEP, Finding, Run, claim, decide
from experiments.verdicts.sweep_rows import at_the_edge, paired, rows_by_arm, tuned_arms

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
    """Test accuracies in percent."""
    return [100 * (1 - row["error_test"]) for row in rows]


def _accuracies(rows: list[dict], config) -> tuple[dict[tuple, list[dict]], tuple[tuple[str, ...], ...]]:
    """The arms at their tuned learning rates, and a table of them."""
    tuned, on_mnist = tuned_arms(rows, _ARM_AXES, "error_val", finished=False), config["data"]["name"] == "mnist"
    header = ("test accuracy, %", "lr / critical lr at start", "critical steps")
    table = [("optimizer", "schedule", *["published, %"] * on_mnist, *header)]
    for arm, members in rows_by_arm(rows, _ARM_AXES).items():
        published = [str(PUBLISHED.get(arm, "-"))] * on_mnist
        if arm not in tuned:
            table.append((*arm, *published, "-", "a seed diverged at every lr", "-"))
            continue
        lr = tuned[arm][0]["lr_given"]
        critical = text_of([row["critical_steps"] for row in tuned[arm]])
        accuracy = text_of(_accuracy(tuned[arm]))
        table.append((*arm, *published, accuracy, f"{lr:.3g}{at_the_edge(members, lr)}", critical))
    return tuned, tuple(table)


@claim(of=SWEEP, given=("measure.loss_test_every", "measure.lambda_max_batch_every", "data.validation_size"), columns=_COLUMNS)
def catapults_help_sgd(rows: list[dict], config) -> Finding:
    """SGD whose lr is cycled, with catapults, generalises better than SGD at a constant lr, each tuned."""
    cyclic, constant = ("sgd", "cyclic"), ("sgd", "constant")
    statement = (
        "Each arm takes the lr of one grid, in multiples of its own critical lr at initialisation, with the smallest mean validation error. "
        f"SGD with a cyclic lr has a higher test accuracy than SGD with a constant one ({BEYOND} on the paired differences), and more steps "
        "above the critical lr"
    )
    arms, table = _accuracies(rows, config)
    if cyclic not in arms or constant not in arms:
        return Finding(statement, NOT_TESTED, "an arm diverged", table)
    gain = [-100 * difference for difference in paired(arms, cyclic, constant, "error_test")]
    more = paired(arms, cyclic, constant, "critical_steps")
    effect = f"accuracy {text_of(gain)} points higher, fraction of critical steps {text_of(more)} higher"
    return Finding(statement, decide(beyond_zero(gain, 1), beyond_zero(more, 1)), effect, table)


@claim(of=SWEEP, given=("measure.loss_test_every", "measure.lambda_max_batch_every", "data.validation_size"), columns=_COLUMNS)
def catapults_hurt_adagrad(rows: list[dict], config) -> Finding:
    """AdaGrad whose lr is cycled generalises worse than AdaGrad at a constant lr, each tuned."""
    cyclic, constant = ("adagrad", "cyclic"), ("adagrad", "constant")
    statement = (
        "Each arm takes the lr of one grid, in multiples of its own critical lr at initialisation, with the smallest mean validation error. "
        f"AdaGrad with a cyclic lr has a lower test accuracy than AdaGrad with a constant one ({BEYOND} on the paired differences)"
    )
    arms, table = _accuracies(rows, config)
    if cyclic not in arms or constant not in arms:
        return Finding(statement, NOT_TESTED, "an arm diverged", table)
    decline = [100 * difference for difference in paired(arms, cyclic, constant, "error_test")]
    return Finding(statement, decide(beyond_zero(decline, 1)), f"accuracy {text_of(decline)} points lower", table)


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
    differences = {arm: float(np.mean(_accuracy(arms[arm]))) - PUBLISHED[arm] for arm in tested}
    number = lambda difference: f"{difference:+.2f} points" if np.isfinite(difference) else "none"
    effect = ", ".join(f"{arm[0]} {number(difference)}" for arm, difference in differences.items())
    is_known = np.isfinite([*differences.values()]).all()
    within = bool(max(map(abs, differences.values())) <= 1) if is_known else None
    return Finding(statement, decide(within), effect, table)


def _best_lr(errors: np.ndarray, lrs: np.ndarray, arm: np.ndarray) -> tuple[float, str] | None:
    """The lr of an arm with the smallest mean error, and a remark if it is an end of the grid; None: no mean is finite."""
    means = {lr: errors[arm & (lrs == lr)].mean() for lr in np.unique(lrs[arm])}
    finite = {lr: mean for lr, mean in means.items() if np.isfinite(mean)}
    if not finite:
        return None
    lr = min(finite, key=lambda lr: finite[lr])
    return lr, ", an end of the grid" if lr in (min(means), max(means)) else ""


@claim(of=RUN, given=("measure.loss_test_every", "measure.lambda_max_batch_every", "data.validation_size", "members.cap"))
def catapults_help_beyond_cycles(run: Run) -> Finding:
    """The same cycles with and without catapults: the gain that remains when the lr is held below its critical value."""
    record, settings = run.record, run.settings
    caps, lrs, seeds = (record[name].values for name in ("cap", "lr_given", "seed"))
    statement = (
        "Under the same cycles of the lr, once without a cap and once held below the critical lr, each at the lr of one grid with the smallest "
        f"mean validation error: a higher test accuracy where catapults are allowed ({BEYOND} on the paired differences), and more steps above "
        "the critical lr"
    )
    error_val, error_test = (last(record, settings, name) for name in ("error_val", "error_test"))
    critical = np.array([critical_fraction(record, settings, m) for m in range(len(caps))])
    arms, parts = {}, []
    for word, arm in (("allowed", np.isinf(caps)), ("held", np.isfinite(caps))):
        if (best := _best_lr(error_val, lrs, arm)) is None:
            return Finding(
                statement, NOT_TESTED, f"arm {word}: there is no lr at which the validation error of every seed is known"
            )
        lr, edge = best
        arms[word] = {seeds[m]: m for m in np.flatnonzero(arm & (lrs == lr))}
        members = [*arms[word].values()]
        parts.append(
            f"{word}: {text_of(100 * (1 - error_test[members]))} %, {lr:.3g} x critical lr at start{edge}, "
            f"critical steps {text_of(critical[members])}"
        )
    pairs = [(m, arms["held"][seed]) for seed, m in arms["allowed"].items() if seed in arms["held"]]
    gain = [100 * (error_test[capped] - error_test[free]) for free, capped in pairs]
    more = [critical[free] - critical[capped] for free, capped in pairs]
    effect = f"accuracy {text_of(gain)} points higher, fraction of critical steps {text_of(more)} higher; " + "; ".join(parts)
    return Finding(statement, decide(beyond_zero(gain, 1), beyond_zero(more, 1)), effect)
