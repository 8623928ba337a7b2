"""Every option of a component has a key, at its own default; another name takes its own options; nothing is ignored."""

import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from imgrec_jax import assemble, optim
from imgrec_jax.assemble import task
from imgrec_jax.assemble.components import complete, switch
from imgrec_jax.assemble.found import stand_in
from imgrec_jax.assemble.lookup import ConfigError
from imgrec_jax.assemble.model import make_model
from imgrec_jax.config import ConfigFileError, OverrideError, base, flatten, load, override, shipped
from imgrec_jax.overrides import configure
from tests.test_configs import VARIANTS

EVERY = [f"{name}:{variant}".rstrip(":") for name, variants in VARIANTS.items() for variant in variants]


@pytest.mark.parametrize("name", EVERY)
def test_completing_a_config_changes_nothing_that_it_makes(name):
    config = stand_in(load(name))
    whole = complete(config)
    assert whole.is_locked and set(flatten(config)) - set(flatten(whole)) <= {k for k, v in flatten(config).items() if v == {}}
    described = [re.sub(r"0x\w+", "", repr(make_model(stand_in(c)))) for c in (whole, config)]
    assert described[0] == described[1]
    params = {"a/kernel": np.ones((3, 4), np.float32), "a/bias": np.ones(4, np.float32)}
    made = [
        optim.make_optimizer(c.optim.name, schedule=lambda step: 0.1, params=params, options=c.optim.options.to_dict())
        for c in (config, whole)
    ]
    steps = [jax.tree.leaves(tx.update(params, tx.init(params), params)[0]) for tx in made]
    jax.tree.map(np.testing.assert_array_equal, *steps)
    assert complete(whole) == whole


def test_every_config_that_ships_is_known_here():
    assert set(VARIANTS) == set(shipped())


@pytest.mark.parametrize(
    ("name", "key", "text", "value"),
    [
        ("mnist", "loss.label_smoothing", "0.1", 0.1),
        ("mnist", "model.padding", "SAME", "SAME"),
        ("mnist", "optim.clip_norm", "2", 2.0),
        ("mnist", "optim.clip_norm", "None", None),
        ("mnist", "data.mean", "(0.1,)", (0.1,)),
        ("mnist", "data.mean", "0.1", (0.1,)),
        ("mnist", "log.tensorboard", "false", False),
        ("scenes_detection:faster", "detection.box_nms_thresh", "0.3", 0.3),
        ("scenes_detection:faster", "detection.crowd_thresh", "0.5", 0.5),
        ("scenes_detection:mask", "detection.mask_batch_size_per_image", "None", None),
        ("scenes_detection:fast", "data.search.sigma", "0.5", 0.5),
        ("nuclei_unet", "data.options.void", "7", 7),
        ("nuclei_unet", "data.train_ops.colour_jitter.hue", "0.1", 0.1),
    ],
)
def test_options_left_at_their_default_can_be_changed(name, key, text, value):
    config = complete(load(name))
    override(config, key, text)
    assert flatten(config)[key] == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("data.batch_size", "x", r"config.data.batch_size='x'; expected int"),
        ("data.batch_size", "1.5", r"expected int"),
        ("log.tensorboard", "maybe", r"expected bool"),
        ("data.mean", "(", r"expected a tuple"),
        ("optim.options", "3", r"expected a section"),
        ("optim.learnng_rate", "1", r"no key 'optim.learnng_rate'; did you mean 'optim.learning_rate'\?"),
        ("nonesuch", "1", r"no key 'nonesuch'"),
        ("seed.x", "1", r"no key 'seed.x'"),
        ("model.classes", "3", r"did you mean 'model.num_classes'"),
        ("optim", "{'name': 'adam'}", r"optim is a section; give its keys one by one, e.g. --config.optim.accumulate=VALUE"),
        ("log", "{}", r"log is a section"),
        ("model", "{'width': 3}", r"expected a section with a name, e.g. {'name': 'pytorch_cnn'}"),
        ("optim.options", "{1: 2}", r"expected a section"),
        ("log.show", "accuracy", r"a tuple, e.g. \(1, 2\) or \('a', 'b'\)"),
        ("data.validation_split", "None", r"expected text; nothing at all is --config.data.validation_split="),
    ],
)
def test_what_cannot_be_a_value_is_named(key, text, message):
    with pytest.raises(OverrideError, match=message):
        override(complete(load("mnist")), key, text)


def test_none_is_no_text_but_that_of_a_class_and_of_an_option():
    config = complete(load("mnist"))
    override(config, "eval.positive", "None")
    override(config, "model.activation", "None")
    override(config, "data.train_split", '"train[:50], validation"')
    assert config.data.train_split == "train[:50], validation"
    assert config.eval.positive == "None" and config.model.activation is None


def test_a_config_that_lacks_what_every_one_has_is_named(tmp_path):
    for section in ("optim", "train", "checkpoint", "eval"):
        config = load("mnist")
        with config.unlocked():
            config[section] = {"name": "adam"}
        with pytest.raises(ConfigError, match=rf"the config has no {section}\.\w+; begin with imgrec_jax.config.base"):
            complete(config)
    head = "from imgrec_jax.config import base\ndef get_config():\n  c = base()\n  c.unlock()\n  "
    for line, said in (("c.train = dict(total_steps=3)", "no train.total_epochs"), ("c.optim.lr = 1.0", "'optim.lr'")):
        (tmp_path / "mine.py").write_text(f"{head}{line}\n  return c\n")
        with pytest.raises(ConfigFileError, match=said):
            load(str(tmp_path / "mine.py"))


def test_another_name_drops_what_it_does_not_take_and_says_so():
    config = load("mnist")
    assert switch(config, "optim.name", "adamw") == "note: optim.name=adamw takes no momentum; dropped, as sgd had them"
    config = complete(config)
    assert config.optim.options.b1 == 0.9 and "momentum" not in config.optim.options
    assemble.check(config)
    assert switch(config, "optim.name", "adamw") is None
    note = switch(config, "model.name", "mlp")
    assert "norm" in note and "has its own kernel_init" in note and config.model.num_classes == 10
    assert complete(config).model.kernel_init == "lecun_normal"
    assemble.check(complete(config))


@pytest.mark.parametrize(
    "model", ["efficientnet_lite0", "resnet18", "mobilenet_v1_075", "convnext_tiny", "vit_s_16", "wide_cnn", "mlp"]
)
@pytest.mark.parametrize("name", ["image_folder", "medical_cnn", "transfer", "mnist"])
def test_a_config_of_one_model_trains_another_by_its_name_alone(name, model):
    config = stand_in(configure(name, {"model.name": model})[0])
    assert make_model(config) is not None
    assert not any(value == "SAME" for key, value in config.model.items() if model.startswith("eff"))


def test_an_option_that_must_be_given_can_be_given_with_the_name():
    given = {"model.name": "convnet", "model.convs": "((8, 3, 1, 2), (8, 3))"}
    config, _ = configure("mnist", given)
    assert config.model.convs == ((8, 3, 1, 2), (8, 3))
    assemble.check(assemble.complete(config))
    config, _ = configure("mnist", {"model.name": "convnet"})
    assert "convs" not in config.model
    with pytest.raises(ConfigError, match="convs"):
        assemble.check(assemble.complete(config))


@pytest.mark.parametrize("name", ["scenes_detection:tiny", "coco_faster_rcnn:folder", "nuclei_mask_rcnn", "bccd_retinanet"])
@pytest.mark.parametrize("kind", ["faster", "mask", "retina"])
def test_another_kind_of_detector_has_its_own_options(name, kind):
    config, notes = configure(name, {"model.kind": kind, "data.max_boxes": "9"})
    stages = task.stages_of(config)
    assert set(config.detection) <= set(stages.OPTIONS) and config.model.kind == kind
    assert all("detection." in note for note in notes)
    stages.settings(**complete(config).detection.to_dict())


def test_a_kind_that_is_none_and_a_model_without_kinds_are_named():
    with pytest.raises(assemble.ConfigError, match="kind='retin'"):
        assemble.check(complete(configure("bccd_retinanet", {"model.kind": "retin"})[0]))
    with pytest.raises(OverrideError, match=r"model\.kind"):
        configure("mnist", {"model.kind": "retina"})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("scenes_detection", {"loss.name": "no_such_loss"}, r"config.loss.* is not used for detection, but for classification"),
        ("scenes_detection", {"eval.top_k": (5,)}, r"eval.top_k=\(5,\) is not used for detection, but for classification"),
        ("scenes_segmentation", {"data.max_boxes": 3}, r"data.max_boxes=3 is not used for segmentation, but for detection"),
        ("scenes_segmentation", {"data.train_ops": {"mixup": {"alpha": 0.2}}}, r"train_ops.mixup is for classification"),
        ("mnist", {"data.options": {"kind": "index"}}, r"data.options takes no \['kind'\]"),
        ("mnist", {"detection": {"box_nms_thresh": 0.3}}, r"config.detection=.* is not used for classification"),
        ("mnist", {"model.name": "unet"}, r"config.model.name='unet' is for segmentation; for classification: \["),
        ("mnist", {"data.name": "coco_folder"}, r"'coco_folder' is for detection; for classification there are"),
        ("mnist", {"schedule.name": "one_cycle", "schedule.warmup_steps": 5}, "warmup_steps=5 is not used by"),
        ("mnist", {"schedule.final_factor": 0.1}, r"final_factor=0.1 is not used by the schedule 'constant', but by cosine"),
        ("mnist", {"select.patience": 3}, r"select.patience=3 needs a config.select.metric"),
    ],
)  # fmt: skip
def test_what_nothing_uses_is_an_error_that_says_what_would(name, changes, message):
    config = load(name)
    with config.unlocked(), config.ignore_type():
        for key, value in changes.items():
            section, _, last = key.rpartition(".")
            target = config
            for part in filter(None, section.split(".")):
                target = target[part]
            target[last] = ConfigDict(value) if isinstance(value, dict) else value
    with pytest.raises(assemble.ConfigError, match=message):
        assemble.check(complete(config))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.batch_size", 0), ("data.eval_batch_size", 0), ("log.every_steps", 0), ("train.total_epochs", float("inf")),
        ("train.total_epochs", float("nan")), ("eval.every_epochs", 0.0), ("optim.clip_norm", -1.0),
        ("optim.learning_rate", -0.1),
        ("model.dropout", 1.5), ("select.patience", 0), ("optim.frozen", ("[",)), ("optim.weight_decay", (("(", 1.0),)),
        ("optim.weight_decay", ("kernel", 0.1)), ("optim.weight_decay", (("k", -1.0),)), ("pretrained.allow_missing", (1,)),
        ("data.std", (0.0,)), ("data.mean", ()), ("seed", -1), ("data.threads", -1), ("checkpoint.keep", 0),
        ("eval.top_k", (0,)),
        ("optim.ema_decay", 1.0), ("optim.accumulate", 0), ("profile.steps", 0), ("parallel.fsdp", 0), ("log.show", (1,)),
    ],
)  # fmt: skip
def test_values_are_checked_where_they_are_read(key, value):
    config = load("mnist")
    *sections, name = key.split(".")
    section = config
    for part in sections:
        section = section[part]
    with config.ignore_type():
        section[name] = value
    with pytest.raises(assemble.ConfigError, match=rf"config\.{key}.*; expected "):
        assemble.check(config)


def test_the_defaults_themselves_are_good():
    from imgrec_jax.assemble import values

    values.check(base())
    values.check_used(base())


@pytest.mark.parametrize(
    ("train", "validation", "test", "shared"),
    [
        (
            "train",
            "train[500:]",
            "test",
            "train_split='train' and config.data.validation_split='train.500:.' share 100 examples",
        ),
        ("train[:90%]", "train[500:]", "", "share 40 examples"),
        ("train", "test[:50]", "test", "validation_split='test.:50.' and config.data.test_split='test' share 50"),
        ("train", "test", "test[:]", "share 200"),
        ("train[:500]", "train[500:]", "test", None),
        ("train[:90%]", "train[90%:]", "test", None),
    ],
)
def test_splits_that_share_examples_are_refused(digits_dir, train, validation, test, shared):
    config = load("mnist:tiny")
    config.data.data_dir, config.data.train_split = str(digits_dir), train
    config.data.validation_split, config.data.test_split = validation, test
    if shared is None:
        assemble.build(config)
        return
    with pytest.raises(assemble.ConfigError, match=shared):
        assemble.build(config)
    config.data.allow_overlap = True
    assemble.build(config)
    if "test" in validation:
        config.select.metric = "accuracy"
        with pytest.raises(assemble.ConfigError, match="nothing is selected on test data"):
            assemble.build(config)


def test_objects_of_a_foreground_are_a_component_with_options():
    config = complete(stand_in(load("nuclei_unet")))
    assert (config.eval.objects.sigma, config.eval.objects.smallest) == (1.0, 20)
    assert switch(config, "eval.objects.name", "components").endswith("takes no height, sigma; dropped, as distance had them")
    for given, message in (
        ({"name": "watershed"}, "config.eval.objects.name='watershed' is unknown; choose one of .'components', 'distance'."),
        ({"name": "components", "sigma": 1.0}, r"eval.objects takes no \['sigma'\]; it takes \['smallest'\]"),
        ({"name": "", "sigma": 1.0}, r"eval.objects has \['sigma'\] and no name; choose one of"),
        ({"name": "distance", "height": -1.0}, "config.eval.objects.height=-1.0"),
        ({"name": "distance", "sigma": "x"}, "config.eval.objects.sigma='x'"),
    ):
        wrong = complete(stand_in(load("nuclei_unet")))
        with wrong.unlocked():
            wrong.eval.objects = given
        with pytest.raises(ConfigError, match=message):
            assemble.check(complete(wrong))
