r"""Faster R-CNN with ResNet-50 and FPN on COCO 2017, as torchvision trains it (references/detection/train.py).

python -m imgrec_jax.main --config=configs/coco_faster_rcnn.py                  TFDS `coco/2017`, prepared beforehand
python -m imgrec_jax.main --config=configs/coco_faster_rcnn.py:folder --config.data.manual_dir=/data/coco
The folder holds train2017/, val2017/ and annotations/instances_{train,val}2017.json. Add ",tiny" for a smoke test.
Weights are random unless they are given. From torchvision's ImageNet ResNet-50, as the published recipe starts:
  --config.pretrained.path=torchvision/resnet50.IMAGENET1K_V1 --config.pretrained.head=new

":released" and ":released_v2" are torchvision's detectors with their released weights, each image resized and padded as there:
  python -m imgrec_jax.main --config=configs/coco_faster_rcnn.py:folder,released --config.data.manual_dir=/data/coco --mode=eval
evaluates val2017, where torchvision publishes AP 0.369 (v1) and 0.467 (v2); experiments/020_released_detectors/published.py
asserts it. Without the network the error says which file to get and where to put it. Trained on, they start from these weights;
classes of another folder are matched by their names.

":folder,overfit" is a smoke test of the whole path from files to AP, not a result: a small detector learns 16 training images
by heart and is evaluated on the same 16: AP50 0.98 in 20 minutes of one busy CPU core on 16 images of a COCO folder.

SGD 0.02 at 16 images a step, momentum 0.9, weight decay 1e-4, 26 epochs, the rate divided by 10 at epochs 16 and 22, linear
warm-up over 1,000 steps. torchvision reports AP 37.0 with this recipe from ImageNet weights.
"""

from ml_collections import ConfigDict

from imgrec_jax.config import base


def get_config(variant: str = "") -> ConfigDict:
    """variant: "", "folder", and after either "tiny", "overfit", "released" or "released_v2", separated by a comma."""
    names = [name for name in variant.split(",") if name]
    kinds = [name for name in names if name != "folder"]
    if not set(kinds) <= {"tiny", "overfit", "released", "released_v2"} or len(kinds) > 1:
        raise ValueError(f"unknown variant {variant!r}; expected 'folder', and 'tiny', 'overfit', 'released' or 'released_v2'")
    config = base()
    config.task = "detection"
    config.model = ConfigDict({
        "name": "resnet_fpn_detector", "kind": "faster", "num_classes": 81,
        "backbone": "resnet50", "norm": "frozen", "remat": False,
    })  # fmt: skip
    config.data.name = "coco_folder" if "folder" in names else "coco/2017"
    if "folder" in names:
        config.data.options = ConfigDict({"images": "{split}2017", "annotations": "annotations/instances_{split}2017.json"})
    config.data.validation_split = "val" if "folder" in names else "validation"
    config.data.test_split = ""  # the test split's annotations are not public
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.data.batch_size, config.data.eval_batch_size, config.data.remainder = 16, 8, "pad"
    # train2017 has boxes without a height; torchvision drops them, too (references/detection/coco_utils.py).
    config.data.drop_degenerate_boxes = True
    config.data.train_ops = ConfigDict({"random_affine": {"flip": 0.5}})
    config.optim.options = ConfigDict({"momentum": 0.9, "nesterov": False})
    config.optim.learning_rate = 0.02
    config.optim.weight_decay = ((".*", 1e-4),)
    # torchvision trains the last three stages (trainable_backbone_layers=3).
    config.optim.frozen = ("backbone/body/conv1", "backbone/body/layer1_")
    config.schedule.name = "step"
    config.schedule.boundaries_epochs = (16, 22)
    config.schedule.warmup_steps = 1000
    config.schedule.warmup_factor = 1e-3
    config.train.total_epochs = 26.0
    config.eval.every_epochs = 1.0
    config.select.metric = "AP"
    config.log.every_steps = 20
    config.log.show = ("loss", "AP", "AP50", "AR100", "f1")
    if "released" in names or "released_v2" in names:
        v2 = "_v2" if "released_v2" in names else ""
        config.pretrained.path = f"torchvision/fasterrcnn_resnet50_fpn{v2}.COCO_V1"
        config.pretrained.head = "match"
        config.data.resize, config.data.eval_batch_size = "torchvision", 1
        if v2:
            config.model = ConfigDict({"name": "fasterrcnn_resnet50_fpn_v2", "num_classes": 81, "norm": "batch"})
        else:
            config.model.norm_epsilon = 0.0  # as torchvision runs these weights
    if "tiny" in names:
        config.data.train_split, config.data.validation_split = "train[:4]", f"{config.data.validation_split}[:4]"
        config.data.batch_size, config.data.eval_batch_size = 1, 1
        config.data.min_size, config.data.max_size, config.data.canvases = (128,), 224, ((224, 224),)
        config.train.total_epochs = None
        config.train.total_steps, config.eval.every_epochs = 2, 1.0
    if "overfit" in names:
        _overfit(config)
    return config


def _overfit(config: ConfigDict) -> None:
    """Sixteen images at about 0.6 of their size, the same every time, and anchors for objects of 6 to 300 pixels."""
    config.data.allow_overlap = True
    config.model = ConfigDict({
        "name": "small_detector", "kind": "faster", "num_classes": 81, "widths": (16, 32, 64, 96), "fpn_width": 48,
        "head_width": 256, "anchor_sizes": ((8, 16), (32, 64), (128, 256)), "aspect_ratios": (0.5, 1.0, 2.0),
    })  # fmt: skip
    config.data.train_split = config.data.validation_split = "train[:16]"
    config.data.batch_size, config.data.eval_batch_size = 2, 4
    config.data.min_size, config.data.max_size, config.data.canvases = (320,), 384, ((384, 384),)
    config.data.train_ops = ConfigDict()
    config.detection = ConfigDict({
        "rpn_pre_nms_top_n_train": 500, "rpn_pre_nms_top_n_test": 500, "rpn_post_nms_top_n_train": 200,
        "rpn_post_nms_top_n_test": 200, "rpn_batch_size_per_image": 128, "box_batch_size_per_image": 64,
        "box_pre_nms_top_n": 500,
    })  # fmt: skip
    config.optim.name, config.optim.options = "adamw", ConfigDict()
    config.optim.learning_rate, config.optim.clip_norm = 2e-3, 10.0
    config.optim.weight_decay, config.optim.frozen = (), ()
    config.schedule.name, config.schedule.warmup_steps, config.schedule.warmup_factor = "one_cycle", None, 0.0
    config.schedule.boundaries_epochs = ()
    config.train.total_epochs, config.train.total_steps = None, 1000
    config.eval.every_epochs, config.eval.every_steps = None, 200
