"""Many small files in folders: read in place and prepared. See README.md.

python experiments/012_many_files/run.py make DIR --count=200000
python experiments/012_many_files/run.py measure DIR OUT.json
python experiments/012_many_files/run.py again DIR OUT.json
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]


def make(folder: Path, count: int, start: int = 0) -> None:
    """JPEG files of 28 x 28 pixels in ten folders; a class is where a bright square lies."""
    rng = np.random.default_rng(start)
    for label in range(10):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
    for n in range(start, start + count):
        label = n % 10
        image = rng.integers(0, 90, (28, 28), dtype=np.uint8)
        y, x = divmod(label, 4)
        image[2 + 9 * y : 9 + 9 * y, 1 + 7 * x : 7 + 7 * x] += 140
        cv2.imwrite(str(folder / f"class{label}" / f"{n:06}.jpg"), image)


def start(
    folder: Path, cache: Path, workdir: Path, *flags: str, until: str = "", after: float = 0.0, memory: bool = True
) -> dict:
    """One start of the program, from nothing to its end: seconds to each of what it says, peak memory of process and children.

    until: it is killed `after` seconds after it says this. memory: look at it, which slows the program.
    """
    command = [
        sys.executable, "-m", "imgrec_jax.main", "--config=configs/image_folder.py", f"--config.data.manual_dir={folder}",
        f"--config.data.data_dir={cache}", f"--workdir={workdir}", "--config.model.name=linear",
        "--config.train.total_steps=20", "--config.eval.every_steps=1000000", "--config.log.every_steps=1",
        "--config.checkpoint.every_steps=10", "--config.data.validation_split=validation[:200]",
        "--config.data.test_split=test[:200]", "--config.data.in_memory=false", *flags,
    ]  # fmt: skip
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    said: list[tuple[float, str]] = []

    def listen() -> None:
        for line in process.stdout:
            said.append((round(time.perf_counter() - began, 2), line.rstrip()))

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    at = lambda text: next((s for s, line in said if text in line), None)  # noqa: E731
    peak = 0
    while process.poll() is None:
        time.sleep(0.05)
        peak = max(peak, _memory(process.pid)) if memory else 0
        if until and (heard := at(until)) is not None and time.perf_counter() - began > heard + after:
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.wait()
    listener.join(5)
    return {
        "status": process.returncode,
        "seconds": round(time.perf_counter() - began, 2),
        "looked at files after": at("classes; in training"),
        "first step after": next((s for s, line in said if line.startswith("step ")), None),
        "peak MB": round(peak / 2**20),
        "said": [line for _, line in said if any(word in line for word in ("prepar", "looking at", "error", " images"))],
    }


def _memory(pid: int) -> int:
    """Bytes of a process and its children: pages of files that can be dropped left out, shared pages counted once."""
    total = 0
    for entry in [pid, *map(int, _children(pid))]:
        try:
            lines = Path(f"/proc/{entry}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) * 1024
        except (OSError, StopIteration, ValueError):
            continue
    return total


def _children(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []


def measure(folder: Path, out: Path) -> None:
    scratch = out.parent / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    results: dict = {"files": sum(1 for _ in folder.rglob("*.jpg")), "cores": os.cpu_count()}

    def note(name: str, value: dict) -> None:
        results[name] = value
        print(name, json.dumps(value), flush=True)
        out.write_text(json.dumps(results, indent=1))

    note("killed while it looks at files", start(folder, scratch / "c", scratch / "k", until="looking at", after=15))
    note("first start, goes on", start(folder, scratch / "c", scratch / "a"))
    note("second start", start(folder, scratch / "c", scratch / "b"))
    for number in (1, 2):
        killed = start(folder, scratch / "c", scratch / "p", "--config.data.prepare=true", until="images ...", after=8)
        note(f"preparation, killed {number}", killed)
    note("preparation, goes on", start(folder, scratch / "c", scratch / "p", "--config.data.prepare=true"))
    note("prepared, second start", start(folder, scratch / "c", scratch / "q", "--config.data.prepare=true"))
    count = results["files"]
    make(folder, 500, start=count)
    try:
        note("500 files added", start(folder, scratch / "c", scratch / "r", "--config.data.prepare=true"))
    finally:
        for path in folder.rglob("*.jpg"):
            if int(path.stem) >= count:
                path.unlink()
    shutil.rmtree(scratch, ignore_errors=True)


def again(folder: Path, out: Path, times: int = 5) -> None:
    """Second starts, timed without the look at their memory, and one with it; then one with a file changed and one added."""
    scratch = out.parent / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    start(folder, scratch / "c", scratch / "first", memory=False)
    results: dict = {"files": sum(1 for _ in folder.rglob("*.jpg")), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    starts = [start(folder, scratch / "c", scratch / str(n), memory=False) for n in range(times)]
    results["first step after"] = [each["first step after"] for each in starts]
    results["peak MB"] = start(folder, scratch / "c", scratch / "memory")["peak MB"]
    changed = next(folder.rglob("*.jpg"))
    added, before = changed.with_name("added.jpg"), changed.read_bytes()
    try:
        added.write_bytes(before)
        changed.write_bytes(before + b"0")
        results["one changed, one added"] = start(folder, scratch / "c", scratch / "changed", memory=False)["said"]
    finally:
        changed.write_bytes(before)
        added.unlink(missing_ok=True)
    out.write_text(json.dumps(results, indent=1))
    print(json.dumps(results, indent=1))
    shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("make", "measure", "again"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=200_000)
    given = parser.parse_args()
    if given.what == "make":
        make(given.folder, given.count)
    else:
        {"measure": measure, "again": again}[given.what](given.folder.resolve(), given.out.resolve())
