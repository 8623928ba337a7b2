"""What a recipe may say of ops, selection, schedule and durations: what cannot be meant is named before anything is built."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax import assemble, optim
from imgrec_jax.assemble import optimizer, preprocess, values
from imgrec_jax.assemble.lookup import ConfigError
from imgrec_jax.config import OverrideError, load
from imgrec_jax.data import proposals
from imgrec_jax.data.ops import bits, canvases
from imgrec_jax.overrides import configure
from imgrec_jax.tasks import classify
from tests import small_runs


def checked(name, **overrides):
    config, notes = configure(name, {key.replace("__", "."): value for key, value in overrides.items()})
    assemble.check(assemble.complete(config))
    return config, notes


@pytest.mark.parametrize(
    ("op", "options", "said"),
    [
        ("random_affine", "{'scale': 1.2}", r"scale=1\.2; expected tuple, e\.g\. \(1\.0, 1\.0\)"),
        ("random_affine", "{'scale': (1.2,)}", r"scale=\[1\.2\]; expected \(low, high\)"),
        (
            "random_affine",
            "{'scale': (1.2, 0.8)}",
            r"scale=\[1\.2, 0\.8\]; expected \(low, high\), more than 0 and in that order",
        ),
        ("random_affine", "{'scale': (0.0, 1.0)}", r"scale=\[0\.0, 1\.0\]; expected \(low, high\), more than 0"),
        ("random_affine", "{'size': 28}", r"size=28; expected 2 integers, at least 1 each"),
        ("random_affine", "{'rotate': '12'}", r"rotate='12'; expected float, e\.g\. 0\.0"),
        ("random_affine", "{'aspect': 0.0}", r"aspect=0\.0; expected a number, at least 1"),
        ("random_affine", "{'vertical_flip': 2.0}", r"vertical_flip=2\.0; expected a number, at least 0 and at most 1"),
        ("random_affine", "{'fit': 'insde'}", r"fit='insde'; expected one of \('none', 'inside'"),
        ("resize", "{'size': (0, 0)}", r"size=\[0, 0\]; expected 2 integers, at least 1 each"),
        ("to_channels", "{'channels': '3'}", r"channels='3'; expected 1 or 3"),
        ("to_channels", "{'channels': 2}", r"channels=2; expected 1 or 3"),
        ("erase", "{'area': (0.5, 0.1)}", r"area=\[0\.5, 0\.1\]; expected \(low, high\)"),
        ("erase", "{'fill': 300}", r"fill=300; expected a number, or a tuple of them, from 0 to 255"),
        ("elastic", "{'points': 2.5}", r"points=2\.5; expected int, e\.g\. \d"),
        ("resize", "{'size': None}", r"size=None; expected 2 integers, at least 1 each"),
        ("random_resized_crop", "{'size': None}", r"size=None; expected 2 integers, at least 1 each"),
        ("resize_shorter", "{'length': 0}", r"length=0; expected an integer, at least 1"),
    ],
)
def test_options_of_ops_that_cannot_be(op, options, said):
    with pytest.raises(ConfigError, match=rf"config\.data\.train_ops\.{op}\.{said}"):
        checked("mnist", data__train_ops=f"{{'{op}': {options}}}")


@pytest.mark.parametrize("op", ["mixup", "cutmix"])
def test_an_op_without_options_is_one(op):
    checked("mnist:tiny", **{f"data__train_ops__{op}": "{}"})


@pytest.mark.parametrize(
    ("ops", "said"),
    [
        ("{'gaussian_noise': {'sigma': 60.0}}", "gaussian_noise draws at random"),
        ("{'random_affine': {'rotate': 30.0}}", "random_affine draws at random"),
        ("{'random_affine': {'scale': (0.9, 1.1)}}", "random_affine draws at random"),
        ("{'erase': {}}", "erase draws at random"),
    ],
)
def test_evaluation_draws_nothing(ops, said):
    with pytest.raises(ConfigError, match=f"config.data.eval_ops.{said}, which is for training: give it in data.train_ops"):
        checked("mnist", data__eval_ops=ops)
    checked("mnist", data__eval_ops="{'random_affine': {'size': (32, 32), 'fit': 'inside', 'fill': 7}}")


@pytest.mark.parametrize(
    ("config", "what"),
    [("scenes_detection", "boxes"), ("scenes_segmentation", "the classes of pixels"), ("pets_unet", "the")],
)
def test_answers_are_brought_back_from_stretches_alone(config, what):
    for ops in (
        "{'random_affine': {'size': (64, 64), 'fit': 'inside'}}",
        "{'random_affine': {'size': (64, 64)}}",
        "{'resize_and_center_crop': {'shorter': 64, 'size': (64, 64)}}",
    ):
        with pytest.raises(ConfigError, match=f"crops or pads, and {what}.* brought back by the sides of the images alone"):
            checked(config, data__eval_ops=ops)
    checked(config, data__eval_ops="{'resize': {'size': (64, 64)}}")


@pytest.mark.parametrize("metric", ["loss", "calibration_error", "loss_mask"])
def test_what_is_better_the_smaller_it_is_is_not_maximised(metric):
    with pytest.raises(ConfigError, match=f"select.metric='{metric}' is better the smaller it is, .* set select.mode='min'"):
        checked("mnist", select__metric=metric)
    splits = {"data__train_split": "train[:55000]", "data__validation_split": "train[55000:]"}
    checked("mnist", select__metric=metric, select__mode="min", **splits)


@pytest.mark.parametrize(
    "metric", ["accuracy", "top5_accuracy", "segm_AP50", "APs", "AR100", "mAP", "auc", "mean_iou", "f1_macro"]
)
def test_what_is_better_the_larger_it_is_is_not_minimised(metric):
    splits = {"data__train_split": "train[:55000]", "data__validation_split": "train[55000:]"}
    with pytest.raises(ConfigError, match=f"select.metric='{metric}' is better the larger it is, .* set select.mode='max'"):
        checked("mnist", select__metric=metric, select__mode="min", **splits)
    for unknown in ("dice_loss", "map_error", "my_number"):
        checked("mnist", select__metric=unknown, select__mode="min", **splits)


@pytest.mark.parametrize("name", ["best_test", "ensemble_test", "best_"])
def test_a_test_set_is_not_called_as_records_of_something_else(name, tmp_path):
    with pytest.raises(ConfigError, match=f"config.data.test_sets has '{name}': .*does not begin with best_ or ensemble_"):
        checked("image_folder", data__manual_dir=str(tmp_path), data__test_sets=f"{{'{name}': '{tmp_path}'}}")


@pytest.mark.parametrize("unit", ["steps", "epochs", "examples"])
def test_a_warmup_of_nothing_is_none(unit):
    config, _ = checked("mnist:tiny", schedule__name="cosine", **{f"schedule__warmup_{unit}": "0"})
    without, _ = checked("mnist:tiny", schedule__name="cosine")
    rates = [[float(optimizer.make_schedule(c, 100, 10)(step)) for step in range(3)] for c in (config, without)]
    assert rates[0] == rates[1] and rates[0][0] > 0


def test_another_schedule_drops_what_it_does_not_take():
    config, notes = checked("mnist:fast", schedule__name="cosine")
    assert config.schedule.peak_fraction == load("mnist").schedule.peak_fraction
    assert "note: schedule.name=cosine takes no peak_fraction, div_factor; dropped, as one_cycle had them" in notes
    with pytest.raises(ConfigError, match=r"schedule\.gamma=0\.3 is not used by the schedule 'cosine'"):
        checked("mnist:fast", schedule__name="cosine", schedule__gamma="0.3")


def test_two_units_of_one_duration_are_refused():
    with pytest.raises(OverrideError, match=r"train\.total_steps=10 and .*train\.total_epochs=1\.0 are two units"):
        checked("mnist:tiny", train__total_steps="10", train__total_epochs="1")
    assert checked("mnist:tiny", train__total_epochs="1", train__total_steps="None")[0].train.total_epochs == 1


def test_a_decay_by_layers_wants_layers():
    params = {"conv": {"kernel": jnp.zeros(3)}}
    with pytest.raises(ValueError, match="optim.layer_decay=0.1 changes nothing: this model has no parameters under backbone/"):
        optim.make_optimizer("sgd", schedule=lambda step: 0.1, params=params, layer_decay=0.1)


def test_seeds_that_would_be_cut_are_refused():
    with pytest.raises(ConfigError, match=r"config\.seed=4294967296; expected an integer from 0, less than 2\*\*32"):
        checked("mnist", seed=str(2**32))


def test_evaluation_of_several_sizes_is_in_batches_of_one_canvas():
    """The last of data.min_size is what evaluation resizes to; its batches are put together by it."""
    config = load("scenes_detection")
    config.data.min_size, config.data.max_size, config.data.canvases = (96, 64), 192, ()
    sizes = np.array([[96, 97], [96, 120], [96, 125], [96, 100]])
    source = type("Source", (), {"info": type("Info", (), {"meta": {"sizes": sizes}})})()
    order = preprocess.eval_order(config, source, 2)(0)
    op = preprocess._resize(config)((config.data.min_size[-1],))
    for indices in order.indices:
        noted = {op({"image": np.zeros((*sizes[i], 3), np.uint8)}, None)["canvas"] for i in indices}
        assert len(noted) == 1


@pytest.mark.parametrize("resize", ["fast", "torchvision"])
@pytest.mark.parametrize(
    ("phase", "name", "options"),
    [
        ("train", "resize", {"size": (48, 96)}),
        ("train", "resize_shorter", {"length": 32}),
        ("train", "random_resized_crop", {"size": (48, 32)}),
        ("train", "random_affine", {"size": (64, 24), "fit": "cover", "rotate": 20}),
        ("eval", "resize", {"size": (48, 96)}),
        ("eval", "resize_shorter", {"length": 32}),
        ("eval", "random_affine", {"size": (64, 24), "fit": "stretch"}),
    ],
)
def test_batches_are_put_together_by_the_images_as_ops_leave_them(phase, name, options, resize):
    config = load("scenes_detection")
    with config.unlocked():
        config.data.min_size, config.data.max_size, config.data.resize, config.data.batch_size = (64,), 128, resize, 4
        config.data.canvases, config.data.train_ops, config.data.eval_ops = (), {}, {}
        config.data[f"{phase}_ops"] = {name: options}
    sizes = np.random.default_rng(0).integers(20, 140, (24, 2))
    source = type("Source", (), {"info": type("Info", (), {"meta": {"sizes": sizes}})})()
    if phase == "eval":
        ops, collate = (made := preprocess.evaluation(config)).ops, made.collate
        order = preprocess.eval_order(config, source, 4)(0)
    else:
        ops, _, collate, ordered = preprocess.training(config)
        order = ordered(source)(0)
    rng, seen = np.random.default_rng(0), 0
    for indices, valid in zip(order.indices, order.valid, strict=True):
        examples = []
        for height, width in sizes[indices].tolist():
            example = {"image": np.zeros((height, width, 3), np.uint8), "boxes": np.array([[1, 1, 19, 19]], np.float32)}
            example |= {"box_label": np.ones(1, int), "box_crowd": np.zeros(1, bool)}
            example["original_size"] = np.array([height, width])
            for op in ops:
                example = op(example, rng)
            examples.append(example)
        seen += int(valid.sum())
        assert len(collate(examples)["image"]) == 4
    assert seen == len(sizes)


def test_degenerate_boxes_are_dropped_before_an_op_turns_them_round():
    config = load("scenes_detection")
    with config.unlocked():
        config.data.drop_degenerate_boxes, config.data.train_ops = True, {"random_affine": {"flip": 1.0, "rotate": 5}}
        config.data.eval_ops = {"resize": {"size": (80, 90)}}
    for seed in range(8):
        rng = np.random.default_rng(seed)
        boxes = rng.uniform(0, 60, (12, 4)).astype(np.float32)
        right = (boxes[:, :2] < boxes[:, 2:]).all(1)
        given = {"image": np.zeros((60, 60, 3), np.uint8), "boxes": boxes, "box_label": np.where(right, 1, 2)}
        given |= {"box_crowd": np.zeros(12, bool), "original_size": np.array([60, 60])}
        example = given
        for op in preprocess.training(config).ops:
            example = op(example, rng)
        assert 2 not in example["box_label"] and len(example["boxes"]) <= right.sum()
        seen = preprocess.evaluation(config)(given["image"], {k: v for k, v in given.items() if k != "image"})
        assert 2 not in seen["box_label"]


@pytest.mark.parametrize("name", ["coco_faster_rcnn:folder", "coco_mask_rcnn", "bccd_retinanet"])
def test_crowds_are_in_training_where_a_threshold_excuses_what_lies_in_them(name):
    example = {"image": np.zeros((60, 80, 3), np.uint8), "boxes": np.array([[1, 1, 70, 50], [5, 5, 30, 30]], np.float32)}
    example |= {"box_label": np.array([1, 1]), "box_crowd": np.array([True, False]), "original_size": np.array([60, 80])}
    example |= {"box_mask": bits.pack(np.stack([np.zeros((60, 80), bool), np.ones((60, 80), bool)]))}
    for thresh, crowds in (("None", [False]), ("0.7", [True, False])):
        config = assemble.complete(configure(name, {"detection.crowd_thresh": thresh, "data.train_ops": "{}"})[0])
        taken = preprocess.training(config)
        made = example
        for op in taken.ops:
            made = op(made, np.random.default_rng(0))
        batch = taken.collate([made])
        assert batch["box_crowd"][0][batch["box_valid"][0]].tolist() == crowds
        collate = canvases.collate_boxes(max_boxes=1, drop_extra_boxes=True)
        assert not collate([made])["box_crowd"].any()  # the object stays


def test_prediction_and_evaluation_take_images_that_no_canvas_holds_and_training_names_them():
    config = load("scenes_detection")
    config.data.min_size, config.data.max_size, config.data.canvases = (96,), 128, ((96, 128),)
    taken = preprocess.evaluation(config)
    for size, canvas in (((96, 128), (96, 128)), ((128, 96), (128, 96)), ((9, 120), (96, 128)), ((120, 9), (128, 96))):
        batch = taken.batch([taken(np.zeros((*size, 3), np.uint8))], [0], 1)
        assert batch["image"].shape[1:3] == canvas
    sizes = np.array([[96, 128], [128, 96], [90, 120]])
    source = type("Source", (), {"info": type("Info", (), {"meta": {"sizes": sizes}})})()
    assert sorted(preprocess.eval_order(config, source, 2)(0).indices.tolist()) == [[0, 2], [1, 1]]
    with pytest.raises(ValueError, match=r"an image of \(128, 96\) .* no canvas .* add one to config.data.canvases"):
        preprocess.training(config).order(source)


def test_grey_images_are_resized_with_their_channel():
    op = canvases.resize((48,), 192, ())
    assert op({"image": np.zeros((64, 80, 1), np.uint8)}, np.random.default_rng(0))["image"].shape == (48, 60, 1)


def test_proposals_are_of_their_own_set(tmp_path):
    """Two sets in different places with the same names and sizes share no proposals."""
    found = []
    for place in ("a", "b"):
        data = tmp_path / place
        small_runs.MAKERS["detection"](data)
        if place == "b":
            for path in data.rglob("*.png"):
                path.write_bytes(path.read_bytes() + b" ")  # other files of the same names and sizes
        config = small_runs.config_of("detection", data)
        train, _ = assemble.data.open_sources(assemble.complete(config))
        found.append(proposals._fingerprint(train, proposals.SearchOptions()))
    assert found[0] != found[1]


def test_labels_of_a_mixed_pair_count_by_their_own_weights():
    """As torch weighs soft labels: each part of the loss by the weight of its class, over the sum of both."""
    weights, mix = (9.0, 0.5), 0.3
    logits = jnp.array([[0.4, -0.2], [0.1, 0.7]])
    batch = {
        "image": jnp.zeros((2, 1, 1, 2)), "label": jnp.array([0, 1]), "label_b": jnp.array([1, 0]), "mix": jnp.full(2, mix),
        "example_valid": jnp.ones(2, bool),
    }  # fmt: skip

    class Given:
        def apply(self, variables, image, train, rngs, mutable=None):
            return (logits, {}) if train else logits

    def cross_entropy(logits, label):
        return -jax.nn.log_softmax(logits)[jnp.arange(2), label]

    task = classify.make_task(
        model=Given(), loss_fn=cross_entropy, num_classes=2, mean=(0.0,), std=(1.0,), probabilities=jax.nn.softmax,
        class_weights=weights,
    )  # fmt: skip
    value, _ = task.loss({"params": {}}, batch, None, True)
    soft = np.array([[mix, 1 - mix], [1 - mix, mix]]) * weights
    expected = -(soft * np.asarray(jax.nn.log_softmax(logits))).sum() / soft.sum()
    assert float(value) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("mnist", {"eval.overlap": "0.5"}, "note: eval.overlap without effect: eval.window is ()"),
        ("mnist", {"eval.threshold": "f1"}, "note: eval.threshold without effect: eval.intervals is False"),
        ("mnist", {"pretrained.head": "new"}, "note: pretrained.head without effect: pretrained.path is ''"),
        ("mnist", {"schedule.name": "step"}, "note: schedule.name='step' without effect: schedule.boundaries_epochs is ()"),
        ("mnist", {"profile.steps": "7"}, "note: profile.steps without effect: profile.first_step is None"),
        (
            "image_folder",
            {"checkpoint.enabled": "false", "select.patience": "None"},
            "without effect: checkpoint.enabled is False, no best state is kept",
        ),
    ],
)
def test_a_key_that_another_one_would_switch_on_is_noted(name, overrides, said):
    config, _ = configure(name, overrides)
    assert any(said in line for line in values.without_effect(config)), values.without_effect(config)


def test_a_key_that_is_switched_on_is_not_noted():
    config, _ = configure(
        "mnist", {"profile.steps": "7", "profile.first_step": "0", "eval.intervals": "true", "eval.threshold": "f1"}
    )
    assert values.without_effect(config) == []


def test_a_time_to_unfreeze_without_frozen_parameters_is_refused_before_the_data_are_opened():
    with pytest.raises(ConfigError, match="optim.frozen is empty"):
        checked("mnist", optim__unfreeze_after_epochs="1.0")
