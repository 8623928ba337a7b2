"""VGG16 against torchvision: golden outputs always, the real torchvision where it is installed."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax.models.norm import BatchNorm
from imgrec_jax.models.vgg import VGG, VGGEmbedding
from imgrec_jax.models.zoo import Classifier
from imgrec_jax.pretrained.merge import merge
from tests import torchvision_names as names
from tests.goldens import make_backbones, seeded

GOLDENS = Path(__file__).parents[1] / "goldens" / "backbones.npz"


@functools.cache
def ours(case: str) -> dict[str, np.ndarray]:
    """{map or "logits": array} of our VGG16 with the case's seeded weights, loaded as a torchvision state dict."""
    shapes, _ = seeded.read_golden(GOLDENS, case)
    model = Classifier(VGG(norm=BatchNorm if case == "vgg16_bn" else None), VGGEmbedding(hidden=16), num_classes=10)
    x = seeded.image(*make_backbones.IMAGE)
    abstract = jax.eval_shape(model.init, jax.random.key(0), x)
    variables, _ = merge(abstract, names.vgg16(seeded.weights(shapes)).tensors)

    @jax.jit
    def run(variables, x):
        logits, state = model.apply(variables, x, capture_intermediates=lambda module, _: isinstance(module, VGG))
        return {**state["intermediates"]["backbone"]["__call__"][0], "logits": logits}

    return jax.device_get(run(variables, x))


@pytest.mark.parametrize("case", ["vgg16", "vgg16_bn"])
def test_matches_golden_torchvision_outputs(case):
    _, golden = seeded.read_golden(GOLDENS, case)
    seeded.assert_matches(ours(case), golden)


def test_matches_torchvision_everywhere():
    seeded.import_torchvision()
    _, expected = make_backbones.CASES["vgg16"]()
    for name, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(ours("vgg16")[name] / scale, value / scale, rtol=0, atol=1e-5, err_msg=name)


def test_parameter_count_is_torchvisions():
    model = Classifier(VGG(), VGGEmbedding(), num_classes=1000)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == 138_357_544


def test_strides_and_channels_are_those_of_the_maps():
    model = VGG(stages=((4, 1), (6, 2), (8, 1)))
    maps = jax.eval_shape(lambda k: model.init_with_output(k, jnp.zeros((1, 16, 24, 3)))[0], jax.random.key(0))
    assert set(maps) == set(model.strides) == set(model.channels)
    for name, value in maps.items():
        assert value.shape == (1, 16 // model.strides[name], 24 // model.strides[name], model.channels[name])


def test_dropout_acts_in_training_only():
    model = Classifier(VGG(stages=((4, 1),)), VGGEmbedding(hidden=8), num_classes=3, dropout=0.5)
    x = seeded.image(2, 8, 8, 3)
    variables = seeded.variables(model, x)
    first, second = (
        jax.jit(model.apply, static_argnames="train")(variables, x, train=True, rngs={"dropout": jax.random.key(i, impl="rbg")})
        for i in (1, 2)
    )
    assert np.abs(first - second).max() > 0
    np.testing.assert_array_equal(*(model.apply(variables, x, rngs={"dropout": jax.random.key(i, impl="rbg")}) for i in (1, 2)))
