"""FCN: torchvision's by golden outputs, Long et al.'s by the properties of its parts."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax.models.fcn import AT_ONCE_SCALES, FCN, bilinear_kernel, fcn_resnet
from imgrec_jax.models.resnet import small_resnet
from imgrec_jax.models.vgg import VGG
from imgrec_jax.ops.resize import resize_bilinear
from imgrec_jax.pretrained.merge import merge
from tests import torchvision_names as names
from tests.goldens import make_fcn, seeded

GOLDENS = Path(__file__).parents[1] / "goldens" / "fcn.npz"
TINY_VGG = VGG(stages=((4, 1), (4, 1), (6, 1), (8, 1), (8, 1)))
LEVELS = {"fcn32s": ("pool5",), "fcn16s": ("pool5", "pool4"), "fcn8s": ("pool5", "pool4", "pool3")}


def tiny_fcn(levels=LEVELS["fcn8s"], **options) -> FCN:
    return FCN(TINY_VGG, num_classes=3, levels=levels, hidden=10, head_kernel=3, **options)


@functools.cache
def torchvision_variables() -> dict:
    shapes, _ = seeded.read_golden(GOLDENS, "fcn_resnet50")
    abstract = jax.eval_shape(fcn_resnet("resnet50").init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    variables, report = merge(abstract, names.fcn_resnet(seeded.weights(shapes)).tensors)
    assert len(shapes) == 334 and len(report.loaded) == 334 - sum("num_batches" in name for name in shapes)
    return variables


@functools.cache
def ours(height: int, width: int) -> dict[str, np.ndarray]:
    outputs = jax.jit(fcn_resnet("resnet50").apply)(torchvision_variables(), seeded.image(1, height, width, 3))
    return {f"{name}_{height}x{width}": np.asarray(value) for name, value in outputs.items()}


@pytest.mark.parametrize("size", make_fcn.SIZES)
def test_fcn_resnet50_matches_golden_torchvision_logits(size):
    _, golden = seeded.read_golden(GOLDENS, "fcn_resnet50")
    outputs = ours(*size)
    assert set(outputs) == {name for name in golden if name.endswith("{}x{}".format(*size))}
    for name, value in outputs.items():
        assert value.shape == (1, *size, 21)
        np.testing.assert_allclose(seeded.subsample(value, 1000), golden[name], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_fcn_resnet50_matches_torchvision_everywhere():
    seeded.import_torchvision()
    _, expected = make_fcn.compute()
    outputs = {name: value for size in make_fcn.SIZES for name, value in ours(*size).items()}
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value, rtol=0, atol=1e-3, err_msg=name)


@pytest.mark.parametrize(("name", "count"), [("resnet50", 35_322_218), ("resnet101", 54_314_346)])
def test_fcn_resnet_parameter_counts_are_torchvisions(name, count):
    variables = jax.eval_shape(fcn_resnet(name).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == count


@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize("size", [(64, 64), (33, 70)])
def test_logits_have_the_size_of_the_image(levels, size):
    x = jnp.zeros((2, *size, 3))
    outputs = jax.eval_shape(lambda key: tiny_fcn(levels).init_with_output(key, x)[0], jax.random.key(0))
    assert outputs["logits"].shape == (2, *size, 3)


def test_vgg16_fcn8s_parameter_count():
    """VGG16's convolutions 14,714,688; fc6 7x7x512x4096, fc7 4096x4096, three 1x1 scores, two 4x4x21x21 upsamplings."""
    model = FCN(VGG(), num_classes=21)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    head = 7 * 7 * 512 * 4096 + 4096 + 4096 * 4096 + 4096
    scores = (4096 + 512 + 256) * 21 + 3 * 21
    total = 14_714_688 + head + scores + 2 * 4 * 4 * 21 * 21
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == total


def test_vgg16_weights_fill_all_but_the_scores():
    """A VGG16 classifier's fc6, applied to one 7x7 map, is the convolution's value at the map's centre."""
    rng = np.random.default_rng(0)
    state = {"features.0.bias": np.zeros(64), "classifier.0.weight": rng.normal(size=(5, 2 * 49))}
    state["classifier.3.weight"] = rng.normal(size=(5, 5))
    tensors, _ = names.vgg16_fcn(state)
    assert set(tensors) == {"backbone/features_0/bias", "fc6/kernel", "fc7/kernel"}
    cell = rng.normal(size=(2, 7, 7))  # torch's [C, H, W]
    expected = state["classifier.0.weight"] @ cell.reshape(-1)
    np.testing.assert_allclose(np.einsum("chw,hwcd->d", cell, tensors["fc6/kernel"]), expected)
    np.testing.assert_array_equal(tensors["fc7/kernel"][0, 0], state["classifier.3.weight"].T)


def test_learnt_upsampling_starts_as_bilinear_interpolation():
    kernel = bilinear_kernel(jax.random.key(0), (4, 4, 3, 3))
    np.testing.assert_allclose(kernel[:, :, 0, 0].sum(), 4)  # a constant keeps its value at twice the resolution
    np.testing.assert_array_equal(kernel[:, :, 0, 1], 0)
    x = seeded.image(1, 6, 5, 3)
    upsampled = jax.lax.conv_transpose(x, kernel, (2, 2), ((2, 2), (2, 2)))
    expected = resize_bilinear(x, (12, 10))
    assert upsampled.shape == expected.shape
    np.testing.assert_allclose(upsampled[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], rtol=1e-5, atol=1e-6)


def test_a_fresh_network_scores_zero_and_skips_are_added_at_their_resolution():
    model = tiny_fcn(scales=AT_ONCE_SCALES)
    x = seeded.image(1, 64, 64, 3)
    variables = seeded.variables(model, x)
    params = variables["params"]
    for name in ("score", "score_pool4", "score_pool3"):
        params[name] = jax.tree.map(np.zeros_like, params[name])
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, x)["logits"], 0)
    # with a constant as pool3's score, the logits are that constant everywhere
    params["score_pool3"]["bias"] = np.array([1.0, 2.0, 3.0], np.float32)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x)["logits"], np.broadcast_to([1.0, 2.0, 3.0], (1, 64, 64, 3)))


def test_every_parameter_receives_a_gradient():
    model = tiny_fcn(dropout=0.0)
    x = seeded.image(1, 40, 64, 3)
    variables = seeded.variables(model, x)
    gradients = jax.jit(jax.grad(lambda v: jnp.square(model.apply(v, x, train=True)["logits"]).mean()))(variables)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))


def test_any_backbone_with_halving_maps_will_do():
    model = FCN(small_resnet((4, 6, 8), blocks=1), 3, levels=("layer3", "layer2"), hidden=8, head_kernel=1)
    outputs = jax.eval_shape(lambda key: model.init_with_output(key, jnp.zeros((1, 18, 21, 3)))[0], jax.random.key(0))
    assert outputs["logits"].shape == (1, 18, 21, 3)
    with pytest.raises(ValueError, match=r"strides \[4, 1\]; each must be half"):
        model.clone(levels=("layer3", "layer1")).init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


def test_without_auxiliary_head_there_is_one_output():
    model = fcn_resnet("resnet50", aux=False)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert not any(name.startswith("aux") for name in variables["params"])
