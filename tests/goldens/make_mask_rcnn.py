"""Writes mask_rcnn.npz: detections with masks, losses and gradients of torchvision's two Mask R-CNNs for seeded weights.

python -m tests.goldens.make_mask_rcnn    (needs torch and torchvision; a minute or two)

Weights, images, boxes and samples as in `make_faster_rcnn`; the true masks are ellipses with a hole in their boxes.
"""

import re
from pathlib import Path

import numpy as np

from tests.goldens import make_faster_rcnn as faster
from tests.goldens import seeded

PATH = Path(__file__).with_suffix("").with_name("mask_rcnn.npz")
CASES = ("mask_v1", "mask_v2")
SIZES = faster.SIZES[1:3]
HYPER = {**faster.HYPER, "box_detections_per_img": 20}
LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")
KEPT = 6  # pasted masks that are stored whole, of each image
_GRADIENTS = (
    "backbone.body.layer3.0.conv2.weight",
    "backbone.fpn.inner_blocks.1.0.weight",
    "rpn.head.bbox_pred.weight",
    "roi_heads.mask_head.0.0.weight",
    "roi_heads.mask_head.3.0.weight",
    "roi_heads.mask_predictor.conv5_mask.weight",
    "roi_heads.mask_predictor.conv5_mask.bias",
    "roi_heads.mask_predictor.mask_fcn_logits.weight",
)
GRADIENTS = {"mask_v1": _GRADIENTS, "mask_v2": (*_GRADIENTS, "roi_heads.mask_head.2.1.weight")}


def weights(case: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Those of Faster R-CNN, and a mask branch whose logits are of either sign in many masks."""
    scaled = faster.weights(case.removeprefix("mask_"), shapes)
    for name in scaled:
        if re.search(r"mask_fcn_logits\.weight$", name):
            scaled[name] *= np.float32(4.0 if case == "mask_v1" else 0.7)
    return scaled


def ground_truth(sizes=faster.SIZES[: faster.TRAINING_IMAGES]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(boxes [n, 4], labels [n], masks bool [n, H, W]) per image; none for the last."""
    truth = []
    for (boxes, labels), (height, width) in zip(faster.ground_truth(sizes), sizes, strict=True):
        y, x = np.mgrid[:height, :width] + 0.5
        masks = np.zeros((len(boxes), height, width), np.bool_)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
            radius = np.hypot((x - (x1 + x2) / 2) / (x2 - x1), (y - (y1 + y2) / 2) / (y2 - y1))
            mask[:] = (radius < 0.5) & (radius > 0.15)
        truth.append((boxes, labels, masks))
    return truth


def roi_align_of_masks(masks, rois, size, scale=1.0):
    """As torchvision's kernel treats masks [N, 1, H, W] with sampling_ratio=-1 (torchvision/csrc/ops/cpu/roi_align_kernel.cpp).

    For a torchvision without its compiled operators: one RoI after another, sample by sample.
    """
    import torch

    crops = [crop_by_hand(masks[int(n), 0].numpy(), box, size[0]) for n, *box in rois.numpy()]
    return torch.from_numpy(np.array(crops, np.float32).reshape(-1, 1, *size))


def crop_by_hand(mask: np.ndarray, box, side: int) -> np.ndarray:
    """mask [H, W], box xyxy -> float32 [side, side]."""
    axes = []
    for start, end, length in zip(box[1::-1], box[:1:-1], mask.shape, strict=True):
        bin_size = max(np.float32(end) - np.float32(start), np.float32(1)) / np.float32(side)
        count = int(np.ceil(bin_size))
        weights = np.zeros((side, length))
        for bin_ in range(side):
            for sample in range(count):
                at = float(start) + bin_ * float(bin_size) + (sample + 0.5) * float(bin_size) / count
                if -1 <= at <= length:
                    at = min(max(at, 0.0), length - 1.0)
                    low = min(int(at), length - 1)
                    weights[bin_, low] += (1 - (at - low)) / count
                    weights[bin_, min(low + 1, length - 1)] += (at - low) / count
        axes.append(weights)
    return (axes[0] @ mask.astype(np.float64) @ axes[1].T).astype(np.float32)


def torchvision_model(case: str, **options):
    """(model, {name: shape}) with seeded weights; v1 has frozen norms, as with pretrained weights."""
    import torch

    torchvision = seeded.import_torchvision()
    from torchvision.models.detection import _utils, backbone_utils, mask_rcnn, roi_heads

    roi_heads.roi_align = roi_align_of_masks  # there it crops the true masks, and nothing else

    if case == "mask_v2":
        model = torchvision.models.detection.maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **options)
    else:
        body = torchvision.models.resnet50(weights=None, norm_layer=torchvision.ops.misc.FrozenBatchNorm2d)
        model = mask_rcnn.MaskRCNN(backbone_utils._resnet_fpn_extractor(body, 5), 91, **options)
    for part in (model.rpn, model.roi_heads):
        part.fg_bg_sampler.__class__ = faster.fixed_sampler(_utils)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights(case, shapes).items()})
    return model, shapes


def losses_and_gradients(model, inputs, truth, names) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """torchvision's five losses, and the gradients of their sum."""
    import torch

    model.train()
    targets = [
        {"boxes": torch.from_numpy(b), "labels": torch.from_numpy(label), "masks": torch.from_numpy(m.astype(np.uint8))}
        for b, label, m in truth
    ]
    losses = model([torch.from_numpy(image.transpose(2, 0, 1)) for image in inputs], targets)
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    return {k: v.item() for k, v in losses.items()}, {name: parameters[name].grad.numpy() for name in names}


def main() -> None:
    arrays = {}
    for case in CASES:
        model, shapes = torchvision_model(case, min_size=160, max_size=320, **HYPER)
        arrays[f"{case}/shapes"] = seeded.shapes_to_text(shapes)
        for i, found in enumerate(faster.detections(model, faster.images(SIZES))):
            masks = found.pop("masks")[:, 0] > 0.5
            print(case, i, len(masks), found["scores"][:3], masks.mean((1, 2))[:5])
            arrays |= {f"{case}/{name}{i}": value for name, value in found.items()}
            arrays[f"{case}/pasted{i}"] = np.packbits(masks[:KEPT], axis=-1)
            arrays[f"{case}/areas{i}"] = masks.sum((1, 2))
        images = faster.images()[: faster.TRAINING_IMAGES]
        losses, gradients = losses_and_gradients(model, images, ground_truth(), GRADIENTS[case])
        print(case, losses)
        arrays |= {f"{case}/{name}": np.float64(value) for name, value in losses.items()}
        arrays |= {f"{case}/grad/{name}": seeded.subsample(value) for name, value in gradients.items()}
    np.savez_compressed(PATH, **arrays)


if __name__ == "__main__":
    main()
