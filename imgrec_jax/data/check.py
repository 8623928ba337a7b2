"""Sanity report of a detection set: bad and repeated boxes, broken files, and how often each class occurs; and the checks that
training makes at every start.

Each finding names its file and annotation id. Boxes are checked on the table of annotations, without an image being read, so
training can afford it at every start, as it can look whether the files are there and what the first of them say of their
size; files are decoded only where asked.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imgrec_jax.data.annotated import DetectionSource
from imgrec_jax.data.annotations import Annotations
from imgrec_jax.data.images import ImageSizeError, decoder_warnings, file_header, file_problem
from imgrec_jax.data.ops.geometry import box_areas
from imgrec_jax.data.ops.targets import bad_boxes
from imgrec_jax.data.progress import progress

KINDS = ("degenerate", "outside", "duplicate", "missing file", "corrupt file", "wrong size")
FATAL = tuple(kind for kind in KINDS if kind != "duplicate")  # a duplicate box harms, but stops nothing

HEADERS = 200  # of the files of a split, looked at at every start: some milliseconds


class Finding(NamedTuple):
    kind: str  # of KINDS
    file: str
    annotation: int | None  # id; None where the whole file is meant
    detail: str

    def __str__(self) -> str:
        where = f"annotation {self.annotation}: " if self.annotation is not None else ""
        return f"{self.file}: {where}{self.kind}, {self.detail}"


@dataclasses.dataclass(frozen=True)
class Report:
    name: str
    images: int
    empty_images: int
    boxes: int
    crowd: int
    class_counts: dict[str, int]
    findings: tuple[Finding, ...]

    def bad(self) -> tuple[Finding, ...]:
        """Findings that must not reach training."""
        return tuple(finding for finding in self.findings if finding.kind in FATAL)

    def table(self, limit: int = 20) -> str:
        """The report as text; at most `limit` findings of each kind are spelled out."""
        counts = Counter(finding.kind for finding in self.findings)
        lines = [
            f"{self.name}: {self.images} images ({self.empty_images} without objects), {self.boxes} boxes ({self.crowd} crowd)",
            *(f"  {name:<24} {count:>8}" for name, count in self.class_counts.items()),
            "  " + ", ".join(f"{kind}: {counts[kind]}" for kind in KINDS),
        ]
        for kind in KINDS:
            of_kind = [finding for finding in self.findings if finding.kind == kind]
            lines += [f"  {finding}" for finding in of_kind[:limit]]
            lines += [f"  ... and {len(of_kind) - limit} more of kind {kind!r}"] if len(of_kind) > limit else []
        return "\n".join(lines)

    def raise_if_bad(self) -> None:
        """Stop before training on errors.

        Raises:
          ValueError: naming the first findings and what to do.
        """
        bad = self.bad()
        if bad:
            shown = "; ".join(map(str, bad[:3]))
            raise ValueError(
                f"{self.name} has {len(bad)} errors, the first being {shown}. Correct them (--mode=check lists all), or set "
                "config.data.drop_degenerate_boxes=True to clip and drop bad boxes"
            )


def check_annotations(name: str, annotations: Annotations, paths: Sequence[Path] = (), *, tolerance: float = 1.0) -> Report:
    """Check the table; with `paths` (of image i), also that the files exist. tolerance: see `bad_boxes`."""
    findings = []
    for index in range(len(annotations)):
        target = annotations.targets(index)
        findings += _check_boxes(target, tuple(annotations.sizes[index].tolist()), tolerance)
        if paths and not paths[index].is_file():
            findings.append(Finding("missing file", target["file_name"], None, f"expected {paths[index]}"))
    counts = np.bincount(annotations.labels, minlength=len(annotations.class_names) + 1)[1:]
    return Report(
        name=name,
        images=len(annotations),
        empty_images=int((np.diff(annotations.offsets) == 0).sum()),
        boxes=len(annotations.boxes),
        crowd=int(annotations.crowd.sum()),
        class_counts=dict(zip(annotations.class_names, counts.tolist(), strict=True)),
        findings=tuple(findings),
    )


def missing_masks(name: str, annotations: Annotations) -> tuple[int, str]:
    """(how many objects, crowds aside, have no mask; a line that says so, with the first of them)."""
    drawn = annotations.segmentations or (None,) * len(annotations.boxes)
    bad = [row for row, mask in enumerate(drawn) if not mask and not annotations.crowd[row]]
    if not bad:
        return 0, ""
    image = int(np.searchsorted(annotations.offsets, bad[0], side="right")) - 1
    first = f"annotation {annotations.ids[bad[0]]} of {annotations.file_names[image]}"
    return len(bad), f"{name}: {len(bad)} of {int((~annotations.crowd).sum())} objects have no mask, the first being {first}"


def check_masks(name: str, annotations: Annotations, *, drop: bool = False) -> str:
    """What there is to say of objects that would be left out, with `drop`; "" where every object has a mask.

    Raises:
      ValueError: when an object has no mask, as a mask head would learn that it is nothing; with `drop`, when none has.
    """
    count, line = missing_masks(name, annotations)
    remedy = "draw them, or train a detector of boxes (e.g. config.model.kind=faster)"
    if count and count == int((~annotations.crowd).sum()):
        raise ValueError(f"{line}: there is nothing to learn masks from; {remedy}")
    if count and not drop:
        raise ValueError(f"{line}; {remedy}, or set config.data.drop_degenerate_boxes=True to leave such objects out")
    return f"{line}; they are left out" if count else ""


def _check_boxes(target: dict, size: tuple[int, int], tolerance: float) -> list[Finding]:
    findings = []
    boxes, ids, file = target["boxes"], target["box_id"], target["file_name"]
    for kind, flags in bad_boxes(boxes, size, tolerance=tolerance).items():
        for n in np.flatnonzero(flags):
            detail = f"xyxy {np.round(boxes[n], 2).tolist()} in an image of (height, width) {size}"
            findings.append(Finding(kind, file, int(ids[n]), detail))
    first: dict[tuple, int] = {}
    for number, key in enumerate(zip(map(tuple, boxes.tolist()), target["box_label"].tolist(), strict=True)):
        if key in first:
            findings.append(Finding("duplicate", file, int(ids[number]), f"same box and class as annotation {ids[first[key]]}"))
        first.setdefault(key, number)
    return findings


def check_source(source: DetectionSource, *, decode: bool = True, tolerance: float = 1.0) -> Report:
    """Check a `DetectionSource`; with `decode`, every image is read and compared with the size that is annotated."""
    annotations = source.info.meta["annotations"]
    report = check_annotations(source.info.name, annotations, tolerance=tolerance)
    if not decode:
        return report
    findings = list(report.findings)
    for index in progress(range(len(source)), f"reading {source.info.name}"):
        found = _read(source, index)
        findings += [Finding(found[0], annotations.file_names[index], None, found[1])] if found else []
    return dataclasses.replace(report, findings=tuple(findings))


def _read(source: DetectionSource, index: int) -> tuple[str, str] | None:
    """(kind, detail) of what is wrong with the file of an image; what else its decoder said is passed on with its name."""
    try:
        with decoder_warnings() as said:
            source[index]
    except ImageSizeError as error:
        return "wrong size", str(error)
    except FileNotFoundError as error:
        return "missing file", f"expected {source.paths[index]}" if source.paths else str(error)
    except (ValueError, OSError) as error:
        return "corrupt file", str(error)
    if said[0].damage:
        return "corrupt file", f"the decoder says: {said[0].damage}"
    if said[0].rest:
        print(f"note: {source.info.meta['annotations'].file_names[index]}: {said[0].rest}", file=sys.stderr, flush=True)
    return None


def check_files(source: DetectionSource, max_pixels: int) -> None:
    """Looks for every file of a source, and at the headers of the first HEADERS of them.

    Raises:
      FileNotFoundError: when files are missing; says how many, and names the first.
      ValueError: for a file that is no image or no regular file, or an image whose size is not the annotated one.
    """
    problems = [(path, problem) for path in source.paths if (problem := file_problem(path))]
    missing = [path for path, problem in problems if problem == "is not there"]
    if missing:
        absent = next((path.parent for path in missing if not path.parent.is_dir()), None)
        remedy = f"there is no folder {absent}: correct config.data.manual_dir or config.data.options" if absent else ""
        raise FileNotFoundError(
            f"{source.title}: {len(missing)} of {len(source.paths)} image files are missing: {_first(missing)}; "
            f"{remedy or 'put them there, or take them out of the list'}"
        )
    if problems:
        shown = _first([f"{path} {problem}" for path, problem in problems])
        raise ValueError(f"{source.title}: {len(problems)} of {len(source.paths)} image files cannot be read: {shown}")
    for index, path in enumerate(source.paths[:HEADERS]):
        source.check_size(index, file_header(path, max_pixels)[:2])


def _first(items: Sequence[object], count: int = 3) -> str:
    return ", ".join(map(str, items[:count])) + (", ..." if len(items) > count else "")


def check_counts(source: DetectionSource, max_boxes: int, *, crowds: bool = False) -> None:
    """Raises ValueError for images of more than `max_boxes` good boxes, with or without `crowds`; reads no image."""
    table = source.info.meta["annotations"]
    image_of = np.repeat(np.arange(len(table)), np.diff(table.offsets))
    inside = np.clip(np.nan_to_num(table.boxes), 0, table.sizes[image_of][:, [1, 0, 1, 0]])
    good = (crowds | ~table.crowd) & (box_areas(inside) > 0)
    counts = np.bincount(image_of[good], minlength=len(table))
    over = int((counts > max_boxes).sum())
    if over:
        most = int(counts.argmax())
        raise ValueError(
            f"{source.title}: {over} of {len(table)} images have more than config.data.max_boxes={max_boxes} objects"
            f"{' and crowds' if crowds else ''}, "
            f"{table.file_names[most]} the most, {counts[most]}; raise config.data.max_boxes, or set "
            "config.data.drop_extra_boxes=True to keep the largest"
        )
