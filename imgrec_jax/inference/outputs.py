"""Where answers go: JSON lines, a COCO result file, masks, pictures and videos, scores."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from imgrec_jax.data.files import IMAGES, is_replaceable, without_links, write_whole
from imgrec_jax.inference import drawing
from imgrec_jax.inference.labels import BoxLabels, Labels
from imgrec_jax.inference.results import BoxesResult, MapResult, Result


def plain(value: Any) -> Any:
    """Numpy values as those of JSON, which has no NaN: what is undefined becomes null."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Writer:
    """Writes results as they come; files appear under their names when all is written."""

    def __init__(
        self,
        run: Any,
        *,
        out: str | None = None,
        coco: str | None = None,
        images: str | None = None,
        masks: str | None = None,
        threshold: float | None = None,
        labels: Labels | None = None,
    ):
        """Args: as the flags of `imgrec predict`.

        Raises:
          ValueError: for outputs that the run's task has not.
        """
        task = run.config.task
        for flag, value, tasks in (
            ("--coco", coco, ("detection", "segmentation")),
            ("--save_masks", masks, ("segmentation",)),
            ("--threshold", threshold, ("detection",)),
        ):
            if value is not None and task not in tasks:
                raise ValueError(f"{flag} is for {' and '.join(tasks)}, and {run.workdir} is a run of {task}")
        self._run, self._labels, self._threshold = run, labels, threshold
        self._coco, self._out = (without_links(Path(p).expanduser()) if p else None for p in (coco, out))
        self._images, self._masks = (Path(p).expanduser() if p else None for p in (images, masks))
        for folder in (self._images, self._masks, *(p.parent for p in (self._coco, self._out) if p)):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        # A name of a file need not be UTF-8: what is not is escaped.
        if self._out is None and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        self._lines = _partial(self._out).open("w", encoding="utf-8", errors="backslashreplace") if self._out else sys.stdout
        self._entries: list[dict[str, Any]] = []
        self._names, self._count = Names(), 0
        self._ids: dict[int, str] = {}  # of COCO images -> their file
        self._videos: dict[str, Any] = {}

    def __enter__(self) -> Writer:
        return self

    def write(self, result: Result) -> None:
        self._count += 1
        if self._threshold is not None and isinstance(result, BoxesResult):
            result = result.above(self._threshold)
        line = result.to_json()
        if self._masks is not None and isinstance(result, MapResult):
            _refuse_own_folder("--save_masks", self._masks, result)
            path = self._masks / f"{self._names.of(result.file)}.png"
            drawing.save(path, result.segmentation)
            line["mask"] = str(path)
        if self._images is not None:
            line["picture"] = str(self._draw(result, self._images))
        print(json.dumps(plain(line), ensure_ascii=False), file=self._lines, flush=self._out is None)
        if self._coco is not None:
            self._entries += result.to_coco(*self._coco_numbers(result.file))

    def _coco_numbers(self, file: str) -> tuple[int, tuple[int, ...]]:
        """(image id, category ids): those of the labels where there are any; else the number that a file is called, as COCO's
        are, or which image it is."""
        if isinstance(self._labels, BoxLabels):
            table = self._labels.annotations
            return int(table.image_ids[self._labels.index(file)]), table.category_ids
        stem = Path(file).stem
        number = int(stem) if stem.isdecimal() else self._count
        if self._ids.setdefault(number, file) != file:
            raise ValueError(f"--coco: {self._ids[number]} and {file} would both be image {number}; predict on them one by one")
        return number, self._run.category_ids

    def _draw(self, result: Result, folder: Path) -> Path:
        """Where the picture is, or the video that it is a frame of."""
        drawn = result.draw()
        if result.video is None:
            _refuse_own_folder("--save_images", folder, result)
            picture = folder / f"{self._names.of(result.file)}.{'png' if drawn.size < 1_000_000 else 'jpg'}"
            drawing.save(picture, drawn)
            return picture
        path, _, rate = result.video
        video = folder / f"{self._names.of(path)}.mp4"
        if path not in self._videos:
            self._videos[path] = _open_video(video, drawn.shape, rate)
        writer, (height, width) = self._videos[path]
        frame = np.zeros((height, width, 3), np.uint8)  # captions may differ in height from frame to frame
        frame[: min(height, drawn.shape[0])] = drawn[:height, :width]
        writer.write(frame[..., ::-1])
        return video

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for writer, _ in self._videos.values():
            writer.release()
        if self._out is not None:
            self._lines.close()
            partial = _partial(self._out)
            if partial != self._out:
                partial.replace(self._out) if error is None else partial.unlink(missing_ok=True)
        if self._coco is not None and error is None:
            write_whole(self._coco, lambda path: path.write_text(json.dumps(plain(self._entries))))


def _refuse_own_folder(flag: str, folder: Path, result: Result) -> None:
    """Raises ValueError where an answer could overwrite the image that it is of, or one beside it."""
    if result.video is None and Path(result.file).exists() and Path(result.file).resolve().parent == folder.resolve():
        raise ValueError(f"{flag}={folder} is the folder of the images; give another, so that none is overwritten")


def _partial(path: Path) -> Path:
    """Where a file is written until it is whole; what is no file, itself."""
    if not is_replaceable(path):
        return path
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def _open_video(path: Path, shape: tuple[int, ...], rate: float) -> tuple[Any, tuple[int, int]]:
    import cv2

    height, width = shape[0] + shape[0] % 2, shape[1] - shape[1] % 2  # the codec takes even sides
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), rate, (width, height))
    if not writer.isOpened():
        raise ValueError(f"{path}: this OpenCV cannot write videos")
    return writer, (height, width)


class Names:
    """Names of output files: that of the image, with a number where another image of that name came before."""

    def __init__(self) -> None:
        self._of: dict[str, str] = {}
        self._taken: set[str] = set()

    def of(self, file: str) -> str:
        """The same for the same file."""
        if file not in self._of:
            name = Path(file).name
            name = Path(name).stem if name.lower().endswith(IMAGES) else name
            name = "".join("_" if c in '/\\:*?"<>|[]#' or ord(c) < 32 else c for c in name).strip(". ")[:150] or "image"
            free, number = name, 1
            while free.casefold() in self._taken:  # on some systems X.png is x.png
                number += 1
                free = f"{name}_{number}"
            self._of[file] = free
            self._taken.add(free.casefold())
        return self._of[file]


def score_table(score: dict[str, Any], count: int) -> str:
    """The numbers of a score, one a line."""
    numbers = {name: value for name, value in score.items() if isinstance(value, int | float)}
    return "\n".join([f"score over {count:,} images:", *(f"  {name:<26}{value}" for name, value in numbers.items())])


def score_file(out: str | os.PathLike) -> Path:
    """answers.jsonl -> answers.score.json beside it."""
    return Path(out).expanduser().with_suffix(".score.json")


def write_score(out: str | os.PathLike, score: dict[str, Any]) -> None:
    write_whole(score_file(out), lambda path: path.write_text(json.dumps(plain(score), indent=1) + "\n"))
