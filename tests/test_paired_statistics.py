"""Comparisons of two runs on the same examples."""

import numpy as np
import pytest

from imgrec_jax import stats


def test_mcnemar_is_the_exact_binomial_test():
    first = np.array([1] * 10 + [1] * 8 + [0] * 2 + [0] * 5, bool)
    second = np.array([1] * 10 + [0] * 8 + [1] * 2 + [0] * 5, bool)
    won, lost, p = stats.mcnemar(first, second)
    # two-sided: 2 * (C(10,0) + C(10,1) + C(10,2)) / 2^10
    assert (won, lost) == (8, 2) and p == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert stats.mcnemar(first, first) == (0, 0, 1.0)


def test_paired_bootstrap_sees_a_difference_that_is_there_and_none_that_is_not():
    rng = np.random.default_rng(0)
    base = rng.normal(size=400)
    better, same = base + 0.2 + 0.1 * rng.normal(size=400), base + 0.1 * rng.normal(size=400)
    found = stats.paired_bootstrap(stats.mean_of(better), stats.mean_of(base), 400)
    assert found.low < 0.2 < found.high and found.p < 0.01 and found.difference == pytest.approx((better - base).mean())
    none = stats.paired_bootstrap(stats.mean_of(same), stats.mean_of(base), 400)
    assert none.low < 0 < none.high and none.p > 0.05
    error = np.std(better - base, ddof=1) / 20  # the normal interval, which the bootstrap is near
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_few_examples_that_all_favour_one_run_are_no_evidence(count):
    right, wrong = stats.mean_of(np.ones(count)), stats.mean_of(np.zeros(count))
    assert stats.paired_bootstrap(right, wrong, count) is None
    assert stats.paired_bootstrap(stats.mean_of(np.full(count, 0.3)), stats.mean_of(np.full(count, 0.1)), count) is None
