"""Criteria for spikes against their formulas."""

import numpy as np
import pytest

from catapult_jax import spike_score
from catapult_jax.criteria import SPIKE_SCORE


def test_spike_score_against_its_formula():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(300)
    values[200] = 20
    score = spike_score(values)
    assert np.isnan(score[:128]).all()
    for t in (128, 200, 299):
        assert score[t] == pytest.approx((values[t] - np.mean(values[t - 128 : t])) / np.std(values[t - 128 : t], ddof=1))
    assert np.flatnonzero(score > SPIKE_SCORE).tolist() == [200]


def test_spike_score_of_constants_and_infinities():
    assert spike_score([1.0, 1.0, 1.0, 2.0], window=2).tolist()[2:] == [0.0, np.inf]
    assert spike_score([1.0, 2.0, np.inf], window=2)[2] == np.inf
    assert np.isnan(spike_score([1.0, 2.0, np.inf, 1.0, 2.0], window=2)[3:]).all()


@pytest.mark.parametrize(
    ("values", "window", "message"),
    [
        (np.ones((3, 1)), 2, r"values has shape \(3, 1\); allowed: one-dimensional"),
        (np.ones(3), 1, "window=1; allowed: 2 or more"),
    ],
)
def test_spike_score_refuses_bad_arguments(values, window, message):
    with pytest.raises(ValueError, match=message):
        spike_score(values, window=window)
