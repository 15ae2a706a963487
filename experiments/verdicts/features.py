"""Catapults, AGOP alignment and test loss of runs that end at the same training loss."""

from __future__ import annotations

import numpy as np

from catapult_jax.report.members import SAME_LOSS
from catapult_jax.report.statistics import BEYOND, beyond_zero, text_of
from experiments.verdicts.registry import (
    NOT_MEASURABLE,
    SWEEP,
    ZHU,
    Finding,
    claim,
    decide,
)
from experiments.verdicts.sweep_rows import rows_by_arm

_GIVEN = ("run.stop_loss", "measure.loss_test_every", "measure.agop_alignment_every", "measure.lambda_max_batch_every")
_COLUMNS = ("catapults", "raises", "schedule.raise_to", "loss_test", "agop_alignment")
_CEILING = 0.5  # least alignment of two references of one recipe


def not_measurable(rows: list[dict]) -> str | None:
    """The reason why the AGOP alignment of these runs can't be judged, or None; math.md, section 10.

    Two references of one recipe must agree (the ceiling), and untrained networks must be far from that (the floor).

    Args:
      rows: of a sweep, with ``agop_alignment_start``, and ``agop_ceiling`` where a second reference was given.
    """
    ceiling = rows[0].get("agop_ceiling", np.nan)
    floor = np.mean([row["agop_alignment_start"] for row in rows])
    if np.isnan(ceiling):
        return "the ceiling is not known: no second reference"
    if np.isnan(floor):
        return "the alignment of untrained networks is not known"
    if ceiling < _CEILING:
        return f"two references have an alignment of {ceiling:.3g} only (untrained networks {floor:.3g})"
    if not floor < ceiling / 2:
        return f"untrained networks have an alignment of {floor:.3g}, two references {ceiling:.3g}"
    return None


def _slopes(rows: list[dict], x: str, y: str) -> dict[int, float]:
    """The slope of ``y`` over ``x`` within each seed, by least squares; seeds with one value of ``x`` are left out."""
    slopes = {}
    for (seed,), members in rows_by_arm(rows, ("seed",)).items():
        a, b = (np.array([row[name] for row in members], float) for name in (x, y))
        if np.ptp(a) > 0:
            slopes[seed] = float(np.polyfit(a, b, 1)[0])
    return slopes


def _at_equal_loss(rows: list[dict], *, above: bool, least: float = 0.8) -> tuple[list[dict], str]:
    """The members with raises above or below the critical lr that ended at the loss to stop at; and why they are too few, or nothing."""
    arms = [row for row in rows if (row["schedule.raise_to"] > 1) == above]
    ended = [row for row in arms if row["finished"]]
    few = len(ended) < least * len(arms) or not arms
    return ended, f"{len(arms) - len(ended)} of {len(arms)} members did not end at that loss" if few else ""


def _raises_table(rows: list[dict]) -> tuple[tuple[str, ...], ...]:
    header = ("raised to", "raises", "members at that loss", "catapults", "AGOP alignment", "test loss", "steps")
    table = [header]
    for (to, raises), members in sorted(rows_by_arm(rows, ("schedule.raise_to", "raises")).items(), reverse=True):
        ended = [row for row in members if row["finished"]]
        means = (text_of([row[name] for row in ended]) for name in ("catapults", "agop_alignment", "loss_test", "steps"))
        table.append((f"{to:g} x critical lr", str(raises), f"{len(ended)} of {len(members)}", *means))
    return tuple(table)


def _statement_of_slope(outcome: str, sign: str, config) -> str:
    return (
        f"Among members trained to the same loss ({SAME_LOSS} to 1 times {config['run']['stop_loss']:g}) the slope of the {outcome} over the number of "
        f"catapults, within a seed, is {sign} ({BEYOND}), and at most one member in five did not end there"
    )


@claim(
    of=SWEEP,
    given=_GIVEN,
    columns=(*_COLUMNS, "agop_alignment_start"),
    title="More catapults of gradient descent raise the alignment at equal training loss",
    published="Gradient descent with more catapults, trained to the same loss, has a higher AGOP alignment with the true model",
    source=f"{ZHU}, abstract",
)
def catapults_raise_alignment(rows: list[dict], config) -> Finding:
    """More catapults, trained to the same loss: higher AGOP alignment."""
    statement = _statement_of_slope("AGOP alignment", "positive", config)
    if reason := not_measurable(rows):
        return Finding(statement, NOT_MEASURABLE, reason, _raises_table(rows))
    return _slope_finding(rows, statement, "agop_alignment", 1)


@claim(
    of=SWEEP,
    given=_GIVEN,
    columns=_COLUMNS,
    title="More catapults of gradient descent lower the test loss at equal training loss",
    published="Gradient descent with more catapults, trained to the same loss, has a better test performance",
    source=f"{ZHU}, abstract",
)
def catapults_lower_the_test_loss(rows: list[dict], config) -> Finding:
    """More catapults, trained to the same loss: lower test loss."""
    return _slope_finding(rows, _statement_of_slope("test loss", "negative", config), "loss_test", -1)


def _slope_finding(rows: list[dict], statement: str, outcome: str, sign: int) -> Finding:
    critical, problem = _at_equal_loss(rows, above=True)
    table = _raises_table(rows)
    if problem:
        return Finding(statement, NOT_MEASURABLE, problem, table)
    slopes = [*_slopes(critical, "catapults", outcome).values()]
    return Finding(statement, decide(beyond_zero(slopes, sign)), f"{text_of(slopes)} per catapult", table)


@claim(of=SWEEP, given=_GIVEN, columns=_COLUMNS, title="Raises to just below the critical lr do less than half as much")
def raises_below_critical_do_little(rows: list[dict], config) -> Finding:
    """Control: as many raises at the same times, to just below the critical lr, so without a catapult."""
    statement = (
        f"Among members trained to the same loss ({SAME_LOSS} to 1 times {config['run']['stop_loss']:g}) the slope of the test loss over the number of "
        "raises to 0.98 times the critical lr lies above half of the slope over the number of raises to 1.2 times the critical lr, within a seed, and the "
        f"latter is negative (both: {BEYOND})"
    )
    (critical, problem), (twins, problem_of_twins) = (_at_equal_loss(rows, above=above) for above in (True, False))
    table = _raises_table(rows)
    if problem or problem_of_twins:
        return Finding(statement, NOT_MEASURABLE, problem or f"twins: {problem_of_twins}", table)
    of_catapults, of_twins = (_slopes(part, "raises", "loss_test") for part in (critical, twins))
    falls = beyond_zero([*of_catapults.values()], -1)
    effect = f"{text_of([*of_twins.values()])} per raise below, {text_of([*of_catapults.values()])} above critical"
    if not falls:
        return Finding(statement, NOT_MEASURABLE, "no effect of catapults: " + effect, table)
    above_half = [of_twins[seed] - of_catapults[seed] / 2 for seed in of_twins if seed in of_catapults]
    return Finding(
        statement, decide(beyond_zero(above_half, 1)), effect, table, f"above half by {text_of(above_half)} per raise"
    )
