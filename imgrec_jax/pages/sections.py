"""The sections of a report that look at single examples, one set for each kind of answer.

Shape letters: N examples, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from imgrec_jax import stats
from imgrec_jax.detection import errors
from imgrec_jax.inference import drawing
from imgrec_jax.inference.results import InstancesResult
from imgrec_jax.pages import evidence as looked
from imgrec_jax.pages import examples, html, plots
from imgrec_jax.pages.evidence import Evidence

SHOWN = 24
BINS = 15
Plots = dict[str, plots.Plot]  # by file name
Sections = list[tuple[str, str]]


def of(evidence: Evidence) -> tuple[Sections, Plots]:
    """(sections, plots that are also written as files) of a split."""
    first = evidence.truths[0]
    make: Callable[[Evidence, Plots], Sections] = (
        _detection if "box_label" in first else _segmentation if "segmentation" in first else _classification
    )
    made: Plots = {}
    found = make(evidence, made)
    looked_at, whole = len(evidence.indices), len(evidence.source)
    if looked_at < whole:
        said = html.note(f"Of {looked_at:,} evenly spread of the {whole:,} examples of {evidence.split}.")
        found = [(heading, said + body if body else body) for heading, body in found]
    return found, made


def _example(evidence: Evidence, n: int) -> str:
    """The n-th that was looked at by its number in the split."""
    return f"example {int(evidence.indices[n]):,}"


def _names(evidence: Evidence) -> list[str]:
    return list(evidence.source.info.class_names)


def _picked(count: int, most: int) -> list[int]:
    """Random positions, the same each time."""
    return sorted(np.random.default_rng(0).permutation(count)[:most].tolist())


def _shown(made: Plots, name: str, plot: plots.Plot, text: str) -> str:
    made[name] = plot
    return html.plot(plot.png, text)


def _classification(evidence: Evidence, made: Plots) -> Sections:
    results: list[Any] = list(evidence.results)
    names = _names(evidence)
    probs = np.stack([r.probs for r in results])
    label = np.array([int(t["label"]) for t in evidence.truths])
    said, classes = probs.argmax(1), probs.shape[1]
    names += [str(k) for k in range(len(names), classes)]
    right, confidence = said == label, probs.max(1)
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (label, said), 1)
    per_class = []
    for k in range(classes):
        hit, present, claimed = int(counts[k, k]), int(counts[k].sum()), int(counts[:, k].sum())
        interval = stats.wilson(hit, present)
        per_class.append((
            names[k], present, hit / present if present else None, *(interval or (None, None)),
            hit / claimed if claimed else None, 2 * hit / (present + claimed) if present + claimed else None,
        ))  # fmt: skip
    head = ("class", "examples", "recall", "95 % from", "to", "precision", "F1")
    positive = np.zeros(probs.shape, bool)
    positive[np.arange(len(label)), label] = True
    curve = errors.curves(probs.ravel(), positive.ravel(), len(label))
    wrong = np.flatnonzero(~right)
    worst = wrong[np.argsort(-confidence[wrong])][:SHOWN]

    def shown(n: int) -> tuple[np.ndarray, str]:
        text = f"{names[said[n]]} {confidence[n]:.1%}" + ("" if right[n] else f", is {names[label[n]]}")
        return drawing.as_rgb(results[n].image), f"{text} ({_example(evidence, n)})"

    matrix = plots.matrix(counts, names, names) if classes <= 60 else None
    return [
        (
            "Confusion matrix",
            _shown(made, "confusion", matrix, "Rows: true classes, coloured by their shares") if matrix else "",
        ),
        ("Per class", html.table(head, per_class)),
        ("Calibration", _reliability(confidence, right, made)),
        ("Precision, recall, F1", _threshold_curves(curve, made, "of a class's probability, one against all")),
        ("Most confident mistakes", html.pictures(map(shown, worst.tolist())) if len(worst) else html.note("There is none.")),
        ("Random successes", html.pictures(shown(n) for n in np.flatnonzero(right)[_picked(int(right.sum()), SHOWN)].tolist())),
    ]


def _reliability(confidence: np.ndarray, right: np.ndarray, made: Plots) -> str:
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(place, minlength=BINS)
    sums = [np.bincount(place, values, minlength=BINS) for values in (confidence, right.astype(float))]
    mean, accuracy = (total / np.maximum(count, 1) for total in sums)
    gap = float(np.abs(sums[0] - sums[1]).sum() / max(len(right), 1))
    body = _shown(made, "reliability", plots.reliability(mean, accuracy, count / max(len(right), 1)), "Reliability diagram")
    rows = [(f"{m / BINS:.2f} to {(m + 1) / BINS:.2f}", int(count[m]), mean[m], accuracy[m]) for m in np.flatnonzero(count)]
    table = html.table(("confidence", "examples", "mean confidence", "accuracy"), rows)
    return body + html.note(f"Expected calibration error {gap:.4f} over {BINS} bins.") + table


def _threshold_curves(curve: dict[str, np.ndarray], made: Plots, what: str) -> str:
    if not len(curve["threshold"]):
        return html.note("There are no scores to draw.")
    thin = np.unique(np.linspace(0, len(curve["threshold"]) - 1, 500).round().astype(int))
    best = int(curve["f1"].argmax())
    recall, precision = ({"": (curve["recall"][thin], curve["precision"][thin])}), "precision"
    body = _shown(made, "precision_recall", plots.curves(recall, "recall", precision, unit=True), "Precision over recall")
    lines = {name: (curve["threshold"][thin], curve[name][thin]) for name in ("precision", "recall", "f1")}
    body += _shown(made, "f1_threshold", plots.curves(lines, f"threshold {what}", "", unit=True), "Over the threshold")
    return body + html.note(f"The largest F1 is {curve['f1'][best]:.4f}, at a threshold of {curve['threshold'][best]:.4f}.")


def _detection(evidence: Evidence, made: Plots) -> Sections:
    results: list[Any] = list(evidence.results)
    names, threshold = _names(evidence), 0.5
    every, found = looked.detection_errors(evidence, 0.0), looked.detection_errors(evidence, threshold)
    objects = sum(int((~np.asarray(t["box_crowd"], bool)).sum()) for t in evidence.truths)
    kinds = np.concatenate([e.kind for e in every])
    scores = np.concatenate([r.scores for r in results])
    counted = kinds != errors.KINDS.index("ignored")
    curve = errors.curves(scores[counted], kinds[counted] == 0, objects)
    counts = Counter(errors.KINDS[kind] for e in found for kind in e.kind.tolist())
    counts["missed"] = sum(int(e.missed.sum()) for e in found)
    breakdown: dict[str, float] = {kind: counts[kind] for kind in (*errors.KINDS[1:6], "missed")}
    text = f"Errors among detections of at least {threshold}: {counts['correct']:,} of {objects:,} objects are found"
    explained = html.note(
        "class: right place, wrong class; localisation: right class, IoU 0.1 to 0.5; both: neither; duplicate: an object that "
        "a better box has found; background: nothing there; missed: objects that no error explains (Bolya et al. 2020, TIDE)."
    )

    def drawn(n: int) -> tuple[np.ndarray, str]:
        return _judged(results[n].above(threshold), evidence.truths[n], found[n], names), _example(evidence, n)

    weight = [2 * int((e.kind > 0).sum()) + int(e.missed.sum()) for e in found]
    worst = [n for n in np.argsort(-np.array(weight), kind="stable").tolist() if weight[n]][:12]
    legend = html.note("Green: right; red: wrong, with its kind; dashed grey words: missed objects.")
    masks = looked.mask_overlaps(evidence, threshold)
    return [
        *_masks(masks, threshold, made),
        ("Error breakdown", _shown(made, "errors", plots.bars(breakdown, "detections or objects"), text) + explained),
        ("Precision, recall, F1", _threshold_curves(curve, made, "of the score (IoU 0.5, all classes together)")),
        ("Images with the most errors", legend + html.pictures(map(drawn, worst), large=True) if worst else html.note("None.")),
        ("Random images", legend + html.pictures(map(drawn, _picked(len(results), 12)), large=True)),
    ]


def _masks(overlap: np.ndarray | None, threshold: float, made: Plots) -> Sections:
    if overlap is None or not len(overlap):
        return []
    found = overlap[overlap > 0]
    text = f"{len(found):,} of {len(overlap):,} objects are covered by a mask of their class; median IoU of these " + (
        f"{np.median(found):.3f}" if len(found) else "is not defined"
    )
    plot = plots.histogram(overlap.tolist(), f"IoU with the best mask of at least {threshold}", "objects")
    return [("Masks", _shown(made, "mask_iou", plot, text))]


def _judged(result: Any, truth: dict[str, Any], found: errors.ImageErrors, names: list[str]) -> np.ndarray:
    """The image with its detections by what they are, and the objects that were missed."""
    right, wrong, quiet = (40, 170, 80), (225, 60, 50), (190, 190, 190)
    kinds = [errors.KINDS[k] for k in found.kind.tolist()]
    colours = [right if kind == "correct" else quiet if kind == "ignored" else wrong for kind in kinds]
    texts = [
        f"{name} {score:.2f}" + ("" if kind in ("correct", "ignored") else f" {kind}")
        for name, score, kind in zip(result.names, result.scores.tolist(), kinds, strict=True)
    ]
    image = result.image
    if isinstance(result, InstancesResult):
        image = drawing.films(drawing.as_rgb(image), map(result.mask, range(len(result.masks))), colours, opacity=0.3)
    lost = np.flatnonzero(~found.found & ~np.asarray(truth["box_crowd"], bool))
    boxes = np.concatenate([np.asarray(result.boxes).reshape(-1, 4), np.asarray(truth["boxes"]).reshape(-1, 4)[lost]])
    labels = np.asarray(truth["box_label"])[lost].tolist()
    return drawing.boxes(image, boxes, [*colours, *[quiet] * len(lost)], [*texts, *(f"missed {names[k - 1]}" for k in labels)])


def _segmentation(evidence: Evidence, made: Plots) -> Sections:
    results: list[Any] = list(evidence.results)
    names, matrices = _names(evidence), np.stack(looked.confusions(evidence))
    total = matrices.sum(0)
    hits, union = np.diag(total), total.sum(0) + total.sum(1) - np.diag(total)
    iou = {names[k]: hits[k] / union[k] for k in np.flatnonzero(union)}
    truth, said = total.sum(1), total.sum(0)
    rows = [
        (names[k], int(truth[k]), iou[names[k]], *(hits[k] / of[k] if of[k] else None for of in (truth, said)))
        for k in np.flatnonzero(union)
    ]
    table = html.table(("class", "pixels", "IoU", "recall", "precision"), rows)
    inter = np.diagonal(matrices, axis1=1, axis2=2)
    unions = matrices.sum(1) + matrices.sum(2) - inter
    present = unions > 0
    image_iou = np.where(present, inter / np.maximum(unions, 1), 0).sum(1) / np.maximum(present.sum(1), 1)
    image_iou[~present.any(1)] = np.nan  # of void pixels alone
    known = image_iou[~np.isnan(image_iou)]

    def drawn(n: int) -> list[tuple[np.ndarray, str]]:
        example = {"image": results[n].image, **evidence.truths[n]}
        pair = examples.drawn(example, names)[0], results[n].draw()
        return [(pair[0], f"truth of {_example(evidence, n)}"), (pair[1], f"prediction, mean IoU {html.number(image_iou[n])}")]

    worst = np.argsort(image_iou, kind="stable")[: min(len(known), 6)].tolist()  # what is undefined is last
    matrix = plots.matrix(total, names, names) if len(names) <= 60 else None
    return [
        ("Per class", _shown(made, "iou_per_class", plots.bars(iou, "IoU"), "IoU of each class over all pixels") + table),
        (
            "Confusion matrix",
            _shown(made, "confusion", matrix, "Pixels; rows: true classes, coloured by shares") if matrix else "",
        ),
        (
            "Per image",
            _shown(
                made,
                "iou_per_image",
                plots.histogram(known.tolist(), "mean IoU of an image", "images"),
                f"Median {np.median(known):.3f}" if len(known) else "No image has a pixel that counts",
            ),
        ),  # fmt: skip
        ("Worst images", html.pictures((item for n in worst for item in drawn(n)), large=True)),
        ("Random images", html.pictures((item for n in _picked(len(results), 6) for item in drawn(n)), large=True)),
    ]
