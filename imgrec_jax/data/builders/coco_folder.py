"""TFDS builder `coco_folder`: any annotated folder (`FolderSplit`), with the features of `coco/2017` and masks.

Beside coco/2017 it keeps `objects/segmentation`, COCO's compressed run lengths (b"" without a mask), and float areas.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds

from imgrec_jax.data.annotated import FolderSplit
from imgrec_jax.data.annotations import to_run_lengths
from imgrec_jax.data.progress import progress


class CocoFolder(tfds.core.GeneratorBasedBuilder):
    """An annotated folder under the config name `dataset`; `splits` are its splits, whose images are copied as they are."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def __init__(self, *, dataset: str, splits: Mapping[str, FolderSplit], **kwargs):
        self._splits = splits
        kwargs["config"] = tfds.core.BuilderConfig(name=dataset, description=f"Annotated folder {dataset}.")
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        annotations = next(iter(self._splits.values())).annotations
        objects = {
            "id": np.int64,
            "area": np.float32,
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=annotations.class_names),
            "is_crowd": np.bool_,
            "segmentation": tfds.features.Text(),
        }
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "objects": tfds.features.Sequence(objects),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            description=__doc__,
            homepage="https://cocodataset.org/#format-data",
            metadata=tfds.core.MetadataDict(category_ids=list(annotations.category_ids)),
            disable_shuffling=True,  # record i is image i of the annotations
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {name: self._generate_examples(name, folder) for name, folder in self._splits.items()}

    def _generate_examples(self, name: str, folder: FolderSplit) -> Iterator[tuple[int, dict]]:
        for index in progress(range(len(folder.paths)), f"preparing {self.builder_config.name} {name}"):
            yield index, _example(folder, index)


def _example(folder: FolderSplit, index: int) -> dict:
    annotations = folder.annotations
    target = annotations.targets(index)
    height, width = (int(v) for v in annotations.sizes[index])
    first = int(annotations.offsets[index])
    # TFDS refuses a box outside 0..1; annotators' rounding reaches over the border by a fraction of a pixel.
    boxes = np.clip(target["boxes"].astype(np.float64) / [width, height, width, height], 0, 1)
    objects = []
    for n, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        segmentation = annotations.segmentations[first + n] if annotations.segmentations is not None else None
        run_lengths = to_run_lengths(segmentation, height, width)
        objects.append(
            {
                "id": int(target["box_id"][n]),
                "area": float(annotations.areas[first + n]),
                "bbox": tfds.features.BBox(ymin=y1, xmin=x1, ymax=y2, xmax=x2),
                "label": int(target["box_label"][n]) - 1,
                "is_crowd": bool(target["box_crowd"][n]),
                "segmentation": run_lengths["counts"] if run_lengths else b"",
            }
        )
    return {
        "image": folder.paths[index].read_bytes(),
        "image/filename": target["file_name"],
        "image/id": target["image_id"],
        "objects": objects,
    }
