"""Training throughput of `configs/mnist.py` (PyTorch's first MNIST example) against PyTorch, in turn, in one process.

pip install torch==2.13.0 && python experiments/002_throughput_against_pytorch/run.py

Both train the same network (conv 5x5 1->10, pool, conv 5x5 10->20, pool, dense 50, dense 10) with SGD 0.01 / 0.5 on batches of
64 drawn at random from MNIST held in memory. Ours is the product's own pipeline, compiled step and loop; PyTorch's is the eager
loop with normalised tensors prepared beforehand, without the per-image transforms and data loader that a plain program also
pays. Rounds alternate; the medians and the ratio of each pair of rounds are printed.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import numpy as np

import imgrec_jax
from imgrec_jax import parallel
from imgrec_jax.data.sets.mnist import NAME, open_digits
from imgrec_jax.data.source import Request, default_data_dir
from imgrec_jax.run import loop


def ours():
    """A function that trains n steps and waits for the last."""
    experiment = imgrec_jax.build(imgrec_jax.load_config("mnist"))
    layout = experiment.compute.layout
    state, tx = loop.create_state(experiment)
    step = loop.compile_train_step(experiment, state, tx)
    position = 0

    def run(steps: int) -> None:
        nonlocal state, position
        for _, batch in parallel.feed(experiment.data.train, position, position + steps, layout):
            state, _ = step(state, batch)
        position += steps
        jax.block_until_ready(state)

    return run


def theirs(images: np.ndarray, labels: np.ndarray):
    import torch
    from torch import nn

    torch.manual_seed(0)
    pool = nn.MaxPool2d(2)
    model = nn.Sequential(
        nn.Conv2d(1, 10, 5), nn.ReLU(), pool, nn.Conv2d(10, 20, 5), nn.ReLU(), pool,
        nn.Flatten(), nn.Linear(320, 50), nn.ReLU(), nn.Linear(50, 10), nn.LogSoftmax(1),
    )  # fmt: skip
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    x = (torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255 - 0.1307) / 0.3081
    y = torch.tensor(labels)
    loss_fn = nn.NLLLoss()

    def run(steps: int) -> None:
        order = torch.randperm(len(x))
        for i in range(steps):
            index = order[i * 64 : (i + 1) * 64]
            optimiser.zero_grad()
            loss_fn(model(x[index]), y[index]).backward()
            optimiser.step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=300, help="of a round")
    parser.add_argument("--out", default="", help="a JSON file for the result")
    args = parser.parse_args()
    arrays = open_digits(Request(NAME, "train", default_data_dir())).arrays
    runs = {"imgrec_jax": ours(), "torch": theirs(arrays["image"], arrays["label"])}
    for run in runs.values():
        run(20)
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run(args.steps)
            speeds[name].append(args.steps * 64 / (time.perf_counter() - began))
    ratios = [a / b for a, b in zip(speeds["imgrec_jax"], speeds["torch"], strict=True)]
    for name, values in speeds.items():
        print(f"{name:<11} {statistics.median(values):,.0f} img/s (min {min(values):,.0f}, max {max(values):,.0f})")
    print(f"ratio       {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f})")
    if args.out:
        Path(args.out).write_text(json.dumps({"speeds": speeds, "ratios": ratios, "jax": jax.__version__}, indent=1) + "\n")


if __name__ == "__main__":
    main()
