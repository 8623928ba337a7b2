"""Digit scenes: find and read the digits in 128 x 128 pictures that need nothing but MNIST.

python -m imgrec_jax.main --config=configs/scenes_detection.py:faster     (or :fast, :rcnn, :mask, :retina)
Add ",tiny" for a smoke test of a minute: --config=configs/scenes_detection.py:faster,tiny

The R-CNNs share backbone, head and schedule. R-CNN runs the backbone on every proposal, Fast R-CNN once on the image,
and Faster R-CNN also makes the proposals itself; the other two get theirs from selective search, searched once and kept beside
the data. Mask R-CNN is Faster R-CNN with a head that draws each digit; RetinaNet has the same backbone and pyramid, and neither
proposals nor crops. Of these two no whole run is recorded yet.
"""

from ml_collections import ConfigDict

from imgrec_jax.config import base

KINDS = ("faster", "fast", "rcnn", "mask", "retina")
STEPS = {"faster": 8200, "fast": 2000, "rcnn": 2000, "mask": 4500, "retina": 6000}


def get_config(variant: str = "faster") -> ConfigDict:
    """variant: one of KINDS, and optionally "tiny", separated by a comma."""
    names = [name for name in variant.split(",") if name]
    tiny, kinds = "tiny" in names, [name for name in names if name != "tiny"] or ["faster"]
    if len(kinds) > 1 or kinds[0] not in KINDS:
        raise ValueError(f"unknown variant {variant!r}; expected one of {KINDS}, and optionally 'tiny'")
    kind = kinds[0]
    config = base()
    config.task = "detection"
    config.model = ConfigDict({
        "name": "small_detector",
        "kind": kind,
        "num_classes": 11,
        "widths": (16, 32, 64, 96),
        "blocks": 1,
        "stem_stride": 2,
        "fpn_width": 32,
        "head_width": 128,
        "norm": "batch",
        "neck_norm": "batch",
        "head_norm": "batch",
        "crop_size": 32 if kind == "rcnn" else 7,
        "anchor_sizes": ((16,), (28,), (48,)),
        "aspect_ratios": (1.0, 1.6, 3.0),  # height / width; half of the ones are taller than 2.2 times their width
    })  # fmt: skip
    if kind == "mask":
        config.model.mask_widths, config.model.mask_size = (32, 32), 7  # masks of 14 x 14: digits are 16 to 48 pixels high
    if kind == "retina":
        # Group normalisation: the towers are shared by levels of other statistics. Two sizes an octave.
        config.model.head_norm, config.model.tower_depth = "group", 2
        config.model.anchor_sizes = ((12, 17), (24, 34), (44, 60))
    config.data.name = "digit_scenes/tiny" if tiny else "digit_scenes/default"
    config.data.validation_split, config.data.test_split = "validation", "test"
    config.data.mean, config.data.std = (0.45,), (0.25,)
    config.data.min_size, config.data.max_size, config.data.canvases = (128,), 128, ((128, 128),)
    config.data.max_boxes = 16
    config.data.max_proposals = 128 if kind in ("fast", "rcnn") else 0
    if config.data.max_proposals:
        # Digits are small: the fast mode's regions of 100 pixels and more are as large as many of them.
        config.data.search = ConfigDict(
            {"spaces": ("hsv", "lab", "rgb"), "min_region": 20, "scales": (150.0,), "max_overlap": 0.8}
        )
    config.data.batch_size = 8
    config.data.eval_batch_size = 20
    config.data.remainder = "pad"
    config.data.train_ops = ConfigDict({"random_affine": {"scale": (0.9, 1.1), "translate": 0.05, "min_visible": 0.5}})
    config.detection = ConfigDict({"score_thresh": 0.002, "detections_per_img": 60, "topk_candidates": 150})
    if kind != "retina":
        config.detection = _of_two_stages(kind)
    config.optim.name = "muon"
    config.optim.options = ConfigDict({"beta": 0.9, "ns_steps": 3, "b1": 0.9, "b2": 0.99})
    config.optim.learning_rate = 0.01
    # Kernels that batch normalisation follows take larger steps than those that nothing rescales.
    unscaled = ((r"rpn.*kernel", 2.0),) if kind in ("faster", "mask") else ()
    last = r"logits|bbox_reg" if kind == "retina" else r"pred|logits|score"
    config.optim.lr_multiplier = ((last, 1.0), *unscaled, (r"kernel", 5.0), (r".*", 1.0))
    config.optim.clip_norm = 10.0
    config.schedule.name = "one_cycle"
    config.schedule.peak_fraction = 0.2
    config.train.total_steps = 8 if tiny else STEPS[kind]
    config.eval.every_steps = config.train.total_steps
    config.checkpoint.every_steps = 4 if tiny else 1000
    config.select.metric = "AP"
    config.log.every_steps = 4 if tiny else 50
    config.log.show = ("loss", "AP", "AP50", "AR100", "f1", *(("segm_AP", "segm_f1") if kind == "mask" else ()))
    return config


def _of_two_stages(kind: str) -> ConfigDict:
    # A random eight of a scene's positives train the mask head: with all of them a step takes 1.4 times as long.
    masks = {"mask_batch_size_per_image": 8} if kind == "mask" else {}
    return ConfigDict({
        **masks,
        "rpn_pre_nms_top_n_train": 200,
        "rpn_pre_nms_top_n_test": 200,
        "rpn_post_nms_top_n_train": 100,
        "rpn_post_nms_top_n_test": 100,
        "rpn_batch_size_per_image": 64,
        # R-CNN pays for every one of them with a pass of the backbone: 128 crops a step, as its authors took.
        "box_batch_size_per_image": 16 if kind == "rcnn" else 64,
        "box_positive_fraction": 0.5,  # few digits in a scene: more of the overlapping proposals teach the head
        # Average precision also counts what is found with little confidence: AP50 .950 in validation, .944 from .05 and 30 on.
        "box_score_thresh": 0.002,
        "box_pre_nms_top_n": 300,
        "box_detections_per_img": 60,
    })  # fmt: skip
