r"""Medical pictures in two classes by a small network from random weights, with the scores that medicine asks for.

python -m imgrec_jax.main --config=configs/medical_cnn.py --config.data.manual_dir=DIR
DIR is anything that image_folder.py takes; one image has one of two labels, and the second (or config.eval.positive) is the one
that is looked for. conv3 64, pool, conv3 128, pool, dense 256, with Adam 1e-3 and cross-entropy, stopped by the validation
split, which also chooses the threshold of precision, recall, specificity and F1; AUC with its interval.

":224" brings images to 224 x 224 with ImageNet's mean and standard deviation, as the network was described; without it size and
normalisation are found in the data.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from imgrec_jax.config import base


def get_config(variant: str = "") -> ConfigDict:
    """variant: "" or "224"."""
    if variant not in ("", "224"):
        raise ValueError(f"unknown variant {variant!r}; expected '' or '224'")
    config = base()
    config.data.name = "image_folder"
    config.data.validation_split = config.data.test_split = "auto"
    config.data.batch_size, config.data.eval_batch_size, config.data.remainder = 64, 250, "pad"
    size, channels = ((224, 224), 3) if variant else (placeholder(tuple), placeholder(int))
    if variant:
        config.data.options = ConfigDict({"size": size, "channels": channels})
        config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    else:
        config.data.mean = config.data.std = ()
    config.data.eval_ops = ConfigDict({"to_channels": {"channels": channels}, "resize": {"size": size}})
    config.data.train_ops = ConfigDict({
        "to_channels": {"channels": channels},
        "random_affine": {"size": size, "fit": "stretch", "rotate": 10.0, "scale": (0.9, 1.1), "translate": 0.05},
    })  # fmt: skip
    config.model = ConfigDict({"name": "wide_cnn", "num_classes": placeholder(int), "dropout": 0.3})
    config.optim.name = "adam"
    config.optim.learning_rate = 1e-3
    config.train.total_epochs = 10.0
    config.eval.every_epochs = 1.0
    config.eval.intervals = True
    config.select.metric, config.select.patience = "auc", 4
    config.log.every_steps = 50
    config.log.show = ("loss", "accuracy", "auc", "precision", "recall", "specificity", "f1", "threshold")
    return config
