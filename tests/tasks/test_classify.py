"""Classification: predicted probabilities are those that the loss is about."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from sklearn.calibration import calibration_curve

from imgrec_jax import metrics
from imgrec_jax.assemble import task as tasks
from imgrec_jax.config import base

ROWS, CLASSES = 400, 4


def made(loss):
    """(task, variables, batch, outputs float64 [B, K]) of a random linear model."""
    config = base()
    config.task, config.data.mean, config.data.std = "classification", (0.0,), (1.0,)
    config.model, config.loss = ConfigDict({"name": "linear", "num_classes": CLASSES}), ConfigDict({"name": loss})
    task, rng = tasks.make_task(config), np.random.default_rng(0)
    batch = {
        "image": rng.random((ROWS, 2, 3, 1), np.float32),
        "label": rng.integers(0, CLASSES, ROWS, dtype=np.int32),
        "example_valid": np.arange(ROWS) < ROWS - 10,
    }
    variables = task.init(jax.random.PRNGKey(1), batch)
    dense = {name: np.asarray(value, np.float64) for name, value in variables["params"]["logits"].items()}
    return task, variables, batch, batch["image"].reshape(ROWS, -1).astype(np.float64) @ dense["kernel"] + dense["bias"]


def softmax(x):
    return np.exp(x) / np.exp(x).sum(1, keepdims=True)


EXPECTED = {
    "softmax_cross_entropy": softmax,
    "negative_log_likelihood": softmax,
    "binary_cross_entropy": lambda x: 1 / (1 + np.exp(-x)),
    "mean_squared_error": lambda x: np.clip(x, 0, 1),
}


@pytest.mark.parametrize("loss", tasks.CLASSIFICATION_LOSSES)
def test_probabilities_and_calibration_error_belong_to_the_loss(loss):
    task, variables, batch, outputs = made(loss)
    predictions, expected = task.predict(variables, batch), EXPECTED[loss](outputs)
    np.testing.assert_allclose(predictions["probs"], expected, atol=1e-6)
    np.testing.assert_array_equal(task.records(predictions, batch)[3]["probs"], predictions["probs"][3])
    valid = batch["example_valid"]
    confidence, hit = expected.max(1)[valid], (expected.argmax(1) == batch["label"])[valid]
    bins = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    by_hand = sum(abs(confidence[bins == b].sum() - hit[bins == b].sum()) for b in range(15)) / valid.sum()
    got = metrics.compute(task.metrics(predictions, batch))["calibration_error"]
    assert got == pytest.approx(by_hand, abs=1e-5)
    # scikit-learn's bins, of the same edges here, give the same error
    accuracy, mean = calibration_curve(hit, confidence, n_bins=15)
    counts = np.histogram(confidence, np.linspace(0, 1, 16))[0]
    assert got == pytest.approx(np.abs(accuracy - mean) @ counts[counts > 0] / valid.sum(), abs=1e-5)


def test_one_against_all_learns_the_frequencies_as_its_sigmoids():
    """At the minimum of the loss each sigmoid is the share of its class, without being told that they add up to 1."""
    task, variables, batch, _ = made("binary_cross_entropy")
    batch["image"] = np.zeros_like(batch["image"])  # nothing but the bias can learn
    value = jax.jit(jax.grad(lambda v: task.loss(v, batch, None, False)[0]))
    for _ in range(300):
        variables = jax.tree.map(lambda v, g: v - 2 * g, variables, value(variables))
    shares = np.bincount(batch["label"][batch["example_valid"]], minlength=CLASSES) / batch["example_valid"].sum()
    np.testing.assert_allclose(task.predict(variables, batch)["probs"][0], shares, atol=1e-4)
