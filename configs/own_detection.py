r"""Your own images with boxes: nothing but where they are is needed.

python -m imgrec_jax.main --config=configs/own_detection.py --config.data.manual_dir=DIR
DIR: a COCO json beside its images; Pascal VOC's xml files, of the devkit or of tools; YOLO's data.yaml, images/ and
labels/; or NAME/images/ and NAME/masks/ with one mask file for each object. Classes, splits, sizes and anchors that fit the
objects are found and printed; whatever is given instead is kept, e.g. --config.data.max_size=640. More in configs/README.md.

A small Faster R-CNN from random weights, as bccd_faster_rcnn.py, or a Mask R-CNN where every object has a mask
(--config.model.kind=faster leaves the masks out, =mask insists on them); `best_test` is the test score of the epoch that was
best in validation. ":tiny" is a smoke test.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from imgrec_jax.config import base


def get_config(variant: str = "") -> ConfigDict:
    """variant: "" or "tiny"."""
    if variant not in ("", "tiny"):
        raise ValueError(f"unknown variant {variant!r}; expected '' or 'tiny'")
    config = base()
    config.task = "detection"
    config.model = ConfigDict({
        "name": "small_detector",
        "kind": "",  # found: "mask" where the objects have masks, else "faster"
        "num_classes": placeholder(int),
        "widths": (16, 32, 64, 96),
        "blocks": 1,
        "stem_stride": 2,
        "fpn_width": 48,
        "head_width": 256,
        "mask_widths": (32, 32),
        "mask_size": 7,
        "norm": "batch",
        "anchor_sizes": (),  # found, as all that is left empty
        "aspect_ratios": (),
    })  # fmt: skip
    config.data.name = "own_detection"
    config.data.validation_split = config.data.test_split = "auto"
    config.data.mean = config.data.std = ()
    with config.ignore_type():
        config.data.min_size, config.data.canvases = (), ()
        config.data.max_size, config.data.max_boxes = placeholder(int), placeholder(int)
    config.data.batch_size, config.data.eval_batch_size, config.data.remainder = 4, 8, "pad"
    config.data.train_ops = ConfigDict({
        "random_affine": {"flip": 0.5, "scale": (0.8, 1.25), "random_position": True, "min_side": 2.0, "min_visible": 0.3},
        "colour_jitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.02},
    })  # fmt: skip
    config.detection = ConfigDict({
        "rpn_pre_nms_top_n_train": 300,
        "rpn_pre_nms_top_n_test": 300,
        "rpn_post_nms_top_n_train": 150,
        "rpn_post_nms_top_n_test": 100,
        "rpn_batch_size_per_image": 128,
        "box_batch_size_per_image": 64,
        "box_pre_nms_top_n": 300,
        "box_detections_per_img": 100,
    })  # fmt: skip
    config.optim.name = "muon"
    config.optim.options = ConfigDict({"beta": 0.9, "ns_steps": 3, "b1": 0.9, "b2": 0.99})
    config.optim.learning_rate = 0.01
    config.optim.lr_multiplier = (
        (r"pred|logits|score", 1.0),
        (r"(fpn|rpn|box_head).*kernel", 2.0),
        (r"kernel", 5.0),
        (r".*", 1.0),
    )
    config.optim.weight_decay = (("kernel", 1e-2), (".*", 0.0))
    config.optim.clip_norm = 10.0
    config.optim.ema_decay = 0.99
    config.schedule.name = "one_cycle"
    config.schedule.peak_fraction = 0.2
    config.train.total_epochs = 20.0
    config.eval.every_epochs = 1.0
    config.select.metric = "AP"
    config.log.every_steps = 20
    config.log.show = ("loss", "AP", "AP50", "AR100", "f1")
    if variant == "tiny":
        config.train.total_epochs, config.train.total_steps = None, 4
        config.eval.every_epochs, config.eval.every_steps, config.log.every_steps = None, 4, 2
    return config
