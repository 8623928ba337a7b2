import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax import losses


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]))
    label = jnp.array([0, 1])
    np.testing.assert_allclose(losses.softmax_cross_entropy(logits, label), [-np.log(0.7), -np.log(0.1)], rtol=1e-6)
    smoothed = losses.softmax_cross_entropy(logits, label, label_smoothing=0.3)
    by_hand = -0.7 * np.log(0.7) - 0.1 * (np.log(0.7) + np.log(0.2) + np.log(0.1))
    assert smoothed[0] == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_negative_log_likelihood_takes_logits_and_log_probabilities_alike(label_smoothing):
    logits = np.random.default_rng(0).normal(0, 5, (64, 7))
    label = np.arange(64) % 7
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))  # float64
    expected = -(1 - label_smoothing) * log_probs[np.arange(64), label] - label_smoothing * log_probs.mean(1)
    for outputs in (logits, log_probs, logits + 1000):
        got = losses.negative_log_likelihood(jnp.asarray(outputs, jnp.float32), jnp.asarray(label), label_smoothing)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-4 if outputs[0, 0] > 100 else 4e-6)


def test_negative_log_likelihood_cannot_fall_below_zero():
    """Raw logits that grow together, which made this loss as negative as one likes."""
    assert losses.negative_log_likelihood(jnp.full((1, 3), 1e6), jnp.array([1]))[0] == pytest.approx(np.log(3))
    gradient = jax.grad(lambda x: losses.negative_log_likelihood(x, jnp.array([1])).sum())(jnp.array([[1.0, 2.0, 3.0]]))
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-6)  # no direction in which all of them grow


def test_binary_cross_entropy_and_mean_squared_error_by_hand():
    outputs, label = jnp.array([[0.0, 2.0]]), jnp.array([1])
    assert losses.binary_cross_entropy(outputs, label)[0] == pytest.approx(np.log(2) + np.log1p(np.exp(-2.0)), rel=1e-6)
    assert losses.mean_squared_error(outputs, label)[0] == pytest.approx((0.0**2 + 1.0**2) / 2)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_one_against_all_and_squares_take_smoothed_targets(label_smoothing):
    """In float64: smoothed to s / 2 of 2 outcomes, and to s / C of C classes."""
    outputs, label = np.random.default_rng(0).normal(0, 2, (16, 5)), np.arange(16) % 5
    one_hot = np.eye(5)[label]
    binary = one_hot * (1 - label_smoothing) + label_smoothing / 2
    expected = (np.logaddexp(0, outputs) - binary * outputs).sum(1)
    given = jnp.asarray(outputs, jnp.float32), jnp.asarray(label)
    np.testing.assert_allclose(losses.binary_cross_entropy(*given, label_smoothing), expected, rtol=1e-5)
    spread = one_hot * (1 - label_smoothing) + label_smoothing / 5
    expected = np.square(outputs - spread).mean(1)
    np.testing.assert_allclose(losses.mean_squared_error(*given, label_smoothing), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [losses.softmax_cross_entropy, losses.negative_log_likelihood, losses.binary_cross_entropy, losses.mean_squared_error],
)
def test_nothing_is_smoothed_unasked(loss):
    outputs, label = jnp.array([[2.0, -1.0, 0.5]]), jnp.array([2])
    np.testing.assert_array_equal(loss(outputs, label), loss(outputs, label, 0.0))
    assert loss(outputs, label)[0] != loss(outputs, label, 0.25)[0]


def test_small_weights_are_no_absent_ones():
    assert losses.masked_mean(jnp.array([2.0, 4.0]), jnp.array([0.05, 0.05])) == pytest.approx(3.0)


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_smooth_l1_is_continuous_and_matches_its_definition(beta):
    error = jnp.array([-2.0, -beta, 0.0, beta / 2, 3.0])
    expected = [e * e / (2 * beta) if abs(e) < beta else abs(e) - beta / 2 for e in np.asarray(error, np.float64)]
    np.testing.assert_allclose(losses.smooth_l1(error, beta), expected, rtol=1e-6, atol=1e-7)


def test_masked_mean_equals_the_mean_of_the_subset_and_ignores_what_is_masked():
    values = jnp.array([1.0, jnp.nan, 3.0, jnp.inf])
    valid = jnp.array([True, False, True, False])
    assert losses.masked_mean(values, valid) == 2.0
    grad = jax.grad(lambda v: losses.masked_mean(v**2, valid))(jnp.array([1.0, 1e30, 3.0, 5.0]))
    np.testing.assert_allclose(grad, [1.0, 0.0, 3.0, 0.0])


def test_masked_mean_of_nothing_is_zero():
    assert losses.masked_mean(jnp.array([5.0]), jnp.array([False])) == 0.0


def test_masked_mean_broadcasts_from_the_left_and_takes_weights():
    values = jnp.arange(6.0).reshape(2, 3)
    assert losses.masked_mean(values, jnp.array([False, True])) == 4.0
    assert losses.masked_mean(values[:, 0], jnp.array([1.0, 3.0])) == pytest.approx(9 / 4)


def test_masked_mean_over_a_mapped_axis_is_the_global_mean():
    values = jnp.array([[1.0, 2.0], [3.0, 100.0]])
    valid = jnp.array([[True, True], [True, False]])
    shares = jax.vmap(lambda v, m: losses.masked_mean(v, m, "data"), axis_name="data")(values, valid)
    assert float(shares.sum()) == pytest.approx(2.0)
