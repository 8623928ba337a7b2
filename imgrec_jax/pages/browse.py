"""A data set before training, as a page: samples with their targets, what augmentation makes of them, what occurs how often.

Shape letters: H W image.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from imgrec_jax.data import pieces
from imgrec_jax.data.source import Source
from imgrec_jax.experiment import Experiment
from imgrec_jax.pages import examples, html, plots, split_files

SHOWN = 24  # samples of a split
LOOKED_AT = 2000  # examples that counts and sizes are of, evenly spread over a split


def write(
    experiment: Experiment, folder: Path, say: Callable[[str], None], *, split: str = "test", files: bool = False,
    limit: int | None = None, reports: Any = (),
) -> Path:  # fmt: skip
    """Writes folder/index.html and, where asked for, a split as files beside it; returns the page.

    Args:
      split: "train", "validation" or "test", of those that the config names: what is written as files.
      limit: of the files.
      reports: of `assemble.reports`, for the section on what is wrong.

    Raises:
      ValueError: for a split that the config does not name.
    """
    sources: dict[str, Source] = {"train": experiment.data.train.source}
    sources |= {name: pieces.whole(pipeline.source) for name, pipeline in experiment.data.evals.items()}
    if files:
        if split not in sources:
            raise ValueError(f"--split={split}: the config names the splits {list(sources)}")
        for path in split_files.write(sources[split], folder, split, limit):
            say(f"wrote {path}")
    names = experiment.card["class_names"]
    sections = [("Augmented training batches", _augmented(experiment, names))]
    for name, source in sources.items():
        sections.append((f"{name}: {len(source):,} examples", _split(source, names)))
    sections += [(f"Check: {report.name}", f"<pre>{html.escape(report.table())}</pre>") for report in reports]
    data = experiment.config.data
    title, under = f"Data of {data.name}", f"{experiment.config.task}, {len(names)} classes"
    page = folder / "index.html"
    html.write(page, html.page(title, under, sections))
    return page


def _is_labelled(example: Any) -> bool:
    """Whether its pictures say little when they are large."""
    return "label" in example or "labels" in example


def _spread(count: int, most: int) -> np.ndarray:
    """At most `most` positions, evenly spread over `count`."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _split(source: Source, names: list[str]) -> str:
    shown = [examples.drawn(source[n], names) for n in _spread(len(source), SHOWN).tolist()]
    counts, sizes, areas = _statistics(source, names)
    looked = min(len(source), LOOKED_AT)
    body = html.pictures(shown, large=not _is_labelled(source[0]))
    body += html.note(f"Counts below are of {'all' if looked == len(source) else f'{looked:,} evenly spread'} examples.")
    body += html.plot(plots.bars(counts, "share" if areas else "count").png, "Class histogram")
    if len(sizes) > 1:
        height, width = np.array(list(sizes.elements())).T
        body += html.plot(plots.scatter(width, height, "width", "height").png, "Image sizes in pixels")
        body += html.plot(plots.histogram(width / height, "width / height", "images").png, "Aspect ratios of images")
    else:
        (height, width), _ = sizes.most_common(1)[0]
        body += html.note(f"All images have {height} x {width} pixels.")
    if "annotations" in source.info.meta and "box_label" in source[0]:
        boxes = source.info.meta["annotations"].boxes
        w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        if len(boxes):
            body += html.plot(plots.scatter(w, h, "width", "height").png, "Box sizes in pixels")
            body += html.plot(plots.histogram(w / np.maximum(h, 1e-6), "width / height", "boxes").png, "Aspect ratios of boxes")
    return body


def _statistics(source: Source, names: list[str]) -> tuple[dict[str, float], Counter[tuple[int, int]], bool]:
    """({class: how often it occurs}, {(height, width): images}, whether it is a share of pixels)."""
    table = source.info.meta.get("annotations")
    counts, sizes = Counter[int](), Counter[tuple[int, int]]()
    if table is not None and "box_label" in source[0]:
        counts.update((table.labels - 1).tolist())
        sizes.update(map(tuple, table.sizes.tolist()))
        return {name: counts[k] for k, name in enumerate(names)}, sizes, False
    pixels = False
    for n in _spread(len(source), LOOKED_AT).tolist():
        example = source[n]
        sizes[example["image"].shape[:2]] += 1
        if "segmentation" in example:
            pixels = True
            values = np.asarray(example["segmentation"])
            values = values[example["pixel_valid"]] if "pixel_valid" in example else values  # what is void is of no class
            counts.update(dict(zip(*(part.tolist() for part in np.unique(values, return_counts=True)), strict=True)))
        elif "labels" in example:  # several an image
            counts.update(np.flatnonzero(np.asarray(example["labels"]) > 0).tolist())
        else:
            counts[int(example["label"])] += 1
    whole = max(sum(counts.values()), 1) if pixels else 1
    return {name: counts[k] / whole for k, name in enumerate(names)}, sizes, pixels


def _augmented(experiment: Experiment, names: list[str]) -> str:
    """Examples as they are, each beside what two epochs make of it."""
    pipeline = experiment.data.train
    if pipeline.is_plain:
        return html.note("This config has no augmentation: the network sees the examples as they are.")
    batch = pipeline.batch(0)
    rows = list(itertools.islice(examples.rows(batch), 8))
    later: dict[int, dict[str, Any]] = {}  # the same examples in the next epoch
    for step in range(pipeline.steps_per_epoch, min(2 * pipeline.steps_per_epoch, pipeline.steps_per_epoch + 200)):
        if {int(row["index"]) for row in rows} & set(pipeline.rows(step)[0].tolist()):
            later |= {int(row["index"]): row for row in examples.rows(pipeline.batch(step))}
    shown = []
    for row in rows:
        index = int(row["index"])
        shown.append((examples.drawn(pipeline.source[index], names)[0], f"example {index}"))
        shown.append((examples.drawn(row, names)[0], "augmented"))
        if index in later:
            shown.append((examples.drawn(later[index], names)[0], "in the next epoch"))
    return html.pictures(shown, large=not _is_labelled(rows[0]))
