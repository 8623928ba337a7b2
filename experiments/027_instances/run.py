"""Mask R-CNN and RetinaNet beside Faster R-CNN and the U-Net, on scenes, blood cells and nuclei, several seeds each.

    python experiments/027_instances/run.py scenes_mask scenes_retina --seeds 0 1 2
    python experiments/027_instances/run.py bccd_faster bccd_retina --bccd=FOLDER
    python experiments/027_instances/run.py nuclei_unet nuclei_mask --nuclei=FOLDER_OR_ZIP
    python experiments/027_instances/run.py                      writes the table

Every run is the config as it stands; the checkpoint is the one that validation chose, the scores are the test split's.
Records are appended to result.jsonl as they come, and a run that is there is not made again. The Faster R-CNN of the scenes is
that of 005.
"""

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import runs  # noqa: E402

# name: (config, the data it wants, columns)
RUNS = {
    "scenes_faster": ("configs/scenes_detection.py:faster", "", ("AP", "AP50", "AR100")),
    "scenes_mask": ("configs/scenes_detection.py:mask", "", ("AP", "AP50", "AR100", "segm_AP", "segm_AP50", "segm_f1")),
    "scenes_retina": ("configs/scenes_detection.py:retina", "", ("AP", "AP50", "AR100")),
    "bccd_faster": ("configs/bccd_faster_rcnn.py", "bccd", ("AP", "AP50", "AR100")),
    "bccd_retina": ("configs/bccd_retinanet.py", "bccd", ("AP", "AP50", "AR100")),
    "nuclei_unet": ("configs/nuclei_unet.py", "nuclei", ("f1", "iou", "object_f1")),
    "nuclei_mask": ("configs/nuclei_mask_rcnn.py", "nuclei", ("AP", "AP50", "segm_AP", "segm_AP50", "segm_f1")),
}


def records() -> list[dict]:
    earlier = [r for r in runs.read(HERE.parent / "005_scenes_detection" / "result.jsonl") if r["config"].endswith(":faster")]
    return [{"name": "scenes_faster", **r} for r in earlier] + runs.read(HERE / "result.jsonl")


def train(name: str, seed: int, arguments: argparse.Namespace) -> None:
    config, data, _ = RUNS[name]
    if any((r["name"], r["seed"]) == (name, seed) for r in records()):
        return
    folder = getattr(arguments, data) if data else ""
    if data and not folder:
        raise SystemExit(f"error: {name} wants --{data}=FOLDER")
    overrides = [f"data.manual_dir={Path(folder).resolve()}"] if data else []
    record = runs.run(config, seed, arguments.workdirs.resolve() / f"{name}_{seed}", overrides)
    with (HERE / "result.jsonl").open("a") as file:
        file.write(json.dumps({"name": name, **record}) + "\n")
    print(name, seed, {column: round(runs.test_value(column)(record), 4) for column in RUNS[name][2]}, flush=True)


def table() -> str:
    lines = ["| run | test scores, mean and range | minutes, cores | seeds |", "| --- | --- | --- | --- |"]
    for name, (_, _, columns) in RUNS.items():
        mine = [r for r in records() if r["name"] == name]
        if mine:
            scores = ", ".join(f"{column} {runs.spread([runs.test_value(column)(r) for r in mine])}" for column in columns)
            cores = "/".join(sorted({str(r["cores"]) for r in mine}))
            lines.append(f"| {name} | {scores} | {runs.spread([runs.minutes(r) for r in mine], 1)}, {cores} | {len(mine)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RUNS)}; none: only the table")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--bccd")
    parser.add_argument("--nuclei")
    parser.add_argument("--workdirs", type=Path, default=Path("runs/027_instances"))
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in RUNS]:
        parser.error(f"{unknown} are none of {list(RUNS)}")
    for seed in arguments.seeds:
        for name in arguments.names:
            train(name, seed, arguments)
    runs.put(HERE / "README.md", table())
    print(table())


if __name__ == "__main__":
    main()
