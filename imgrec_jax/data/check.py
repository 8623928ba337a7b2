"""Sanity report of a detection set: bad and repeated boxes, broken files, and how often each class occurs.

Each finding names its file and annotation id. Boxes are checked on the table of annotations, without an image being read, so
training can afford it at every start; files are decoded only where asked.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imgrec_jax.data.annotations import Annotations
from imgrec_jax.data.ops.targets import bad_boxes
from imgrec_jax.data.progress import progress

KINDS = ("degenerate", "outside", "duplicate", "missing file", "corrupt file", "wrong size")
FATAL = tuple(kind for kind in KINDS if kind != "duplicate")  # a duplicate box harms, but stops nothing


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
            shown = "\n".join(f"  {finding}" for finding in bad[:5])
            raise ValueError(
                f"{self.name} has {len(bad)} errors, the first being\n{shown}\nCorrect them (--mode=check lists all), or set "
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


def _check_boxes(target: dict, size: tuple[int, int], tolerance: float) -> list[Finding]:
    findings = []
    boxes, ids, file = target["boxes"], target["box_id"], target["file_name"]
    for kind, flags in bad_boxes(boxes, size, tolerance=tolerance).items():
        for n in np.flatnonzero(flags):
            detail = f"xyxy {np.round(boxes[n], 2).tolist()} in an image of (height, width) {size}"
            findings.append(Finding(kind, file, int(ids[n]), detail))
    first: dict[tuple, int] = {}
    for n, key in enumerate(zip(map(tuple, boxes.tolist()), target["box_label"].tolist(), strict=True)):
        if key in first:
            findings.append(Finding("duplicate", file, int(ids[n]), f"same box and class as annotation {ids[first[key]]}"))
        first.setdefault(key, n)
    return findings


def check_source(source, *, decode: bool = True, tolerance: float = 1.0) -> Report:
    """Check a `DetectionSource`; with `decode`, every image is read and compared with the size that is annotated."""
    annotations = source.info.meta["annotations"]
    report = check_annotations(source.info.name, annotations, tolerance=tolerance)
    if not decode:
        return report
    findings = list(report.findings)
    for index in progress(range(len(source)), f"reading {source.info.name}"):
        file, size = annotations.file_names[index], tuple(annotations.sizes[index].tolist())
        try:
            found = source[index]["image"].shape[:2]
        except FileNotFoundError as error:
            findings.append(Finding("missing file", file, None, f"expected {error.filename}"))
        except (ValueError, OSError) as error:
            findings.append(Finding("corrupt file", file, None, str(error)))
        else:
            if found != size:
                findings.append(Finding("wrong size", file, None, f"(height, width) {found}, annotated as {size}"))
    return dataclasses.replace(report, findings=tuple(findings))
