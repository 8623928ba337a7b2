"""How fast does `imgrec predict` answer, on many images of mixed sizes and on the first one of a process?

python experiments/018_predict/run.py many WORKDIR FOLDER [--images N]     images a second, programs, peak memory
python experiments/018_predict/run.py first WORKDIR IMAGE                  seconds from the start of a process to its end

FOLDER is filled with 2,000 pictures of random sizes where it is not there. Results go to `result.json`, the latest of each run,
and the tables of README.md are written from them.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runs

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
RESULT = HERE / "result.json"
SIDES = 60, 400  # of the pictures
LINE = re.compile(r"([\d,]+) images in ([\d.]+) s .* (\d+) compiled shapes, ([\d,]+) MB")


def fill(folder: Path, count: int = 2000) -> None:
    """Smooth colours of every size, half as PNG and half as JPEG."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        height, width = (int(side) for side in rng.integers(*SIDES, 2))
        image = cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{number:04}.{('png', 'jpg')[number % 2]}"), image)


def predict(workdir: Path, home: str | None, paths: list[str], out: Path) -> tuple[float, str]:
    """(seconds of the whole process, its last line of notes); home: of its cache of compiled programs, None: the user's."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **({"HOME": home} if home else {})}
    environment = {key: value for key, value in environment.items() if not (home and key.startswith("XDG_"))}
    command = [sys.executable, "-m", "imgrec_jax.predict", f"--workdir={workdir}", f"--out={out}", "-"]
    began = time.perf_counter()
    done = subprocess.run(command, input="\n".join(paths), capture_output=True, text=True, env=environment, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stderr)
    return seconds, next(line for line in reversed(done.stderr.splitlines()) if LINE.match(line))


def many(workdir: Path, folder: Path, count: int, scratch: Path) -> dict:
    if not folder.exists():
        fill(folder)
    paths = sorted(str(path) for path in folder.iterdir())[:count]
    seconds, line = predict(workdir, str(scratch), paths, scratch / "answers.jsonl")
    found = LINE.match(line)
    assert found is not None
    images, programs, memory = (int(found[n].replace(",", "")) for n in (1, 3, 4))
    return {"images": images, "seconds": round(seconds, 1), "a_second": round(images / seconds, 1), "programs": programs,
            "peak_mb": memory}  # fmt: skip


def first(workdir: Path, image: Path, scratch: Path) -> dict:
    times = [predict(workdir, str(scratch), [str(image)], scratch / "answers.jsonl")[0] for _ in range(3)]
    return {"cold": round(times[0], 2), "warm": [round(t, 2) for t in times[1:]]}


def tables(results: dict) -> str:
    lines = [
        "| run | images | seconds | images a second | compiled programs | peak memory |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, r in results.get("many", {}).items():
        lines.append(
            f"| {name} | {r['images']:,} | {r['seconds']:.0f} | {r['a_second']:.0f} | {r['programs']} | {r['peak_mb']:,} MB |"
        )
    lines += ["", "| run | first answer, cold | warm, twice |", "| --- | --- | --- |"]
    for name, r in results.get("first", {}).items():
        lines.append(f"| {name} | {r['cold']:.1f} s | {', '.join(f'{t:.1f}' for t in r['warm'])} s |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("many", "first"))
    parser.add_argument("workdir", type=Path)
    parser.add_argument("place", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    arguments = parser.parse_args()
    config = json.loads((arguments.workdir / "config.json").read_text())
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.what == "many":
            found = many(arguments.workdir, arguments.place, arguments.images, Path(scratch))
        else:
            found = first(arguments.workdir, arguments.place, Path(scratch))
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results.setdefault(arguments.what, {})[f"{config['task']}, `{config['model']['name']}`"] = found
    RESULT.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(found))
    runs.put(HERE / "README.md", tables(results), "tables")


if __name__ == "__main__":
    main()
