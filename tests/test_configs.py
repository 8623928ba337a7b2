"""Every config and variant is complete and names only what exists."""

import importlib.util
from pathlib import Path

import pytest

from imgrec_jax import build

CONFIGS = Path(__file__).parents[1] / "configs"
VARIANTS = {
    "mnist": ["", "linear", "softmax", "mlp", "seed_b", "fast", "best", "tiny"],
    "image_classification": ["32", "64"],
    "scenes_detection": ["faster", "fast", "rcnn", "faster,tiny"],
    "coco_faster_rcnn": ["", "tiny"],
    "scenes_segmentation": ["unet", "fcn32s", "fcn16s", "fcn8s", "unet,tiny"],
    "nuclei_unet": ["", "border", "tiny"],
    "pets_unet": ["", "tiny"],
    "coco_fcn_resnet50": ["", "tiny"],
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
    build.check(config)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_an_unknown_variant_is_refused(name):
    with pytest.raises(ValueError, match="unknown variant 'nonesuch'"):
        load(name).get_config("nonesuch")
