"""Names and layouts: every name of torchvision's detectors and networks finds one place, and fc6 is permuted."""

from pathlib import Path

import jax
import numpy as np
import pytest

from imgrec_jax.pretrained.names import of_whole
from tests import torchvision_names as names
from tests.pretrained.test_export import abstract

KEYS = Path(__file__).parents[3] / "shared/specs/torchvision_state_dict_keys.txt"


@pytest.mark.parametrize(
    ("source", "ndim", "path"),
    [
        ("conv1.weight", 4, "conv1/kernel"),
        ("backbone.body.bn1.weight", 1, "backbone/body/bn1/scale"),
        ("backbone.body.layer1.0.bn1.running_var", 1, "backbone/body/layer1_0/bn1/var"),
        ("backbone.body.layer4.2.downsample.1.bias", 1, "backbone/body/layer4_2/downsample_1/bias"),
        ("backbone.fpn.inner_blocks.3.0.bias", 1, "backbone/fpn/inner_blocks_3_0/bias"),
        ("rpn.head.conv.1.0.weight", 4, "rpn/head/conv_1_0/kernel"),
        ("roi_heads.box_head.fc6.weight", 2, "roi_heads/box_head/fc6/kernel"),
        ("classifier.4.weight", 4, "classifier_4/kernel"),
        ("features.28.bias", 1, "features_28/bias"),
    ],
)
def test_naming_rule(source, ndim, path):
    assert names.our_path(source, ndim) == path


def test_layouts():
    rng = np.random.default_rng(0)
    conv, linear, fc6, bias = (rng.normal(size=s) for s in ((2, 3, 5, 7), (4, 6), (4, 3 * 49), (4,)))
    state = {
        "a.conv.weight": conv,
        "fc.weight": linear,
        "fc.bias": bias,
        "roi_heads.box_head.fc6.weight": fc6,
        "bn.num_batches_tracked": np.zeros(()),
    }
    tensors, sources = names.convert(state)
    assert sources["a/conv/kernel"] == "a.conv.weight" and len(tensors) == 4
    np.testing.assert_array_equal(tensors["a/conv/kernel"][4, 6, 2, 1], conv[1, 2, 4, 6])
    np.testing.assert_array_equal(tensors["fc/kernel"], linear.T)
    np.testing.assert_array_equal(tensors["fc/bias"], bias)
    feature_map = rng.normal(size=(7, 7, 3))  # ours is [H, W, C]; torch flattens [C, H, W]
    np.testing.assert_allclose(
        feature_map.reshape(-1) @ tensors["roi_heads/box_head/fc6/kernel"],
        fc6 @ feature_map.transpose(2, 0, 1).reshape(-1),
    )


def test_vgg_detector_reuses_the_classifier():
    state = {"features.0.weight": np.zeros((64, 3, 3, 3)), "classifier.0.weight": np.zeros((8, 2 * 49))}
    state["classifier.3.bias"] = np.zeros(8)
    assert set(names.vgg16_detector(state).tensors) == {
        "backbone/features_0/kernel",
        "roi_heads/box_head/fc6/kernel",
        "roi_heads/box_head/fc7/bias",
    }


def test_errors_name_the_tensor():
    with pytest.raises(ValueError, match="a.momentum: expected a name that ends in"):
        names.convert({"a.momentum": np.zeros(3)})
    with pytest.raises(ValueError, match="embedding.fc6.weight: 50 inputs"):
        names.vgg16({"classifier.0.weight": np.zeros((2, 50))})
    both = {"rpn.head.conv.weight": np.zeros((1, 1, 3, 3)), "rpn.head.conv.0.0.weight": np.zeros((1, 1, 3, 3))}
    with pytest.raises(ValueError, match="mixes two naming schemes"):
        names.detector(both)


def published_keys() -> dict[str, dict[str, tuple[int, ...]]]:
    sections: dict[str, dict[str, tuple[int, ...]]] = {}
    for line in KEYS.read_text().splitlines():
        if line.startswith("## "):
            current = sections.setdefault(line[3:].split(" (")[0], {})
        elif "\t" in line:
            name, shape = line.split("\t")
            current[name] = tuple(int(n) for n in shape.strip("()").split(",") if n)
    return sections


@pytest.mark.skipif(not KEYS.exists(), reason=f"{KEYS} is absent")
def test_every_published_detector_name_has_its_own_place():
    sections = published_keys()
    current = sections["fasterrcnn_resnet50_fpn"]
    old = sections["fasterrcnn_resnet50_fpn legacy names"]
    zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in current.items()}
    ours = names.detector(zeros)
    assert len(ours.tensors) == 295

    differing = [n for n in current if "fpn." in n or n.startswith("rpn.head.conv.")]
    legacy_state = {n: v for n, v in zeros.items() if n not in differing}
    legacy_state |= {n: np.broadcast_to(np.float32(0), shape) for n, shape in old.items()}
    legacy = names.detector(legacy_state)
    assert {n: v.shape for n, v in legacy.tensors.items()} == {n: v.shape for n, v in ours.tensors.items()}

    v2 = sections["fasterrcnn_resnet50_fpn_v2"]
    converted = names.detector({n: np.broadcast_to(np.float32(0), s) for n, s in v2.items()})
    assert len(converted.tensors) == sum("num_batches" not in n for n in v2)
    assert converted.tensors["roi_heads/box_head/fc/kernel"].shape == (12544, 1024)
    assert {"roi_heads/box_head/conv_3/kernel", "roi_heads/box_head/norm_3/mean"} <= set(converted.tensors)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fasterrcnn_resnet50_fpn", "detector"),
        ("maskrcnn_resnet50_fpn", "detector"),
        ("maskrcnn_resnet50_fpn_v2", "detector"),
        ("retinanet_resnet50_fpn", "detector"),
        ("retinanet_resnet50_fpn_v2", "detector"),
        ("fcn_resnet50", "fcn"),
    ],
)
def test_the_product_s_table_says_the_same(name, kind):
    leaves = jax.tree_util.tree_leaves_with_path(abstract(name))
    ndims = {"/".join(part.key for part in path[1:]): leaf.ndim for path, leaf in leaves}
    table = of_whole(kind, set(ndims))
    assert table.keys() == ndims.keys()
    rename = names.RENAME_DETECTOR if kind == "detector" else ()
    for path, theirs in table.items():
        assert list(
            names.convert({theirs: np.zeros((49,) * min(ndims[path], 2) + (1,) * (ndims[path] - 2))}, rename).tensors
        ) == [path]
