"""What weights were trained with is used where a config leaves it open, and one line says what is."""

import json

import pytest

import imgrec_jax
from imgrec_jax import assemble
from imgrec_jax.assemble import as_trained
from imgrec_jax.config import base, difference, from_plain, load, shipped, to_plain
from imgrec_jax.overrides import configure
from imgrec_jax.pretrained.known import IMAGENET_MEAN, Preprocessing

OFFICIAL = "torchvision/efficientnet_b1.IMAGENET1K_V1"  # shorter side 256, centre 240, bicubic
ITS = Preprocessing(256, 240, interpolation="bicubic")


def completed(head: str, config: str = "image_folder", **overrides: str):
    given = {"model.name": "efficientnet_b1", "pretrained.path": OFFICIAL, "pretrained.head": head, **overrides}
    return assemble.complete(configure(config, given)[0])


def test_the_weights_own_classes_are_evaluated_as_they_were():
    config = completed("keep")
    assert "resize" not in config.data.eval_ops and config.data.options.size == () and config.data.mean == IMAGENET_MEAN
    assert config.data.eval_ops.resize_and_center_crop.to_dict() == {
        "shorter": 256, "size": (240, 240), "interpolation": "bicubic", "antialias": True,
    }  # fmt: skip
    assert config.data.train_ops.random_affine.size == (240, 240)
    assert assemble.complete(config) == config
    line = "preprocessing as trained: mean and standard deviation, the middle 240 x 240 pixels of 256, bicubic"
    assert as_trained.describe(config, ITS) == line


def test_for_new_classes_images_have_that_size_and_are_taken_whole():
    config = completed("new")
    assert config.data.options.size == (240, 240) and "resize" in config.data.eval_ops
    config.data.eval_ops.resize.size = (240, 240)  # as the data find it
    assert "240 x 240 pixels; not used: their crop" in as_trained.describe(config, ITS)


@pytest.mark.parametrize("head", ["keep", "new"])
def test_what_the_config_gives_stays(head):
    config = completed(head, **{"data.options.size": "(64, 64)", "data.mean": "(0.1,)", "data.std": "(0.2,)"})
    assert config.data.options.size == (64, 64) and config.data.mean == (0.1,)
    assert "resize_and_center_crop" not in config.data.eval_ops
    config.data.eval_ops.resize.size = (64, 64)
    assert as_trained.describe(config, ITS) == (
        "preprocessing as trained: nothing; not used: mean and standard deviation, the middle 240 x 240 pixels of 256, "
        "bicubic (here 64 x 64)"
    )
    assert completed(head, **{"pretrained.preprocessing": "none"}).data.mean == ()


def test_of_a_detector_the_sides():
    given = {"model.name": "resnet_fpn_detector", "model.kind": "faster", "data.mean": "()", "data.std": "()"}
    given |= {"pretrained.path": "torchvision/fasterrcnn_resnet50_fpn.COCO_V1", "pretrained.head": "match"}
    config = assemble.complete(configure("own_detection", given)[0])
    assert (config.data.min_size, config.data.max_size) == ((800,), 1333)
    line = as_trained.describe(config, Preprocessing(800, None, antialias=False))
    assert line == "preprocessing as trained: mean and standard deviation, a shorter side of 800 pixels"


def test_weights_given_in_place_of_a_configs_own_bring_their_own():
    assert assemble.complete(load("transfer")).data.mean[0] == pytest.approx(127 / 255)
    given = {"model.name": "resnet18", "pretrained.path": "torchvision/resnet18.IMAGENET1K_V1"}
    assert assemble.complete(configure("transfer", given)[0]).data.mean == IMAGENET_MEAN


def test_a_run_goes_on_with_its_own_size_whatever_the_weights_say_today(tmp_path):
    for head in ("new", "keep"):
        open_ = configure(
            "image_folder", {"model.name": "efficientnet_b1", "pretrained.path": OFFICIAL, "pretrained.head": head}
        )[0]
        old = completed(head, **{"pretrained.preprocessing": "none"})  # as before weights brought a size: the data's
        with old.unlocked(), old.ignore_type():
            old.data.options.size = old.data.eval_ops.resize.size = old.data.train_ops.random_affine.size = (64, 64)
            old.data.mean, old.data.std = (0.1,), (0.2,)
            old.pretrained.preprocessing = "auto"
        ours = assemble.complete(assemble.remembered(open_, old))
        assert ours.data.options.size == (64, 64) and ours.data.eval_ops.resize.size == (64, 64)
        assert ours.data.mean == (0.1,)


def test_a_run_goes_on_where_its_weights_are_gone():
    before = completed("keep")
    gone = configure(
        "image_folder", {"model.name": "efficientnet_b1", "pretrained.path": "/gone.pth", "pretrained.head": "keep"}
    )[0]
    ours = assemble.complete(assemble.remembered(gone, before))
    assert ours.data.eval_ops == before.data.eval_ops and ours.data.options.size == ()
    assert ours.data.train_ops.random_affine.size == (240, 240)


def test_from_python_a_run_goes_on_where_its_weights_are_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(assemble, "build", lambda config: config)
    before = completed("keep")
    gone = completed("keep", **{"pretrained.path": "/gone.pth"})
    assert imgrec_jax.build(gone, tmp_path).data.mean == ()  # nothing has begun there
    (tmp_path / "config.json").write_text(json.dumps(to_plain(before)))
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    assert imgrec_jax.build(gone, tmp_path).data.mean == IMAGENET_MEAN


@pytest.mark.parametrize("name", shipped())
def test_a_run_of_any_config_goes_on_where_its_weights_are_gone(name):
    """What the config leaves to the weights is what they brought, however it says so: as the base has it, or left empty."""
    crop = {"random_resized_crop": {"flip": 0.5}}
    for head in ("keep", "new"):
        for mean, std in ((base().data.mean, base().data.std), ((), ())):
            config = load(name)
            with config.unlocked(), config.ignore_type():
                config.data.mean, config.data.std, config.pretrained.head = mean, std, head
                config.pretrained.path = OFFICIAL
                if "random_affine" in config.data.train_ops and config.data.train_ops.random_affine.get("size") is None:
                    config.data.train_ops = {**crop, **config.data.train_ops}
            before = assemble.complete(config)
            assert before.data.mean == IMAGENET_MEAN
            config.pretrained.path = before.pretrained.path = "/gone.pth"
            ours = assemble.complete(assemble.remembered(config, from_plain(json.loads(json.dumps(to_plain(before))))))
            assert difference(assemble.complete(before), ours) == []
