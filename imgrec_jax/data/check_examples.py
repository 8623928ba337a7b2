"""Sanity report of a split whose examples carry a label or a map of classes: what can be read, what repeats, what occurs.

Boxes have a report of their own (`check.py`). Shape letters: H W image.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from imgrec_jax.data.check import Finding
from imgrec_jax.data.images import decoder_warnings
from imgrec_jax.data.progress import progress
from imgrec_jax.data.source import Source

# Kind -> whether such an example must not be trained on.
KINDS = {
    "corrupt file": True,
    "label outside the classes": True,
    "contradiction": False,  # the same pixels under two labels
    "no label": False,  # a map without a pixel that counts
    "repeated image": False,
    "in another split": False,
    "blank image": False,  # all pixels the same
}


@dataclasses.dataclass(frozen=True)
class ExamplesReport:
    """Attributes:
    name, images: of the split.
    counts: {class: examples, or pixels of a map}; unit: which of them.
    sizes: {(height, width): images}.
    findings: what is wrong, by file or position.
    """

    name: str
    images: int
    counts: dict[str, int]
    unit: str
    sizes: dict[tuple[int, int], int]
    findings: tuple[Finding, ...]

    def bad(self) -> tuple[Finding, ...]:
        """Findings that must not reach training."""
        return tuple(finding for finding in self.findings if KINDS[finding.kind])

    def table(self, limit: int = 20) -> str:
        """The report as text; at most `limit` findings of each kind are spelled out."""
        found = Counter(finding.kind for finding in self.findings)
        whole = max(self.images if self.unit == "images" else sum(self.counts.values()), 1)  # an image may have several labels
        sizes = sorted(self.sizes.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{h} x {w}" + (f" ({n:,})" if len(sizes) > 1 else "") for (h, w), n in sizes[:5])
        lines = [
            f"{self.name}: {self.images:,} images of {len(sizes)} sizes: {shown}{', ...' if len(sizes) > 5 else ''}",
            *(f"  {name:<24} {count:>12,} {self.unit} {count / whole:7.2%}" for name, count in self.counts.items()),
            "  " + ", ".join(f"{kind}: {found[kind]:,}" for kind in KINDS),
        ]
        for kind in KINDS:
            of_kind = [finding for finding in self.findings if finding.kind == kind]
            lines += [f"  {finding}" for finding in of_kind[:limit]]
            lines += [f"  ... and {len(of_kind) - limit:,} more of kind {kind!r}"] if len(of_kind) > limit else []
        return "\n".join(lines)


def check_examples(source: Source, seen: dict[bytes, tuple[str, str]]) -> ExamplesReport:
    """Reads every example of a source with labels or class maps.

    Args:
      seen: {digest of an image: (split, name)} of the splits that were checked before; this one's are added.
    """
    names, classes = source.info.meta.get("file_names"), source.info.class_names
    counts, sizes, findings = Counter[int](), Counter[tuple[int, int]](), list[Finding]()
    own: dict[bytes, tuple[str, Any]] = {}
    unit = "images"
    for index in progress(range(len(source)), f"reading {source.info.name}"):
        name = str(names[index]) if names else f"example {index}"
        try:
            with decoder_warnings() as said:
                example = source[index]
        except (ValueError, OSError) as error:
            findings.append(Finding("corrupt file", name, None, str(error)))
            continue
        if said[0].damage:
            findings.append(Finding("corrupt file", name, None, f"the decoder says: {said[0].damage}"))
        image = np.asarray(example["image"])
        sizes[(image.shape[0], image.shape[1])] += 1
        if "segmentation" in example:
            unit = "pixels"
        labels, values = _labels(example, len(classes))
        counts.update(values)
        findings += [
            Finding(kind, name, None, detail) for kind, detail in _of_one(image, labels, len(classes), unit == "pixels")
        ]
        digest = hashlib.blake2b(np.ascontiguousarray(image).tobytes() + str(image.shape).encode(), digest_size=16).digest()
        findings += _repeats(digest, name, labels, own, seen)
        own[digest] = (name, labels)
    seen |= {digest: (source.info.name, name) for digest, (name, _) in own.items()}
    named = {
        classes[k] if k < len(classes) else str(k): counts[k] for k in range(max(len(classes), max(counts, default=-1) + 1))
    }
    return ExamplesReport(source.info.name, len(source), named, unit, dict(sizes), tuple(findings))


def _labels(example: dict[str, Any], classes: int) -> tuple[tuple[int, ...], dict[int, int]]:
    """(the classes of an example, {class: how often it counts})."""
    if "labels" in example:  # several an image, and perhaps none
        labels = tuple(np.flatnonzero(np.asarray(example["labels"]) > 0).tolist())
        return labels, dict.fromkeys(labels, 1)
    if "label" in example:
        label = int(example["label"])
        return (label,), {label: 1} if label >= 0 else {}
    values = np.asarray(example["segmentation"])
    values = values[example["pixel_valid"]] if "pixel_valid" in example else values
    found, counts = np.unique(values, return_counts=True)
    return tuple(found.tolist()), {int(k): int(n) for k, n in zip(found, counts, strict=True) if k >= 0}


def _of_one(image: np.ndarray, labels: Sequence[int], classes: int, is_map: bool) -> list[tuple[str, str]]:
    """(kind, detail) of what is wrong with an example by itself."""
    found = []
    if strange := [label for label in labels if label < 0 or (classes and label >= classes)]:
        found.append(("label outside the classes", f"{strange[:5]}; expected 0..{classes - 1}"))
    if not labels and is_map:
        found.append(("no label", "no pixel of it counts"))
    if image.min() == image.max():
        found.append(("blank image", f"all pixels are {image.flat[0]}"))
    return found


def _repeats(
    digest: bytes, name: str, labels: tuple[int, ...], own: dict[bytes, tuple[str, Any]], seen: dict[bytes, tuple[str, str]]
) -> list[Finding]:
    found = []
    if digest in own:
        other, its = own[digest]
        if its == labels:
            found.append(Finding("repeated image", name, None, f"the same pixels as {other}"))
        else:
            found.append(Finding("contradiction", name, None, f"the pixels of {other}, which has {its}; this has {labels}"))
    if digest in seen:
        split, other = seen[digest]
        found.append(Finding("in another split", name, None, f"the same pixels as {other} of {split}"))
    return found
