r"""Your own images, with one label each, or several: nothing but where they are is needed.

python -m imgrec_jax.main --config=configs/image_folder.py --config.data.manual_dir=DIR
DIR: a folder DIR/CLASS/*.jpg or DIR/{train,val,test}/CLASS/*.jpg, a table of file,label (CSV, TSV, JSON lines), an npz of
train_images, train_labels, ..., a zip or a tar. Classes, splits, channels and size are found and printed; whatever is given
instead is kept, e.g. --config.data.options.size="(96, 96)". More in configs/README.md.

":multi_label" takes tables with several labels an image. A small network from random weights; `best_test` is the test score of
the epoch that was best in validation.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from imgrec_jax.config import base

VARIANTS = ("", "multi_label")


def get_config(variant: str = "") -> ConfigDict:
    """variant: one of VARIANTS."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; expected one of {VARIANTS}")
    config = base()
    config.data.name = "image_folder"
    config.data.validation_split = config.data.test_split = "auto"
    config.data.batch_size, config.data.eval_batch_size, config.data.remainder = 32, 250, "pad"
    config.data.mean = config.data.std = ()  # found, as all that is left empty
    config.data.eval_ops = ConfigDict({
        "to_channels": {"channels": placeholder(int)},
        "resize": {"size": placeholder(tuple)},
    })  # fmt: skip
    config.data.train_ops = ConfigDict({
        "to_channels": {"channels": placeholder(int)},
        "random_affine": {
            "size": placeholder(tuple), "fit": "stretch", "flip": 0.5, "translate": 0.05, "scale": (0.9, 1.1), "rotate": 10.0,
        },
    })  # fmt: skip
    config.model = ConfigDict({
        "name": "convnet",
        "num_classes": placeholder(int),
        "convs": ((32, 3, 1, 2), (64, 3, 1, 2), (128, 3, 1, 2), (128, 3, 1, 1)),
        "activation": "relu",
        "kernel_init": "he_normal",
        "norm": "batch",
        "padding": "SAME",
        "head": "gap",
        "dropout": 0.1,
    })  # fmt: skip
    config.optim.name = "adamw"
    config.optim.learning_rate = 2e-3
    config.optim.weight_decay = (("kernel", 0.05), (".*", 0.0))
    config.optim.ema_decay = 0.99  # small sets have few steps, whose scores would jump
    config.schedule.name = "one_cycle"
    config.train.total_epochs = 20.0
    config.eval.every_epochs = 1.0
    config.eval.intervals = True
    config.select.metric = "accuracy"
    config.log.every_steps = 20
    if variant == "multi_label":
        config.data.multi_label = True
        config.loss = ConfigDict({"name": "binary_cross_entropy"})
        config.select.metric = "mAP"
        config.log.show = ("loss", "mAP", "f1_macro")
    return config
