"""A trained run as one ONNX file, converted by jax2onnx from the run's primitives and checked under ONNX Runtime.

Classifiers and segmenters take batches of any size; a detector's file takes those of one size.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imgrec_jax.inference import artefact, primitives
from imgrec_jax.inference.predictor import Predictor

_SCRIPT = '''"""Runs {name} on an image: python {script} IMAGES.npy   (uint8 {shape}; needs onnxruntime and numpy alone)."""

import pathlib
import sys

import numpy as np
import onnxruntime

program = onnxruntime.InferenceSession(str(pathlib.Path(__file__).parent / "{name}"))
images = np.load(sys.argv[1]) if len(sys.argv) > 1 else np.zeros({zeros}, np.uint8)
for output, value in zip(program.get_outputs(), program.run(None, {{"images": images}})):
    print(output.name, value.shape, value.ravel()[:10])
'''


def write(run: Predictor, out: Path, rows: int | None = None, size: tuple[int, int] | None = None) -> str:
    """Writes the run to `out`, a JSON and a script beside it; returns what to say of it.

    Args:
      rows: of the batches that the file takes; None: any number, of a detector one.
      size: of the images that it takes; None for that of the run's evaluation.

    Raises:
      ValueError: for a run that cannot be expressed, with the reason; for a file whose answers differ from the live model's.
      ImportError: where jax2onnx or ONNX Runtime are not installed.
    """
    return artefact.write(run, out, lambda run, images: make(run, images, rows), size)


def make(run: Predictor, images: np.ndarray, rows: int | None = None) -> artefact.Artefact:
    """The run as a file for images of the size of `images`, to be compared on as many; rows: see `write`."""
    artefact.refuse_inexpressible(run, "ONNX")
    _check_installed()
    function = artefact.answers_of(run, images.shape[1:])
    rows = 1 if rows is None and run.config.task == "detection" else rows
    model = _converted(run, function, images.shape[1:], rows)
    return artefact.Artefact(
        data=model.SerializeToString(),
        load=load,
        function=function,
        batches=(rows,) if rows else (max(len(images) // 2, 1), 1),
        rows=rows or "batch",
        script=_SCRIPT,
        described={
            "opset": next(one.version for one in model.opset_import if not one.domain),
            "versions": {name: version(name) for name in ("jax2onnx", "onnx", "onnxruntime")},
        },
    )


def load(path: Path) -> artefact.Program:
    """A file under ONNX Runtime: uint8 [B, H, W, C] -> {name: array}."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(None, {"images": np.asarray(images)}), strict=True))


def _check_installed() -> None:
    try:
        import jax2onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(f"--format=onnx needs jax2onnx and onnxruntime ({error}); pip install 'imgrec-jax[onnx]'") from error


def _converted(run: Predictor, function: Any, shape: tuple[int, ...], rows: int | None) -> Any:
    """The run as an `onnx.ModelProto` with input "images" and the names of the answers as outputs."""
    import jax2onnx

    sizes = (rows, *shape) if rows else jax.export.symbolic_shape(f"batch, {', '.join(map(str, shape))}")
    spec = jax.ShapeDtypeStruct(sizes, jnp.uint8)
    names = sorted(jax.eval_shape(function, spec))  # the order of a dict's leaves
    try:
        program = primitives.flat(function, spec)
        with _quiet():
            return jax2onnx.to_onnx(
                lambda images: tuple(primitives.called(program, images)), [spec], model_name=run.config.model.name,
                input_names=["images"], output_names=names,
            )  # fmt: skip
    except Exception as error:  # of the converter, whatever it meets first
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"{run.workdir}: {run.config.model.name} cannot be written as ONNX, {type(error).__name__}: {reason}; "
            "--format=stablehlo can express it"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the converter's warnings of shapes that it keeps to itself."""
    logger = logging.getLogger("onnx_ir")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
