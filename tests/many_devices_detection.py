"""Run by test_parallel.py in a process of its own with 8 fake devices: prints, for Mask R-CNN and RetinaNet, how far one step
on 2 and 8 devices and with parameters in pieces is from that on one, as one line of JSON."""

import json

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imgrec_jax import parallel
from imgrec_jax.data.ops import bits
from imgrec_jax.models.detectors import make_small_detector
from imgrec_jax.step import init_state, make_train_step, train_key
from imgrec_jax.tasks import one_stage, two_stage
from imgrec_jax.tasks.detect import make_task
from tests.tasks.test_detect import SETTINGS, make_batch

EXAMPLES = 8


def batch():
    """Rows differ in objects, one object has no mask, one row has no positive to draw, and two do not count."""
    made = make_batch(examples=EXAMPLES)
    height, width = made["image"].shape[1:3]
    whole = np.zeros((*made["boxes"].shape[:2], height, width), bool)
    for row, boxes in zip(whole, made["boxes"], strict=True):
        for mask, (x1, y1, x2, y2) in zip(row, boxes, strict=True):
            mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    whole[1, 0] = False
    made["box_valid"][3] = False
    made["example_valid"][[2, 7]] = False
    return {**made, "box_mask": bits.pack(whole)}


def task(kind):
    options = {"mask_widths": (6,), "mask_size": 4} if kind == "mask" else {"tower_depth": 1}
    norm = "batch" if kind == "mask" else "group"
    model = make_small_detector(
        kind=kind, num_classes=4, widths=(4, 8, 8), fpn_width=8, head_width=16, anchor_sizes=((8,), (16,)),
        norm="batch", head_norm=norm, **options,
    )  # fmt: skip
    detector = two_stage.make_detector(model, SETTINGS) if kind == "mask" else one_stage.make_detector(model)
    return make_task(detector=detector, mean=(0.5,), std=(0.5,))


def on(count):
    """A layout of the first `count` devices."""
    layout = parallel.Sharded()
    layout.mesh = Mesh(np.array(jax.devices()[:count]).reshape(count, 1), (parallel.DATA, parallel.FSDP))
    layout._replicated = NamedSharding(layout.mesh, PartitionSpec())
    layout._rows = NamedSharding(layout.mesh, PartitionSpec((parallel.DATA, parallel.FSDP)))
    return layout


def step_of(kind, layout):
    """(the change of every variable, the objective)"""
    made, data = task(kind), batch()
    spec = {"image": jax.ShapeDtypeStruct(data["image"].shape, np.uint8)}
    before = jax.device_get(jax.jit(lambda key: made.init(key, spec))(jax.random.key(0)))
    tx = optax.sgd(1.0)
    state = layout.put_state(init_state(before, tx, with_ema=False))
    step = make_train_step(made, tx, schedule=lambda step: 0.1, gather=layout.gather)
    state, sums = layout.compile_train_step(step, state, data, train_key(0))(state, layout.put_batch(data))
    after = layout.whole(state)
    new = {"params": after.params, **after.model_state}
    moved = jax.tree.map(lambda a, b: (np.asarray(b, np.float64) - np.asarray(a, np.float64)).ravel(), dict(before), new)
    return np.concatenate(jax.tree.leaves(moved)), float(layout.to_host(sums)["objective"].total)


def main():
    report = {}
    for kind in ("mask", "retina"):
        expected, objective = step_of(kind, on(1))
        for name, layout in {"2": on(2), "8": on(8), "fsdp": parallel.Sharded(4)}.items():
            moved, value = step_of(kind, layout)
            error = np.linalg.norm(moved - expected) / np.linalg.norm(expected)
            report[f"{kind} {name}"] = [float(error), abs(value / objective - 1)]
    print(json.dumps(report))


if __name__ == "__main__":
    main()
