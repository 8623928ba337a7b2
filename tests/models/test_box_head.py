"""Box heads with a norm: crops that do not exist leave no trace."""

import jax
import numpy as np
import pytest

from imgrec_jax.models.box_head import ConvFCHead, TwoMLPHead
from imgrec_jax.models.norm import BatchNorm

HEADS = {"mlp": TwoMLPHead(6, norm=BatchNorm), "conv": ConvFCHead((5,), 6, norm=BatchNorm)}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_invalid_crops_do_not_enter_the_statistics(head):
    rng = np.random.default_rng(0)
    crops = rng.normal(size=(7, 3, 3, 2)).astype(np.float32)
    padded = np.concatenate([crops, rng.normal(50, 9, (4, 3, 3, 2)).astype(np.float32)])
    valid = np.arange(11) < 7
    variables = head.init(jax.random.PRNGKey(0), crops)

    def run(x, valid):
        return head.apply(variables, x, valid=valid, train=True, mutable=["batch_stats"])

    (alone, alone_stats), (among, among_stats) = run(crops, valid[:7]), run(padded, valid)
    np.testing.assert_allclose(among[:7], alone, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), among_stats, alone_stats)


def test_a_norm_takes_the_place_of_the_bias():
    x = np.zeros((2, 3, 3, 2), np.float32)
    shapes = jax.eval_shape(HEADS["mlp"].init, jax.random.PRNGKey(0), x)["params"]
    assert set(shapes) == {"fc6", "fc6_norm", "fc7", "fc7_norm"} and set(shapes["fc6"]) == {"kernel"}
    assert set(jax.eval_shape(TwoMLPHead(6).init, jax.random.PRNGKey(0), x)["params"]["fc6"]) == {"kernel", "bias"}
