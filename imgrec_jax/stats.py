"""Statistics of evaluated sets: intervals by images and by groups, ranking measures, thresholds; numpy and scipy, in float64.

Shape letters: N examples, G groups, D draws, K labels.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
DRAWS = 1000
_MOST_WORK = 5 * 10**7  # examples times draws


class Interval(NamedTuple):
    low: float
    high: float


def wilson(correct: int, count: int, level: float = LEVEL) -> Interval | None:
    """Of a share, without continuity correction (Wilson 1927, JASA 22:209); None of nothing."""
    if not count:
        return None
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, scale = correct / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z / scale * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(float(max(middle - half, 0.0)), float(min(middle + half, 1.0)))


def bootstrap(
    statistic: Callable[[np.ndarray], float | None],
    groups: np.ndarray,
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval | None:
    """The percentile interval of a statistic when whole groups are drawn with replacement (Efron and Tibshirani 1993).

    Args:
      statistic: weights int [N], how often each example was drawn -> value, or None where it is undefined.
      groups: [N], what is drawn; an example of its own each draws examples.
      draws: D, fewer where there are very many examples.

    Returns:
      The interval; None with fewer than two groups, where the statistic is undefined in most draws, or where all draws give one
      value, as when everything is right: that says nothing of others.
    """
    _, at = np.unique(groups, return_inverse=True)
    count = int(at.max(initial=-1)) + 1
    if count < 2:
        return None
    rng, values = np.random.default_rng(seed), []
    draws = max(min(draws, _MOST_WORK // len(at)), 100)
    for _ in range(draws):
        value = statistic(np.bincount(rng.integers(0, count, count), minlength=count)[at])
        if value is not None:
            values.append(value)
    if len(values) < draws / 2 or _all_one(values):
        return None
    return Interval(*map(float, np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])))


def _all_one(values: list[float]) -> bool:
    """Whether all draws give one value, to rounding: then they say nothing of others."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def mean_of(values: np.ndarray) -> Callable[[np.ndarray], float | None]:
    """The weighted mean of [N] numbers as a statistic of `bootstrap`."""
    return lambda weights: float(weights @ values / weights.sum()) if weights.sum() else None


def auc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> float | None:
    """The area under the ROC curve: how often a positive scores above a negative, ties counted half.

    float [N], bool [N], weights [N] -> a number; None without positives or without negatives.
    """
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    _, at = np.unique(scores, return_inverse=True)
    above = np.bincount(at, weights * positive)
    below = np.bincount(at, weights * ~np.asarray(positive, bool))
    pairs = above.sum() * below.sum()
    if not pairs:
        return None
    return float((above * (np.cumsum(below) - below / 2)).sum() / pairs)


def auc_interval(scores: np.ndarray, positive: np.ndarray, level: float = LEVEL) -> Interval | None:
    """Of the area under the ROC curve, by images: DeLong et al. 1988 (Biometrics 44:837), on the scale of logits.

    Of an area of exactly 0 or 1, whose variance is estimated as 0, Wilson's interval of a share of as many examples as the
    smaller class has: independent pairs of one positive and one negative, as many as can be made.
    """
    from scipy.stats import norm, rankdata

    positive = np.asarray(positive, bool)
    ones, zeros = np.asarray(scores)[positive], np.asarray(scores)[~positive]
    area = auc(scores, positive)
    if area is None or len(ones) < 2 or len(zeros) < 2:
        return None
    every = rankdata(np.concatenate([ones, zeros]))
    of_ones = (every[: len(ones)] - rankdata(ones)) / len(zeros)  # of each positive: the share of negatives below it
    of_zeros = 1 - (every[len(ones) :] - rankdata(zeros)) / len(ones)
    error = float(np.sqrt(of_ones.var(ddof=1) / len(ones) + of_zeros.var(ddof=1) / len(zeros)))
    pairs = min(len(ones), len(zeros))
    if not 0 < area < 1:
        return wilson(round(area * pairs), pairs, level)
    if not error:  # each example ranks as the mean does, as where all scores are equal: the estimate says nothing
        return None
    middle, half = np.log(area / (1 - area)), norm.ppf(0.5 + level / 2) * error / (area * (1 - area))
    return Interval(*(float(1 / (1 + np.exp(-x))) for x in (middle - half, middle + half)))


def average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> float | None:
    """The mean precision over the positives, at each distinct score; None without positives. float [N], bool [N]."""
    weights = np.ones(len(scores)) if weights is None else np.asarray(weights, np.float64)
    _, at = np.unique(-np.asarray(scores, np.float64), return_inverse=True)
    hits, all_found = np.bincount(at, weights * positive), np.bincount(at, weights)
    if not hits.sum():
        return None
    precision = np.cumsum(hits) / np.maximum(np.cumsum(all_found), 1e-300)
    return float((hits * precision).sum() / hits.sum())


class Binary(NamedTuple):
    """Counts of a two-class answer, and what follows from them; None where it is undefined."""

    true_positive: int
    false_positive: int
    true_negative: int
    false_negative: int

    def scores(self) -> dict[str, float | None]:
        tp, fp, tn, fn = self
        share = lambda part, whole: part / whole if whole else None  # noqa: E731
        return {
            "precision": share(tp, tp + fp),
            "recall": share(tp, tp + fn),
            "specificity": share(tn, tn + fp),
            "f1": share(2 * tp, 2 * tp + fp + fn),
        }


def binary(scores: np.ndarray, positive: np.ndarray, threshold: float) -> Binary:
    """Where scores [N] of `threshold` and more say yes, of bool [N]."""
    said, positive = np.asarray(scores) >= threshold, np.asarray(positive, bool)
    return Binary(*(int(np.sum(x)) for x in (said & positive, said & ~positive, ~said & ~positive, ~said & positive)))


CRITERIA = ("youden", "f1")


def best_threshold(scores: np.ndarray, positive: np.ndarray, criterion: str = "youden") -> float | None:
    """The threshold with the greatest recall + specificity ("youden") or F1, in the middle between two scores.

    Of equals the one nearest to 0.5. None without positives or without negatives.
    """
    positive = np.asarray(positive, bool)
    values, at = np.unique(scores, return_inverse=True)
    ones, zeros = np.bincount(at, positive), np.bincount(at, ~positive)
    if not ones.sum() or not zeros.sum():
        return None
    edges = np.concatenate([[values[0]], (values[:-1] + values[1:]) / 2])
    tp, fp = ones[::-1].cumsum()[::-1], zeros[::-1].cumsum()[::-1]  # said yes from each value on
    worth = tp / ones.sum() - fp / zeros.sum() if criterion == "youden" else 2 * tp / (tp + fp + ones.sum())
    best = np.flatnonzero(np.isclose(worth, worth.max(), rtol=0, atol=1e-12))
    return float(edges[best[np.abs(edges[best] - 0.5).argmin()]])


def interquartile_mean(scores: np.ndarray) -> float:
    """The mean of the middle half of all scores [R, T] of R runs on T tasks, which one lucky run does not move.

    A quarter of them, rounded down, is cut off at each end (Agarwal et al. 2021, arXiv:2108.13264; scipy.stats.trim_mean).
    """
    values = np.sort(np.asarray(scores, np.float64), axis=None)
    cut = len(values) // 4
    return float(values[cut : len(values) - cut].mean())


def over_runs(
    scores: np.ndarray,
    statistic: Callable[[np.ndarray], float] = interquartile_mean,
    *,
    level: float = LEVEL,
    draws: int = 2 * DRAWS,
    seed: int = 0,
) -> Interval | None:
    """The percentile interval of a statistic of few runs by stratified bootstrap: each task's runs are drawn by themselves.

    Args:
      scores: [R, T] of R runs on T tasks (or [R]: one task).

    Returns:
      The interval; None with fewer than two runs, or where all draws give one value, as of equal runs.
    """
    scores = np.asarray(scores, np.float64).reshape(len(scores), -1)
    runs, tasks = scores.shape
    if runs < 2:
        return None
    rng = np.random.default_rng(seed)
    values = [statistic(scores[rng.integers(0, runs, (runs, tasks)), np.arange(tasks)]) for _ in range(draws)]
    if _all_one(values):
        return None
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(low), float(high))


class Paired(NamedTuple):
    """Two answers to the same examples: the difference (first minus second), its interval, and the probability of one as large
    if both were equally good."""

    difference: float
    low: float
    high: float
    p: float


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """Of two classifiers' correctness on the same examples, bool [N] each: (only the first is right, only the second, p).

    The exact two-sided binomial test of the examples on which they differ (McNemar 1947, Psychometrika 12:153).
    """
    from scipy.stats import binomtest

    first, second = np.asarray(first, bool), np.asarray(second, bool)
    won, lost = int(np.sum(first & ~second)), int(np.sum(~first & second))
    return won, lost, float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def paired_bootstrap(
    first: Callable[[np.ndarray], float | None],
    second: Callable[[np.ndarray], float | None],
    count: int,
    *,
    level: float = LEVEL,
    draws: int = DRAWS,
    seed: int = 0,
) -> Paired | None:
    """The difference of a statistic of two runs when examples are drawn with replacement, the same ones for both.

    Args:
      first, second: weights int [N] -> value, as in `bootstrap`.
      count: N.

    Returns:
      The difference with its percentile interval and the two-sided p of no difference; None where it is undefined, or where
      all draws give one difference, as of a few examples that all favour one run: that says nothing of others.
    """
    every = np.ones(count, np.int64)
    a, b = first(every), second(every)
    if a is None or b is None:
        return None
    rng, differences = np.random.default_rng(seed), []
    for _ in range(draws):
        weights = np.bincount(rng.integers(0, count, count), minlength=count)
        one, other = first(weights), second(weights)
        if one is not None and other is not None:
            differences.append(one - other)
    if len(differences) < draws / 2 or _all_one(differences):
        return None
    low, high = np.quantile(differences, [0.5 - level / 2, 0.5 + level / 2])
    values = np.array(differences)
    sides = [(np.sum(values <= 0) + 1) / (len(values) + 1), (np.sum(values >= 0) + 1) / (len(values) + 1)]
    return Paired(float(a - b), float(low), float(high), float(min(1.0, 2 * min(sides))))
