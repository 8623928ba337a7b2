"""Kills a run with SIGKILL at random moments, starts it again, and compares it with one that nobody disturbed.

python experiments/001_kill_and_resume/run.py --kills=20

Every trial is a new workdir: start, SIGKILL, start again to the end. One kill in five comes while the process starts, compiles
or makes its first steps; the others follow a random step of the run by a random fraction of a second, and so fall into steps,
evaluations and the writing of checkpoints alike. A run that ended before its moment came is tried again with another moment.
Compared bit by bit: every array of the final train state (parameters, optimiser, moving averages) and the whole of
metrics.jsonl. Exit status 1 when any differs.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runs

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
    "log.every_steps=2",
)


def command(workdir: Path, config: str) -> list[str]:
    flags = [f"--config.{override}" for override in OVERRIDES]
    return [sys.executable, "-m", "imgrec_jax.main", f"--config={config}", f"--workdir={workdir}", *flags]


def run_to_end(workdir: Path, config: str) -> float:
    """Runs to the end; returns the seconds it took."""
    began = time.perf_counter()
    result = subprocess.run(command(workdir, config), cwd=runs.ROOT, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"the run in {workdir} failed:\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}")
    return time.perf_counter() - began


def kill_once(folder: Path, config: str, moments: random.Random, seconds: float) -> tuple[Path, str]:
    """A workdir whose run was killed alive, and a description of the moment."""
    for attempt in range(100):
        early = moments.random() < 0.2
        step, delay = (0, moments.uniform(0, seconds / 2)) if early else (moments.randrange(2, 64), moments.uniform(0, 0.5))
        workdir = folder / f"attempt{attempt}"
        if runs.kill_at(command(workdir, config), step, delay):
            return workdir, f"{delay:.2f} s after {f'step {step}' if step else 'the start'}"
    raise SystemExit("every run ended before its moment came")


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
        expected = runs.fingerprint(Path(folder) / "undisturbed")
        print(
            f"undisturbed: {seconds:.1f} s, state {expected['state'][:16]}, metrics {expected['metrics'][:16]}",
            flush=True,
        )
        trials = []
        for i in range(args.kills):
            workdir, moment = kill_once(Path(folder) / f"trial{i}", args.config, moments, seconds)
            saved = sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit())
            run_to_end(workdir, args.config)
            same = runs.fingerprint(workdir) == expected
            trials.append({"killed": moment, "checkpoints_then": saved, "identical": same})
            print(f"kill {i + 1}: {moment}, checkpoints {saved}: {'identical' if same else 'DIFFERENT'}", flush=True)
    identical = sum(trial["identical"] for trial in trials)
    print(f"{identical} of {len(trials)} finals are bit-identical")
    if args.out:
        Path(args.out).write_text(json.dumps({"undisturbed": expected, "trials": trials}, indent=1) + "\n")
    raise SystemExit(identical != len(trials))


if __name__ == "__main__":
    main()
