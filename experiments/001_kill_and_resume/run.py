"""Kills a run with SIGKILL at random moments, starts it again, and compares it with one that nobody disturbed.

python experiments/001_kill_and_resume/run.py --kills=20

Every trial is a new workdir: start, SIGKILL at a moment drawn uniformly over the whole life of the process (start-up,
compilation, training, evaluation and saving alike), start again to the end. Compared bit by bit: every array of the final train
state (parameters, optimiser, moving averages) and the whole of metrics.jsonl. Exit status 1 when any differs.
"""

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
# Dropout, augmentation, averaging, a validation set that chooses, and cadences that share no factor: whatever a resume could
# forget, this run has.
OVERRIDES = (
    "model.dropout=0.1",
    "optim.ema_decay=0.99",
    "data.train_split=train[:2000]",
    "data.validation_split=train[2000:2300]",
    "data.test_split=test[:300]",
    "select.metric=accuracy",
    "checkpoint.every_steps=7",
    "eval.every_steps=15",
    "log.every_steps=10",
)


def command(workdir: Path, config: str) -> list[str]:
    flags = [f"--config.{override}" for override in OVERRIDES]
    return [sys.executable, "-m", "imgrec_jax.main", f"--config={config}", f"--workdir={workdir}", *flags]


def run_to_end(workdir: Path, config: str) -> float:
    """Runs to the end; returns the seconds it took."""
    began = time.perf_counter()
    result = subprocess.run(command(workdir, config), cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"the run in {workdir} failed:\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}")
    return time.perf_counter() - began


def kill_after(workdir: Path, config: str, seconds: float) -> bool:
    """Starts a run and kills it; returns whether it was still alive then."""
    process = subprocess.Popen(command(workdir, config), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(timeout=seconds)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True


def fingerprint(workdir: Path) -> dict[str, str]:
    """{what: sha256} of the final state and the metrics file."""
    import orbax.checkpoint as ocp

    step = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    state = ocp.StandardCheckpointer().restore((workdir / "checkpoints" / str(step) / "state").absolute())
    digest = hashlib.sha256(str(step).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return {"state": digest.hexdigest(), "metrics": hashlib.sha256((workdir / "metrics.jsonl").read_bytes()).hexdigest()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--config", default="configs/mnist.py:tiny")
    parser.add_argument("--out", default="", help="a JSON file for the result")
    args = parser.parse_args()
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        seconds = run_to_end(Path(folder) / "undisturbed", args.config)
        expected = fingerprint(Path(folder) / "undisturbed")
        print(f"undisturbed: {seconds:.1f} s, state {expected['state'][:16]}, metrics {expected['metrics'][:16]}", flush=True)
        trials = []
        for i in range(args.kills):
            workdir, moment = Path(folder) / f"trial{i}", moments.uniform(0, seconds)
            killed = kill_after(workdir, args.config, moment)
            saved = sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit())
            run_to_end(workdir, args.config)
            same = fingerprint(workdir) == expected
            trials.append({"killed_after_s": round(moment, 2), "killed": killed, "checkpoints_then": saved, "identical": same})
            print(f"kill {i + 1}: after {moment:.2f} s, checkpoints then {saved}: {'identical' if same else 'DIFFERENT'}", flush=True)
    identical = sum(trial["identical"] for trial in trials)
    print(f"{identical} of {len(trials)} finals are bit-identical; {sum(t['killed'] for t in trials)} were killed alive")
    if args.out:
        Path(args.out).write_text(json.dumps({"undisturbed": expected, "trials": trials}, indent=1) + "\n")
    raise SystemExit(identical != len(trials))


if __name__ == "__main__":
    main()
