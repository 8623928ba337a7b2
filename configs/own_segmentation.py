r"""Your own images with masks: nothing but where they are is needed.

python -m imgrec_jax.main --config=configs/own_segmentation.py --config.data.manual_dir=DIR
DIR, a folder or zip: images/NAME.jpg with masks/NAME.png (class numbers, or 0 and 255), in folders train/ val/ test/ or not; or
NAME/images/* with NAME/masks/*, a mask file for each object. The kind of masks, classes and splits are found and printed;
whatever is given instead is kept. More in configs/README.md.

A small U-Net from random weights, as nuclei_unet.py; `best_test` is the test score of the evaluation that was best in
validation. ":tiny" is a smoke test.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from imgrec_jax.config import base


def get_config(variant: str = "") -> ConfigDict:
    """variant: "" or "tiny"."""
    if variant not in ("", "tiny"):
        raise ValueError(f"unknown variant {variant!r}; expected '' or 'tiny'")
    config = base()
    config.task = "segmentation"
    config.model = ConfigDict({"name": "unet", "num_classes": placeholder(int), "depth": 4, "width": 8, "norm": "batch"})
    config.loss = ConfigDict({"name": "segmentation", "cross_entropy": 1.0, "dice": 1.0})
    config.data.name = "own_segmentation"
    config.data.validation_split = config.data.test_split = "auto"
    config.data.mean = config.data.std = ()  # found, as all that is left empty
    config.data.batch_size = 8
    config.data.eval_batch_size = 1  # images may differ in size
    config.data.pad_multiple = 32
    config.data.remainder = "pad"
    config.data.train_ops = ConfigDict({
        "foreground_crop": {"size": placeholder(tuple), "probability": 0.5},
        "random_affine": {"size": placeholder(tuple), "rotate": 20.0, "scale": (0.7, 1.4), "flip": 0.5},
        "colour_jitter": {"brightness": 0.3, "contrast": 0.3},
    })  # fmt: skip
    config.optim.name = "adamw"
    config.optim.learning_rate = 4e-3
    config.optim.weight_decay = ((r"kernel", 1e-4), (r".*", 0.0))
    config.schedule.name = "one_cycle"
    config.train.total_epochs = 40.0
    config.eval.every_epochs = 1.0
    config.select.metric = "mean_iou"
    config.log.every_steps = 20
    config.log.show = ("loss", "pixel_accuracy", "mean_iou", "f1", "iou")
    if variant == "tiny":
        config.model.width = 4
        config.train.total_epochs, config.train.total_steps = None, 4
        config.eval.every_epochs, config.eval.every_steps, config.log.every_steps = None, 4, 2
    return config
