"""What came of a sweep: a table over the seeds, a line a run, a plot."""

import csv
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgrec_jax import stats
from imgrec_jax.sweeps.points import Point
from imgrec_jax.sweeps.runs import finished

Results = Sequence[dict[str, Any]]

FEW = 4  # seeds from which the middle half of them says something


def combinations(results: Results) -> list[Results]:
    """The results of each combination of values, wherever they lie, by its first one."""
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in results:
        found.setdefault(json.dumps(entry["values"], sort_keys=True), []).append(entry)
    return list(found.values())


def rows(results: Results, metrics: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One a combination, over its seeds: {"values", "seeds", "SPLIT METRIC": (mean, standard deviation or None, of how many)}.

    A metric that is undefined for some of the seeds is the mean of the others.
    """
    for entries in combinations(results):
        row: dict[str, Any] = {"values": entries[0]["values"], "seeds": len(entries)}
        for split in ("validation", "test", "best_test"):
            for metric in metrics:
                found = [e["splits"][split][metric] for e in entries if metric in e["splits"].get(split, {})]
                if found:
                    deviation = statistics.stdev(found) if len(found) > 1 else None
                    row[f"{split} {metric}"] = (statistics.mean(found), deviation, len(found))
        yield row


def markdown(table: Sequence[dict[str, Any]]) -> str:
    keys = list(dict.fromkeys(key for row in table for key in row["values"]))
    columns = list(dict.fromkeys(key for row in table for key in row if key not in ("values", "seeds")))
    lines = [_line([*keys, *columns, "seeds"]), "|" + " --- |" * (len(keys) + len(columns) + 1)]
    for row in table:
        cells = [str(row["values"].get(key, "")) for key in keys]
        for column in columns:
            mean, deviation, count = row.get(column, (None, None, 0))
            text = "" if mean is None else f"{mean:.4g}" + (f" ± {deviation:.2g}" if deviation is not None else "")
            cells.append(text + of_how_many(count, row["seeds"]))
        lines.append(_line([*cells, str(row["seeds"])]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def of_how_many(count: int, seeds: int) -> str:
    """What to say behind a mean of fewer seeds than there are, of which the others have no such value."""
    return f" ({count} of {seeds})" if 0 < count < seeds else ""


def middle(results: Results, metric: str) -> Iterator[str]:
    """Lines on the combinations of four seeds and more: the interquartile mean of a metric, and how sure it is."""
    for entries in combinations(results):
        splits = [entry["splits"] for entry in entries]
        split = next((s for s in ("best_test", "test", "validation") if all(metric in e.get(s, {}) for e in splits)), None)
        if len(splits) < FEW or split is None:
            continue
        found = np.array([e[split][metric] for e in splits])
        interval = stats.over_runs(found)
        about = ", ".join(f"{name} {value}" for name, value in entries[0]["values"].items())
        sure = f"[{interval.low:.4g}, {interval.high:.4g}]" if interval else "(all seeds alike)"
        value = f"{stats.interquartile_mean(found):.4g} {sure}"
        yield f"\n{about + ': ' if about else ''}{split} {metric}, interquartile mean {value}"


def write_csv(results: Results, path: Path) -> None:
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
        mean, deviation, _ = row[column]
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
    """Writes table.md, table.csv and plot.png of what is finished; returns the table, with a line on what is missing in it."""
    done = finished(folder)
    results = [done[point.name] for point in order if point.name in done]
    missing = [point.name for point in order if point.name not in done]
    table = list(rows(results, metrics))
    text = "\n".join([markdown(table), *(line for metric in metrics[-1:] for line in middle(results, metric))])
    if missing:
        some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        text += f"\n\n{len(missing)} of {len(order)} runs are missing here: {some}"
    (folder / "table.md").write_text(text + "\n")
    write_csv(results, folder / "table.csv")
    if table and metrics:
        plot(table, folder / "plot.png", metrics[-1])
    return text
