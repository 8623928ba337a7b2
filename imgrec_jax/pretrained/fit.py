"""Fits the tensors of a file to the variables of a model: whose names they are, which are heads, which classes they tell apart.

The layout of a file is found, not asked for: of the tables of `names.py` that the model's architecture has, the one that finds
most of its names in the file.
"""

import collections
import contextlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from imgrec_jax.pretrained import keras_file, names

# What tells the architecture of a backbone: (regex of a path, families whose tables may fit). Group 1 is the trunk.
_ANCHORS: Sequence[tuple[str, tuple[str, ...]]] = (
    (r"(.*/|)layer1_0/conv1/kernel", ("resnet",)),
    (r"(.*/|)features_0/kernel", ("vgg",)),
    (r"(.*/|)blocks_0_0/depthwise_conv/kernel", ("efficientnet", "mobilenet_v3", "mobilenet_v2", "mobilenet_v1")),
    (r"(.*/|)denseblock1_denselayer1/conv1/kernel", ("densenet",)),
    (r"(.*/|)blocks_0_0/layer_scale", ("convnext",)),
    (r"(.*/|)class_token", ("vit",)),
    (r"(.*/|)blocks_0_0/relative_position_bias_table", ("swin",)),
)
# Paths that every head of classes has somewhere; with `head="new"` they stay as they were drawn.
HEAD = re.compile(
    r"^fc/|^(aux_)?classifier_4/|^roi_heads/box_predictor/|^roi_heads/mask_predictor/mask_fcn_logits/"
    r"|^head/(?!classification_head/|regression_head/)|^head/classification_head/cls_logits/|^scores?[_/]|^logits/"
)
BACKGROUND = "__background__"
_CLASSES_LAST = re.compile("/cls_logits/")  # outputs (anchor, class); elsewhere (class, number)
# What a classifier may have behind its backbone: to know these names in a file of a backbone's model.
_BEHIND = tuple(
    f"embedding/{name}"
    for name in (
        *(f"{layer}/{leaf}" for layer in ("conv", "dense", "fc6", "fc7") for leaf in ("kernel", "bias")),
        *(f"{layer}/{leaf}" for layer in ("bn", "norm", "norm5") for leaf in ("scale", "bias", "mean", "var")),
    )
)
# What tells that a file is one of torchvision's detectors.
_DETECTORS = {"roi_heads.box_predictor.cls_score.weight", "head.classification_head.cls_logits.weight"}
_HEAD_PATHS = ("fc/kernel", "fc/bias")


class Fit(NamedTuple):
    """How a file fits a model.

    Attributes:
      layout: whose names: a layout of `names.TABLES`, "detector", "fcn" or "own".
      family: of the backbone; "" where it does not matter.
      names: {our path: name in the file}, as the table has it, whether the file has it or not.
      trunk: of the model's backbone: "backbone/", "backbone/body/", ...
      behind: names in the file of what a classifier has behind its backbone.
    """

    layout: str
    family: str
    names: dict[str, str]
    trunk: str
    behind: frozenset[str]


def is_of_detector(tensors: Collection[str]) -> bool:
    """Whether a file with these names is one of torchvision's detectors."""
    return not _DETECTORS.isdisjoint(tensors)


def trunks(paths: Collection[str]) -> list[tuple[str, tuple[str, ...]]]:
    """(what precedes the backbone's own names, families) of the backbones among some paths."""
    found = []
    for pattern, families in _ANCHORS:
        found += [(match[1], families) for path in paths if (match := re.fullmatch(pattern, path))]
    return found


def with_todays_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under the names that are usual now, without buffers that no network of ours keeps.

    Raises:
      ValueError: when two of them come to the same name.
    """
    renamed: dict[str, np.ndarray] = {}
    for source, value in tensors.items():
        if names.IGNORED.search(source):
            continue
        name = source
        for pattern, replacement in names.OLD_NAMES:
            name = re.sub(pattern, replacement, name)
        if name in renamed:
            raise ValueError(f"{source} and another tensor are both {name}; the file mixes two naming schemes")
        renamed[name] = value
    return renamed


def find(tensors: Collection[str], paths: Collection[str]) -> Fit:
    """The fit of a file with these names (see `with_todays_names`) to a model with these paths.

    Raises:
      ValueError: when no table finds a name, or the model has no backbone, or two.
    """
    have, paths = set(tensors), set(paths)
    fits = []
    where = trunks(paths)
    if is_of_detector(have):
        fits.append(Fit("detector", "resnet", names.of_whole("detector", paths), "backbone/body/", frozenset()))
    elif any(name.startswith("backbone.") for name in have):
        fits.append(Fit("fcn", "resnet", names.of_whole("fcn", paths), "backbone/", frozenset()))
    for trunk, families in where:
        for family in families:
            for layout in names.TABLES[family]:
                with contextlib.suppress(KeyError):  # parts of blocks that this family does not have
                    fits.append(_of_classifier(family, layout, paths, trunk))
    fits.append(_own(have, paths, where))
    best = max(fits, key=lambda fit: len(have & set(fit.names.values())))
    if not have & set(best.names.values()):
        expected = sorted(fits[0].names.values())[:3]
        raise ValueError(
            f"none of its names is known for this model: it has {', '.join(sorted(have)[:3])}, ...; expected such as "
            f"{', '.join(expected)}. Is it of another architecture?"
        )
    return best


def _of_classifier(family: str, layout: str, paths: set[str], trunk: str) -> Fit:
    table = names.of_classifier(family, layout, paths, trunk)
    # The same table for a model that is nothing but this backbone and all that classifiers may have behind it.
    whole = {trunk + path.removeprefix(trunk) for path in paths if path.startswith(trunk)} | {*_BEHIND, *_HEAD_PATHS}
    behind = names.of_classifier(family, layout, whole, trunk)
    return Fit(layout, family, table, trunk, frozenset(behind[path] for path in (*_BEHIND, *_HEAD_PATHS)))


def _own(have: set[str], paths: set[str], where: list[tuple[str, tuple[str, ...]]]) -> Fit:
    """A checkpoint of this project, maybe of another task: its backbone's names are the model's with another trunk."""
    theirs = trunks(have)
    ours = where[0][0] if where else ""
    trunk = theirs[0][0] if theirs and where else ours
    table = {path: trunk + path.removeprefix(ours) if ours and path.startswith(ours) else path for path in paths}
    outside = frozenset(name for name in have if not (trunk and name.startswith(trunk)))
    return Fit("own", "", table, ours, outside if trunk != ours else frozenset(n for n in have if n.startswith("embedding/")))


def unfold(tensors: Mapping[str, np.ndarray], table: Mapping[str, str], epsilon: float) -> dict[str, np.ndarray]:
    """Tensors with a batch norm that does nothing but add, where the file has its own multiplied into the convolution.

    Args:
      table: {our path: name in the file}; the norm of `x_conv` is `x_bn`. epsilon: of the model's norms.

    Raises:
      ValueError: for a convolution beside which the model has no norm.
    """
    out = dict(tensors)
    for path, name in table.items():
        module, _, leaf = path.rpartition("/")
        offset = out.pop(f"{name.rpartition('/')[0]}/{keras_file.FOLDED}", None) if leaf == "kernel" else None
        if offset is None:
            continue
        norm = re.sub(r"conv(\d*)$", r"bn\1", module)
        if f"{norm}/scale" not in table:
            raise ValueError(
                f"{name}: its batch norm is multiplied into it, and the model has none at {norm} to take what is left of it; "
                "give the weights before they were folded (layers, .keras or .h5)"
            )
        still = {"scale": 1.0, "mean": 0.0, "var": 1 - epsilon}
        out |= {table[f"{norm}/{part}"]: np.full_like(offset, value) for part, value in still.items()}
        out[table[f"{norm}/bias"]] = offset
    return out


def is_of_backbone_only(fit: Fit, have: Collection[str]) -> bool:
    """Whether the file knows nothing of what the model has outside of its backbone."""
    outside = [name for path, name in fit.names.items() if not path.startswith(fit.trunk)]
    return not set(outside) & set(have)


def other_heads(fit: Fit, have: Collection[str]) -> set[str]:
    """Names of the file that are heads of it, or branches that share no word with what the model takes."""
    taken = set(fit.names.values())
    words = {_word(name) for name in taken & set(have)}
    return {name for name in set(have) - taken if name in fit.behind or _word(name) not in words}


def _word(name: str) -> str:
    return re.sub(r"(_?[A-Za-z]*).*", r"\1", name)


def fold(name: str) -> str:
    """A class's name without case; "background" is torchvision's "__background__"."""
    return BACKGROUND if name.lower() in ("background", BACKGROUND) else name.lower()


def match_classes(ours: Sequence[str], theirs: Sequence[str]) -> list[int | None]:
    """The output that each of our classes has among theirs, None for those without: as they are written, and else folded.

    Either way a name must be of one class on both sides: "A" and "a" are two classes to those who tell them apart, and ImageNet
    has two "crane".
    """
    found: list[int | None] = [None] * len(ours)
    for written in (str, fold):
        mine, its = (collections.Counter(map(written, side)) for side in (ours, theirs))
        where = {written(name): i for i, name in enumerate(theirs)}
        for i, name in enumerate(map(written, ours)):
            if found[i] is None and mine[name] == its[name] == 1:
                found[i] = where[name]
    return found


def select_classes(value: np.ndarray, fresh: np.ndarray, path: str, ours: Sequence[str], theirs: Sequence[str]) -> np.ndarray:
    """A head's tensor [..., theirs * n] with the outputs of the classes that the model tells apart; others are the fresh ones.

    fresh: [..., ours * n], the initial values; n is 4 for box deltas, the anchors of a cell for RetinaNet, 1 elsewhere.

    Raises:
      ValueError: when its last axis is not of `theirs`.
    """
    if value.shape[-1] % len(theirs) or fresh.shape[-1] % len(ours):
        raise ValueError(f"{path} has {value.shape[-1]} outputs; its file is said to tell {len(theirs)} classes apart")
    classes_last = bool(_CLASSES_LAST.search(path))

    def apart(tensor: np.ndarray, classes: int) -> np.ndarray:
        """[..., classes, n], a view."""
        if classes_last:
            return tensor.reshape(*tensor.shape[:-1], -1, classes).swapaxes(-1, -2)
        return tensor.reshape(*tensor.shape[:-1], classes, -1)

    made = np.array(fresh, value.dtype)
    old, new = apart(value, len(theirs)), apart(made, len(ours))
    for i, output in enumerate(match_classes(ours, theirs)):
        if output is not None:
            new[..., i, :] = old[..., output, :]
    return made


def resize_positions(value: np.ndarray, tokens: int) -> np.ndarray:
    """A ViT's position embedding [1, 1 + n * n, C] for another square of patches, bicubic; the class token's stays."""
    grid = value[:, 1:]
    old, new = round(grid.shape[1] ** 0.5), round((tokens - 1) ** 0.5)
    if old * old != grid.shape[1] or new * new != tokens - 1:
        raise ValueError(f"position embedding of {grid.shape[1]} patches for {tokens - 1}: only squares are adapted")
    maps = grid.reshape(1, old, old, -1)
    resized = np.asarray(jax.image.resize(maps, (1, new, new, maps.shape[-1]), "bicubic", antialias=False), value.dtype)
    return np.concatenate([value[:, :1], resized.reshape(1, new * new, -1)], axis=1)


def change_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A first convolution [h, w, C, D] for images of another number of channels.

    One channel takes the sum over C, which equals feeding it C times; more repeat the kernel in turn, scaled by C / channels.
    """
    old = kernel.shape[2]
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = np.tile(kernel, (1, 1, -(-channels // old), 1))[:, :, :channels]
    return repeated * np.asarray(old / channels, kernel.dtype)


def first_convolution(paths: Collection[str]) -> str | None:
    """The path of the kernel that sees the image."""
    for end in ("conv1/kernel", "stem_conv/kernel", "features_0/kernel", "conv0/kernel", "patch_embed/kernel"):
        found = [path for path in paths if path.endswith(end)]
        if found:
            return min(found, key=len)
    return None
