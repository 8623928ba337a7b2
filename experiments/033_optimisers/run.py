"""Which optimiser, with which schedule, at equal steps and at equal time? MNIST's classic network.

    python experiments/033_optimisers/run.py [--quick]

SGD, momentum, Adam, AdamW and Muon x constant, cosine and one-cycle rates, 938 steps of 64 (one epoch), five seeds. Each
combination has three peak rates a factor of about three apart, of which train[55000:] chooses; then the chosen ones run again
for as many steps as they make in the time that 938 steps of SGD take, by the milliseconds a step of runs that are made for that
alone, one optimiser right after the other.
"""

import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import questions as q

RATE, SCHEDULE, STEPS = "optim.learning_rate", "schedule.name", 938
SCHEDULES = ("constant", "cosine", "one_cycle")
TIMED = ", time of a step"
DECAY = "(('kernel',0.01),('.*',0.0))"
OPTIMISERS = {
    "SGD": ((0.03, 0.1, 0.3), {"optim.name": "sgd", "optim.options": "{}"}),
    "momentum": ((0.01, 0.03, 0.1), {"optim.name": "sgd", "optim.options": "{'momentum': 0.9}"}),
    "Adam": ((0.001, 0.003, 0.01), {"optim.name": "adam", "optim.options": "{}"}),
    "AdamW": ((0.001, 0.003, 0.01), {"optim.name": "adamw", "optim.options": "{}", "optim.weight_decay": DECAY}),
    "Muon": ((0.003, 0.01, 0.03), {"optim.name": "muon", "optim.options": "{}", "optim.weight_decay": DECAY}),
}
COMMON = {
    "data.validation_split": "train[55000:]",
    "data.train_split": "train[:55000]",
    "train.total_steps": STEPS,
    "eval.every_steps": STEPS,
    "log.every_steps": 50,
    "checkpoint.enabled": False,
    "log.tensorboard": False,
    "log.pictures": False,
}


def sweeps(records: list[dict]) -> Iterator[q.Sweep]:
    quick = {"train.total_steps": 100, "eval.every_steps": 100, SCHEDULE: ("constant", "one_cycle")}
    for name, (rates, options) in OPTIMISERS.items():
        grid = {SCHEDULE: SCHEDULES, RATE: rates}
        yield q.Sweep(name, "mnist", grid, COMMON | options, quick | {RATE: rates[1:2]})
    for name, (rates, options) in OPTIMISERS.items():  # the machine may have been busier while one of the above ran
        short = {"train.total_steps": 300, "eval.every_steps": 300, RATE: rates[0], SCHEDULE: "constant"}
        yield q.Sweep(
            f"{name}{TIMED}", "mnist", {}, COMMON | options | short, {"train.total_steps": 100, "eval.every_steps": 100}
        )
    slowest = milliseconds(records, "SGD")
    for name, (_, options) in OPTIMISERS.items():
        if name == "SGD":
            continue
        for mine in _by_schedule(q.chosen(q.of(records, name), RATE)):
            schedule, rate = mine[0]["values"][SCHEDULE], mine[0]["values"][RATE]
            ratio = slowest / milliseconds(records, name)
            common = COMMON | options | {RATE: rate, SCHEDULE: schedule}
            steps = {"train.total_steps": round(STEPS * ratio), "eval.every_steps": round(STEPS * ratio)}
            quick = {"train.total_steps": round(100 * ratio), "eval.every_steps": round(100 * ratio)}
            yield q.Sweep(f"{name} {schedule}, equal time", "mnist", {}, common | steps, quick)


def _by_schedule(records: list[dict]) -> Iterator[list[dict]]:
    for schedule in q.values_of(records, SCHEDULE):
        yield q.of(records, values={SCHEDULE: schedule})


def measure(sweep: q.Sweep, folder: Path, records: list[dict], place: Path) -> None:
    """Adds the milliseconds of a step: the median over the run's reports but the first."""
    for record, entry in zip(records, q.runs.read(folder / "results.jsonl"), strict=True):
        said = (folder / f"{entry['point']}.log").read_text()
        speeds = [float(number.replace(",", "")) for number in re.findall(r"([\d,]+) img/s", said)]
        record["step_ms"] = round(64e3 / statistics.median(speeds[1:] or speeds), 3)


def milliseconds(records: list[dict], name: str) -> float:
    return statistics.median(r["step_ms"] for r in q.of(records, f"{name}{TIMED}"))


def answer(records: list[dict], folder: Path) -> str:
    rows, bars = [], {}
    for name in OPTIMISERS:
        best = q.chosen(q.of(records, name), RATE)
        cells = []
        for mine in _by_schedule(best):
            cells.append(f"{q.percent(mine)} ({mine[0]['values'][RATE]})")
            bars[name, mine[0]["values"][SCHEDULE]] = mine
        equal = [q.of(records, f"{name} {schedule}, equal time") for schedule in q.values_of(best, SCHEDULE)]
        times = [q.percent(mine) for mine in equal] if name != "SGD" else ["as left"] * len(cells)
        rows.append([name, f"{milliseconds(records, name):.2f}", *cells, *times])
    schedules = q.values_of([r for mine in bars.values() for r in mine], SCHEDULE)
    made, (axes,) = q.figure(1, 6.0)
    for i, schedule in enumerate(schedules):
        errors = [100 - 100 * q.mean(bars[name, schedule], "test") for name in OPTIMISERS]
        axes.bar([x + 0.25 * i for x in range(len(OPTIMISERS))], errors, 0.22, label=schedule)
    axes.set(ylabel=f"test error after {STEPS} steps, %", xticks=[x + 0.25 for x in range(len(OPTIMISERS))])
    axes.set_xticklabels(OPTIMISERS)
    axes.legend(fontsize="small")
    q.save(made, folder / "plot.png")
    head = ["", "ms a step", *(f"{s}, equal steps (rate)" for s in schedules), *(f"{s}, equal time" for s in schedules)]
    return q.markdown(head, rows)


if __name__ == "__main__":
    q.ask(__file__, __doc__, sweeps, answer, measure=measure)
