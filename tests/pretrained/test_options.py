"""Weights meet the network that they were trained in, by its options, or are refused; on the way out as on the way in."""

import pytest
from ml_collections import ConfigDict

from imgrec_jax.assemble.pretrained import _check_options
from imgrec_jax.inference.export import _refuse_other_networks
from imgrec_jax.pretrained.known import options_of
from tests.goldens.make_zoo import CASES


@pytest.mark.parametrize("key", CASES)
def test_the_options_of_the_originals_are_known(key):
    case = CASES[key]
    told = {name: value for name, value in case.options.items() if name in ("padding", "norm_epsilon")}
    known = options_of(case.layout, case.name, f"hf:timm/{case.reference}.x" if case.layout == "timm" else key)
    assert {**known, **told} == known, "what the golden needs is not known"


def test_other_options_are_refused_with_the_flags_that_are_right():
    model = ConfigDict({"name": "mobilenet_v2", "padding": "torch", "norm_epsilon": 1e-5})
    _check_options(model, "torchvision", "torchvision/mobilenet_v2.IMAGENET1K_V1")
    with pytest.raises(ValueError, match=r"--config\.model\.padding=tf --config\.model\.norm_epsilon=0\.001"):
        _check_options(model, "keras", "mobilenet_v2.h5")
    detector = ConfigDict({"name": "resnet_fpn_detector", "backbone": "resnet50", "norm_epsilon": 1e-5})
    for name in ("fasterrcnn", "maskrcnn", "retinanet"):
        with pytest.raises(ValueError, match=r"--config\.model\.norm_epsilon=0\.0"):
            _check_options(detector, "detector", f"torchvision/{name}_resnet50_fpn.COCO_V1")
        _check_options(detector, "detector", f"torchvision/{name}_resnet50_fpn_v2.COCO_V1")


@pytest.mark.parametrize(
    "options", [{"stem": "cifar"}, {"norm": "group"}, {"norm_epsilon": 1e-3}, {"shortcut": "pad"}, {"stem_abs": True}]
)
def test_a_network_that_torchvision_has_not_is_not_exported(options):
    _refuse_other_networks(ConfigDict({"name": "resnet18", "stem": "imagenet", "norm": "batch", "norm_epsilon": 1e-5}))
    with pytest.raises(ValueError, match=f"torchvision has no resnet18 with {next(iter(options))}="):
        _refuse_other_networks(ConfigDict({"name": "resnet18", **options}))
