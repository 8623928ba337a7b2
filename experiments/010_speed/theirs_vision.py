"""PyTorch's side where it is torchvision's: MobileNetV2, whole detectors, their parts and operations.

As a program (`python theirs_vision.py WORK THREADS`): see `ours.py`. It needs a torchvision whose compiled operators load: on a
machine without a GPU those of the CUDA wheels do.
"""

from collections import OrderedDict
from collections.abc import Callable

import case
import torch
import torchvision
from theirs import labels_loss, main, train_of
from torch import nn
from torchvision.models import detection
from torchvision.models.detection import _utils, faster_rcnn, mask_rcnn, rpn
from torchvision.ops import boxes as box_ops

TYPES = {
    "faster": detection.fasterrcnn_resnet50_fpn,
    "mask": detection.maskrcnn_resnet50_fpn,
    "retina": detection.retinanet_resnet50_fpn,
}
SIZE = (case.HEIGHT, case.WIDTH)


def _tensor(x, **options) -> torch.Tensor:
    return torch.as_tensor(x, device=torch.get_default_device(), **options)


def _detector(kind: str) -> nn.Module:
    """With frozen norms, as torchvision makes it on a trained backbone, and biased towards class 1 as ours."""
    model = TYPES[kind](
        weights=None, weights_backbone=None, num_classes=case.CLASSES, min_size=case.HEIGHT, max_size=case.WIDTH,
    )  # fmt: skip
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, torchvision.ops.FrozenBatchNorm2d(child.num_features))
    last = model.head.classification_head.cls_logits if kind == "retina" else model.roi_heads.box_predictor.cls_score
    with torch.no_grad():
        last.bias[1 :: case.CLASSES] += case.TOWARDS_ONE
    return model


def _images() -> list[torch.Tensor]:
    return [torch.rand(3, *SIZE) for _ in range(case.detector_images())]


def _train(kind: str) -> Callable[[int], None]:
    model, images = _detector(kind).train(), _images()
    target = {"boxes": _tensor(case.boxes(case.OBJECTS)), "labels": torch.arange(1, case.OBJECTS + 1)}
    if kind == "mask":
        target["masks"] = _tensor(case.masks(case.OBJECTS).astype("uint8"))
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)

    def run(n: int) -> None:
        for _ in range(n):
            optimiser.zero_grad()
            sum(model(images, [dict(target) for _ in images]).values()).backward()
            optimiser.step()

    return run


def _repeated(f: Callable[[], object]) -> Callable[[int], None]:
    @torch.inference_mode()
    def run(n: int) -> None:
        for _ in range(n):
            f()

    return run


def _inference(kind: str) -> Callable[[int], None]:
    model, images = _detector(kind).eval(), _images()
    return _repeated(lambda: model(images))


def _maps(strides: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.randn(1, 256, *size) for size in case.map_sizes(strides)]


def _part(model: Callable, inputs: list[torch.Tensor]) -> Callable[[int], None]:
    inputs = [x.requires_grad_() for x in inputs]

    def run(n: int) -> None:
        for _ in range(n):
            for x in inputs:
                x.grad = None
            outputs = model(inputs)
            sum((y * y).mean() for y in outputs).backward()

    return run


def _rpn_head():
    head = rpn.RPNHead(256, 3)
    return _part(lambda maps: [y for part in head(maps) for y in part], _maps(case.STRIDES))


def _retina_head():
    head = _detector("retina").head
    return _part(lambda maps: list(head(maps).values()), _maps(case.RETINA_STRIDES))


def _box_head():
    head = nn.Sequential(faster_rcnn.TwoMLPHead(256 * 49, 1024), faster_rcnn.FastRCNNPredictor(1024, case.CLASSES))
    return _part(lambda crops: head(crops[0]), [torch.randn(case.ROIS, 256, 7, 7)])


def _mask_head():
    head = nn.Sequential(
        mask_rcnn.MaskRCNNHeads(256, (256,) * 4, 1), mask_rcnn.MaskRCNNPredictor(256, 256, case.CLASSES)
    )  # fmt: skip
    return _part(lambda crops: [head(crops[0])], [torch.randn(case.MASKS, 256, 14, 14)])


def _proposals():
    """As RegionProposalNetwork.forward decodes and filters."""
    net = _detector("faster").rpn.eval()
    net._post_nms_top_n["testing"] = case.PROPOSALS
    maps = [torch.zeros(1, 1, *size) for size in case.map_sizes(case.STRIDES)]
    images = detection.image_list.ImageList(torch.zeros(1, 3, *SIZE), [SIZE])
    counts = [3 * h * w for h, w in case.map_sizes(case.STRIDES)]
    logits = torch.cat([_tensor(case.normal((n,), i)) for i, n in enumerate(counts)])[:, None]
    deltas = torch.cat([_tensor(case.normal((n, 4), i, 0.2)) for i, n in enumerate(counts)])

    def f():
        anchors = net.anchor_generator(images, maps)
        boxes = net.box_coder.decode(deltas, anchors).view(1, -1, 4)
        return net.filter_proposals(boxes, logits, [SIZE], counts)

    return _repeated(f)


def _detections():
    heads = _detector("faster").roi_heads.eval()
    logits, proposals = _tensor(case.class_logits()), _tensor(case.boxes(case.PROPOSALS))
    deltas = _tensor(case.normal((case.PROPOSALS, case.CLASSES, 4), 3, 0.5)).flatten(1)
    return _repeated(lambda: heads.postprocess_detections(logits, deltas, [proposals], [SIZE]))


def _nms():
    rows = [(_tensor(case.boxes(case.CANDIDATES, s)), _tensor(case.normal((case.CANDIDATES,), s)).abs()) for s in range(4)]
    return _repeated(lambda: [torchvision.ops.nms(boxes, scores, 0.7) for boxes, scores in rows])


def _pool(train: bool):
    pool = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    maps, rois = _maps(case.STRIDES[:4]), [_tensor(case.boxes(case.ROIS))]

    def crops(maps):
        return pool(OrderedDict((str(i), x) for i, x in enumerate(maps)), rois, [SIZE])

    return _part(lambda maps: [crops(maps)], maps) if train else _repeated(lambda: crops(maps))


def _assigned():
    truth, anchors = _tensor(case.boxes(100, 1)), _tensor(case.boxes(case.EVERYWHERE, 2))
    matcher = _utils.Matcher(0.7, 0.3, allow_low_quality_matches=True)
    return _repeated(lambda: matcher(box_ops.box_iou(truth, anchors)))


WORKS: dict[str, Callable[[], Callable[[int], None]]] = {
    "mobilenet_v2_224_train": lambda: train_of(torchvision.models.mobilenet_v2(), case.SHAPES["mobile"], labels_loss),
    "rpn_head_800": _rpn_head,
    "retina_head_800": _retina_head,
    "box_head_512": _box_head,
    "mask_head_128": _mask_head,
    "select_proposals": _proposals,
    "select_detections": _detections,
    "nms_4x2000": _nms,
    "roi_align_512_forward": lambda: _pool(False),
    "roi_align_512_train": lambda: _pool(True),
    "assign_268k": _assigned,
}
for kind in TYPES:
    WORKS[f"{kind}_800_train"] = lambda kind=kind: _train(kind)
    WORKS[f"{kind}_800_inference"] = lambda kind=kind: _inference(kind)

if __name__ == "__main__":
    main(WORKS, f"torch {torch.__version__}, torchvision {torchvision.__version__}")
