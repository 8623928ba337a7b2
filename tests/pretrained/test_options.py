"""Weights meet the network that they were trained in, by its options, or are refused; on the way out as on the way in."""

import inspect
import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from imgrec_jax import assemble
from imgrec_jax.assemble import as_torchvision, as_trained, pretrained
from imgrec_jax.assemble.components import options_like
from imgrec_jax.assemble.model import MODELS
from imgrec_jax.assemble.pretrained import _check_options
from imgrec_jax.config import from_plain, load, to_plain
from imgrec_jax.models.classifiers import FIELDS
from imgrec_jax.models.resnet import RESNETS
from imgrec_jax.models.zoo import ARCHITECTURES
from imgrec_jax.overrides import configure
from imgrec_jax.pretrained import fetch
from imgrec_jax.pretrained.known import COCO_91, KNOWN, options_of
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


TF = {"padding": "tf", "norm_epsilon": 1e-3}
UNET, DETECTOR = ({"name": name, "num_classes": 3} for name in ("backbone_unet", "resnet_fpn_detector"))


@pytest.mark.parametrize("model", [UNET, {**DETECTOR, "norm_epsilon": 1e-5}], ids=["unet", "detector"])
def test_the_options_of_a_backbone_are_those_that_take_effect(model):
    """Those of `trunk`, else the architecture's own; a detector's norm_epsilon is handed to ResNets alone."""
    model = {**model, "backbone": "mobilenet_v2"}
    _check_options(ConfigDict({**model, "trunk": TF}), "keras", "mobilenet_v2.h5")
    _check_options(ConfigDict(model), "timm", "hf:timm/mobilenetv2_100.ra_in1k")
    with pytest.raises(
        ValueError, match=r"has padding=torch.*--config\.model\.trunk=\"\{'drop_path': 0\.1, 'padding': 'tf', 'norm_ep"
    ):
        _check_options(ConfigDict({**model, "trunk": {"drop_path": 0.1}}), "keras", "mobilenet_v2.h5")
    with pytest.raises(ValueError, match="it would compute something else"):
        _check_options(ConfigDict({**model, "trunk": TF}), "timm", "hf:timm/mobilenetv2_100.ra_in1k")
    densenet = ConfigDict({**model, "backbone": "densenet121", "trunk": {"norm_epsilon": 1.001e-5}})
    _check_options(densenet, "keras", "densenet121.h5")


def test_the_options_of_a_run_are_those_of_its_weights():
    trained = ConfigDict({**UNET, "backbone": "mobilenet_v2", "trunk": {**TF, "drop_path": 0.1}})
    assert _check_options(ConfigDict({**UNET, "backbone": "mobilenet_v2", "trunk": TF}), "own", "runs/a", "", trained) == []
    _check_options(ConfigDict({**UNET, "backbone": "resnet18"}), "own", "runs/fasterrcnn_resnet50_fpn_coco", "", trained)
    with pytest.raises(ValueError, match="it would compute something else"):
        _check_options(ConfigDict({**UNET, "backbone": "mobilenet_v2"}), "own", "runs/a", "", trained)


def changed(value):
    """Another value of an option."""
    others = {"relu": "tanh", "VALID": "SAME", "same": "valid", "bilinear": "transposed", "transposed": "bilinear"}
    if isinstance(value, tuple):
        return (*map(changed, value),) or (3,)
    return others.get(value, f"other {value}") if isinstance(value, str) else not value if value in (0, 1) else value + 1


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ARCHITECTURES])
def test_every_option_of_a_run_that_weights_do_not_show_is_compared(name):
    """Refused where layers compute something else by their weights, said where it is a choice, passed over where names tell."""
    factory = MODELS[name].factory
    options = {k: o.default for k, o in options_like(FIELDS.get(factory, factory)).items() if k not in ("trunk", "backbone")}
    options = {k: 2 if value is inspect.Parameter.empty else value for k, value in options.items()}
    trained = ConfigDict({"name": name, **options})
    for key, value in options.items():
        model = ConfigDict({"name": name, **options, key: changed(value)})
        if key in ("activation", "padding", "norm_epsilon"):
            with pytest.raises(ValueError, match=f"trained with .*{key}=.*it would compute something else; give .*{key}="):
                _check_options(model, "own", "runs/a", "", trained)
        else:
            said = _check_options(model, "own", "runs/a", "", from_plain({"model": to_plain(trained)}).model)
            free = key in ("num_classes", "kind", "head", "norm", "kernel_init", "dropout", "remat", "score_levels", "aux")
            assert [line.split("=")[0] for line in said] == ([] if free else [f"options     {key}"])
    assert _check_options(trained, "own", "runs/a", "", from_plain({"model": to_plain(trained)}).model) == []


def test_a_trunk_can_be_given_on_the_command_line():
    given = {"model.backbone": "mobilenet_v2", "model.trunk": str(TF)}
    assert configure("configs/coco_faster_rcnn.py", given)[0].model.trunk.to_dict() == TF
    assert "trunk" not in configure("configs/coco_faster_rcnn.py", {"model.backbone": "mobilenet_v2"})[0].model


def test_what_timm_calls_a_network_is_read_beside_the_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "tf_efficientnet_b0", "pretrained_cfg": {}}))
    assert fetch.beside(tmp_path / "model.safetensors").architecture == "tf_efficientnet_b0"
    (tmp_path / "config.json").write_text("[]")
    assert fetch.beside(tmp_path / "model.safetensors") == fetch.Stated()
    torch = {"padding": "torch", "norm_epsilon": 1e-5}
    assert options_of("timm", "efficientnet_b0", "x/model.safetensors", "tf_efficientnet_b0") == TF
    assert options_of("timm", "efficientnet_b0", "tf_x/model.safetensors", "efficientnet_b0") == torch
    assert options_of("timm", "efficientnet_b0", "/d/tf_efficientnet_b0/model.safetensors") == TF
    assert options_of("timm", "efficientnet_lite0", "hf:timm/efficientnet_lite0.ra_in1k") == torch
    assert options_of("timm", "efficientnet_lite0", "hf:timm/tf_efficientnet_lite0.in1k") == TF


def test_released_detectors_are_known_by_the_names_of_their_files():
    files = {name: known.url.rpartition("/")[2] for name, known in KNOWN.items() if ".COCO_V1" in name}
    assert len(files) == 6
    for name, file in files.items():
        wanted = {} if "_v2" in name else {"norm_epsilon": 0.0}
        assert options_of("detector", "resnet50", name) == options_of("detector", "resnet50", f"/d/{file}") == wanted


def test_a_released_file_is_known_by_its_checksum(tmp_path, monkeypatch):
    save_file({"head.classification_head.cls_logits.weight": np.ones(2, np.float32)}, tmp_path / "mine.safetensors")
    name = "torchvision/retinanet_resnet50_fpn.COCO_V1"
    digest = fetch.sha256(tmp_path / "mine.safetensors")
    monkeypatch.setitem(KNOWN, name, KNOWN[name]._replace(sha256=digest[:8]))
    section = ConfigDict({"path": str(tmp_path / "mine.safetensors"), "licence": "", "class_names": ()})
    loaded = pretrained.load(section)
    assert (loaded.released, loaded.classes) == (name, COCO_91) and loaded.preprocessing == KNOWN[name].preprocessing


@pytest.mark.parametrize(
    ("head", "shorter"), [("head.classification_head.cls_logits", 800), ("roi_heads.x", 800), ("classifier.4", 520)]
)
def test_the_preprocessing_of_a_detectors_file_is_a_detectors(head, shorter):
    tensors = {name: np.ones(1) for name in ("backbone.body.conv1.weight", f"{head}.weight")}
    assert pretrained.preprocessing_of(pretrained.Loaded(tensors, "", "", "", None, ())).resize_shorter == shorter


@pytest.mark.parametrize(("crop", "side"), [(0.95, 235), (0.9, 248), (0.965, 232), (None, 256), (1.0, 224)])
def test_timms_crop_is_timms_size(tmp_path, crop, side):
    """math.floor(224 / crop_pct), of 0.875 where it is not told: timm/data/transforms_factory.py."""
    stated = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": crop}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "x", "pretrained_cfg": stated}))
    found = fetch.beside(tmp_path / "model.safetensors").preprocessing
    assert (found.resize_shorter, found.crop, found.interpolation) == (side, 224, "bicubic")


@pytest.mark.parametrize(
    ("mode", "percent", "whole", "said"),
    [
        ("squash", 1.0, 224, ""),
        ("squash", 0.9, None, "the middle 224 x 224 pixels of images stretched to 248 (timm's crop_mode='squash')"),
        (
            "border",
            1.0,
            None,
            "the middle 224 x 224 pixels of images in a border, with a longer side of 224",
        ),
    ],
)
def test_timms_other_crops_are_stretched_whole_or_said_not_to_be_used(tmp_path, mode, percent, whole, said):
    stated = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": percent, "crop_mode": mode}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "x", "pretrained_cfg": stated}))
    found = fetch.beside(tmp_path / "model.safetensors").preprocessing
    assert (found.resize_shorter, found.crop, found.mean) == (None, whole, (0.5, 0.5, 0.5))
    config = assemble.complete(load("image_folder"))
    config.pretrained.head = "keep"
    as_trained.settle(config, found)
    assert config.data.options.size == (whole and (whole, whole)) and "resize" in config.data.eval_ops
    config.data.eval_ops.resize.size = (whole or 64, whole or 64)
    line = as_trained.describe(config, found)
    assert line.startswith(
        "preprocessing as trained: mean and standard deviation" + (", 224 x 224 pixels" if whole else "; not")
    )
    assert said in line and ("not used" in line) == bool(said)


RESNET18, FASTER = (
    {"name": "resnet18"},
    {**DETECTOR, "backbone": "resnet50", "kind": "faster", "norm": "frozen", "norm_epsilon": 1e-5},
)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_the_networks_of_torchvision_are_exported(name):
    """With live norms and frozen ones; whether there are names for the weights is not asked here."""
    for norm in ("batch", "frozen"):
        if name != "vit_s_16":
            as_torchvision.check(ConfigDict({"name": name, "num_classes": 5, "norm": norm, "drop_path": 0.1}))
        if name in RESNETS:
            for kind in ("faster", "mask", "retina"):
                for epsilon in (0.0, 1e-5):
                    given = {"backbone": name, "kind": kind, "norm": norm, "norm_epsilon": epsilon}
                    as_torchvision.check(ConfigDict({**DETECTOR, **given}))
    as_torchvision.check(ConfigDict({"name": "fasterrcnn_resnet50_fpn_v2", "norm": "batch"}))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        *(
            ({**RESNET18, key: value}, f"resnet18 with {key}=")
            for key, value in {"stem": "cifar", "norm": "group", "norm_epsilon": 1e-3}.items()
        ),
        ({"name": "vgg16", "hidden": 512}, "vgg16 with hidden=512"),
        ({"name": "vgg16_bn", "pool_only": True}, "vgg16_bn with pool_only=True"),
        ({"name": "mobilenet_v2", **TF}, "mobilenet_v2 with padding='tf', norm_epsilon=0.001"),
        ({"name": "densenet121", "norm_epsilon": 1.001e-5}, "densenet121 with norm_epsilon=1.001e-05"),
        ({"name": "vit_s_16"}, "vit_s_16; "),
        *(({"name": "small_detector", "kind": kind}, "small_detector") for kind in ("fast", "faster", "mask", "retina")),
        *(({**FASTER, "kind": kind}, f"resnet_fpn_detector with kind='{kind}'") for kind in ("rcnn", "fast")),
        ({**FASTER, "norm_epsilon": 0.01}, "resnet_fpn_detector with norm_epsilon=0.01"),
        ({**FASTER, "norm": "group"}, "resnet_fpn_detector with norm='group'"),
        ({**FASTER, "trunk": {"norm": "group"}}, "resnet_fpn_detector with norm='group'"),
        ({**FASTER, "trunk": {"norm_epsilon": 0.01}}, "resnet_fpn_detector with norm_epsilon=0.01"),
        ({**FASTER, "trunk": {"stem": "cifar"}}, "resnet_fpn_detector with stem='cifar'"),
        ({**FASTER, "backbone": "small_resnet"}, "resnet_fpn_detector with backbone='small_resnet'"),
        ({"name": "fcn_resnet50", "norm": "group"}, "fcn_resnet50 with norm='group'"),
    ],
)
def test_a_network_that_torchvision_has_not_is_not_exported(model, said):
    with pytest.raises(ValueError, match=f"torchvision has no {said}.*--format=stablehlo and --format=onnx"):
        as_torchvision.check(ConfigDict(model))
