"""Intervals, tests, and numbers as text."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from catapult_jax.report import statistics


def test_interval_has_the_mean_inside_and_is_the_same_every_time():
    values = np.random.default_rng(1).standard_normal(20)

    mean, low, high = statistics.interval(values)

    assert low < mean < high and statistics.interval(values) == (mean, low, high)
    assert 0.5 < (high - low) / (2 * 1.96 * values.std() / 20**0.5) < 1.5


def test_interval_of_fewer_than_two_values_has_no_limits():
    assert np.isnan(statistics.interval([1.0])[1]) and np.isnan(statistics.interval([])[0])


def test_beyond_zero_needs_the_interval_the_sign_test_and_five_seeds():
    assert statistics.beyond_zero([0.1, 0.2, 0.1, 0.3, 0.2], 1) is True
    assert statistics.beyond_zero([-0.1, -0.2, -0.1, -0.3, -0.2], -1) is True
    assert statistics.beyond_zero([9.0, 9.0, 9.0, 9.0, -0.1], 1) is False  # four of five seeds
    assert statistics.beyond_zero([0.1] * 4, 1) is None
    assert statistics.beyond_zero([0.1, 0.2, 0.1, 0.3, np.nan], 1) is None


def test_rank_correlation_of_constants_and_nans():
    assert statistics.rank_correlation([1, 2, 3], [10, 20, 40]) == pytest.approx(1)
    assert statistics.rank_correlation([1, 2, 3], [4, 4, 4]) == 0
    assert np.isnan(statistics.rank_correlation([1, 1, 2], [1, 2, 3]))
    assert np.isnan(statistics.rank_correlation([1, 2, 3], [1, np.nan, 3]))


def test_text_of_has_the_mean_and_its_interval():
    assert statistics.text_of([]) == statistics.text_of([1.0, np.nan]) == "none"
    assert statistics.text_of([1.0]) == "1" and statistics.text_of([1.0, 1.0]) == "1 [1, 1]"


def test_finite_text_has_the_number_of_finite_values():
    assert statistics.finite_text([1.0, 1.0, np.nan]) == "1 [1, 1] (2 of 3 seeds)"
    assert statistics.finite_text([1.0, 1.0]) == "1 [1, 1]" and statistics.finite_text([np.nan]) == "none"


def test_number_text_of_nan_is_none():
    assert statistics.number_text(np.nan) == "none" and statistics.number_text(1 / 3) == "0.333"


def test_spread_text_leaves_out_nan():
    assert statistics.spread_text([1.0, 2.0, np.nan, 4.0]) == "median 2 (from 1 to 4, n = 3)"
    assert statistics.spread_text([np.nan]) == "none"


def test_interval_loads_scipy_stats_at_first_use():
    code = (
        "import sys; from catapult_jax.report import statistics; assert 'scipy.stats' not in sys.modules; "
        "statistics.interval([1.0, 2.0]); assert 'scipy.stats' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
