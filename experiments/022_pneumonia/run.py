"""Pneumonia in chest X-rays of 28 x 28 pixels (PneumoniaMNIST): the ConvNet of configs/medical_cnn.py and a ResNet-18.

    python experiments/022_pneumonia/run.py look --data=FILE.npz     recipes by validation; the test split is not read
    python experiments/022_pneumonia/run.py final --data=FILE.npz    the chosen recipe of each network, seeds 0 to 4
    python experiments/022_pneumonia/run.py table

The epoch is that of the best validation AUC, and the threshold is Youden's on the validation split.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import runs  # noqa: E402

_TUNED = ["data.train_ops.random_affine.size=(64, 64)", "data.eval_ops.resize.size=(64, 64)", "eval.intervals=true",
          "select.metric=auc", "eval.every_epochs=1.0"]  # fmt: skip
NETWORKS = {
    "ConvNet": ["model.name=wide_cnn", "model.dropout=0.3"],
    "ResNet-18": ["model.name=resnet18"],
    # ImageNet's weights, images of 64 x 64.
    "EfficientNet-Lite0": [*_TUNED],
    "MobileNetV1 0.75": [*_TUNED, "model.name=mobilenet_v1_075"],  # and the weights of --tfjs
}
CONFIGS = dict.fromkeys(("EfficientNet-Lite0", "MobileNetV1 0.75"), "configs/transfer.py")  # of the others: medical_cnn
_CYCLE = ["optim.name=adamw", "optim.weight_decay=(('kernel', 0.05), ('.*', 0.0))", "schedule.name=one_cycle",
          "optim.ema_decay=0.99", "select.patience=None"]  # fmt: skip
_MOVED = ["data.train_ops.random_affine.rotate=15.0", "data.train_ops.random_affine.scale=(0.85, 1.15)",
          "data.train_ops.random_affine.translate=0.1", "data.train_ops.random_affine.flip=0.5"]  # fmt: skip
_LIGHT = ["data.train_ops.colour_jitter={'brightness': 0.3, 'contrast': 0.4}"]
_EQUAL = [
    f"data.{ops}.equalise={{'op': '{HERE}/ops.py:equalise', 'before': 'random_affine'}}" for ops in ("train_ops", "eval_ops")
]
_EVEN = ["data.balance=1.0"]
_SOFT = ["loss.label_smoothing=0.1"]
RECIPES = {
    "as the config": [],
    "moved": [*_CYCLE, *_MOVED, *_SOFT],
    "moved, light": [*_CYCLE, *_MOVED, *_SOFT, *_LIGHT],
    "moved, light, even": [*_CYCLE, *_MOVED, *_SOFT, *_LIGHT, *_EVEN],
    "equalised, moved, even": [*_CYCLE, *_MOVED, *_SOFT, *_EVEN, *_EQUAL],
    "equalised, moved, light, even": [*_CYCLE, *_MOVED, *_SOFT, *_LIGHT, *_EVEN, *_EQUAL],
    # For pretrained weights, whose config has a rate and a decay of its own.
    "tuned: moved, light": ["optim.ema_decay=0.99", *_MOVED, *_LIGHT, *_SOFT],
    "tuned: moved, light, even": ["optim.ema_decay=0.99", *_MOVED, *_LIGHT, *_SOFT, *_EVEN],
    "tuned: equalised, moved, light, even": ["optim.ema_decay=0.99", *_MOVED, *_LIGHT, *_SOFT, *_EVEN, *_EQUAL],
}
CHOSEN = {"ConvNet": "moved, light, even", "ResNet-18": "moved, light, even", "EfficientNet-Lite0": "tuned: moved, light, even",
          "MobileNetV1 0.75": "tuned: moved, light"}  # fmt: skip


def one(arguments: argparse.Namespace, network: str, recipe: str, seed: int, test: bool) -> None:
    """Trains, and appends what the best epoch's validation and, if `test`, test scores are."""
    name = f"{network}_{recipe}_{seed}_{'test' if test else 'look'}".replace(" ", "_").replace(",", "")
    workdir = Path(arguments.workdirs).resolve() / name
    overrides = [
        *NETWORKS[network], *RECIPES[recipe], f"data.manual_dir={arguments.data}", f"train.total_epochs={arguments.epochs}",
        "log.tensorboard=false", *([f"pretrained.path={arguments.tfjs}"] if network.startswith("MobileNet") else []),
        f"parallel.compilation_cache={workdir.parent / 'compiled'}", *([] if test else ["data.test_split="]),
    ]  # fmt: skip
    record = runs.run(CONFIGS.get(network, "configs/medical_cnn.py"), seed, workdir, overrides)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    validation = max((line for line in lines if line["split"] == "validation"), key=lambda line: line["auc"])
    row = {"stage": "final" if test else "look", "network": network, "recipe": recipe, "seed": seed, "epochs": arguments.epochs,
           "seconds": record["seconds"], "flags": record["flags"], "validation": summary(validation)}  # fmt: skip
    if test:
        row["test"] = summary([line for line in lines if line["split"] == "best_test"][-1])
    with (HERE / "results.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps({key: row[key] for key in row if key != "flags"}), flush=True)


def summary(line: dict) -> dict:
    """Accuracy at 0.5 and at the threshold of the validation split."""
    at = line["at_threshold"]
    right = at["true_positive"] + at["true_negative"]
    kept = {key: line[key] for key in ("step", "loss", "accuracy", "auc", "recall", "specificity", "threshold")}
    return kept | {"accuracy_at_threshold": right / sum(at.values())}


def look(arguments: argparse.Namespace) -> None:
    for recipe in arguments.recipes or RECIPES:
        one(arguments, arguments.network, recipe, 100, test=False)


def final(arguments: argparse.Namespace) -> None:
    for seed in arguments.seeds:
        one(arguments, arguments.network, CHOSEN[arguments.network], seed, test=True)


def table(arguments: argparse.Namespace) -> None:
    rows = runs.read(HERE / "results.jsonl")
    print("| network | recipe | validation AUC | validation loss |\n| --- | --- | --- | --- |")
    for row in rows:
        if row["stage"] == "look":
            print(f"| {row['network']} | {row['recipe']} | {row['validation']['auc']:.4f} | {row['validation']['loss']:.4f} |")
    print("\n| network | seeds | test accuracy | at 0.5 | test AUC |\n| --- | --- | --- | --- | --- |")
    for network in NETWORKS:
        mine = [row["test"] for row in rows if row["stage"] == "final" and row["network"] == network]
        if mine:
            cells = [spread([row[key] for row in mine]) for key in ("accuracy_at_threshold", "accuracy", "auc")]
            print(f"| {network} | {len(mine)} | {' | '.join(cells)} |")


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("look", "final", "table"))
    parser.add_argument("--data", help="the npz file")
    parser.add_argument("--tfjs", help="folder of MobileNetV1 0.75 as a TensorFlow.js model")
    parser.add_argument("--network", choices=tuple(NETWORKS), default="ConvNet")
    parser.add_argument("--recipes", nargs="*", choices=tuple(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=float, default=8.0)
    parser.add_argument("--workdirs", default="runs/022_pneumonia")
    arguments = parser.parse_args()
    began = time.perf_counter()
    {"look": look, "final": final, "table": table}[arguments.part](arguments)
    if arguments.part != "table":
        print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
