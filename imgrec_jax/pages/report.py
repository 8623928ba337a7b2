"""The report of a run, and of several side by side, as one HTML file each."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import imgrec_jax
from imgrec_jax import at_hand, stats
from imgrec_jax.assemble import complete
from imgrec_jax.config import difference, to_plain
from imgrec_jax.inference.predictor import Predictor
from imgrec_jax.pages import evidence as looked
from imgrec_jax.pages import examples, html, plots, sections
from imgrec_jax.pages.evidence import Evidence
from imgrec_jax.run import workdir

Records = list[dict[str, Any]]
DRAWS = 300  # of a bootstrap of AP and mean IoU, which take some milliseconds a draw


def write(folder: Path, say: Callable[[str], None], *, out: Path | None = None, checkpoint: str | None = None,
          allow_code: bool = False) -> Path:  # fmt: skip
    """Writes the report of the run in `folder` to out/index.html (folder/report unless given), and its plots beside it."""
    run = imgrec_jax.load(folder, checkpoint, allow_code=allow_code)
    out = out or run.workdir / "report"
    records = read_records(run.workdir)
    body: list[tuple[str, str]] = []
    made: sections.Plots = {}
    found = gather(run, say)
    body.append(("Result", _result(run.step, records, found)))
    body.append(("Learning curves", _curves({"": records}, made)))
    for evidence in found[:1]:
        more, drawn = sections.of(evidence)
        body += more
        made |= drawn
    if record := _shown(records, run.step, "test") or _shown(records, run.step, "validation"):
        body.append((f"Lists of {record['split']}, step {record['step']:,}", _lists(record)))
    body.append(("Training batches as the network saw them", _training_batch(run, say)))
    body.append(("Time and throughput", _speed(run, found)))
    body.append(("Config", html.hidden("the whole config", json.dumps(to_plain(run.config), indent=1))))
    body.append(("Environment", html.hidden("every start", json.dumps(workdir.starts(run.workdir), indent=1))))
    for name, plot in made.items():
        plot.save(out / name)
    under = f"{run.config.task}, {run.checkpoint} checkpoint, step {run.step:,}"
    html.write(out / "index.html", html.page(f"Run {run.workdir.name}", under, body))
    return out / "index.html"


def read_records(folder: Path) -> Records:
    """The records of metrics.jsonl; those that a kill cut in half are left out."""
    found: Records = []
    if (folder / workdir.METRICS).exists():
        for line in (folder / workdir.METRICS).read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def gather(run: Predictor, say: Callable[[str], None]) -> list[Evidence]:
    """What the run says of its test split, else its validation split; [] where the data are not on this machine."""
    if run.config.data.multi_label:
        say("note: without per-example statistics, which are of one label an image")
        return []
    try:
        splits = looked.splits(run)
    except (ValueError, OSError, ImportError) as error:
        say(f"note: without pictures and per-example statistics, because the data cannot be opened here: {error}")
        return []
    return [looked.gather(run, name, source) for name, source in itertools.islice(splits.items(), 1)]


def _last(records: Records, split: str) -> dict[str, Any]:
    return next((record for record in reversed(records) if record["split"] == split), {})


def _shown(records: Records, step: int, split: str) -> dict[str, Any]:
    """The evaluation of a split by the state of that step, be it as the last one or as the best; {} where there is none."""
    return next((r for r in reversed(records) if r["step"] == step and r["split"] in (split, f"best_{split}")), {})


def _evaluated(records: Records) -> list[str]:
    """The splits that were evaluated: validation and test first, then the others, each one's best after it."""
    found = dict.fromkeys(record["split"] for record in records if record["split"] != "train")
    first = [split for split in ("validation", "test", "best_test") if split in found]
    return list(dict.fromkeys([*first, *found]))


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    skipped = ("step", "epoch", "split")
    return {k: v for k, v in record.items() if k not in skipped and isinstance(v, int | float) and not isinstance(v, bool)}


def _result(step: int, records: Records, found: Sequence[Evidence]) -> str:
    """The last evaluation of every split and, where that is another, the one by the state that the report looks at."""
    columns: dict[str, dict[str, Any]] = {}
    for split in _evaluated(records):
        for record in (_last(records, split), _shown(records, step, split)):
            if record:
                columns.setdefault(f"{record['split']}, step {record['step']:,}", _numbers(record))
    names = list(dict.fromkeys(name for values in columns.values() for name in values))
    body = html.table(("metric", *columns), [(name, *(values.get(name) for values in columns.values())) for name in names])
    test = _shown(records, step, "test")
    lines = [
        f"Test mAP at step {step:,} {test['mAP']:.4f}, {_span(stats.Interval(test[low], test[high]))} (bootstrap over {what})."
        for low, high, what in (("mAP_low", "mAP_high", "images"), ("mAP_groups_low", "mAP_groups_high", "groups"))
        if test.get(low) is not None
    ]
    lines += [interval_line(evidence) for evidence in found if not (evidence.split == "test" and test.get("accuracy_count"))]
    several = "per_label" in test  # the answers to the labels of one image are not independent
    if interval := None if several else stats.wilson(test.get("accuracy_correct", 0), test.get("accuracy_count", 0)):
        counts = f"{test['accuracy_correct']:,} of {test['accuracy_count']:,}"
        lines.insert(0, f"Test accuracy at step {step:,} {test['accuracy']:.4f}: {counts}, {_span(interval)} (Wilson).")
    return body + "".join(map(html.note, lines))


def _span(interval: stats.Interval) -> str:
    return f"95 % interval {interval.low:.4f} to {interval.high:.4f}"


def interval_line(evidence: Evidence) -> str:
    """A statistic of the checkpoint that the report looks at, with its interval: of accuracy Wilson's, which has a width where
    everything is right, of the others by a bootstrap over images."""
    name, statistic = looked.statistic(evidence)
    count = len(evidence.results)
    value = statistic(np.ones(count, np.int64))
    if value is None:
        return f"{name} is undefined."
    said = f"{evidence.split} {name} of the checkpoint of this report {value:.4f}"
    if count < (whole := len(evidence.source)):
        said += f", of {count:,} evenly spread of {whole:,} examples"
    if name == "mean_iou":
        said += ", scored on the pixels of the images as they are (the table: at the size that the network sees)"
    if name == "accuracy":
        interval, how = stats.wilson(int(looked.correct(evidence).sum()), count), f"Wilson, {count:,} images"
    else:
        interval = stats.bootstrap(statistic, np.arange(count), draws=DRAWS)
        how = f"bootstrap over {count:,} images"
    if interval is None and name != "accuracy":
        return f"{said}; without an interval: a bootstrap draws too few images of some class, or none that differ."
    return f"{said}, {_span(interval)} ({how})." if interval else f"{said}."


def _curves(runs: dict[str, Records], made: sections.Plots) -> str:
    """One plot for each metric; lines by split, and by run where there are several."""
    lines: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for run, records in runs.items():
        for record in records:
            for name, value in _numbers(record).items():
                if not name.endswith(("_count", "_correct")) and name != "examples":
                    line = " ".join(filter(None, (run, record["split"])))
                    xs, ys = lines.setdefault(name, {}).setdefault(line, ([], []))
                    xs.append(record["step"])
                    ys.append(value)
    body = ""
    for name, of_metric in lines.items():
        if max(len(xs) for xs, _ in of_metric.values()) < 2 and len(runs) == 1:
            continue  # a single evaluation is in the table
        made[f"curve_{name}"] = plot = plots.curves(of_metric, "step", name)
        body += html.plot(plot.png, name)
    return f'<div class="pictures large">{body}</div>' if body else ""


def _lists(record: dict[str, Any]) -> str:
    """Per-class numbers of an evaluation, as it wrote them."""
    body = ""
    for name, value in record.items():
        if isinstance(value, dict):
            each = {of: entry if isinstance(entry, dict) else {name: entry} for of, entry in value.items()}
            columns = list(dict.fromkeys(key for entry in each.values() for key in entry))
            lines = [(of, *map(entry.get, columns)) for of, entry in each.items()]
            body += f"<h3>{html.escape(name)}</h3>" + html.table(("class", *columns), lines)
    return body


def _training_batch(run: Predictor, say: Callable[[str], None]) -> str:
    from imgrec_jax import assemble

    try:
        with run.carried(), at_hand.only():
            experiment = assemble.build(run.config)
    except (ValueError, OSError, ImportError) as error:
        say(f"note: without training batches: {error}")
        return ""
    batch = experiment.data.train.batch(0)
    names = experiment.card["class_names"]
    shown = [examples.drawn(row, names) for row in itertools.islice(examples.rows(batch), 24)]
    return html.note("The first rows of the first batch, after augmentation.") + html.pictures(
        shown, large="boxes" in batch or "segmentation" in batch
    )


def _speed(run: Predictor, found: Sequence[Evidence]) -> str:
    starts = workdir.starts(run.workdir)
    facts: dict[str, Any] = {"starts": len(starts)}
    if starts:
        facts |= {
            "first start": starts[0].get("time"),
            "machine": starts[-1].get("cpu"),
            "device": starts[-1].get("device_kind"),
        }
    metrics = run.workdir / workdir.METRICS
    if metrics.exists():
        import datetime

        facts["last record"] = str(datetime.datetime.fromtimestamp(int(metrics.stat().st_mtime)))
    for evidence in found:
        facts[f"prediction of {len(evidence.results):,} images of {evidence.split}, compilation included"] = (
            f"{evidence.seconds:.1f} s, {len(evidence.results) / max(evidence.seconds, 1e-9):,.1f} a second"
        )
    return html.facts(facts)


def compare(
    folders: Sequence[Path],
    say: Callable[[str], None],
    *,
    out: Path,
    allow_code: bool = False,
    ensemble: Records | None = None,
) -> Path:
    """Writes the comparison of several runs to out/index.html. ensemble: records of evaluations of all of them as one."""
    runs = [imgrec_jax.load(folder, allow_code=allow_code) for folder in folders]
    names = _distinct([run.workdir for run in runs])
    records = {name: read_records(run.workdir) for name, run in zip(names, runs, strict=True)}
    made: sections.Plots = {}
    found = [gather(run, say) for run in runs]
    body = [
        ("What differs", _differences(names, runs)),
        ("Results", _side_by_side(records)),
        *([("Ensemble", _ensemble(ensemble))] if ensemble else []),
        ("Paired tests on the same examples", _paired(names, found)),
        ("Learning curves", _curves(records, made)),
    ]
    for name, plot in made.items():
        plot.save(out / name)
    html.write(out / "index.html", html.page(f"{len(runs)} runs", ", ".join(map(str, folders)), body))
    return out / "index.html"


def _distinct(folders: Sequence[Path]) -> list[str]:
    """Their last names, or whole paths where these repeat."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def _differences(names: Sequence[str], runs: Sequence[Predictor]) -> str:
    rows: dict[str, dict[str, str]] = {}
    first = _completed(runs[0])
    for name, run in zip(names[1:], runs[1:], strict=True):
        for line in difference(first, _completed(run)):
            key, _, change = line.partition(": ")
            old, _, new = change.partition(" -> ")
            rows.setdefault(key, {names[0]: old})[name] = new
    if not rows:
        return html.note("All of them have the same config.")
    return html.table(
        ("key", *names), [(key, *(row.get(name, row[names[0]]) for name in names)) for key, row in sorted(rows.items())]
    )


def _completed(run: Predictor) -> ConfigDict:
    with run.carried(), at_hand.only():
        return complete(run.config)


def _side_by_side(records: dict[str, Records]) -> str:
    """The last evaluation of each run on every split, and mean and standard deviation over the runs."""
    body = ""
    for split in _evaluated([record for of_run in records.values() for record in of_run]):
        values = {name: _numbers(_last(of_run, split)) for name, of_run in records.items()}
        metrics = list(dict.fromkeys(metric for found in values.values() for metric in found))
        rows = []
        for metric in metrics:
            row = [found.get(metric) for found in values.values()]
            known = [float(v) for v in row if v is not None]
            spread = f"{np.mean(known):.4f} ± {np.std(known, ddof=1):.4f}" if len(known) > 1 else None
            rows.append((metric, *row, spread))
        if rows:
            body += f"<h3>{html.escape(split)}</h3>" + html.table(("metric", *values, "mean ± std"), rows)
    return body


def _ensemble(records: Records) -> str:
    """Evaluations of the mean of the runs' probabilities."""
    values = {record["split"].removeprefix("ensemble_"): _numbers(record) for record in records}
    metrics = list(dict.fromkeys(metric for found in values.values() for metric in found))
    return html.note("The mean of the probabilities of all of these runs.") + html.table(
        ("metric", *values), [(metric, *(found.get(metric) for found in values.values())) for metric in metrics]
    )


def _paired(names: Sequence[str], found: Sequence[list[Evidence]]) -> str:
    """Every pair of runs that saw the same split: the difference, its interval, and how likely it is by chance."""
    rows: list[tuple] = []
    head = ("pair", "metric", "difference", "95 % from", "to", "p", "test")
    for (a, first), (b, second) in itertools.combinations(zip(names, found, strict=True), 2):
        if not first or not second or not _same_examples(first[0], second[0]):
            continue
        (name, one), (_, other) = looked.statistic(first[0]), looked.statistic(second[0])
        count = len(first[0].results)
        test = stats.paired_bootstrap(one, other, count, draws=DRAWS)
        pair = f"{a} − {b}"
        if name == "accuracy":
            won, lost, p = stats.mcnemar(looked.correct(first[0]), looked.correct(second[0]))
            low, high = (test.low, test.high) if test else (None, None)
            rows.append((pair, name, (won - lost) / count, low, high, p, f"McNemar, exact: {won} to {lost}"))
        elif test:
            rows.append((pair, name, test.difference, test.low, test.high, test.p, f"paired bootstrap over {count:,} images"))
        else:
            x, y = (of(np.ones(count, np.int64)) for of in (one, other))
            known = None if x is None or y is None else x - y
            why = "undefined" if known is None else "one difference whichever images are drawn"
            rows.append((pair, name, known, None, None, None, why))
    return html.table(head, rows) if rows else html.note("No two of these runs have the same test examples on this machine.")


def _same_examples(a: Evidence, b: Evidence) -> bool:
    first, second = a.source.info, b.source.info  # an identity is of the whole split, a name says which part of it
    same = first.identity == second.identity != "" and first.name == second.name
    return same and a.split == b.split and np.array_equal(a.indices, b.indices)
