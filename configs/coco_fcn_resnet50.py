"""FCN-ResNet-50 on COCO with the 21 classes of Pascal VOC, by torchvision's recipe (references/segmentation, 8 x 4 images).

python -m imgrec_jax.main --config=configs/coco_fcn_resnet50.py     (8 GPUs; the set is prepared by TFDS)
torchvision reports 60.5 mean IoU and 91.4 % of the pixels for its own weights. Differences: labels are the panoptic ones, whose
unlabelled pixels are void here, and the scale of an image is drawn log-uniformly from the same range.
"""

from ml_collections import ConfigDict

from imgrec_jax.config import base


def get_config(variant: str = "") -> ConfigDict:
    """variant: "", or "tiny"."""
    if variant not in ("", "tiny"):
        raise ValueError(f"unknown variant {variant!r}; choose 'tiny' or none")
    config = base()
    config.task = "segmentation"
    config.model = ConfigDict({"name": "fcn_resnet50", "num_classes": 21, "aux": True, "norm": "batch"})
    config.loss = ConfigDict({"name": "segmentation", "cross_entropy": 1.0, "aux_weight": 0.5})
    config.data.name = "coco/2017_panoptic"
    config.data.options = ConfigDict({"classes": "voc"})
    config.data.validation_split, config.data.test_split = "train[99%:]", "validation"
    config.data.train_split = "train[:99%]"
    config.data.batch_size = 32
    config.data.eval_batch_size = 1  # images differ in size
    config.data.pad_multiple = 8
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    # The shorter side becomes 260 to 1040 pixels, half to twice 520; then a crop of 480.
    affine = {
        "size": (480, 480),
        "fit": "cover",
        "scale": (260 / 480, 1040 / 480),
        "random_position": True,
        "flip": 0.5,
    }
    config.data.train_ops = ConfigDict({"random_affine": affine})
    config.data.eval_ops = ConfigDict({"resize_shorter": {"length": 520}})
    config.optim.name = "sgd"
    config.optim.options = ConfigDict({"momentum": 0.9})
    config.optim.learning_rate = 0.02
    config.optim.weight_decay = ((r".*", 1e-4),)
    config.optim.lr_multiplier = ((r"^aux_classifier", 10.0), (r".*", 1.0))
    config.schedule.name = "polynomial"
    config.schedule.power = 0.9
    config.train.total_epochs = 30.0
    config.eval.every_epochs = 1.0
    config.select.metric = "mean_iou"
    config.log.show = ("loss", "pixel_accuracy", "mean_iou")
    if variant == "tiny":
        config.data.train_split, config.data.validation_split = "train[:16]", "train[16:20]"
        config.data.test_split = "validation[:4]"
        config.data.batch_size = 2
        config.data.train_ops.random_affine.size = (64, 64)
        config.data.eval_ops.resize_shorter.length = 64
        config.train.total_epochs = config.eval.every_epochs = 1.0
        config.log.every_steps = 4
    return config
