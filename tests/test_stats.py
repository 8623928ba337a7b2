"""Statistics against scipy, scikit-learn and plain loops."""

import numpy as np
import pytest
from scipy.stats import binomtest, trim_mean
from sklearn import metrics as sk

from imgrec_jax import stats
from imgrec_jax.sweeps.table import middle

RNG = np.random.default_rng(0)
POSITIVE = RNG.random(400) < 0.3
SCORES = np.round(np.clip(0.3 * POSITIVE + 0.6 * RNG.random(400), 0, 1), 2)  # with ties
WEIGHTS = RNG.integers(0, 4, 400)


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (10, 10), (7, 10), (523, 624), (1, 1)])
def test_wilson_is_scipys(correct, count):
    expected = binomtest(correct, count).proportion_ci(method="wilson")
    assert stats.wilson(correct, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nothing_has_no_interval():
    assert stats.wilson(0, 0) is None
    assert stats.auc(np.array([0.1]), np.array([True])) is None and stats.auc_interval(SCORES, np.ones(400, bool)) is None
    assert stats.average_precision(SCORES, np.zeros(400, bool)) is None
    assert stats.best_threshold(SCORES, np.zeros(400, bool)) is None
    assert stats.bootstrap(stats.mean_of(SCORES), np.zeros(400)) is None
    assert stats.binary(SCORES[:0], POSITIVE[:0], 0.5).scores() == dict.fromkeys(("precision", "recall", "specificity", "f1"))


def test_ranking_is_scikit_learns():
    assert stats.auc(SCORES, POSITIVE) == pytest.approx(sk.roc_auc_score(POSITIVE, SCORES), abs=1e-12)
    assert stats.average_precision(SCORES, POSITIVE) == pytest.approx(sk.average_precision_score(POSITIVE, SCORES), abs=1e-12)
    weighted = {"sample_weight": WEIGHTS}
    assert stats.auc(SCORES, POSITIVE, WEIGHTS) == pytest.approx(sk.roc_auc_score(POSITIVE, SCORES, **weighted), abs=1e-12)
    expected = sk.average_precision_score(POSITIVE, SCORES, **weighted)
    assert stats.average_precision(SCORES, POSITIVE, WEIGHTS) == pytest.approx(expected, abs=1e-12)


def test_binary_scores_are_scikit_learns():
    found, said = stats.binary(SCORES, POSITIVE, 0.4).scores(), SCORES >= 0.4
    assert found["precision"] == pytest.approx(sk.precision_score(POSITIVE, said))
    assert found["recall"] == pytest.approx(sk.recall_score(POSITIVE, said))
    assert found["specificity"] == pytest.approx(sk.recall_score(~POSITIVE, ~said))
    assert found["f1"] == pytest.approx(sk.f1_score(POSITIVE, said))


@pytest.mark.parametrize("criterion", stats.CRITERIA)
def test_the_threshold_is_the_best_of_all(criterion):
    def worth(threshold):
        found = stats.binary(SCORES, POSITIVE, threshold).scores()
        return found["recall"] + found["specificity"] if criterion == "youden" else found["f1"]

    chosen = stats.best_threshold(SCORES, POSITIVE, criterion)
    assert worth(chosen) == pytest.approx(max(worth(t) for t in np.linspace(0, 1, 1001)), abs=1e-12)


def test_delong_against_its_definition_and_the_bootstrap():
    ones, zeros = SCORES[POSITIVE], SCORES[~POSITIVE]
    above = (ones[:, None] > zeros) + 0.5 * (ones[:, None] == zeros)
    variance = above.mean(1).var(ddof=1) / len(ones) + above.mean(0).var(ddof=1) / len(zeros)
    low, high = stats.auc_interval(SCORES, POSITIVE)
    area = stats.auc(SCORES, POSITIVE)
    width = np.log(high / (1 - high)) - np.log(low / (1 - low))
    assert width * area * (1 - area) == pytest.approx(2 * 1.959964 * np.sqrt(variance), rel=1e-6)
    drawn = stats.bootstrap(lambda w: stats.auc(SCORES, POSITIVE, w), np.arange(400))
    assert (low, high) == pytest.approx(drawn, abs=0.006)


def test_the_bootstrap_of_a_mean_by_images_is_wilsons_and_by_groups_wider():
    group = np.repeat(np.arange(40), 10)
    hit = np.clip(RNG.random(40)[group] + 0.2 * RNG.standard_normal(400), 0, 1) > 0.4  # alike within a group
    by_images = stats.bootstrap(stats.mean_of(hit), np.arange(400))
    by_groups = stats.bootstrap(stats.mean_of(hit), group)
    assert by_images == pytest.approx(stats.wilson(int(hit.sum()), 400), abs=0.012)
    assert by_groups.high - by_groups.low > 1.5 * (by_images.high - by_images.low)
    means = hit.reshape(40, 10).mean(1)
    expected = np.quantile(np.random.default_rng(1).choice(means, (4000, 40)).mean(1), [0.025, 0.975])
    assert by_groups == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("runs", [1, 3, 4, 5, 10])
def test_the_interquartile_mean_is_scipys(runs):
    scores = np.random.default_rng(runs).normal(size=(runs, 3))
    assert stats.interquartile_mean(scores) == pytest.approx(trim_mean(scores, 0.25, axis=None), rel=1e-12)


def test_the_interval_over_runs_draws_each_task_by_itself():
    scores = np.random.default_rng(0).normal([0.0, 100.0], [1.0, 0.1], (200, 2))
    half = 1.96 * scores[:, 0].std() / np.sqrt(200)
    mean = scores[:, 0].mean()
    np.testing.assert_allclose(stats.over_runs(scores[:, 0], np.mean), (mean - half, mean + half), atol=0.02)
    low, high = stats.over_runs(scores[:8], np.mean)
    assert high - low < 2  # runs drawn over both tasks together would move their mean by tens
    assert stats.over_runs(scores[:1]) is None


def test_a_sweep_of_four_seeds_says_the_interquartile_mean():
    results = [{"values": {"rate": "0.1"}, "splits": {"test": {"accuracy": value}}} for value in (0.5, 0.6, 0.7, 1.0)]
    (line,) = middle(results, "accuracy")
    assert line.startswith("\nrate 0.1: test accuracy, interquartile mean 0.65 [0.5") and not list(
        middle(results[:3], "accuracy")
    )


def test_a_bootstrap_whose_draws_are_all_alike_has_no_interval():
    assert stats.bootstrap(stats.mean_of(np.ones(9)), np.arange(9), draws=100) is None
    assert stats.bootstrap(stats.mean_of(np.arange(9) > 0), np.arange(9), draws=100).low < 1


def test_an_area_of_exactly_one_is_no_certainty():
    """As many independent pairs as the smaller class has: 3 of 3, and 20 of 20."""
    for ones, zeros in ((3, 5), (20, 20)):
        positive = np.arange(ones + zeros) < ones
        found = stats.auc_interval(np.where(positive, 0.9, 0.1), positive)
        assert found == stats.wilson(min(ones, zeros), min(ones, zeros)) and found.high == 1.0 and found.low < 0.9
        low, high = stats.auc_interval(np.where(positive, 0.1, 0.9), positive)
        assert (low, high) == pytest.approx((0.0, 1 - found.low))
    assert stats.auc_interval(np.zeros(8), np.arange(8) < 4) is None  # all scores are equal


@pytest.mark.parametrize("value", [0.9, 0.1, 0.0, 1 / 3])
@pytest.mark.parametrize("count", [2, 5, 7])
def test_equal_runs_say_nothing_of_others(value, count):
    assert stats.over_runs(np.full(count, value)) is None
    assert stats.bootstrap(stats.mean_of(np.full(count, value)), np.arange(count)) is None
