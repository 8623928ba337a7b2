"""Writes faster_rcnn.npz: detections, losses and gradients of torchvision's two Faster R-CNNs for seeded weights.

python -m tests.goldens.make_faster_rcnn    (needs torch and torchvision; a minute or two)

Weights come from names and seeds (`seeded.weights`), scaled so that activations keep their size, every level gives
proposals and many classes pass the score threshold. Images are smooth noise of six sizes and aspects.
"""

import re
from pathlib import Path

import numpy as np

from tests.goldens import seeded

PATH = Path(__file__).with_suffix("").with_name("faster_rcnn.npz")
CASES = ("v1", "v2")
SIZES = ((160, 160), (160, 208), (224, 160), (160, 256), (192, 160), (160, 176))
TRAINING_IMAGES = 3  # the last of them has no boxes
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HYPER = {
    "rpn_pre_nms_top_n_train": 500,
    "rpn_pre_nms_top_n_test": 500,
    "rpn_post_nms_top_n_train": 300,
    "rpn_post_nms_top_n_test": 300,
    "box_batch_size_per_image": 128,
}
GRADIENTS = {
    "v1": (
        "backbone.body.conv1.weight",
        "backbone.body.layer3.0.conv2.weight",
        "backbone.fpn.inner_blocks.1.0.weight",
        "rpn.head.bbox_pred.weight",
        "roi_heads.box_head.fc6.weight",
        "roi_heads.box_predictor.bbox_pred.bias",
    ),
    "v2": (
        "backbone.body.layer3.0.conv2.weight",
        "backbone.body.layer4.2.bn3.weight",
        "backbone.fpn.inner_blocks.1.0.weight",
        "rpn.head.conv.1.0.weight",
        "roi_heads.box_head.2.0.weight",
        "roi_heads.box_head.5.weight",
        "roi_heads.box_predictor.cls_score.weight",
        "rpn.head.bbox_pred.weight",
    ),
}
_COMMON_GAIN = (
    (r"layer\d\.\d+\.bn[23]\.weight$", 0.3),
    (r"inner_blocks\.\d\.0\.weight$", 0.3),
    (r"cls_logits\.weight$", 0.7),
    (r"rpn\.head\.bbox_pred\.weight$", 0.05),
    (r"box_predictor\.bbox_pred\.weight$", 0.1),
)
GAIN = {"v1": (*_COMMON_GAIN, (r"cls_score\.weight$", 1.5)), "v2": (*_COMMON_GAIN, (r"cls_score\.weight$", 5.0))}
_PRIORITY = np.random.default_rng(0).permutation(2**19).astype(np.float32)


def weights(case: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Seeded weights by torchvision's names, each times the gain of the first pattern that its name matches."""
    scaled = {}
    for name, value in seeded.weights(shapes).items():
        gain = next((gain for pattern, gain in GAIN[case] if re.search(pattern, name)), 1.0)
        scaled[name] = np.asarray(value * gain, value.dtype)
    return scaled


def images(sizes=SIZES) -> list[np.ndarray]:
    """float32 [H, W, 3] in 0..1, one per size."""
    return [_smooth(np.random.default_rng(i), size) for i, size in enumerate(sizes)]


def _smooth(rng: np.random.Generator, size: tuple[int, int], cell: int = 16) -> np.ndarray:
    coarse = rng.random((-(-size[0] // cell) + 1, -(-size[1] // cell) + 1, 3))
    y, x = (np.arange(n) / cell for n in size)
    y0, x0 = y.astype(int), x.astype(int)
    dy, dx = (y - y0)[:, None, None], (x - x0)[:, None]
    top = coarse[y0][:, x0] * (1 - dx) + coarse[y0][:, x0 + 1] * dx
    bottom = coarse[y0 + 1][:, x0] * (1 - dx) + coarse[y0 + 1][:, x0 + 1] * dx
    return (top * (1 - dy) + bottom * dy).astype(np.float32)


def ground_truth(sizes=SIZES[:TRAINING_IMAGES], count: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """(boxes [n, 4], labels [n]) per image, n = `count`; none for the last."""
    truth = []
    for i, (height, width) in enumerate(sizes):
        rng = np.random.default_rng(100 + i)
        n = count if i < len(sizes) - 1 else 0
        side = np.exp(rng.uniform(np.log(12), np.log(140), (n, 2)))
        corner = rng.uniform(0, np.maximum([width, height] - side, 1))
        boxes = np.concatenate([corner, np.minimum(corner + side, [width, height])], axis=1)
        truth.append((boxes.astype(np.float32).reshape(-1, 4), rng.integers(1, 91, n)))
    return truth


def priority(count: int) -> np.ndarray:
    """The order in which samples are taken: float32 [count], distinct; a longer list begins with the shorter one."""
    return _PRIORITY[:count]


def fixed_sampler(utils):
    """A sampler that takes candidates by `priority`, where torchvision draws at random; utils: its detection._utils."""
    import torch

    class FixedSampler(utils.BalancedPositiveNegativeSampler):
        def __call__(self, matched):
            masks = [[], []]
            for labels in matched:
                order = torch.from_numpy(priority(len(labels))).argsort(descending=True)
                quota = int(self.batch_size_per_image * self.positive_fraction)
                positive = order[labels[order] >= 1][:quota]
                negative = order[labels[order] == 0][: self.batch_size_per_image - len(positive)]
                for mask, index in zip(masks, (positive, negative), strict=True):
                    mask.append(torch.zeros(len(labels), dtype=torch.uint8).index_fill_(0, index, 1))
            return tuple(masks)

    return FixedSampler


def torchvision_model(case: str, **options):
    """(model, {name: shape}) with seeded weights; v1 has frozen norms, as with pretrained weights."""
    import torch

    torchvision = seeded.import_torchvision()
    from torchvision.models.detection import _utils, backbone_utils, faster_rcnn

    if case == "v2":
        model = torchvision.models.detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **options)
    else:
        body = torchvision.models.resnet50(weights=None, norm_layer=torchvision.ops.misc.FrozenBatchNorm2d)
        model = faster_rcnn.FasterRCNN(backbone_utils._resnet_fpn_extractor(body, 5), 91, **options)

    for part in (model.rpn, model.roi_heads):
        part.fg_bg_sampler.__class__ = fixed_sampler(_utils)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights(case, shapes).items()})
    return model, shapes


def detections(model, inputs: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """torchvision's predictions for images [H, W, 3], in pixels of these images."""
    import torch

    model.eval()
    with torch.no_grad():
        found = model([torch.from_numpy(image.transpose(2, 0, 1)) for image in inputs])
    return [{name: value.numpy() for name, value in one.items()} for one in found]


def losses_and_gradients(model, inputs, truth, names) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """torchvision's four losses, and the gradients of their sum."""
    import torch

    model.train()
    targets = [{"boxes": torch.from_numpy(b), "labels": torch.from_numpy(label)} for b, label in truth]
    losses = model([torch.from_numpy(image.transpose(2, 0, 1)) for image in inputs], targets)
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    return {k: v.item() for k, v in losses.items()}, {name: parameters[name].grad.numpy() for name in names}


def main() -> None:
    arrays = {}
    for case in CASES:
        model, shapes = torchvision_model(case, min_size=160, max_size=320, **HYPER)
        arrays[f"{case}/shapes"] = seeded.shapes_to_text(shapes)
        for i, found in enumerate(detections(model, images())):
            print(case, i, len(found["boxes"]), found["scores"][:3], found["scores"][-3:], len(set(found["labels"])))
            arrays |= {f"{case}/{name}{i}": value for name, value in found.items()}
        losses, gradients = losses_and_gradients(model, images()[:TRAINING_IMAGES], ground_truth(), GRADIENTS[case])
        print(case, losses)
        arrays |= {f"{case}/{name}": np.float64(value) for name, value in losses.items()}
        arrays |= {f"{case}/grad/{name}": seeded.subsample(value) for name, value in gradients.items()}
    np.savez_compressed(PATH, **arrays)


if __name__ == "__main__":
    main()
