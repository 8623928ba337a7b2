"""Writes retinanet.npz: detections, losses and gradients of torchvision's two RetinaNets for seeded weights.

python -m tests.goldens.make_retinanet    (needs torch and torchvision; a minute or two)

Weights, images and boxes as in `make_faster_rcnn`. The logits of the background, which torchvision would report as class 0 and
which trained weights keep low, are low here too.
"""

import re
from pathlib import Path

import numpy as np

from tests.goldens import make_faster_rcnn, seeded
from tests.goldens.make_faster_rcnn import TRAINING_IMAGES, detections, ground_truth, images, losses_and_gradients

PATH = Path(__file__).with_suffix("").with_name("retinanet.npz")
CASES = ("retina_v1", "retina_v2")
SIZES = make_faster_rcnn.SIZES[1:4]
CLASSES = 91
HYPER = {"topk_candidates": 300, "detections_per_img": 100}
LOSSES = {"loss_classification": "classification", "loss_bbox_regression": "bbox_regression"}
_GRADIENTS = (
    "backbone.body.layer3.0.conv2.weight",
    "backbone.fpn.inner_blocks.1.0.weight",
    "backbone.fpn.extra_blocks.p6.weight",
    "backbone.fpn.extra_blocks.p7.bias",
    "head.classification_head.conv.1.0.weight",
    "head.classification_head.cls_logits.weight",
    "head.regression_head.conv.3.0.weight",
    "head.regression_head.bbox_reg.weight",
)
GRADIENTS = {"retina_v1": _GRADIENTS, "retina_v2": (*_GRADIENTS, "head.regression_head.conv.3.1.weight")}
GAIN = (
    (r"layer\d\.\d+\.bn[23]\.weight$", 0.3),
    (r"inner_blocks\.\d\.0\.weight$", 0.3),
    (r"bbox_reg\.weight$", 0.1),
)


def weights(case: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Seeded weights by torchvision's names, each times the gain of the first pattern that its name matches."""
    scaled = {}
    for name, value in seeded.weights(shapes).items():
        gain = next((gain for pattern, gain in GAIN if re.search(pattern, name)), 1.0)
        scaled[name] = np.asarray(value * gain, value.dtype)
    bias = scaled["head.classification_head.cls_logits.bias"].reshape(-1, CLASSES)
    bias[:] -= 4
    bias[:, 0] -= 12
    return scaled


def torchvision_model(case: str, **options):
    """(model, {name: shape}) with seeded weights; v1 has frozen norms, as with pretrained weights."""
    import torch

    torchvision = seeded.import_torchvision()
    from torchvision.models.detection import backbone_utils, retinanet
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    if case == "retina_v2":
        model = torchvision.models.detection.retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, **options)
    else:
        body = torchvision.models.resnet50(weights=None, norm_layer=torchvision.ops.misc.FrozenBatchNorm2d)
        pyramid = backbone_utils._resnet_fpn_extractor(body, 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
        model = retinanet.RetinaNet(pyramid, CLASSES, **options)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights(case, shapes).items()})
    return model, shapes


def main() -> None:
    arrays = {}
    for case in CASES:
        model, shapes = torchvision_model(case, min_size=160, max_size=320, **HYPER)
        arrays[f"{case}/shapes"] = seeded.shapes_to_text(shapes)
        for i, found in enumerate(detections(model, images(SIZES))):
            print(case, i, len(found["boxes"]), found["scores"][:3], found["scores"][-3:], len(set(found["labels"])))
            arrays |= {f"{case}/{name}{i}": value for name, value in found.items()}
        truth = ground_truth()
        losses, gradients = losses_and_gradients(model, images()[:TRAINING_IMAGES], truth, GRADIENTS[case])
        print(case, losses, {k: float(np.linalg.norm(v)) for k, v in gradients.items()})
        arrays |= {f"{case}/{ours}": np.float64(losses[theirs]) for ours, theirs in LOSSES.items()}
        arrays |= {f"{case}/grad/{name}": seeded.subsample(value) for name, value in gradients.items()}
    np.savez_compressed(PATH, **arrays)


if __name__ == "__main__":
    main()
