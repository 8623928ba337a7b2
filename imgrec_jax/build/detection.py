"""Detection: names to detectors, sources and proposals."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from imgrec_jax import metrics
from imgrec_jax.build.lookup import ConfigError, Parts, check_options, choice, make_model, open_splits, options_of
from imgrec_jax.data import check as check_data
from imgrec_jax.data import coco, detection_batch, detection_source, external_proposals, mnist, scenes, target_ops, voc
from imgrec_jax.data.source import default_data_dir, parse_split
from imgrec_jax.detection import coco_eval
from imgrec_jax.models import rcnn
from imgrec_jax.models.box_head import TwoMLPHead
from imgrec_jax.models.fpn import FPN, BackboneWithFPN
from imgrec_jax.models.norm import make_norm
from imgrec_jax.models.resnet import RESNETS, small_resnet
from imgrec_jax.tasks import detect


def make_small_detector(
    *,
    kind: str,
    num_classes: int,
    widths: tuple[int, ...] = (16, 32, 64, 96),
    blocks: int = 1,
    stem_stride: int = 2,
    fpn_width: int = 64,
    head_width: int = 128,
    anchor_sizes: tuple[tuple[float, ...], ...] = ((16,), (32,), (64,)),
    aspect_ratios: tuple[float, ...] = (1.0,),
    crop_size: int = 7,
    norm: str = "batch",
    neck_norm: str = "none",
    head_norm: str = "none",
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> rcnn.RCNN:
    """R-CNN, Fast R-CNN or Faster R-CNN for images of a hundred pixels or so: a small ResNet, and an FPN for the last two.

    Args:
      kind: "rcnn", "fast" or "faster".
      num_classes: K + 1.
      widths, blocks, stem_stride, norm: of the ResNet.
      fpn_width: channels of the feature pyramid over the stages after the first.
      head_width: of the two fully connected layers.
      anchor_sizes: one tuple per stage after the first; aspect_ratios: height / width.
      neck_norm, head_norm: of the feature pyramid and of the fully connected layers; "none" as in torchvision's first detector.
      crop_size: side of a crop, in cells, or in pixels for "rcnn".
    """
    body = small_resnet(widths, blocks, stem_stride, norm=make_norm(norm, axis_name=axis_name), dtype=dtype)
    after_neck, after_dense = (None if n == "none" else make_norm(n, axis_name=axis_name) for n in (neck_norm, head_norm))
    head = TwoMLPHead(width=head_width, norm=after_dense, dtype=dtype)
    levels = tuple(f"layer{i}" for i in range(2, len(widths) + 1))
    crops = {"box_head": head, "num_classes": num_classes, "output_size": (crop_size, crop_size), "dtype": dtype}
    if kind == "rcnn":
        return rcnn.make_rcnn(kind, backbone=body, box_levels=levels[-1:], context=2, **crops)
    if len(anchor_sizes) != len(levels):
        raise ValueError(f"anchor_sizes={anchor_sizes}: expected one tuple for each of {levels}")
    pyramid = BackboneWithFPN(body, FPN(fpn_width, norm=after_neck, dtype=dtype), levels)
    return rcnn.make_rcnn(
        kind, backbone=pyramid, box_levels=levels, rpn_levels=levels, anchor_sizes=anchor_sizes,
        aspect_ratios=aspect_ratios, **crops,
    )  # fmt: skip


def make_resnet_fpn(
    *,
    kind: str = "faster",
    num_classes: int = 91,
    backbone: str = "resnet50",
    norm: str = "frozen",
    norm_epsilon: float = 1e-5,
    remat: bool = False,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> rcnn.RCNN:
    """torchvision's FPN detector over any of its ResNets; "faster" with "resnet50" is fasterrcnn_resnet50_fpn.

    norm_epsilon: 0.0 for the released weights of that detector (COCO_V1), which torchvision runs so.
    """
    norm = make_norm(norm, axis_name=axis_name, epsilon=norm_epsilon)
    body = RESNETS[choice("model.backbone", backbone, RESNETS)](norm=norm, remat=remat, dtype=dtype)
    levels = rcnn.FPN_LEVELS
    if kind == "rcnn":
        return rcnn.make_rcnn(
            kind, backbone=body, box_levels=levels[-1:], box_head=TwoMLPHead(dtype=dtype), num_classes=num_classes,
            output_size=(224, 224), context=16, dtype=dtype,
        )  # fmt: skip
    return rcnn.make_rcnn(
        kind, backbone=BackboneWithFPN(body, FPN(dtype=dtype), levels), num_classes=num_classes, box_levels=levels,
        box_head=TwoMLPHead(dtype=dtype), rpn_levels=(*levels, "pool"), anchor_sizes=rcnn.FPN_ANCHOR_SIZES, dtype=dtype,
    )  # fmt: skip


def make_resnet50_fpn_v2(
    *,
    num_classes: int = 91,
    norm: str = "batch",
    remat: bool = False,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> rcnn.RCNN:
    return rcnn.fasterrcnn_resnet50_fpn_v2(num_classes, norm=make_norm(norm, axis_name=axis_name), remat=remat, dtype=dtype)


MODELS: dict[str, Callable] = {
    "small_detector": make_small_detector,
    "resnet_fpn_detector": make_resnet_fpn,
    "fasterrcnn_resnet50_fpn_v2": make_resnet50_fpn_v2,
}


def open_scenes(name: str, split: str, data_dir: Path, manual_dir: Path | None) -> Any:
    preset = name.partition("/")[2] or "default"
    return scenes.open_source(split, data_dir, lambda: mnist.load_arrays(data_dir, manual_dir), preset=preset)


def open_coco_folder(
    name: str, split: str, data_dir: Path, manual_dir: Path | None, *, images: str = "{split}2017", annotations: str = ""
) -> Any:
    """A folder of images and an instances json per split, read as it is; `{split}` stands for the split's name."""
    base = parse_split(split)[0]
    json = annotations or "annotations/instances_{split}2017.json"
    folder = coco.read_folder(manual_dir / images.format(split=base), manual_dir / json.format(split=base))
    return detection_source.open_folder(f"{name} {base}", folder).subset(split)


def open_voc_folder(
    name: str, split: str, data_dir: Path, manual_dir: Path | None, *, class_names: tuple[str, ...] = voc.CLASS_NAMES,
    one_based: bool = True,
) -> Any:  # fmt: skip
    """A Pascal VOC folder (JPEGImages, Annotations, ImageSets/Main/<split>.txt), read as it is."""
    base = parse_split(split)[0]
    folder = voc.read_folder(manual_dir, base, class_names=class_names, one_based=one_based)
    return detection_source.open_folder(f"{name} {base}", folder).subset(split)


def open_stock(name: str, split: str, data_dir: Path, manual_dir: Path | None) -> Any:
    """A prepared TFDS set with boxes: coco/2017, voc/2007, ..."""
    ids = coco.CATEGORY_IDS if name.startswith("coco/") else None
    return detection_source.open_prepared(name, split, data_dir, category_ids=ids)


SOURCES: dict[str, Callable] = {
    "digit_scenes": open_scenes,
    "coco_folder": open_coco_folder,
    "voc_folder": open_voc_folder,
    "coco": open_stock,
    "voc": open_stock,
}


def check(config: ConfigDict) -> None:
    model = make_model(config, MODELS)
    if (model.rpn is None) != bool(config.data.max_proposals):
        raise ConfigError(
            f"config.data.max_proposals={config.data.max_proposals}: a detector without an RPN needs proposals from outside "
            "(R-CNN's authors took 2000), and one with an RPN takes none (0)"
        )
    make_hyper(config)
    make_search(config)
    name = config.data.name.partition("/")[0].partition(":")[0]
    open_source = SOURCES[choice("data.name", name, SOURCES)]
    check_options("data.options", options_of(config.data.options), open_source, skip=4)
    if name.endswith("_folder") and not config.data.manual_dir:
        raise ConfigError(f"data.name={config.data.name!r} reads a folder: give it as config.data.manual_dir")
    if config.data.remainder != "pad" and config.data.canvases:
        raise ConfigError("detection batches hold images of one canvas each and are padded: set config.data.remainder='pad'")


def open_sources(config: ConfigDict) -> tuple[Any, dict[str, Any]]:
    """(training source, {split to evaluate: source}), with boxes and without external proposals."""
    data = config.data
    manual_dir = Path(data.manual_dir).expanduser() if data.manual_dir else None
    opener = SOURCES[data.name.partition("/")[0].partition(":")[0]]
    return open_splits(
        config, lambda split: opener(data.name, split, _data_dir(config), manual_dir, **options_of(data.options))
    )


def _data_dir(config: ConfigDict) -> Path:
    return Path(config.data.data_dir).expanduser() if config.data.data_dir else default_data_dir()


def reports(config: ConfigDict) -> Iterator[check_data.Report]:
    """The sanity report of every split, with every file read."""
    train, evals = open_sources(config)
    return map(check_data.check_source, (train, *evals.values()))


def parts(config: ConfigDict, eval_batch_size: Callable[[dict], int], axis_name: str | None) -> Parts:
    data, data_dir = config.data, _data_dir(config)
    train, evals = open_sources(config)
    if not data.drop_degenerate_boxes:
        check_data.check_annotations(train.info.name, train.info.meta["annotations"]).raise_if_bad()
    model = make_model(config, MODELS, axis_name)
    if len(train.info.class_names) + 1 != model.num_classes:
        raise ConfigError(
            f"model.num_classes={model.num_classes}, but {train.info.name} has {len(train.info.class_names)} classes "
            f"and the background: expected {len(train.info.class_names) + 1}"
        )
    truth = {split: source.info.meta["annotations"] for split, source in evals.items()}
    if data.max_proposals:
        search = make_search(config)
        train = with_proposals(train, data_dir, search)
        evals = {split: with_proposals(source, data_dir, search) for split, source in evals.items()}
    canvases = tuple(map(tuple, data.canvases)) or detection_batch.default_canvases(max(data.min_size), data.max_size)
    resize = functools.partial(detection_batch.resize, max_size=data.max_size, canvases=canvases)
    order = functools.partial(
        detection_batch.bucketed_order, min_size=max(data.min_size), max_size=data.max_size, canvases=canvases
    )
    collate = functools.partial(detection_batch.collate, max_boxes=data.max_boxes, max_proposals=data.max_proposals)
    eval_batch = eval_batch_size(evals)
    return Parts(
        task=detect.make_task(model=model, mean=data.mean, std=data.std, hyper=make_hyper(config), axis_name=axis_name),
        train=train,
        evals=evals,
        train_order=lambda source: order(_sizes(source), data.batch_size, seed=config.seed),
        eval_order=lambda source: order(_sizes(source), eval_batch, seed=None),
        train_ops=[
            target_ops.check_boxes(drop=data.drop_degenerate_boxes),
            target_ops.drop_crowd(),
            resize(tuple(data.min_size)),
        ],
        eval_ops=[target_ops.check_boxes(drop=True), resize((data.min_size[-1],))],
        train_collate=collate(drop_extra_boxes=data.drop_extra_boxes),
        eval_collate=collate(drop_extra_boxes=True),
        summarise={
            split: functools.partial(summarise, coco_truth(annotations), annotations) for split, annotations in truth.items()
        },
    )


def _sizes(source: Any) -> np.ndarray:
    return source.info.meta["annotations"].sizes


def coco_truth(annotations: Any) -> Callable[[], Any]:
    """The ground truth as pycocotools wants it, made when it is first asked for."""
    return functools.cache(lambda: coco_eval.load_ground_truth(annotations.to_coco()))


def with_proposals(source: Any, data_dir: Path, options: external_proposals.SearchOptions) -> Any:
    """The source with selective search's boxes, searched once and kept beside the data."""
    folder = data_dir / "proposals" / source.info.name.replace("/", "_").replace(" ", "_")
    return external_proposals.ProposalSource(source, external_proposals.compute(source, folder, options=options))


def summarise(truth: Callable[[], Any], annotations: Any, states: dict[str, Any]) -> dict[str, Any]:
    """Merged states of a split -> losses, COCO's twelve numbers, AP per class, and scores at a threshold."""
    found = states["detections"]
    values = metrics.compute({name: state for name, state in states.items() if name != "detections"})
    rows = coco_eval.to_rows(
        found.boxes, found.scores, found.labels, found.valid,
        image_ids=np.asarray(annotations.image_ids)[np.asarray(found.index)], image_size=found.image_size,
        original_size=found.original_size, category_ids=annotations.category_ids,
    )  # fmt: skip
    result = coco_eval.evaluate(truth(), rows)
    confusion = coco_eval.confusion(truth(), rows)
    return {
        **values,
        **{name: _number(value) for name, value in result.summary.items()},
        "AP_per_class": {name: _number(value) for name, value in result.class_ap.items()},
        **{name: _number(value) for name, value in confusion.scores().items()},
        "confusion_matrix": confusion.counts.tolist(),
    }


def _number(value: float) -> float | None:
    """JSON has no NaN: what is undefined is null."""
    return None if np.isnan(value) else float(value)


def make_search(config: ConfigDict) -> external_proposals.SearchOptions:
    options = options_of(config.data.search)
    check_options("data.search", options, external_proposals.SearchOptions)
    try:
        return external_proposals.SearchOptions(**options)
    except ValueError as error:
        raise ConfigError(f"config.data.search: {error}") from error


def make_hyper(config: ConfigDict) -> detect.Hyper:
    options = options_of(config.detection)
    check_options("detection", options, detect.Hyper)
    return detect.Hyper(**options)
