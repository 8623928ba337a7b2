"""Weights in and out: torchvision's state dict -> our variables -> torchvision's names, bit for bit."""

import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from imgrec_jax import assemble, export
from imgrec_jax.assemble import pretrained
from imgrec_jax.inference.export import write_torchvision
from imgrec_jax.models import detectors, segmenters, zoo
from imgrec_jax.overrides import configure
from imgrec_jax.pretrained import fetch, fit, names, torch_file
from imgrec_jax.pretrained.export import torchvision_state
from imgrec_jax.pretrained.merge import merge
from tests.goldens import seeded


def zoo_model(name):
    return zoo.make_classifier(name), (jnp.zeros((1, 64, 64, 3)),)


def detector(name):
    make = {"v1": detectors.make_resnet_fpn, "v2": detectors.DETECTORS["fasterrcnn_resnet50_fpn_v2"]}[name]
    boxes = jnp.zeros((1, 2, 4)), jnp.ones((1, 2), bool)
    return make(num_classes=91, norm="batch"), (jnp.zeros((1, 64, 64, 3)), *boxes)


def with_masks(name):
    make = {"v1": detectors.make_resnet_fpn, "v2": detectors.DETECTORS["maskrcnn_resnet50_fpn_v2"]}[name]
    boxes = jnp.zeros((1, 2, 4)), jnp.ones((1, 2), bool)
    kind = {"kind": "mask"} if name == "v1" else {}
    return make(num_classes=91, norm="batch", **kind), (jnp.zeros((1, 64, 64, 3)), *boxes)


def one_stage(name):
    options = {"num_classes": 91, "norm": "batch"}
    if name == "v1":
        return detectors.make_resnet_fpn(kind="retina", **options), (jnp.zeros((1, 128, 128, 3)),)
    return detectors.DETECTORS["retinanet_resnet50_fpn_v2"](**options), (jnp.zeros((1, 128, 128, 3)),)


MODELS = {
    "maskrcnn_resnet50_fpn": lambda: with_masks("v1"),
    "maskrcnn_resnet50_fpn_v2": lambda: with_masks("v2"),
    "retinanet_resnet50_fpn": lambda: one_stage("v1"),
    "retinanet_resnet50_fpn_v2": lambda: one_stage("v2"),
    "fasterrcnn_resnet50_fpn": lambda: detector("v1"),
    "fasterrcnn_resnet50_fpn_v2": lambda: detector("v2"),
    "fcn_resnet50": lambda: (segmenters.SEGMENTERS["fcn_resnet50"](num_classes=21), (jnp.zeros((1, 64, 64, 3)),)),
    **{name: (lambda name=name: zoo_model(name)) for name in (
        "resnet50", "vgg16", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "densenet121", "convnext_tiny",
        "vit_b_16", "swin_t",
    )},
}  # fmt: skip


@functools.cache
def abstract(name):
    model, inputs = MODELS[name]()
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)


def random_variables(name):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.random(x.shape, np.float32), abstract(name))


def read_back(name, state):
    variables = abstract(name)
    flat = {"/".join(p.key for p in path[1:]): x for path, x in jax.tree_util.tree_leaves_with_path(variables)}
    tensors = fit.with_todays_names(state)
    found = fit.find(tensors, flat)
    ours = {path: names.to_ours(tensors[theirs], path, flat[path].shape, found.layout) for path, theirs in found.names.items()}
    merged, report = merge(variables, ours)
    assert not report.missing and not report.unexpected and not report.wrong_shape
    assert set(found.names.values()) == set(tensors)
    return merged


LARGE = (
    "maskrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fcn_resnet50",
    "resnet50",
    "vgg16",
    "densenet121",
    "convnext_tiny",
    "vit_b_16",
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in LARGE else ()) for n in MODELS])
def test_out_and_in_again_is_the_same_bit_for_bit(name):
    variables = random_variables(name)
    again = read_back(name, torchvision_state(variables))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, variables, again)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [*(n for n in MODELS if "_fpn" in n), "resnet50", "fcn_resnet50", "vgg16", "swin_t", "mobilenet_v2"],
)
def test_the_real_torchvision_takes_it_strictly(name):
    """In -> out -> torchvision, strict, bit for bit."""
    torchvision = seeded.import_torchvision()
    import torch

    extra = {"weights_backbone": None} if "_fpn" in name or "fcn" in name else {}
    extra |= {"aux_loss": True} if "fcn" in name else {}
    model = torchvision.models.get_model(name, weights=None, **extra)
    before = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    state = torchvision_state(read_back(name, before))
    model.load_state_dict({k: torch.from_numpy(v) for k, v in state.items()}, strict=True)
    after = {k: v.numpy() for k, v in model.state_dict().items()}
    assert before.keys() == after.keys() == state.keys()
    assert all(np.array_equal(before[k], after[k]) for k in before)


def test_what_torchvision_does_not_have_is_an_error():
    with pytest.raises(ValueError, match="torchvision has no network of this architecture"):
        torchvision_state(jax.tree.map(lambda x: np.zeros(x.shape, np.float32), random_variables_of_lite()))


def random_variables_of_lite():
    model = zoo.make_classifier("efficientnet_lite0", num_classes=3)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))


def test_the_command_says_what_cannot_be_exported(finished):
    with pytest.raises(SystemExit, match="error: torchvision has no network of this architecture"):
        export.main([f"--workdir={finished['classification']}", "--format=torchvision"])
    with pytest.raises(SystemExit, match="error: .*invalid choice: 'pickle'"):
        export.main([f"--workdir={finished['classification']}", "--format=pickle"])


def run_of(model: str, task: str = "classification", side: int = 32):
    """What is asked of a run that is exported, with weights of zeros."""
    shapes = jax.eval_shape(zoo.make_classifier(model, num_classes=2).init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    config = {"task": task, "model": {"name": model, "num_classes": 2, "norm": "batch"}}
    config["data"] = {"mean": (0.1, 0.2, 0.3), "std": (0.04, 0.05, 0.06)}
    return SimpleNamespace(
        config=ConfigDict(config), variables=jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes), step=1,
        class_names=("cat", "dog"), started_from={"licence": "CC-BY-NC-4.0"}, image_size=(side, side),
    )  # fmt: skip


@pytest.mark.parametrize("head", ["keep", "match"])
def test_a_file_of_ours_says_what_a_run_that_begins_with_it_asks_for(tmp_path, head):
    write_torchvision(run_of("mobilenet_v3_small"), tmp_path / "a.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"mean": [0.5] * 3, "std": [0.5] * 3}))  # of another file
    given = {"model.name": "mobilenet_v3_small", "pretrained.path": str(tmp_path / "a.safetensors"), "pretrained.head": head}
    config = assemble.complete(configure("image_folder", given)[0])
    assert (config.data.mean, config.data.std) == ((0.1, 0.2, 0.3), (0.04, 0.05, 0.06)) and config.data.options.size == (32, 32)
    loaded = pretrained.load(config.pretrained)
    assert (loaded.classes, loaded.licence, loaded.model.name) == (("cat", "dog"), "CC-BY-NC-4.0", "mobilenet_v3_small")
    config.model.num_classes = 2
    fresh = jax.tree.map(lambda x: np.ones(x.shape, np.float32), run_of("mobilenet_v3_small").variables)
    _, text = pretrained.make_initialise(config, ("dog", "cat"))(fresh)
    assert "preprocessing as trained: mean and standard deviation" in text and "it forbids commercial use" in text
    assert ("2 of 2 by name" in text) == (head == "match")
    config.model.padding = "tf"
    with pytest.raises(assemble.ConfigError, match="trained with .*padding=torch.*would compute something else"):
        pretrained.make_initialise(config, ("dog", "cat"))(fresh)


def test_a_detectors_file_has_its_background(tmp_path):
    metadata = {"mean": "[0.5]", "std": "[0.5]", "class_names": '["cat"]', "pretrained": "null"}
    for name, classes in (
        ("roi_heads.box_predictor.cls_score.weight", ("__background__", "cat")),
        ("classifier.4.weight", ("cat",)),
    ):
        save_file({name: np.ones(2, np.float32)}, tmp_path / f"{name}.safetensors", metadata=metadata)
        section = ConfigDict({"path": str(tmp_path / f"{name}.safetensors"), "licence": "", "class_names": ()})
        assert pretrained.load(section).classes == classes and pretrained.load(section).preprocessing.mean == (0.5,)


@pytest.mark.parametrize("metadata", [{}, {"mean": "0.5"}, {"class_names": "cat"}, {"pretrained": "[1]"}, {"std": "x"}])
def test_metadata_of_others_say_nothing(tmp_path, metadata):
    (tmp_path / "config.json").write_text(json.dumps({"mean": [0.25] * 3, "std": [0.5] * 3, "license": "mit"}))
    ours = {"mean": "[0.5]", "std": "[0.5]", "class_names": '["cat"]', "pretrained": "null"}
    save_file({"a.weight": np.ones(2)}, tmp_path / "a.safetensors", metadata=metadata and {**ours, **metadata})
    found = fetch.stated(tmp_path / "a.safetensors", torch_file.read_metadata(tmp_path / "a.safetensors"))
    assert (found.preprocessing.mean, found.licence, found.classes) == ((0.25,) * 3, "mit", ())


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a"])
def test_safetensors_are_not_written_under_the_name_of_another_kind(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name} would be a safetensors file.*expected NAME\.safetensors"):
        write_torchvision(run_of("mobilenet_v3_small"), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_torchvisions_networks_take_colours():
    shapes = jax.eval_shape(zoo.make_classifier("resnet18", num_classes=2).init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    with pytest.raises(ValueError, match="images of 3 channels, and this one of 1"):
        torchvision_state(jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes))
