"""Detection and segmentation with a MobileNetV1 0.75 as backbone: from random weights, and from ImageNet's by one line more.

    python experiments/024_pretrained_backbone/run.py detection --data=BCCD --weights=TFJS
    python experiments/024_pretrained_backbone/run.py segmentation --data=NUCLEI --weights=TFJS
    python experiments/024_pretrained_backbone/run.py plot

Short runs on little data, to see the start of the curve; the validation split is looked at every so many steps.
"""

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import runs  # noqa: E402

_COMMON = ("model.backbone=mobilenet_v1_075", "log.tensorboard=false", "data.test_split=", "optim.name=adamw",
           "optim.learning_rate=1e-3", "optim.weight_decay=(('kernel', 1e-2), ('.*', 0.0))", "optim.clip_norm=10.0",
           "optim.ema_decay=0.0", "data.mean=(0.5, 0.5, 0.5)", "data.std=(0.5, 0.5, 0.5)")  # fmt: skip
TASKS = {
    "detection": ("configs/bccd_faster_rcnn.py", "AP50", (
        "model.name=resnet_fpn_detector", "model.norm=batch", "optim.lr_multiplier=()", "data.min_size=(160,)",
        "data.max_size=224", "data.canvases=((160, 224),)", "data.validation_split=val[:24]", "data.batch_size=2",
        "detection.box_batch_size_per_image=32",
    )),
    "segmentation": ("configs/nuclei_unet.py", "iou", (
        "model.name=backbone_unet", "model.widths=(64, 48, 32, 16)", "data.validation_split=validation[:12]",
        "data.batch_size=4",
    )),
}  # fmt: skip
WAYS = ("random", "pretrained")


def train(arguments: argparse.Namespace) -> None:
    config, metric, own = TASKS[arguments.part]
    for seed in arguments.seeds:
        for way in WAYS:
            line = [f"pretrained.path={arguments.weights}", "pretrained.head=new"] if way == "pretrained" else []
            given = dict(override.split("=", 1) for override in (*_COMMON, *own, *line))
            given |= {"data.manual_dir": arguments.data, "train.total_steps": arguments.steps}
            given |= {"eval.every_steps": arguments.every, "select.metric": metric}
            workdir = Path(arguments.workdirs).resolve() / f"{arguments.part}_{way}_{seed}"
            record = runs.run(config, seed, workdir, [f"{key}={value}" for key, value in given.items()])
            lines = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
            curve = [(entry["step"], entry[metric]) for entry in lines if entry["split"] == "validation"]
            row = {"task": arguments.part, "way": way, "seed": seed, "metric": metric, "curve": curve}
            with (HERE / "results.jsonl").open("a") as file:
                file.write(json.dumps({**row, "seconds": record["seconds"], "flags": record["flags"]}) + "\n")
            print(json.dumps(row), flush=True)


def plot() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = runs.read(HERE / "results.jsonl")
    _, axes = pyplot.subplots(1, len(TASKS), figsize=(10, 4))
    for axis, (task, (_, metric, _)) in zip(axes, TASKS.items(), strict=True):
        for way, colour in zip(WAYS, ("C1", "C0"), strict=True):
            mine = [row for row in rows if (row["task"], row["way"]) == (task, way)]
            for n, row in enumerate(mine):
                axis.plot(
                    *zip(*row["curve"], strict=True), marker="o", color=colour, label=None if n else f"from {way} weights"
                )
        axis.set(title=task, xlabel="steps", ylabel=f"{metric} of validation")
        axis.legend()
    pyplot.tight_layout()
    pyplot.savefig(HERE / "curves.png", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*TASKS, "plot"))
    parser.add_argument("--data")
    parser.add_argument("--weights")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--every", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--workdirs", default="runs/024_pretrained_backbone")
    arguments = parser.parse_args()
    plot() if arguments.part == "plot" else train(arguments)


if __name__ == "__main__":
    main()
