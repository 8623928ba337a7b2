"""A ResNet-18 with the stem for small images learns, is killed and goes on, on a generated set of CIFAR's shape.

    python experiments/023_cifar_resnet18/run.py [--images=320] [--steps=8]

32 x 32 colour images of ten classes (a grating each, in noise) as an npz, so that nothing is downloaded. One run to the end;
another of the same command, killed with SIGKILL after half of the steps and started again; every array of the last checkpoint
and metrics.jsonl are compared bit by bit. images/s beside PyTorch: experiments/010_speed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import runs  # noqa: E402


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [count, 32, 32, 3] and labels [count]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    angle, phase = np.pi * labels / 10, rng.uniform(0, 2 * np.pi, count)
    y, x = np.mgrid[:32, :32]
    wave = np.cos(0.6 * (np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y) + phase[:, None, None])
    colour = np.random.default_rng(7).uniform(0.3, 1, (10, 3))[labels]
    picture = 128 + 50 * wave[..., None] * colour[:, None, None] + rng.normal(0, 40, (count, 32, 32, 3))
    return np.clip(picture, 0, 255).astype(np.uint8), labels.astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    steps, result = arguments.steps, {"images": arguments.images, "steps": arguments.steps}
    with tempfile.TemporaryDirectory() as scratch:
        parts = {"train": arguments.images, "val": 50, "test": 50}
        made = {name: images(count, seed) for seed, (name, count) in enumerate(parts.items())}
        arrays = {
            f"{name}_{kind}": value
            for name, pair in made.items()
            for kind, value in zip(("images", "labels"), pair, strict=True)
        }
        np.savez(f"{scratch}/gratings.npz", **arrays)
        overrides = [
            f"data.manual_dir={scratch}/gratings.npz", "model.name=resnet18", "model.stem=cifar", f"train.total_steps={steps}",
            f"eval.every_steps={steps}", "checkpoint.every_steps=2", "log.every_steps=1", "log.tensorboard=false",
            f"parallel.compilation_cache={scratch}/compiled",
        ]  # fmt: skip
        whole, killed = Path(scratch) / "whole", Path(scratch) / "killed"
        record = runs.run("configs/image_folder.py", 0, whole, overrides)
        result |= {"flags": record["flags"], "seconds": record["seconds"], "test": record["splits"]["test"]["accuracy"]}
        command = [sys.executable, "-m", "imgrec_jax.main", *record["flags"], f"--workdir={killed}"]
        result["killed after step"] = steps // 2 if runs.kill_at(command, steps // 2, 0.3) else "it had ended"
        began = time.perf_counter()
        subprocess.run(command, cwd=runs.ROOT, check=True, stdout=subprocess.DEVNULL)
        result |= {"seconds to go on": round(time.perf_counter() - began, 1)}
        result["bit for bit the same"] = runs.fingerprint(whole) == runs.fingerprint(killed)
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "flags"}))


if __name__ == "__main__":
    main()
