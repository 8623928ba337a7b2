"""U-Net on Oxford-IIIT Pet: pet, its border and the background, at 128 x 128 pixels.

python -m imgrec_jax.main --config=configs/pets_unet.py     (a GPU; the set is prepared by TFDS, which needs TensorFlow once)
"""

from ml_collections import ConfigDict

from imgrec_jax.config import base


def get_config(variant: str = "") -> ConfigDict:
    """variant: "", or "tiny"."""
    if variant not in ("", "tiny"):
        raise ValueError(f"unknown variant {variant!r}; choose 'tiny' or none")
    config = base()
    config.task = "segmentation"
    config.model = ConfigDict({"name": "unet", "num_classes": 3, "depth": 4, "width": 32, "norm": "batch", "dropout": 0.2})
    config.loss = ConfigDict({"name": "segmentation", "cross_entropy": 1.0, "dice": 1.0, "dice_background": True})
    config.data.name = "oxford_iiit_pet"
    config.data.options = ConfigDict({"border": "class"})
    config.data.train_split, config.data.validation_split = "train[:90%]", "train[90%:]"
    config.data.batch_size, config.data.eval_batch_size = 32, 64
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.data.train_ops = ConfigDict(
        {
            "random_affine": {"size": (128, 128), "fit": "stretch", "flip": 0.5, "scale": (0.8, 1.25), "rotate": 15.0},
            "colour_jitter": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3},
        }
    )
    config.data.eval_ops = ConfigDict({"resize": {"size": (128, 128)}})
    config.optim.name = "adamw"
    config.optim.learning_rate = 2e-3
    config.optim.weight_decay = ((r"kernel", 1e-4), (r".*", 0.0))
    config.schedule.name = "one_cycle"
    config.train.total_epochs = 40.0
    config.eval.every_epochs = 2.0
    config.select.metric = "mean_iou"
    config.log.show = ("loss", "pixel_accuracy", "mean_iou")
    if variant == "tiny":
        config.model.width = 4
        config.data.train_split, config.data.validation_split = "train[:64]", "train[64:80]"
        config.data.test_split = "test[:16]"
        config.data.batch_size, config.data.eval_batch_size = 8, 16
        config.train.total_epochs = config.eval.every_epochs = 1.0
        config.log.every_steps = 4
    return config
