"""External proposals: selective search, computed once per data set, kept beside it in shards, resumable.

Uijlings et al., "Selective Search for Object Recognition", IJCV 2013, as OpenCV's contrib module `ximgproc` has it. R-CNN
and Fast R-CNN take these boxes in place of a region proposal network.

Shape letters: H W image, P proposals of one image.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import sys
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from imgrec_jax.data.files import write_whole
from imgrec_jax.data.ops.geometry import Example, Op
from imgrec_jax.data.ops.pixels import as_image, white
from imgrec_jax.data.progress import progress
from imgrec_jax.data.source import Source

SPACES = ("hsv", "lab", "rgb")
SHARD = 250  # images per file, and the most that an interruption loses


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """The defaults are OpenCV's fast mode.

    spaces: colour spaces to segment in, of "hsv", "lab", "rgb". scales: k of Felzenszwalb's segmentation; larger gives larger
    regions. sigma: blur before it. min_region: fewest pixels of a first region; lower it where objects are small. min_side:
    shortest side kept, pixels. max_overlap: a box is left out where one before it has a larger IoU with it; 1 keeps all.
    max_proposals: the first P are kept.
    """

    spaces: tuple[str, ...] = ("hsv", "lab")
    scales: tuple[float, ...] = (150, 300, 450)
    sigma: float = 0.8
    min_region: int = 100
    min_side: float = 4.0
    max_overlap: float = 1.0
    max_proposals: int = 2000

    def __post_init__(self):
        unknown = sorted(set(self.spaces) - set(SPACES))
        if unknown:
            raise ValueError(f"spaces={self.spaces} has unknown ones: {unknown}; choose from {SPACES}")


_STRATEGIES = (("Color", "Fill", "Texture", "Size"), ("Fill", "Texture", "Size"))  # of the fast mode


def selective_search(image: np.ndarray, options: SearchOptions = SearchOptions()) -> np.ndarray:
    """xyxy float32 [P, 4] of an RGB image [H, W, 3], without repeats; one of floats is searched as the uint8 that it is near.

    OpenCV ranks by position in the hierarchy times C's rand(), so that its order differs from run to run. Here boxes that more
    of the hierarchies hold come first and, among those, larger ones; the set of boxes is OpenCV's.

    Raises:
      ImportError: when OpenCV was built without contrib.
    """
    import cv2

    if not hasattr(cv2, "ximgproc"):
        raise ImportError(
            "selective search is in OpenCV's contrib modules, which this OpenCV lacks: pip uninstall opencv-python-headless "
            "opencv-python, then pip install opencv-contrib-python-headless"
        )
    # OpenCV's scales and histograms are made for 0..255
    image = image if image.dtype == np.uint8 else as_image(image * (255 / white(image.dtype)), np.dtype(np.uint8))
    base = np.ascontiguousarray(image)
    conversion = {"hsv": cv2.COLOR_RGB2HSV, "lab": cv2.COLOR_RGB2Lab}
    found = [np.zeros((0, 4), np.int32)]
    for space in options.spaces:
        converted = cv2.cvtColor(base, conversion[space]) if space in conversion else base
        hierarchies = itertools.product(options.scales, _STRATEGIES)
        found += [np.unique(_hierarchy(base, converted, scale, names, options), axis=0) for scale, names in hierarchies]
    boxes, votes = np.unique(np.concatenate(found), axis=0, return_counts=True)
    boxes = boxes[np.lexsort((-boxes[:, 2] * boxes[:, 3], -votes))].astype(np.float32)
    boxes = boxes[(boxes[:, 2:] >= options.min_side).all(1)]
    boxes = _thin_out(boxes, options.max_overlap)[: options.max_proposals]
    boxes[:, 2:] += boxes[:, :2]  # xywh -> xyxy
    return boxes


def _hierarchy(base: np.ndarray, image: np.ndarray, scale: float, names: tuple, options: SearchOptions) -> np.ndarray:
    """All regions of one hierarchy, xywh int [R, 4]: `image` segmented, then merged by the similarities `names`."""
    import cv2

    segmentation = cv2.ximgproc.segmentation
    search = segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(base)
    search.addImage(image)
    search.addGraphSegmentation(segmentation.createGraphSegmentation(options.sigma, scale, options.min_region))
    parts = [getattr(segmentation, f"createSelectiveSearchSegmentationStrategy{name}")() for name in names]
    search.addStrategy(segmentation.createSelectiveSearchSegmentationStrategyMultiple(*parts))
    return np.asarray(search.process()).reshape(-1, 4)


def _thin_out(xywh: np.ndarray, max_overlap: float) -> np.ndarray:
    """Without boxes whose IoU with an earlier kept one exceeds `max_overlap`."""
    from pycocotools import mask as coco_mask

    if max_overlap >= 1 or not len(xywh):
        return xywh
    iou = coco_mask.iou(xywh.astype(np.float64), xywh.astype(np.float64), [0] * len(xywh))
    keep = np.ones(len(xywh), np.bool_)
    for n in range(len(xywh)):
        if keep[n]:
            keep[n + 1 :] &= iou[n, n + 1 :] <= max_overlap
    return xywh[keep]


def search_where_absent(options: SearchOptions) -> Op:
    """Searches the image of an example that brings no proposals: of a prediction, where no table was made beforehand."""

    def op(example: Example, rng: np.random.Generator) -> Example:
        return example if "proposals" in example else {**example, "proposals": selective_search(example["image"], options)}

    return op


class ProposalTable:
    """Proposals of a whole split: `table[i]` is float32 [P, 4] of image i, in pixels of the original image."""

    def __init__(self, boxes: np.ndarray, offsets: np.ndarray):
        self._boxes, self._offsets = boxes, offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self._boxes[self._offsets[index] : self._offsets[index + 1]]


def compute(
    source: Source,
    folder: str | Path,
    *,
    options: SearchOptions = SearchOptions(),
    search: Callable[[np.ndarray, SearchOptions], np.ndarray] = selective_search,
    threads: int = 2,
) -> ProposalTable:
    """Proposals of every image of `source`, from `folder` as far as they are there, else computed and kept there.

    The shards lie in a subfolder named after the options and the images, so other options never read these. A run that was
    stopped goes on at the first shard that is missing.
    """
    folder = Path(folder) / _fingerprint(source, options)
    paths = [folder / f"{start:07d}.npz" for start in range(0, len(source), SHARD)]
    shards = [_load(path) for path in paths]
    missing = [(path, number * SHARD) for number, (path, shard) in enumerate(zip(paths, shards, strict=True)) if shard is None]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "options.json", lambda path: path.write_text(json.dumps(dataclasses.asdict(options), indent=1)))
        todo = [(path, range(start, min(start + SHARD, len(source)))) for path, start in missing]
        total = sum(len(indices) for _, indices in todo)
        done = progress(range(total), f"selective search of {source.info.name}, {total} of {len(source)} images")
        with ThreadPoolExecutor(threads) as pool:  # OpenCV releases the lock
            for path, indices in todo:
                found = []
                for boxes in pool.map(lambda index: search(source[index]["image"], options), indices):
                    found.append(boxes)
                    next(done, None)
                _save(path, found)
        next(done, None)
    whole = [shard or _load(path) or {} for path, shard in zip(paths, shards, strict=True)]
    counts = np.concatenate([shard["counts"] for shard in whole]) if whole else np.zeros(0, np.int64)
    boxes = np.concatenate([shard["boxes"] for shard in whole]) if whole else np.zeros((0, 4), np.float32)
    return ProposalTable(boxes, np.concatenate([[0], np.cumsum(counts)]))


def _fingerprint(source, options: SearchOptions) -> str:
    annotations = source.info.meta["annotations"]
    # Of sets in other places with the same names and sizes, the identity tells which files they are.
    described = json.dumps(
        [dataclasses.asdict(options), list(annotations.file_names), annotations.sizes.tolist(), source.info.identity]
    )
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _load(path: Path) -> dict[str, np.ndarray] | None:
    """A shard; None for one that is not there, or damaged."""
    try:
        with np.load(path) as shard:
            return {name: shard[name] for name in ("boxes", "counts")}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        print(f"note: {path} is damaged ({error}); its images are searched again", file=sys.stderr, flush=True)
        return None


def _save(path: Path, found: list[np.ndarray]) -> None:
    boxes, counts = np.concatenate(found), np.array([len(boxes) for boxes in found])
    write_whole(path, lambda partial: np.savez(partial, boxes=boxes, counts=counts))


class ProposalSource:
    """A source whose examples carry "proposals" float32 [P, 4] from a table."""

    def __init__(self, source, table: ProposalTable):
        if len(source) != len(table):
            raise ValueError(
                f"{source.info.name} has {len(source)} images, the table of proposals {len(table)}; compute it again"
            )
        self._source, self._table, self.info = source, table, source.info

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict:
        return {**self._source[index], "proposals": self._table[index]}


def recall(source, table: ProposalTable, *, iou_threshold: float = 0.5, limit: int | None = None) -> float:
    """Share of objects (no crowds) that one of the first `limit` proposals of their image covers by IoU >= the threshold."""
    from pycocotools import mask as coco_mask

    def xywh(boxes: np.ndarray) -> np.ndarray:
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)

    annotations, covered, total = source.info.meta["annotations"], 0, 0
    for index in range(len(table)):
        target = annotations.targets(index)
        boxes, proposals = target["boxes"][~target["box_crowd"]], table[index][:limit]
        total += len(boxes)
        if len(boxes) and len(proposals):
            iou = coco_mask.iou(xywh(proposals), xywh(boxes), [0] * len(boxes))
            covered += int((iou.max(0) >= iou_threshold).sum())
    return covered / total if total else float("nan")
