"""How well one yes/no series predicts another.

>>> prediction([True, False], [True, True]).recall
0.5
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Prediction(NamedTuple):
    """Confusion table of a predictor, and its scores."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int
    precision: float  # fraction of the predicted steps at which it happened; NaN: no step was predicted
    recall: float  # fraction of the steps at which it happened that were predicted; NaN: it never happened
    f1: float  # harmonic mean of precision and recall; NaN: it was never predicted and never happened
    base_rate: float  # fraction of all steps at which it happened: the precision of a random guess


def prediction(predicted: ArrayLike, happened: ArrayLike) -> Prediction:
    """Confusion table, precision, recall and F1 of a predictor, beside the base rate.

    Args:
      predicted: for each step whether it is predicted to happen.
      happened: for each step whether it happens, of the same shape.

    Returns:
      The table and its scores.

    Raises:
      ValueError: the shapes differ.

    >>> p = prediction([True, True, False, False], [True, False, False, False])
    >>> p.precision, p.recall, p.base_rate
    (0.5, 1.0, 0.25)
    """
    yes, truth = np.asarray(predicted, bool), np.asarray(happened, bool)
    if yes.shape != truth.shape:
        raise ValueError(f"predicted has shape {yes.shape}; allowed: {truth.shape}, that of happened")
    tp, fp = int((yes & truth).sum()), int((yes & ~truth).sum())
    fn, tn = int((~yes & truth).sum()), int((~yes & ~truth).sum())
    return scores(tp, fp, fn, tn)


def scores(tp: int, fp: int, fn: int, tn: int) -> Prediction:
    """Precision, recall, F1 and base rate of a confusion table.

    ``precision = tp / (tp + fp)``, ``recall = tp / (tp + fn)``, ``f1 = 2 tp / (2 tp + fp + fn)``,
    ``base_rate = (tp + fn) / (tp + fp + fn + tn)``.

    Args:
      tp, fp, fn, tn: numbers of true positives, false positives, false negatives and true negatives.

    Returns:
      The table and its scores; NaN where a denominator is zero.

    >>> scores(2, 0, 2, 4).recall
    0.5
    """
    fraction = lambda a, b: a / b if b else float("nan")
    rates = (
        fraction(tp, tp + fp),
        fraction(tp, tp + fn),
        fraction(2 * tp, 2 * tp + fp + fn),
        fraction(tp + fn, tp + fp + fn + tn),
    )
    return Prediction(tp, fp, fn, tn, *rates)


def auroc(scores: ArrayLike, happened: ArrayLike) -> float:
    """Area under the ROC curve: the probability that a score where it happened is above one where it did not; ties count half.

    Args:
      scores: one for each step, ``(t,)``; they may be infinite.
      happened: one boolean for each step, ``(t,)``.

    Returns:
      0 to 1; NaN where it always or never happened. Steps whose score is NaN are left out.

    Source: the Mann-Whitney statistic over the number of pairs (Hanley and McNeil, 1982).

    >>> auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True])
    0.75
    """
    values, outcome = np.asarray(scores, float), np.asarray(happened, bool)
    values, outcome = values[~np.isnan(values)], outcome[~np.isnan(values)]
    positive, negative = values[outcome], values[~outcome]
    if not len(positive) or not len(negative):
        return float("nan")
    import scipy.stats  # takes half a second to import

    return float(scipy.stats.mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative)))


def average_precision(scores: ArrayLike, happened: ArrayLike) -> float:
    """Area under the precision-recall curve, without interpolation: ``sum_k (R_k - R_(k-1)) P_k`` over the thresholds, from the highest on.

    Args:
      scores: one for each step, ``(t,)``; they may be infinite.
      happened: one boolean for each step, ``(t,)``.

    Returns:
      0 to 1; the base rate if all scores are equal; NaN where it never happened. Steps whose score is NaN are left out.

    Source: Zhu, Recall, Precision and Average Precision (2004); the same sum as in scikit-learn.

    >>> round(average_precision([0.1, 0.4, 0.35, 0.8], [False, False, True, True]), 3)
    0.833
    """
    values, outcome = np.asarray(scores, float), np.asarray(happened, bool)
    values, outcome = values[~np.isnan(values)], outcome[~np.isnan(values)]
    if not outcome.any():
        return float("nan")
    order = np.argsort(-values, kind="stable")
    values, outcome = values[order], outcome[order]
    last_of_ties = np.append(values[1:] != values[:-1], True)
    hits, predicted = np.cumsum(outcome)[last_of_ties], np.arange(1, len(values) + 1)[last_of_ties]
    return float(np.sum(np.diff(hits, prepend=0) * hits / predicted) / hits[-1])
