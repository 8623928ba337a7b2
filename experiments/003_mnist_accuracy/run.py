"""Test accuracy and seconds of the MNIST configs, several seeds each.

python experiments/003_mnist_accuracy/run.py --configs mnist.py mnist.py:fast --seeds 0 1 2 3 4

Appends to result.jsonl beside this file: the evaluation of the final epoch, and the wall time from the start of the process.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runs

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=["mnist.py", "mnist.py:fast"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=HERE / "result.jsonl")
    parser.add_argument("--cpu", default="", help="what to call the machine, e.g. AVX-512")
    args = parser.parse_args()
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()
    import jax

    for config in args.configs:
        for seed in args.seeds:
            with tempfile.TemporaryDirectory() as folder:
                record = runs.run(f"configs/{config}", seed, Path(folder) / "run")
            test = {name: record["splits"]["test"][name] for name in ("step", "epoch", "accuracy", "accuracy_correct")}
            about = {"config": config, "seed": seed, "commit": commit, "jax": jax.__version__, "cores": record["cores"]}
            line = {**about, "cpu": args.cpu, "seconds": record["seconds"], **test}
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(line)


if __name__ == "__main__":
    main()
