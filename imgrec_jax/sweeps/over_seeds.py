"""What several seeds come to: mean and standard deviation of every record, on the terminal and in the files of their workdir.

Everything here is made of the runs' own metrics.jsonl, so it is the same however they were trained and interrupted.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from imgrec_jax.data.files import write_whole
from imgrec_jax.run.start import folder_of_seed
from imgrec_jax.run.workdir import METRICS
from imgrec_jax.run.writers import Console, duration, emit, to_json

Key = tuple[int, str]  # step and split; -1 for what validation chose, which may be of another step in each run
_OF_RECORD = ("step", "epoch", "split")


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; without a last one that was cut off."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found


def key_of(record: dict[str, Any]) -> Key:
    return -1 if record["split"].startswith("best_") else record["step"], record["split"]


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (of a sample); None for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def of_all(records: dict[int, list[dict[str, Any]]], ended: Iterable[int]) -> list[dict[str, Any]]:
    """{seed: its records} -> a record for each step and split that every seed has but those that have ended before.

    "NAME" is the mean of a number, "NAME_std" its standard deviation, "NAME_of_seeds" the values in the order of "seeds".
    """
    found: dict[Key, dict[int, dict[str, Any]]] = {}
    for seed, of_seed in records.items():
        for record in of_seed:
            found.setdefault(key_of(record), {})[seed] = record
    open_ones = set(records) - set(ended)
    made = []
    for key in sorted(found, key=lambda key: (key[0] < 0, key[0])):  # stable: splits stay in the order of a run
        of_key = found[key]
        if open_ones - set(of_key):
            continue
        seeds = [seed for seed in records if seed in of_key]
        first = of_key[seeds[0]]
        row: dict[str, Any] = {**{name: first[name] for name in _OF_RECORD}, "seeds": seeds}
        if key[0] < 0:
            row |= {name: max(of_key[seed][name] for seed in seeds) for name in ("step", "epoch")}
        for name in first:
            values: list[Any] = [of_key[seed].get(name) for seed in seeds]
            if name not in _OF_RECORD and all(_is_number(value) for value in values):
                row[name], row[f"{name}_std"] = spread(values)
                row[f"{name}_of_seeds"] = values
        made.append(row)
    return made


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def write(
    folder: Path, seeds: Sequence[int], ended: Iterable[int], more: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Writes the workdir's metrics.jsonl anew and returns its records; more: records that come last."""
    records = {seed: read(folder_of_seed(folder, seed) / METRICS) for seed in seeds}
    made = [*of_all(records, ended), *more]
    if made:
        lines = "".join(json.dumps(to_json(record), allow_nan=False) + "\n" for record in made)
        write_whole(folder / METRICS, lambda partial: partial.write_text(lines))
    return made


def headline(record: dict[str, Any], show: Sequence[str]) -> str:
    """`loss 0.0423 ± 0.001, accuracy 0.9871 ± 0.0004`"""
    return ", ".join(
        f"{name} {record[name]:.4f}" + (f" ± {record[f'{name}_std']:.2g}" if record.get(f"{name}_std") is not None else "")
        for name in show
        if record.get(name) is not None
    )


def table(rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Lines of (name, {column: text}), in columns."""
    columns = list(dict.fromkeys(column for _, cells in rows for column in cells))
    lines = [["", *columns], *([name, *(cells.get(column, "") for column in columns)] for name, cells in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  " + "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def summary(seeds: Sequence[int], records: Sequence[dict[str, Any]], show: Sequence[str]) -> str:
    """A line a seed, their mean and standard deviation, and the ensemble, by the last evaluation of every split."""
    last = {record["split"]: record for record in records}
    rows: dict[str, dict[str, str]] = {name: {} for name in (*(f"seed {seed}" for seed in seeds), "mean", "ensemble")}
    for split, record in last.items():
        for name in show:
            if split == "train" or record.get(name) is None:
                continue
            if split.startswith("ensemble_"):
                rows["ensemble"][f"{split.removeprefix('ensemble_')} {name}"] = f"{record[name]:.4f}"
                continue
            rows["mean"][f"{split} {name}"] = headline(record, [name]).removeprefix(f"{name} ")
            for seed, value in zip(record["seeds"], record[f"{name}_of_seeds"], strict=True):
                rows[f"seed {seed}"][f"{split} {name}"] = f"{value:.4f}"
    return table([(name, cells) for name, cells in rows.items() if cells])


class Following:
    """Says mean and standard deviation of what the runs record, as soon as all that go on have recorded it.

    ended: seeds whose runs record nothing more.
    """

    def __init__(self, folder: Path, seeds: Sequence[int], batch_size: int, total_steps: int, show: Sequence[str],
                 say: Callable[[str], None]):  # fmt: skip
        self._folder, self._seeds, self._show, self._say = folder, seeds, show, say
        self._batch, self._total = batch_size, total_steps
        self.ended: set[int] = set()
        self._records: dict[int, list[dict[str, Any]]] = {seed: [] for seed in seeds}
        self._sizes = dict.fromkeys(seeds, 0)
        self._read()
        self._said = {key_of(record) for record in of_all(self._records, ())}
        self._mark: tuple[int, float] | None = None

    def console(self, seed: int) -> Callable[..., Console]:
        """Of one of the runs, where they train in this process."""

        def make(*of_run: Any, silent: bool) -> Console:
            return _ConsoleOfSeed(*of_run, say=self.sayer(seed), ended=lambda: self.ended.add(seed))

        return make

    def sayer(self, seed: int) -> Callable[[str], None]:
        return lambda line: self._say(f"seed {seed}  {line}")

    def poll(self, *_: Any) -> None:
        """Looks for new records; also a callback of runs."""
        if not self._read():
            return
        for record in of_all(self._records, self.ended):
            if (key := key_of(record)) in self._said:
                continue
            self._said.add(key)
            self._say(f"{len(record['seeds'])} seeds  step {record['step']}/{self._total}  {record['split']}: "
                      f"{headline(record, self._show)}{self._pace(record)}")  # fmt: skip
            if record["split"] != "train":
                write(self._folder, self._seeds, self.ended)

    def _read(self) -> bool:
        """Whether a file has changed."""
        paths = {seed: folder_of_seed(self._folder, seed) / METRICS for seed in self._seeds}
        sizes = {seed: path.stat().st_size if path.exists() else 0 for seed, path in paths.items()}
        changed = [seed for seed in self._seeds if sizes[seed] != self._sizes[seed]]
        self._records |= {seed: read(paths[seed]) for seed in changed}
        self._sizes = sizes
        return bool(changed)

    def _pace(self, record: dict[str, Any]) -> str:
        """Between two reports of training without an evaluation in between."""
        now, before = time.perf_counter(), self._mark
        self._mark = (record["step"], now) if record["split"] == "train" else None
        if before is None or self._mark is None:
            return ""
        steps, seconds = record["step"] - before[0], max(now - before[1], 1e-9)
        left = (self._total - record["step"]) / max(steps, 1) * seconds
        return f"  {len(record['seeds'])} x {steps * self._batch / seconds:,.0f} img/s  ETA {duration(left)}"


class _ConsoleOfSeed(Console):
    """Says evaluations and what goes wrong; the progress is said of all seeds together."""

    def __init__(self, *of_run: Any, say: Callable[[str], None] = emit, ended: Callable[[], None]):
        super().__init__(*of_run, silent=True)
        self._say_of_seed, self._ended = say, ended

    def say(self, line: str) -> None:
        self._say_of_seed(line)

    def progress(self, line: str) -> None:
        pass

    def close(self) -> None:
        self._ended()
