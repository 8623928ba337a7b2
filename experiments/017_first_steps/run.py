"""Seconds from the start of a process to its first training step, with an empty cache of compiled programs and with a full one.

python experiments/017_first_steps/run.py SHARED [OUT.json]      SHARED: a folder of sign_digits/, bccd/ and nuclei/
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = ("cold", "warm", "warm")
RUNS = {
    "mnist": ("--config=mnist",),
    "image_folder, sign_digits": ("--config=image_folder", "--config.data.manual_dir={}/sign_digits"),
    "own_detection, bccd (VOC)": ("--config=own_detection", "--config.data.manual_dir={}/bccd"),
    "own_segmentation, nuclei (a zip of 10,983 masks)": ("--config=own_segmentation", "--config.data.manual_dir={}/nuclei"),
}


def seconds_to_first_step(flags: list[str], scratch: Path) -> float | None:
    """Of one start, ended after it; None where there was none."""
    with tempfile.TemporaryDirectory(dir=scratch) as workdir:
        command = [
            sys.executable, "-u", "-m", "imgrec_jax.main", *flags, f"--workdir={workdir}/run", "--config.log.every_steps=1",
            "--config.train.total_steps=2", f"--config.parallel.compilation_cache={scratch}/programs",
        ]  # fmt: skip
        began = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        ) as process:
            assert process.stdout is not None
            found = next((time.perf_counter() - began for line in process.stdout if line.startswith("step 1/")), None)
            process.kill()
        return found


def main() -> None:
    shared, out = sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).with_name("result.json")
    results: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, flags in RUNS.items():
            data = [] if name == "mnist" else [f"--config.data.data_dir={scratch}/data"]
            for label in ROUNDS:
                seconds = seconds_to_first_step([flag.format(shared) for flag in flags] + data, Path(scratch))
                results.setdefault(name, {}).setdefault(label, []).append(round(seconds or float("nan"), 2))
                print(name, label, seconds, flush=True)
                out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
