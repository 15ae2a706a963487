"""Criteria that call a step a spike without a critical learning rate.

>>> bool(spike_score([1.0, 3.0, 2.0, 8.0], window=3)[-1] >= SPIKE_SCORE)
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from jaxtyping import Float

SPIKE_SCORE = 6.0  # a higher score is a spike in the codes that spike_score names


def spike_score(values: ArrayLike, *, window: int = 128) -> Float[np.ndarray, " t"]:
    """Number of standard deviations by which a value exceeds the mean of the values before it.

    ``score_t = (x_t - mean) / std`` over the ``window`` values before ``t`` (sample standard deviation). A score above ``SPIKE_SCORE = 6``
    is a spike. The score needs neither a level nor a critical learning rate. It works on the loss of batches and on the norm of gradients.

    Args:
      values: a series, ``(t,)``, for example the loss.
      window: number of values before each value; at least 2.

    Returns:
      Scores, ``(t,)``. NaN where fewer values come before, or one of them is not finite.

    Raises:
      ValueError: the series is not one-dimensional, or the window is below 2.

    Source: OLMo-core, levanter and MaxText skip steps by this rule, with 128 values and 6 standard deviations.

    >>> spike_score([1.0, 3.0, 2.0, 8.0], window=3).tolist()
    [nan, nan, nan, 6.0]
    """
    series = np.asarray(values, float)
    if series.ndim != 1:
        raise ValueError(f"values has shape {series.shape}; allowed: one-dimensional")
    if window < 2:
        raise ValueError(f"window={window!r}; allowed: 2 or more")
    score = np.full(len(series), np.nan)
    if len(series) > window:
        before = np.lib.stride_tricks.sliding_window_view(np.where(np.isfinite(series), series, np.nan), window)[:-1]
        above = series[window:] - before.mean(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            # After constant values the deviation is zero: any change has an infinite score, no change a score of zero.
            score[window:] = np.where(above == 0, 0, above / before.std(1, ddof=1))
    return score
