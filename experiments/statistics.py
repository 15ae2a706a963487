"""Intervals and tests over seeds, and their texts."""

from __future__ import annotations

import numpy as np
import scipy  # scipy.stats takes half a second: it is loaded where a verdict first needs it

MIN_SEEDS = 5  # fewer decide nothing
BEYOND = "95 % interval over seeds and sign test"


def interval(values) -> tuple[float, float, float]:
    """Mean, and its 95 % percentile bootstrap interval over the values (seeds); NaN limits for fewer than two.

    >>> interval([1.0, 1.0, 1.0])
    (1.0, 1.0, 1.0)
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        return (float(values.mean()) if len(values) else float("nan")), float("nan"), float("nan")
    if np.ptp(values) == 0 or np.isnan(values).any():
        return float(values.mean()), float(values.mean()), float(values.mean())
    found = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return float(values.mean()), float(found.low), float(found.high)


def beyond_zero(values, sign: int) -> bool | None:
    """Whether values, one for each seed, lie on one side of zero; None for fewer than five values or where one is not finite.

    Both must hold: the 95 % bootstrap interval of the mean lies on that side, and so do so many seeds that a sign test gives
    p <= 0.05 (5 of 5, 7 of 8). With few seeds the interval alone is too narrow.

    >>> beyond_zero([0.1, 0.2, 0.1, 0.3, 0.2], 1), beyond_zero([0.1, 0.2, 0.1, 0.3, -0.1], 1), beyond_zero([0.1], 1)
    (True, False, None)
    """
    values = sign * np.asarray(values, float)
    if len(values) < MIN_SEEDS or not np.isfinite(values).all():
        return None
    test = scipy.stats.binomtest(int((values > 0).sum()), len(values), alternative="greater")
    return bool(interval(values)[1] > 0 and test.pvalue <= 0.05)


def rank_correlation(x, y) -> float:
    """Spearman's; 0 where ``y`` is constant, NaN where ``x`` takes fewer than three values or a value is NaN."""
    if len(np.unique(x)) < 3 or np.isnan([*x, *y]).any():
        return float("nan")
    return float(scipy.stats.spearmanr(x, y).statistic) if len(np.unique(y)) > 1 else 0.0


# Texts.


def text_of(values) -> str:
    """The mean and its interval, as text; "none" where a value is NaN or there are no values."""
    mean, low, high = interval(values)
    if np.isnan(mean):
        return "none"
    return f"{mean:.3g}" if np.isnan(low) else f"{mean:.3g} [{low:.3g}, {high:.3g}]"


def known_text(values: list[float]) -> str:
    """The mean over the finite values, one for each seed, with their number where some are not finite."""
    known = [v for v in values if np.isfinite(v)]
    return text_of(known) + (f" ({len(known)} of {len(values)} seeds)" if 0 < len(known) < len(values) else "")


def number_text(value: float) -> str:
    """The value in three digits; "none" for NaN."""
    return "none" if np.isnan(value) else f"{value:.3g}"


def spread_text(values) -> str:
    """Median, range and number of the values that are not NaN."""
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return "none"
    return f"median {np.median(values):.3g} (from {values.min():.3g} to {values.max():.3g}, n = {len(values)})"
