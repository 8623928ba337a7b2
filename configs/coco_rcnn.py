r"""R-CNN (Girshick et al. 2014, arXiv 1311.2524) with ResNet-50 on COCO 2017; selective search proposes 2,000 boxes an image.

python -m imgrec_jax.main --config=configs/coco_rcnn.py                         TFDS `coco/2017`, prepared beforehand
python -m imgrec_jax.main --config=configs/coco_rcnn.py:folder --config.data.manual_dir=/data/coco
Data and variants are given as for coco_faster_rcnn.py, and so are ImageNet weights:
  --config.pretrained.path=resnet50-0676ba61.pth --config.pretrained.allow_unexpected="('^fc/',)" \
  --config.pretrained.allow_missing="('^roi_heads/',)"

From the paper, section 2.3 and appendix A: every proposal is warped to a square with 16 pixels of context, a step takes 128
windows of which 32 are positive (IoU >= 0.5), SGD 0.001, a tenth of the rate of the pretraining, and suppression at IoU 0.3.
Different here: crops of 224 for 227; the 128 windows come from 4 images rather than from all; softmax and box regression are
trained together, without the separate SVMs; two epochs, the rate divided by 10 after one and a half.
The backbone runs on each of the 2,000 crops of an image that is evaluated, so validation takes 500 images.
"""

from ml_collections import ConfigDict

from imgrec_jax.config import base


def get_config(variant: str = "") -> ConfigDict:
    """variant: "", "folder", "tiny" or "folder,tiny"."""
    names = [name for name in variant.split(",") if name]
    if not set(names) <= {"folder", "tiny"}:
        raise ValueError(f"unknown variant {variant!r}; expected 'folder', 'tiny' or 'folder,tiny'")
    tiny, validation = "tiny" in names, "val" if "folder" in names else "validation"
    config = base()
    config.task = "detection"
    config.model = ConfigDict({
        "name": "resnet_fpn_detector", "kind": "rcnn", "num_classes": 81,
        "backbone": "resnet18" if tiny else "resnet50", "norm": "frozen", "remat": False,
    })  # fmt: skip
    config.data.name = "coco_folder" if "folder" in names else "coco/2017"
    config.data.validation_split, config.data.test_split = f"{validation}[:500]", ""
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.data.min_size, config.data.max_size = (480,), 640  # about as the images are: crops are cut from these pixels
    config.data.batch_size, config.data.eval_batch_size, config.data.remainder = 4, 1, "pad"
    config.data.max_proposals = 2000
    config.data.drop_degenerate_boxes = True  # train2017 has boxes without a height
    config.data.train_ops = ConfigDict({"random_affine": {"flip": 0.5}})
    config.detection = ConfigDict({
        "box_batch_size_per_image": 32, "box_positive_fraction": 0.25, "box_nms_thresh": 0.3,
    })  # fmt: skip
    config.optim.options = ConfigDict({"momentum": 0.9, "nesterov": False})
    config.optim.learning_rate = 0.001
    config.optim.weight_decay = ((".*", 5e-4),)
    config.optim.frozen = ("backbone/conv1", "backbone/layer1_")
    config.schedule.name = "step"
    config.schedule.boundaries_epochs = (1.5,)
    config.train.total_epochs = 2.0
    config.eval.every_epochs = 1.0
    config.select.metric = "AP"
    config.log.every_steps = 100
    config.log.show = ("loss", "AP", "AP50", "AR100", "f1")
    if tiny:
        config.data.train_split, config.data.validation_split = "train[:4]", f"{validation}[:4]"
        config.data.batch_size = 1
        config.data.min_size, config.data.max_size, config.data.canvases = (128,), 224, ((224, 224),)
        config.data.max_proposals = 16
        config.detection.box_batch_size_per_image = 8
        config.train.total_epochs = None
        config.train.total_steps, config.log.every_steps = 2, 1
    return config
