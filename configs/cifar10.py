r"""CIFAR-10 from random weights: a ResNet-18 with a stem for small images.

python -m imgrec_jax.main --config=configs/cifar10.py:resnet18                                  (the set is prepared by TFDS)
python -m imgrec_jax.main --config=configs/cifar10.py:resnet18 --config.data.name=image_folder --config.data.manual_dir=DIR
The usual recipe: 4 pixels of padding, crops and flips, SGD with momentum, 200 epochs. kuangliu's pytorch-cifar lists 93.02 %
for this network with steps of the rate (https://github.com/kuangliu/pytorch-cifar). The test split chooses nothing: the figure
to compare is the one after the last step. Not run to its end here. DIR: DIR/train/CLASS/*.png and DIR/test/CLASS/*.png, or an
npz. ":resnet18,tiny" is a look at it in a minute.
"""

from ml_collections import ConfigDict

from imgrec_jax.config import base


def get_config(variant: str = "resnet18") -> ConfigDict:
    """variant: "resnet18", and optionally "tiny", separated by a comma."""
    names = [name for name in variant.split(",") if name]
    if set(names) - {"resnet18", "tiny"}:
        raise ValueError(f"unknown variant {variant!r}; expected 'resnet18', and optionally 'tiny'")
    config = base()
    config.model = ConfigDict({"name": "resnet18", "num_classes": 10, "stem": "cifar", "norm": "batch"})
    config.data.name = "cifar10"
    config.data.train_split, config.data.validation_split, config.data.test_split = "train", "", "test"
    config.data.batch_size, config.data.eval_batch_size, config.data.remainder = 128, 500, "drop"
    config.data.mean, config.data.std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    # A shift of up to 4 of 32 pixels, whole ones; what comes in is black.
    config.data.train_ops = ConfigDict({"random_affine": {"size": (32, 32), "translate": 0.125, "flip": 0.5}})
    config.optim.name = "sgd"
    config.optim.options = ConfigDict({"momentum": 0.9})
    config.optim.learning_rate = 0.1
    config.optim.weight_decay = ((".*", 5e-4),)
    config.schedule.name = "cosine"
    config.train.total_epochs = 200.0
    config.eval.every_epochs = 1.0
    if "tiny" in names:
        config.data.train_split, config.data.test_split = "train[:64]", "test[:64]"
        config.data.batch_size, config.data.eval_batch_size = 16, 32
        config.train.total_epochs = config.eval.every_epochs = 1.0
        config.log.every_steps = 1
    return config
