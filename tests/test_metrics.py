import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from imgrec_jax import metrics


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 5)).astype(np.float32)
    label = rng.integers(0, 5, 200)
    valid = rng.random(200) < 0.8
    return logits, label, valid


def in_batches(make, size, *arrays):
    state = None
    for start in range(0, len(arrays[0]), size):
        state = metrics.merge(state, {"m": make(*(a[start : start + size] for a in arrays))})
    return metrics.compute(state)


@pytest.mark.parametrize("size", [1, 7, 200])
def test_confusion_scores_match_scikit_learn_for_any_batch_size(sample, size):
    logits, label, valid = sample
    predicted = logits.argmax(1)
    got = in_batches(lambda p, l, v: metrics.Confusion.of(p, l, v, 5), size, predicted, label, valid)
    true, pred = label[valid], predicted[valid]
    np.testing.assert_array_equal(got["m_matrix"], sk.confusion_matrix(true, pred))
    for average in ("macro", "micro"):
        expected = sk.precision_recall_fscore_support(true, pred, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
            assert got[f"m_{name}_{average}"] == pytest.approx(value, abs=1e-12), (name, average)
    per_class = sk.f1_score(true, pred, average=None)
    np.testing.assert_allclose(got["m_f1_per_class"], per_class, atol=1e-12)


def test_a_class_of_one_example_counts_as_one():
    state = metrics.Confusion.of(jnp.array([0, 1, 1]), jnp.array([0, 1, 2]), jnp.ones(3, bool), 4)
    got = state.compute()
    assert got["precision_per_class"] == [1.0, 0.5, 0.0, 0.0] and got["recall_per_class"] == [1.0, 1.0, 0.0, 0.0]
    np.testing.assert_allclose(got["f1_per_class"], [1, 2 / 3, 0, 0])
    lone = metrics.Confusion.of(jnp.array([1]), jnp.array([0]), jnp.ones(1, bool), 2).compute()
    assert lone["f1_macro"] == 0 and lone["recall_micro"] == 0


def test_absent_class_scores_zero_as_scikit_learn_with_zero_division_0():
    state = metrics.Confusion.of(jnp.array([0, 0, 1]), jnp.array([0, 1, 1]), jnp.ones(3, bool), 3)
    got = state.compute()
    expected = sk.f1_score([0, 1, 1], [0, 0, 1], labels=[0, 1, 2], average="macro", zero_division=0)
    assert got["f1_macro"] == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_matches_scikit_learn(sample, k):
    logits, label, valid = sample
    got = in_batches(lambda x, l, v: metrics.Accuracy.top_k(x, l, v, k), 33, logits, label, valid)
    expected = sk.top_k_accuracy_score(label[valid], logits[valid], k=k, labels=range(5)) if k < 5 else 1.0
    assert got["m"] == pytest.approx(expected)
    assert got["m_count"] == valid.sum()


def test_ties_count_as_argmax_would_and_nan_is_wrong():
    logits = jnp.array([[1.0, 1.0], [1.0, 1.0], [jnp.nan, jnp.nan]])
    got = metrics.Accuracy.top_k(logits, jnp.array([0, 1, 0]), jnp.ones(3, bool))
    assert int(got.correct) == 1


def test_calibration_error_by_hand():
    probs = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.35, 0.65]])
    label, valid = jnp.array([0, 1, 1]), jnp.ones(3, bool)
    # 10 bins: (.8, .9] holds .9 right; (.7, .8] holds .8 wrong; (.6, .7] holds .65 right.
    got = metrics.Calibration.of(probs, label, valid, bins=10).compute()[""]
    assert got == pytest.approx((0.1 + 0.8 + 0.35) / 3, abs=1e-6)


def calibration_error(probs, label, valid, bins):
    """Float64, bin by bin: a confidence on an edge belongs to the bin below it."""
    confidence, hit = probs.max(1)[valid].astype(np.float64), (probs.argmax(1) == label)[valid]
    total = 0.0
    for low, high in zip(np.arange(bins) / bins, np.arange(1, bins + 1) / bins, strict=True):
        inside = (confidence > low) & (confidence <= high)
        total += abs(confidence[inside].sum() - hit[inside].sum())
    return total / valid.sum()


def test_calibration_error_at_the_edges_of_its_bins():
    # In eighths, which float32 holds: 5/8 is right in the bin (4/8, 5/8] of the wrong 0.5625; 7/8 and 1 are of different bins.
    confidence = np.float32([0.625, 0.5625, 0.640625, 0.75, 0.875, 1.0, 0.890625])
    hit = np.array([True, False, False, True, False, True, True])
    probs, label, valid = np.stack([confidence, 1 - confidence], 1), np.where(hit, 0, 1), np.ones(7, bool)
    got = metrics.Calibration.of(probs, label, valid, bins=8).compute()[""]
    assert got == pytest.approx(calibration_error(probs, label, valid, 8), abs=1e-6)
    by_hand = abs(0.625 + 0.5625 - 1) + abs(0.640625 + 0.75 - 1) + 0.875 + abs(1 + 0.890625 - 2)
    assert got == pytest.approx(by_hand / 7, abs=1e-6)


@pytest.mark.parametrize("size", [7, 400])
def test_calibration_error_has_15_bins_and_counts_no_padding(size):
    rng = np.random.default_rng(1)
    probs = rng.dirichlet(np.full(4, 0.7), 400).astype(np.float32)
    label, valid = rng.integers(0, 4, 400), rng.random(400) < 0.7
    got = in_batches(metrics.Calibration.of, size, probs, label, valid)
    assert got["m"] == pytest.approx(calibration_error(probs, label, valid, 15), abs=1e-5)
    assert got["m"] != pytest.approx(calibration_error(probs, label, valid, 16), abs=1e-4)


def test_a_confidence_of_zero_is_in_the_first_bin():
    """Sigmoids may all be 0: one against all need not add up to 1."""
    probs = jnp.array([[0.0, 0.0], [0.05, 0.0], [0.0, 0.95]])
    state = metrics.Calibration.of(probs, jnp.array([0, 0, 0]), jnp.ones(3, bool), bins=10)
    assert state.count.tolist() == [2, *[0] * 8, 1] and state.correct.tolist() == [2, *[0] * 9]


def test_a_mean_is_weighed_by_what_counts():
    state = metrics.Sum.of(jnp.array([[1.0, 2.0], [4.0, 8.0], [100.0, 100.0]]), jnp.array([1.0, 0.5, 0.0]))
    assert state.compute()[""] == pytest.approx((1 + 2 + 0.5 * (4 + 8)) / 3)
    assert metrics.Sum.of(jnp.array([3.0]), jnp.array([False])).compute()[""] == 0


def test_sums_merge_without_losing_precision():
    one = metrics.Sum(np.float32(1.0), np.float32(1.0))
    total = metrics.Sum(np.float64(2**24), np.float64(2**24)).merge(one).merge(one)
    assert total.total == 2**24 + 2  # float32 would have stayed at 2**24
