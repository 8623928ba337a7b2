"""Fast R-CNN (Girshick 2015, arXiv 1504.08083) with ResNet-50 and FPN on COCO 2017, and 2,000 boxes of selective search.

python -m imgrec_jax.main --config=configs/coco_fast_rcnn.py                    TFDS `coco/2017`, prepared beforehand
python -m imgrec_jax.main --config=configs/coco_fast_rcnn.py:folder --config.data.manual_dir=/data/coco
Data, the variants and ImageNet weights (without which this recipe is hopeless: the norms are frozen) are given as for
coco_faster_rcnn.py, but nothing is missing under '^rpn/'. Proposals are searched once, for seconds an image, and kept beside
the data.

From the paper, sections 2.3 and 5: shorter side 600 and longer at most 1000, flips, 2 images a step with 64 RoIs each, of which
25 % are positive (IoU >= 0.5), SGD 0.001 divided by 10 after three quarters, momentum 0.9, weight decay 5e-4, biases at twice
the rate, smooth L1 with beta 1 on normalised targets, and for COCO 240,000 steps: 4 epochs here. Its code suppresses at 0.3.
Different here: ResNet-50 with FPN and RoIAlign for VGG-16 and RoI pooling, and negatives of any IoU below 0.5 for 0.1 to 0.5.
The paper reports AP 19.7 on test-dev with VGG-16 and the 80,000 images of 2014.
"""

from ml_collections import ConfigDict

from imgrec_jax.config import base


def get_config(variant: str = "") -> ConfigDict:
    """variant: "", "folder", "tiny" or "folder,tiny"."""
    names = [name for name in variant.split(",") if name]
    if not set(names) <= {"folder", "tiny"}:
        raise ValueError(f"unknown variant {variant!r}; expected 'folder', 'tiny' or 'folder,tiny'")
    config = base()
    config.task = "detection"
    config.model = ConfigDict({
        "name": "resnet_fpn_detector", "kind": "fast", "num_classes": 81,
        "backbone": "resnet50", "norm": "frozen", "remat": False,
    })  # fmt: skip
    config.data.name = "coco_folder" if "folder" in names else "coco/2017"
    config.data.validation_split = "val" if "folder" in names else "validation"
    config.data.test_split = ""  # the test split's annotations are not public
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.data.min_size, config.data.max_size = (600,), 1000
    config.data.batch_size, config.data.eval_batch_size, config.data.remainder = 2, 2, "pad"
    config.data.max_proposals = 2000
    config.data.drop_degenerate_boxes = True  # train2017 has boxes without a height
    config.data.train_ops = ConfigDict({"random_affine": {"flip": 0.5}})
    config.detection = ConfigDict({
        "box_batch_size_per_image": 64, "box_positive_fraction": 0.25, "smooth_l1_beta": 1.0, "box_nms_thresh": 0.3,
    })  # fmt: skip
    config.optim.options = ConfigDict({"momentum": 0.9, "nesterov": False})
    config.optim.learning_rate = 0.001
    config.optim.lr_multiplier = (("bias$", 2.0), (".*", 1.0))
    config.optim.weight_decay = ((".*", 5e-4),)
    config.optim.frozen = ("backbone/body/conv1", "backbone/body/layer1_")
    config.schedule.name = "step"
    config.schedule.boundaries_epochs = (3,)
    config.train.total_epochs = 4.0
    config.eval.every_epochs = 1.0
    config.select.metric = "AP"
    config.log.every_steps = 100
    config.log.show = ("loss", "AP", "AP50", "AR100", "f1")
    if "tiny" in names:
        config.data.train_split, config.data.validation_split = "train[:4]", f"{config.data.validation_split}[:4]"
        config.data.batch_size, config.data.eval_batch_size = 1, 1
        config.data.min_size, config.data.max_size, config.data.canvases = (128,), 224, ((224, 224),)
        config.data.max_proposals = 128
        config.train.total_epochs = None
        config.train.total_steps, config.log.every_steps = 2, 1
    return config
