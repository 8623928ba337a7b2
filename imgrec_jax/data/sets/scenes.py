"""Opens and prepares digit scenes; what a scene is, `scene_drawing.py` says."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from imgrec_jax.data.annotated import DetectionSource, open_prepared
from imgrec_jax.data.annotations import Annotations, from_images
from imgrec_jax.data.files import write_whole
from imgrec_jax.data.progress import progress
from imgrec_jax.data.records import record_format
from imgrec_jax.data.sets import mnist
from imgrec_jax.data.sets import scene_drawing as drawing
from imgrec_jax.data.sets.tfds import download_and_prepare
from imgrec_jax.data.source import ArraySource, Request, Source, parse_split


def open_scenes(request: Request) -> Source:
    """digit_scenes/PRESET, made of MNIST's digits where it is not there."""
    preset = request.name.partition("/")[2] or "default"
    load = lambda: mnist.load_arrays(request.data_dir, request.manual_dir)  # noqa: E731
    if request.targets != ("label",):
        return open_source(request.split, request.data_dir, load, preset=preset, targets=request.targets)
    if preset in drawing.PRESETS and not drawing.PRESETS[preset].single:
        single = sorted(name for name, options in drawing.PRESETS.items() if options.single)
        raise ValueError(f"digit scenes {preset!r} hold several digits and have no class; classification takes {single}")
    return _classes(open_source(request.split, request.data_dir, load, preset=preset))


def _classes(scenes: DetectionSource) -> ArraySource:
    """Scenes of one digit each with its class; the boxes stay in `info.meta["annotations"]`."""
    found = [scenes[index] for index in range(len(scenes))]
    label = np.array([int(example["box_label"][0]) - 1 for example in found], np.int64)
    return ArraySource({"image": np.stack([example["image"] for example in found]), "label": label}, scenes.info)


def open_source(
    split: str,
    data_dir: str | Path,
    load_digits: Callable[[], dict],
    *,
    preset: str = "default",
    targets: Sequence[str] = ("boxes",),
) -> DetectionSource:
    """Digit scenes of a split such as "train" or "test[:100]", made first where they are not there; images stay in memory.

    They are kept in `data_dir` as the TFDS set `digit_scenes/<preset>` where tfds is installed, else as one npz per split,
    with the same pixels in the same order. load_digits() -> {"train": (images uint8 [n, 28, 28], labels [n]), "test": ...}.

    Raises:
      ValueError: on an unknown preset or split.
    """
    base, _, _ = parse_split(split)
    if preset not in drawing.PRESETS or base not in drawing.SPLITS:
        raise ValueError(
            f"digit scenes {preset!r}, split {split!r}: expected one of {sorted(drawing.PRESETS)} and of {drawing.SPLITS}"
        )
    if importlib.util.find_spec("tensorflow_datasets"):
        name = prepare(data_dir, load_digits, preset=preset)
        return open_prepared(name, split, Path(data_dir), targets=targets, in_memory=True)
    return _open_npz(base, Path(data_dir), load_digits, preset, targets).subset(split)


def prepare(data_dir: str | Path, load_digits: Callable[[], dict], *, preset: str = "default") -> str:
    """Write `digit_scenes/<preset>` unless it is there; the name that `open_prepared` takes."""
    name = f"digit_scenes/{preset}:{drawing.VERSION}"
    if not (Path(data_dir) / name.replace(":", "/") / "dataset_info.json").exists():
        from imgrec_jax.data.builders.digit_scenes import DigitScenes

        builder = DigitScenes(config=preset, load_digits=load_digits, data_dir=data_dir, file_format=record_format())
        download_and_prepare(builder)
    return name


def _open_npz(split: str, data_dir: Path, load_digits: Callable[[], dict], preset: str, targets) -> DetectionSource:
    folder = data_dir / "digit_scenes" / preset / drawing.VERSION
    pixels, table = folder / f"{split}.npz", folder / f"annotations-{split}.npz"
    if not (pixels.exists() and table.exists()):
        options = drawing.PRESETS[preset]
        images, labels = drawing.digits_of_split(load_digits(), split)
        steps = progress(range(getattr(options, split)), f"making digit scenes {preset} {split}")
        made = [drawing.make_scene(images, labels, options, split, index) for index in steps]
        folder.mkdir(parents=True, exist_ok=True)
        rows = [drawing.describe(scene, index) for index, scene in enumerate(made)]
        from_images(rows, class_names=drawing.CLASS_NAMES, category_ids=drawing.CATEGORY_IDS).save(table)
        image, instances = [scene.image for scene in made], [scene.instances for scene in made]
        write_whole(pixels, lambda partial: np.savez(partial, image=image, instances=instances))
    with np.load(pixels) as file:
        arrays = {name: file[name] for name in file.files}
    annotations = Annotations.load(table, masks="boxes" not in targets or len(targets) > 1)
    return DetectionSource(
        f"digit_scenes/{preset} {split}",
        annotations,
        lambda index: {name: array[index] for name, array in arrays.items()},
        targets,
    )
