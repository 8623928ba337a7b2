"""Where answers go: JSON lines, a COCO result file, masks, pictures and videos, scores."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from imgrec_jax.data.files import IMAGES, is_replaceable, without_links, write_whole
from imgrec_jax.inference import drawing
from imgrec_jax.inference.labels import BoxLabels, Labels
from imgrec_jax.inference.results import BoxesResult, MapResult, Result
from imgrec_jax.run.writers import emit


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
    """Writes results as they come; files appear under their names when all is written.

    Where something ends it before, the lines of --out are kept beside it as FILE.partial.
    """

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
        on_fault: Callable[[Result, ValueError], None] | None = None,
    ):
        """Args:
          out, coco, images, masks, threshold, labels: as the flags of `imgrec predict`.
          on_fault: told of an answer that cannot be drawn, whose line then names no picture; None raises the error.

        Raises:
          ValueError: for outputs that the run's task has not, that are folders, or two in one file.
        """
        task = run.config.task
        for flag, value, tasks in (
            ("--coco", coco, ("detection", "segmentation")),
            ("--save_masks", masks, ("segmentation",)),
            ("--threshold", threshold, ("detection",)),
        ):
            if value is not None and task not in tasks:
                raise ValueError(f"{flag} is for {' and '.join(tasks)}, and {run.workdir} is a run of {task}")
        self._run, self._labels, self._threshold, self._on_fault = run, labels, threshold, on_fault
        self._coco = output_file("--coco", coco) if coco else None
        self._out = output_file("--out", out) if out else None
        written = {
            "--out": self._out,
            "--coco": self._coco,
            "the score of --labels": score_file(out) if out and labels else None,
        }
        _refuse_one_file_twice({flag: path for flag, path in written.items() if path is not None})
        self._images, self._masks = (Path(p).expanduser() if p else None for p in (images, masks))
        if images and masks and is_one(images, masks):
            raise ValueError(
                f"--save_images and --save_masks are both {images}, where picture and mask have one name; give two"
            )
        for folder in (self._images, self._masks, *(p.parent for p in (self._coco, self._out) if p)):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
        self._lines = _partial(self._out).open("w", encoding="utf-8", errors="backslashreplace") if self._out else sys.stdout
        self._entries: list[dict[str, Any]] = []  # of COCO, with the position of an image in `_files` for its id
        self._files: list[str] = []
        self._written = 0
        self._names = Names()
        self._videos: dict[str, Any] = {}

    @property
    def numbered(self) -> bool:
        """Whether the ids of COCO's images are the numbers of their lines, 1, 2, ..., since their names are no numbers."""
        given = self._coco is None or isinstance(self._labels, BoxLabels)
        return not given and bool(self._files) and not ids_of_names(self._files)

    def __enter__(self) -> Writer:
        return self

    def write(self, result: Result) -> None:
        if self._threshold is not None and isinstance(result, BoxesResult):
            result = result.above(self._threshold)
        line = result.to_json()
        if self._masks is not None and isinstance(result, MapResult):
            _refuse_own_folder("--save_masks", self._masks, result)
            line |= self._drawn("mask", result, self._save_mask, self._masks)
        if self._images is not None:
            if result.video is None:
                _refuse_own_folder("--save_images", self._images, result)
            line |= self._drawn("picture", result, self._draw, self._images)
        if self._coco is not None:
            table = self._labels.annotations if isinstance(self._labels, BoxLabels) else None
            self._entries += result.to_coco(len(self._files), table.category_ids if table else self._run.category_ids)
            self._files.append(result.file)
        print(json.dumps(plain(line), ensure_ascii=False), file=self._lines, flush=self._out is None)
        self._written += 1

    def _image_ids(self) -> list[int]:
        """Of COCO, of each image: as in the labels where there are any; else the number that its file is called, as COCO's are;
        else, where names are no numbers or the same, the number of its line."""
        if isinstance(self._labels, BoxLabels):
            return [int(self._labels.annotations.image_ids[self._labels.index(file)]) for file in self._files]
        return ids_of_names(self._files) or list(range(1, len(self._files) + 1))

    def _drawn(self, what: str, result: Result, draw: Callable[[Result, Path], Path | None], folder: Path) -> dict[str, str]:
        """{what: where it is}; {} where `draw` fails, whatever it is that fails: the other answers are no worse for it."""
        try:
            path = draw(result, folder)
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            fault = ValueError(f"{result.file}: its {what} cannot be written to {folder} ({text}); its answer is kept")
            if self._on_fault is None:
                raise fault from error
            self._on_fault(result, fault)
            return {}
        return {} if path is None else {what: str(path)}

    def _save_mask(self, result: Result, folder: Path) -> Path:
        assert isinstance(result, MapResult)
        path = folder / f"{self._names.of(result.file)}.png"
        drawing.save(path, result.segmentation)
        if result.objects is not None:
            if result.objects.max(initial=0) > np.iinfo(np.uint16).max:
                raise ValueError("more objects than the 65,535 that a PNG of 16 bits can number")
            (folder / "objects").mkdir(exist_ok=True)
            drawing.save(folder / "objects" / path.name, result.objects.astype(np.uint16))
        return path

    def _draw(self, result: Result, folder: Path) -> Path | None:
        """Where the picture is, or the video that it is a frame of; None where there is no such video, which was said."""
        if isinstance(result, BoxesResult) and self._threshold is not None:
            drawn = result.draw(score=self._threshold)
        else:
            drawn = result.draw()
        if result.video is None:
            small = drawn.size < 1_000_000 or max(drawn.shape) > drawing.JPEG_SIDE
            picture = folder / f"{self._names.of(result.file)}.{'png' if small else 'jpg'}"
            drawing.save(picture, drawn)
            return picture
        path, _, rate = result.video
        video = folder / f"{self._names.of(path)}.mp4"
        if path not in self._videos:
            self._videos[path] = None
            self._videos[path] = _open_video(video, drawn.shape, rate)
        if self._videos[path] is None:
            return None
        writer, (height, width) = self._videos[path]
        frame = np.zeros((height, width, 3), np.uint8)  # captions may differ in height from frame to frame
        frame[: min(height, drawn.shape[0])] = drawn[:height, :width]
        writer.write(frame[..., ::-1])
        return video

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for writer, _ in filter(None, self._videos.values()):
            writer.release()
        ids = self._image_ids() if self._coco is not None and error is None else None
        if self._out is not None:
            self._lines.close()
            partial = _partial(self._out)
            if partial != self._out:
                if ids is not None:
                    _add_ids(partial, ids)
                if error is None:
                    partial.replace(self._out)
                elif self._written:
                    kept = self._out.with_name(f"{self._out.name}.partial")
                    partial.replace(kept)
                    emit(f"note: the {self._written:,} answers before it ended are in {kept}", sys.stderr)
                else:
                    partial.unlink(missing_ok=True)
        if self._coco is not None and ids is not None:
            entries = [{**entry, "image_id": ids[entry["image_id"]]} for entry in self._entries]
            write_whole(self._coco, lambda path: path.write_text(json.dumps(plain(entries))))


def output_file(flag: str, path: str | os.PathLike) -> Path:
    """The file that a flag says to write, looked at before there is anything to write.

    Raises:
      ValueError: for a folder.
    """
    target = without_links(Path(path).expanduser())
    if target.is_dir():
        raise ValueError(f"{flag}={path} is a folder; give the name of a file")
    return target


def is_one(a: str | os.PathLike, b: str | os.PathLike) -> bool:
    """Whether two paths are of one place."""
    return os.path.realpath(Path(a).expanduser()) == os.path.realpath(Path(b).expanduser())


def _refuse_one_file_twice(written: dict[str, Path]) -> None:
    """Raises ValueError where two outputs would be one file; a device takes any number."""
    flags: dict[str, str] = {}
    for flag, path in written.items():
        first = flags.setdefault(os.path.realpath(path), flag)
        if first != flag and is_replaceable(path):
            raise ValueError(f"{first} and {flag} are both written to {path}; give one of them another name")


def ids_of_names(files: Sequence[str]) -> list[int]:
    """The numbers that files are called, "d/000042.jpg" 42; [] where one is called otherwise, or two are called the same."""
    stems = [Path(file).stem for file in files]
    if not all(stem.isdecimal() and len(stem) < 19 for stem in stems):  # an id has 64 bits
        return []
    numbers = [int(stem) for stem in stems]
    return numbers if len(set(numbers)) == len(set(files)) else []


def _add_ids(lines: Path, ids: Sequence[int]) -> None:
    """Puts "image_id" into each JSON line of a file."""
    whole = lines.with_name(f"{lines.name}.ids")
    try:
        with lines.open(encoding="utf-8") as source, whole.open("w", encoding="utf-8") as target:
            target.writelines(f'{{"image_id": {number}, {line[1:]}' for number, line in zip(ids, source, strict=True))
        whole.replace(lines)
    finally:
        whole.unlink(missing_ok=True)


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
