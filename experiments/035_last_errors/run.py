"""Where are MNIST's last errors? Five seeds of the best network, their ensemble, and the digits that none of them reads.

    python experiments/035_last_errors/run.py [--quick]         (--quick: seeds of mnist:fast)

`results.jsonl` names every test digit that a seed reads wrongly, with what it reads; `digits.png` shows those that all read
wrongly, `plot.png` how many digits are wrong for one, two, ... of the seeds.
"""

import collections
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import questions as q

SWEEPS = [q.Sweep("best", "mnist:best", {}, {"log.pictures": False}, {})]
QUICK = [q.Sweep("fast", "mnist:fast", {}, {"log.pictures": False}, {})]


def measure(sweep: q.Sweep, folder: Path, records: list[dict], place: Path) -> None:
    """Adds to each record what its network reads wrongly, to the first what the ensemble does, and draws the hardest digits."""
    import imgrec_jax

    networks = [imgrec_jax.load(folder / entry["point"], "last") for entry in q.runs.read(folder / "results.jsonl")]
    pipeline = imgrec_jax.build(networks[0].config).data.evals["test"]
    batches = [pipeline.batch(i) for i in range(pipeline.steps_per_epoch)]
    images, labels = (np.concatenate([b[key][b["example_valid"]] for b in batches]) for key in ("image", "label"))
    scores = np.stack([[r.probs for r in network.predict(list(images))] for network in networks])  # [seeds, digits, 10]
    for record, found in zip(records, scores.argmax(-1), strict=True):
        record["wrong"] = {str(i): [int(labels[i]), int(found[i])] for i in np.flatnonzero(found != labels)}
    found = scores.mean(0).argmax(-1)
    records[0]["ensemble"] = {str(i): [int(labels[i]), int(found[i])] for i in np.flatnonzero(found != labels)}
    draw(images, records, place / "digits.png")


def counts(records: list[dict]) -> collections.Counter:
    """{digit: by how many networks it is read wrongly}."""
    return collections.Counter(i for record in records for i in record["wrong"])


def draw(images: np.ndarray, records: list[dict], path: Path) -> None:
    hardest = sorted((i for i, count in counts(records).items() if count == len(records)), key=int)
    columns = 8
    rows = max(-(-len(hardest) // columns), 1)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    made, axes = pyplot.subplots(rows, columns, figsize=(columns * 1.1, rows * 1.45), layout="constrained", squeeze=False)
    for place in axes.flat:
        place.axis("off")
    for place, i in zip(axes.flat, hardest, strict=False):
        place.imshow(images[int(i), ..., 0], cmap="gray_r")
        read = sorted({record["wrong"][i][1] for record in records})
        place.set_title(f"{records[0]['wrong'][i][0]}, read {'/'.join(map(str, read))}", fontsize=8)
    q.save(made, path)


def answer(records: list[dict], folder: Path) -> str:
    seen, total = counts(records), 10_000
    pairs = collections.Counter(tuple(pair) for record in records for pair in record["wrong"].values())
    often = ", ".join(f"{a} as {b} ({count / len(records):.1f})" for (a, b), count in pairs.most_common(5))
    ensemble = records[0]["ensemble"]
    made, (axes,) = q.figure(1, 5.0)
    numbers = range(1, len(records) + 1)
    axes.bar(numbers, [sum(count == n for count in seen.values()) for n in numbers])
    axes.set(xlabel=f"wrong by so many of {len(records)} networks", ylabel="test digits", xticks=numbers)
    q.save(made, folder / "plot.png")
    rows = [
        ["test accuracy of one network, %", q.percent(records)],
        ["of the ensemble (mean of the probabilities), %", f"{100 * (1 - len(ensemble) / total):.2f}"],
        ["digits that some network reads wrongly", str(len(seen))],
        ["that all read wrongly", str(sum(count == len(records) for count in seen.values()))],
        ["that the ensemble reads wrongly", str(len(ensemble))],
        ["the most frequent confusions, digits a network", often],
    ]
    return q.markdown([f"{len(records)} networks", ""], rows)


if __name__ == "__main__":
    q.ask(__file__, __doc__, SWEEPS, answer, quick=QUICK, measure=measure)
