"""The forms of imgrec_jax/ops/conv.py, shape by shape: python experiments/010_speed/shapes.py [--only=REGEX]

For each convolution of the benchmark's networks and each of its three directions: milliseconds of CPU on one core of `lax`, of
every form that can compute it, and of what the package takes ("chosen"). CPU time, the least of several runs, so that other
work on the machine matters little.
"""

import argparse
import os
import re
import time
from collections.abc import Callable
from functools import partial

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax
import jax.numpy as jnp
import numpy as np

from imgrec_jax import parallel
from imgrec_jax.ops import conv

# name: (B, H, W, C, D, kernel, stride, padding, groups)
SHAPES = {
    "seed A 1": (64, 28, 28, 1, 10, 5, 1, 0, 1),
    "seed A 2": (64, 12, 12, 10, 20, 5, 1, 0, 1),
    "seed B 1": (64, 28, 28, 1, 32, 3, 1, 0, 1),
    "seed B 2": (64, 13, 13, 32, 64, 3, 1, 0, 1),
    "resnet18 32 stem": (64, 32, 32, 3, 64, 7, 2, 3, 1),
    "resnet18 32 layer1": (64, 8, 8, 64, 64, 3, 1, 1, 1),
    "resnet18 32 layer3 strided": (64, 4, 4, 128, 256, 3, 2, 1, 1),
    "resnet18 32 layer3": (64, 2, 2, 256, 256, 3, 1, 1, 1),
    "resnet18 32 layer4 strided": (64, 2, 2, 256, 512, 3, 2, 1, 1),
    "resnet18 32 layer4": (64, 1, 1, 512, 512, 3, 1, 1, 1),
    "resnet18 224 stem": (8, 224, 224, 3, 64, 7, 2, 3, 1),
    "resnet18 224 layer1": (8, 56, 56, 64, 64, 3, 1, 1, 1),
    "resnet18 224 layer2 strided": (8, 56, 56, 64, 128, 3, 2, 1, 1),
    "resnet18 224 layer2": (8, 28, 28, 128, 128, 3, 1, 1, 1),
    "resnet18 224 layer3": (8, 14, 14, 256, 256, 3, 1, 1, 1),
    "resnet18 224 layer4": (8, 7, 7, 512, 512, 3, 1, 1, 1),
    "resnet50 layer1 out": (8, 56, 56, 64, 256, 1, 1, 0, 1),
    "resnet50 layer2 in": (8, 28, 28, 512, 128, 1, 1, 0, 1),
    "resnet50 layer2 shortcut": (8, 56, 56, 256, 512, 1, 2, 0, 1),
    "unet first": (8, 128, 128, 3, 32, 3, 1, 1, 1),
    "unet": (8, 128, 128, 32, 32, 3, 1, 1, 1),
    "fpn 200 x 272": (1, 200, 272, 64, 64, 3, 1, 1, 1),
    "fpn 100 x 136": (1, 100, 136, 128, 128, 3, 1, 1, 1),
    "depthwise 112": (8, 112, 112, 64, 64, 3, 1, 1, 64),
    "depthwise 28": (8, 28, 28, 192, 192, 5, 1, 2, 192),
}


def milliseconds(function: Callable, *args: jax.Array) -> float:
    run = jax.jit(function, compiler_options=parallel.compiler_options()).lower(*args).compile()
    jax.block_until_ready(run(*args))
    best, end = np.inf, time.process_time() + 0.2
    while time.process_time() < end:
        began = time.process_time()
        jax.block_until_ready(run(*args))
        best = min(best, time.process_time() - began)
    return 1e3 * best


def forms(x: jax.Array, w: jax.Array, spec: conv.Spec) -> dict[str, dict[str, Callable]]:
    """{direction: {form: function}}; "chosen" is the package's."""
    forward = {"lax": conv.lax_forward, "chosen": conv.forward}
    inputs = {"lax": conv.lax_input_gradient, "chosen": conv.input_gradient}
    kernels = {"lax": conv.lax_kernel_gradient, "chosen": conv.kernel_gradient}
    if spec.groups == 1:
        forward["patches"], inputs["residues"] = conv.by_patches, conv.by_residues
        if x.shape[3] <= 16:
            for group in (2, 4, 8):
                forward[f"columns {group}"] = partial(conv.by_columns, group=group)
                kernels[f"columns {group}"] = partial(conv.kernel_gradient_by_columns, group=group)
        if spec.strides == (1, 1) and not any(map(any, spec.pads)) and x.shape[2] <= 28:
            inputs["rows"] = conv.input_gradient_by_rows
        if x.shape[0] <= 8 and x.shape[1] >= 32:
            kernels["2 parts"] = partial(conv.kernel_gradient_in_parts, parts=2)
    return {
        "forward": {name: partial(f, spec=spec) for name, f in forward.items()},
        "input": {name: partial(f, x_shape=x.shape, spec=spec) for name, f in inputs.items()},
        "kernel": {
            name: partial(f, **{"w_shape" if name in ("lax", "chosen") else "shape": w.shape}, spec=spec)
            for name, f in kernels.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a regular expression over: " + ", ".join(SHAPES))
    args = parser.parse_args()
    os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    print(f"forms {conv.FORMS_VERSION}, jax {jax.__version__}, ms of CPU on one core")
    rng = np.random.default_rng(0)
    for name, (b, h, width, c, d, k, s, p, groups) in SHAPES.items():
        if not re.search(args.only, name):
            continue
        spec = conv.Spec((s, s), ((p, p), (p, p)), groups)
        x = jnp.asarray(rng.standard_normal((b, h, width, c)), jnp.float32)
        w = jnp.asarray(rng.standard_normal((k, k, c // groups, d)), jnp.float32)
        dy = jnp.ones_like(conv.lax_forward(x, w, spec))
        arrays = {"forward": (x, w), "input": (dy, w), "kernel": (x, dy)}
        for direction, functions in forms(x, w, spec).items():
            times = {form: milliseconds(function, *arrays[direction]) for form, function in functions.items()}
            print(f"{name:<28} {direction:<8}" + "  ".join(f"{form} {ms:.2f}" for form, ms in times.items()), flush=True)


if __name__ == "__main__":
    main()
