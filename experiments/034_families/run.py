"""R-CNN to RetinaNet, FCN to U-Net: what does each step of the two families buy at equal steps? Digit scenes.

    python experiments/034_families/run.py [--quick]

Every detector of `scenes_detection` and every network of `scenes_segmentation` by its own recipe, but for 2,000 steps of 8
scenes each, three seeds. (At the length of their own recipes: 004, 005 and 027.)
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import questions as q

DETECTORS = {"rcnn": "R-CNN", "fast": "Fast R-CNN", "faster": "Faster R-CNN", "mask": "Mask R-CNN", "retina": "RetinaNet"}
NETWORKS = {"fcn32s": "FCN-32s", "fcn16s": "FCN-16s", "fcn8s": "FCN-8s", "unet": "U-Net"}
STEPS = 2000
COMMON = {"train.total_steps": STEPS, "eval.every_steps": STEPS, "checkpoint.every_steps": 500, "log.pictures": False}
FOUND = ("AP", "AP50", "AR100", "segm_AP")
COVERED = ("mean_iou", "pixel_accuracy")


def _sweep(config: str, variant: str, metrics: tuple[str, ...]) -> q.Sweep:
    quick = {"data.name": "digit_scenes/tiny", "train.total_steps": 20, "eval.every_steps": 20}
    return q.Sweep(variant, f"{config}:{variant}", {}, COMMON, quick, metrics)


SWEEPS = [
    *(_sweep("scenes_detection", variant, FOUND) for variant in DETECTORS),
    *(_sweep("scenes_segmentation", variant, COVERED) for variant in NETWORKS),
]


def answer(records: list[dict], folder: Path) -> str:
    tables = []
    for names, metrics in ((DETECTORS, FOUND), (NETWORKS, COVERED)):
        rows = []
        for variant, name in names.items():
            mine = q.of(records, variant)
            if mine:
                cells = [q.percent(mine, "best_test", m) if m in mine[0]["best_test"] else "" for m in metrics]
                rows.append([name, *cells, f"{_minutes(mine):.1f}", str(len(mine))])
        tables.append(q.markdown(["", *(f"test {m}, %" for m in metrics), "minutes", "seeds"], rows))
    made, axes = q.figure(2, 4.4)
    for place, names, metric in ((axes[0], DETECTORS, "AP"), (axes[1], NETWORKS, "mean_iou")):
        for variant, name in names.items():
            if mine := q.of(records, variant):
                values = [100 * record["best_test"][metric] for record in mine]
                place.plot([_minutes(mine)] * len(values), values, "o", label=name)
        place.set(xlabel="minutes, of the fastest run", ylabel=f"test {metric}, %")
        place.legend(fontsize="small")
    q.save(made, folder / "plot.png")
    cores = max(r["cores"] for r in records)
    text = f"Minutes are those of the whole program, of the fastest run, on {cores} core{'s' * (cores > 1)}, a run at a time."
    return "\n\n".join([*tables, text])


def _minutes(records: list[dict]) -> float:
    """Of the fastest run: what else the machine did slowed some of the others."""
    return min(record["seconds"] for record in records) / 60


if __name__ == "__main__":
    q.ask(__file__, __doc__, SWEEPS, answer, seeds=3)
