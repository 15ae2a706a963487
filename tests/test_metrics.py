"""Scores of predictions against counts by hand."""

import numpy as np
import pytest

from catapult_jax import prediction
from catapult_jax.metrics import scores


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
