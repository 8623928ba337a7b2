"""Explanations of a trained run: which target, which method, what is written.

Shape letters: H W image as the network sees it, h w F map of a layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from imgrec_jax.attribution import merit, methods, targets
from imgrec_jax.attribution.targets import Explained, Target
from imgrec_jax.inference import drawing, layers
from imgrec_jax.inference.inputs import Picture
from imgrec_jax.inference.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class Options:
    """class_name: what is explained, by name; None: the answer of the run. box: which detection, 0 the best.
    layer: of Grad-CAM; None: a sensible one. masks: of RISE. window: side of an occluded square. draws: of SmoothGrad. seed: of
    what is random. steps: of integrated gradients at most. pace: of the methods that take many passes.

    Raises:
      ValueError: for a number that cannot be one.
    """

    class_name: str | None = None
    box: int = 0
    layer: str | None = None
    masks: int = 1000
    window: int | None = None
    draws: int = 50
    seed: int = 0
    steps: int = 400
    pace: methods.Pace = methods.PACE

    def __post_init__(self) -> None:
        for name, least in (("box", 0), ("masks", 1), ("window", 1), ("draws", 1), ("seed", 0), ("steps", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name}={value}; expected {least} or more")


class Attribution(NamedTuple):
    """What a method found: raw values, and a line on how well it did, where it can tell."""

    values: np.ndarray
    said: str = ""


def _gradients(at: Explained, options: Options) -> Attribution:
    return Attribution(methods.gradients(at.score(), at.image))


def _smoothgrad(at: Explained, options: Options) -> Attribution:
    return Attribution(methods.smoothgrad(at.score(), at.image, draws=options.draws, seed=options.seed, pace=options.pace))


def _integrated(at: Explained, options: Options) -> Attribution:
    steps = min(50, options.steps)
    found = methods.integrated_gradients(at.score(), at.image, steps=steps, most=options.steps, pace=options.pace)
    total = float(found.attribution.sum())
    said = f"adds up to {total:.4f} of {found.difference:.4f} (off by {found.gap:.2%}, {found.steps} steps)"
    return Attribution(found.attribution, said)


def _cam(function: Callable[[methods.Looked], np.ndarray]) -> Callable[[Explained, Options], Attribution]:
    def explain(at: Explained, options: Options) -> Attribution:
        layer = options.layer or at.default_layer()
        return Attribution(function(at.look(layer)), f"layer {layer}")

    return explain


def _occlusion(at: Explained, options: Options) -> Attribution:
    return Attribution(methods.occlusion(jax.jit(at.score()), at.image, window=options.window))


def _rise(at: Explained, options: Options) -> Attribution:
    return Attribution(methods.rise(at.confidence(), at.image, masks=options.masks, seed=options.seed))


METHODS: dict[str, Callable[[Explained, Options], Attribution]] = {
    "gradients": _gradients,
    "smoothgrad": _smoothgrad,
    "ig": _integrated,
    "gradcam": _cam(methods.gradcam),
    "gradcam++": _cam(methods.gradcam_plus_plus),
    "hirescam": _cam(methods.hirescam),
    "occlusion": _occlusion,
    "rise": _rise,
}


def prepare(
    run: Predictor, picture: Picture, options: Options, admit: Callable[[tuple[int, ...]], None] | None = None
) -> Explained:
    """An image with what is to be explained on it.

    admit: told the shape [H, W, C] that the network is to see, before anything is compiled for it; raises what speaks against.

    Raises:
      ValueError: for an image that cannot be read, an unknown class, or where there is nothing of that kind to explain.
    """
    if run.config.model.get("padding") == "valid" and run.config.task == "segmentation":
        raise ValueError(
            f"{run.workdir}: explanations are of every pixel, and a network with padding='valid' scores the middle alone"
        )
    image = run.as_image(picture.read(), picture.name)
    example = run.example(image, picture.name, {})
    batch = run.preprocess.batch([example], [0], 1)
    pixels = batch["image"][0]
    if admit is not None:
        admit(pixels.shape)
    seen = pixels.astype(np.float32) / 255 if pixels.dtype == np.uint8 else pixels.astype(np.float32)
    floats = {**batch, "image": seen[None]}
    predictions = jax.device_get(jax.jit(run.task.predict)(run.on_device, floats))
    inside = tuple(map(int, batch["image_size"][0] if "image_size" in batch else seen.shape[:2]))
    return Explained(seen, floats, run.on_device, _target(run, picture.name, predictions, options, inside, image.shape), inside)


def _target(
    run: Predictor, file: str, predictions: dict[str, Any], options: Options, inside: tuple[int, ...], size: tuple[int, ...]
) -> Target:
    """What the options ask for, else what the run is surest of.

    inside: (H, W) of the image, as the network sees it, without what it is padded with; size: (H, W, ...) of the file.
    """
    names = list(run.class_names)
    wanted = None if options.class_name is None else _class_of(run, options.class_name)
    if "boxes" in predictions:
        boxes, scores, labels, valid = (predictions[key][0] for key in ("boxes", "scores", "labels", "valid"))
        rows = np.flatnonzero(valid & (labels == wanted + 1 if wanted is not None else True))
        if options.box >= len(rows):
            kind = "" if options.class_name is None else f" of {options.class_name}"
            raise ValueError(f"{file}: --box={options.box}, and the run finds {len(rows)} boxes{kind} (the first is 0)")
        row = rows[options.box]
        name = names[labels[row] - 1] if names else str(labels[row])
        there = boxes[row] * np.tile([size[1] / inside[1], size[0] / inside[0]], 2)  # as `predict` says it
        place = ", ".join(f"{v:.0f}" for v in there)
        return targets.of_box(run.task, int(labels[row]), f"{name} {scores[row]:.2f} at {place}", boxes[row])
    if "segmentation" in predictions:
        classes = np.full(predictions["segmentation"][0].shape, -1)  # what is padded is of no class
        classes[: inside[0], : inside[1]] = predictions["segmentation"][0][: inside[0], : inside[1]]
        found, counts = np.unique(classes[classes > 0], return_counts=True)
        label = wanted if wanted is not None else int(found[counts.argmax()]) if len(found) else 0
        area = classes == label
        if not area.any():
            raise ValueError(f"{file}: the run sees no pixel of class {options.class_name!r} there")
        return targets.of_area(run.task, label, names[label] if label < len(names) else str(label), area)
    probs = predictions["probs"][0]
    label = int(probs.argmax()) if wanted is None else wanted
    name = names[label] if label < len(names) else str(label)
    return targets.of_class(run.task, label, f"{name} {probs[label]:.1%}")


def _class_of(run: Predictor, name: str) -> int:
    """The position of a class in the run's names; a number where they have none.

    Raises:
      ValueError: for a class that the run does not know, with those it knows.
    """
    if name in run.class_names:
        return run.class_names.index(name)
    if not run.class_names and name.isdecimal():
        return int(name)
    raise ValueError(f"--class={name} is no class of the run; it has {list(run.class_names)}")


def explain(at: Explained, method: str, options: Options) -> tuple[np.ndarray, Attribution]:
    """(heat within 0..1, float32 [H, W]; the attribution) of a method by name.

    Raises:
      ValueError: for an unknown method, with those that exist.
    """
    if method not in METHODS:
        raise ValueError(f"--method={method} is unknown; choose of {', '.join(METHODS)}")
    found = METHODS[method](at, options)
    return methods.heat(found.values, at.image.shape[:2]), found


def overlay(image: np.ndarray, heat: np.ndarray, text: str) -> np.ndarray:
    """The image under its heat, from blue over yellow to red, with a caption. float32 [H, W, C] 0..1, [H, W] -> uint8 RGB."""
    from matplotlib import colormaps

    picture, factor = drawing.enlarge(drawing.as_rgb(image))
    large = heat.repeat(factor, axis=0).repeat(factor, axis=1)
    colours = colormaps["turbo"](large)[..., :3] * 255
    grey = picture.astype(np.float32).mean(axis=2, keepdims=True)
    strength = 0.25 + 0.45 * large[..., None]
    return drawing.caption((colours * strength + grey * (1 - strength)).astype(np.uint8), [(text, None)])


def drawn(at: Explained, heat: np.ndarray, method: str) -> np.ndarray:
    """The image under its heat [H, W], without what it is padded with; uint8 RGB."""
    height, width = at.inside or at.image.shape[:2]
    return overlay(at.image[:height, :width], heat[:height, :width], f"{at.target.text}: {method}")


def figures_of_merit(at: Explained, heat: np.ndarray) -> dict[str, float]:
    """The areas under deletion (small is good) and insertion (large is good)."""
    confidence = at.confidence()
    return {
        "deletion": merit.area(merit.deletion(confidence, at.image, heat)),
        "insertion": merit.area(merit.insertion(confidence, at.image, heat)),
    }


def sanity(at: Explained, method: str, options: Options, most: int = 6) -> dict[str, float]:
    """The model-randomisation check of a method on an image, see `merit.sanity`."""
    order = list(layers.shapes(at.target.score, at.variables, targets.rows_of(at.batch, at.image[None])))
    fixed = options if options.layer else dataclasses.replace(options, layer=_layer_of(at, method))

    def heat(variables: Any) -> np.ndarray:
        try:
            return explain(at._replace(variables=variables), method, fixed)[0]
        except targets.NoGradient:
            if variables is at.variables:
                raise
            return np.zeros(at.image.shape[:2], np.float32)  # random weights may answer otherwise

    return merit.sanity(at.variables, order, heat, most)


def _layer_of(at: Explained, method: str) -> str | None:
    return at.default_layer() if method.endswith(("cam", "cam++")) else None


def layers_picture(at: Explained, channels: int = 8) -> np.ndarray:
    """The filters of the first layer, and the first channels of every map of the image, each row with its name; uint8 RGB."""
    batch = targets.rows_of(at.batch, at.image[None])
    names = list(layers.maps(at.target.score, at.variables, batch))  # those too that have no part in the score
    look = layers.watched(at.target.score, tuple(names))
    found = jax.device_get(jax.jit(look)(at.variables, batch)[1])
    rows = [_strip("image", [at.image], channels)]
    if (filters := _first_filters(at.variables["params"])) is not None:
        rows.append(_strip(filters[0], [filters[1][..., k] for k in range(filters[1].shape[3])], channels))
    for name in names:
        values = np.asarray(found[name][0], np.float32)
        shape = "x".join(map(str, values.shape))
        rows.append(_strip(f"{name}  {shape}", [values[..., k : k + 1] for k in range(values.shape[2])], channels))
    return np.concatenate(rows)


def _first_filters(params: Any) -> tuple[str, np.ndarray] | None:
    """(name, kernel [h, w, C, F]) of a convolution of the image's channels; None where there is none."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for path, value in leaves:
        if getattr(value, "ndim", 0) == 4 and value.shape[2] in (1, 3) and min(value.shape[:2]) > 1:
            name = "/".join(str(getattr(key, "key", key)) for key in path[:-1])
            return f"filters of {name}", np.asarray(value)
    return None


def _strip(name: str, planes: list[np.ndarray], channels: int, side: int = 96) -> np.ndarray:
    """Planes side by side, each stretched to its own range, under a name."""
    import cv2

    canvas = np.full((side, channels * (side + 4), 3), 24, np.uint8)
    for n, plane in enumerate(planes[:channels]):
        low, high = float(plane.min()), float(plane.max())
        grey = ((plane - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
        grey = grey if grey.shape[2] in (1, 3) else grey[..., :1]
        large = cv2.resize(grey, (side, side), interpolation=cv2.INTER_NEAREST).reshape(side, side, -1)
        canvas[:, n * (side + 4) : n * (side + 4) + side] = large
    return drawing.caption(canvas, [(name, None)])
