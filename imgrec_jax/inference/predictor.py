"""A trained run, opened without its data: what it predicts on images.

Shape letters: N images, H W C one of them, B rows of a batch, K classes.
"""

import contextlib
import copy
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict

from imgrec_jax import assemble, metrics, parallel
from imgrec_jax.assemble import own
from imgrec_jax.assemble.task import limits_of_windows
from imgrec_jax.data.batch import Batch
from imgrec_jax.data.images import ImageFileError
from imgrec_jax.data.ops.photometric import to_channels
from imgrec_jax.data.own import pictures as own_pictures
from imgrec_jax.data.pieces import cut
from imgrec_jax.detection import windows
from imgrec_jax.inference import inputs
from imgrec_jax.inference.batching import Batcher, Filled, Piece, Shapes, ahead
from imgrec_jax.inference.inputs import Picture
from imgrec_jax.inference.labels import Labels, open_labels
from imgrec_jax.inference.results import Result, result_of
from imgrec_jax.run import checkpoint, memory, samples, start, workdir
from imgrec_jax.run.writers import emit

BEHIND = 256  # results that wait for an earlier one at most, so that they come in order and few are kept
HEAD = 64  # images that are looked at to choose the rows of a batch
THREADS = 2  # that read and prepare images


class Prepared(NamedTuple):
    """An image ready for the network: its (height, width), its windows, an example of each, and whether it was stretched to the
    size that the run takes."""

    size: tuple[int, int]
    windows: list[windows.Window]
    examples: list[dict[str, Any]]
    stretched: bool


class Predictor:
    """A run that answers.

    Attributes:
      workdir: its folder.
      config: what it was trained with.
      step: of the checkpoint; checkpoint: "best" or "last".
      class_names: in label order (for detection of labels 1, 2, ...); () where the run does not say, see `lacks`.
      variables: {"params": ..., other collections}, numpy; averaged where the run averages and nothing else was asked for.
      task: its functions; `apply(variables, batch) -> predictions` and `task.logits` are pure and can be differentiated.
      preprocess: the same that evaluation used.
      lacks: lines on what the folder does not say, because an early version wrote it.
      compiled: shapes of the batches for which a program was compiled so far.
      resized: how many images had another size than the run classifies, and were stretched to it.
    """

    def __init__(
        self,
        folder: Path,
        config: ConfigDict,
        card: dict[str, Any],
        found: checkpoint.Found,
        averaged: bool | None,
        allow_code: bool = False,
    ):
        self.workdir, self.config, self.step = folder, config, found.step
        self.checkpoint = "best" if found.kind == checkpoint.BEST else "last"
        self._carried = own.of_workdir(folder, config, card.get("code", {}), allow_code)
        with self.carried():
            self.task, self.preprocess = assemble.inference(config)
            self.class_names = tuple(card.get("class_names") or assemble.class_names(config))
        self.variables = checkpoint.read_variables(found, averaged)
        self._card = card
        self.lacks = () if "image_shape" in card else _missing(self.class_names)
        self.compiled: set[tuple[int, ...]] = set()
        self.resized = 0
        self._batch_size = card.get("eval_batch_size") or min(config.data.eval_batch_size, 64)
        self._shapes = Shapes()

    def carried(self) -> contextlib.AbstractContextManager[None]:
        """Within, what the config names of the user's own is the copy in the folder: for all that builds something from it."""
        return own.carried(self._carried)

    def changed(self, config: ConfigDict) -> "Predictor":
        """The run with another config of the same network, e.g. other thresholds."""
        made = copy.copy(self)
        for program in ("_predict", "_predict_and_score"):
            made.__dict__.pop(program, None)
        made.config, made.compiled = config, set()
        with self.carried():
            made.task, made.preprocess = assemble.inference(config)
        return made

    @property
    def started_from(self) -> dict[str, Any]:
        """Source, checksum, licence and preprocessing of the weights that the run started from; {} for random ones."""
        return self._card.get("pretrained") or {}

    @property
    def apply(self) -> Any:
        """(variables, batch of the contract in `data/batch.py`) -> predictions, pure."""
        return self.task.predict

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) of the images that it evaluates; None where the run does not say."""
        return self.image_shape[:2] if "image_shape" in self._card else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of a batch of its evaluation, or of training where the folder does not say more; ValueError
        where it says nothing."""
        if "image_shape" not in self._card:
            raise ValueError(f"the folder of {self.workdir} does not say of what size its images are")
        height, width, channels = self._card.get("eval_shape") or self._card["image_shape"]
        return height, width, channels

    @property
    def evaluates_at_a_size(self) -> bool:
        """Whether `image_shape` is that of evaluation."""
        return bool(self._card.get("eval_shape"))

    @property
    def black(self) -> np.ndarray:
        """A black image as its data have them, uint8 [H, W, C]; ValueError as `image_shape`."""
        height, width, channels = self.image_shape
        return np.zeros((height, width, self._stored_shape[2] or channels), np.uint8)

    @property
    def _stored_shape(self) -> tuple[int | None, int | None, int | None]:
        """(height, width, channels) of the images of its data before any op; None for what differs, or is not known."""
        height, width, channels = self._card.get("stored_shape") or (None, None, None)
        return height, width, channels

    @property
    def _fixed_size(self) -> tuple[int, int] | None:
        """(height, width) of all images that its classifier saw in evaluation; None for any."""
        if self.config.task != "classification" or "image_shape" not in self._card:
            return None
        if "eval_shape" in self._card:
            return self.image_size if self._card["eval_shape"] else None
        return None if len(self.config.data.eval_ops) else self.image_size  # of earlier versions

    @property
    def category_ids(self) -> tuple[int, ...]:
        """The data set's own numbers of labels 1, 2, ..., for COCO results; 1, 2, ... where the run does not say."""
        count = len(self.class_names) - (self.config.task == "segmentation")
        return tuple(self._card.get("category_ids") or range(1, max(count, self.config.model.num_classes) + 1))

    # The options of training's own evaluation, so that it gives the same numbers.
    @cached_property
    def _predict(self) -> Any:
        return jax.jit(self.task.predict, compiler_options=parallel.compiler_options())

    @cached_property
    def _predict_and_score(self) -> Any:
        def both(variables: dict, batch: Batch) -> tuple[dict, dict]:
            predictions = self.task.predict(variables, batch)
            return predictions, self.task.metrics(predictions, batch)

        return jax.jit(both, compiler_options=parallel.compiler_options())

    @cached_property
    def on_device(self) -> Any:
        """`variables` on the device."""
        return jax.device_put(self.variables)

    def predict(self, images: Any, **options: Any) -> list[Result]:
        """What the run sees in images of any number and size; for more than fit in memory take `stream`.

        Args:
          images: paths (of images, folders, videos), arrays [H, W] or [H, W, C], uint8 0..255 or float 0..1, RGB where C is 3,
            PIL images, an iterable of such; or one of them, or one array [N, H, W, C].
          **options: of `stream`.

        Returns:
          A `Result` an image: `LabelResult`, `BoxesResult` or `MapResult`, with numpy fields in pixels of that image,
          `.to_json()` and `.draw()`.

        Raises:
          ValueError: for an image that cannot be one, by its name or position, with what is wrong with it.
        """
        return list(self.stream(images, **options))

    def stream(
        self,
        images: Any,
        *,
        on_fault: Callable[[Picture, ValueError], None] | None = None,
        labels: Labels | None = None,
        window: tuple[int, ...] | None = None,
        overlap: float | None = None,
        threads: int = THREADS,
        rows: int | None = None,
    ) -> Iterator[Result]:
        """The results of `predict`, in the order of the images, as they are made; the memory is that of a few batches.

        Args:
          on_fault: told of an image that cannot be read, which is then left out; None raises the error.
          labels: the truth, of `labels_at`; its `score()` is over the images that were seen so far.
          window: detection looks at windows of this (height, width) beside the whole picture, where that is larger; (): at the
            picture alone; None: the config's eval.window.
          overlap: share of their side that neighbouring windows have in common; None: the config's eval.overlap.
          rows: of a full batch; None: by how many images there are, up to those of evaluation.

        Raises:
          ValueError: see `predict`; for a window where the task takes none.
        """
        if window is not None and self.config.task != "detection":
            raise ValueError("windows at prediction are for detection; segmentation takes its config's eval.window")
        if window is None and self.config.task == "detection":
            window = tuple(self.config.eval.window)
        window = window or None
        overlap = self.config.eval.overlap if overlap is None else overlap
        source = inputs.pictures(images, **self.reading(labels is not None))
        head = list(itertools.islice(source, min(self._batch_size, HEAD)))  # frames of a video are held decoded
        if rows is None:
            few = len(head) < min(self._batch_size, HEAD)
            rows = min(self._batch_size, 1 << max(len(head) - 1, 0).bit_length()) if few else self._batch_size
        prepare = partial(self._prepare, labels=labels, window=window, overlap=overlap)
        queue = Queue(self, Batcher(self.preprocess, self._shapes, rows), labels, on_fault)
        for picture, future in ahead(prepare, itertools.chain(head, source), threads):
            try:
                prepared = future.result()
            except ValueError as error:
                if on_fault is None:
                    raise
                on_fault(picture, error)
            else:
                queue.put(picture, prepared)
            yield from queue.take()
        yield from queue.finish()

    def batches(
        self, images: Any, on_fault: Callable[[Picture, ValueError], None] | None = None
    ) -> Iterator[tuple[list[Picture], Batch]]:
        """(pictures of its first rows, batch of evaluation) of images as `predict` takes them, by shape and so in no order."""
        batcher, taken = Batcher(self.preprocess, self._shapes, self._batch_size), dict[int, Picture]()
        source = inputs.pictures(images, **self.reading())
        prepare = partial(self._prepare, labels=None, window=None, overlap=0.0)
        for number, (picture, future) in enumerate(ahead(prepare, source, THREADS)):
            try:
                example = future.result().examples[0]
            except ValueError as error:
                if on_fault is None:
                    raise
                on_fault(picture, error)
                continue
            taken[number] = picture
            yield from self._whole(batcher.add(Piece(number, 0, 0, example)), taken, on_fault)
        yield from self._whole(batcher.rest(), taken, on_fault)

    def _whole(
        self, filled: Iterable[Filled], taken: dict[int, Picture], on_fault: Callable[[Picture, ValueError], None] | None
    ) -> Iterator[tuple[list[Picture], Batch]]:
        """What `batches` yields of those for which the memory is there; the pictures of others are told to `on_fault`."""
        for pieces, batch in filled:
            pictures = [taken.pop(piece.owner) for piece in pieces]
            if batch is not None:
                yield pictures, batch
                continue
            for picture, piece in zip(pictures, pieces, strict=True):
                if on_fault is None:
                    raise _too_large(picture, piece)
                on_fault(picture, _too_large(picture, piece))

    def reading(self, labelled: bool = False) -> dict[str, Any]:
        """Options of `inputs.pictures`: files are read as the run's own data set reads them.

        labelled: whether truth lies beside the images, which for boxes and masks is drawn on the pixels as stored.
        """
        classifies = self.config.task == "classification"
        decode, options = None, self.config.data.options
        if not classifies and options.get("depth") == 16:
            decode = partial(inputs.decode, max_pixels=self.config.data.max_pixels, upright=not labelled, depth=16)
        if classifies and self.config.data.name == "image_folder":
            depth, window = options.get("depth") or 8, tuple(options.get("window") or ())
            decode = partial(own_pictures.decode, depth=depth, max_pixels=self.config.data.max_pixels, window=window)
        return {"max_pixels": self.config.data.max_pixels, "upright": classifies or not labelled, "decode": decode}

    def samples(self) -> list[np.ndarray]:
        """The images of its data that the folder keeps, uint8 [H, W, 3]; [] where it keeps none."""
        return [inputs.read_file(path) for path in samples.files(self.workdir)]

    def example_batch(self) -> Batch:
        """A batch of one black image of the size that the run evaluates."""
        black = self.black if self.image_size else np.zeros((128, 128, 3), np.uint8)
        return self.preprocess.batch([self.example(black, "a black image", {})], [0], 1)

    def labels_at(self, place: str | PathLike) -> Labels:
        """The truth of images as it lies beside them (see `inference/labels.py`), for `stream`."""
        return open_labels(place, self.config, self.class_names)

    def answers(self, batch: Batch) -> dict[str, Any]:
        """What `apply` says of a batch, as a compiled program."""
        return self._predict(self.on_device, batch)

    def run_batch(self, batch: Batch, labels: Labels | None) -> list[dict[str, Any]]:
        """The records of a batch's valid rows."""
        self.compiled.add(batch["image"].shape)
        if labels is None:
            predictions = self.answers(batch)
        else:
            predictions, states = self._predict_and_score(self.on_device, batch)
            labels.states = metrics.merge(labels.states, jax.device_get(states))
        assert self.task.records is not None  # every task of the package has them
        records = self.task.records(jax.device_get(predictions), batch)
        return records[: int(np.sum(batch["example_valid"]))]

    def merged(self, records: list[dict[str, Any]], prepared: Prepared) -> dict[str, Any]:
        """The records of an image's windows as one."""
        if len(records) == 1:
            return records[0]
        return windows.merge(records, prepared.windows, prepared.size, **limits_of_windows(self.config))

    def _prepare(self, picture: Picture, *, labels: Labels | None, window: Any, overlap: float) -> Prepared:
        """Reads an image and does to it what evaluation does."""
        try:
            pixels = picture.read()
        except (MemoryError, OSError, cv2.error) as error:
            raise ImageFileError(f"{picture.name}: cannot be read ({' '.join(str(error).split())})") from error
        image = self.as_image(pixels, picture.name)
        size = (pixels.shape[0], pixels.shape[1])
        targets = {} if labels is None else labels.targets(picture.name, size)
        seen = windows.windows_of((image.shape[0], image.shape[1]), window, overlap)
        example = {**targets, "image": image}
        pieces = [example] if window is None else [cut(example, one.place) for one in seen]
        examples = [self.example(piece.pop("image"), picture.name, piece) for piece in pieces]
        stretched = self.config.task == "classification" and tuple(examples[0]["original_size"].tolist()) != size
        return Prepared(size, seen, examples, stretched)

    def example(self, image: np.ndarray, name: str, targets: dict[str, Any]) -> dict[str, Any]:
        """An image of `as_image` as the example that evaluation makes of it.

        What the ops of a classifier bring to another size than all images of its evaluation had is stretched before them.

        Raises:
          ValueError: naming the image, where the run's preprocessing cannot take it.
        """
        fixed, (height, width, _) = self._fixed_size, self._stored_shape
        try:
            example = self.preprocess(image, targets)
            if fixed is not None and example["image"].shape[:2] != fixed:
                example = self.preprocess(stretched(image, (height, width) if height and width else fixed), targets)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if fixed is not None and (came := example["image"].shape[:2]) != fixed:
            raise ValueError(f"{name}: the run's data.eval_ops make {came} pixels of it, and of all of its data {fixed}")
        wanted, given = self.preprocess.group(example), example["image"].shape[:2]
        if given[0] > wanted[0] or given[1] > wanted[1]:
            raise ValueError(f"{name}: {given[0]} x {given[1]} pixels more than the run's data.pad_to={wanted}")
        return example

    def as_image(self, array: np.ndarray, name: str) -> np.ndarray:
        """[H, W] or [H, W, C] -> the image with the channels of those that the run's ops take.

        Raises:
          ValueError: naming the image, for shapes and types that are none.
        """
        shape = np.shape(array)
        array = array[..., None] if array.ndim == 2 else array
        stored, seen = self._stored_shape[2] or 0, (self._card.get("image_shape") or (0, 0, 0))[2]  # 0: not known
        wanted = stored if stored in (1, 3) else seen  # of images of 1 and 3 channels either can be made of the other
        usual = wanted in (1, 3) or not stored
        known = {stored, seen, *((1, 3) if usual else ())} - {0}
        if not (
            array.ndim == 3 and array.size and array.shape[2] in known and (array.dtype == np.uint8 or array.dtype.kind == "f")
        ):
            forms = "[H, W], [H, W, 1] or [H, W, 3]" if known == {1, 3} else " or ".join(f"[H, W, {n}]" for n in sorted(known))
            forms += "" if known == {1, 3} else ", as the data of the run are"
            raise ValueError(f"{name} has shape {shape} and type {array.dtype}; expected {forms}, uint8 0..255 or float 0..1")
        if array.dtype.kind == "f":
            if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
                raise ValueError(f"{name} is a float image with values outside 0..1; divide by 255, or give uint8")
            array = array.astype(np.float32)
        if array.shape[2] in (1, 3) and wanted in (1, 3):
            array = to_channels(wanted)({"image": array}, np.random.default_rng(0))["image"]
        return array

    def __repr__(self) -> str:
        return f"<{self.config.task} run {self.workdir}, {self.checkpoint} checkpoint, step {self.step}>"


class Queue:
    """Puts images in, takes results out in the same order."""

    def __init__(
        self,
        run: Predictor,
        batcher: Batcher,
        labels: Labels | None,
        on_fault: Callable[[Picture, ValueError], None] | None = None,
    ):
        self._run, self._batcher, self._labels, self._on_fault = run, batcher, labels, on_fault
        self._open: dict[int, tuple[Picture, Prepared, dict[int, dict[str, Any]]]] = {}  # by number, in order
        self._count = 0

    def put(self, picture: Picture, prepared: Prepared) -> None:
        number, self._count = self._count, self._count + 1
        kept = prepared._replace(examples=[{}] * len(prepared.examples))  # the pixels wait in the batcher alone
        self._open[number] = (picture, kept, {})
        self._run.resized += prepared.stretched
        index = 0 if self._labels is None else self._labels.index(picture.name)
        for part, example in enumerate(prepared.examples):
            self._run_all(self._batcher.add(Piece(number, part, index, example)))

    def take(self) -> Iterator[Result]:
        """The results that are ready; makes the oldest ready where too many wait for it."""
        if len(self._open) > BEHIND + self._run._batch_size:
            self._run_all(self._batcher.oldest())
        while self._open:
            number, (picture, prepared, records) = next(iter(self._open.items()))
            if len(records) < len(prepared.examples):
                return
            del self._open[number]
            record = self._run.merged([records[part] for part in range(len(records))], prepared)
            common = {"file": picture.name, "size": prepared.size, "read": picture.read, "video": picture.video}
            yield result_of(record, class_names=self._run.class_names, **common)

    def finish(self) -> Iterator[Result]:
        self._run_all(self._batcher.rest())
        return self.take()

    def _run_all(self, batches: Iterable[Filled]) -> None:
        for pieces, batch in batches:
            records = None if batch is None else self._records(batch, alone=len(pieces) == 1)
            for n, piece in enumerate(pieces):
                if records is None:
                    self._fail(piece)
                elif piece.owner in self._open:
                    self._open[piece.owner][2][piece.part] = records[n]

    def _records(self, batch: Batch, alone: bool) -> list[dict[str, Any]] | None:
        """The records of a batch; None where the memory is not there for its only picture."""
        try:
            return self._run.run_batch(batch, self._labels)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not (alone and memory.is_out_of_memory(error)):
                raise
            return None

    def _fail(self, piece: Piece) -> None:
        """Leaves out the picture of a piece."""
        if (found := self._open.pop(piece.owner, None)) is not None:
            error = _too_large(found[0], piece)
            if self._on_fault is None:
                raise error
            self._on_fault(found[0], error)


def _too_large(picture: Picture, piece: Piece) -> ValueError:
    height, width = piece.example["image"].shape[:2]
    return ImageFileError(f"{picture.name}: out of memory with its {height} x {width} pixels; make it smaller, or cut it")


def stretched(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[H, W, C] brought to (height, width) by means over areas, so that thin strokes stay."""
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA).reshape(*size, image.shape[2])


def _missing(class_names: tuple[str, ...]) -> tuple[str, ...]:
    lines = ["the folder does not say of what size its images were: they are taken as they come"]
    if not class_names:
        lines.append("the folder does not name its classes: they are called by their numbers")
    return tuple(lines)


def load(
    folder: str | PathLike, which: str | int | None = None, *, averaged: bool | None = None, allow_code: bool = False
) -> Predictor:
    """See `imgrec_jax.load`."""
    path = workdir.resolve(folder)
    config, card = workdir.read_config(path), workdir.read_card(path)
    if which is None:
        which = "best" if checkpoint.saved(path, checkpoint.BEST) else "last"
    found, _ = start.choose(path, which, lambda line: emit(line, sys.stderr))
    return Predictor(path, config, card, found, averaged, allow_code)
