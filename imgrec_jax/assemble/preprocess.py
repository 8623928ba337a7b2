"""What turns examples into batches: the fixed preprocessing of evaluation, made without data, and the pipelines of training."""

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from imgrec_jax.assemble.data import make_search
from imgrec_jax.assemble.lookup import ConfigError, choice, options_of
from imgrec_jax.assemble.ops import BATCH_OPS, OPS, RANDOM_OPS, TASKS_OF_OP, make_ops
from imgrec_jax.data import proposals
from imgrec_jax.data.batch import stack
from imgrec_jax.data.ops import canvases, geometry, mixing, targets
from imgrec_jax.data.pipeline import Order, balanced_order, sequential_order, shuffled_order
from imgrec_jax.data.preprocess import Preprocess, size_of
from imgrec_jax.data.source import Source
from imgrec_jax.models.detectors import learns_masks


class Training(NamedTuple):
    """ops, batch_ops, collate: as `Pipeline` takes them; order: source -> (epoch -> Order)."""

    ops: list[Callable]
    batch_ops: list[Callable]
    collate: Callable
    order: Callable[[Source], Callable[[int], Order]]


def check(config: ConfigDict) -> None:
    """Raises ConfigError for ops that do not exist or have no targets in this task, and sizes that cannot be."""
    for where in ("train_ops", "eval_ops"):
        for name in config.data[where]:
            if config.task not in (tasks := TASKS_OF_OP.get(name, (config.task,))):
                raise ConfigError(f"config.data.{where}.{name} is for {' and '.join(tasks)}, not for {config.task}; remove it")
    for name in BATCH_OPS:
        if name in config.data.eval_ops:
            raise ConfigError(f"config.data.eval_ops.{name} mixes images, which is for training: give it in data.train_ops")
    check_eval_ops(config)
    make_ops("data.train_ops", config.data.train_ops)
    make_ops("data.train_ops", config.data.train_ops, of_batches=True)
    make_ops("data.eval_ops", config.data.eval_ops)
    choice("data.resize", config.data.resize, ("fast", "torchvision"))
    if config.data.resize == "torchvision" and config.data.canvases:
        raise ConfigError(
            f"config.data.canvases={config.data.canvases} and data.resize='torchvision', which pads each image to its own "
            "multiple of 32; leave one of them"
        )
    if config.data.multi_label:
        if mixed := [name for name in config.data.train_ops if name in BATCH_OPS]:
            raise ConfigError(
                f"config.data.train_ops.{mixed[0]} mixes images of one label each; remove it for data.multi_label"
            )
        if config.data.balance and config.data.balance_by == "sampling":
            raise ConfigError(
                "config.data.balance_by='sampling' draws images of one label each; take 'loss' for data.multi_label"
            )
    if config.task == "detection" and config.data.remainder != "pad" and config.data.canvases:
        raise ConfigError("detection batches hold images of one canvas each and are padded: set config.data.remainder='pad'")


def check_eval_ops(config: ConfigDict) -> None:
    """Raises ConfigError for ops of evaluation that draw at random, or that move what nothing brings back."""
    for name, given in options_of(config.data.eval_ops).items():
        if name not in OPS or not isinstance(given, dict):
            continue
        draws = name in RANDOM_OPS or (name == "random_affine" and any(_differs(key, given[key]) for key in given))
        if draws:
            raise ConfigError(f"config.data.eval_ops.{name} draws at random, which is for training: give it in data.train_ops")
        stretches = given.get("size") is None or given.get("fit", "none") == "stretch"
        if config.task in _BROUGHT_BACK and (name == "resize_and_center_crop" or (name == "random_affine" and not stretches)):
            what, instead = _BROUGHT_BACK[config.task]
            raise ConfigError(
                f"config.data.eval_ops.{name} crops or pads, and {what} are brought back by the sides of the images alone; "
                f"take resize or resize_shorter, or {instead}"
            )


# By task: what an answer is made of that has a place in the image, and what else there is to bring images to a size.
_BROUGHT_BACK = {
    "detection": ("boxes", "data.min_size and data.max_size"),
    "segmentation": ("the classes of pixels", "data.pad_to, which pads at the bottom and right"),
}


def _differs(option: str, value: Any) -> bool:
    """Whether `random_affine` draws by this option: all that moves an image does where it is not as it is by itself."""
    default = inspect.signature(geometry.random_affine).parameters[option].default
    fixed = ("size", "fit", "fill", "min_side", "min_visible")
    return option not in fixed and (tuple(value) if isinstance(value, list) else value) != default


def evaluation(config: ConfigDict) -> Preprocess:
    """The preprocessing that evaluation and prediction share; needs no data."""
    data = config.data
    ops = make_ops("data.eval_ops", data.eval_ops)
    if config.task == "detection":
        search = [proposals.search_where_absent(make_search(config))] if data.max_proposals else []
        ops = [targets.drop_degenerate(), *ops, *search, targets.check_boxes(drop=True)]
        ops.append(_resize(config, only=False)((data.min_size[-1],)))
        collate = _collate_boxes(config)(drop_extra_boxes=True)
        return Preprocess(tuple(ops), collate, lambda example: example["canvas"])
    if config.task == "segmentation":
        sized = (
            (lambda example: tuple(data.pad_to)) if data.pad_to else lambda e: canvases.round_up(size_of(e), data.pad_multiple)
        )
        return Preprocess(tuple(ops), _collate_maps(config), sized, canvases.pad_maps)
    return Preprocess(tuple(ops), stack)


def shapes(config: ConfigDict, source: Source, channels: int) -> dict[str, Any]:
    """What a run keeps of the images that it evaluates, so that it can bring others to what its ops and its network take.

    Args:
      source: of an evaluation.
      channels: of a batch.

    Returns:
      "stored_shape": [H, W, C] before any op; "eval_shape": [H, W, C] of a batch, of detection on the most frequent canvas, of
      segmentation the most frequent of a few images, then the largest. None for what differs among a few images of the split.
    """
    count = len(source)
    try:
        looked = [dict(source[index]) for index in sorted({0, count // 2, count - 1} if count else ())]
    except Exception:  # of a damaged image, of a source of the user's own: who needs it says what is wrong
        looked = []
    sides = zip(*(np.atleast_3d(example["image"]).shape for example in looked), strict=True)
    stored = [int(side[0]) if len(set(side)) == 1 else None for side in sides]
    preprocess = evaluation(config)
    if config.task == "detection":
        sizes = _sizes(make_ops("data.eval_ops", config.data.eval_ops), source).tolist()
        least, most, offered = config.data.min_size[-1], config.data.max_size, _canvases(config)
        batches = Counter(canvases.canvas_of(tuple(size), least, most, offered, only=False) for size in sizes)
    else:
        try:
            batches = Counter(preprocess.group(preprocess(np.asarray(one.pop("image")), one)) for one in looked)
        except Exception:  # of the user's own ops: evaluation says what is wrong
            batches = Counter()
    fixed = len(batches) == 1 or (batches and config.task != "classification")
    size = max(batches, key=lambda size: (batches[size], size[0] * size[1], size)) if fixed else None
    return {"stored_shape": stored, "eval_shape": [*map(int, size), channels] if size else None}


def training(config: ConfigDict) -> Training:
    """The random ops of training, its batches and their order."""
    data = config.data
    ops = make_ops("data.train_ops", data.train_ops)
    mixes = make_ops("data.train_ops", data.train_ops, of_batches=True)
    batch_ops = [mixing.mix_batch(mixes)] if mixes else []
    if config.task == "detection":
        check_boxes = targets.check_boxes(drop=data.drop_degenerate_boxes)
        ops = [targets.drop_degenerate(), *ops] if data.drop_degenerate_boxes else ops
        crowds = [] if config.detection.get("crowd_thresh") is not None else [targets.drop_crowd()]
        ops += [check_boxes, *crowds, _resize(config)(tuple(data.min_size))]
        ops += [targets.drop_without_mask()] if learns_masks(config.model) else []
        collate = _collate_boxes(config)(drop_extra_boxes=data.drop_extra_boxes)
        return Training(ops, batch_ops, collate, lambda source: _bucketed(config, ops, source, data.batch_size, config.seed))
    collate = _collate_maps(config) if config.task == "segmentation" else stack
    return Training(ops, batch_ops, collate, functools.partial(_order, config))


def _order(config: ConfigDict, source: Source) -> Callable[[int], Order]:
    data = config.data
    if data.balance and data.balance_by == "sampling":
        labels = source.info.meta["targets"]["label"]
        weights = class_weights(labels, source.info.class_names, data.balance)[labels]
        return balanced_order(weights, data.batch_size, config.seed, data.remainder)
    return shuffled_order(len(source), data.batch_size, config.seed, data.remainder)


def class_weights(labels: np.ndarray, class_names: Sequence[str], power: float) -> np.ndarray:
    """Of each class, count ** -power, scaled to a mean of 1 over the examples: int [N] -> float64 [K]; 1 without examples."""
    counts = np.bincount(labels, minlength=len(class_names)).astype(np.float64)
    weights = np.where(counts > 0, np.maximum(counts, 1) ** -power, 0.0)
    scaled = weights * counts.sum() / max((weights * counts).sum(), 1e-300)
    return np.where(counts > 0, scaled, 1.0)


def loss_weights(config: ConfigDict, source: Source) -> dict[str, Any]:
    """What `task.make_task` takes of the skew of the training split: {} for none."""
    data = config.data
    if not data.balance or data.balance_by != "loss":
        return {}
    targets = source.info.meta["targets"]
    if not data.multi_label:
        return {"class_weights": tuple(class_weights(targets["label"], source.info.class_names, data.balance).tolist())}
    columns = zip(targets["labels"].T, targets["label_known"].T, strict=True)
    each = np.array([class_weights(labels[known], ("no", "yes"), data.balance) for labels, known in columns])
    return {"label_weights": tuple(map(tuple, each.T.tolist()))}


def eval_order(config: ConfigDict, source: Source, batch_size: int) -> Callable[[int], Order]:
    """Every example exactly once."""
    if config.task == "detection":  # by the size that `evaluation` resizes to
        ops = make_ops("data.eval_ops", config.data.eval_ops)
        return _bucketed(config, ops, source, batch_size, None, config.data.min_size[-1], only=False)
    return sequential_order(len(source), batch_size)


def _canvases(config: ConfigDict) -> tuple[tuple[int, int], ...]:
    """() for torchvision's way: each image has its own, and a program is compiled for every one."""
    data = config.data
    if data.resize == "torchvision":
        return ()
    return tuple(map(tuple, data.canvases)) or canvases.default_canvases(max(data.min_size), data.max_size)


def _bucketed(
    config: ConfigDict,
    ops: Sequence[geometry.Op],
    source: Source,
    batch_size: int,
    seed: int | None,
    min_size: int | None = None,
    *,
    only: bool = True,
) -> Callable[[int], Order]:
    data = config.data
    options = {
        "min_size": min_size or max(data.min_size),
        "max_size": data.max_size,
        "canvases": _canvases(config),
        "seed": seed,
        "only": only,
    }
    return canvases.bucketed_order(_sizes(ops, source), batch_size, **options)


def _sizes(ops: Sequence[geometry.Op], source: Source) -> np.ndarray:
    """(height, width) of the images of a split for detection after these ops, int64 [n, 2]; no image is decoded."""
    meta = source.info.meta
    given = np.asarray(meta["sizes"] if "sizes" in meta else meta["annotations"].sizes)
    return np.array([geometry.size_after(ops, size) for size in map(tuple, given.tolist())], np.int64).reshape(-1, 2)


def _resize(config: ConfigDict, *, only: bool = True) -> Callable:
    options = {"canvases": _canvases(config), "as_float": config.data.resize == "torchvision", "only": only}
    return functools.partial(canvases.resize, max_size=config.data.max_size, **options)


def _collate_boxes(config: ConfigDict) -> Callable:
    data = config.data
    return functools.partial(canvases.collate_boxes, max_boxes=data.max_boxes, max_proposals=data.max_proposals)


def _collate_maps(config: ConfigDict) -> Callable:
    return canvases.collate_maps(multiple=config.data.pad_multiple, size=tuple(config.data.pad_to) or None)
