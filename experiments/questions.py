"""A question that sweeps answer: what the folders 030 to 035 share.

Each is one or more sweeps (`python -m imgrec_jax.sweep`), so an answer that was cut off goes on when the same command is given
again. The sweeps lie in `runs/EXPERIMENT` (`runs/EXPERIMENT_quick` with `--quick`), a workdir a run; what the table needs of
every run is a line of `results.jsonl` beside the script, which is written after each sweep: one whose runs are all there is not
made again, wherever its workdirs are (`--again` makes all).
"""

import argparse
import hashlib
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import runs

SPLITS = ("validation", "test", "best_test")


class Sweep(NamedTuple):
    """grid: {key: its values}; common: {key: value} of every run; quick: what `--quick` changes of either; metrics: to keep."""

    name: str
    config: str
    grid: Mapping[str, Sequence[Any]]
    common: Mapping[str, Any]
    quick: Mapping[str, Any]
    metrics: Sequence[str] = ("accuracy", "loss")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value).replace(" ", "")


def run_sweep(sweep: Sweep, folder: Path, seeds: int, quick: bool, cores: int) -> list[dict]:
    """Runs what is not done yet of a sweep, each run on `cores` cores, as many at a time as there are; a record a run."""
    changed = sweep.quick if quick else {}
    grid = {key: changed.get(key, values) for key, values in sweep.grid.items()}
    common = {**sweep.common, **{key: value for key, value in changed.items() if key not in grid}}
    command = [sys.executable, "-m", "imgrec_jax.sweep", f"--config={sweep.config}", f"--folder={folder}"]
    command += [f"--seeds={seeds}", f"--cores={cores}"]
    command += [f"--config.{key}={_text(value)}" for key, value in common.items()]
    command += [word for key, values in grid.items() for word in ("--grid", f"{key}={','.join(map(_text, values))}")]
    done = subprocess.run(command, cwd=runs.ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SystemExit(f"error: the sweep {sweep.name} ended with status {done.returncode}; the same command goes on")
    return [_record(sweep, entry, cores) for entry in runs.read(folder / "results.jsonl")]


def _record(sweep: Sweep, entry: Mapping[str, Any], cores: int) -> dict:
    splits = {
        split: {m: round(entry["splits"][split][m], 6) for m in sweep.metrics if m in entry["splits"][split]}
        for split in SPLITS
        if split in entry["splits"]
    }
    how = {"seed": entry["seed"], "values": entry["values"], "seconds": entry["seconds"], "cores": cores}
    return {"sweep": sweep.name, "recipe": _recipe(sweep), **how, **splits}


def _recipe(sweep: Sweep) -> str:
    """Tells sweeps of one name apart whose common settings are others."""
    common = {key: _text(value) for key, value in sweep.common.items()}
    return hashlib.sha256(json.dumps([sweep.config, common], sort_keys=True).encode()).hexdigest()[:8]


def _kept(sweep: Sweep, known: Sequence[dict], seeds: int) -> list[dict]:
    """The records of a sweep, if each of its points is there with each seed and made by its settings; else []."""
    points = [dict(zip(sweep.grid, map(_text, values), strict=True)) for values in itertools.product(*sweep.grid.values())]
    mine = _recipe(sweep)
    known = [r for r in known if (r["sweep"], r.get("recipe", mine)) == (sweep.name, mine)]
    found = [r for r in known if r["values"] in points and r["seed"] < seeds]
    return found if len(found) == len(points) * seeds else []


def ask(
    script: str,
    description: str,
    sweeps: Sequence[Sweep] | Callable[[list[dict]], Iterator[Sweep]],
    answer: Callable[[list[dict], Path], str],
    *,
    seeds: int = 5,
    quick: Sequence[Sweep] | None = None,
    measure: Callable[[Sweep, Path, list[dict], Path], None] = lambda sweep, folder, records, place: None,
) -> None:
    """Command line of a question.

    Args:
      script: the caller's `__file__`.
      description: what `--help` says.
      sweeps: all of them, or a generator that is called with the list of records so far, which grows while it is asked: a later
        sweep may use what an earlier one chose on its validation split.
      answer: (records, where to put plots) -> the table as Markdown.
      quick: the sweeps of `--quick`, where they are others.
      measure: (sweep, its folder, its records, where to put plots) adds to the records.
    """
    here = Path(script).resolve().parent
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few values, seeds and steps: minutes, for a look; keeps nothing")
    parser.add_argument("--table", action="store_true", help="run nothing; write table and plots from results.jsonl")
    parser.add_argument("--again", action="store_true", help="make also the sweeps whose records are there")
    parser.add_argument("--seeds", type=int, help=f"how many (default {seeds}; --quick 2)")
    parser.add_argument(
        "--cores", type=int, default=1, help="of each run; as many run at a time as there are cores for (default 1)"
    )
    parser.add_argument("--workdirs", type=Path, default=Path("runs"), help="where the sweeps lie (default runs)")
    args = parser.parse_args()
    results = here / "results.jsonl"
    if args.table:
        runs.put(here / "README.md", answer(runs.read(results), here))
        return
    folder = args.workdirs.resolve() / f"{here.name}{'_quick' if args.quick else ''}"
    place = folder if args.quick else here
    records: list[dict] = []
    known = [] if args.quick or args.again else runs.read(results)
    count = args.seeds or (2 if args.quick else seeds)
    chosen_sweeps = quick if args.quick and quick is not None else sweeps
    for sweep in chosen_sweeps(records) if callable(chosen_sweeps) else chosen_sweeps:
        mine = _kept(sweep, known, count)
        if not mine:
            mine = run_sweep(sweep, folder / sweep.name, count, args.quick, args.cores)
            measure(sweep, folder / sweep.name, mine, place)
        records += mine
        if not args.quick:
            made = {r["sweep"] for r in records}
            lines = [*records, *(r for r in known if r["sweep"] not in made)]
            results.write_text("".join(json.dumps(record) + "\n" for record in lines))
    text = answer(records, place)
    print(text)
    if args.quick:
        print(f"plots in {place}", file=sys.stderr)
        return
    runs.put(here / "README.md", text)


def of(records: Sequence[dict], sweep: str | None = None, values: Mapping[str, Any] | None = None) -> list[dict]:
    """The records of a sweep with these values, {key: value}."""
    wanted = {key: _text(value) for key, value in (values or {}).items()}
    return [r for r in records if sweep in (None, r["sweep"]) and wanted.items() <= r["values"].items()]


def mean(records: Sequence[dict], split: str, metric: str = "accuracy") -> float:
    return statistics.mean(r[split][metric] for r in records)


def values_of(records: Sequence[dict], key: str) -> list[str]:
    """In the order of the grid."""
    return list(dict.fromkeys(r["values"][key] for r in records if key in r["values"]))


def chosen(records: Sequence[dict], *keys: str, metric: str = "accuracy") -> list[dict]:
    """For each combination of the other keys the records of those values of `keys` whose validation is best, by the mean over
    seeds. The test split has no say."""
    groups: dict[str, dict[tuple, list[dict]]] = {}
    for record in records:
        others = {k: v for k, v in record["values"].items() if k not in keys}
        mine = tuple(record["values"].get(key) for key in keys)
        groups.setdefault(json.dumps([record["sweep"], others]), {}).setdefault(mine, []).append(record)
    kept = []
    for candidates in groups.values():
        kept += max(candidates.values(), key=lambda rows: mean(rows, "validation", metric))
    return kept


def percent(records: Sequence[dict], split: str = "test", metric: str = "accuracy") -> str:
    """ "98.12 ± 0.10": mean and standard deviation over the seeds, in per cent."""
    found = [100 * r[split][metric] for r in records]
    if not found:
        return ""
    return f"{statistics.mean(found):.2f}" + (f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else "")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def figure(count: int = 1, width: float = 4.4) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made, axes = pyplot.subplots(1, count, figsize=(width * count, 3.6), layout="constrained", squeeze=False)
    for one in axes[0]:
        one.grid(alpha=0.3)
    return made, axes[0]


def save(made: Any, path: Path) -> None:
    from matplotlib import pyplot

    made.savefig(path, dpi=100)
    pyplot.close(made)
