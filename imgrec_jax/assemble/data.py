"""Names to data sets: one table, in which each entry says which tasks it serves."""

import contextlib
import gc
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from ml_collections import ConfigDict

from imgrec_jax.assemble import own
from imgrec_jax.assemble.found import with_values
from imgrec_jax.assemble.lookup import ConfigError, check_options, choice, options_of
from imgrec_jax.config import base, is_own, whole_path
from imgrec_jax.data import check as check_data
from imgrec_jax.data import proposals
from imgrec_jax.data.annotated import DetectionSource
from imgrec_jax.data.check_examples import ExamplesReport, check_examples
from imgrec_jax.data.own.division import parse_fold
from imgrec_jax.data.own.found import BAD_FILES, Survey
from imgrec_jax.data.pieces import Pieces
from imgrec_jax.data.sets import coco, mask_folder, mnist, own_boxes, own_images, own_masks, panoptic, pets, scenes, tfds, voc
from imgrec_jax.data.source import Request, Source, default_data_dir, few, overlap, parse_split
from imgrec_jax.detection import windows
from imgrec_jax.models.detectors import learns_masks

# What examples of a task carry beside the image.
TARGETS = {"classification": ("label",), "detection": ("boxes",), "segmentation": ("segmentation",)}


class Entry(NamedTuple):
    """open: (Request, **options) -> Source, or with `survey` -> Survey, which tells what is found in the user's own files and
    opens their splits; options_like: what names these options; folder: whether it reads the user's own files."""

    open: Callable
    tasks: tuple[str, ...]
    options_like: Callable | None = None
    folder: bool = False
    class_names: tuple[str, ...] = ()  # where the data themselves do not tell them, or tell always the same
    survey: bool = False


SETS: dict[str, Entry] = {
    "mnist": Entry(mnist.open_digits, ("classification",), class_names=mnist.CLASS_NAMES),
    "image_folder": Entry(own_images.survey_images, ("classification",), folder=True, survey=True),
    "own_detection": Entry(own_boxes.survey_boxes, ("detection",), folder=True, survey=True),
    "own_segmentation": Entry(own_masks.survey_masks, ("segmentation",), folder=True, survey=True),
    "digit_scenes": Entry(scenes.open_scenes, ("detection", "segmentation", "classification")),
    "coco_folder": Entry(coco.open_coco_folder, ("detection",), folder=True),
    "voc_folder": Entry(voc.open_voc_folder, ("detection",), folder=True, class_names=voc.CLASS_NAMES),
    "coco": Entry(coco.open_coco, ("detection",)),
    "voc": Entry(voc.open_voc, ("detection",)),
    "mask_folder": Entry(
        mask_folder.open_masks,
        ("detection", "segmentation"),
        mask_folder.open_mask_folder,
        folder=True,
        class_names=mask_folder.CLASS_NAMES,
    ),
    "oxford_iiit_pet": Entry(pets.open_pets, ("segmentation",)),
    "coco/2017_panoptic": Entry(panoptic.open_panoptic, ("segmentation",)),
}
OWN_KEYS = (
    "group",
    "fold",
    "bad_files",
    "multi_label",
    "prepare",
    "balance",
    "test_sets",
)  # of config.data, for entries with a survey
_SPLIT_NAMES = ("train", "validation", "test", "best_test")
ANY_TFDS = Entry(tfds.open_labelled, ("classification",))  # any other name is TFDS's


def entry_of(config: ConfigDict) -> Entry:
    """The entry that `config.data.name` ("mnist:3.0.1", "coco/2017", "digit_scenes/tiny") names."""
    if is_own(config.data.name):
        return Entry(own.find("data.name", config.data.name), (config.task,))
    full = config.data.name.partition(":")[0]
    name = full if full in SETS else full.partition("/")[0]
    known = sorted(n for n, entry in SETS.items() if config.task in entry.tasks)
    if name not in SETS and config.task in ANY_TFDS.tasks:
        return ANY_TFDS
    if name in SETS and name not in known:
        tasks = " and ".join(SETS[name].tasks)
        raise ConfigError(f"config.data.name={config.data.name!r} is for {tasks}; for {config.task} there are {known}")
    return SETS[choice("data.name", name, known)]


def check(config: ConfigDict) -> None:
    """Raises ConfigError for what is wrong with the names, without opening anything."""
    entry, options = entry_of(config), options_of(config.data.options)
    check_options("data.options", options, entry.options_like or entry.open, skip=1, but=("split", "in_memory", "keys"))
    if entry.folder and not config.data.manual_dir:
        raise ConfigError(f"data.name={config.data.name!r} reads a folder: give it as config.data.manual_dir")
    make_search(config)
    _check_own(config, entry)


def _check_own(config: ConfigDict, entry: Entry) -> None:
    """Keys of the user's own files; elsewhere they must have their default."""
    data, default = config.data, base().data
    choice("data.bad_files", data.bad_files, BAD_FILES)
    for key in OWN_KEYS:
        if not entry.survey and data[key] != default[key]:
            own_sets = sorted(name for name, e in SETS.items() if e.survey)
            raise ConfigError(
                f"config.data.{key}={data[key]!r} is not used by data.name={data.name!r}, but by {', '.join(own_sets)}"
            )
    if data.multi_label and data.examples_per_class is not None:
        raise ConfigError(
            f"config.data.examples_per_class={data.examples_per_class!r} takes images of one class each; leave it empty with "
            "data.multi_label"
        )
    for name, path in options_of(data.test_sets).items():
        if not isinstance(path, str) or name in _SPLIT_NAMES or not name.isidentifier():
            raise ConfigError(
                f"config.data.test_sets has {name!r}: {path!r}; expected other names than {_SPLIT_NAMES}, and folders"
            )
    if data.fold:
        try:
            parse_fold(data.fold)
        except ValueError as error:
            raise ConfigError(str(error)) from error


@contextlib.contextmanager
def _naming_options(options: dict[str, Any]) -> Iterator[None]:
    """An option of another type than the set expects is said to be one."""
    try:
        yield
    except (TypeError, AttributeError, KeyError, IndexError) as error:
        raise ConfigError(f"config.data.options={options}: {error}{own.where(error)}") from error


def survey(config: ConfigDict) -> Survey | None:
    """The user's own files, looked at as a whole; None for other sets."""
    entry = entry_of(config)
    if not entry.survey:
        return None
    options = options_of(config.data.options)
    with _naming_options(options), _without_collection():
        return entry.open(_request(config), **options)


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """For what makes millions of objects that stay: looking for garbage among them was a fifth of a start on 200,000 files."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def targets_of(config: ConfigDict) -> tuple[str, ...]:
    """What examples carry beside the image: of detection the masks of objects, too, where the model learns them."""
    masks = config.task == "detection" and learns_masks(config.model)
    return (*TARGETS[config.task], "masks") if masks else TARGETS[config.task]


def _request(config: ConfigDict) -> Request:
    data = config.data
    return Request(
        name=data.name,
        split=data.train_split,
        data_dir=data_dir(config),
        manual_dir=Path(whole_path(data.manual_dir)) if data.manual_dir else None,
        targets=targets_of(config),
        in_memory=data.in_memory,
        max_pixels=data.max_pixels,
        group=data.group,
        fold=data.fold,
        bad_files=data.bad_files,
        multi_label=data.multi_label,
        prepare=data.prepare,
        min_size=tuple(data.min_size),
        max_size=data.max_size,
    )


def open_sources(config: ConfigDict, found: Survey | None = None) -> tuple[Source, dict[str, Source]]:
    """(training source, {"validation", "test": those that the config names}), without external proposals.

    found: what `survey` made, where it made something.
    """
    data, entry, request, options = config.data, entry_of(config), _request(config), options_of(config.data.options)
    if found is None and (found := survey(config)) is not None:
        config = with_values(config, found.found)
        data = config.data
    evals = {"validation": data.validation_split, "test": data.test_split}
    open_split: Callable[[str], Any] = (
        found.open if found else lambda split: entry.open(request._replace(split=split), **options)
    )
    with _naming_options(options):
        opened = {name: open_split(split) for name, split in evals.items() if split}
        train = open_split(data.train_split)
        if found:
            opened |= {name: found.other(Path(whole_path(path))) for name, path in options_of(data.test_sets).items()}
    if data.examples_per_class is not None:
        try:
            train = few(train, data.examples_per_class, config.seed)
        except ValueError as error:
            raise ConfigError(f"config.data.examples_per_class={data.examples_per_class}: {error}") from error
    if config.task == "detection":  # files may list their classes in another order each
        table = train.info.meta["annotations"]
        known = (table.class_names, table.category_ids, train.title)
        train = train.carrying(targets_of(config))
        opened = {name: source.relabelled(*known).carrying(targets_of(config)) for name, source in opened.items()}
    return train, opened


def check_overlap(config: ConfigDict, train: Source, evals: dict[str, Source]) -> None:
    """Raises ConfigError for splits that share examples: what is trained on or selected by would be tested on.

    Where a metric selects, no option lets it see the test split.
    """
    names = {"train": config.data.train_split, "validation": config.data.validation_split, "test": config.data.test_split}
    sources = {"train": train, **evals}
    sizes = {parse_split(names[name])[0]: s.info.base_size or len(s) for name, s in sources.items() if name in names}
    for first, second in itertools.combinations([name for name in sources if name in names], 2):
        selects = config.select.metric and (first, second) == ("validation", "test")
        if config.data.allow_overlap and not selects:
            continue
        shared = overlap(names[first], names[second], sizes.__getitem__)
        if not shared and parse_split(names[first])[0] == parse_split(names[second])[0]:
            _check_tied(config, sources, first, second)
        if shared:
            raise ConfigError(
                f"config.data.{first}_split={names[first]!r} and config.data.{second}_split={names[second]!r} share {shared:,} "
                "examples; give parts that do not overlap"
                + (": nothing is selected on test data" if selects else " (data.allow_overlap=True trains all the same)")
            )


def _check_tied(config: ConfigDict, sources: dict[str, Source], first: str, second: str) -> None:
    """Raises ConfigError for two parts of one split with examples of one group, or of equal content, on both sides."""
    tied = [sources[name].info.meta.get("tied", np.zeros(0, np.int64)) for name in (first, second)]
    if count := int(np.isin(tied[1], tied[0]).sum()):
        names = config.data[f"{first}_split"], config.data[f"{second}_split"]
        raise ConfigError(
            f"config.data.{first}_split={names[0]!r} and config.data.{second}_split={names[1]!r} cut through what belongs "
            f"together (data.group, equal files): {count:,} examples of {second}; let the splits be found "
            f"(data.{second}_split=auto), or use data.fold (data.allow_overlap=True trains all the same)"
        )


def data_dir(config: ConfigDict) -> Path:
    """Of prepared sets."""
    return Path(config.data.data_dir).expanduser() if config.data.data_dir else default_data_dir()


def make_search(config: ConfigDict) -> proposals.SearchOptions:
    """Options of the selective search."""
    options = options_of(config.data.search)
    check_options("data.search", options, proposals.SearchOptions)
    try:
        return proposals.SearchOptions(**options)
    except ValueError as error:
        raise ConfigError(f"config.data.search: {error}") from error


def with_proposals(config: ConfigDict, source: Source) -> Source:
    """The source with selective search's boxes where the detector takes them, searched once and kept beside the data."""
    if config.task != "detection" or not config.data.max_proposals:
        return source
    folder = data_dir(config) / "proposals" / source.info.name.replace("/", "_").replace(" ", "_")
    return proposals.ProposalSource(source, proposals.compute(source, folder, options=make_search(config)))


def in_windows(config: ConfigDict, source: Source) -> Source:
    """The source of an evaluation of detectors: with `eval.window`, each picture whole and in windows."""
    if config.task != "detection" or not config.eval.window:
        return source
    sizes = np.asarray(source.info.meta["annotations"].sizes).tolist()
    cuts = (windows.windows_of((height, width), tuple(config.eval.window), config.eval.overlap) for height, width in sizes)
    return Pieces(source, ([one.place for one in cut] for cut in cuts))


def _annotated(source: Source) -> DetectionSource:
    """What the sets for detection open: `Entry.open` knows no task."""
    return cast(DetectionSource, source)


def check_detection(config: ConfigDict, train: Source, evals: dict[str, Source], warn: Callable[[str], None]) -> None:
    """What is wrong with annotations and files is met here, before the first step; no image is decoded.

    Raises:
      ValueError: for bad boxes or too many that would be trained on, images that are none or of another size than annotated.
      FileNotFoundError: for missing images of any split.
    """
    if config.task != "detection":
        return
    data, table = config.data, train.info.meta["annotations"]
    training, evaluated = _annotated(train), {split: _annotated(source) for split, source in evals.items()}
    if not data.drop_degenerate_boxes:
        check_data.check_annotations(training.title, table).raise_if_bad()
    if learns_masks(config.model):
        if line := check_data.check_masks(training.title, table, drop=data.drop_degenerate_boxes):
            warn(line)
        _check_evaluated_masks(config, evaluated, warn)
    if not data.drop_extra_boxes:
        check_data.check_counts(training, data.max_boxes, crowds=config.detection.get("crowd_thresh") is not None)
    for source in (training, *evaluated.values()):
        check_data.check_files(source, data.max_pixels)
    if table.crowd.all():
        warn(f"{training.title} has no objects (crowd regions are none): there is nothing to learn but background")
    for split, source in evaluated.items():
        report = check_data.check_annotations(source.title, source.info.meta["annotations"])
        if report.boxes == report.crowd:
            warn(f"split {split!r} has no objects ({source.title}): AP is undefined")
        bad = [finding for finding in report.bad() if finding.kind == "degenerate"]
        if bad:
            warn(f"{source.title} has {len(bad)} boxes without area, which count as objects that nothing finds: {bad[0]}")


def _check_evaluated_masks(config: ConfigDict, evaluated: dict[str, DetectionSource], warn: Callable[[str], None]) -> None:
    """Says of which splits the masks cannot be counted; raises ConfigError where they were to select."""
    for split, source in evaluated.items():
        table = source.info.meta["annotations"]
        count, line = check_data.missing_masks(source.title, table)
        if count and not any(table.segmentations or ()):
            if split == "validation" and config.select.metric.startswith("segm_"):
                raise ConfigError(
                    f"config.select.metric={config.select.metric!r}, but {source.title} (validation) has no masks; choose a "
                    "metric of boxes, e.g. AP"
                )
            warn(f"split {split!r} has no masks ({source.title}): its boxes are counted, segm_AP and the like are undefined")
        elif count:
            warn(f"{line}; segm_AP counts them as objects that nothing finds")


def reports(config: ConfigDict, train: Source, evals: dict[str, Source]) -> Iterator[check_data.Report | ExamplesReport]:
    """The sanity report of every split, with every file read."""
    seen: dict[bytes, tuple[str, str]] = {}
    for source in (train, *evals.values()):
        if "annotations" in source.info.meta and TARGETS[config.task] == ("boxes",):
            yield check_data.check_source(_annotated(source))
        else:
            yield check_examples(source, seen)
