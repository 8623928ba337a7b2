"""The zoo against the original networks: names, shapes and counts of all of them, and logits for seeded weights."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax.models import transformer, zoo
from imgrec_jax.pretrained import names
from tests.goldens import seeded
from tests.goldens.make_zoo import CASES, GOLDEN, digest

QUICK = {"xla_backend_optimization_level": 0}  # compiling is what takes the time here
# One of each block and layout, of the cheaper networks; the others are slow tests.
FAST = (
    "torchvision/resnext50_32x4d", "torchvision/mobilenet_v3_small", "torchvision/convnext_tiny", "torchvision/swin_t",
    "timm/vit_small_patch16_224", "pytorch/efficientnet-lite0", "keras/MobileNet",
)  # fmt: skip
ALL = [pytest.param(key, marks=() if key in FAST else pytest.mark.slow) for key in CASES]


@functools.cache
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


@functools.cache
def abstract(name: str, options: tuple, size: tuple[int, ...]) -> dict:
    model = zoo.make_classifier(name, **dict(options))
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(size))


def flat(case) -> dict[str, jax.ShapeDtypeStruct]:
    """{path: shape} of the case's variables."""
    variables = abstract(case.name, tuple(case.options.items()), (1, *case.image[1:]))
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    return {"/".join(part.key for part in path[1:]): value for path, value in leaves}


def theirs(case) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{our path: (their name, their shape)}, by our tables alone."""
    shapes = flat(case)
    table = names.of_classifier(zoo.ARCHITECTURES[case.name].family, case.layout, set(shapes), "backbone/")
    assert table.keys() == shapes.keys()

    def shape(path):
        return names.to_theirs(np.broadcast_to(np.float32(0), shapes[path].shape), path, table[path], case.layout).shape

    return {path: (name, shape(path)) for path, name in table.items()}


@pytest.mark.parametrize("key", ALL)
def test_names_shapes_and_counts_are_the_originals(key):
    case = CASES[key]
    table = theirs(case)
    count, expected = golden()[f"{key}/counts"]
    assert digest(dict(table.values())) == expected
    options = {k: v for k, v in case.options.items() if k != "hidden"}
    variables = abstract(case.name, tuple(options.items()), (1, *case.image[1:]))
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == count


@pytest.mark.parametrize("key", ALL)
def test_logits_are_the_originals(key):
    case, shapes = CASES[key], flat(CASES[key])
    make = seeded.keras_weights if case.layout == "keras" else seeded.weights
    weights = make(dict(theirs(case).values()))
    table = theirs(case)
    values = {path: names.to_ours(weights[name], path, shapes[path].shape, case.layout) for path, (name, _) in table.items()}
    variables = jax.tree_util.tree_map_with_path(
        lambda path, _: values["/".join(part.key for part in path[1:])],
        abstract(case.name, tuple(case.options.items()), (1, *case.image[1:])),
    )
    model = zoo.make_classifier(case.name, **case.options)
    image = seeded.image(*case.image)
    logits = jax.jit(model.apply).lower(variables, image).compile(compiler_options=QUICK)(variables, image)
    expected = golden()[f"{key}/logits"]
    difference = np.abs(seeded.subsample(logits, 100) - expected).max()
    assert difference <= 1e-4 * max(1.0, np.abs(expected).max()), difference


def test_a_plain_vit_has_fixed_positions_and_no_token():
    """Beyer et al. 2022: sines and cosines of both axes; the mean of the tokens is the embedding."""
    height, width, channels = 3, 4, 8
    table = transformer.sines(height, width, channels)
    for row, (y, x) in enumerate(itertools.product(range(height), range(width))):
        frequencies = [1.0, 1e-4]
        expected = [f(p * w) for p in (x, y) for f in (math.sin, math.cos) for w in frequencies]
        np.testing.assert_allclose(table[row], expected, atol=1e-6)
    with pytest.raises(ValueError, match="6 channels; positions of sines and cosines need a multiple of 4"):
        transformer.sines(2, 2, 6)
    model = zoo.make_classifier("vit_s_16", num_classes=5, plain=True)
    image = jax.random.normal(jax.random.key(0), (1, 32, 48, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(1), image))["params"]["backbone"]
    assert "class_token" not in shapes and "pos_embedding" not in shapes
    small = transformer.ViT(16, 1, 2, 16, plain=True)
    variables = small.init(jax.random.key(1), image)
    maps = small.apply(variables, image)
    assert list(maps) == ["tokens"] and maps["tokens"].shape == (1, 2, 3, 16)
    swapped = small.apply(variables, image[:, :, ::-1])["tokens"][:, :, ::-1]
    assert not np.allclose(maps["tokens"], swapped, atol=1e-3)  # where a patch lies counts
