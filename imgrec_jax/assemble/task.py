"""Model, loss and metrics of a config as a `Task`, made without data."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from imgrec_jax import losses, metrics
from imgrec_jax.assemble import own, scores
from imgrec_jax.assemble.lookup import ConfigError, check_options, choice, options_of
from imgrec_jax.assemble.model import make_model
from imgrec_jax.config import is_own
from imgrec_jax.data.source import Source
from imgrec_jax.detection import coco_eval, windows
from imgrec_jax.models.detectors import is_one_stage
from imgrec_jax.segmentation import objects
from imgrec_jax.segmentation.losses import loss_of_pixels, segmentation_loss
from imgrec_jax.tasks import classify, detect, multi_label, one_stage, segment, two_stage
from imgrec_jax.tasks.task import Task


class ClassificationLoss(NamedTuple):
    """loss: (outputs, label, **options) -> values; probabilities: outputs of a model trained by it -> probabilities."""

    loss: Callable
    probabilities: Callable = jax.nn.softmax


CLASSIFICATION_LOSSES = {
    "softmax_cross_entropy": ClassificationLoss(losses.softmax_cross_entropy),
    "negative_log_likelihood": ClassificationLoss(losses.negative_log_likelihood),
    "binary_cross_entropy": ClassificationLoss(losses.binary_cross_entropy, classify.one_against_all),
    "mean_squared_error": ClassificationLoss(losses.mean_squared_error, classify.clipped),
}


def check(config: ConfigDict) -> None:
    """Raises ConfigError for what is wrong with names and options."""
    make_task(config)
    if config.eval.window and len(config.eval.window) != 2:
        raise ConfigError(f"config.eval.window={config.eval.window}; expected (height, width), or () to predict whole images")


def make_task(config: ConfigDict, axis_name: str | None = None, **options: Any) -> Task:
    """The task of a config; axis_name: mapped axis under `pmap`; options: what only the data tell, of classification."""
    return {"classification": _classification, "detection": _detection, "segmentation": _segmentation}[config.task](
        config, model=make_model(config, axis_name), mean=config.data.mean, std=config.data.std, axis_name=axis_name, **options
    )


def _multi_label(config: ConfigDict, **common: Any) -> Task:
    options = options_of(config.loss)
    if options.pop("name") != "binary_cross_entropy" or config.eval.top_k:
        raise ConfigError(
            f"config.data.multi_label=True: config.loss.name={config.loss.name!r}, eval.top_k={config.eval.top_k} are of one "
            "label an image; expected 'binary_cross_entropy' and (), as image_folder.py:multi_label has them"
        )
    check_options("loss", options, multi_label.binary_cross_entropy, skip=2)
    return multi_label.make_task(loss_fn=functools.partial(multi_label.binary_cross_entropy, **options), **common)


def _classification(config: ConfigDict, *, class_weights: Sequence[float] = (), **common: Any) -> Task:
    if config.data.multi_label:
        return _multi_label(config, **common)
    options = options_of(config.loss)
    loss, probabilities = _classification_loss(options.pop("name"))
    check_options("loss", options, loss, skip=2)
    return classify.make_task(
        loss_fn=functools.partial(loss, **options),
        probabilities=probabilities,
        num_classes=common["model"].num_classes,
        top_k=config.eval.top_k,
        collect=config.eval.intervals,
        class_weights=class_weights,
        **common,
    )


def _classification_loss(name: str) -> ClassificationLoss:
    if is_own(name):
        loss = own.find("loss.name", name)
        return ClassificationLoss(loss, getattr(loss, "probabilities", jax.nn.softmax))
    return CLASSIFICATION_LOSSES[choice("loss.name", name, CLASSIFICATION_LOSSES)]


def find_loss(config: ConfigDict) -> tuple[Callable, int] | None:
    """(the loss that a config names, how many of its first arguments are no options); None where there is none."""
    name = config.loss.name
    if config.task == "segmentation":
        if is_own(name):
            return own.find("loss.name", name), 2
        return (segmentation_loss, 4) if name == "segmentation" else None
    if config.task == "classification" and (is_own(name) or name in CLASSIFICATION_LOSSES):
        return _classification_loss(name).loss, 2
    return None


def _detection(config: ConfigDict, *, model: Any, **common: Any) -> Task:
    options, stages = options_of(config.detection), stages_of(config)
    unknown = sorted(set(options) - set(stages.OPTIONS))
    if unknown:
        raise ConfigError(f"detection takes no {unknown}; of this model it takes {sorted(stages.OPTIONS)}")
    return detect.make_task(detector=stages.make_detector(model, stages.settings(**options)), **common)


def stages_of(config: ConfigDict) -> Any:
    """The module with the losses and detections of the detector that a config names: `one_stage` or `two_stage`."""
    return one_stage if is_one_stage(config.model) else two_stage


def _segmentation(config: ConfigDict, **common: Any) -> Task:
    try:
        return segment.make_task(
            loss_fn=_segmentation_loss(config),
            num_classes=config.model.num_classes,
            aux_weight=options_of(config.loss).get("aux_weight", 0.5),
            window=tuple(config.eval.window) or None,
            overlap=config.eval.overlap,
            test_time=config.eval.test_time,
            separate=_objects(config),
            **common,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _objects(config: ConfigDict) -> objects.Separate | None:
    options = options_of(config.eval.objects)
    name = options.pop("name")
    if not name:
        if options:
            raise ConfigError(f"config.eval.objects has {sorted(options)} and no name; choose one of {sorted(objects.NAMES)}")
        return None
    choice("eval.objects.name", name, objects.NAMES)
    made = objects.NAMES[name]
    check_options("eval.objects", options, made)
    return made(**options)


def find_objects(config: ConfigDict) -> Callable[..., objects.Separate] | None:
    """What `eval.objects` names; None where there is none of that name."""
    return objects.NAMES.get(config.eval.objects.name)


def _segmentation_loss(config: ConfigDict) -> Callable:
    options = options_of(config.loss)
    name = options.pop("name")
    options.pop("aux_weight", None)
    if is_own(name):
        loss = own.find("loss.name", name)
        check_options("loss", options, loss, skip=2)
        return functools.partial(loss_of_pixels, functools.partial(loss, **options))
    choice("loss.name", name, ("segmentation",))
    check_options("loss", options, segmentation_loss, skip=4)
    return functools.partial(segmentation_loss, **options)


def make_summarise(config: ConfigDict, sources: dict[str, Source]) -> dict[str, Callable[[dict], dict]]:
    """{split: merged metric states -> values}, for the splits to evaluate.

    What validation chooses (a threshold) is that of the state that was evaluated last, and is used for the other splits.
    """
    if config.task == "detection":
        return {name: summary_of_detections(config, source.info.meta["annotations"]) for name, source in sources.items()}
    if not (config.task == "classification" and config.eval.intervals):
        return dict.fromkeys(sources, metrics.compute)
    return scores.make_summaries(
        {name: source.info for name, source in sources.items()},
        chooses="validation",
        positive=config.eval.positive,
        criterion=config.eval.threshold,
        multi_label=config.data.multi_label,
    )


def limits_of_windows(config: ConfigDict) -> dict[str, Any]:
    """Of `detection.windows.merge`: what suppression keeps of a picture."""
    settings = stages_of(config).settings(**options_of(config.detection))
    selection = getattr(settings, "selection", settings)  # of two stages and of one
    return {"nms_thresh": selection.nms_thresh, "most": selection.detections_per_img}


def summary_of_detections(config: ConfigDict, annotations: Any) -> Callable[[dict], dict]:
    """Merged metric states -> values; annotations: the table of the boxes that are there."""
    truth = functools.cache(lambda: coco_eval.load_ground_truth(annotations.to_coco()))  # made when it is first asked for
    return functools.partial(_summarise_detections, truth, annotations, limits_of_windows(config))


def _rows_of_pieces(
    found: detect.CollectedDetections, annotations: Any, limits: dict[str, Any]
) -> tuple[np.ndarray, list[dict[str, Any]] | None]:
    """Detections in windows as those of pictures, as `coco_eval.to_rows` makes them, and their masks, where there are any."""
    predictions = {name: getattr(found, name) for name in ("boxes", "scores", "labels", "valid")}
    sizes = {name: getattr(found, name) for name in ("image_size", "original_size")}
    records: list[dict[str, Any]] = list(detect.records(predictions, sizes))
    if found.masks is not None:
        drawn = iter(found.run_lengths())
        records = [{**record, "masks": list(itertools.islice(drawn, len(record["boxes"])))} for record in records]
    pieces = np.asarray(found.window, np.int64), np.asarray(found.index)
    image, merged = windows.merge_pieces(records, *pieces, annotations.sizes, **limits)
    categories = np.asarray(annotations.category_ids)[merged["labels"] - 1]
    columns = [np.asarray(annotations.image_ids)[image], *merged["boxes"].T, merged["scores"], categories]
    return np.stack([np.asarray(column, np.float64) for column in columns], axis=1), merged.get("masks")


def _summarise_detections(
    truth: Callable[[], Any], annotations: Any, limits: dict[str, Any], states: dict[str, Any]
) -> dict[str, Any]:
    """-> losses, COCO's twelve numbers of boxes, and of masks where there are any, AP per class, and scores at a threshold."""
    found = states["detections"]
    values = metrics.compute({name: state for name, state in states.items() if name != "detections"})
    if found.window is not None:
        rows, drawn = _rows_of_pieces(found, annotations, limits)
    else:
        drawn = None if found.masks is None else found.run_lengths()
        rows = coco_eval.to_rows(
            found.boxes, found.scores, found.labels, found.valid,
            image_ids=np.asarray(annotations.image_ids)[np.asarray(found.index)], image_size=found.image_size,
            original_size=found.original_size, category_ids=annotations.category_ids,
        )  # fmt: skip
    result = coco_eval.evaluate(truth(), rows)
    masks: dict[str, Any] = {}
    if drawn is not None and any(annotations.segmentations or ()):  # a file of truth may hold boxes alone
        by_masks = coco_eval.evaluate(truth(), coco_eval.with_masks(rows, drawn), iou_type="segm")
        scores_of = coco_eval.confusion(truth(), rows, masks=drawn).scores()
        masks = {f"segm_{name}": _number(value) for name, value in (by_masks.summary | scores_of).items()}
        masks["segm_AP_per_class"] = {name: _number(value) for name, value in by_masks.class_ap.items()}
    confusion = coco_eval.confusion(truth(), rows)
    return {
        **values,
        **{name: _number(value) for name, value in result.summary.items()},
        **masks,
        "AP_per_class": {name: _number(value) for name, value in result.class_ap.items()},
        **{name: _number(value) for name, value in confusion.scores().items()},
        "confusion_matrix": confusion.counts.tolist(),
    }


def _number(value: float) -> float | None:
    """JSON has no NaN: what is undefined is null."""
    return None if np.isnan(value) else float(value)
