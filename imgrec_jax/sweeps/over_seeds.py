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
from imgrec_jax.sweeps.table import of_how_many

Records = dict[int, list[dict[str, Any]]]  # of each seed
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


def of_all(records: Records, ended: Iterable[int], failed: Iterable[int] = ()) -> list[dict[str, Any]]:
    """{seed: its records} -> a record, as `together` makes it, for each step and split that every seed has.

    Of a seed that has ended before, its last one of that split counts from there on: the last record of all is of the last
    evaluation of each. failed: seeds whose runs cannot go on, each of which counts where it has got to.
    """
    found: dict[Key, dict[int, dict[str, Any]]] = {}
    for seed, of_seed in records.items():
        for record in of_seed:
            found.setdefault(key_of(record), {})[seed] = record
    failed = set(failed)
    stay, open_ones = set(ended) - failed, set(records) - set(ended) - failed
    kept: dict[str, dict[int, dict[str, Any]]] = {}  # of each split
    made = []
    for key in sorted(found, key=lambda key: (key[0] < 0, key[0])):  # stable: splits stay in the order of a run
        before = kept.setdefault(key[1], {})
        before |= {seed: record for seed, record in found[key].items() if seed in stay}
        of_key = before | found[key]
        if not open_ones - set(of_key) and set(found[key]) - failed:
            made.append(together({seed: of_key[seed] for seed in records if seed in of_key}))
    return made


def last_of_all(records: Records) -> dict[str, dict[str, Any]]:
    """{split: the record, as `together` makes it, of the last evaluation of each seed}."""
    last: dict[str, dict[int, dict[str, Any]]] = {}
    for seed, of_seed in records.items():
        for record in of_seed:
            last.setdefault(record["split"], {})[seed] = record
    return {split: together(of_split) for split, of_split in last.items()}


def together(of_seeds: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """{seed: its record of a split} -> one of all, of the last of their steps.

    "NAME" is the mean of a number, "NAME_std" its standard deviation, "NAME_of_seeds" the values in the order of "seeds", of
    which those that are undefined (None) are left out of the mean; "step_of_seeds" where the steps are different ones.
    """
    every = list(of_seeds.values())
    row = {**max(({name: one[name] for name in _OF_RECORD} for one in every), key=lambda r: r["step"]), "seeds": list(of_seeds)}
    if len(set(steps := [one["step"] for one in every])) > 1:
        row["step_of_seeds"] = steps
    for name in dict.fromkeys(name for one in every for name in one if name not in _OF_RECORD):
        values: list[Any] = [one.get(name) for one in every]
        numbers = [value for value in values if _is_number(value)]
        if numbers and len(numbers) + values.count(None) == len(values):
            row[name], row[f"{name}_std"] = spread(numbers)
            row[f"{name}_of_seeds"] = values
    return row


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def write(
    folder: Path,
    seeds: Sequence[int],
    ended: Iterable[int],
    failed: Iterable[int] = (),
    more: Sequence[dict[str, Any]] = (),
) -> None:
    """Writes the workdir's metrics.jsonl anew; ended, failed: as of `of_all`; more: records that come last."""
    records = {seed: read(folder_of_seed(folder, seed) / METRICS) for seed in seeds}
    if made := [*of_all(records, ended, failed), *more]:
        lines = "".join(json.dumps(to_json(record), allow_nan=False) + "\n" for record in made)
        write_whole(folder / METRICS, lambda partial: partial.write_text(lines))


def headline(record: dict[str, Any], show: Sequence[str], seeds: int = 0) -> str:
    """`loss 0.0423 ± 0.001, accuracy 0.9871 ± 0.0004 (4 of 5)`; seeds: how many there are, by default those of the record."""
    parts = []
    for name in show:
        if record.get(name) is not None:
            count = sum(value is not None for value in record[f"{name}_of_seeds"])
            deviation = f" ± {record[f'{name}_std']:.2g}" if record[f"{name}_std"] is not None else ""
            parts.append(f"{name} {record[name]:.4f}{deviation}{of_how_many(count, seeds or len(record['seeds']))}")
    return ", ".join(parts)


def table(rows: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Lines of (name, {column: text}), in columns."""
    columns = list(dict.fromkeys(column for _, cells in rows for column in cells))
    lines = [["", *columns], *([name, *(cells.get(column, "") for column in columns)] for name, cells in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  " + "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def summary(records: Records, ensemble: Sequence[dict[str, Any]], show: Sequence[str]) -> str:
    """A line a seed, their mean and standard deviation, and the ensemble, by the last evaluation of every split of each; "" of
    nothing.

    Args: records: of each seed; ensemble: of the ensembles.
    """
    rows: dict[str, dict[str, str]] = {name: {} for name in (*(f"seed {seed}" for seed in records), "mean", "ensemble")}
    for split, record in last_of_all(records).items():
        for name in show:
            if split == "train" or record.get(name) is None:
                continue
            rows["mean"][f"{split} {name}"] = headline(record, [name], len(records)).removeprefix(f"{name} ")
            for seed, value in zip(record["seeds"], record[f"{name}_of_seeds"], strict=True):
                rows[f"seed {seed}"][f"{split} {name}"] = "undefined" if value is None else f"{value:.4f}"
    for record in ensemble:
        split = record["split"].removeprefix("ensemble_")
        rows["ensemble"] |= {f"{split} {name}": f"{record[name]:.4f}" for name in show if record.get(name) is not None}
    shown = [(name, cells) for name, cells in rows.items() if cells]
    return table(shown) if shown else ""


class Following:
    """Says mean and standard deviation of what the runs record, as soon as all that go on have recorded it.

    ended: seeds whose runs record nothing more; failed: those of them that are not at their ends.
    """

    def __init__(self, folder: Path, seeds: Sequence[int], batch_size: int, total_steps: int, show: Sequence[str],
                 say: Callable[[str], None]):  # fmt: skip
        self._folder, self._seeds, self._show, self._say = folder, seeds, show, say
        self._batch, self._total = batch_size, total_steps
        self.ended: set[int] = set()
        self.failed: set[int] = set()
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
        new = [r for r in of_all(self._records, self.ended, self.failed) if key_of(r) not in self._said]
        for record in new:
            self._said.add(key_of(record))
            pace = self._pace(new) if record is new[-1] else ""  # when the others came nobody knows
            self._say(f"{len(record['seeds'])} seeds  step {record['step']}/{self._total}  {record['split']}: "
                      f"{headline(record, self._show)}{pace}")  # fmt: skip
        if any(record["split"] != "train" for record in new):
            write(self._folder, self._seeds, self.ended, self.failed)

    def _read(self) -> bool:
        """Whether a file has changed."""
        paths = {seed: folder_of_seed(self._folder, seed) / METRICS for seed in self._seeds}
        sizes = {seed: path.stat().st_size if path.exists() else 0 for seed, path in paths.items()}
        changed = [seed for seed in self._seeds if sizes[seed] != self._sizes[seed]]
        self._records |= {seed: read(paths[seed]) for seed in changed}
        self._sizes = sizes
        return bool(changed)

    def _pace(self, new: Sequence[dict[str, Any]]) -> str:
        """Of the last of some records that are seen at once: since the last report before, with no evaluation in between."""
        record, now, before = new[-1], time.perf_counter(), self._mark
        self._mark = (record["step"], now) if record["split"] == "train" else None
        if before is None or any(one["split"] != "train" for one in new):
            return ""
        steps, seconds = record["step"] - before[0], max(now - before[1], 1e-9)
        left = (self._total - record["step"]) / max(steps, 1) * seconds
        going = record.get("step_of_seeds", [record["step"]] * len(record["seeds"])).count(record["step"])
        return f"  {going} x {steps * self._batch / seconds:,.0f} img/s  ETA {duration(left)}"


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
