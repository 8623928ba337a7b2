"""U-Net and the three FCNs on digit scenes: test mIoU and time, several seeds each.

python experiments/004_scenes_segmentation/run.py --seeds 0 1 2

Appends to result.jsonl beside this file and prints the table. The test split is only reported; the checkpoint that it is
reported for is the one with the best validation mIoU.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import runs  # noqa: E402

MODELS = ("unet", "fcn32s", "fcn16s", "fcn8s")


def table(records: list[dict]) -> str:
    lines = ["| model | test mIoU | pixel accuracy | minutes | seeds |", "|---|---|---|---|---|"]
    for model in MODELS:
        mine = [record for record in records if record["config"].endswith(f":{model}")]
        if mine:
            best = [record["splits"]["best_test"] for record in mine]
            miou, pixel = (runs.spread([values[name] for values in best]) for name in ("mean_iou", "pixel_accuracy"))
            minutes = runs.spread([record["seconds"] / 60 for record in mine], 1)
            lines.append(f"| {model} | {miou} | {pixel} | {minutes} | {len(mine)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=HERE / "result.jsonl")
    parser.add_argument("--workdirs", type=Path, default=Path("runs/004"))
    args = parser.parse_args()
    configs = [f"configs/scenes_segmentation.py:{model}" for model in args.models]
    runs.run_all(configs, args.seeds, args.out, args.workdirs.resolve())
    print(table(runs.read(args.out)))


if __name__ == "__main__":
    main()
