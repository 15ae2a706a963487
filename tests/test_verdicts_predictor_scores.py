"""Scores, targets and their ranking, on made-up steps with a known answer."""

import doctest

import numpy as np
import pytest

from catapult_jax import find_events
from experiments.verdicts import predictor_scores as ps
from experiments.verdicts import read_run
from tests.small_records import PREDICTORS, horizon_record, predictors_record


def members_of(record, config=PREDICTORS):
    return ps.members_of(read_run(record, config))


def with_score(members, scores):
    """The members with a score of the name ``mine``."""
    return [m._replace(scores=m.scores | {"mine": score}) for m, score in zip(members, scores, strict=True)]


@pytest.mark.parametrize("horizon", ps.HORIZONS)
def test_members_of_has_the_windows_of_a_spike_right_at_their_edges(horizon):
    record = horizon_record()
    for member, onsets in zip(members_of(record), record.attrs["onsets"], strict=True):
        happens, counts = member.happens[ps.T4[horizon]], member.counts[ps.T4[horizon]]
        for onset in onsets:
            assert happens[onset - horizon + 1 : onset + 1].all()
            assert not happens[onset - horizon] and not happens[onset + 1]
            assert not counts[onset + 1 : onset + 3].any()  # the spike is open
            assert counts[onset] and counts[onset + 3] == (onset + 3 + horizon <= 99)  # it closes in that step


def test_members_of_leaves_out_steps_whose_window_is_not_on_record():
    member = members_of(horizon_record())[0]
    for h, name in ps.T4.items():
        last = [step for step in np.flatnonzero(member.counts[name]) if not member.happens[name][step]][-1]
        assert last == 99 - h
    assert not member.counts[ps.T2][-1] and member.counts[ps.T2][-2]


def test_members_of_leaves_out_criteria_that_are_not_measured_at_every_step():
    sparse = PREDICTORS | {"measure": PREDICTORS["measure"] | {"criteria_every": 5}}
    assert ps.C7_TRACE in members_of(horizon_record())[0].scores
    assert ps.C7_TRACE not in members_of(horizon_record(), sparse)[0].scores
    assert set(members_of(predictors_record())[0].scores) & set(ps.CRITERIA) == {ps.C1, ps.C3, ps.C5}


def test_spike_begins_of_an_open_spike():
    """The loss rises at step 2 and stays high to the end."""
    events = find_events([1.0, 1.0, 1.0, 4.0, 4.0, 4.0], np.ones(6), np.ones(6))
    begins, outside = ps.spike_begins(events, 6, 1)
    assert begins.tolist() == [False, False, True, False, False, False]
    assert outside.tolist() == [True, True, True, False, False, False]


def test_since_spike_counts_from_its_close():
    events = find_events([1.0, 1.0, 3.0, 1.0, 1.0, 1.0], np.ones(6), np.ones(6))
    assert ps.since_spike(events, 6).tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("target", ps.TARGETS)
def test_within_runs_of_a_score_that_is_the_target(target):
    members = members_of(horizon_record(members=10))
    right = with_score(members, [m.happens[target].astype(float) for m in members])
    rng = np.random.default_rng(1)
    shuffled = with_score(members, [rng.permutation(m.happens[target]).astype(float) for m in members])
    areas = ps.within_runs(right, "mine", target)
    assert (areas[np.isfinite(areas)] == 1).all() and np.isfinite(areas).sum() >= 8
    assert abs(np.nanmean(ps.within_runs(shuffled, "mine", target)) - 0.5) < 0.1


def test_within_runs_leaves_out_runs_with_few_steps_of_a_kind():
    record = horizon_record()
    record["loss_batch_after"][0] = record["loss_batch"][0] * 0.9  # never rises
    areas = ps.within_runs(members_of(record), ps.C1, ps.T1)
    assert np.isnan(areas[0]) and np.isfinite(areas[1:]).all()
    assert len(ps.difference(members_of(record), ps.C1, ps.C3, ps.T1)) == 5


def test_difference_has_one_number_for_each_seed():
    """Ten runs of five seeds are no ten seeds: the mean over the runs of a seed that count."""
    record = horizon_record(members=10).assign_coords(seed=("member", np.arange(10) // 2))
    record["loss_batch_after"][0] = record["loss_batch"][0] * 0.9  # never rises
    members = members_of(record)
    of_run = ps.within_runs(members, ps.C1, ps.T1) - ps.within_runs(members, ps.C3, ps.T1)

    np.testing.assert_allclose(ps.difference(members, ps.C1, ps.C3, ps.T1), np.nanmean(of_run.reshape(5, 2), 1))
    assert np.isnan(of_run[0])


def test_members_of_counts_no_descent_direction_as_an_infinite_score():
    record = horizon_record()
    record["directional_train"][0, 7] = 0.0
    assert np.isinf(members_of(record)[0].scores[ps.C5][7])


def test_logistic_within_runs_finds_the_baseline_that_tells():
    """The norm of the gradient of the batch tells, in every run with the same sign."""
    members = members_of(horizon_record(informative="gradient_norm2_batch"))
    assert np.nanmean(ps.logistic_within_runs(members, ps.T4[5])) > 0.97


def test_logistic_within_runs_gains_by_a_criterion_that_tells():
    members = members_of(horizon_record())
    alone = ps.logistic_within_runs(members, ps.T4[5])
    assert np.nanmean(ps.logistic_within_runs(members, ps.T4[5], ps.C7_TRACE)) > np.nanmean(alone) + 0.02
    assert abs(np.nanmean(ps.logistic_within_runs(members, ps.T4[5], ps.C8) - alone)) < 0.03  # a random one adds nothing


def test_logistic_within_runs_is_not_fitted_to_its_own_run():
    """In the first run the score points the other way: the model of the other runs is wrong there."""
    record = horizon_record(informative="gradient_norm2_batch")
    record["gradient_norm2_batch"][0] = 2.1 - record["gradient_norm2_batch"][0]
    areas = ps.logistic_within_runs(members_of(record), ps.T4[5])
    assert areas[0] < 0.2 and (areas[1:] > 0.9).all()


def test_logistic_within_runs_with_a_baseline_that_is_known_at_no_step():
    """The runs are shorter than the window of the 6-sigma score."""
    members = members_of(predictors_record(steps=ps.WINDOW - 1))
    areas = ps.logistic_within_runs(members, ps.T2, ps.C5)
    assert all(np.isnan(score).all() for member in members for name, score in member.scores.items() if "6-sigma" in name)
    assert np.nanmean(areas) > 0.9  # the criterion is the target there


def test_logistic_within_runs_of_a_single_run_is_a_guess():
    assert ps.logistic_within_runs(members_of(horizon_record(members=1)), ps.T4[5]).tolist() == [0.5]


def test_examples_in_docstrings():
    assert not doctest.testmod(ps).failed
