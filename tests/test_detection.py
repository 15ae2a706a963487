"""The online detector: where an event ends, smoothing, and settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from catapult_jax import detector
from tests.helpers_events import online

NAN = np.nan


@pytest.mark.parametrize(
    ("loss", "lam", "kind", "end"),
    [
        ([1, 9, 1, 1], [1, 5, 0, 0], "death", 2),  # at the close
        ([1, 9, 1, 1], [1, 0, NAN, NAN], "death", 2),  # measured before
        ([1, 9, 0, 0], [1, 5, 0, 0], "catapult", 2),  # a loss of zero
        ([1, 9, 1, 1], [0, 0, 0, 0], "catapult", 2),  # dead before
        ([1, 9, 9, 9], [1, 5, 0, 0], "death", -1),  # never closes
    ],
)
@pytest.mark.parametrize("horizon", [2, 100])
def test_detector_death_where_the_event_ends(loss, lam, kind, end, horizon):
    rows = np.array([loss, np.ones(4), np.full(4, 0.5), lam, *np.full((2, 4), np.nan)], float)
    smoothed, closed = online(*rows, horizon=horizon)
    assert [(e.kind, e.end) for e in smoothed] == [(kind, end)]
    assert closed == (end >= 0 or horizon == 2)
    if kind == "death":
        assert smoothed[0].lambda_max_after == 0


def test_detector_smoothing_is_a_weighted_mean_from_the_first_step_on():
    loss, beta = np.array([2.0, 4.0, 1.0, 3.0]), 0.75
    d = detector(smoothing=beta)
    state, smoothed = d.init(), []
    for value in loss:
        state, _ = d.update(state, value, 1.0, 1.0)
        smoothed.append(float(state.loss))
    weights = [[beta ** (t - s) for s in range(t + 1)] for t in range(4)]
    np.testing.assert_allclose(smoothed, [np.average(loss[: len(w)], weights=w) for w in weights], rtol=1e-6)


@pytest.mark.parametrize("smoothing", [None, 0.5])
def test_detector_under_strict_promotion(smoothing):
    d = detector(smoothing=smoothing)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        state, event = d.update(d.init(), jnp.float32(1.0), jnp.float32(1.0), jnp.float32(1.0))
        assert int(d.finish(state).kind) == int(event.kind) == 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"factor": 1.05}, r"factor=1.05; allowed: above 1 \+ delta"),
        ({"delta": 0.0}, "delta=0.0; allowed: above 0"),
        ({"horizon": 0}, "horizon=0"),
        ({"momentum_horizon": -1}, "momentum_horizon=-1"),
        ({"smoothing": 1.0}, "smoothing=1.0; allowed: None, or between 0 and 1"),
    ],
)
def test_detector_refuses_settings_out_of_range(kwargs, message):
    with pytest.raises(ValueError, match=message):
        detector(**kwargs)
