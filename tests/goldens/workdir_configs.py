"""The configs of the kept workdirs, in the words of commit b7d72e4, which made them."""

from ml_collections import ConfigDict

from imgrec_jax.config import base


def get_config(task: str) -> ConfigDict:
    """task: "classification", "detection" or "segmentation"."""
    config = base()
    config.task = task
    config.data.batch_size, config.data.eval_batch_size, config.data.remainder = 4, 4, "pad"
    config.data.mean, config.data.std = (0.3,), (0.25,)
    config.optim.options = ConfigDict({"momentum": 0.9})
    config.optim.learning_rate = 0.02
    config.train.total_steps, config.eval.every_steps, config.checkpoint.every_steps = 6, 3, 2
    config.log.every_steps, config.log.tensorboard = 2, False
    {"classification": _classification, "detection": _detection, "segmentation": _segmentation}[task](config)
    return config


def _classification(config: ConfigDict) -> None:
    config.model = ConfigDict({"name": "linear", "classes": 10, "kernel_init": "zeros"})
    config.data.name = "mnist:3.0.1"
    config.data.train_split, config.data.validation_split = "train[:120]", "train[120:]"
    config.data.batch_size, config.data.eval_batch_size = 32, 50
    config.optim.ema_decay = 0.9
    config.select.metric = "accuracy"


def _detection(config: ConfigDict) -> None:
    model = {"name": "small_detector", "kind": "faster", "num_classes": 3, "widths": (4, 4, 4), "fpn_width": 4, "head_width": 8}
    config.model = ConfigDict({**model, "anchor_sizes": ((16,), (24,))})
    config.data.name = "coco_folder"
    config.data.options = ConfigDict({"images": "{split}", "annotations": "{split}.json"})
    config.data.train_split, config.data.test_split = "train", "val"
    config.data.min_size, config.data.max_size, config.data.canvases, config.data.max_boxes = (64,), 64, ((64, 64),), 4
    config.detection = ConfigDict(
        {"rpn_post_nms_top_n_train": 20, "rpn_post_nms_top_n_test": 20, "box_batch_size_per_image": 16}
    )
    config.log.show = ("loss", "AP")


def _segmentation(config: ConfigDict) -> None:
    config.model = ConfigDict({"name": "unet", "classes": 2, "depth": 2, "width": 4, "norm": "batch"})
    config.loss = ConfigDict({"name": "segmentation", "cross_entropy": 1.0, "dice": 1.0})
    config.data.name = "mask_folder"
    config.data.options = ConfigDict({"kind": "index"})
    config.data.validation_split, config.data.test_split = "validation", "test"
    config.log.show = ("loss", "iou")
