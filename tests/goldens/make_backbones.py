"""Writes backbones.npz, the outputs of torchvision's backbones for seeded weights, and two tiny torch files.

python -m tests.goldens.make_backbones    (needs torch and torchvision)
"""

import collections
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.goldens import seeded

HERE = Path(__file__).parent
IMAGE = (2, 65, 97, 3)  # odd, so that every padding matters
FPN_MAPS = {"layer1": (2, 33, 49, 8), "layer2": (2, 17, 25, 16), "layer3": (2, 9, 13, 24), "layer4": (2, 5, 7, 32)}
TINY = {"half": np.float16, "single": np.float32, "double": np.float64, "long": np.int64, "mask": np.bool_}


def to_torch(array: np.ndarray):
    import torch

    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def from_torch(tensor) -> np.ndarray:
    array = tensor.detach().numpy()
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def load_seeded(model) -> dict[str, tuple[int, ...]]:
    """Puts seeded weights into a torch model, in eval mode; returns {name: shape}."""
    import torch

    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(value) for name, value in seeded.weights(shapes).items()})
    model.eval()
    return shapes


def resnet(name: str, **options) -> tuple[dict, dict]:
    """({name: shape}, {map: output}) of a torchvision ResNet on the seeded image."""
    model = seeded.import_torchvision().models.get_model(name, weights=None, **options)
    shapes = load_seeded(model)
    x = model.relu(model.bn1(model.conv1(to_torch(seeded.image(*IMAGE)))))
    outputs = {"stem": from_torch(x)}
    x = model.maxpool(x)
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        x = getattr(model, stage)(x)
        outputs[stage] = from_torch(x)
    return shapes, {**outputs, "logits": from_torch(model.fc(x.mean((2, 3))))}


def vgg16(batch_norm: bool) -> tuple[dict, dict]:
    """torchvision's VGG16 with 16 hidden units in place of 4096, which would be 120 million weights."""
    import torch

    model = seeded.import_torchvision().models.get_model("vgg16_bn" if batch_norm else "vgg16", weights=None, num_classes=10)
    sizes = {0: (512 * 7 * 7, 16), 3: (16, 16), 6: (16, 10)}
    for index, size in sizes.items():
        model.classifier[index] = torch.nn.Linear(*size)
    shapes = load_seeded(model)
    x, outputs = to_torch(seeded.image(*IMAGE)), {}
    for layer in model.features:
        before, x = x, layer(x)
        if isinstance(layer, torch.nn.MaxPool2d):
            stage = len(outputs) // 2 + 1
            outputs |= {f"conv{stage}": from_torch(before), f"pool{stage}": from_torch(x)}
    logits = model.classifier(model.avgpool(x).flatten(1))
    return shapes, {**outputs, "logits": from_torch(logits)}


def fpn(batch_norm: bool) -> tuple[dict, dict]:
    """torchvision's FPN, as in the first detector (biases) or in v2 (batch norm), on seeded maps."""
    import torch

    module = seeded.import_torchvision().ops.feature_pyramid_network
    model = module.FeaturePyramidNetwork(
        [shape[-1] for shape in FPN_MAPS.values()],
        16,
        extra_blocks=module.LastLevelMaxPool(),
        norm_layer=torch.nn.BatchNorm2d if batch_norm else None,
    )
    shapes = load_seeded(model)
    maps = collections.OrderedDict((name, to_torch(seeded.image(*s))) for name, s in FPN_MAPS.items())
    return shapes, {name: from_torch(value) for name, value in model(maps).items()}


CASES: dict[str, Callable[[], tuple[dict, dict]]] = {
    "resnet18": lambda: resnet("resnet18"),
    "resnet50": lambda: resnet("resnet50"),
    "resnet50_dilated": lambda: resnet("resnet50", replace_stride_with_dilation=[False, True, True]),
    "vgg16": lambda: vgg16(batch_norm=False),
    "vgg16_bn": lambda: vgg16(batch_norm=True),
    "fpn": lambda: fpn(batch_norm=False),
    "fpn_bn": lambda: fpn(batch_norm=True),
}


def tiny_tensors() -> dict[str, np.ndarray]:
    """What tiny_zip.pth and tiny_legacy.pth hold: several dtypes, a transposed view and two views of one storage."""
    tensors = {name: np.arange(6).reshape(2, 3).astype(dtype) for name, dtype in TINY.items()}
    shared = np.arange(10, dtype=np.float32)
    return {**tensors, "transposed": tensors["single"].T, "head": shared[:4], "tail": shared[4:]}


def save_tiny(path: Path, zipped: bool) -> None:
    """Writes `tiny_tensors`, with torch, as a training script would (under "state_dict", beside an epoch)."""
    import torch

    tensors = {name: torch.from_numpy(value) for name, value in tiny_tensors().items()}
    tensors["transposed"] = tensors["single"].T
    shared = torch.arange(10, dtype=torch.float32)
    tensors["head"], tensors["tail"] = shared[:4], torch.nn.Parameter(shared[4:])
    content = {"epoch": 3, "state_dict": collections.OrderedDict(tensors)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)


def main() -> None:
    arrays = {}
    for case, compute in CASES.items():
        shapes, outputs = compute()
        arrays[f"{case}/shapes"] = seeded.shapes_to_text(shapes)
        arrays |= {f"{case}/{name}": seeded.subsample(value) for name, value in outputs.items()}
    np.savez_compressed(HERE / "backbones.npz", **arrays)
    save_tiny(HERE / "tiny_zip.pth", zipped=True)
    save_tiny(HERE / "tiny_legacy.pth", zipped=False)


if __name__ == "__main__":
    main()
