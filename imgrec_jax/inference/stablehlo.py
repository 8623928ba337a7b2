"""A trained run as one file that jax alone runs: weights and normalisation inside, uint8 images in, answers out.

Written by `jax.export` as StableHLO for cpu, cuda and tpu at once, for batches of any size. Beside it a JSON that says what
goes in and comes out, and a script of ten lines that runs it. After writing, the file is run and compared with the live model.

Shape letters: B rows of a batch, H W C image of the size that the run takes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import imgrec_jax
from imgrec_jax import assemble
from imgrec_jax.assemble.data import open_sources
from imgrec_jax.data.batch import Batch
from imgrec_jax.data.files import write_whole
from imgrec_jax.inference.predictor import Predictor

PLATFORMS = ("cpu", "cuda", "tpu")
BATCHES = (4096, 1024, 256, 64, 16)  # bounds of the batch that are tried
IMAGES = 100  # on which the file is compared with the live model
# How far an output may be off: probabilities and logits, boxes in pixels, masks as probabilities of pixels.
BOUNDS = {"boxes": 1e-2, "masks": 1e-3}
BOUND = 1e-4
_LEFT_OUT = ("original_boxes",)  # the boxes, which are in pixels of the image that goes in, again

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


def write(run: Predictor, out: Path) -> str:
    """Writes the run to `out`, a JSON and a script beside it; returns what to say of it.

    Raises:
      ValueError: for a run that cannot be expressed, with the reason; for a file whose answers differ from the live model's.
    """
    if run.config.data.get("max_proposals"):
        raise ValueError(
            f"{run.workdir} is a detector that gets its proposals from selective search, a program of OpenCV that StableHLO "
            "cannot express; export a detector with an RPN (kind='faster')"
        )
    images, origin = sample_images(run, IMAGES)
    shape = images.shape[1:]
    function = answers_of(run, shape)
    exported, most = _exported(function, shape)
    data = bytes(exported.serialize())
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, lambda partial: partial.write_bytes(data))
    script = out.with_name(f"run_{out.stem}.py")
    names = {"name": out.name, "script": script.name, "shape": ["batch", *shape], "zeros": (1, *shape)}
    script.write_text(_SCRIPT.format(**names))
    program = jax.export.deserialize(bytearray(out.read_bytes()))
    gaps = compare(jax.jit(program.call), function, images, most)
    _describe(run, shape, out, data, most, {"images": len(images), "of": origin, "largest_difference": gaps})
    far = {name: gap for name, gap in gaps.items() if gap > BOUNDS.get(name, BOUND)}
    if far:
        raise ValueError(
            f"{out} answers otherwise than the live model on {len(images)} images ({origin}): {far}; do not use it"
        )
    worst = ", ".join(f"{name} {gap:.1e}" for name, gap in gaps.items())
    return (
        f"wrote {out} ({len(data) / 1e6:.1f} MB), {out.with_suffix('.json').name} and {script.name}; against the live model on "
        f"{len(images)} images ({origin}) it is off by at most: {worst}"
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


def answers_of(run: Predictor, shape: tuple[int, ...]) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """uint8 [B, H, W, C] of `shape` -> what `Task.predict` says of them."""
    variables, (height, width, _) = run.on_device, shape

    def answers(images: jax.Array) -> dict[str, jax.Array]:
        rows = images.shape[0]
        size = jnp.broadcast_to(jnp.array([height, width], jnp.int32), (rows, 2))
        batch: dict[str, Any] = {"image": images, "image_size": size, "original_size": size}
        batch |= {"example_valid": jnp.ones((rows,), bool), "pixel_valid": jnp.ones(images.shape[:3], bool)}
        return {name: value for name, value in run.task.predict(variables, batch).items() if name not in _LEFT_OUT}

    return answers


def compare(
    artefact: Callable[[np.ndarray], dict[str, jax.Array]],
    live: Callable[[jax.Array], dict[str, jax.Array]],
    images: np.ndarray,
    most: int,
) -> dict[str, float]:
    """{output: the largest difference} over the images, in batches of up to `most`; of integers the share that differs."""
    gaps: dict[str, float] = {}
    compiled = jax.jit(live)
    size = min(most, max(len(images) // 2, 1))
    for part in (*(images[start : start + size] for start in range(0, len(images), size)), images[:1]):
        theirs, ours = (jax.device_get(answer) for answer in (artefact(part), compiled(jnp.asarray(part))))
        for name, value in ours.items():
            if np.issubdtype(value.dtype, np.floating):
                gap = float(np.abs(value - theirs[name]).max(initial=0))
            else:
                gap = float(np.mean(value != theirs[name])) if value.size else 0.0
            gaps[name] = max(gaps.get(name, 0.0), gap)
    return gaps


def sample_images(run: Predictor, count: int) -> tuple[np.ndarray, str]:
    """(uint8 [n, H, W, C] as the network takes them, where from): of an evaluation split, else those that the folder keeps,
    else random ones.

    Their size is that of the run's training batches; in segmentation, which may train on crops, that of the first image of the
    split.
    """
    shape: tuple[int, ...] = run.image_shape
    try:
        splits = open_sources(assemble.complete(run.config))[1]
        name = "test" if "test" in splits else next(iter(splits))
        source = splits[name]
        images, origin = [source[n]["image"] for n in range(min(count, len(source)))], f"the {name} split"
    except (ValueError, OSError, StopIteration):
        images, origin = run.samples()[:count], "those that the folder keeps; the data are not here"
        if not images:
            return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8), "random ones; the data are not here"
    found = [_as_taken(run, image, origin) for image in images]
    shape = found[0].shape if found and run.config.task == "segmentation" else shape
    fitting = [image for image in found if image.shape == shape and image.dtype == np.uint8]
    if not fitting:
        return np.random.default_rng(0).integers(
            0, 256, (count, *shape), np.uint8
        ), "random ones; those of the data differ in size"
    return np.stack(fitting), origin


def _as_taken(run: Predictor, image: np.ndarray, name: str) -> np.ndarray:
    example = run.example(run.as_image(np.asarray(image), name), name, {})
    batch: Batch = run.preprocess.batch([example], [0], 1)
    return np.asarray(batch["image"][0])


def _describe(run: Predictor, shape: tuple[int, ...], out: Path, data: bytes, most: int, checked: dict[str, Any]) -> None:
    shapes = jax.eval_shape(answers_of(run, shape), jax.ShapeDtypeStruct((1, *shape), jnp.uint8))
    described = {
        "file": out.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "task": run.config.task,
        "class_names": list(run.class_names),
        "labels_from": 1 if run.config.task == "detection" else 0,
        "inputs": {"images": {"dtype": "uint8", "shape": ["batch", *shape], "range": [0, 255]}},
        "outputs": {name: {"dtype": str(s.dtype), "shape": ["batch", *s.shape[1:]]} for name, s in shapes.items()},
        "platforms": list(PLATFORMS),
        "step": run.step,
        "versions": {"imgrec_jax": imgrec_jax.__version__, "jax": jax.__version__},
        "largest_batch": most,
        "checked": checked,
    }
    text = json.dumps(described, indent=1) + "\n"
    write_whole(out.with_suffix(".json"), lambda partial: partial.write_text(text))
