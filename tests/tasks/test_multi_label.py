"""Several labels an image: known by hand, unknown left out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from imgrec_jax import metrics
from imgrec_jax.tasks import multi_label

RNG = np.random.default_rng(0)
LABELS = (RNG.random((6, 3)) < 0.5).astype(np.uint8)
KNOWN = RNG.random((6, 3)) < 0.7
VALID = np.array([True] * 5 + [False])


class Linear(nn.Module):
    num_classes: int = 3

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(1.0))(x.reshape(len(x), -1))


def batch(**changes):
    image = RNG.integers(0, 256, (6, 4, 4, 1)).astype(np.uint8)
    whole = {
        "image": image,
        "labels": LABELS,
        "label_known": KNOWN,
        "example_valid": VALID,
        "index": np.arange(6, dtype=np.int32),
    }
    return {**whole, **changes}


def task(**options):
    return multi_label.make_task(model=Linear(), loss_fn=multi_label.binary_cross_entropy, mean=(0.5,), std=(0.5,), **options)


@pytest.mark.parametrize("weights", [(), ((0.5, 1.0, 2.0), (3.0, 1.0, 0.25))])
def test_the_loss_is_the_mean_over_what_is_known(weights):
    made, given = task(label_weights=weights), batch()
    variables = made.init(jax.random.PRNGKey(0), given)
    value, aux = made.loss(variables, given, None, False)
    logits = np.asarray(made.logits(variables, given), np.float64)
    each = np.log1p(np.exp(-np.abs(logits))) + np.maximum(logits, 0) - logits * LABELS
    weight = (KNOWN & VALID[:, None]) * (np.where(LABELS == 1, weights[1], weights[0]) if weights else 1.0)
    assert float(value) == pytest.approx((each * weight).sum() / weight.sum(), rel=1e-5)
    assert metrics.compute(aux.metrics)["loss"] == pytest.approx(float(value), rel=1e-6)
    assert float(aux.count) == pytest.approx(weight.sum())


def test_what_is_unknown_changes_nothing():
    made, given = task(), batch()
    variables = made.init(jax.random.PRNGKey(0), given)
    other = {**given, "labels": np.where(KNOWN & VALID[:, None], LABELS, 1 - LABELS).astype(np.uint8)}
    grads = [jax.grad(lambda v, b=b: made.loss(v, b, None, True)[0])(variables) for b in (given, other)]
    jax.tree.map(np.testing.assert_array_equal, *grads)
    rows = made.metrics(made.predict(variables, given), given)["scores"].taken()
    assert rows["probs"].shape == (5, 3) and rows["index"].tolist() == [0, 1, 2, 3, 4]


def test_label_smoothing():
    logits, labels = jnp.array([2.0, -1.0]), jnp.array([1, 0])
    found = multi_label.binary_cross_entropy(logits, labels, 0.2)
    p = 1 / (1 + np.exp(-np.array([2.0, -1.0])))
    target = np.array([0.9, 0.1])
    np.testing.assert_allclose(found, -(target * np.log(p) + (1 - target) * np.log(1 - p)), rtol=1e-5)


def test_records():
    made = multi_label.records({"probs": np.array([[0.9, 0.1]]), "labels": np.array([[True, False]])}, {})
    assert made[0]["present"].tolist() == [True, False]
