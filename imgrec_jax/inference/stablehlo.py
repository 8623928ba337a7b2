"""A trained run as one file that jax alone runs, written by `jax.export` as StableHLO.

For cpu, cuda and tpu at once, and batches of any size; the script beside it has ten lines.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imgrec_jax.inference import artefact
from imgrec_jax.inference.predictor import Predictor

PLATFORMS = ("cpu", "cuda", "tpu")
BATCHES = (4096, 1024, 256, 64, 16)  # bounds of the batch that are tried

_SCRIPT = '''"""Runs {name} on an image: python {script} IMAGES.npy   (uint8 {shape}; needs jax and numpy alone)."""

import pathlib
import sys

import numpy as np
from jax import export

program = export.deserialize(bytearray((pathlib.Path(__file__).parent / "{name}").read_bytes()))
images = np.load(sys.argv[1]) if len(sys.argv) > 1 else np.zeros({zeros}, np.uint8)
for name, value in program.call(images).items():
    print(name, value.shape, np.asarray(value).ravel()[:10])
'''


def write(run: Predictor, out: Path, size: tuple[int, int] | None = None) -> str:
    """Writes the run to `out`, a JSON and a script beside it; returns what to say of it.

    size: of the images that it takes; None for that of the run's evaluation.

    Raises:
      ValueError: for a run that cannot be expressed, with the reason; for a file whose answers differ from the live model's.
    """
    return artefact.write(run, out, lambda run, images: make(run, images), size)


def make(run: Predictor, images: np.ndarray) -> artefact.Artefact:
    """The run as a file for images of the size of `images`, to be compared on as many."""
    artefact.refuse_inexpressible(run, "StableHLO")
    function = artefact.answers_of(run, images.shape[1:])
    exported, most = _exported(function, images.shape[1:])
    return artefact.Artefact(
        data=bytes(exported.serialize()),
        load=lambda path: jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call),
        function=function,
        batches=(min(most, max(len(images) // 2, 1)), 1),
        rows="batch",
        script=_SCRIPT,
        described={"platforms": list(PLATFORMS), "largest_batch": most},
    )


def _exported(function: Callable, shape: tuple[int, ...]) -> tuple[Any, int]:
    """(the program, the largest batch that it takes): where kernels are chosen by the size of a batch, it needs a bound."""
    text = f"batch, {', '.join(map(str, shape))}"
    for most in BATCHES:
        sizes = jax.export.symbolic_shape(text, constraints=["batch >= 1", f"batch <= {most}"])
        try:
            made = jax.export.export(jax.jit(function), platforms=PLATFORMS)(jax.ShapeDtypeStruct(sizes, jnp.uint8))
            return made, most
        except jax.errors.InconclusiveDimensionOperation:
            if most == BATCHES[-1]:
                raise
    raise AssertionError("unreachable")
