"""Kills runs of all tasks with SIGKILL, starts them again, and compares each with one that nobody disturbed.

Of detection there are three: Faster R-CNN, Mask R-CNN ("mask") and RetinaNet ("retina").

python experiments/001_kill_and_resume/run.py --kills=12

Every trial is a new workdir: start, SIGKILL, start again to the end. The kills of a task take turns:
  step         a random fraction of a second after a random step was reported: into steps, evaluations, writing
  checkpoint   while a checkpoint is being written, up to 40 ms after its folder appeared
  start        while the process starts, compiles or makes its first steps
  preparation  while the data set is made: the run then begins with an empty folder of data (beside MNIST's own files)
A run that ended before its moment came is tried again with another moment. Compared bit by bit: every array of the final train
state (parameters, optimiser, moving averages) and the whole of metrics.jsonl. Exit status 1 when any differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runs
from imgrec_jax.data.source import default_data_dir

# Dropout or augmentation, averaging, a validation set that chooses, and cadences that share no factor: whatever a resume could
# forget, these runs have.
COMMON = ("optim.ema_decay=0.99", "log.every_steps=2", "log.tensorboard=False")
TASKS = {
    "classification": (
        "configs/mnist.py:tiny", "model.dropout=0.1", "data.train_split=train[:2000]", "data.validation_split=train[2000:2300]",
        "data.test_split=test[:300]", "select.metric=accuracy", "checkpoint.every_steps=7", "eval.every_steps=15",
    ),
    "detection": (
        "configs/scenes_detection.py:faster,tiny", "train.total_steps=24", "checkpoint.every_steps=3", "eval.every_steps=8",
    ),
    "mask": (
        "configs/scenes_detection.py:mask,tiny", "train.total_steps=24", "checkpoint.every_steps=3", "eval.every_steps=8",
    ),
    "retina": (
        "configs/scenes_detection.py:retina,tiny", "train.total_steps=24", "checkpoint.every_steps=3", "eval.every_steps=8",
    ),
    "segmentation": (
        "configs/scenes_segmentation.py:unet,tiny", "train.total_steps=24", "checkpoint.every_steps=3", "eval.every_steps=8",
    ),
}  # fmt: skip
LAST_STEP = {"classification": 64, "detection": 24, "mask": 24, "retina": 24, "segmentation": 24}
KINDS = ("step", "checkpoint", "start", "checkpoint", "preparation", "step")


def command(task: str, workdir: Path, data_dir: Path) -> list[str]:
    config, *own = TASKS[task]
    flags = [f"--config.{override}" for override in (*COMMON, *own, f"data.data_dir={data_dir}")]
    return [sys.executable, "-m", "imgrec_jax.main", f"--config={config}", f"--workdir={workdir}", *flags]


def run_to_end(command: list[str]) -> float:
    """Runs to the end; returns the seconds it took."""
    began = time.perf_counter()
    result = subprocess.run(command, cwd=runs.ROOT, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}")
    return time.perf_counter() - began


def kill_while_writing(command: list[str], workdir: Path, which: int, delay: float) -> bool:
    """SIGKILLs a run `delay` seconds after its `which`-th checkpoint began to be written."""
    process = subprocess.Popen(command, cwd=runs.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen: set[str] = set()
    while process.poll() is None:
        for kind in ("checkpoints", "best"):
            folder = workdir / kind
            if folder.is_dir():
                seen |= {f"{kind}{name}" for name in os.listdir(folder) if name.endswith(".partial")}
        if len(seen) >= which:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.0005)
    return process.wait() == -signal.SIGKILL


def fresh_data(folder: Path) -> Path:
    """A folder of data that holds MNIST as TFDS prepared it and nothing made of it."""
    shutil.copytree(default_data_dir() / "mnist", folder / "mnist")
    return folder


def kill_once(folder: Path, task: str, kind: str, moments: random.Random, seconds: float) -> tuple[Path, Path, str]:
    """(workdir of a run that was killed alive, its folder of data, the moment)."""
    for attempt in range(100):
        workdir, data_dir = folder / f"attempt{attempt}", default_data_dir()
        if kind == "checkpoint":
            which, delay = moments.randrange(1, 7), moments.uniform(0, 0.04)
            killed = kill_while_writing(command(task, workdir, data_dir), workdir, which, delay)
            moment = f"{1000 * delay:.0f} ms into checkpoint {which}"
        else:
            if kind == "preparation":
                data_dir = fresh_data(folder / f"data{attempt}")
            step = moments.randrange(2, LAST_STEP[task]) if kind == "step" else 0
            delay = moments.uniform(0, 0.5 if step else {"start": seconds / 2, "preparation": 2 + seconds / 4}[kind])
            killed = runs.kill_at(command(task, workdir, data_dir), step, delay)
            moment = f"{delay:.2f} s after {f'step {step}' if step else 'the start'}"
        if killed:
            return workdir, data_dir, moment
    raise SystemExit("every run ended before its moment came")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=12, help="of each task")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", default="", help="a JSON file for the result")
    args = parser.parse_args()
    moments, result = random.Random(args.seed), {}
    for task in args.tasks:
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / "undisturbed"
            run_to_end(command(task, whole, default_data_dir()))  # prepares the data, too
            shutil.rmtree(whole)
            seconds = run_to_end(command(task, whole, default_data_dir()))
            expected = runs.fingerprint(whole)
            print(f"{task}: undisturbed {seconds:.1f} s, state {expected['state'][:16]}", flush=True)
            trials = []
            for i in range(args.kills):
                kind = KINDS[i % len(KINDS)]
                workdir, data_dir, moment = kill_once(Path(folder) / f"trial{i}", task, kind, moments, seconds)
                saved = sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit())
                run_to_end(command(task, workdir, data_dir))
                same = runs.fingerprint(workdir) == expected
                trials.append({"kind": kind, "killed": moment, "checkpoints_then": saved, "identical": same})
                print(f"  {kind}, {moment}, checkpoints {saved}: {'identical' if same else 'DIFFERENT'}", flush=True)
                shutil.rmtree(Path(folder) / f"trial{i}")
            result[task] = {"undisturbed": expected, "seconds": round(seconds, 1), "trials": trials}
        if args.out:
            Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
    trials = [trial for part in result.values() for trial in part["trials"]]
    identical = sum(trial["identical"] for trial in trials)
    print(f"{identical} of {len(trials)} finals are bit-identical")
    raise SystemExit(identical != len(trials))


if __name__ == "__main__":
    main()
