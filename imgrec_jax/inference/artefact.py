"""A trained run as one file for other programs: weights and preprocessing inside, uint8 images in, answers out.

What the formats share: which function is written, on which images the file is compared with the live model before it takes its
name, what the JSON beside it says.

Shape letters: B rows of a batch, H W C image of the size that the run takes, D detections.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import imgrec_jax
from imgrec_jax import assemble, at_hand
from imgrec_jax.assemble.data import open_sources
from imgrec_jax.assemble.task import stages_of
from imgrec_jax.data.batch import Batch
from imgrec_jax.data.files import write_whole
from imgrec_jax.inference.predictor import Predictor, stretched

IMAGES = 100  # on which a file is compared with the live model
# How far an output may be off: probabilities and logits, boxes in pixels, masks as probabilities of pixels; of whole numbers,
# the share that may differ.
BOUNDS = {"boxes": 1e-2, "masks": 1e-3}
BOUND = 1e-4
SCRIPT = '"""Runs '  # how the script beside a file begins
_LEFT_OUT = ("original_boxes",)  # the boxes, which are in pixels of the image that goes in, again

Answers = dict[str, Any]
Program = Callable[[Any], Answers]  # of uint8 [B, H, W, C]


@dataclasses.dataclass(frozen=True)
class Artefact:
    """A run made into a file, not yet written.

    Attributes:
      data: its bytes.
      load: opens such a file: path -> (uint8 [B, H, W, C] -> answers).
      function: the live model: uint8 [B, H, W, C] -> answers.
      batches: sizes at which the two are compared.
      rows: how many a batch may have, a number where that is fixed, "batch" where it is not.
      script: source of a small program that runs the file; {name} is the file's, {images} some of the right shape.
      described: of the JSON, what only this format has.
    """

    data: bytes
    load: Callable[[Path], Program]
    function: Program
    batches: Sequence[int]
    rows: int | str
    script: str
    described: dict[str, Any]


def refuse_inexpressible(run: Predictor, name: str) -> None:
    """Raises ValueError for a run that no file can express."""
    if run.config.task == "detection" and run.config.eval.window:
        raise ValueError(
            f"{run.workdir} looks at pictures of any size through windows of {tuple(run.config.eval.window)} (eval.window), "
            f"which {name} cannot express; export a run without them, and merge the boxes of its windows yourself"
        )
    if run.config.data.get("max_proposals"):
        raise ValueError(
            f"{run.workdir} is a detector that gets its proposals from selective search, a program of OpenCV that {name} "
            "cannot express; export a detector with an RPN (kind='faster')"
        )


def answers_of(run: Predictor, shape: tuple[int, ...]) -> Program:
    """uint8 [B, H, W, C] of `shape` -> what `Task.predict` says of them."""
    variables, (height, width, _) = run.on_device, shape

    def answers(images: jax.Array) -> Answers:
        rows = images.shape[0]
        size = jnp.broadcast_to(jnp.array([height, width], jnp.int32), (rows, 2))
        batch: dict[str, Any] = {"image": images, "image_size": size, "original_size": size}
        batch |= {"example_valid": jnp.ones((rows,), bool), "pixel_valid": jnp.ones(images.shape[:3], bool)}
        return {name: value for name, value in run.task.predict(variables, batch).items() if name not in _LEFT_OUT}

    return answers


def write(
    run: Predictor, out: Path, make: Callable[[Predictor, np.ndarray], Artefact], size: tuple[int, int] | None = None
) -> str:
    """Makes a file of a run, compares it on images of the run and writes it to `out`; returns what to say of it.

    Args:
      make: (run, images to compare on) -> the file, for images of their size.
      size: see `size_taken`.

    Raises:
      ValueError: as `size_taken`, `sample_images`, `make` and `deliver`.
    """
    refuse_to_overwrite(out)  # before what takes minutes
    taken, why = size_taken(run, size)
    images, origin = sample_images(run, IMAGES, taken)
    said = deliver(run, out, lambda run: make(run, images), images, origin)
    return f"{said}\nit takes images of {taken[0]} x {taken[1]} pixels: {why}"


def deliver(run: Predictor, out: Path, make: Callable[[Predictor], Artefact], images: np.ndarray, origin: str) -> str:
    """Writes a file that answers as the live model does, with its JSON and its script; returns what to say of it.

    A detector that finds nothing on `images` is made a second time with a lower threshold of its scores, for boxes to compare.

    Raises:
      ValueError: for a file whose answers differ on `images`; nothing of it is left.
    """
    refuse_to_overwrite(out)
    made, checked = make(run), dict[str, Any](images=len(images), of=origin)
    script, beside, shape = _script_of(out), out.with_suffix(".json"), images.shape[1:]

    def write(partial: Path) -> None:
        partial.write_bytes(made.data)
        gaps = compare(made.load(partial), jax.jit(made.function), images, made.batches)
        lower = None if run.config.task != "detection" else _threshold_of_boxes(run, images, made.batches[0])
        if lower is not None:
            checked["score_threshold"] = lower
            other = make(_with_threshold(run, lower))
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / out.name
                file.write_bytes(other.data)
                second = compare(other.load(file), jax.jit(other.function), images, other.batches)
            gaps = {name: float(np.maximum(gap, second[name])) for name, gap in gaps.items()}
        far = {name: gap for name, gap in gaps.items() if not gap <= BOUNDS.get(name, BOUND)}
        if far:
            raise ValueError(
                f"{out} would answer otherwise than the live model on {len(images)} images ({origin}): {far}; it is not written"
            )
        checked["largest_difference"] = gaps
        text = json.dumps(_described(run, out, made, shape, checked), indent=1)
        zeros = (made.rows if isinstance(made.rows, int) else 1, *shape)
        names = {"name": _in_quotes(out.name), "script": _in_quotes(script.name)}
        script.write_text(made.script.format(**names, shape=[made.rows, *shape], zeros=zeros), encoding="utf-8")
        write_whole(beside, lambda partial: partial.write_text(text + "\n"))

    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, write)
    worst = ", ".join(f"{name} {gap:.1e}" for name, gap in checked["largest_difference"].items())
    lower = checked.get("score_threshold")
    found = "" if lower is None else f" (the run finds no box there; compared with a score threshold of {lower:.2g}, too)"
    sizes = " and ".join(map(str, made.batches))
    return (
        f"wrote {out} ({len(made.data) / 1e6:.1f} MB), {beside.name} and {script.name}; against the live model on "
        f"{len(images)} images ({origin}), batches of {sizes}, it is off by at most: {worst}{found}"
    )


def _threshold_of_boxes(run: Predictor, images: np.ndarray, rows: int) -> float | None:
    """None for a detector that finds a box on one of the images; else a score that some of its boxes have.

    Raises:
      ValueError: for one that finds none whatever the threshold, which nothing can be compared with.
    """
    if _best_score(run, images, rows) > 0:
        return None
    best = _best_score(_with_threshold(run, 0.0), images, rows)
    if not best > 0:
        raise ValueError(f"{run.workdir} finds no box on {len(images)} images at any score; train it before it is exported")
    return best / 2


def _best_score(run: Predictor, images: np.ndarray, rows: int) -> float:
    """Of all detections of the images, 0 where there is none."""
    live, best = jax.jit(answers_of(run, images.shape[1:])), 0.0
    for start in range(0, len(images), rows):
        found = jax.device_get(live(np.resize(images[start : start + rows], (rows, *images.shape[1:]))))
        best = max(best, float(np.where(found["valid"], found["scores"], 0).max(initial=0)))
    return best


def _with_threshold(run: Predictor, score: float) -> Predictor:
    """The run with another threshold of its detections' scores."""
    config = run.config.copy_and_resolve_references()
    name = "box_score_thresh" if "box_score_thresh" in stages_of(config).OPTIONS else "score_thresh"
    with config.unlocked():
        config.detection[name] = score
    return run.changed(config)


def _script_of(out: Path) -> Path:
    return out.with_name(f"run_{out.stem}.py")


def _in_quotes(name: str) -> str:
    """A name as it is written between Python's quotes, one or three."""
    return json.dumps(name, ensure_ascii=False)[1:-1]


def refuse_to_overwrite(out: Path) -> None:
    """Raises ValueError for a folder, and where what lies beside an artefact would take the place of something else."""
    beside, script = out.with_suffix(".json"), _script_of(out)
    if out.is_dir():
        raise ValueError(f"--out={out} is a folder; give the name of a file")
    if script.exists() and not (script.is_file() and script.read_bytes().startswith(SCRIPT.encode())):
        raise ValueError(f"--out={out} would come with {script}, which is something else; give another name")
    if beside == out:
        raise ValueError(f"--out={out} is the name of the file that describes it; give it another suffix")
    try:
        described = json.loads(beside.read_text()).get("file")
    except FileNotFoundError:
        return
    except (ValueError, AttributeError):
        described = None
    if described != out.name:
        raise ValueError(f"--out={out} would be described in {beside}, which is of something else; give another name")


def compare(artefact: Program, live: Program, images: np.ndarray, batches: Sequence[int]) -> dict[str, float]:
    """{output: the largest difference} over the images in batches of each size, the last one filled up; of integers the share
    that differs."""
    gaps: dict[str, float] = {}
    for size in batches:
        for start in range(0, len(images), size):
            part = np.resize(images[start : start + size], (size, *images.shape[1:]))
            theirs, ours = (jax.device_get(answer) for answer in (artefact(part), live(part)))
            for name, gap in differences(theirs, ours).items():
                gaps[name] = float(np.maximum(gaps.get(name, 0.0), gap))  # NaN stays
    return gaps


def differences(theirs: Answers, ours: Answers) -> dict[str, float]:
    """{output: how far two answers to one batch are apart}: at most, of whole numbers the share that differs."""
    gaps = {}
    for name, value in ours.items():
        if theirs[name].shape != value.shape:
            gaps[name] = float("inf")
        elif np.issubdtype(value.dtype, np.floating):
            same = (value == theirs[name]) | (np.isnan(value) & np.isnan(theirs[name]))
            apart = np.subtract(value, theirs[name], out=np.zeros_like(value), where=~same)  # inf - inf would warn
            gaps[name] = float(np.abs(apart).max(initial=0))
        else:
            gaps[name] = float(np.mean(value != theirs[name])) if value.size else 0.0
    return gaps


def size_taken(run: Predictor, size: tuple[int, int] | None = None) -> tuple[tuple[int, int], str]:
    """(height, width) of the images that a file takes, and why: what a run's folder says, whether its data are here or not.

    size: what the user wants; None for that of the run's evaluation.

    Raises:
      ValueError: for a size that its network cannot take.
    """
    height, width, channels = run.image_shape
    if size is None:
        why = "that of a training batch, for its folder does not say one of its evaluation (--image_size=H,W gives another)"
        return (height, width), _WHY[run.config.task] if run.evaluates_at_a_size else why
    multiple = run.config.data.pad_multiple if run.config.task == "segmentation" else 1
    if any(side % multiple for side in size):
        raise ValueError(f"--image_size={size[0]},{size[1]}: the sides are to be multiples of data.pad_multiple={multiple}")
    try:
        jax.eval_shape(answers_of(run, (*size, channels)), jax.ShapeDtypeStruct((1, *size, channels), jnp.uint8))
    except Exception as error:  # of the network, whichever it is
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"--image_size={size[0]},{size[1]}: {run.config.model.name} takes no such images ({reason}); "
            f"its own are of {height} x {width}"
        ) from error
    return size, "as --image_size says"


# By task: which size of its evaluation a file takes.
_WHY = {
    "classification": "to which its evaluation brings every image",
    "detection": "the canvas of most images of its evaluation",
    "segmentation": "the most frequent, else the largest, of the first, middle and last image of its evaluation",
}


def sample_images(run: Predictor, count: int, size: tuple[int, int] | None = None) -> tuple[np.ndarray, str]:
    """(uint8 [n, H, W, C] as the network takes them, where from): of an evaluation split, else those that the folder keeps,
    else random ones.

    They have this size, or that of `size_taken`; where no image has, all are stretched to it. Those of 16 bits are rounded to
    the 8 that a file takes. Either is said.

    Raises:
      ValueError: for a run whose images, as its network takes them, are no parts of 1.
    """
    shape = (*(size or size_taken(run)[0]), run.image_shape[2])
    try:
        with run.carried(), at_hand.only():
            splits = open_sources(assemble.complete(run.config))[1]
        name = "test" if "test" in splits else next(iter(splits))
        source = splits[name]
        images, origin = [source[n]["image"] for n in range(min(count, len(source)))], f"the {name} split"
    except (ValueError, OSError, ImportError, StopIteration):
        images, origin = run.samples()[:count], "those that the folder keeps; the data are not here"
    if not images:
        return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8), "random ones; the data are not here"
    found = [_as_taken(run, image, origin) for image in images]
    if any(image.dtype != np.uint8 for image in found):
        found = [_as_bytes(image, f"{run.workdir}, {origin}") for image in found]
        origin += "; rounded to 8 bits a channel, which is what the file takes: what the run tells apart by more is lost in it"
    fitting = [image for image in found if image.shape == shape]
    if not fitting:
        fitting, origin = [stretched(image, shape[:2]) for image in found], f"{origin}; stretched to {shape[0]} x {shape[1]}"
    return np.stack(fitting), origin


def _as_bytes(image: np.ndarray, name: str) -> np.ndarray:
    """uint8, or float 0..1 -> uint8; ValueError for other floats."""
    if image.dtype == np.uint8:
        return image
    if not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(
            f"{name}: the network takes images of values {image.min():.3g} to {image.max():.3g}, and a file takes uint8 as "
            "values 0 to 1; leave out of data.eval_ops what takes images out of 0..1"
        )
    return np.rint(image * 255).astype(np.uint8)


def _as_taken(run: Predictor, image: np.ndarray, name: str) -> np.ndarray:
    example = run.example(run.as_image(np.asarray(image), name), name, {})
    batch: Batch = run.preprocess.batch([example], [0], 1)
    return np.asarray(batch["image"][0])


def _described(run: Predictor, out: Path, made: Artefact, shape: tuple[int, ...], checked: dict[str, Any]) -> dict[str, Any]:
    shapes = jax.eval_shape(made.function, jax.ShapeDtypeStruct((1, *shape), jnp.uint8))
    versions = {"imgrec_jax": imgrec_jax.__version__, "jax": jax.__version__, **made.described.get("versions", {})}
    return {
        "file": out.name,
        "sha256": hashlib.sha256(made.data).hexdigest(),
        "task": run.config.task,
        "class_names": list(run.class_names),
        "labels_from": 1 if run.config.task == "detection" else 0,
        "inputs": {"images": {"dtype": "uint8", "shape": [made.rows, *shape], "range": [0, 255]}},
        "outputs": {name: {"dtype": str(s.dtype), "shape": [made.rows, *s.shape[1:]]} for name, s in shapes.items()},
        "step": run.step,
        **made.described,
        "versions": versions,
        "checked": checked,
    }
