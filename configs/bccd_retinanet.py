"""Blood cells: red cells, white cells and platelets in 364 microscope pictures, by a small RetinaNet from random weights.

python -m imgrec_jax.main --config=configs/bccd_retinanet.py --config.data.manual_dir=/data/bccd
BCCD (github.com/Shenggan/BCCD_Dataset) is a Pascal VOC folder of 640 x 480 images: 205 for training, 87 for validation, 72 for
testing. The best checkpoint by validation AP is evaluated on the test images at the end. `:tiny` is a smoke test.

Data, backbone, anchors and schedule are those of bccd_faster_rcnn.py. Test AP 0.600 and 0.601, AP50 0.913 and 0.908 (seeds 0
and 1; Faster R-CNN 0.587 and 0.913, seed 0), 15 to 18 minutes on one core: experiments/027_instances.
"""

from ml_collections import ConfigDict

from imgrec_jax.config import base

CLASS_NAMES = ("RBC", "WBC", "Platelets")


def get_config(variant: str = "") -> ConfigDict:
    """variant: "" or "tiny"."""
    if variant not in ("", "tiny"):
        raise ValueError(f"unknown variant {variant!r}; expected '' or 'tiny'")
    config = base()
    config.task = "detection"
    config.model = ConfigDict({
        "name": "small_detector",
        "kind": "retina",
        "num_classes": len(CLASS_NAMES) + 1,
        "widths": (16, 32, 64, 96),
        "blocks": 1,
        "stem_stride": 2,
        "fpn_width": 48,
        "norm": "batch",
        "neck_norm": "batch",
        "head_norm": "group",  # the towers are shared by levels of other statistics
        "tower_depth": 2,
        # At half size the square root of a training box's area is, from the 5 % to the 95 % quantile, 16..27 pixels for
        # platelets, 42..61 for red and 58..120 for white cells; height / width is 0.7..1.3, and a square of the same area
        # overlaps a box of 1.3 by an IoU of 0.78.
        "anchor_sizes": ((16, 24), (42, 56), (80, 112)),
        "aspect_ratios": (1.0,),
    })  # fmt: skip
    config.data.name = "voc_folder"
    config.data.options = ConfigDict({"class_names": CLASS_NAMES, "one_based": True})
    config.data.train_split, config.data.validation_split, config.data.test_split = "train", "val", "test"
    config.data.mean, config.data.std = (0.737, 0.696, 0.715), (0.061, 0.102, 0.076)
    config.data.min_size, config.data.max_size, config.data.canvases = (240,), 320, ((240, 320),)
    config.data.max_boxes = 32  # an image has at most 30
    config.data.batch_size, config.data.eval_batch_size, config.data.remainder = 4, 8, "pad"
    background = (191, 184, 187)  # the median pixel
    config.data.train_ops = ConfigDict({
        "random_affine": {
            "flip": 0.5, "vertical_flip": 0.5, "scale": (0.8, 1.25), "random_position": True, "fill": background,
            "min_side": 4.0, "min_visible": 0.3,
        },
        "colour_jitter": {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.02},
    })  # fmt: skip
    config.detection = ConfigDict({"topk_candidates": 150, "detections_per_img": 100})
    config.optim.name = "muon"
    config.optim.options = ConfigDict({"beta": 0.9, "ns_steps": 3, "b1": 0.9, "b2": 0.99})
    config.optim.learning_rate = 0.01
    config.optim.lr_multiplier = ((r"logits|bbox_reg", 1.0), (r"kernel", 5.0), (r".*", 1.0))
    config.optim.weight_decay = (("kernel", 1e-2), (".*", 0.0))
    config.optim.clip_norm = 10.0
    config.optim.ema_decay = 0.99
    config.schedule.name = "one_cycle"
    config.schedule.peak_fraction = 0.2
    config.train.total_steps = 1000
    config.eval.every_steps = 200
    config.select.metric = "AP"
    config.log.every_steps = 20
    config.log.show = ("loss", "AP", "AP50", "AR100", "f1")
    if variant == "tiny":
        config.data.train_split, config.data.validation_split, config.data.test_split = "train[:8]", "val[:8]", "test[:8]"
        config.train.total_steps, config.eval.every_steps, config.log.every_steps = 4, 4, 2
    return config
