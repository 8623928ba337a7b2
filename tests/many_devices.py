"""Run by test_parallel.py in a process of its own with 8 fake devices: prints what the layouts compute as one line of JSON."""

import json
from functools import partial

import jax
import numpy as np
import optax
from flax import linen as nn

from imgrec_jax import losses, parallel
from imgrec_jax.models.convnet import ConvNet
from imgrec_jax.models.mlp import Mlp
from imgrec_jax.models.norm import make_norm
from imgrec_jax.models.unet import UNet
from imgrec_jax.segmentation.losses import segmentation_loss
from imgrec_jax.step import eval_key, init_state, make_eval_step, make_train_step, train_key
from imgrec_jax.tasks import classify, segment

STEPS, BATCH = 6, 16


def task(axis_name):
    convs = ((8, 3, 2, 1), (16, 3, 2, 1))
    model = ConvNet(convs=convs, num_classes=8, norm="batch", padding="SAME", axis_name=axis_name)
    return classify.make_task(
        model=model, loss_fn=losses.softmax_cross_entropy, num_classes=8, mean=(0.5,), std=(0.25,), axis_name=axis_name
    )


def batches():
    rng = np.random.default_rng(0)
    for step in range(STEPS):
        yield {
            "image": rng.integers(0, 256, (BATCH, 12, 12, 1), dtype=np.uint8),
            "label": rng.integers(0, 8, BATCH, dtype=np.int32),
            "example_valid": np.arange(BATCH) < BATCH - step,  # rows that count are spread unevenly over the devices
            "index": np.arange(BATCH, dtype=np.int32),
        }


def run(layout, accumulate=1):
    made, tx = task(layout.axis_name), optax.sgd(0.1, momentum=0.9)
    first = next(batches())
    state = layout.put_state(init_state(jax.jit(made.init)(jax.random.PRNGKey(0), first), tx, with_ema=True))
    options = {"axis_name": layout.axis_name}
    step = make_train_step(
        made, tx, schedule=lambda step: 0.1, ema_decay=0.9, accumulate=accumulate, gather=layout.gather, **options
    )
    step = layout.compile_train_step(step, state, first, train_key(0))
    values = []
    for batch in batches():
        state, sums = step(state, layout.put_batch(batch))
        values.append(float(layout.to_host(sums)["objective"].total))
    variables = {"params": state.params, **state.model_state}
    evaluate = layout.compile_eval_step(make_eval_step(made, **options), variables, first, eval_key(0))
    counts = layout.to_host(evaluate(variables, layout.put_batch(batch)))["confusion"].matrix
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(layout.whole(state))]
    back = layout.put_state(layout.whole(state))
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), layout.whole(back), layout.whole(state))
    return np.array(values), np.concatenate(leaves), np.asarray(counts), all(jax.tree.leaves(same))


class Pixels(nn.Module):
    """Softmax regression of each pixel by itself."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return {"logits": nn.Dense(3, name="logits")(x)}


def gradients():
    """{task, layout, parts: [largest difference of a step's gradient from softmax regression's in float64 numpy, difference of
    the objective and the loss that is reported]}."""
    rng = np.random.default_rng(1)
    batch = {
        "image": rng.random((32, 2, 2, 1), np.float32),
        "label": rng.integers(0, 3, 32, dtype=np.int32),
        # 13 rows that count: parts and devices hold different numbers of them, some none
        "example_valid": np.isin(np.arange(32), [0, 1, 2, 4, 5, 8, 9, 10, 11, 16, 21, 26, 31]),
        "index": np.arange(32, dtype=np.int32),
        "segmentation": rng.integers(0, 3, (32, 2, 2), dtype=np.int32),
        "pixel_valid": rng.random((32, 2, 2)) < 0.4,
    }
    image = batch["image"].astype(np.float64)
    of_pixels = batch["pixel_valid"] & batch["example_valid"][:, None, None]
    elements = {  # features, labels, valid
        "images": (image.reshape(32, 4), batch["label"], batch["example_valid"]),
        "pixels": (image.reshape(-1, 1), batch["segmentation"].ravel(), of_pixels.ravel()),
    }

    def expected(kind, params):
        x, label, valid = elements[kind]
        scores = np.exp(
            x @ np.asarray(params["logits"]["kernel"], np.float64) + np.asarray(params["logits"]["bias"], np.float64)
        )
        error = (scores / scores.sum(1, keepdims=True) - np.eye(3)[label])[valid] / valid.sum()
        return {"logits": {"kernel": x[valid].T @ error, "bias": error.sum(0)}}

    def difference(kind, layout, accumulate):
        common = {"num_classes": 3, "mean": (0.0,), "std": (1.0,), "axis_name": layout.axis_name}
        if kind == "images":
            made = classify.make_task(model=Mlp(num_classes=3), loss_fn=losses.softmax_cross_entropy, **common)
        else:
            made = segment.make_task(model=Pixels(), loss_fn=segmentation_loss, **common)
        before = made.init(jax.random.PRNGKey(0), batch)
        state, options = layout.put_state(init_state(before, optax.sgd(1.0), with_ema=False)), {"axis_name": layout.axis_name}
        step = make_train_step(made, optax.sgd(1.0), schedule=lambda step: 1.0, accumulate=accumulate, **options)
        state, sums = layout.compile_train_step(step, state, batch, train_key(0))(state, layout.put_batch(batch))
        after = layout.whole(state).params
        moved = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b, np.float64), before["params"], after)
        error = jax.tree.map(lambda m, e: np.abs(m - e).max(), moved, expected(kind, before["params"]))
        sums = layout.to_host(sums)
        return [float(max(jax.tree.leaves(error))), float(sums["objective"].total) - sums["loss"].compute()[""]]

    alone = parallel.Sharded()
    alone.mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), (parallel.DATA, parallel.FSDP))
    alone._replicated = alone._rows = jax.sharding.NamedSharding(alone.mesh, jax.sharding.PartitionSpec())
    layouts = {"one": alone, "jit": parallel.Sharded(), "fsdp": parallel.Sharded(4), "pmap": parallel.Mapped()}
    return {
        f"{kind} {name} {parts}": difference(kind, layout, parts)
        for kind in elements
        for name, layout in layouts.items()
        for parts in (1, 2, 4)
    }


def bytes_of(layout):
    model = UNet(8, depth=3, width=16, norm=partial(make_norm("batch")))
    shapes = jax.eval_shape(model.init, jax.random.PRNGKey(0), np.zeros((1, 32, 32, 3), np.float32))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    return parallel.bytes_per_device(layout.put_state(init_state(params, optax.adam(1e-3), with_ema=False)))


def born(layout):
    """Bytes that making a model's variables takes on one device: what comes out, and what is needed meanwhile."""
    model = Mlp(num_classes=64, hidden=(512, 512))
    lowered = layout.lower_create(lambda key: model.init(key, np.zeros((1, 16, 16, 1), np.float32)), jax.random.PRNGKey(0))
    memory = lowered.compile().memory_analysis()
    return memory.output_size_in_bytes + memory.temp_size_in_bytes


def main():
    layouts = {"jit": parallel.Sharded(), "fsdp": parallel.Sharded(4), "pmap": parallel.Mapped()}
    results = {name: run(layout) for name, layout in layouts.items()}
    jax.config.update("jax_default_device", jax.devices()[0])
    made, tx = task(None), optax.sgd(0.1, momentum=0.9)
    state = init_state(made.init(jax.random.PRNGKey(0), next(batches())), tx, with_ema=True)
    step = jax.jit(partial(make_train_step(made, tx, schedule=lambda step: 0.1, ema_decay=0.9), train_key(0)))
    values = []
    for batch in batches():
        state, sums = step(state, batch)
        values.append(float(sums["objective"].total))
    alone = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(state)])
    report = {
        "bytes": {str(n): bytes_of(parallel.Sharded(n)) for n in (1, 8)},
        "gradients": gradients(),
        "born": {str(n): born(parallel.Sharded(n)) for n in (1, 8)},
    }
    for name, (losses_, leaves, counts, same) in results.items():
        report[name] = {
            "losses": float(np.abs(losses_ / values - 1).max()),
            "state": float(np.linalg.norm(leaves - alone) / np.linalg.norm(alone)),
            "counted": int(counts.sum()),
            "whole and back": same,
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
