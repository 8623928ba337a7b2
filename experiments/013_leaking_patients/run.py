"""A set in which the patient leaks: one picture of each patient for training, another for testing. See README.md.

python experiments/013_leaking_patients/run.py OUT.json
"""

import argparse
import json
import tempfile
from pathlib import Path

import cv2
import numpy as np

from imgrec_jax import assemble
from imgrec_jax.config import load
from imgrec_jax.run import loop

PATIENTS, EACH, SIDE = 120, 6, 24


def make(folder: Path) -> None:
    """Pictures that show who the patient is (a texture) and nothing of the disease, which is drawn for each patient."""
    rng = np.random.default_rng(0)
    for patient in range(PATIENTS):
        label = ("well", "ill")[rng.integers(2)]
        texture = cv2.resize(rng.normal(128, 60, (6, 6)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        for n in range(EACH):
            image = np.clip(texture + rng.normal(0, 25, (SIDE, SIDE)), 0, 255).astype(np.uint8)
            path = folder / label / f"patient{patient:03}_{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), image)


def score(folder: Path, group: str, fold: str, workdir: Path) -> dict:
    """The test split after 15 epochs."""
    config = load("image_folder")
    config.data.manual_dir, config.data.data_dir = str(folder), str(workdir / "cache")
    config.data.group, config.data.fold, config.data.threads = group, fold, 0
    with config.unlocked(), config.ignore_type():
        del config.data.train_ops["random_affine"]
        config.model.convs = ((16, 3, 1, 2), (32, 3, 1, 2))
    config.model.head, config.model.dropout = "flatten", 0.0
    config.train.total_epochs, config.eval.every_epochs = 15.0, 15.0
    config.select.metric, config.log.tensorboard = "", False
    values = loop.train(assemble.build(config), workdir / f"{bool(group)}_{fold.replace('/', 'of')}", lambda line: None)["test"]
    return {k: values[k] for k in values if k.startswith(("accuracy", "auc"))} | {"examples": values["examples"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    results: dict = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "data"
        make(folder)
        for name, group in (("without group", ""), ("with group", r"(patient\d+)_")):
            results[name] = {fold: score(folder, group, fold, Path(scratch)) for fold in ("1/5", "2/5", "3/5", "4/5", "5/5")}
            results[name]["mean accuracy"] = float(
                np.mean([v["accuracy"] for v in results[name].values() if isinstance(v, dict)])
            )
            print(name, json.dumps(results[name]), flush=True)
            out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
