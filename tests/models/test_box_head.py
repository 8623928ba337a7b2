"""Box heads with a norm: crops that do not exist leave no trace."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax.models.box_head import ConvFCHead, TwoMLPHead
from imgrec_jax.models.detectors import make_small_detector
from imgrec_jax.models.norm import BatchNorm, GroupNorm

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


@pytest.mark.parametrize("kind", ["fast", "faster", "mask"])
def test_detectors_may_have_group_normalisation_in_their_heads(kind):
    model = make_small_detector(
        kind=kind, num_classes=3, widths=(4, 4, 8), fpn_width=8, head_width=8, anchor_sizes=((8,), (16,)), mask_widths=(8,),
        mask_size=4, head_norm="group",
    )  # fmt: skip
    image, rois, valid = jnp.ones((1, 32, 32, 3)), jnp.zeros((1, 2, 4)), jnp.ones((1, 2), bool)
    assert "group" in str(jax.tree.structure(jax.eval_shape(lambda: model.init(jax.random.key(0), image, rois, valid))))


def test_group_normalisation_of_crops_that_are_padding():
    """Each crop has its own statistics: what is padded changes no other, and every gradient is finite."""
    head, valid = TwoMLPHead(6, norm=GroupNorm), jnp.array([True, False])
    crops = jax.random.normal(jax.random.key(0), (2, 3, 3, 2)).at[1].set(0.0)
    variables = head.init(jax.random.key(1), crops)

    def total(params, crops):
        return jnp.sum(head.apply({"params": params}, crops, valid=valid, train=True)[0] ** 2)

    compute = jax.jit(jax.value_and_grad(total))
    value, gradients = compute(variables["params"], crops)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert value == compute(variables["params"], crops.at[1].set(7.0))[0]
