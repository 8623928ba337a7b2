"""Command line: python -m imgrec_jax.sweep --config=mnist:fast --grid optim.learning_rate=0.01,0.02 --seeds=3

Runs every point of a grid (or of a random sample) with every seed. Each is an ordinary run in a workdir of its own, equal to
one that was started by hand with the same flags and as many cores; a sweep that was stopped goes on when the same command is
given again. Its folder holds sweep.json (what was asked for), results.jsonl (a line a finished run), table.md, table.csv and,
over the first key that has numbers, plot.png.
"""

import csv
import hashlib
import itertools
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imgrec_jax.inference.command import Parser, ending_in_one_line, note
from imgrec_jax.main import configure, default_workdir

RESULTS, ASKED = "results.jsonl", "sweep.json"
PATIENCE_SECONDS = 20  # with a run that an earlier start of the sweep has left behind


class Point(NamedTuple):
    """name: of its workdir; values: {key: text} of what varies but the seed; overrides: {key: text} of all that is given."""

    name: str
    seed: int
    values: dict[str, str]
    overrides: dict[str, str]


def parser() -> Parser:
    made = Parser("sweep", __doc__)
    made.add_argument("--config", required=True, metavar="NAME", help="as of imgrec; --config.KEY=VALUE holds for every point")
    made.add_argument("--grid", action="append", default=[], metavar="KEY=V1,V2", help="values; several --grid multiply")
    made.add_argument("--random", type=int, metavar="N", help="N points drawn by --sample in place of a grid")
    made.add_argument("--sample", action="append", default=[], metavar="KEY=LOW:HIGH[:log|:int]",
                      help="with --random: from LOW to HIGH, evenly or evenly in its logarithm; or KEY=V1,V2")  # fmt: skip
    made.add_argument("--sample_seed", type=int, default=0, help="of the random points (default 0)")
    made.add_argument("--seeds", default="1", metavar="N", help="N: seeds 0 to N-1; or a list, 3,5,8 (default 1)")
    made.add_argument("--folder", type=Path, help="of the sweep (default runs/sweep_CONFIG)")
    made.add_argument("--jobs", type=int, help="runs at a time (default: as many as devices, or cores / --cores)")
    made.add_argument("--cores", type=int, default=1, help="cores of each run (default 1); pinned where the system can")
    made.add_argument("--devices", metavar="0,1", help="GPUs, one a run (CUDA_VISIBLE_DEVICES)")
    made.add_argument("--metrics", metavar="A,B", help="of the table (default: what the config shows on the terminal)")
    made.add_argument("--dry_run", action="store_true", help="only list the points")
    made.add_argument("--slurm", type=Path, metavar="FILE", help="run nothing; write an sbatch array script, a task a point")
    made.add_argument("--only", type=int, metavar="I", help="run point I alone (what the array script does)")
    made.add_argument("--verbosity", type=int, default=0, help="1 shows where an error happened")
    return made


def split_values(text: str) -> list[str]:
    """ "0.1,0.2" -> ["0.1", "0.2"]; commas within brackets or quotes do not divide: "(8,8),(16,16)"."""
    values, depth, quote, current = [], 0, "", ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0 and not quote:
            values.append(current)
            current = ""
        else:
            current += character
    return [value.strip() for value in (*values, current)]


def _key_and_text(text: str, flag: str) -> tuple[str, str]:
    key, equals, values = text.partition("=")
    if not equals or not key or not values:
        raise ValueError(f"--{flag} {text}: expected KEY=VALUES, e.g. --{flag} optim.learning_rate=0.01,0.02")
    return key.removeprefix("config."), values


def grid(texts: Sequence[str]) -> list[dict[str, str]]:
    """Every combination, the last key varying fastest."""
    axes = [(key, split_values(values)) for key, values in (_key_and_text(text, "grid") for text in texts)]
    keys = [key for key, _ in axes]
    if len(set(keys)) < len(keys):
        raise ValueError(f"--grid: a key twice among {keys}")
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*(values for _, values in axes))]


def sample(texts: Sequence[str], count: int, seed: int) -> list[dict[str, str]]:
    """`count` points; the first n of more are the n of fewer."""
    import numpy as np

    def draw(key: str, text: str, number: int) -> str:
        rng = np.random.default_rng([seed, number, int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")])
        parts = text.split(":")
        if len(parts) == 1:
            values = split_values(text)
            return values[rng.integers(len(values))]
        try:
            low, high, kind = float(parts[0]), float(parts[1]), parts[2] if len(parts) > 2 else ""
        except ValueError:
            low, high, kind = 0.0, -1.0, ""
        if low > high or kind not in ("", "log", "int") or (kind == "log" and low <= 0) or len(parts) > 3:
            raise ValueError(f"--sample {key}={text}: expected LOW:HIGH, LOW:HIGH:log with LOW above 0, LOW:HIGH:int, or V1,V2")
        if kind == "int":
            return str(rng.integers(int(low), int(high) + 1))
        return f"{math.exp(rng.uniform(math.log(low), math.log(high))) if kind == 'log' else rng.uniform(low, high):.4g}"

    axes = [_key_and_text(text, "sample") for text in texts]
    return [{key: draw(key, text, number) for key, text in axes} for number in range(count)]


def seeds_of(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0 or (len(numbers) == 1 and "," not in text and numbers[0] < 1):
        raise ValueError(f"--seeds={text}; expected how many, or a list such as 3,5,8")
    return list(range(numbers[0])) if len(numbers) == 1 and "," not in text else numbers


def points(combinations: Sequence[Mapping[str, str]], seeds: Sequence[int], common: Mapping[str, str]) -> list[Point]:
    """A point a combination and seed, with names that are different and fit into a path."""
    made: list[Point] = []
    for values in combinations:
        for seed in seeds:
            words = [f"{key.rpartition('.')[2]}={value}" for key, value in values.items()] + [f"seed={seed}"]
            name = "_".join(re.sub(r"[^\w.=+-]+", "-", word).strip("-") for word in words)
            if len(name) > 120 or any(point.name == name for point in made):
                name = f"{name[:100]}_{hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]}_seed={seed}"
            made.append(Point(name, seed, dict(values), {**common, **values, "seed": str(seed)}))
    return made


def finished(folder: Path) -> dict[str, dict[str, Any]]:
    """{name: its line of results.jsonl} of the points that are done; a last line that was cut off counts not."""
    done = {}
    if (folder / RESULTS).exists():
        for line in (folder / RESULTS).read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            done[entry["point"]] = entry
    return done


def final_values(workdir: Path) -> dict[str, dict[str, float]]:
    """{split: its last evaluation, numbers alone} of a run."""
    splits: dict[str, dict[str, float]] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["split"] != "train":
            splits[entry["split"]] = {k: v for k, v in entry.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return splits


def command(config: str, point: Point, folder: Path) -> list[str]:
    flags = [f"--config.{key}={value}" for key, value in point.overrides.items()]
    return [sys.executable, "-m", "imgrec_jax.main", f"--config={config}", *flags, f"--workdir={folder / point.name}"]


class Places:
    """Cores or devices, handed out to runs and taken back."""

    def __init__(self, jobs: int, cores: int, devices: Sequence[str]):
        there = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
        self._devices = list(devices)
        groups = [tuple(there[i : i + cores]) for i in range(0, len(there) - cores + 1, cores)] or [tuple(there)]
        self._free = [(groups[i % len(groups)], devices[i % len(devices)] if devices else None) for i in range(jobs)][::-1]

    def take(self) -> tuple[tuple[int, ...], str | None] | None:
        return self._free.pop() if self._free else None

    def give(self, place: tuple[tuple[int, ...], str | None]) -> None:
        self._free.append(place)


# Becomes the command that follows, on these cores; on Linux a sweep that is killed takes its runs with it, which save.
_LAUNCH = """
import ctypes, os, signal, sys
if sys.argv[1] and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, map(int, sys.argv[1].split(",")))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
os.execv(sys.argv[2], sys.argv[2:])
"""


class Running(NamedTuple):
    process: subprocess.Popen
    point: Point
    place: tuple[tuple[int, ...], str | None]
    began: float


def start(config: str, point: Point, folder: Path, place: tuple[tuple[int, ...], str | None]) -> Running:
    """Starts a run on its cores; what it prints goes to NAME.log."""
    cores, device = place
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": device} if device is not None else {})}
    with (folder / f"{point.name}.log").open("a") as log:
        place_of = ",".join(map(str, cores)) if device is None else ""
        process = subprocess.Popen(  # a session of its own: Ctrl-C reaches it through `stop` alone, once
            [sys.executable, "-c", _LAUNCH, place_of, *command(config, point, folder)],
            stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
    return Running(process, point, place, time.perf_counter())


def stop(running: Sequence[Running]) -> None:
    """Asks the runs to save and end, and waits for it."""
    for one in running:
        one.process.send_signal(signal.SIGTERM)
    for one in running:
        one.process.wait()


def run_all(config: str, todo: Sequence[Point], folder: Path, places: Places, total: int) -> list[str]:
    """Runs the points, and returns the names of those that failed. The first has begun to train before others start, so that
    what a data set needs to be prepared is done once."""
    waiting, failed = list(todo), []
    running: list[Running] = []
    busy: list[str] = []
    done = total - len(todo)
    try:
        while waiting or running:
            alone = len(running) == 1 and done == total - len(todo) and not _begun(folder, running[0].point)
            if waiting and not alone and (place := places.take()) is not None:
                running.append(start(config, waiting.pop(0), folder, place))
                continue
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                places.give(one.place)
                done += 1
                seconds = time.perf_counter() - one.began
                if one.process.returncode == 0:
                    _record(folder, one.point, seconds)
                    note(f"{done}/{total}  {one.point.name}: {_headline(folder / one.point.name)}  ({seconds:.0f} s)")
                    continue
                said = (folder / f"{one.point.name}.log").read_text().strip().splitlines()
                if said and " is in use by " in said[-1] and busy.count(one.point.name) < PATIENCE_SECONDS:
                    busy.append(one.point.name)  # a run of a sweep that was killed saves first
                    waiting.insert(0, one.point)
                    done -= 1
                    time.sleep(1.0)
                else:
                    failed.append(one.point.name)
                    note(f"{done}/{total}  {one.point.name} failed: {said[-1] if said else 'without a word'}")
            time.sleep(0.1)
    except BaseException:
        stop(running)
        raise
    return failed


def _begun(folder: Path, point: Point) -> bool:
    """Whether a run has opened its data."""
    return (folder / point.name / "run.json").exists()


def _record(folder: Path, point: Point, seconds: float) -> None:
    entry = {"point": point.name, "seed": point.seed, "values": point.values, "seconds": round(seconds, 1)}
    with (folder / RESULTS).open("a") as file:
        file.write(json.dumps({**entry, "splits": final_values(folder / point.name)}) + "\n")


def _headline(workdir: Path) -> str:
    splits = final_values(workdir)
    shown = splits.get("best_test") or splits.get("test") or next(iter(splits.values()), {})
    return ", ".join(f"{name} {shown[name]:.4g}" for name in ("accuracy", "mean_iou", "AP", "loss") if name in shown)


def rows(results: Sequence[dict[str, Any]], metrics: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One a combination, over its seeds: {"values", "seeds", "SPLIT METRIC": (mean, standard deviation or None)}."""
    for key, group in itertools.groupby(results, key=lambda entry: json.dumps(entry["values"])):
        entries = list(group)
        row: dict[str, Any] = {"values": json.loads(key), "seeds": len(entries)}
        for split in ("validation", "test", "best_test"):
            for metric in metrics:
                found = [e["splits"][split][metric] for e in entries if metric in e["splits"].get(split, {})]
                if found:
                    deviation = statistics.stdev(found) if len(found) > 1 else None
                    row[f"{split} {metric}"] = (statistics.mean(found), deviation)
        yield row


def markdown(table: Sequence[dict[str, Any]]) -> str:
    keys = list(dict.fromkeys(key for row in table for key in row["values"]))
    columns = list(dict.fromkeys(key for row in table for key in row if key not in ("values", "seeds")))
    lines = [f"| {' | '.join([*keys, *columns, 'seeds'])} |", "|" + " --- |" * (len(keys) + len(columns) + 1)]
    for row in table:
        cells = [str(row["values"].get(key, "")) for key in keys]
        for column in columns:
            mean, deviation = row.get(column, (None, None))
            cells.append("" if mean is None else f"{mean:.4g}" + (f" ± {deviation:.2g}" if deviation is not None else ""))
        lines.append(f"| {' | '.join([*cells, str(row['seeds'])])} |")
    return "\n".join(lines)


def write_csv(results: Sequence[dict[str, Any]], path: Path) -> None:
    """A line a run, with every number of its last evaluations."""
    flat = [
        {
            "point": e["point"], "seed": e["seed"], **e["values"], "seconds": e["seconds"],
            **{f"{split} {name}": value for split, values in e["splits"].items() for name, value in values.items()},
        }
        for e in results
    ]  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for line in flat for key in line)))
        writer.writeheader()
        writer.writerows(flat)


def plot(table: Sequence[dict[str, Any]], path: Path, metric: str) -> bool:
    """Mean and standard deviation over the first key that has numbers, a line for each combination of the others.

    The split is the one that may choose: validation, or the test split where there is none. Returns whether there was a plot.
    """
    keys = list(dict.fromkeys(key for row in table for key in row["values"]))
    numbers = {key: [_number(row["values"].get(key, "")) for row in table] for key in keys}
    axis = next((key for key in keys if None not in numbers[key] and len(set(numbers[key])) > 1), None)
    column = next((c for c in (f"validation {metric}", f"test {metric}") if all(c in row for row in table)), None)
    if axis is None or column is None:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: dict[str, list[tuple[float, float, float]]] = {}
    for row, x in zip(table, numbers[axis], strict=True):
        label = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in row["values"].items() if key != axis)
        mean, deviation = row[column]
        lines.setdefault(label, []).append((x or 0.0, mean, deviation or 0.0))
    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    for label, entries in lines.items():
        places, means, deviations = zip(*sorted(entries), strict=True)
        axes.errorbar(places, means, deviations, marker="o", capsize=3, label=label or None)
    low, high = min(v for v in numbers[axis] if v is not None), max(v for v in numbers[axis] if v is not None)
    if low > 0 and high / low >= 10:
        axes.set_xscale("log")
    axes.set(xlabel=axis, ylabel=column)
    axes.grid(alpha=0.3)
    if any(lines):
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return True


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def summarise(folder: Path, order: Sequence[Point], metrics: Sequence[str]) -> str:
    """Writes table.md, table.csv and plot.png of what is finished; returns the table."""
    done = finished(folder)
    results = [done[point.name] for point in order if point.name in done]
    table = list(rows(results, metrics))
    text = markdown(table)
    (folder / "table.md").write_text(text + "\n")
    write_csv(results, folder / "table.csv")
    if table:
        plot(table, folder / "plot.png", metrics[-1])
    return text


def slurm_script(folder: Path, argv: Sequence[str], count: int) -> str:
    """An array of `count` tasks, each the same command for its point."""
    import shlex

    words = [word for word in argv if not word.startswith("--slurm")]
    line = shlex.join([sys.executable, "-m", "imgrec_jax.sweep", *words])
    return "\n".join([
        "#!/usr/bin/env bash",
        f"#SBATCH --job-name={folder.name}",
        f"#SBATCH --array=0-{count - 1}",
        f"#SBATCH --output={folder.absolute()}/slurm_%a.log",
        "#SBATCH --signal=TERM@60",
        "# Add what the cluster needs: --partition, --gres=gpu:1, --time. A task that was ended goes on when it is submitted",
        "# again; the same command without --only makes the table.",
        f"exec {line} --only=$SLURM_ARRAY_TASK_ID",
        "",
    ])  # fmt: skip


def check_asked(folder: Path, asked: dict[str, Any]) -> None:
    """Raises ValueError where the folder holds another sweep; more points or seeds of the same config are no other one."""
    path = folder / ASKED
    if path.exists():
        before = json.loads(path.read_text())
        for key in ("config", "common"):
            if before[key] != asked[key]:
                raise ValueError(f"{folder} holds a sweep of {key} {before[key]}, not {asked[key]}; give another --folder")


def run(argv: Sequence[str]) -> int:
    """Does what the flags say; returns the exit status."""
    common, rest, words = {}, [], iter(argv)
    for word in words:
        if match := re.match(r"--config\.([^=]+)(?:=(.*))?$", word, re.S):
            value = match[2] if match[2] is not None else next(words, None)
            if value is None:
                raise ValueError(f"--config.{match[1]} has no value; write --config.{match[1]}=VALUE")
            common[match[1]] = value
        else:
            rest.append(word)
    flags = parser().parse(rest)
    if bool(flags.sample) != (flags.random is not None) or (flags.grid and flags.random is not None):
        raise ValueError("give --grid, or --random N with --sample")
    combinations = sample(flags.sample, flags.random, flags.sample_seed) if flags.random is not None else grid(flags.grid)
    every = points(combinations, seeds_of(flags.seeds), common)
    if varied := set(common) & {*every[0].values, "seed"}:
        raise ValueError(f"--config.{sorted(varied)[0]} is given for every point, and the sweep varies it; give it once")
    metrics = _check(flags.config, every, flags.metrics)
    named = default_workdir(flags.config)
    folder = flags.folder or named.with_name(f"sweep_{named.name}")
    asked = {"config": flags.config, "common": common, "points": [point._asdict() for point in every]}
    if flags.dry_run:
        print("\n".join(point.name for point in every))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    check_asked(folder, asked)
    (folder / ASKED).write_text(json.dumps(asked, indent=1) + "\n")
    if flags.slurm:
        flags.slurm.write_text(slurm_script(folder, argv, len(every)))
        note(f"{len(every)} tasks in {flags.slurm}; submit it with sbatch {flags.slurm}")
        return 0
    chosen = every if flags.only is None else every[flags.only : flags.only + 1]
    if not chosen:
        raise ValueError(f"--only={flags.only}; there are points 0 to {len(every) - 1}")
    done = finished(folder)
    todo = [point for point in chosen if point.name not in done]
    devices = flags.devices.split(",") if flags.devices else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = min(flags.jobs or len(devices) or max(cores // flags.cores, 1), max(len(todo), 1))
    note(f"{len(chosen)} runs, {len(chosen) - len(todo)} of them done, {jobs} at a time, in {folder}")
    try:
        failed = run_all(flags.config, todo, folder, Places(jobs, flags.cores, devices), len(chosen))
    except KeyboardInterrupt:
        note("stopped; the runs have saved, and the same command goes on")
        return 130
    if flags.only is None:
        print(summarise(folder, every, metrics))
        note(f"in {folder}: table.md, table.csv, plot.png, and a workdir a run")
    if failed:
        note(f"error: {len(failed)} of {len(chosen)} runs failed: {', '.join(failed[:5])}; the .log beside a workdir says why")
    return 1 if failed else 0


def _check(config: str, every: Sequence[Point], metrics: str | None) -> list[str]:
    """The metrics of the table, after every point's config was found sound."""
    from imgrec_jax import assemble

    shown: Sequence[str] = ()
    for point in every:
        made, _ = configure(config, point.overrides)
        try:
            assemble.check(assemble.complete(made))
        except ValueError as error:
            raise ValueError(f"point {point.name}: {error}") from error
        shown = tuple(made.log.show)
    return metrics.split(",") if metrics else list(shown)


def main(argv: Sequence[str] | None = None) -> None:
    def terminated(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminated)
    with ending_in_one_line():
        raise SystemExit(run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
