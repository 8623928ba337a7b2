"""The COCO recipe at its full size on a small folder: a few steps, an evaluation, checkpoints, a kill and a bit-exact resume.

python experiments/009_coco_full_size/run.py --manual_dir=../shared/data/coco_open

`configs/coco_faster_rcnn.py:folder` as it is (ResNet-50 with FPN, short side 800, canvases up to 1,344 pixels, 81 classes), but
with 2 images a step and 4 steps from random weights: what is shown is the path from files to checkpoints, not an accuracy. One
run is left alone; the other is killed with SIGKILL once it has reported its third step, after the checkpoint of step 2, and
started again. Every array of the final states and the whole of metrics.jsonl are compared. Writes result.json beside this file.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runs

FLAGS = (
    "data.batch_size=2",
    "data.eval_batch_size=2",
    "train.total_steps=4",
    "eval.every_steps=4",
    "checkpoint.every_steps=2",
    "log.every_steps=1",
)


def command(manual_dir: Path, workdir: Path) -> list[str]:
    flags = [f"--config.{flag}" for flag in (f"data.manual_dir={manual_dir.resolve()}", *FLAGS)]
    return [
        sys.executable,
        "-m",
        "imgrec_jax.main",
        "--config=configs/coco_faster_rcnn.py:folder",
        f"--workdir={workdir}",
        *flags,
    ]


def follow(command: list[str]) -> list[tuple[float, str]]:
    """Runs to the end; what the program printed and when, in seconds."""
    began, lines = time.perf_counter(), []
    with subprocess.Popen(command, cwd=runs.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout:
            lines.append((round(time.perf_counter() - began, 1), line.rstrip()))
            print(*lines[-1], flush=True)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manual_dir", type=Path, required=True, help="a COCO folder: train2017, val2017, annotations")
    parser.add_argument("--workdirs", type=Path, default=Path("runs/009_coco_full_size"))
    args = parser.parse_args()
    alone, killed = (args.workdirs.resolve() / name for name in ("alone", "killed"))
    printed = follow(command(args.manual_dir, alone))
    if not runs.kill_at(command(args.manual_dir, killed), step=3, delay=0.1):
        raise SystemExit("the second run ended by itself before it could be killed")
    resumed = follow(command(args.manual_dir, killed))
    first, second = runs.fingerprint(alone), runs.fingerprint(killed)
    result = {
        "flags": FLAGS,
        "identical": {what: first[what] == second[what] for what in first},
        "printed": printed,
        "resumed": resumed,
    }
    (Path(__file__).parent / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"identical: {result['identical']}")
    raise SystemExit(first != second)


if __name__ == "__main__":
    main()
