"""U-Net: the paper's sizes and parameter count, padding, and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax.models.norm import make_norm
from imgrec_jax.models.resnet import RESNETS, small_resnet
from imgrec_jax.models.unet import BackboneUNet, UNet, UpConv, valid_margin, valid_sizes
from imgrec_jax.models.vgg import VGG
from tests.goldens import seeded


def logits_shape(model: nn.Module, *shape: int) -> tuple[int, ...]:
    outputs = jax.eval_shape(lambda key: model.init_with_output(key, jnp.zeros(shape))[0], jax.random.key(0))
    return outputs["logits"].shape


def test_the_papers_network():
    """572 -> 388 pixels, and its parameters counted by hand."""
    model = UNet(num_classes=2, padding="valid")
    assert logits_shape(model, 1, 572, 572, 1) == (1, 388, 388, 2)
    widths = [64, 128, 256, 512, 1024]
    double = lambda c, d: (9 * c * d + d) + (9 * d * d + d)  # noqa: E731
    down = sum(double(c, d) for c, d in zip([1, *widths], widths, strict=False))
    up = sum((4 * 2 * d * d + d) + double(2 * d, d) for d in widths[:-1])  # 2x2 up-convolution 2d -> d, then d + d -> d
    head = 64 * 2 + 2
    assert down + up + head == 31_030_658
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 572, 572, 1)))
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == 31_030_658


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_valid_sizes_are_exactly_those_that_work(depth):
    """Level by level: the convolutions need something left, the pooling an even side."""

    def output(size: int) -> int:
        for _ in range(depth):
            size -= 4
            if size <= 0 or size % 2:
                return 0
            size //= 2
        size -= 4
        for _ in range(depth):
            size = 2 * size - 4 if size > 0 else 0
        return max(size, 0)

    accepted = [n for n in range(1, 800) if output(n) > 0]
    for size in range(1, 700):
        below, above = valid_sizes(size, depth)
        assert below == max((n for n in accepted if n <= size), default=accepted[0])
        assert above == min(n for n in accepted if n >= size)
    assert all(output(n) == n - 2 * valid_margin(depth) for n in accepted)


def test_a_size_that_does_not_fit_is_named_with_the_nearest():
    model = UNet(num_classes=2, padding="valid", width=2)
    with pytest.raises(ValueError, match="width 570 does not fit.*depth 4.*nearest sizes are 556 and 572"):
        model.init(jax.random.key(0), jnp.zeros((1, 572, 570, 1)))


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (1, 5)])
@pytest.mark.parametrize("upsample", ["transposed", "bilinear"])
def test_same_padding_keeps_any_size(size, upsample):
    model = UNet(num_classes=3, depth=3, width=2, upsample=upsample, norm=make_norm("batch"))
    assert logits_shape(model, 2, *size, 3) == (2, *size, 3)


def test_valid_prediction_is_that_of_every_tile():
    """Without padding a pixel's logits depend on its surroundings alone: the overlap-tile strategy of the paper."""
    model = UNet(num_classes=2, depth=1, width=4, padding="valid")
    image = seeded.image(1, 32, 40, 1)
    variables = seeded.variables(model, image)
    apply = jax.jit(model.apply)
    whole = apply(variables, image)["logits"]
    tile = apply(variables, image[:, 2:28, 10:34])["logits"]  # shifted by even numbers, the grid of the pooling
    assert whole.shape == (1, 32 - 16, 40 - 16, 2)
    np.testing.assert_allclose(tile, whole[:, 2 : 2 + tile.shape[1], 10 : 10 + tile.shape[2]], rtol=1e-4, atol=1e-5)


def test_up_convolution_is_a_transposed_convolution():
    x = seeded.image(2, 3, 4, 6)
    model = UpConv(5)
    variables = seeded.variables(model, x)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    # lax.conv_transpose correlates the dilated input, so its kernel is the mirror image
    expected = jax.lax.conv_transpose(x, kernel[::-1, ::-1], (2, 2), "VALID") + bias
    np.testing.assert_allclose(model.apply(variables, x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        UNet(3, depth=2, width=4),
        UNet(3, depth=2, width=4, norm=make_norm("batch"), upsample="bilinear"),
        UNet(3, depth=1, width=4, norm=make_norm("group"), padding="valid", dropout=0.1),
        BackboneUNet(small_resnet((4, 6), blocks=1), 3, ("layer2", "layer1", "stem"), (6, 4), norm=make_norm("batch")),
        BackboneUNet(
            VGG(((4, 1), (6, 1), (8, 1))), 3, ("conv3", "conv2"), (6,), "transposed", score_levels=True, norm=make_norm("batch")
        ),
    ],
    ids=["plain", "batch_bilinear", "group_valid_dropout", "backbone", "scored_vgg"],
)
def test_every_parameter_receives_a_gradient(model):
    x = seeded.image(2, 24, 32, 3)
    variables = seeded.variables(model, x)

    def loss(params):
        outputs, _ = model.apply(
            {**variables, "params": params},
            x,
            train=True,
            rngs={"dropout": jax.random.key(1, impl="rbg")},
            mutable=["batch_stats"],
        )
        return jnp.square(outputs["logits"] - 1).mean()

    gradients = jax.jit(jax.grad(loss))(variables["params"])
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))


def test_backbone_unet_keeps_any_size():
    model = BackboneUNet(RESNETS["resnet18"](), num_classes=4)
    assert logits_shape(model, 1, 75, 130, 3) == (1, 75, 130, 4)
    strided = BackboneUNet(small_resnet((4, 6), 1, 2), 4, ("layer2", "layer1"), (4,), "transposed", score_levels=True)
    assert logits_shape(strided, 1, 75, 130, 3) == (1, 75, 130, 4)


def test_logits_are_float32_when_computing_in_bfloat16():
    model = UNet(2, depth=1, width=4, dtype=jnp.bfloat16, norm=make_norm("batch"))
    outputs, variables = jax.eval_shape(lambda key: model.init_with_output(key, jnp.zeros((1, 8, 8, 1))), jax.random.key(0))
    assert outputs["logits"].dtype == jnp.float32
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables))


def test_score_levels_adds_coarse_classifiers_to_the_logits_and_changes_nothing_else():
    x = np.random.default_rng(0).normal(size=(2, 22, 19, 3)).astype(np.float32)
    plain, scored = UNet(3, depth=2, width=4), UNet(3, depth=2, width=4, score_levels=True)
    params = scored.init(jax.random.PRNGKey(0), x)["params"]
    scores = {"scores": params.pop("scores")}
    assert set(scores["scores"]) == {"score0", "score1"}
    logits = plain.apply({"params": params}, x)["logits"]
    np.testing.assert_array_equal(scored.apply({"params": {**params, **scores}}, x)["logits"], logits)  # they begin at zero
    shifted = jax.tree.map(lambda v: v + 1.5 if v.ndim == 1 else v, scores)  # biases: 1.5 at each of two levels
    np.testing.assert_allclose(scored.apply({"params": {**params, **shifted}}, x)["logits"], logits + 3.0, rtol=1e-5, atol=1e-6)


def test_score_levels_needs_same_padding():
    with pytest.raises(ValueError, match='score_levels=True needs padding="same"'):
        UNet(3, depth=2, width=4, padding="valid", score_levels=True).init(jax.random.PRNGKey(0), np.zeros((1, 60, 60, 3)))


def test_widths_are_the_channels_of_every_level():
    model = UNet(3, depth=2, widths=(4, 10, 6))
    params = jax.eval_shape(model.init, jax.random.PRNGKey(0), np.zeros((1, 8, 8, 1), np.float32))["params"]
    outputs = {name: params[name]["conv2"]["kernel"].shape[-1] for name in ("down0", "down1", "down2", "up1", "up0")}
    assert outputs == {"down0": 4, "down1": 10, "down2": 6, "up1": 10, "up0": 4}
    assert params["up1_sample"]["kernel"].shape == (2, 2, 6, 10)
    with pytest.raises(ValueError, match="expected 3 numbers for depth 2"):
        UNet(3, depth=2, widths=(4, 8)).init(jax.random.PRNGKey(0), np.zeros((1, 8, 8, 1)))
