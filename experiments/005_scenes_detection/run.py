"""R-CNN, Fast R-CNN and Faster R-CNN on digit scenes: AP, AR and time, several seeds each.

python experiments/005_scenes_detection/run.py --seeds 0 1 2

Appends to result.jsonl beside this file and prints the table. The checkpoint with the best validation AP is evaluated on the
test split, once. Times are of the whole process.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import runs  # noqa: E402

KINDS = ("rcnn", "fast", "faster")


def table(records: list[dict]) -> str:
    lines = ["| detector | test AP | AP50 | AR100 | minutes | seeds |", "|---|---|---|---|---|---|"]
    for kind in KINDS:
        mine = [record for record in records if record["config"].endswith(f":{kind}")]
        if mine:
            best = [record["splits"]["best_test"] for record in mine]
            cells = [runs.spread([values[name] for values in best]) for name in ("AP", "AP50", "AR100")]
            minutes = runs.spread([record["seconds"] / 60 for record in mine], 1)
            lines.append(f"| {kind} | {' | '.join(cells)} | {minutes} | {len(mine)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=HERE / "result.jsonl")
    parser.add_argument("--workdirs", type=Path, default=Path("runs/005"))
    args = parser.parse_args()
    configs = [f"configs/scenes_detection.py:{kind}" for kind in args.kinds]
    runs.run_all(configs, args.seeds, args.out, args.workdirs.resolve())
    print(table(runs.read(args.out)))


if __name__ == "__main__":
    main()
