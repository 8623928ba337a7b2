"""Mask R-CNN on cell nuclei (2018 Data Science Bowl, stage 1): a box and a mask for every nucleus.

python -m imgrec_jax.main --config=configs/nuclei_mask_rcnn.py --config.data.manual_dir=FOLDER_OR_ZIP
Data and split are those of nuclei_unet.py: 222 images, each with one mask file per nucleus, 155 for training, 34 for validation
and 33 for testing. `segm_f1` is the object F1 at an IoU of 0.5 of masks, of detections of a score of 0.5 or more; `:tiny` is a
smoke test. Test segm AP 0.439 (0.437 to 0.443 of three seeds), segm F1 0.755 (0.748 to 0.766), 23 minutes on one core:
experiments/027_instances.
"""

from ml_collections import ConfigDict

from imgrec_jax.config import base


def get_config(variant: str = "") -> ConfigDict:
    """variant: "" or "tiny"."""
    if variant not in ("", "tiny"):
        raise ValueError(f"unknown variant {variant!r}; expected '' or 'tiny'")
    config = base()
    config.task = "detection"
    config.model = ConfigDict({
        "name": "small_detector",
        "kind": "mask",
        "num_classes": 2,
        "widths": (16, 32, 64, 96),
        "blocks": 1,
        "stem_stride": 2,
        "fpn_width": 48,
        "head_width": 128,
        "mask_widths": (32, 32),
        "mask_size": 7,
        "norm": "batch",
        "neck_norm": "batch",
        "head_norm": "batch",
        # At a shorter side of 256 most nuclei have 8 to 40 pixels.
        "anchor_sizes": ((8, 12), (18, 26), (38, 56)),
        "aspect_ratios": (1.0,),
    })  # fmt: skip
    config.data.name = "mask_folder"
    config.data.options = ConfigDict({
        "kind": "instances",
        "class_names": ("nucleus",),
        "fractions": (("train", 0.7), ("validation", 0.15), ("test", 0.15)),
    })  # fmt: skip
    config.data.validation_split, config.data.test_split = "validation", "test"
    config.data.mean, config.data.std = (0.25,), (0.25,)
    config.data.min_size, config.data.max_size, config.data.canvases = (256,), 352, ((256, 352), (352, 256))
    config.data.max_boxes = 160
    config.data.drop_extra_boxes = True  # a few images have up to 375 nuclei
    config.data.batch_size, config.data.eval_batch_size, config.data.remainder = 4, 4, "pad"
    config.data.train_ops = ConfigDict({
        "random_affine": {
            "size": (256, 256), "fit": "cover", "random_position": True, "rotate": 180.0, "scale": (0.7, 1.4), "flip": 0.5,
            "min_side": 3.0, "min_visible": 0.3,
        },
        "colour_jitter": {"brightness": 0.3, "contrast": 0.3},
    })  # fmt: skip
    config.detection = ConfigDict({
        "rpn_pre_nms_top_n_train": 500,
        "rpn_pre_nms_top_n_test": 500,
        "rpn_post_nms_top_n_train": 300,
        "rpn_post_nms_top_n_test": 300,
        "rpn_batch_size_per_image": 128,
        "box_batch_size_per_image": 96,
        "box_positive_fraction": 0.5,
        "box_pre_nms_top_n": 400,
        "box_detections_per_img": 200,
    })  # fmt: skip
    config.optim.name = "muon"
    config.optim.options = ConfigDict({"beta": 0.9, "ns_steps": 3, "b1": 0.9, "b2": 0.99})
    config.optim.learning_rate = 0.01
    # As in scenes_detection.py: larger steps for kernels that batch normalisation follows.
    config.optim.lr_multiplier = ((r"pred|logits|score", 1.0), (r"rpn.*kernel", 2.0), (r"kernel", 5.0), (r".*", 1.0))
    config.optim.weight_decay = (("kernel", 1e-2), (".*", 0.0))
    config.optim.clip_norm = 10.0
    config.optim.ema_decay = 0.99
    config.schedule.name = "one_cycle"
    config.schedule.peak_fraction = 0.2
    config.train.total_steps = 1000
    config.eval.every_steps = 250
    config.select.metric = "segm_AP"
    config.log.every_steps = 25
    config.log.show = ("loss", "AP", "segm_AP", "segm_AP50", "segm_f1")
    if variant == "tiny":
        config.data.train_split, config.data.validation_split, config.data.test_split = (
            "train[:8]",
            "validation[:4]",
            "test[:4]",
        )
        config.train.total_steps, config.eval.every_steps, config.log.every_steps = 4, 4, 2
    return config
