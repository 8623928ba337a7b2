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


def test_sums_merge_without_losing_precision():
    one = metrics.Sum(np.float32(1.0), np.float32(1.0))
    total = metrics.Sum(np.float64(2**24), np.float64(2**24)).merge(one).merge(one)
    assert total.total == 2**24 + 2  # float32 would have stayed at 2**24
