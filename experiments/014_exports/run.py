"""Do exported files answer as the run does, and how fast? python experiments/014_exports/run.py WORKDIR...

For every workdir StableHLO and ONNX are made, each is compared with the live model on 100 images of the test split, and all
three are timed in turn on the first of them. Needs imgrec-jax[export,onnx]. Results go to `result.json`, the latest of
each task, and the table of README.md is written from them. --only=difference or --only=ms leaves the other figures as they are,
so that the times can be taken while nothing else runs.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import imgrec_jax
from imgrec_jax import parallel
from imgrec_jax.inference import artefact, onnx_export, stablehlo

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runs

HERE = Path(__file__).resolve().parent
RESULT = HERE / "result.json"
ROUNDS = 5
TIMED = 20  # images of a round


def measured(workdir: Path, batches: tuple[int, int], wanted: tuple[str, ...]) -> dict:
    """Of a run's two files at both sizes of batch what is wanted: "difference" from the live model, "ms" an image."""
    run = imgrec_jax.load(workdir)
    images, _ = artefact.sample_images(run, artefact.IMAGES)
    fixed = run.config.task == "detection"
    live = jax.jit(artefact.answers_of(run, images.shape[1:]), compiler_options=parallel.compiler_options())
    record: dict = {
        "cores": len(os.sched_getaffinity(0)),
        "jax": jax.__version__,
        "model": run.config.model.name,
        "task": run.config.task,
        "image": list(images.shape[1:]),
        "batches": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        portable = Path(folder) / "a.bin"
        portable.write_bytes(stablehlo.make(run, images).data)
        for rows in batches:
            graph = Path(folder) / (f"{rows}.onnx" if fixed else "a.onnx")
            if not graph.exists():
                graph.write_bytes(onnx_export.make(run, images, rows if fixed else None).data)
            program = jax.export.deserialize(bytearray(portable.read_bytes()))
            programs = {
                "live": live,
                "stablehlo": jax.jit(program.call, compiler_options=parallel.compiler_options()),
                "onnx": onnx_export.load(graph),
            }
            print(record["task"], rows, flush=True)
            found = record["batches"][str(rows)] = {}
            if "difference" in wanted:
                files = ("stablehlo", "onnx")
                found["difference"] = {name: artefact.compare(programs[name], live, images, [rows]) for name in files}
            if "ms" in wanted:
                found["ms"] = timed(programs, images[:TIMED], rows)
    return record


def timed(programs: dict[str, Callable], images: np.ndarray, rows: int) -> dict[str, float]:
    """Milliseconds an image, medians over rounds in which the programs take turns."""
    parts = [images[start : start + rows] for start in range(0, len(images) - rows + 1, rows)]
    for program in programs.values():  # which is compiled by then
        jax.block_until_ready(program(parts[0]))
    found: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(ROUNDS):
        for name, program in programs.items():
            began = time.perf_counter()
            for part in parts:
                jax.block_until_ready(program(part))
            found[name].append(1e3 * (time.perf_counter() - began) / (len(parts) * rows))
    return {name: round(statistics.median(times), 3) for name, times in found.items()}


def table(records: list[dict]) -> str:
    lines = [
        "| run | batch | StableHLO off by | ONNX off by | live, ms an image | StableHLO | ONNX Runtime |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for record in records:
        for rows, found in record["batches"].items():
            off = [
                ", ".join(
                    f"{name} {gap:.0e}" if gap else f"{name} 0"
                    for name, gap in found.get("difference", {}).get(kind, {}).items()
                )
                for kind in ("stablehlo", "onnx")
            ]
            ms = found.get("ms", {})
            times = " | ".join(f"{ms[name]:.3g}" if ms else "" for name in ("live", "stablehlo", "onnx"))
            lines.append(f"| {record['task']}, `{record['model']}` | {rows} | {off[0]} | {off[1]} | {times} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", type=Path)
    parser.add_argument("--batches", type=int, nargs=2, default=(1, 4))
    parser.add_argument("--only", choices=("difference", "ms"))
    arguments = parser.parse_args()
    for workdir in arguments.workdirs:
        record = measured(workdir, tuple(arguments.batches), (arguments.only,) if arguments.only else ("difference", "ms"))
        records = json.loads(RESULT.read_text()) if RESULT.exists() else []
        before = [other for other in records if other["task"] == record["task"]] if arguments.only else []
        for rows, found in record["batches"].items():
            for other in before:
                record["batches"][rows] = {**other["batches"].get(rows, {}), **found}
        records = [*(other for other in records if other["task"] != record["task"]), record]
        RESULT.write_text(json.dumps(records, indent=1) + "\n")
    runs.put(HERE / "README.md", table(records))


if __name__ == "__main__":
    main()
