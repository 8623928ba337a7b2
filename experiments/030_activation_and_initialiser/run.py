"""Which activation needs which initialiser, and how deep does it go? Plain convolutional networks on MNIST.

    python experiments/030_activation_and_initialiser/run.py [--quick]

sigmoid, tanh and ReLU x four initialisers x 2, 4 and 8 convolutions without normalisation, SGD with momentum, 10,000 digits,
three epochs, five seeds; the eight are padded, since nothing would be left of the picture. Each is run with
two learning rates, of which train[55000:] chooses.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import questions as q

ACTIVATIONS = ("sigmoid", "tanh", "relu")
INITIALISERS = ("normal", "uniform", "glorot_uniform", "he_normal")
DEPTHS = (2, 4, 8)
RATE = "optim.learning_rate"


def convolutions(depth: int) -> tuple[tuple[int, ...], ...]:
    """5x5 of 16 and a pooling, 3x3 of 16 at 14 x 14, the last with a pooling."""
    return ((16, 5, 1, 2), *((16, 3, 1, 1),) * (depth - 2), (16, 3, 1, 2))


SWEEPS = [
    q.Sweep(
        f"depth_{depth}",
        "mnist",
        {"model.activation": ACTIVATIONS, "model.kernel_init": INITIALISERS, RATE: (0.01, 0.1)},
        {
            "model.name": "convnet",
            "model.convs": convolutions(depth),
            **({"model.padding": "SAME"} if depth == 8 else {}),  # else nothing is left of the picture
            "model.dense": "(50,)",
            "optim.options.momentum": 0.9,
            "data.train_split": "train[:10000]",
            "data.validation_split": "train[55000:]",
            "data.batch_size": 64,
            "optim.clip_norm": 10.0,
            "train.total_epochs": 3.0,
            "eval.every_epochs": 3.0,
            "checkpoint.enabled": False,
            "log.tensorboard": False,
            "log.pictures": False,
        },
        {"model.activation": ("sigmoid", "relu"), "model.kernel_init": ("normal", "he_normal"), RATE: (0.01,),
         "data.train_split": "train[:3000]", "train.total_epochs": 2.0, "eval.every_epochs": 2.0},
    )
    for depth in DEPTHS
]  # fmt: skip


def answer(records: list[dict], folder: Path) -> str:
    best = q.chosen(records, RATE)
    activations, initialisers = q.values_of(best, "model.activation"), q.values_of(best, "model.kernel_init")
    rows = []
    for activation in activations:
        for initialiser in initialisers:
            mine = [q.of(best, s.name, {"model.activation": activation, "model.kernel_init": initialiser}) for s in SWEEPS]
            rates = "/".join(r[0]["values"][RATE] for r in mine if r)
            rows.append([activation, initialiser, *(q.percent(r) for r in mine), rates])
    made, axes = q.figure(len(activations), 3.4)
    for place, activation in zip(axes, activations, strict=True):
        for initialiser in initialisers:
            mine = [q.of(best, s.name, {"model.activation": activation, "model.kernel_init": initialiser}) for s in SWEEPS]
            place.plot(DEPTHS, [100 * q.mean(r, "test") for r in mine], marker="o", label=initialiser)
        place.set(title=activation, xlabel="convolutions", ylim=(0, 102), xticks=DEPTHS)
    axes[0].set_ylabel("test accuracy, %")
    axes[-1].legend(fontsize="small")
    q.save(made, folder / "plot.png")
    head = ["activation", "initialiser", *(f"{depth} convolutions" for depth in DEPTHS), "rate"]
    return q.markdown(head, rows)


if __name__ == "__main__":
    q.ask(__file__, __doc__, SWEEPS, answer)
