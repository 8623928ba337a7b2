"""The reference configs at full scale: the row of a run beside the published figure, and one step at full shape on any machine.

    python experiments/036_reference_configs/run.py imagenet:resnet50 --data=DIR     trains to the end and writes the row
    python experiments/036_reference_configs/run.py imagenet:resnet50 --dry-run      one step of all its images, made-up ones

The first goes on where it was when it is given again; `--config.KEY=VALUE` are passed on (a data set of TFDS needs
`--config.data.name=imagenet2012` and the like in place of --data). The figure is that of the last step, by which nothing is
chosen. Of the dry run the step's seconds, compiling included, and the process's peak memory are recorded.
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "010_speed")]
import photos  # noqa: E402

import runs  # noqa: E402


class Reference(NamedTuple):
    """split: of the figure; published, %: as the config's docstring says with its source; batch: images a step."""

    split: str
    published: float
    classes: int
    batch: int
    size: tuple[int, int]


REFERENCES = {
    "imagenet:resnet50": Reference("validation", 76.7, 1000, 1024, (375, 500)),
    "imagenet:vit_s16": Reference("validation", 76.5, 1000, 1024, (375, 500)),
    "cifar10:resnet18": Reference("test", 93.0, 10, 128, (32, 32)),
}
RESULTS, DRY = HERE / "results.jsonl", HERE / "dry.jsonl"


def train(name: str, seed: int, workdir: Path, overrides: list[str]) -> None:
    record = runs.run(f"configs/{name.replace(':', '.py:')}", seed, workdir, overrides)
    accuracy = record["splits"][REFERENCES[name].split]["accuracy"]
    with RESULTS.open("a") as file:
        file.write(json.dumps({"name": name, "accuracy": accuracy, **record}) + "\n")


def images(folder: Path, reference: Reference) -> None:
    """folder/{train,val,test}/CLASS/*.jpg, all classes in each: links to 64 photographs."""
    made = sorted(photos.folder(*reference.size).rglob("*.jpg"))
    each = -(-reference.batch // reference.classes)
    for split, count in (("train", each), ("val", 1), ("test", 1)):
        for c in range(reference.classes):
            place = folder / split / f"n{c:08}"
            place.mkdir(parents=True)
            for n in range(count):
                shutil.copyfile(made[(c * count + n) % len(made)], place / f"{n}.jpg")


def dry_run(name: str, overrides: list[str]) -> None:
    reference = REFERENCES[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images(folder / "data", reference)
        changes = {
            "data.name": "image_folder",
            "data.manual_dir": folder / "data",
            f"data.{reference.split}_split": f"{reference.split}[:{reference.batch}]",
            "train.total_epochs": None,
            "train.total_steps": 1,
            "eval.every_epochs": None,
            "eval.every_steps": 1,
            "checkpoint.every_epochs": None,
            "checkpoint.every_steps": 1,
            "schedule.warmup_epochs": None,
            "schedule.warmup_steps": 0,
            "log.every_steps": 1,
        }
        flags = [f"--config.{key}={value}" for key, value in changes.items()]
        command = [sys.executable, "-m", "imgrec_jax.main", f"--config=configs/{name.replace(':', '.py:')}", *flags]
        command += [*(f"--config.{override}" for override in overrides), f"--workdir={folder / 'run'}"]
        said, seconds, began = "", 0.0, time.perf_counter()
        with subprocess.Popen(command, cwd=runs.ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                said += line
                if re.match("step 1/1", line):
                    seconds = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(f"error: the run ended with status {process.returncode}")
        saved = sum(file.stat().st_size for file in (folder / "run").rglob("*") if file.is_file())
    record = {
        "name": name,
        "batch": reference.batch,
        "overrides": overrides,
        "parameters": int(re.search(r"([\d,]+) parameters", said).group(1).replace(",", "")),
        "seconds_to_step_1": round(seconds, 1),
        "peak_MiB": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "workdir_MiB": saved // 2**20,
        "cores": len(os.sched_getaffinity(0)),
    }
    with DRY.open("a") as file:
        file.write(json.dumps(record) + "\n")


def table() -> str:
    lines = ["| config | published, % | here, % (seed) | minutes |", "| --- | --- | --- | --- |"]
    for name, reference in REFERENCES.items():
        mine = [r for r in runs.read(RESULTS) if r["name"] == name]
        here = ", ".join(f"{100 * r['accuracy']:.2f} ({r['seed']})" for r in mine) or "not run"
        lines.append(f"| `{name}` | {reference.published} | {here} | {', '.join(f'{runs.minutes(r):.0f}' for r in mine)} |")
    head = [
        "config",
        "parameters",
        "images a step",
        "changed",
        "seconds to the end of step 1",
        "peak MiB",
        "workdir, MiB",
        "cores",
    ]
    lines += ["", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for r in {r["name"]: r for r in runs.read(DRY)}.values():
        cells = [f"`{r['name']}`", f"{r['parameters']:,}", f"{r['batch']:,}", ", ".join(f"`{o}`" for o in r["overrides"])]
        cells += [r["seconds_to_step_1"], f"{r['peak_MiB']:,}", r["workdir_MiB"], r["cores"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=REFERENCES, help="none: only the table")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--data", type=Path, help="folder of the images, as the config's docstring says")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdirs", type=Path, default=Path("runs/036_reference_configs"))
    arguments, others = parser.parse_known_args()
    if wrong := [word for word in others if not word.startswith("--config.")]:
        parser.error(f"unknown arguments {wrong}; what goes to the config is --config.KEY=VALUE")
    overrides = [word.removeprefix("--config.") for word in others]
    if arguments.name and arguments.dry_run:
        dry_run(arguments.name, overrides)
    elif arguments.name:
        if arguments.data:
            overrides = [f"data.manual_dir={arguments.data.resolve()}", *overrides]
            if arguments.name.startswith("cifar10"):
                overrides = ["data.name=image_folder", *overrides]
        workdir = arguments.workdirs.resolve() / f"{arguments.name.replace(':', '_')}_{arguments.seed}"
        train(arguments.name, arguments.seed, workdir, overrides)
    runs.put(HERE / "README.md", table())
    print(table())


if __name__ == "__main__":
    main()
