"""TFDS builder `digit_scenes`: see `imgrec_jax.data.sets.scene_drawing` for what a scene is."""

import dataclasses
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import tensorflow_datasets as tfds

from imgrec_jax.data.progress import progress
from imgrec_jax.data.sets import scene_drawing as scenes

# Noise does not compress: run lengths alone are as small as a search for repeats, and twice as fast to read.
ENCODING = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]


@dataclasses.dataclass
class DigitScenesConfig(tfds.core.BuilderConfig):
    options: scenes.SceneOptions = scenes.SceneOptions()


class DigitScenes(tfds.core.GeneratorBasedBuilder):
    """Digit scenes. `load_digits` gives {"train": (images, labels), "test": ...} of MNIST; it is called to prepare only."""

    VERSION = tfds.core.Version(scenes.VERSION)
    RELEASE_NOTES = {
        "1.0.0": "First release.",
        "1.1.0": "10,000 training scenes; the first 4,000 and the other splits are unchanged.",
    }
    BUILDER_CONFIGS = [DigitScenesConfig(name=name, options=options) for name, options in scenes.PRESETS.items()]

    def __init__(self, *, load_digits: Callable[[], dict] | None = None, **kwargs):
        self._load_digits = load_digits
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        side = self.builder_config.options.side
        features = {
            "image": tfds.features.Image(shape=(side, side, 3), encoding_format="png"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "objects": tfds.features.Sequence(
                {
                    "id": np.int64,
                    "area": np.int64,
                    "bbox": tfds.features.BBoxFeature(),
                    "label": tfds.features.ClassLabel(names=scenes.CLASS_NAMES),
                    "is_crowd": np.bool_,
                }
            ),
            # n + 1 where the n-th of `objects` is visible; and digit + 1, or 0 for background
            "instances": tfds.features.Image(shape=(side, side, 1), encoding_format="png"),
            "segmentation": tfds.features.Image(shape=(side, side, 1), encoding_format="png"),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            description=scenes.__doc__,
            homepage="http://yann.lecun.com/exdb/mnist/",
            metadata=tfds.core.MetadataDict(category_ids=list(scenes.CATEGORY_IDS)),
            disable_shuffling=True,  # record i is scene i
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        if self._load_digits is None:
            raise ValueError("digit_scenes: give DigitScenes(load_digits=...) to prepare it, e.g. mnist.load_arrays")
        digits = self._load_digits()
        return {split: self._generate_examples(digits, split) for split in scenes.SPLITS}

    def _generate_examples(self, digits: dict, split: str) -> Iterator[tuple[int, dict]]:
        options = self.builder_config.options
        images, labels = scenes.digits_of_split(digits, split)
        first_id = 1
        for index in progress(range(getattr(options, split)), f"making digit scenes, {split}"):
            scene = scenes.make_scene(images, labels, options, split, index)
            yield index, _example(scene, index, first_id)
            first_id += len(scene.boxes)


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image, ENCODING)[1].tobytes()


def _example(scene: scenes.Scene, index: int, first_id: int) -> dict:
    side = scene.image.shape[0]
    areas = np.bincount(scene.instances.reshape(-1), minlength=len(scene.boxes) + 1)[1:]
    objects = [
        {
            "id": first_id + n,
            "area": int(areas[n]),
            "bbox": tfds.features.BBox(ymin=y1 / side, xmin=x1 / side, ymax=y2 / side, xmax=x2 / side),
            "label": int(scene.labels[n]) - 1,
            "is_crowd": False,
        }
        for n, (x1, y1, x2, y2) in enumerate(scene.boxes.tolist())
    ]
    return {
        "image": _png(scene.image[..., ::-1]),
        "image/filename": scenes.file_name(index),
        "image/id": index + 1,
        "objects": objects,
        "instances": _png(scene.instances),
        "segmentation": _png(scene.segmentation),
    }
