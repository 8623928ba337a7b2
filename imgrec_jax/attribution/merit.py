"""How good an explanation is: deletion, insertion, and whether it notices that the model was destroyed.

Shape letters: H W C image, S steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from imgrec_jax.attribution.methods import Score, in_chunks


def deletion(confidence: Score, image: np.ndarray, heat: np.ndarray, *, steps: int = 32, fill: float = 0.0) -> np.ndarray:
    """Confidences as the hottest pixels are filled first, [S + 1]; Petsiuk et al. 2018 (arXiv 1806.07421), section 3.

    A good explanation makes them fall early: the mean (`area`) is small.
    """
    return _path(confidence, image, np.full_like(image, fill), heat, steps)


def insertion(confidence: Score, image: np.ndarray, heat: np.ndarray, *, steps: int = 32) -> np.ndarray:
    """Confidences as the hottest pixels are put first into a blurred image, [S + 1]; a good explanation has a large `area`."""
    import cv2

    sigma = max(min(image.shape[:2]) / 8, 1.0)
    blurred = cv2.GaussianBlur(image, (0, 0), sigma).reshape(image.shape)
    return _path(confidence, blurred, image, heat, steps)


def _path(confidence: Score, first: np.ndarray, last: np.ndarray, heat: np.ndarray, steps: int) -> np.ndarray:
    """Confidences along the way from one image to another, the hottest pixels first."""
    order = np.argsort(-heat.ravel(), kind="stable")
    flat = np.empty(order.size, np.int64)
    flat[order] = np.arange(order.size)
    rank = flat.reshape(heat.shape)
    stops = np.linspace(0, order.size, steps + 1).round().astype(int)
    images = np.stack([np.where((rank < stop)[..., None], last, first) for stop in stops])
    return in_chunks(confidence, images)


def area(values: np.ndarray) -> float:
    """The area under confidences over the share of pixels, by trapezoids."""
    return float(np.trapezoid(values, dx=1 / (len(values) - 1)))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, of two maps of one shape; ties have their mean rank; 0 where one of them is constant."""
    ranks = [_ranks(x.ravel()) for x in (a, b)]
    centred = [r - r.mean() for r in ranks]
    scale = np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    return float((centred[0] * centred[1]).sum() / scale) if scale else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[at]


def randomised(variables: Any, order: list[str], seed: int = 0) -> Iterator[tuple[str, Any]]:
    """(layer, variables in which it and all layers after it are drawn anew), from the last layer to the first.

    The cascading randomisation of Adebayo et al. 2018 (arXiv 1810.03292): every array of a layer becomes normal values of its
    own mean and standard deviation. order: paths of layers as they are called.
    """
    rng, params = np.random.default_rng(seed), jax.tree.map(np.asarray, variables["params"])
    done: set[str] = set()
    for layer in reversed(order):
        parts = layer.partition(":")[0].split("/")
        node: Any = params
        for part in parts:
            node = node.get(part) if isinstance(node, dict) else None
        if layer in done or not isinstance(node, dict) or not any(hasattr(value, "shape") for value in node.values()):
            continue
        done.add(layer)
        params = _with(params, parts, {key: _drawn(value, rng) for key, value in node.items()})
        yield layer, {**variables, "params": params}


def _drawn(value: Any, rng: np.random.Generator) -> Any:
    if isinstance(value, dict):
        return {key: _drawn(v, rng) for key, v in value.items()}
    spread = float(value.std()) or 1e-2
    return (value.mean() + spread * rng.standard_normal(value.shape)).astype(value.dtype)


def _with(tree: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """The tree with another value at a path; the rest is shared."""
    if len(path) == 1:
        return {**tree, path[0]: value}
    return {**tree, path[0]: _with(tree[path[0]], path[1:], value)}


Explain = Callable[[Any], np.ndarray]


def sanity(variables: Any, order: list[str], explain: Explain, most: int = 6) -> dict[str, float]:
    """{layer: rank correlation of the map with the trained model's once it and all after it are random}, the last layer first.

    explain: variables -> heat [H, W].
    """
    trained = explain(variables)
    found: dict[str, float] = {}
    for layer, changed in randomised(variables, order):
        found[layer] = rank_correlation(trained, explain(changed))
        if len(found) == most:
            break
    return found
