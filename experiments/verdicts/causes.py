"""What causes the effect of catapults: arms of one run that differ in single modes of each step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from catapult_jax.report.members import SAME_LOSS, finished, flags
from catapult_jax.report.statistics import beyond_zero, interval, text_of
from experiments.arms import ARMS
from experiments.verdicts.registry import (
    NOT_MEASURABLE,
    NOT_REPRODUCED,
    PARTLY,
    REPRODUCED,
    RUN,
    SWEEP,
    Finding,
    Run,
    claim,
    grade,
)

_LETTERS = {
    "none": "A",
    "remove_overshoot": "B",
    "placebo": "C",
    "low_bulk": "D",
    "cap": "E",
    "shuffled_cap": "F",
    "mean_cap": "G",
}
_CONTROLS = ("placebo", "low_bulk")  # they leave the overshoot as it is
_LEAST_OVERSHOOT = (
    5.0  # of the free arm, summed over its steps; the synthetic tasks had 27 to 67, the image tasks 0 to 1, in trials
)
_GIVEN = ("run.stop_loss", "measure.loss_test_every", "measure.agop_alignment_every", "members.intervention")


@claim(
    of=RUN,
    every_step=("measure.loss_train_every",),
    given=_GIVEN,
    min_seeds=10,
    title="The overshoot of a few modes lowers the test loss at equal training loss",
)
def overshoot_is_the_cause(run: Run) -> Finding:
    """The causal test: without the overshoot of the critical modes the test loss is higher, and no control does the same."""
    statement = (
        f"At equal training loss ({SAME_LOSS} to 1 times {run.settings.stop_loss:g}), (H1) the test loss of the arm remove_overshoot (B) is above that "
        "of the free arm (A), by the 95 % interval of the paired differences over seeds and a sign test, and (H2) the differences of the arms placebo (C) "
        "and low_bulk (D) lie, with their whole intervals, below half of that of B. Partly: H1 alone. Not measurable where the free arm has no overshoot "
        f"to remove: less than {_LEAST_OVERSHOOT:g} in all, in units of log gain"
    )
    arms = _paired_arms(run)
    if isinstance(arms, str):
        return Finding(statement, NOT_MEASURABLE, arms)
    difference = lambda outcome, name: arms.outcomes[outcome][name] - arms.outcomes[outcome]["none"]
    main = difference("test loss", "remove_overshoot")
    half = interval(main)[0] / 2
    is_cause = beyond_zero(main, 1)
    controls = [interval(difference("test loss", name))[2] < half for name in _CONTROLS]
    verdict = (
        NOT_MEASURABLE if is_cause is None else NOT_REPRODUCED if not is_cause else REPRODUCED if all(controls) else PARTLY
    )
    others = [name for name in arms.outcomes["test loss"] if name not in ("none", "remove_overshoot")]
    details = f"B above A in {int((main > 0).sum())} of {len(main)} seeds; " + ", ".join(
        f"{_LETTERS[name]} - A {text_of(difference('test loss', name))}" for name in others
    )
    details += f"; {arms.seeds}"
    if arms.overshoot < _LEAST_OVERSHOOT:
        return Finding(statement, NOT_MEASURABLE, f"free arm without overshoot: {arms.overshoot:.2g}", arms.table, details)
    return Finding(statement, verdict, f"test loss without overshoot minus with it: {text_of(main)}", arms.table, details)


@claim(
    of=RUN,
    every_step=("measure.loss_train_every",),
    given=_GIVEN,
    min_seeds=10,
    title="The overshoot lowers the test loss at equal steps and at an equal sum of lr",
)
def overshoot_helps_at_equal_effort(run: Run) -> Finding:
    """The same comparison after the same number of steps, and after the same sum of learning rates."""
    statement = (
        "The test loss of the arm remove_overshoot (B) is above that of the free arm (A) after as many steps, and at an equal sum of lr, by the 95 % interval "
        "of the paired differences over seeds and a sign test. Partly: one of the two. Not measurable where the free arm has no overshoot to remove"
    )
    arms = _paired_arms(run)
    if isinstance(arms, str):
        return Finding(statement, NOT_MEASURABLE, arms)
    if arms.overshoot < _LEAST_OVERSHOOT:
        return Finding(statement, NOT_MEASURABLE, f"free arm without overshoot: {arms.overshoot:.2g}")
    steps, lr = (arms.outcomes[name]["remove_overshoot"] - arms.outcomes[name]["none"] for name in _TEST_LOSSES[1:])
    effect = f"test loss without overshoot minus with it, at equal steps {text_of(steps)}, at an equal sum of lr {text_of(lr)}"
    return Finding(statement, grade(beyond_zero(steps, 1), beyond_zero(lr, 1)), effect)


class _Arms(NamedTuple):
    """The outcomes of all arms, of the seeds that ended in every arm."""

    outcomes: dict[str, dict[str, np.ndarray]]  # outcome -> arm -> value of each seed
    overshoot: float  # of the free arm, summed over its steps, mean over seeds
    seeds: str  # how many of them
    table: tuple[tuple[str, ...], ...]


def _paired_arms(run: Run) -> _Arms | str:
    """The outcomes of the seeds that ended in every arm, or the reason why there are too few."""
    record, start = run.record, run.config["schedule"]["cap_from"]
    by_arm = _by_arm(run)
    ok = finished(record, run.settings) & _kernel_is_known(record, start)
    seeds = [seed for seed in by_arm.get("none", {}) if all(seed in arm and ok[arm[seed]] for arm in by_arm.values())]
    if len(seeds) < 5 or not {"remove_overshoot", *_CONTROLS} <= set(by_arm):
        return f"{len(seeds)} seeds ended in every arm, of the arms {', '.join(by_arm)}"
    members = {name: np.array([arm[seed] for seed in seeds]) for name, arm in by_arm.items()}
    outcomes = _outcomes(record, members, start)
    rows = []
    for name in sorted(members, key=lambda name: _LETTERS.get(name, name)):
        means = [text_of(outcomes[outcome][name]) for outcome in outcomes]
        minus_a = ["" if name == "none" else text_of(outcomes[o][name] - outcomes[o]["none"]) for o in _TEST_LOSSES]
        rows.append((f"{_LETTERS[name]} {name}", *means, *minus_a))
    header = ("arm", *outcomes, *(f"{outcome}, minus A" for outcome in _TEST_LOSSES))
    overshoot = float(outcomes["sum of overshoot"]["none"].mean())
    return _Arms(outcomes, overshoot, f"{len(seeds)} of {len(by_arm['none'])} seeds ended in every arm", (header, *rows))


_TEST_LOSSES = ("test loss", "test loss at equal steps", "test loss at equal sum of lr")


def _by_arm(run: Run) -> dict[str, dict[int, int]]:
    """Member numbers, by arm and seed."""
    arms: dict[str, dict[int, int]] = {}
    for m, (code, seed) in enumerate(zip(run.record["intervention"].values, run.record["seed"].values, strict=True)):
        arms.setdefault(ARMS[int(code)], {})[int(seed)] = m
    return arms


def _outcomes(record, members: dict[str, np.ndarray], start: int) -> dict[str, dict[str, np.ndarray]]:
    """Outcome -> arm -> value of each seed."""
    ends = _ends(record)
    lr = np.where(np.arange(record.sizes["step"]) < ends[:, None], record["lr"].values, 0)
    travelled = lr.cumsum(1)
    equal_steps = np.min([ends[numbers] for numbers in members.values()], 0)
    equal_lr = np.min([travelled[numbers, -1] for numbers in members.values()], 0)
    moving = lambda m: slice(start, ends[m])
    per_member = {
        "test loss": lambda m, _: _last_measured(record, m, "loss_test", record.sizes["step"]),
        "test loss at equal steps": lambda m, i: _last_measured(record, m, "loss_test", int(equal_steps[i])),
        "test loss at equal sum of lr": lambda m, i: _last_measured(
            record, m, "loss_test", int(np.searchsorted(travelled[m], equal_lr[i]) + 1)
        ),
        "AGOP alignment": lambda m, _: _last_measured(record, m, "agop_alignment", record.sizes["step"]),
        "steps": lambda m, _: float(ends[m]),
        "mean lr over lr at the start": lambda m, _: float(
            (record["lr"].values[m, moving(m)] / record["lr0"].values[m]).mean()
        ),
        "sum of overshoot": lambda m, _: float(np.sum(record["overshoot"].values[m, moving(m)])),
        "removed fraction": lambda m, _: float(np.mean(record["removed_fraction"].values[m, moving(m)])),
    }
    return {
        outcome: {name: np.array([value(m, i) for i, m in enumerate(numbers)]) for name, numbers in members.items()}
        for outcome, value in per_member.items()
    }


def _kernel_is_known(record, start: int) -> np.ndarray:
    """Members whose kernel was finite at every step of the intervention: without it an arm does nothing that is defined."""
    critical, ends = record["critical_lr_batch"].values, _ends(record)
    return np.array([np.isfinite(row[start:end]).all() for row, end in zip(critical, ends, strict=True)])


def _ends(record) -> np.ndarray:
    """The number of steps that each member made."""
    stopped = flags(record, "stopped")
    return np.where(stopped.any(1), stopped.argmax(1), record.sizes["step"])


def _last_measured(record, m: int, name: str, end: int) -> float:
    """The last value of a series before a step; the first one after it, if there is none."""
    values = record[name].values[m]
    measured = np.flatnonzero(np.isfinite(values))
    before = measured[measured < end]
    return float(values[before[-1] if len(before) else measured[0]]) if len(measured) else float("nan")


@claim(
    of=SWEEP,
    given=("run.stop_loss", "measure.loss_test_every", "members.intervention"),
    columns=("loss_test", "intervention"),
    min_seeds=10,
    title="One forced overshoot lowers the test loss more than a sham kick does",
)
def forced_overshoot_helps(rows: list[dict], config: dict) -> Finding:
    """One forced overshoot of the critical modes at a low lr, against a kick of the same norm in the other modes."""
    del config
    statement = (
        "(H3) At equal training loss, one step in which the critical modes come out twice as large (dose 2) gives a lower test loss than "
        "its sham kick in the other modes, by the 95 % interval of the paired differences over seeds, averaged over the times of the step, and a sign test"
    )
    cells, dose, time = {}, "intervention.dose", "schedule.cap_from"
    for row in rows:
        if row["finished"] and np.isfinite([row.get(dose, np.nan), row.get(time, np.nan)]).all():
            cells[row.get(dose), row.get(time), ARMS[int(row["intervention"])], row["seed"]] = row["loss_test"]
    doses = sorted({key[0] for key in cells if key[0] is not None})
    times = sorted({key[1] for key in cells}, key=str)
    table, top = [("dose", "seeds", "force minus none", "sham minus none", "force minus sham")], None
    for value in doses:
        whole = [
            seed
            for seed in sorted({key[3] for key in cells})
            if all((value, t, arm, seed) in cells for t in times for arm in ("none", "force", "sham"))
        ]
        mean = {
            arm: np.array([np.mean([cells[value, t, arm, seed] for t in times]) for seed in whole])
            for arm in ("none", "force", "sham")
        }
        pairs = (("force", "none"), ("sham", "none"), ("force", "sham"))
        table.append((f"{value:g}", str(len(whole)), *(text_of(mean[a] - mean[b]) for a, b in pairs)))
        if value == max(doses):
            top = mean["force"] - mean["sham"]
    if top is None or len(top) < 5:
        return Finding(statement, NOT_MEASURABLE, "fewer than five seeds ended in every arm at the largest dose", tuple(table))
    helps = beyond_zero(top, -1)
    verdict = NOT_MEASURABLE if helps is None else REPRODUCED if helps else NOT_REPRODUCED
    return Finding(statement, verdict, f"dose {max(doses):g}: test loss {text_of(top)} against the sham", tuple(table))
