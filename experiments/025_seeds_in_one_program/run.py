"""Several seeds side by side against the same runs one after the other: seconds, and how far the results are apart.

python experiments/025_seeds_in_one_program/run.py [CASE ...]

Every row is two measurements of whole processes, from their start to their end: `--config.seeds=N`, and N runs of
`--config.seed=K` one after the other, each on all cores; both begin with an empty cache of compiled programs. "Without the
ensemble" is until the last run has ended: what evaluates their ensemble and compares them comes after. Of both the last
checkpoints are compared, array by array: the largest difference relative to the array's largest entry. Rows are appended to
result.jsonl beside this file; without arguments only the table is printed.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
import runs  # noqa: E402

RESULT = Path(__file__).with_name("result.jsonl")


STEPS = ["train.total_steps=20", "log.tensorboard=False"]


def mnist(epochs: float) -> list[str]:
    return [f"train.total_epochs={epochs}", f"eval.every_epochs={epochs}", "log.tensorboard=False"]


SMALL = [
    "model.hidden=(30,)", "data.batch_size=10", "train.total_steps=3000", "eval.every_steps=3000", "log.tensorboard=False",
]  # fmt: skip
SOME = ["train.total_steps=600", "eval.every_steps=600", "log.tensorboard=False"]
# name: (config, seeds, way, further flags)
CASES = {
    "mlp": ("mnist:mlp", 5, "vmap", mnist(1)),
    "mlp, 8 seeds": ("mnist:mlp", 8, "vmap", mnist(1)),
    "mlp, processes": ("mnist:mlp", 5, "processes", mnist(1)),
    "mlp of 30, batch 10": ("mnist:mlp", 5, "vmap", SMALL),
    "mlp, 20 steps": ("mnist:mlp", 5, "vmap", STEPS),
    "mlp, 20 steps, float64": ("mnist:mlp", 5, "vmap", [*STEPS, "dtype=float64"]),
    "seed A": ("mnist", 5, "processes", mnist(1)),
    "seed A, 20 steps": ("mnist", 2, "vmap", STEPS),
    "best's net, 20 steps": ("mnist:best", 2, "vmap", STEPS),
    "best's net": ("mnist:best", 5, "processes", SOME),
    "scenes' detector": ("scenes_detection:faster", 2, "processes", SOME),
    "scenes' U-Net": ("scenes_segmentation:unet", 2, "processes", SOME),
    "detector": ("scenes_detection:tiny", 2, "vmap", STEPS),
    "detector, float64": ("scenes_detection:tiny", 2, "vmap", [*STEPS, "dtype=float64"]),
    "detector, processes": ("scenes_detection:tiny", 2, "processes", STEPS),
    "unet": ("scenes_segmentation:unet,tiny", 2, "vmap", STEPS),
    "unet, float64": ("scenes_segmentation:unet,tiny", 2, "vmap", [*STEPS, "dtype=float64"]),
    "unet, processes": ("scenes_segmentation:unet,tiny", 2, "processes", STEPS),
}  # fmt: skip


def command(config: str, flags: list[str], workdir: Path) -> list[str]:
    words = [f"--config.{flag}" for flag in flags]
    return [sys.executable, "-m", "imgrec_jax.main", f"--config={config}", *words, f"--workdir={workdir}"]


def timed(words: list[str], log: Path, cache: Path) -> float:
    began = time.perf_counter()
    words = [*words, f"--config.parallel.compilation_cache={cache}"]
    with log.open("w") as file:
        done = subprocess.run(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed; see {log}")
    return time.perf_counter() - began


def apart(first: Path, second: Path) -> dict:
    """How far the last checkpoints of two runs are apart; the parameters alone, and whether all is equal bit for bit."""
    import jax
    import numpy as np

    from imgrec_jax.run import checkpoint

    a, b = (checkpoint.read_arrays(checkpoint.saved(folder)[-1]) for folder in (first, second))
    pairs = list(zip(jax.tree.leaves(a["params"]), jax.tree.leaves(b["params"]), strict=True))
    worst = max(float(np.abs(x - y).max() / max(np.abs(x).max(), 1e-30)) for x, y in pairs)
    every = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    metrics = [(folder / "metrics.jsonl").read_bytes() for folder in (first, second)]
    return {"parameters": worst, "bits": all(np.array_equal(x, y) for x, y in every), "metrics": metrics[0] == metrics[1]}


def measure(name: str, folder: Path) -> dict:
    config, seeds, way, flags = CASES[name]
    several = [*flags, f"seeds={seeds}", f"seeds_in={way}"]
    began = time.time()
    together = timed(command(config, several, folder / "together"), folder / "together.log", folder / "cache_of_together")
    ended = (folder / "together" / "results.jsonl").stat().st_mtime  # its last line is the last run's; the ensemble comes after
    record = json.loads((folder / "together" / "seeds.json").read_text())
    each = []
    for seed in range(seeds):
        words = command(config, [*flags, f"seed={seed}"], folder / f"alone_{seed}")
        each.append(timed(words, folder / f"alone_{seed}.log", folder / "cache_of_single_runs"))
    found = [apart(folder / "together" / f"seed_{seed}", folder / f"alone_{seed}") for seed in range(seeds)]
    return {
        "case": name, "config": config, "seeds": seeds, "way": record["way"], "why": record["why"], "flags": flags,
        "together": round(together, 2), "runs": round(ended - began, 2), "one after the other": round(sum(each), 2),
        "each": [round(value, 2) for value in each],
        "cores": len(os.sched_getaffinity(0)), "machine": platform.machine(),
        "parameters": max(one["parameters"] for one in found), "bits": all(one["bits"] for one in found),
        "metrics": all(one["metrics"] for one in found),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--quick", action="store_true", help="the cases that take a minute together: mlp, unet")
    flags = parser.parse_args()
    for name in flags.cases or (["mlp", "unet"] if flags.quick else []):
        with tempfile.TemporaryDirectory() as folder:
            row = measure(name, Path(folder))
        print(json.dumps(row), flush=True)
        with RESULT.open("a") as file:
            file.write(json.dumps(row) + "\n")
    runs.put(RESULT.with_name("README.md"), table())
    print(table())


def table() -> str:
    """The last record of each case."""
    head = ["case", "seeds", "way", "together", "without the ensemble", "one after the other", "", "parameters apart"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for row in {row["case"]: row for row in runs.read(RESULT)}.values():
        ended = row.get("runs")  # of an ensemble the single runs know nothing
        times = row["one after the other"] / (ended or row["together"])
        far = "0, all bits equal" if row["bits"] else f"{row['parameters']:.1e}"
        seconds = [f"{row['together']:.1f} s", f"{ended:.1f} s" if ended else "", f"{row['one after the other']:.1f} s"]
        lines.append(f"| {' | '.join([row['case'], str(row['seeds']), row['way'], *seconds, f'{times:.2f} x', far])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
