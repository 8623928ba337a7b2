"""Do many devices compute what one does? On fake CPU devices, and several processes on loopback.

python experiments/006_many_devices/run.py agree      losses and parameters after 20 steps, every layout against one device
python experiments/006_many_devices/run.py restore    a checkpoint of 8 devices goes on with 1 and with 2 x 2, and back
python experiments/006_many_devices/run.py kill       one of two processes dies; the other ends; the run is resumed
python experiments/006_many_devices/run.py overhead   the same work on 1, 2, 4 and 8 devices of the same two cores

Each writes its part of result.json beside this file. Differences are relative: |a - b| / |a| of a loss, and of all parameters
taken as one vector. The optimiser is SGD: Adam would turn the rounding of a vanishing gradient into a step of full size. And
`agree` computes in float64: in float32 rounding sooner or later crosses a threshold (the matching and suppression of boxes have
many), and what follows is no longer rounding.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import launch_local  # noqa: E402
import runs  # noqa: E402

STEPS = 20
COMMON = ("log.every_steps=1", "log.tensorboard=False", "eval.every_steps=20", f"train.total_steps={STEPS}")
CONFIG = "experiments/006_many_devices/sgd.py"
TASKS = {
    "classification": (
        f"{CONFIG}:mnist/", "model.norm=batch", "data.train_split=train[:2000]", "data.test_split=test[:160]",
        "data.eval_batch_size=80", "optim.learning_rate=0.01",
    ),
    "detection": (
        f"{CONFIG}:scenes_detection/faster,tiny", "optim.learning_rate=0.001",
        "model.widths=(8, 8, 16, 16)", "model.fpn_width=8", "model.head_width=32",
    ),
    "segmentation": (
        f"{CONFIG}:scenes_segmentation/unet,tiny", "optim.learning_rate=0.001",
        "model.trunk.widths=(4, 8, 16, 16)", "model.trunk.stem_width=4", "model.widths=(16, 8, 8)",
    ),
}  # fmt: skip
# name: processes, devices of each, overrides
LAYOUTS = {
    "1 device": (1, 1, ()),
    "8 devices, jit": (1, 8, ()),
    "8 devices, pmap": (1, 8, ("parallel.mode=pmap",)),
    "8 devices, fsdp 4": (1, 8, ("parallel.fsdp=4",)),
    "2 processes x 4": (2, 4, ()),
}


def flags_of(task: str, workdir: Path, *overrides: str) -> list[str]:
    config, *own = TASKS[task]
    return [f"--config={config}", f"--workdir={workdir}", *(f"--config.{o}" for o in (*COMMON, *own, *overrides))]


def train(task: str, layout: str, workdir: Path, *overrides: str) -> float:
    """Trains to the end; returns the seconds it took."""
    processes, devices, own = LAYOUTS[layout]
    workdir.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    started = launch_local.start(flags_of(task, workdir, *own, *overrides), processes, devices, logs=workdir)
    if launch_local.wait(started):
        raise SystemExit(f"{task} on {layout} failed:\n{(workdir / '0.log').read_text()[-3000:]}")
    return time.perf_counter() - began


def losses(workdir: Path) -> np.ndarray:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return np.array([row["objective"] for row in rows if row["split"] == "train"])


def parameters(workdir: Path) -> np.ndarray:
    """All parameters and batch statistics as one float64 vector."""
    state = runs.final_state(workdir)
    return np.concatenate([np.float64(v).ravel() for k, v in sorted(state.items()) if "params" in k or "model_state" in k])


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def agree(folder: Path, tasks: list[str]) -> dict:
    result = {}
    for task in tasks:
        for layout in LAYOUTS:
            first, second = folder / task / layout / "first", folder / task / layout / "second"
            train(task, layout, first, "dtype=float64")
            train(task, layout, second, "dtype=float64")
            base = folder / task / "1 device" / "first"
            row = {
                "losses": float(np.max(np.abs(losses(first) - losses(base)) / np.abs(losses(base)))),
                "parameters": relative(parameters(base), parameters(first)),
                "repeats bit for bit": runs.fingerprint(first) == runs.fingerprint(second),
            }
            result.setdefault(task, {})[layout] = row
            print(task, layout, row, flush=True)
    return result


def restore(folder: Path, tasks: list[str]) -> dict:
    """8 devices for 10 steps, then 1, 2 x 2 or 8 for 5, then 8 for 5: against 8 devices throughout."""
    LAYOUTS["2 processes x 2"] = (2, 2, ())
    result = {}
    half = STEPS // 2
    for task in tasks:
        base, begun = folder / task / "base", folder / task / "begun"
        train(task, "8 devices, jit", base)
        train(task, "8 devices, jit", begun, f"train.total_steps={half}")
        for layout in ("1 device", "2 processes x 2"):
            there = folder / task / layout
            shutil.copytree(begun, there)
            train(task, layout, there, f"train.total_steps={half + half // 2}")
            train(task, "8 devices, jit", there)
            value = relative(parameters(base), parameters(there))
            result.setdefault(task, {})[f"8 -> {layout} -> 8"] = value
            print(task, layout, value, flush=True)
    return result


def kill(folder: Path, tasks: list[str]) -> dict:
    """SIGKILL for either of two processes after half of the steps."""
    result = {}
    for task in tasks:
        base = folder / task / "base"
        train(task, "2 processes x 4", base, "checkpoint.every_steps=4")
        for victim in (1, 0):
            workdir = folder / task / f"killed {victim}"
            workdir.mkdir(parents=True)
            flags = flags_of(task, workdir, "checkpoint.every_steps=4")
            processes = launch_local.start(flags, 2, 4, logs=workdir)
            while f"step {STEPS // 2}/" not in (workdir / "0.log").read_text():
                time.sleep(0.05)
                if any(process.poll() is not None for process in processes):
                    raise SystemExit(f"ended too early: {(workdir / '0.log').read_text()[-2000:]}")
            processes[victim].send_signal(signal.SIGKILL)
            began = time.perf_counter()
            status = processes[1 - victim].wait(timeout=300)
            seconds = time.perf_counter() - began
            lines = (workdir / f"{1 - victim}.log").read_text().splitlines()
            message = next((line for line in lines if "another task died" in line), lines[-1])[:400]
            train(task, "2 processes x 4", workdir, "checkpoint.every_steps=4")
            row = {
                "seconds until the other ended": round(seconds, 1),
                "its status": status,
                "its message": message,
                "resumed run equals the undisturbed": runs.fingerprint(workdir) == runs.fingerprint(base),
            }
            result.setdefault(task, {})[f"process {victim} killed"] = row
            print(task, victim, row, flush=True)
    return result


def overhead(folder: Path, tasks: list[str]) -> dict:
    """Seconds per step of the second half of a run, the total work the same."""
    result = {}
    for task in tasks:
        for devices in (1, 2, 4, 8):
            for mode in ("jit", "pmap") if devices > 1 else ("jit",):
                LAYOUTS["timed"] = (1, devices, (f"parallel.mode={mode}", "checkpoint.enabled=False"))
                workdir = folder / task / f"{devices} {mode}"
                train(task, "timed", workdir, "train.total_steps=60", "log.every_steps=20", "data.test_split=")
                lines = [line for line in (workdir / "0.log").read_text().splitlines() if line.startswith("step ")]
                speed = [float(line.split(" img/s")[0].split()[-1].replace(",", "")) for line in lines[1:]]
                result.setdefault(task, {})[f"{devices} {mode}"] = {"img_per_s": speed}
                print(task, devices, mode, speed, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("agree", "restore", "kill", "overhead"))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--out", type=Path, default=HERE / "result.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        part = globals()[args.what](Path(folder), args.tasks)
    known = json.loads(args.out.read_text()) if args.out.exists() else {}
    known[args.what] = {**known.get(args.what, {}), **part}
    args.out.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
