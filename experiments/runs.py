"""Runs of the program, one after the other, and what came of them, for the tables of this folder.

Every run is `python -m imgrec_jax.main` in a process of its own. A record holds the command, the wall time of the whole
process, and the last evaluation of every split; records are appended to a file as they come, and a run that is there already is
not made again.
"""

import argparse
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
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


def study(
    script: str,
    description: str,
    config: str,
    variants: Sequence[str],
    columns: Mapping[str, tuple[Callable[[dict], float], int]],
    measure: Callable[[str, Path], dict] = lambda variant, workdir: {},
) -> None:
    """Command line of an experiment: every variant of a config with every seed, and a table of mean and range.

    Args:
      script: the caller's `__file__`; records go to `result.jsonl` beside it, one line of JSON each.
      description: what `--help` says.
      config: path of the config file, of which `variants` are the variants.
      columns: name -> (value of a record, decimal places).
      measure: (variant, workdir of a finished run) -> further entries of its record.
    """
    here = Path(script).resolve().parent
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="*", default=variants, choices=variants, help="none: only print the table")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=here / "result.jsonl")
    parser.add_argument("--workdirs", type=Path, default=Path("runs") / here.name)
    args = parser.parse_args()
    for variant in args.variants:
        for seed in args.seeds:
            name = f"{config}:{variant}"
            if any((record["config"], record["seed"]) == (name, seed) for record in read(args.out)):
                continue
            workdir = args.workdirs.resolve() / f"{variant}_{seed}"
            record = run(name, seed, workdir)
            record |= measure(variant, workdir)
            with args.out.open("a") as file:
                file.write(json.dumps(record) + "\n")
    print(table(read(args.out), config, variants, columns))


def table(records: list[dict], config: str, variants: Sequence[str], columns: Mapping[str, tuple[Callable, int]]) -> str:
    """Markdown: a row for each variant that has records."""
    lines = [f"| | {' | '.join(columns)} | seeds |", "|---" * (len(columns) + 2) + "|"]
    for variant in variants:
        mine = [record for record in records if record["config"] == f"{config}:{variant}"]
        if mine:
            cells = [spread([value(record) for record in mine], digits) for value, digits in columns.values()]
            lines.append(f"| {variant} | {' | '.join(cells)} | {len(mine)} |")
    return "\n".join(lines)


def test_value(name: str) -> Callable[[dict], float]:
    """That metric on the test split, of the checkpoint that validation chose."""
    return lambda record: record["splits"]["best_test"][name]


def minutes(record: dict) -> float:
    """Of the whole process."""
    return record["seconds"] / 60


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and the range: `0.912 (0.905 to 0.917)`."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def put(page: Path, text: str, mark: str = "table") -> None:
    """Replaces what stands between `<!-- table -->` and `<!-- end of table -->` of a page."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->"
    before, _, rest = page.read_text().partition(begin)
    page.write_text(f"{before}{begin}\n{text}\n\n{end}{rest.partition(end)[2]}")


def milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began)


def final_state(workdir: Path) -> dict:
    """{name: array} of a run's last checkpoint, whatever devices wrote it; "step" is the int under that name."""
    import jax
    import numpy as np

    from imgrec_jax.run import checkpoint

    state = checkpoint.read_arrays(checkpoint.saved(workdir)[-1])
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def fingerprint(workdir: Path) -> dict[str, str]:
    """{what: sha256} of the final state and the metrics file: equal where two runs ended bit for bit alike."""
    digest = hashlib.sha256()
    for name, value in sorted(final_state(workdir).items()):
        digest.update(name.encode() + value.tobytes())
    return {
        "state": digest.hexdigest(),
        "metrics": hashlib.sha256((workdir / "metrics.jsonl").read_bytes()).hexdigest(),
    }


def kill_at(command: Sequence[str], step: int, delay: float) -> bool:
    """SIGKILLs a run `delay` seconds after it reported `step` (0: after it started); returns whether it was still alive."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in process.stdout if step else ():
        if line.startswith("step ") and int(line.split()[1].split("/")[0]) >= step:
            break
    try:
        process.wait(timeout=delay)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    finally:
        process.stdout.close()
