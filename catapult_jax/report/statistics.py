"""Intervals and tests over seeds, and numbers as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy  # scipy.stats takes half a second: it is loaded at its first use

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

MIN_SEEDS = 5  # fewer decide nothing
BEYOND = "95 % interval over seeds and sign test"


def interval(values: ArrayLike) -> tuple[float, float, float]:
    """Mean, and its 95 % percentile bootstrap interval over the values.

    Args:
      values: one for each seed, ``(n,)``.

    Returns:
      Mean, lower limit, upper limit. The limits are NaN for fewer than two values.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    >>> interval([1.0, 1.0, 1.0])
    (1.0, 1.0, 1.0)
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        return (float(values.mean()) if len(values) else float("nan")), float("nan"), float("nan")
    if np.ptp(values) == 0 or np.isnan(values).any():
        return float(values.mean()), float(values.mean()), float(values.mean())
    limits = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return float(values.mean()), float(limits.low), float(limits.high)


def beyond_zero(values: ArrayLike, sign: int) -> bool | None:
    """Whether the values lie on one side of zero.

    Both must hold: the 95 % bootstrap interval of the mean lies on that side, and so many seeds do that a sign test gives
    p <= 0.05 (5 of 5, 7 of 8). With few seeds the interval alone is too narrow.

    Args:
      values: one for each seed, ``(n,)``.
      sign: 1: above zero; -1: below zero.

    Returns:
      The decision; None for fewer than five values, or if a value is not finite.

    >>> beyond_zero([0.1, 0.2, 0.1, 0.3, 0.2], 1), beyond_zero([0.1, 0.2, 0.1, 0.3, -0.1], 1), beyond_zero([0.1], 1)
    (True, False, None)
    """
    values = sign * np.asarray(values, float)
    if len(values) < MIN_SEEDS or not np.isfinite(values).all():
        return None
    test = scipy.stats.binomtest(int((values > 0).sum()), len(values), alternative="greater")
    return bool(interval(values)[1] > 0 and test.pvalue <= 0.05)


def rank_correlation(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Spearman's rank correlation.

    Args:
      x: values, ``(n,)``.
      y: values, ``(n,)``.

    Returns:
      The correlation. 0: ``y`` is constant. NaN: ``x`` has fewer than three different values, or a value is NaN.

    >>> round(rank_correlation([1, 2, 3], [10, 20, 40]), 6)
    1.0
    """
    if len(np.unique(x)) < 3 or np.isnan([*x, *y]).any():
        return float("nan")
    return float(scipy.stats.spearmanr(x, y).statistic) if len(np.unique(y)) > 1 else 0.0


# Numbers as text.


def text_of(values: ArrayLike) -> str:
    """The mean and its interval.

    Args:
      values: one for each seed, ``(n,)``.

    Returns:
      Text; "none" if there are no values or a value is NaN.

    >>> text_of([1.0, 1.0]), text_of([])
    ('1 [1, 1]', 'none')
    """
    mean, low, high = interval(values)
    if np.isnan(mean):
        return "none"
    return f"{mean:.3g}" if np.isnan(low) else f"{mean:.3g} [{low:.3g}, {high:.3g}]"


def finite_text(values: Sequence[float]) -> str:
    """The mean over the finite values and its interval, with their number if some are not finite.

    Args:
      values: one for each seed.

    Returns:
      Text; "none" if no value is finite.

    >>> finite_text([1.0, 1.0, float("nan")])
    '1 [1, 1] (2 of 3 seeds)'
    """
    finite = [value for value in values if np.isfinite(value)]
    return text_of(finite) + (f" ({len(finite)} of {len(values)} seeds)" if 0 < len(finite) < len(values) else "")


def number_text(value: float) -> str:
    """The value in three digits.

    Args:
      value: a number.

    Returns:
      Text; "none" for NaN.

    >>> number_text(0.12345)
    '0.123'
    """
    return "none" if np.isnan(value) else f"{value:.3g}"


def spread_text(values: ArrayLike) -> str:
    """Median, range and number of the values that are not NaN.

    Args:
      values: numbers, ``(n,)``.

    Returns:
      Text; "none" if there are no such values.

    >>> spread_text([1.0, 2.0, 4.0])
    'median 2 (from 1 to 4, n = 3)'
    """
    values = np.asarray(values, float)
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return "none"
    return f"median {np.median(values):.3g} (from {values.min():.3g} to {values.max():.3g}, n = {len(values)})"


def values_text(values: Iterable[float]) -> str:
    """The values of the members in three digits, in their order: one if all are equal, the range of more than four.

    Args:
      values: one for each member.

    Returns:
      Text.

    >>> values_text([2.0, 1.0]), values_text([1.0] * 9), values_text(range(9))
    ('2, 1', '1', '0 to 8')
    """
    short = [f"{value:.3g}" for value in values]
    if len(set(short)) == 1:
        return short[0]
    return ", ".join(short) if len(short) <= 4 else f"{min(short, key=float)} to {max(short, key=float)}"


def range_text(numbers: Iterable[int]) -> str:
    """Whole numbers in words: three or more without a gap as a range.

    Args:
      numbers: in any order; one that comes twice counts once.

    Returns:
      Text.

    >>> range_text((5, 3, 4)), range_text((3, 5))
    ('3 to 5', '3, 5')
    """
    ordered = sorted(set(numbers))
    if len(ordered) > 2 and ordered == [*range(ordered[0], ordered[-1] + 1)]:
        return f"{ordered[0]} to {ordered[-1]}"
    return ", ".join(map(str, ordered))


def counted(number: int, word: str) -> str:
    """A number with its noun.

    Args:
      number: of things.
      word: for one of them.

    Returns:
      Text.

    >>> counted(1, "seed"), counted(2, "seed")
    ('1 seed', '2 seeds')
    """
    return f"{number} {word}" + ("" if number == 1 else "s")
