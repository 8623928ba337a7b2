import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax.detection.sampling import sample_balanced, sample_by_priority


def masks(positives, negatives, total):
    index = np.arange(total)
    return jnp.asarray(index < positives), jnp.asarray((index >= positives) & (index < positives + negatives))


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [(100, 500, (16, 48)), (5, 500, (5, 59)), (100, 10, (16, 10)), (0, 200, (0, 64)), (3, 0, (3, 0)), (0, 0, (0, 0))],
)
def test_quota(positives, negatives, expected):
    positive, negative = masks(positives, negatives, 700)
    samples = jax.jit(sample_balanced, static_argnums=(3, 4))(jax.random.key(0), positive, negative, 64, 0.25)
    chosen = np.asarray(samples.index)[np.asarray(samples.valid)]
    assert samples.index.shape == (64,)
    assert len(set(chosen)) == len(chosen)
    assert (int(samples.positive.sum()), int((samples.valid & ~samples.positive).sum())) == expected
    assert np.asarray(positive)[np.asarray(samples.index)[np.asarray(samples.positive)]].all()
    assert np.asarray(negative)[np.asarray(samples.index)[np.asarray(samples.valid & ~samples.positive)]].all()


def test_fewer_candidates_than_slots():
    positive, negative = masks(2, 3, 8)
    samples = sample_balanced(jax.random.key(0), positive, negative, 64, 0.5)
    assert samples.index.shape == (8,)
    assert sorted(np.asarray(samples.index)[np.asarray(samples.valid)].tolist()) == [0, 1, 2, 3, 4]


def test_no_positives_wanted():
    positive, negative = masks(4, 4, 8)
    samples = sample_balanced(jax.random.key(0), positive, negative, 3, 0.0)
    assert not samples.positive.any() and samples.valid.all()


def test_uniform():
    # 4 of 10 negatives each time: every one is drawn 400 times of 1000, with standard deviation 15.5.
    positive, negative = masks(2, 10, 12)
    draw = jax.vmap(lambda key: sample_balanced(key, positive, negative, 5, 0.2))
    samples = draw(jax.random.split(jax.random.key(1), 1000))
    counts = np.bincount(np.asarray(samples.index).ravel(), minlength=12)
    assert abs(counts[2:] - 400).max() < 5 * 15.5
    assert abs(counts[:2] - 500).max() < 5 * 15.9


def test_priority_decides():
    positive, negative = masks(3, 4, 7)
    samples = sample_by_priority(jnp.arange(7.0), positive, negative, 4, 0.5)
    assert samples.index.tolist() == [2, 1, 6, 5]
