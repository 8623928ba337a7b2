"""Every config and variant is complete and names only what exists."""

import importlib.util
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from imgrec_jax import assemble
from imgrec_jax import config as config_lib
from imgrec_jax.assemble import data, values
from imgrec_jax.config import flatten
from imgrec_jax.overrides import configure

CONFIGS = Path(__file__).parents[1] / "configs"
VARIANTS = {
    "mnist": ["", "linear", "softmax", "mlp", "keras", "seed_b", "fast", "best", "tiny"],
    "image_classification": ["32", "64"],
    "imagenet": ["resnet50", "vit_s16", "vit_s16,tiny"],
    "cifar10": ["resnet18", "resnet18,tiny"],
    "image_folder": ["", "multi_label"],
    "medical_cnn": ["", "224"],
    "own_detection": ["", "tiny"],
    "own_segmentation": ["", "tiny"],
    "scenes_classification": ["", "tiny"],
    "scenes_detection": ["faster", "fast", "rcnn", "mask", "retina", "faster,tiny"],
    "coco_faster_rcnn": ["", "folder", "tiny", "folder,tiny", "folder,overfit", "folder,released", "released_v2"],
    "bccd_faster_rcnn": ["", "tiny"],
    "bccd_retinanet": ["", "tiny"],
    "nuclei_mask_rcnn": ["", "tiny"],
    "coco_mask_rcnn": ["", "tiny", "released", "released_v2"],
    "coco_fast_rcnn": ["", "folder", "tiny", "folder,tiny"],
    "coco_rcnn": ["", "folder", "tiny", "folder,tiny"],
    "scenes_segmentation": ["unet", "fcn32s", "fcn16s", "fcn8s", "unet,tiny"],
    "nuclei_unet": ["", "border", "tiny"],
    "pets_unet": ["", "tiny"],
    "coco_fcn_resnet50": ["", "tiny"],
    "transfer": ["", "probe", "unfreeze", "scratch"],
}


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_config_is_listed_here():
    assert sorted(VARIANTS) == sorted(p.stem for p in CONFIGS.glob("*.py"))


@pytest.mark.parametrize(("name", "variant"), [(name, variant) for name, variants in VARIANTS.items() for variant in variants])
def test_config_is_sound(name, variant):
    config = load(name).get_config(*([variant] if variant else []))
    assert config.is_locked
    if data.entry_of(config).folder and not config.data.manual_dir:
        config.data.manual_dir = "given on the command line"
    assemble.check(config)
    assert values.without_effect(config) == []


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_an_unknown_variant_is_refused(name):
    with pytest.raises(ValueError, match="unknown variant 'nonesuch'"):
        load(name).get_config("nonesuch")


def test_selective_search_takes_the_options_of_the_config():
    config = load("scenes_detection").get_config("fast")
    options = data.make_search(config)
    assert (options.min_region, options.scales, options.max_overlap, options.sigma) == (20, (150.0,), 0.8, 0.8)
    config.data.search = ConfigDict({"min_regoin": 20})
    with pytest.raises(assemble.ConfigError, match=r"config.data.search takes no \['min_regoin'\]"):
        assemble.check(config)
    config.data.search = ConfigDict({"spaces": ("LAB",)})
    with pytest.raises(assemble.ConfigError, match=r"unknown ones: \['LAB'\]"):
        assemble.check(config)


@pytest.mark.parametrize(("kind", "proposals"), [("fast", 0), ("faster", 128)])
def test_proposals_come_from_one_place(kind, proposals):
    config = load("scenes_detection").get_config(kind)
    config.data.max_proposals = proposals
    with pytest.raises(assemble.ConfigError, match=f"max_proposals={proposals}"):
        assemble.check(config)


@pytest.mark.parametrize("name", ["unet", "backbone_unet"])
def test_an_unknown_way_of_upsampling_is_refused(name):
    config = load("scenes_segmentation").get_config("unet")
    config.model = ConfigDict({"name": name, "num_classes": 11, "upsample": "nearest"})
    with pytest.raises(
        assemble.ConfigError, match=r"model.upsample='nearest' is unknown; choose one of \['bilinear', 'transposed'\]"
    ):
        assemble.check(config)


def test_blood_cells_by_one_stage_and_by_two_differ_in_the_detector_alone():
    one, two = (flatten(load(name).get_config()) for name in ("bccd_retinanet", "bccd_faster_rcnn"))
    of_the_detector = ("detection", "model.kind", "model.head_", "model.neck_norm", "model.tower_depth", "optim.lr_multiplier")
    assert {key for key in one.keys() | two.keys() if one.get(key) != two.get(key)} == {
        key for key in one.keys() | two.keys() if key.startswith(of_the_detector)
    }


@pytest.mark.parametrize("name", [f"{n}:{v}" if v else n for n, variants in VARIANTS.items() for v in variants])
def test_an_option_of_a_component_that_the_config_does_not_write_can_be_given(name):
    before = flatten(config_lib.load(name))
    whole = flatten(assemble.complete(config_lib.load(name), settle=False))
    absent = [key for key, value in whole.items() if key not in before and isinstance(value, int | float | str) and value != ""]
    assert absent
    config, _ = configure(name, {absent[0]: str(whole[absent[0]])})
    assert {key for key, value in before.items() if value != {}} <= flatten(config).keys()  # also what the data are to tell
    with config.unlocked():
        config.data.manual_dir = config.data.manual_dir or "given on the command line"
    assemble.check(assemble.complete(config))
