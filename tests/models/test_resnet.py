"""ResNet against torchvision: golden outputs always, the real torchvision where it is installed."""

import functools
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax.models.norm import make_norm
from imgrec_jax.models.resnet import RESNETS, ResNet, small_resnet
from imgrec_jax.models.zoo import Classifier, GlobalPool
from imgrec_jax.ops.conv import conv_general_dilated
from imgrec_jax.pretrained.merge import merge
from imgrec_jax.pretrained.torch_file import read_tensors
from tests import torchvision_names as names
from tests.goldens import make_backbones, seeded

GOLDENS = Path(__file__).parents[1] / "goldens" / "backbones.npz"
CIFAR = Path(__file__).parents[3] / "shared/data/weights/resnet_cifar10"
CASES = {
    "resnet18": ("resnet18", {}),
    "resnet50": ("resnet50", {}),
    "resnet50_dilated": ("resnet50", {"dilate": (False, False, True, True)}),
}


@functools.cache
def ours(case: str) -> dict[str, np.ndarray]:
    """{map or "logits": array} of our model with the case's seeded weights, loaded as a torchvision state dict."""
    name, options = CASES[case]
    shapes, _ = seeded.read_golden(GOLDENS, case)
    model = Classifier(RESNETS[name](**options), GlobalPool(), num_classes=1000)
    x = seeded.image(*make_backbones.IMAGE)
    abstract = jax.eval_shape(model.init, jax.random.key(0), x)
    converted = names.resnet(seeded.weights(shapes))
    variables, report = merge(abstract, converted.tensors, source_names=converted.source_names)
    assert len(report.loaded) == sum("num_batches" not in name for name in shapes)

    @jax.jit
    def run(variables, x):
        logits, state = model.apply(variables, x, capture_intermediates=lambda module, _: isinstance(module, ResNet))
        return {**state["intermediates"]["backbone"]["__call__"][0], "logits": logits}

    return jax.device_get(run(variables, x))


@pytest.mark.parametrize("case", CASES)
def test_matches_golden_torchvision_outputs(case):
    _, golden = seeded.read_golden(GOLDENS, case)
    seeded.assert_matches(ours(case), golden)


@pytest.mark.parametrize("case", ["resnet18", "resnet50_dilated"])
def test_matches_torchvision_everywhere(case):
    seeded.import_torchvision()
    _, expected = make_backbones.CASES[case]()
    for name, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(ours(case)[name] / scale, value / scale, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("name", "count"),  # torchvision.models.ResNet*_Weights.*.meta["num_params"]
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032), ("resnet101", 44_549_160)],
)
def test_parameter_counts_are_torchvisions(name, count):
    model = Classifier(RESNETS[name](), GlobalPool(), num_classes=1000)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == count


def test_strides_and_channels_are_those_of_the_maps():
    for model in (RESNETS["resnet18"](), RESNETS["resnet50"](dilate=(False, False, True, True)), small_resnet()):
        maps = jax.eval_shape(lambda k, m=model: m.init_with_output(k, jnp.zeros((1, 64, 96, 3)))[0], jax.random.key(0))
        assert set(maps) == set(model.strides) == set(model.channels)
        for name, value in maps.items():
            assert value.shape == (1, 64 // model.strides[name], 96 // model.strides[name], model.channels[name])


def test_a_stem_that_rectifies_by_the_absolute_value_cannot_tell_an_image_from_its_negative():
    x = seeded.image(2, 16, 16, 3)
    for stem_abs in (True, False):
        model = small_resnet(widths=(4, 8), blocks=1, stem_stride=2, stem_width=6, stem_abs=stem_abs)
        variables = model.init(jax.random.key(0), x)  # running means of zero: the norm before it is linear
        maps, negative = (jax.jit(model.apply)(variables, image) for image in (x, -x))
        assert maps["stem"].shape == (2, 8, 8, 6) and (maps["stem"] >= 0).all()
        assert all(np.array_equal(maps[name], negative[name]) for name in maps) == stem_abs


def test_training_updates_running_statistics_and_reaches_every_parameter():
    model = Classifier(small_resnet(widths=(4, 8), blocks=1), GlobalPool(), num_classes=3)
    x = seeded.image(4, 8, 8, 3)
    variables = seeded.variables(model, x)

    def loss(params):
        logits, state = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return (logits * jnp.arange(12.0).reshape(4, 3)).sum(), state

    gradients, state = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))
    changed = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, state["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(changed))


def test_frozen_norm_has_no_parameters_and_its_statistics_stay():
    model = small_resnet(widths=(4, 8), blocks=1, norm=make_norm("frozen", epsilon=0.0))
    x = seeded.image(2, 8, 8, 3)
    variables = seeded.variables(model, x)
    assert {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])} == {"kernel"}
    trained, state = jax.jit(lambda v: model.apply(v, x, train=True, mutable=["batch_stats"]))(variables)
    jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, trained, jax.jit(model.apply)(variables, x))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_remat_patches_convolution_and_bfloat16_compute_the_same(norm):
    options = {"widths": (8, 16), "blocks": 1, "norm": make_norm(norm)}
    x = seeded.image(2, 16, 16, 3)
    plain = small_resnet(**options)
    variables = seeded.variables(plain, x)
    expected = jax.jit(plain.apply)(variables, x)["layer2"]
    conv = functools.partial(nn.Conv, conv_general_dilated=conv_general_dilated)
    for other, atol in (
        (small_resnet(**options, remat=True), 1e-6),
        (small_resnet(**options, conv=conv), 1e-5),
        (small_resnet(**options, dtype=jnp.bfloat16), 0.05),
    ):
        value = jax.jit(other.apply)(variables, x)["layer2"]
        scale = np.abs(expected).max()
        np.testing.assert_allclose(np.asarray(value, np.float32) / scale, expected / scale, rtol=0, atol=atol)
    assert value.dtype == jnp.bfloat16


@pytest.mark.skipif(not CIFAR.exists(), reason=f"{CIFAR} is absent")
@pytest.mark.parametrize(
    ("file", "blocks", "count"),
    [
        ("resnet20-12fca82f.th", 3, 269_722),  # He et al. 2015: 0.27 M
        pytest.param("resnet56-4bfd9763.th", 9, 853_018, marks=pytest.mark.slow),  # 0.85 M
    ],
)
def test_published_cifar10_resnets_load_and_match_torch(file, blocks, count):
    torch = pytest.importorskip("torch")
    tensors = read_tensors(CIFAR / file)
    model = Classifier(small_resnet(blocks=blocks, shortcut="pad"), GlobalPool(), num_classes=10)
    x = seeded.image(2, 32, 32, 3)
    renamed = {name.replace("linear.", "fc."): value for name, value in tensors.items()}
    abstract = jax.eval_shape(model.init, jax.random.key(0), x)
    variables, _ = merge(abstract, names.resnet(renamed).tensors)
    assert sum(p.size for p in jax.tree.leaves(variables["params"])) == count

    expected = _torch_resnet(torch, tensors, torch.from_numpy(x.transpose(0, 3, 1, 2)), blocks)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, x), expected, rtol=1e-4, atol=1e-4)


def _torch_resnet(torch, tensors, x, blocks):
    """He et al. 2015, section 4.2, with option A shortcuts, spelled out in torch functions."""
    functional = torch.nn.functional
    t = {name: torch.from_numpy(value) for name, value in tensors.items()}

    def conv_norm(x, prefix, index, stride=1):
        x = functional.conv2d(x, t[f"{prefix}conv{index}.weight"], stride=stride, padding=1)
        bn = f"{prefix}bn{index}."
        return functional.batch_norm(x, t[bn + "running_mean"], t[bn + "running_var"], t[bn + "weight"], t[bn + "bias"])

    x = conv_norm(x, "", 1).relu()
    for stage in (1, 2, 3):
        for i in range(blocks):
            stride = 2 if stage > 1 and i == 0 else 1
            prefix = f"layer{stage}.{i}."
            y = conv_norm(conv_norm(x, prefix, 1, stride).relu(), prefix, 2)
            extra = y.shape[1] - x.shape[1]
            shortcut = functional.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, extra // 2, extra // 2))
            x = (y + shortcut).relu()
    return functional.linear(x.mean((2, 3)), t["linear.weight"], t["linear.bias"]).numpy()
