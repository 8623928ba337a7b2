"""Any TFDS classification set by name.

python -m imgrec_jax.main --config=configs/image_classification.py --config.data.name=cifar10 --config.model.num_classes=10
Images are brought to `size` x `size` pixels; give another size as the variant: configs/image_classification.py:64
"""

from ml_collections import ConfigDict

from imgrec_jax.config import base


def get_config(variant: str = "32") -> ConfigDict:
    """variant: the side of the images in pixels."""
    if not variant.isdigit():
        raise ValueError(f"unknown variant {variant!r}; expected the side of the images in pixels, e.g. '64'")
    size = (int(variant), int(variant))
    config = base()
    config.data.name = "cifar10"
    config.data.train_split, config.data.validation_split = "train[:90%]", "train[90%:]"
    config.data.batch_size = 128
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.data.eval_ops = ConfigDict({"to_channels": {"channels": 3}, "resize": {"size": size}})
    config.data.train_ops = ConfigDict({
        "to_channels": {"channels": 3},
        "random_affine": {"size": size, "fit": "stretch", "flip": 0.5, "translate": 0.1},
    })  # fmt: skip
    config.model = ConfigDict({
        "name": "convnet",
        "num_classes": 10,
        "convs": ((32, 3, 1, 1), (64, 3, 1, 2), (128, 3, 1, 2), (128, 3, 1, 1)),
        "activation": "relu",
        "kernel_init": "he_normal",
        "norm": "batch",
        "padding": "SAME",
        "head": "gap",
        "dropout": 0.1,
    })  # fmt: skip
    config.optim.name = "adamw"
    config.optim.options = ConfigDict({"b1": 0.9, "b2": 0.999})
    config.optim.learning_rate = 3e-3
    config.optim.weight_decay = (("kernel", 0.05), (".*", 0.0))
    config.optim.ema_decay = 0.999
    config.schedule.name = "one_cycle"
    config.train.total_epochs = 20.0
    config.eval.every_epochs = 1.0
    config.select.metric = "accuracy"
    return config
