"""The claims on predictors, on made-up steps with a known answer."""

import doctest

import numpy as np

from experiments.verdicts import (
    NOT_MEASURABLE,
    NOT_REPRODUCED,
    NOT_TESTED,
    REPRODUCED,
    of_run,
    predictor_scores,
    predictors,
    read_run,
)
from tests.small_records import PREDICTORS, horizon_record, predictors_record


def verdict_of(record):
    return of_run("directional_predicts_the_step", read_run(record, PREDICTORS))


def test_directional_predicts_the_step_where_it_is_right_and_the_spectral_one_is_random():
    verdict = verdict_of(predictors_record())

    header, *rows = verdict.table
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert verdict.verdict == REPRODUCED
    assert table["c3 directional, batch"]["AUROC, T1 batch loss rises"].startswith("1 [1, 1]")
    assert table["c3 directional, batch"]["precision above 1"] == table["c3 directional, batch"]["recall above 1"] == "1"
    spectral = float(table["c1 lr / critical lr of the batch"]["AUROC, T1 batch loss rises"].split()[0])
    assert 0.35 < spectral < 0.65


def test_directional_predicts_the_step_no_better_than_a_spectral_one_that_is_right():
    assert verdict_of(predictors_record(spectral=True)).verdict == NOT_REPRODUCED


def test_directional_predicts_the_step_is_not_measurable_without_rises():
    record = predictors_record()
    record["loss_batch_after"] = record["loss_batch"] * 0.9
    assert verdict_of(record).verdict == NOT_MEASURABLE


def test_directional_predicts_the_step_of_an_update_that_is_no_descent_direction():
    """A multiple of 0 is a score of infinity: such a step counts as predicted to rise."""
    record = predictors_record()
    rises = record["loss_batch_after"] > record["loss_batch"]
    record["directional_batch"] = record["directional_batch"].where(~rises, 0.0)

    verdict = verdict_of(record)

    assert verdict.verdict == REPRODUCED and np.isfinite(float(verdict.effect.split("T1 ")[1].split()[0]))


def horizon_verdict_of(record):
    return of_run("spectral_predicts_the_horizon", read_run(record, PREDICTORS))


def test_spectral_predicts_the_horizon_where_the_trace_tells_and_the_directional_ones_are_random():
    verdict = horizon_verdict_of(horizon_record())

    header, *rows = verdict.table
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert verdict.verdict == REPRODUCED
    assert table["c7 noise kernel, trace"]["AUROC, T4 spike begins within 5 steps"] == "1 [1, 1]"
    assert table["c7 noise kernel, trace"]["AUPRC, T4 spike begins within 5 steps"] == "1 [1, 1]"
    assert table["base rate"]["AUROC, T4 spike begins within 5 steps"] == "0.5 [0.5, 0.5]"


def test_spectral_predicts_the_horizon_no_better_than_a_directional_one_that_tells():
    record = horizon_record(informative="directional_train")
    record["directional_train"] = 1 / record["directional_train"]
    assert horizon_verdict_of(record).verdict == NOT_REPRODUCED


def test_spectral_predicts_the_horizon_is_undecided_without_spikes_or_criteria():
    calm = horizon_record()
    calm["loss_train"][:] = 1.0
    assert horizon_verdict_of(calm).verdict == NOT_MEASURABLE
    assert horizon_verdict_of(predictors_record()).verdict == NOT_TESTED


def test_above_one_counts_the_steps_of_all_runs():
    record = predictors_record()
    members = predictor_scores.members_of(read_run(record, PREDICTORS))
    table = predictors.above_one(members, predictor_scores.C3, predictor_scores.T1)
    rises = (record["loss_batch_after"] > record["loss_batch"]).values[:, :-1]
    assert table[:4] == (rises.sum(), 0, 0, (~rises).sum())


def test_examples_in_docstrings():
    assert not doctest.testmod(predictors).failed
