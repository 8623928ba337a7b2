"""Semantic segmentation of digit scenes: 11 classes with the background, 128 x 128 pixels.

python -m imgrec_jax.main --config=configs/scenes_segmentation.py:unet     (or :fcn32s, :fcn16s, :fcn8s)
Add ",tiny" for a run of a minute or two on a small set: --config=configs/scenes_segmentation.py:unet,tiny
"""

from ml_collections import ConfigDict

from imgrec_jax.config import base

# The trunk of the FCNs: VGG-16's thirteen convolutions with batch normalisation, an eighth to a quarter as wide.
TRUNK = ((8, 2), (16, 2), (32, 3), (64, 3), (128, 3))


def get_config(variant: str = "unet") -> ConfigDict:
    """variant: one of MODELS, and optionally "tiny", separated by a comma."""
    names = [name for name in variant.split(",") if name]
    tiny, models = "tiny" in names, [name for name in names if name != "tiny"] or ["unet"]
    if len(models) > 1 or models[0] not in MODELS:
        raise ValueError(f"unknown variant {variant!r}; expected one of {sorted(MODELS)}, and optionally 'tiny'")
    config = base()
    config.task = "segmentation"
    config.model = ConfigDict({"num_classes": 11, **MODELS[models[0]]})
    # Dice, because nine pixels of ten are background.
    config.loss = ConfigDict({"name": "segmentation", "cross_entropy": 1.0, "dice": 1.0})
    config.data.name = "digit_scenes/tiny" if tiny else "digit_scenes/default"
    config.data.validation_split, config.data.test_split = "validation", "test"
    config.data.batch_size = 8
    config.data.eval_batch_size = 16 if tiny else 20
    config.data.mean, config.data.std = (0.45,), (0.25,)
    # Four crops cost as much as one scene and show more digits, and above all those that lie close together.
    crop = {"size": (64, 64), "probability": 1.0, "candidates": 10}
    config.data.train_ops = ConfigDict({"foreground_crop": crop})
    config.eval.test_time = "shifts"
    config.optim.name = "muon"
    config.optim.options = ConfigDict({"beta": 0.9, "ns_steps": 3, "b1": 0.9, "b2": 0.99})
    config.optim.learning_rate = 0.01
    config.optim.lr_multiplier = ((r"head|score", 5.0), (r"kernel", 5.0), (r".*", 1.0))
    config.optim.weight_decay = ((r"kernel", 1e-4), (r".*", 0.0))
    config.schedule.name = "one_cycle"
    config.schedule.peak_fraction = 0.2
    config.train.total_steps = 8 if tiny else STEPS[models[0]]
    config.eval.every_steps = config.train.total_steps
    config.checkpoint.every_steps = 4 if tiny else 1000
    config.select.metric = "mean_iou"
    config.log.every_steps = 4 if tiny else 50
    config.log.show = ("loss", "pixel_accuracy", "mean_iou")
    return config


def _fcn(*levels: str) -> dict:
    return {
        "name": "fcn",
        "stages": TRUNK,
        "levels": levels,
        "norm": "batch",
        "hidden": 128,
        "head_kernel": 3,
        "dropout": 0.0,
    }


MODELS = {
    # Half the resolution from the first convolution on, and a head that gives each pixel of a cell its own scores: the time is
    # better spent on the middle levels, which tell the digits apart.
    "unet": {
        "name": "backbone_unet",
        "backbone": "small_resnet",
        # Digits are lighter or darker than what they lie on, and |x| need not learn them twice.
        "trunk": {
            "widths": (16, 32, 64, 128),
            "blocks": (1, 2, 2, 2),
            "stem_stride": 2,
            "stem_width": 32,
            "stem_abs": True,
        },
        "levels": ("layer4", "layer3", "layer2", "layer1"),
        "widths": (64, 48, 24),
        "upsample": "transposed",
        "score_levels": True,
    },
    "fcn32s": _fcn("pool5"),
    "fcn16s": _fcn("pool5", "pool4"),
    "fcn8s": _fcn("pool5", "pool4", "pool3"),
}
STEPS = {"unet": 19000, "fcn32s": 2500, "fcn16s": 2500, "fcn8s": 2500}
