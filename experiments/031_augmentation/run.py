"""What is augmentation worth, by how many examples there are? Turned, scaled and moved digits, MNIST.

    python experiments/031_augmentation/run.py [--quick]

The network of PyTorch's first example, Adam with a cosine, 1,500 steps of 64 whatever the number of examples, five seeds.
Each way of augmenting alone, every two and all three together; then all three at half and at double strength. The test digits
choose nothing: the strengths are those of `mnist:best`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import questions as q

EXAMPLES, ERRORS = (100, 1000, 10000, 55000), (2, 3, 5, 10, 20)
OP = "data.train_ops.random_affine"
TURN, SCALE, MOVE = f"{OP}.rotate", f"{OP}.scale", f"{OP}.translate"
STRENGTHS = {0.5: (6.0, (0.95, 1.05), 0.035), 1.0: (12.0, (0.9, 1.1), 0.07), 2.0: (24.0, (0.8, 1.2), 0.14)}
COMMON = {
    "data.validation_split": "train[55000:]",
    "data.train_ops": "{'random_affine': {'rotate': 0.0, 'scale': (1.0, 1.0), 'translate': 0.0}}",
    "data.batch_size": 64,
    "data.remainder": "drop",
    "optim.name": "adam",
    "optim.learning_rate": 0.001,
    "schedule.name": "cosine",
    "train.total_steps": 1500,
    "eval.every_steps": 1500,
    "checkpoint.enabled": False,
    "log.tensorboard": False,
    "log.pictures": False,
}
QUICK = {"train.total_steps": 150, "eval.every_steps": 150}


def _split(count: int) -> str:
    return f"train[:{count}]"


def _sweeps() -> list[q.Sweep]:
    made = []
    for count in EXAMPLES:
        turn, scale, move = STRENGTHS[1.0]
        common = COMMON | {"data.train_split": _split(count)}
        grid = {TURN: (0.0, turn), SCALE: ((1.0, 1.0), scale), MOVE: (0.0, move)}
        made.append(q.Sweep(f"each_{count}", "mnist", grid, common, QUICK | {SCALE: (scale,)}))
        for strength in (0.5, 2.0):
            turn, scale, move = STRENGTHS[strength]
            grid = {TURN: (turn,), SCALE: (scale,), MOVE: (move,)}
            made.append(q.Sweep(f"strength_{strength}_{count}", "mnist", grid, common, QUICK))
    return made


SWEEPS = _sweeps()


def answer(records: list[dict], folder: Path) -> str:
    def at(count: int, strength: float, turn: bool, scale: bool, move: bool) -> list[dict]:
        name = f"each_{count}" if strength == 1.0 else f"strength_{strength}_{count}"
        wanted = STRENGTHS[strength]
        values = (wanted[0] if turn else 0.0, wanted[1] if scale else (1.0, 1.0), wanted[2] if move else 0.0)
        return q.of(records, name, {TURN: values[0], SCALE: values[1], MOVE: values[2]})

    ways = {
        "nothing": (1.0, False, False, False),
        "turned by up to 12°": (1.0, True, False, False),
        "scaled by up to 10 %": (1.0, False, True, False),
        "moved by up to 7 %": (1.0, False, False, True),
        "turned and scaled": (1.0, True, True, False),
        "turned and moved": (1.0, True, False, True),
        "scaled and moved": (1.0, False, True, True),
        "all three": (1.0, True, True, True),
        "all three at half the strength": (0.5, True, True, True),
        "all three at double strength": (2.0, True, True, True),
    }
    rows = [[name, *(q.percent(at(count, *way)) for count in EXAMPLES)] for name, way in ways.items()]
    made, (axes,) = q.figure(1, 6.0)
    for name in ("nothing", "turned by up to 12°", "scaled by up to 10 %", "moved by up to 7 %", "all three"):
        mine = [(count, at(count, *ways[name])) for count in EXAMPLES]
        if all(found for _, found in mine):
            errors = [100 - 100 * q.mean(found, "test") for _, found in mine]
            axes.plot([count for count, _ in mine], errors, marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="training examples", ylabel="test error, %")
    axes.set_xticks(EXAMPLES, [f"{count:,}" for count in EXAMPLES])
    axes.set_yticks(ERRORS, map(str, ERRORS))
    axes.minorticks_off()
    axes.legend(fontsize="small")
    q.save(made, folder / "plot.png")
    return q.markdown(["training digits are", *(f"{count:,} examples" for count in EXAMPLES)], rows)


if __name__ == "__main__":
    q.ask(__file__, __doc__, SWEEPS, answer)
