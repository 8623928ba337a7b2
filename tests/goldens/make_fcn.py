"""Writes fcn.npz, torchvision's fcn_resnet50 logits for seeded weights at three sizes.

python -m tests.goldens.make_fcn    (needs torch and torchvision)
"""

from pathlib import Path

import numpy as np

from tests.goldens import make_backbones, seeded

SIZES = ((64, 64), (65, 97), (50, 83))  # divisible by the output stride 8, and not


def compute() -> tuple[dict, dict[str, np.ndarray]]:
    """({name: shape}, {"logits_65x97": [1, 65, 97, 21], "aux_logits_65x97": ..., ...})."""
    model = seeded.import_torchvision().models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    )
    shapes = make_backbones.load_seeded(model)
    outputs = {}
    for height, width in SIZES:
        result = model(make_backbones.to_torch(seeded.image(1, height, width, 3)))
        outputs[f"logits_{height}x{width}"] = make_backbones.from_torch(result["out"])
        outputs[f"aux_logits_{height}x{width}"] = make_backbones.from_torch(result["aux"])
    return shapes, outputs


def main() -> None:
    shapes, outputs = compute()
    arrays = {f"fcn_resnet50/{name}": seeded.subsample(value, 1000) for name, value in outputs.items()}
    arrays["fcn_resnet50/shapes"] = seeded.shapes_to_text(shapes)
    np.savez_compressed(Path(__file__).parent / "fcn.npz", **arrays)


if __name__ == "__main__":
    main()
