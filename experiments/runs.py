"""Runs of the program, one after the other, and what came of them, for the tables of this folder.

Every run is `python -m imgrec_jax.main` in a process of its own. A record holds the command, the wall time of the whole
process, and the last evaluation of every split; records are appended to a file as they come, and a run that is there already is
not made again.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(config: str, seed: int, workdir: Path, overrides: Sequence[str] = ()) -> dict:
    """Trains to the end and returns the record; what the program prints goes to `workdir`.log."""
    flags = [f"--config={config}", f"--config.seed={seed}", *(f"--config.{override}" for override in overrides)]
    workdir.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with workdir.with_suffix(".log").open("w") as log:
        command = [sys.executable, "-m", "imgrec_jax.main", *flags, f"--workdir={workdir}"]
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed; see {workdir.with_suffix('.log')}")
    seconds = time.perf_counter() - began
    splits = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["split"] != "train":
            splits[record["split"]] = {name: value for name, value in record.items() if isinstance(value, int | float)}
    cores = len(os.sched_getaffinity(0))
    return {"config": config, "seed": seed, "flags": flags, "seconds": round(seconds, 1), "cores": cores, "splits": splits}


def run_all(configs: Iterable[str], seeds: Iterable[int], out: Path, workdirs: Path, overrides: Sequence[str] = ()) -> None:
    """Runs every config with every seed and appends the records to `out`, a file of JSON lines."""
    seeds = list(seeds)
    known = {(record["config"], record["seed"]) for record in read(out)}
    for config in configs:
        for seed in seeds:
            if (config, seed) in known:
                continue
            name = f"{Path(config.partition(':')[0]).stem}_{config.partition(':')[2].replace(',', '_')}_{seed}"
            record = run(config, seed, workdirs / name, overrides)
            with out.open("a") as file:
                file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and the range: `0.912 (0.905 to 0.917)`."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def final_state(workdir: Path) -> dict:
    """{name: array} of a run's last checkpoint, whatever devices wrote it; "step" is the int under that name."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    folder = workdir.absolute() / "checkpoints"
    path = folder / str(max(int(p.name) for p in folder.iterdir() if p.name.isdigit())) / "state"
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(path).item_metadata.tree)
    state = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
