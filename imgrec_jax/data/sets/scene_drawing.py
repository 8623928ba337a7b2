"""Digit scenes: real MNIST digits on textured backgrounds, with boxes, instance masks and a semantic map.

A small detection and segmentation set that needs nothing but MNIST. A scene holds 0 to 16 digits of several sizes, aspect
ratios, slants, colours and some overlap, among unlabelled clutter; 4 % of the scenes are empty and 8 % crowded. Digits of
the MNIST test set appear in `test` only, and the last sixth of the training digits in `validation` only.

Masks show the visible part of a digit (later digits lie on top) and a box is the tight box of its mask, as in COCO. A digit
is placed only where every digit of the scene keeps at least 70 % of its pixels in sight and no two boxes have an IoU over
0.35, so no drawn digit lacks a box and non-maximum suppression at 0.5 can keep them all.

Each scene is a pure function of (seed, split, index). Shape letters: S scene side, N digits of a scene, H W one digit.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import cv2
import numpy as np

from imgrec_jax.data.annotations import encode_mask

VERSION = "1.1.0"  # of the pixels: raise it when a scene changes
CLASS_NAMES = tuple("0123456789")  # of labels 1..10; 0 is background
CATEGORY_IDS = tuple(range(1, 11))
SPLITS = ("train", "validation", "test")
MIN_VISIBLE, MAX_OVERLAP = 0.7, 0.35
MIN_SIDE = 5  # pixels; a narrower digit can no longer be told from a stroke
_EMPTY, _CROWDED = 0.04, 0.08  # share of the scenes


@dataclasses.dataclass(frozen=True)
class SceneOptions:
    """side: pixels of the square image; scale: of the 20-pixel MNIST glyph; train, validation, test: scenes per split; single:
    exactly one digit a scene, so that a scene has a class."""

    side: int = 128
    scale: tuple[float, float] = (0.8, 2.5)
    seed: int = 0
    train: int = 10_000
    validation: int = 500
    test: int = 1000
    single: bool = False


PRESETS = {
    "default": SceneOptions(),
    "tiny": SceneOptions(train=64, validation=16, test=32),
    "single": SceneOptions(side=64, scale=(0.8, 2.0), train=6000, validation=300, test=500, single=True),
}
_ATTEMPTS = 100  # at the one digit of a scene that has one


class Scene(NamedTuple):
    image: np.ndarray  # uint8 [S, S, 3] RGB
    instances: np.ndarray  # uint8 [S, S]: 0 background, n + 1 where digit n is visible
    boxes: np.ndarray  # float32 [N, 4] xyxy pixels
    labels: np.ndarray  # int64 [N], digit + 1

    @property
    def segmentation(self) -> np.ndarray:
        """uint8 [S, S]: 0 background, digit + 1 elsewhere."""
        return np.concatenate([[0], self.labels]).astype(np.uint8)[self.instances]


def digits_of_split(digits: dict, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(images uint8 [n, 28, 28], labels [n]) that scenes of `split` are made of; disjoint between splits."""
    images, labels = digits["test" if split == "test" else "train"]
    first_of_validation = len(images) * 5 // 6
    part = {"train": slice(first_of_validation), "validation": slice(first_of_validation, None), "test": slice(None)}
    return images[part[split]], labels[part[split]]


def _noise(rng: np.random.Generator, side: int, cells: int) -> np.ndarray:
    """Smooth noise float32 [S, S] in 0..1 with about `cells` bumps per side."""
    grid = rng.random((cells + 2, cells + 2), np.float32)
    return np.clip(cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC), 0, 1)


def _background(rng: np.random.Generator, side: int) -> np.ndarray:
    """Texture float32 [S, S, 3] in 0..255: two or three colours mixed by noise, stripes, checks or a gradient, and clutter."""
    base = rng.uniform(20, 235, 3)
    base += rng.uniform(0.2, 0.9) * (base.mean() - base)  # towards grey
    colours = np.clip(base + rng.normal(0, 38, (3, 3)), 0, 255).astype(np.float32)
    x = np.arange(side, dtype=np.float32) / side
    y = x[:, None]
    angle, frequency, phase = rng.uniform(0, np.pi), rng.uniform(3, 12), rng.uniform(0, 6)
    across = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    patterns = (
        lambda: _noise(rng, side, int(rng.integers(2, 5))),
        lambda: 0.5 * _noise(rng, side, int(rng.integers(6, 14))) + 0.5 * _noise(rng, side, 28),
        lambda: 0.5 + 0.5 * np.sin(np.float32(2 * np.pi * frequency) * across + np.float32(phase)),
        lambda: (np.floor(x * frequency / 2) + np.floor(y * frequency / 2)) % 2,
        lambda: np.clip(across, 0, 1),
    )
    mix = patterns[rng.integers(len(patterns))]()
    blend = _noise(rng, side, 4) * np.float32(rng.uniform(0, 0.8))
    weights = np.stack([(1 - mix) * (1 - blend), mix * (1 - blend), blend], axis=-1).astype(np.float32)
    canvas = weights @ colours
    for _ in range(rng.integers(0, 5)):
        colour = tuple(np.clip(base + rng.normal(0, 60, 3), 0, 255))
        centre = tuple(int(v) for v in rng.integers(0, side, 2))
        axes = tuple(int(v) for v in rng.integers(side // 24, side // 5, 2))
        turn = float(rng.uniform(0, 180))
        if rng.random() < 0.5:
            cv2.ellipse(canvas, centre, axes, turn, 0, 360, colour, -1, cv2.LINE_AA)
        else:  # no thin lines: they would be ones without a label
            corners = cv2.boxPoints((centre, np.multiply(axes, 2).tolist(), turn))
            cv2.fillConvexPoly(canvas, np.round(corners).astype(np.int32), colour, cv2.LINE_AA)
    return canvas


def _glyph(rng: np.random.Generator, digit: np.ndarray, scale: float) -> np.ndarray:
    """One digit turned, slanted, stretched and scaled: alpha float32 [H, W] in 0..1, cut tightly to alpha >= 0.5."""
    aspect = np.exp(0.5 * rng.uniform(-1, 1) * np.log(1.5))
    angle, slant = np.radians(rng.uniform(-15, 15)), rng.uniform(-0.25, 0.25)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    linear = turn @ np.array([[1, slant], [0, 1]]) @ np.diag([scale * aspect, scale / aspect])
    side = int(np.ceil(28 * scale * 1.9)) + 2
    offset = side / 2 - linear @ np.array([13.5, 13.5])
    matrix = np.concatenate([linear, offset[:, None]], axis=1)
    alpha = cv2.warpAffine(digit.astype(np.float32) / 255, matrix, (side, side), flags=cv2.INTER_LINEAR)
    # MNIST strokes are blurred; a steeper edge keeps enlarged digits crisp while the outline at 0.5 stays where it is.
    alpha = np.clip((alpha - 0.5) * max(1.0, 0.8 * scale) * 1.5 + 0.5, 0, 1)
    x, y, w, h = cv2.boundingRect((alpha >= 0.5).astype(np.uint8))
    return alpha[y : y + h, x : x + w]


def _ink(rng: np.random.Generator, patch: np.ndarray) -> np.ndarray:
    """A colour float32 [3] that stands out from the background `patch` [H, W, 3] under the digit."""
    behind = np.array(cv2.mean(patch)[:3])
    for _ in range(20):
        colour = rng.uniform(0, 255, 3)
        if np.abs((colour - behind) @ (0.299, 0.587, 0.114)) > 70:  # luma: legible in grey, too
            return colour.astype(np.float32)
    return np.full(3, 255.0 if behind.mean() < 128 else 0.0, np.float32)


def _number_of_digits(rng: np.random.Generator) -> tuple[int, bool]:
    kind = rng.random()
    if kind < _EMPTY:
        return 0, False
    if kind < _EMPTY + _CROWDED:
        return int(rng.integers(9, 17)), True
    return int(rng.integers(1, 7)), False


def _overlap(box: tuple, others: list) -> float:
    """The largest IoU of a (y1, x1, y2, x2) box with the others."""
    if not others:
        return 0.0
    y1, x1, y2, x2 = np.array(others).T
    shared = np.maximum(np.minimum(y2, box[2]) - np.maximum(y1, box[0]), 0) * np.maximum(
        np.minimum(x2, box[3]) - np.maximum(x1, box[1]), 0
    )
    areas = (y2 - y1) * (x2 - x1) + (box[2] - box[0]) * (box[3] - box[1])
    return float(np.max(shared / (areas - shared)))


def _place(rng: np.random.Generator, shape: np.ndarray, instances: np.ndarray, placed: list, visible: np.ndarray):
    """A (y1, x1, y2, x2) box where a digit of bool `shape` keeps to the limits on overlap; None if 12 draws found none.

    placed: boxes so far; visible [n, 2]: pixels of each digit that are and that must stay in sight; brought up to date.
    """
    height, width = shape.shape
    for _ in range(12):
        y, x = (int(rng.integers(0, side - length + 1)) for side, length in zip(instances.shape, shape.shape, strict=True))
        box = y, x, y + height, x + width
        covered = instances[y : y + height, x : x + width][shape]
        left = visible[:, 0] - np.bincount(covered, minlength=len(visible) + 1)[1:]
        if np.all(left >= visible[:, 1]) and _overlap(box, placed) <= MAX_OVERLAP:
            visible[:, 0] = left
            return box
    return None


def make_scene(images: np.ndarray, labels: np.ndarray, options: SceneOptions, split: str, index: int) -> Scene:
    """Scene `index` of `split` from digits uint8 [n, 28, 28] with labels 0..9 [n]."""
    rng = np.random.default_rng([options.seed, SPLITS.index(split), index])
    side = options.side
    canvas, instances = _background(rng, side), np.zeros((side, side), np.uint8)
    wanted, crowded = (_ATTEMPTS, False) if options.single else _number_of_digits(rng)
    low, high = options.scale
    kept: list[int] = []
    placed: list[tuple[int, int, int, int]] = []
    visible = np.zeros((0, 2))
    for _ in range(wanted):
        scale = np.exp(rng.uniform(np.log(low), np.log(min(high, 1.6 * low) if crowded else high)))
        pick = int(rng.integers(len(images)))
        glyph = _glyph(rng, images[pick], scale)
        height, width = glyph.shape
        if min(height, width) < MIN_SIDE or max(height, width) > side:
            continue
        shape = glyph >= 0.5
        box = _place(rng, shape, instances, placed, visible)
        if box is None:
            continue
        window = np.s_[box[0] : box[2], box[1] : box[3]]
        shade = 1 + np.float32(rng.uniform(0, 0.25)) * (_noise(rng, max(height, width), 2)[:height, :width, None] - 0.5)
        canvas[window] += (_ink(rng, canvas[window]) * shade - canvas[window]) * glyph[..., None]
        kept.append(int(labels[pick]) + 1)
        instances[window][shape] = len(kept)
        placed.append(box)
        visible = np.append(visible, [[shape.sum(), MIN_VISIBLE * shape.sum()]], axis=0)
        if options.single:
            break
    canvas += rng.standard_normal(canvas.shape, np.float32) * np.float32(rng.uniform(2, 9))
    bounds = [cv2.boundingRect((instances == n + 1).astype(np.uint8)) for n in range(len(kept))]
    boxes = np.array(bounds, np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # xywh -> xyxy
    return Scene(
        image=np.clip(canvas, 0, 255, out=canvas).astype(np.uint8),
        instances=instances,
        boxes=boxes,
        labels=np.array(kept, np.int64),
    )


def file_name(index: int) -> str:
    return f"scene_{index:05d}.png"


def describe(scene: Scene, index: int) -> dict:
    """The scene's annotations as `from_images` takes them."""
    masks = [scene.instances == n + 1 for n in range(len(scene.boxes))]
    return {
        "image_id": index + 1,
        "file_name": file_name(index),
        "size": scene.image.shape[:2],
        "boxes": scene.boxes,
        "labels": scene.labels,
        "crowd": np.zeros(len(masks), np.bool_),
        "ids": np.arange(1, len(masks) + 1),
        "areas": [mask.sum() for mask in masks],
        "segmentations": [encode_mask(mask) for mask in masks],
    }
