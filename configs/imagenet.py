r"""ImageNet-1k from random weights, by published recipes for machines with accelerators.

python -m imgrec_jax.main --config=configs/imagenet.py:resnet50 --config.data.manual_dir=DIR     (8 GPUs, or a TPU)
:resnet50  flax's ImageNet example reports 76.72 % on 8 V100 in 13 hours, 76.4 to 76.7 % on TPUs
           (https://github.com/google/flax/tree/main/examples/imagenet): SGD, 100 epochs, batches of 1,024.
:vit_s16   the plain ViT-S/16 of Beyer, Zhai, Kolesnikov (arXiv 2205.01580), who report 76.5 % in 90 epochs; one dense layer as
           head. Their randaugment draws two of 14 operations at strength 10.
:tiny      of either, for a look: --config=configs/imagenet.py:vit_s16,tiny

DIR: the folders DIR/train/n01440764/*.JPEG and DIR/val/n01440764/*.JPEG of ILSVRC-2012; or as TFDS prepares it,
--config.data.name=imagenet2012 --config.data.validation_split=validation. The figures above are of the validation images after
the last step, by which nothing is chosen. Neither has been run to its end here: there is no such machine.
"""

from ml_collections import ConfigDict

from imgrec_jax.config import base

VARIANTS = ("resnet50", "vit_s16")


def get_config(variant: str = "resnet50") -> ConfigDict:
    """variant: one of VARIANTS, and optionally "tiny", separated by a comma."""
    names = [name for name in variant.split(",") if name]
    tiny, models = "tiny" in names, [name for name in names if name != "tiny"] or ["resnet50"]
    if len(models) > 1 or models[0] not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; expected one of {VARIANTS}, and optionally 'tiny'")
    config = base()
    config.data.name = "image_folder"
    config.data.options = ConfigDict({"size": (), "channels": 3, "depth": 8})  # files are read as they are
    config.data.validation_split, config.data.test_split = "validation", ""
    config.data.batch_size, config.data.eval_batch_size, config.data.remainder = 1024, 256, "drop"
    config.data.eval_ops = ConfigDict({
        "to_channels": {"channels": 3},
        "resize_and_center_crop": {"shorter": 256, "size": (224, 224), "antialias": True},
    })  # fmt: skip
    crop = {"size": (224, 224), "area": (0.08, 1.0), "flip": 0.5, "reduced": True}
    config.data.train_ops = ConfigDict({"to_channels": {"channels": 3}, "random_resized_crop": crop})
    config.schedule.name = "cosine"
    config.eval.every_epochs = config.checkpoint.every_epochs = 1.0
    config.select.metric = ""
    {"resnet50": _resnet50, "vit_s16": _vit_s16}[models[0]](config)
    if tiny:
        config.data.batch_size = config.data.eval_batch_size = 8
        config.train.total_epochs, config.train.total_steps = None, 4
        config.eval.every_epochs, config.eval.every_steps = None, 4
        config.checkpoint.every_epochs, config.checkpoint.every_steps = None, 4
        config.schedule.warmup_epochs, config.schedule.warmup_steps = None, 1
        config.log.every_steps = 1
    return config


def _resnet50(config: ConfigDict) -> None:
    config.model = ConfigDict({"name": "resnet50", "num_classes": 1000, "norm": "batch"})
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.optim.name = "sgd"
    config.optim.options = ConfigDict({"momentum": 0.9, "nesterov": True})
    config.optim.learning_rate = 0.4  # 0.1 for every 256 images
    config.optim.weight_decay = (("kernel", 1e-4), (".*", 0.0))
    config.schedule.warmup_epochs = 5.0
    config.train.total_epochs = 100.0


def _vit_s16(config: ConfigDict) -> None:
    config.model = ConfigDict({"name": "vit_s_16", "num_classes": 1000, "plain": True})
    config.data.mean, config.data.std = (0.5,), (0.5,)
    config.data.train_ops.rand_augment = ConfigDict({"count": 2, "strength": 10})
    config.data.train_ops.mixup = ConfigDict({"alpha": 0.2})
    config.optim.name = "adamw"
    config.optim.options = ConfigDict({"b1": 0.9, "b2": 0.999})
    config.optim.learning_rate = 1e-3
    config.optim.weight_decay = (("kernel", 0.1), (".*", 0.0))  # 1e-4 a step at the peak, as theirs is not times the rate
    config.optim.clip_norm = 1.0
    config.schedule.warmup_steps = 10_000
    config.train.total_epochs = 90.0
