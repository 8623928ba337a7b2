"""config.pretrained: a file's weights reach the model that a config builds, and every misfit is named."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from imgrec_jax import assemble
from imgrec_jax.assemble import pretrained
from imgrec_jax.assemble.model import make_model
from imgrec_jax.assemble.pretrained import make_initialise
from tests.goldens import seeded

ROOT = Path(__file__).parents[1]


def resnet18_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's resnet18 classifier."""
    shapes = {"conv1.weight": (64, 3, 7, 7), "fc.weight": (1000, 512), "fc.bias": (1000,)}
    norms = {"bn1": 64}
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            name, inputs = f"layer{stage}.{block}", width if block or stage == 1 else width // 2
            shapes |= {f"{name}.conv1.weight": (width, inputs, 3, 3), f"{name}.conv2.weight": (width, width, 3, 3)}
            norms |= {f"{name}.bn1": width, f"{name}.bn2": width}
            if inputs != width:
                shapes[f"{name}.downsample.0.weight"] = (width, inputs, 1, 1)
                norms[f"{name}.downsample.1"] = width
    for name, width in norms.items():
        shapes |= {f"{name}.{leaf}": (width,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return shapes


@pytest.fixture
def config(tmp_path):
    spec = importlib.util.spec_from_file_location("coco_faster_rcnn", ROOT / "configs" / "coco_faster_rcnn.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("tiny")
    config.model.backbone, config.model.num_classes = "resnet18", 3
    config.pretrained.path = str(tmp_path / "resnet18.safetensors")
    save_file(seeded.weights(resnet18_shapes()), config.pretrained.path)
    return config


def fresh(config) -> dict:
    model = make_model(config)
    spec = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32), jax.ShapeDtypeStruct((1, 1, 4), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *spec, jax.ShapeDtypeStruct((1, 1), np.bool_))
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def test_a_classifier_becomes_the_backbone_of_a_detector(config):
    config.pretrained.allow_unexpected = ("^fc/",)
    config.pretrained.allow_missing = ("^backbone/fpn/", "^rpn/", "^roi_heads/")
    assemble.check(config)
    variables, report = make_initialise(config)(fresh(config))
    expected = seeded.weights(resnet18_shapes())
    body, stats = variables["params"]["backbone"]["body"], variables["batch_stats"]["backbone"]["body"]
    kernel = expected["layer3.0.downsample.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(body["layer3_0"]["downsample_0"]["kernel"], kernel)
    np.testing.assert_array_equal(stats["layer4_1"]["bn2"]["var"], expected["layer4.1.bn2.running_var"])
    assert not np.any(variables["params"]["rpn"]["head"]["cls_logits"]["kernel"])
    assert "loaded        100 " in report and "resnet18.safetensors" in report


def test_what_does_not_fit_is_an_error_that_names_it(config):
    with pytest.raises(
        assemble.ConfigError, match=r"resnet18.safetensors: .*missing from the file: .*backbone/fpn/.*allow_missing"
    ):
        make_initialise(config)(fresh(config))
    Path(config.pretrained.path).write_bytes(b"1234")
    with pytest.raises(assemble.ConfigError, match="resnet18.safetensors: .*download"):
        make_initialise(config)(fresh(config))


def test_mistakes_are_found_before_anything_is_built(config):
    config.pretrained.allow_missing = ("(",)
    with pytest.raises(assemble.ConfigError, match=r"allow_missing=.*'\('.*; expected a tuple, each a regular expression"):
        assemble.check(config)
    config.pretrained.allow_missing = ()
    config.pretrained.path = "gone.pth"
    with pytest.raises(assemble.ConfigError, match="config.pretrained.path='gone.pth' is no file"):
        pretrained.check_file(config)
    assemble.check(config)  # a run that has begun needs it no more
    config.pretrained.format = "torchvison"
    with pytest.raises(assemble.ConfigError, match=r"format='torchvison' is unknown; choose one of \['auto'\]"):
        assemble.check(config)


def test_without_a_file_there_is_nothing_to_do(config):
    config.pretrained.path = ""
    assert make_initialise(config) is None
