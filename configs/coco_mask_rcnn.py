r"""Mask R-CNN with ResNet-50 and FPN on COCO 2017, as torchvision trains it (references/detection/train.py).

python -m imgrec_jax.main --config=configs/coco_mask_rcnn.py --config.data.manual_dir=/data/coco
The folder holds train2017/, val2017/ and annotations/instances_{train,val}2017.json; COCO of TFDS has no masks. Variants:
"tiny", a smoke test; "released" and "released_v2", torchvision's detectors with their released weights, each image resized and
padded as there, to be evaluated with --mode=eval or trained on. Weights are random unless they are given. From ImageNet's
ResNet-50, as the published recipe starts:
  --config.pretrained.path=torchvision/resnet50.IMAGENET1K_V1 --config.pretrained.head=new

SGD 0.02 at 16 images a step, momentum 0.9, weight decay 1e-4, 26 epochs, the rate divided by 10 at epochs 16 and 22, linear
warm-up over 1,000 steps: the recipe of coco_faster_rcnn.py. torchvision reports box AP 37.9 and mask AP 34.6 of it, and 47.4
and 41.8 of its v2 (torchvision/models/detection/mask_rcnn.py, `_metrics` of COCO-val2017).
"""

from ml_collections import ConfigDict

from imgrec_jax.config import base


def get_config(variant: str = "") -> ConfigDict:
    """variant: "", "tiny", "released" or "released_v2"."""
    if variant not in ("", "tiny", "released", "released_v2"):
        raise ValueError(f"unknown variant {variant!r}; expected '', 'tiny', 'released' or 'released_v2'")
    config = base()
    config.task = "detection"
    config.model = ConfigDict({
        "name": "resnet_fpn_detector", "kind": "mask", "num_classes": 81,
        "backbone": "resnet50", "norm": "frozen", "remat": False,
    })  # fmt: skip
    config.data.name = "coco_folder"
    config.data.options = ConfigDict({"images": "{split}2017", "annotations": "annotations/instances_{split}2017.json"})
    config.data.validation_split, config.data.test_split = "val", ""  # the test split's annotations are not public
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
    config.select.metric = "segm_AP"
    config.log.every_steps = 20
    config.log.show = ("loss", "AP", "AP50", "segm_AP", "segm_AP50")
    if variant.startswith("released"):
        v2 = variant.removeprefix("released")
        config.pretrained.path = f"torchvision/maskrcnn_resnet50_fpn{v2}.COCO_V1"
        config.pretrained.head = "match"
        config.data.resize, config.data.eval_batch_size = "torchvision", 1
        if v2:
            config.model = ConfigDict({"name": "maskrcnn_resnet50_fpn_v2", "num_classes": 81, "norm": "batch"})
        else:
            config.model.norm_epsilon = 0.0  # as torchvision runs these weights
    if variant == "tiny":
        config.data.train_split, config.data.validation_split = "train[:4]", "val[:4]"
        config.data.batch_size, config.data.eval_batch_size = 1, 1
        config.data.min_size, config.data.max_size, config.data.canvases = (128,), 224, ((224, 224),)
        config.train.total_epochs = None
        config.train.total_steps, config.eval.every_epochs = 2, 1.0
    return config
