"""What both sides of the benchmark share: sizes, and made-up inputs of detectors, in numpy alone.

`run.py` sets SPEED_SUITE (cpu or gpu: larger batches) and SPEED_SMALL (for a look at whether everything runs).
"""

import os

import numpy as np

GPU = os.environ.get("SPEED_SUITE", "cpu") == "gpu"
SMALL = bool(os.environ.get("SPEED_SMALL"))
HEIGHT, WIDTH = (128, 160) if SMALL else (800, 1088)
STRIDES = (4, 8, 16, 32, 64)
RETINA_STRIDES = (8, 16, 32, 64, 128)
CLASSES = 91
OBJECTS = 20
TOWARDS_ONE = 2.5  # added to the logit of class 1 of networks of random weights, so that they find objects
ROIS = 32 if SMALL else 512
PROPOSALS = 100 if SMALL else 1000
MASKS = 8 if SMALL else 128
CANDIDATES = 100 if SMALL else 2000
EVERYWHERE = 2_000 if SMALL else 268_000  # anchors


def _sized(cpu: tuple[int, ...], gpu_batch: int) -> tuple[int, ...]:
    batch, *side, channels = cpu
    batch = gpu_batch if GPU else batch
    return (min(batch, 2), *(min(n, 64) for n in side), channels) if SMALL else (batch, *side, channels)


# Of a batch, [B, H, W, C]; then the batch on a GPU.
SHAPES = {
    name: _sized(shape, gpu_batch)
    for name, (shape, gpu_batch) in {
        "seed": ((64, 28, 28, 1), 64),
        "32": ((64, 32, 32, 3), 512),
        "128": ((16, 128, 128, 3), 256),
        "224": ((8, 224, 224, 3), 128),
        "224, one": ((1, 224, 224, 3), 1),
        "mobile": ((16, 224, 224, 3), 128),
        "unet": ((8, 128, 128, 3), 64),
        "800": ((1, HEIGHT, WIDTH, 3), 2),
    }.items()
}


def detector_images() -> int:
    return 2 if GPU else 1


def map_sizes(strides: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(-(-HEIGHT // stride), -(-WIDTH // stride)) for stride in strides]


def boxes(count: int, seed: int = 0) -> np.ndarray:
    """float32 [count, 4], x1 y1 x2 y2: sides of 16 to 400 pixels, as many of each octave, within the image."""
    rng = np.random.default_rng(seed)
    side = 2 ** rng.uniform(4, 8.6, (count, 2))
    side = np.minimum(side, (WIDTH / 2, HEIGHT / 2))
    corner = rng.uniform(0, 1, (count, 2)) * ((WIDTH, HEIGHT) - side)
    return np.concatenate([corner, corner + side], axis=1).astype(np.float32)


def normal(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def class_logits() -> np.ndarray:
    """[PROPOSALS, CLASSES]: a third of the proposals are sure of a class, as a trained detector's are."""
    logits = normal((PROPOSALS, CLASSES), 1)
    rng = np.random.default_rng(2)
    sure = rng.random(PROPOSALS) < 1 / 3
    logits[np.flatnonzero(sure), rng.integers(1, CLASSES, sure.sum())] += 8.0
    logits[~sure, 0] += 10.0
    return logits


def masks(count: int) -> np.ndarray:
    """bool [count, HEIGHT, WIDTH]: the ellipse in each of `boxes(count)`."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    made = [((x - (a + c) / 2) / (c - a)) ** 2 + ((y - (b + d) / 2) / (d - b)) ** 2 <= 0.25 for a, b, c, d in boxes(count)]
    return np.stack(made)
