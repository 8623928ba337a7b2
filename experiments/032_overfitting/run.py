"""What helps against overfitting? Dropout, weight decay, stopping early and more examples, MNIST.

    python experiments/032_overfitting/run.py [--quick]

An MLP of two hidden layers (512, 256), AdamW at a constant rate, batches of 64, five seeds, on 500, 2,000 and 8,000 digits.
What is in the table beside "nothing": each dropout and each decay alone, and both as train[55000:] chooses; stopping early
keeps the checkpoint that train[55000:] finds best, and ends after five evaluations without a better one.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import questions as q

EXAMPLES = (500, 2000, 8000)
DROPOUT, DECAY = "model.dropout", "optim.weight_decay"
RATES = (0.0, 0.25, 0.5)
DECAYS = {0.0: "(('.*',0.0),)", 0.1: "(('kernel',0.1),('.*',0.0))", 1.0: "(('kernel',1.0),('.*',0.0))"}
COMMON = {
    "data.validation_split": "train[55000:]",
    "data.batch_size": 64,
    "data.remainder": "pad",
    "optim.name": "adamw",
    "optim.learning_rate": 0.001,
    "schedule.name": "constant",
    "train.total_steps": 2000,
    "log.tensorboard": False,
    "log.pictures": False,
}


def _sweeps() -> list[q.Sweep]:
    made = []
    for count in EXAMPLES:
        common = COMMON | {"data.train_split": f"train[:{count}]"}
        grid = {DROPOUT: RATES, DECAY: tuple(DECAYS.values())}
        quick = {"train.total_steps": 300, "eval.every_steps": 300, DROPOUT: (0.0, 0.5), DECAY: (DECAYS[0.0],)}
        made.append(q.Sweep(f"grid_{count}", "mnist:mlp", grid, common | {"eval.every_steps": 2000}, quick))
        early = {"select.metric": "accuracy", "select.patience": 5, "eval.every_steps": 50, DROPOUT: 0.0, DECAY: DECAYS[0.0]}
        made.append(
            q.Sweep(f"early_{count}", "mnist:mlp", {}, common | early, {"train.total_steps": 300, "select.patience": 2})
        )
    return made


SWEEPS = _sweeps()


def measure(sweep: q.Sweep, folder: Path, records: list[dict], place: Path) -> None:
    """Adds the accuracy on the training digits, as the network answers when it does not train."""
    import imgrec_jax

    for record, entry in zip(records, q.runs.read(folder / "results.jsonl"), strict=True):
        workdir = folder / entry["point"]
        config = imgrec_jax.load(workdir).config
        config.data.validation_split, config.data.allow_overlap = config.data.train_split, True
        which = "best" if sweep.name.startswith("early") else "last"
        found = imgrec_jax.evaluate(imgrec_jax.build(config), workdir, checkpoint=which, allow_changes=True)
        record["train"] = {"accuracy": round(float(found["validation"]["accuracy"]), 6)}


def answer(records: list[dict], folder: Path) -> str:
    def cells(mine: list[dict], split: str = "test") -> list[str]:
        if not mine:
            return ["", ""]
        gap = sum(100 * (r["train"]["accuracy"] - r[split]["accuracy"]) for r in mine) / len(mine)
        return [q.percent(mine, split), f"{gap:.2f}"]

    def row(name: str, of_count) -> list[str]:
        return [name, *(cell for count in EXAMPLES for cell in of_count(count))]

    def alone(dropout: float, decay: str):
        return lambda count: cells(q.of(records, f"grid_{count}", {DROPOUT: dropout, DECAY: decay}))

    def both(count: int) -> list[str]:
        best = q.chosen(q.of(records, f"grid_{count}"), DROPOUT, DECAY)
        text, gap = cells(best)
        decay = next(str(k) for k, v in DECAYS.items() if v == best[0]["values"][DECAY])
        return [f"{text} (dropout {best[0]['values'][DROPOUT]}, decay {decay})", gap]

    none = DECAYS[0.0]
    rows = [row("nothing", alone(0.0, none))]
    rows += [row(f"dropout {rate}", alone(rate, none)) for rate in RATES[1:]]
    rows += [row(f"weight decay {name}", alone(0.0, DECAYS[name])) for name in (0.1, 1.0)]
    rows.append(row("dropout and decay, chosen by validation", both))
    rows.append(row("stopping early", lambda count: cells(q.of(records, f"early_{count}"), "best_test")))
    made, (axes,) = q.figure(1, 6.0)
    for name, rate in (("nothing", 0.0), ("dropout 0.5", 0.5)):
        mine = [q.of(records, f"grid_{count}", {DROPOUT: rate, DECAY: none}) for count in EXAMPLES]
        for split, style in (("train", "--"), ("test", "-")):
            axes.plot(EXAMPLES, [100 * q.mean(m, split) for m in mine], style, marker="o", label=f"{name}, {split}")
    axes.set(xscale="log", xlabel="training examples", ylabel="accuracy, %", xticks=EXAMPLES)
    axes.minorticks_off()
    axes.set_xticklabels([f"{count:,}" for count in EXAMPLES])
    axes.legend(fontsize="small")
    q.save(made, folder / "plot.png")
    return q.markdown(["", *(h for count in EXAMPLES for h in (f"{count:,}: test accuracy", "gap"))], rows)


if __name__ == "__main__":
    q.ask(__file__, __doc__, SWEEPS, answer, measure=measure)
