"""Writes zoo.npz: logits of the original networks for seeded weights, their parameter counts, and a digest of their names.

python -m tests.goldens.make_zoo    (needs torch, torchvision, timm, keras, efficientnet-lite-pytorch)

No weights are kept: they follow from names and shapes (`seeded.weights`, `seeded.keras_weights`), and these follow from our own
tables, which the digest checks.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.goldens import seeded
from tests.goldens.make_backbones import from_torch, load_seeded, to_torch

GOLDEN = Path(__file__).parent / "zoo.npz"
ODD = (2, 65, 96, 3)  # one odd side, so that every padding matters
SQUARE = (2, 64, 64, 3)  # of networks that are made for one size
VGG_HIDDEN = 16  # in place of 4096, which would be 120 million weights


class Case(NamedTuple):
    """name: of ours, with `options`; layout: of `pretrained.names`; reference: its name there; image: shape."""

    name: str
    layout: str
    reference: str
    options: dict[str, Any] = {}
    image: tuple[int, ...] = ODD


CASES: dict[str, Case] = {
    **{f"torchvision/{name}": Case(name, "torchvision", name) for name in (
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2", "mobilenet_v2",
        "mobilenet_v3_large", "mobilenet_v3_small", "efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3",
        "densenet121", "convnext_tiny", "convnext_small", "swin_t",
    )},
    **{f"torchvision/{name}": Case(name, "torchvision", name, {"hidden": VGG_HIDDEN}) for name in (
        f"vgg{n}{end}" for n in (11, 13, 16, 19) for end in ("", "_bn")
    )},
    **{f"torchvision/{name}": Case(name, "torchvision", name, {}, SQUARE) for name in ("vit_b_16", "vit_b_32")},
    "timm/resnet18": Case("resnet18", "torchvision", "resnet18"),
    "timm/vgg11": Case("vgg11", "timm", "vgg11", {}, (1, 32, 32, 3)),
    "timm/mobilenetv1_100": Case("mobilenet_v1", "timm", "mobilenetv1_100", {"padding": "torch", "norm_epsilon": 1e-5}),
    "timm/mobilenetv2_100": Case("mobilenet_v2", "timm", "mobilenetv2_100"),
    "timm/mobilenetv3_large_100": Case("mobilenet_v3_large", "timm", "mobilenetv3_large_100", {"norm_epsilon": 1e-5}),
    "timm/tf_mobilenetv3_small_100": Case("mobilenet_v3_small", "timm", "tf_mobilenetv3_small_100", {"padding": "tf"}),
    "timm/efficientnet_b0": Case("efficientnet_b0", "timm", "efficientnet_b0"),
    "timm/tf_efficientnet_b1": Case("efficientnet_b1", "timm", "tf_efficientnet_b1", {"padding": "tf", "norm_epsilon": 1e-3}),
    **{f"timm/tf_efficientnet_lite{n}": Case(f"efficientnet_lite{n}", "timm", f"tf_efficientnet_lite{n}") for n in (0, 1, 2)},
    "timm/densenet121": Case("densenet121", "torchvision", "densenet121"),
    "timm/convnext_tiny": Case("convnext_tiny", "timm", "convnext_tiny"),
    "timm/vit_small_patch16_224": Case("vit_s_16", "timm", "vit_small_patch16_224", {}, SQUARE),
    "timm/vit_base_patch16_224": Case("vit_b_16", "timm", "vit_base_patch16_224", {}, SQUARE),
    "timm/swin_tiny_patch4_window7_224": Case("swin_t", "timm", "swin_tiny_patch4_window7_224", {}, (1, 224, 224, 3)),
    "pytorch/efficientnet-lite0": Case("efficientnet_lite0", "pytorch", "efficientnet-lite0", {}, SQUARE),
    "keras/MobileNet": Case("mobilenet_v1", "keras", "MobileNet", {}, SQUARE),  # which pads odd sides otherwise than SAME
    "keras/MobileNetV2": Case("mobilenet_v2", "keras", "MobileNetV2", {"padding": "tf", "norm_epsilon": 1e-3}),
    "keras/EfficientNetB0": Case("efficientnet_b0", "keras", "EfficientNetB0", {"padding": "tf", "norm_epsilon": 1e-3}, SQUARE),
    "keras/DenseNet121": Case("densenet121", "keras", "DenseNet121", {"norm_epsilon": 1.001e-5}),
    "keras/VGG16": Case("vgg16", "keras", "VGG16", {}, (1, 224, 224, 3)),
}  # fmt: skip


def _of_torch(model: Any, image: tuple[int, ...]) -> tuple[dict, np.ndarray, int]:
    import torch

    buffers = {n: value.clone() for n, value in model.state_dict().items() if n.endswith("relative_position_index")}
    shapes = load_seeded(model)
    model.load_state_dict(buffers, strict=False)
    with torch.no_grad():
        logits = from_torch(model(to_torch(seeded.image(*image))))
    skipped = ("num_batches_tracked", "relative_position_index")
    return {n: s for n, s in shapes.items() if not n.endswith(skipped)}, logits, sum(p.numel() for p in model.parameters())


def _torchvision(case: Case) -> tuple[dict, np.ndarray, int]:
    sized = {"image_size": case.image[1]} if case.reference.startswith("vit") else {}
    model = seeded.import_torchvision().models.get_model(case.reference, weights=None, **sized)
    if "hidden" not in case.options:
        return _of_torch(model, case.image)
    import torch

    whole = sum(p.numel() for p in model.parameters())
    for index, size in {0: (512 * 7 * 7, VGG_HIDDEN), 3: (VGG_HIDDEN, VGG_HIDDEN), 6: (VGG_HIDDEN, 1000)}.items():
        model.classifier[index] = torch.nn.Linear(*size)
    return *_of_torch(model, case.image)[:2], whole


def _timm(case: Case) -> tuple[dict, np.ndarray, int]:
    seeded.import_torchvision()  # timm imports it, and it needs its missing operators
    import timm

    sized = {"img_size": case.image[1]} if case.reference.startswith(("vit", "swin")) else {}
    return _of_torch(timm.create_model(case.reference, pretrained=False, **sized), case.image)


def _pytorch(case: Case) -> tuple[dict, np.ndarray, int]:
    from efficientnet_lite_pytorch import EfficientNet

    return _of_torch(EfficientNet.from_name(case.reference), case.image)  # pads as at 224: sides that halve evenly do alike


def _keras(case: Case) -> tuple[dict, np.ndarray, int]:
    """Without the preprocessing inside EfficientNet, whose layers are skipped."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    model = getattr(keras.applications, case.reference)(weights=None, input_shape=case.image[1:], classifier_activation=None)
    variables = {f"{layer.name}/{v.name}": v for layer in model.layers for v in layer.weights if layer.name != "normalization"}
    shapes = {name: tuple(v.shape) for name, v in variables.items()}
    for name, value in seeded.keras_weights(shapes).items():
        variables[name].assign(value)
    image = seeded.image(*case.image)
    if any(layer.name == "normalization" for layer in model.layers):  # undo what the model does to pixels of 0..255
        model = keras.Model(model.get_layer("stem_conv_pad").input, model.output)
    logits = np.asarray(keras.ops.convert_to_numpy(model(image, training=False)))
    count = sum(v.numpy().size if hasattr(v, "numpy") else np.prod(v.shape) for v in model.trainable_weights)
    return shapes, logits, int(count)


SOURCES: dict[str, Callable[[Case], tuple[dict, np.ndarray, int]]] = {
    "torchvision": _torchvision, "timm": _timm, "pytorch": _pytorch, "keras": _keras,
}  # fmt: skip


def digest(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Of names and shapes, in any order."""
    import zlib

    return zlib.crc32("\n".join(sorted(f"{name} {tuple(map(int, shape))}" for name, shape in shapes.items())).encode())


def main() -> None:
    import sys

    arrays = dict(np.load(GOLDEN)) if GOLDEN.exists() else {}
    for key, case in CASES.items():
        if sys.argv[1:] and not any(part in key for part in sys.argv[1:]):
            continue
        shapes, logits, count = SOURCES[key.partition("/")[0]](case)
        arrays[f"{key}/logits"] = seeded.subsample(logits, 100)
        arrays[f"{key}/counts"] = np.array([count, digest(shapes)], np.int64)
        print(f"{key:<45}{count:>12,}  logits {np.abs(logits).max():.3g}, std {logits.std():.3g}", flush=True)
        if os.environ.get("ZOO_NAMES"):  # to compare tables by eye
            Path(os.environ["ZOO_NAMES"], key.replace("/", "_") + ".txt").write_text(
                "\n".join(sorted(f"{n} {tuple(map(int, s))}" for n, s in shapes.items()))
            )
        _save(arrays)


def _save(arrays: dict[str, np.ndarray]) -> None:
    np.savez_compressed(GOLDEN, **{name: arrays[name] for name in sorted(arrays) if name.rpartition("/")[0] in CASES})


if __name__ == "__main__":
    main()
