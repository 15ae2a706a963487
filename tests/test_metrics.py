"""Scores of predictions against counts by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catapult_jax import prediction
from catapult_jax.metrics import auroc, average_precision, scores


def test_prediction_against_counts_by_hand():
    p = prediction([1, 1, 0, 0, 1], [1, 0, 1, 0, 1])
    assert p[:4] == (2, 1, 1, 1)
    assert (p.precision, p.recall, p.base_rate) == (2 / 3, 2 / 3, 3 / 5)
    assert p.f1 == pytest.approx(2 / 3)
    assert np.isnan(prediction([0, 0], [0, 1]).precision)


def test_prediction_refuses_two_shapes():
    with pytest.raises(ValueError, match=r"predicted has shape \(2,\); allowed: \(3,\), that of happened"):
        prediction([True, False], [True, False, True])


def test_scores_are_nan_where_nothing_is_counted():
    assert np.isnan(scores(0, 0, 0, 0)[4:]).all()
    assert np.isnan(scores(0, 0, 3, 1).precision) and scores(0, 0, 3, 1).recall == 0
    assert np.isnan(scores(0, 3, 0, 1).recall) and scores(0, 3, 0, 1).precision == 0


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0, np.inf]), st.booleans()), min_size=2, max_size=20))
def test_auroc_is_the_fraction_of_pairs_in_the_right_order(steps):
    values, happened = (np.array(column) for column in zip(*steps, strict=True))
    pairs = [(a > b) + 0.5 * (a == b) for a in values[happened] for b in values[~happened]]
    assert auroc(values, happened) == pytest.approx(np.mean(pairs), abs=1e-12) if pairs else np.isnan(auroc(values, happened))


def test_auroc_leaves_out_scores_that_are_nan():
    assert auroc([np.nan, 1.0, 2.0, np.nan], [True, False, True, False]) == 1
    assert np.isnan(auroc([1.0, 2.0], [True, True]))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0, np.inf]), st.booleans()), min_size=2, max_size=20))
def test_average_precision_is_the_sum_over_thresholds(steps):
    """Each threshold by hand: precision there, times the recall that it adds."""
    values, happened = (np.array(column) for column in zip(*steps, strict=True))
    expected, recall = 0.0, 0.0
    for threshold in sorted(set(values), reverse=True):
        table = prediction(values >= threshold, happened)
        expected, recall = expected + table.precision * (table.recall - recall), table.recall
    result = average_precision(values, happened)
    assert result == pytest.approx(expected, abs=1e-12) if happened.any() else np.isnan(result)


def test_average_precision_of_a_constant_is_the_base_rate():
    assert average_precision([3.0, 3.0, 3.0, 3.0], [True, False, False, False]) == 0.25
    assert average_precision([np.nan, 1.0, 2.0], [True, False, True]) == 1
