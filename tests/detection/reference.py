"""Plain float64 NumPy versions of the geometry, one loop per sentence of the definition, to test against."""

import math
from fractions import Fraction

import numpy as np


def iou(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    size = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    intersection = np.prod(np.maximum(size, 0), axis=-1)
    union = np.prod(a[:, 2:] - a[:, :2], axis=-1)[:, None] + np.prod(b[:, 2:] - b[:, :2], axis=-1) - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def nms(boxes, scores, valid, threshold, groups=None):
    """Greedy; returns bool [N]."""
    keep = np.zeros(len(boxes), bool)
    overlaps = iou(boxes, boxes)
    groups = np.zeros(len(boxes)) if groups is None else groups
    for i in np.argsort(-scores, kind="stable"):
        rivals = keep & (groups == groups[i])
        keep[i] = valid[i] and not np.any(overlaps[i, rivals] > threshold)
    return keep


def bilinear(image, y, x):
    """One sample of [H, W, C] under torchvision's border rule."""
    height, width, _ = image.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(image.shape[2])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    y0, x0 = int(np.floor(y)), int(np.floor(x))
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    dy, dx = y - y0, x - x0
    top = (1 - dx) * image[y0, x0] + dx * image[y0, x1]
    bottom = (1 - dx) * image[y1, x0] + dx * image[y1, x1]
    return (1 - dy) * top + dy * bottom


def roi_align(image, rois, stride, output_size, sampling_ratio, aligned):
    image = np.asarray(image, np.float64)
    out = np.zeros((len(rois), *output_size, image.shape[2]))
    for n, roi in enumerate(np.asarray(rois, np.float64) / stride - (0.5 if aligned else 0.0)):
        size = roi[2:] - roi[:2]
        width, height = size if aligned else np.maximum(size, 1.0)
        for p, q in np.ndindex(*output_size):
            for i, j in np.ndindex(sampling_ratio, sampling_ratio):
                y = roi[1] + (p + (i + 0.5) / sampling_ratio) * height / output_size[0]
                x = roi[0] + (q + (j + 0.5) / sampling_ratio) * width / output_size[1]
                out[n, p, q] += bilinear(image, y, x) / sampling_ratio**2
    return out


def roi_pool(image, rois, stride, output_size):
    height, width, channels = image.shape
    out = np.zeros((len(rois), *output_size, channels))
    for n, roi in enumerate(np.asarray(rois, np.float64)):
        x1, y1, x2, y2 = np.floor(roi / stride + 0.5).astype(int)
        bin_h = Fraction(int(max(y2 - y1 + 1, 1)), output_size[0])
        bin_w = Fraction(int(max(x2 - x1 + 1, 1)), output_size[1])
        for p, q in np.ndindex(*output_size):
            top, bottom = np.clip([math.floor(p * bin_h) + y1, math.ceil((p + 1) * bin_h) + y1], 0, height)
            left, right = np.clip([math.floor(q * bin_w) + x1, math.ceil((q + 1) * bin_w) + x1], 0, width)
            if bottom > top and right > left:
                out[n, p, q] = image[top:bottom, left:right].max((0, 1))
    return out


def random_boxes(rng, count, size=100.0, shortest=1.0, longest=60.0):
    centre = rng.uniform(0, size, (count, 2))
    half = np.exp(rng.uniform(np.log(shortest), np.log(longest), (count, 2))) / 2
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)
