"""The one thread that computes: it takes what waits, up to a batch, and answers it together.

A job is an encoded image; what its future holds in the end is the `Result`, or a `BadImage` that says what is wrong with it.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import sys
import threading
from concurrent.futures import Future
from typing import Any, NamedTuple

import jax
import numpy as np

from imgrec_jax.attribution import explain
from imgrec_jax.attribution.targets import default_layer
from imgrec_jax.inference import inputs
from imgrec_jax.inference.inputs import Picture
from imgrec_jax.inference.predictor import Predictor
from imgrec_jax.inference.results import Result

# Those that take a few passes through the network; the others take hundreds.
METHODS = ("gradcam", "gradcam++", "hirescam", "gradients", "smoothgrad", "ig")
EXPLAINED_SHAPES = 32  # sizes of images whose programs are kept


class BadImage(ValueError):
    """An image that cannot be answered: says why, by its name."""


class Answer(NamedTuple):
    """Attributes:
    result: of the run.
    explanation: uint8 RGB picture; None where none was asked for, or where `said` tells why there is none.
    said: a line on the explanation.
    """

    result: Result
    explanation: np.ndarray | None = None
    said: str = ""


class Job(NamedTuple):
    """name: of the file; data: the encoded image; method: of the explanation, None for none; future: of the `Answer`."""

    name: str
    data: bytes
    method: str | None
    future: Future[Answer]


class Worker:
    """Answers jobs in the order in which they come, up to `rows` at once.

    Attributes:
      ready: set once the programs for images of the run's own size are compiled.
    """

    def __init__(self, run: Predictor, rows: int):
        self.ready = threading.Event()
        self._run, self._rows = run, rows
        self._jobs = queue.SimpleQueue[Job | None]()
        self._stopping, self._layer, self._shapes = False, "", set[tuple[int, ...]]()
        reading = run.reading()
        self._decode = reading["decode"] or functools.partial(
            inputs.decode, max_pixels=reading["max_pixels"], upright=reading["upright"]
        )
        # Of the interpreter's end: a program that is being compiled is not waited for.
        self._thread = threading.Thread(target=self._work, name="predicting", daemon=True)

    @property
    def usual(self) -> str:
        """The method of an explanation that is not asked for by name, as in `imgrec explain`."""
        return "hirescam" if self._run.config.task == "detection" else "gradcam"

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float) -> bool:
        """Ends after the batch at hand; returns whether that came within so many seconds. What waits gets an error."""
        self._stopping = True
        self._jobs.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def submit(self, name: str, data: bytes, method: str | None = None) -> Future[Answer]:
        job = Job(name, data, method, Future())
        self._jobs.put(job)
        return job.future

    def _work(self) -> None:
        with contextlib.suppress(Exception):  # a run that does not say of what size its images are
            self._warm_up()
        self.ready.set()
        while not self._stopping:
            if jobs := self._waiting():
                self._answer(jobs)
        with contextlib.suppress(queue.Empty):
            while True:
                if (job := self._jobs.get_nowait()) is not None:
                    job.future.set_exception(RuntimeError("the server was stopped"))

    def _warm_up(self) -> None:
        black = np.zeros(self._run.image_shape, np.uint8)
        for count in sorted({1, self._rows}):
            self._run.predict([black] * count, rows=self._rows)

    def _waiting(self) -> list[Job]:
        """The jobs that wait, up to a batch; waits for the first."""
        jobs = [self._jobs.get()]
        with contextlib.suppress(queue.Empty):
            while len(jobs) < self._rows:
                jobs.append(self._jobs.get_nowait())
        return [job for job in jobs if job is not None and job.future.set_running_or_notify_cancel()]

    def _answer(self, jobs: list[Job]) -> None:
        pictures = [Picture(job.name, functools.partial(self._decode, job.data, job.name)) for job in jobs]
        faults: dict[int, ValueError] = {}
        try:
            found = self._run.stream(pictures, on_fault=lambda one, error: faults.update({id(one): error}), rows=self._rows)
            results = iter(list(found))
        except Exception as error:  # of the program: the next batch is another
            print(f"error: {type(error).__name__}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            for job in jobs:
                job.future.set_exception(error)
            return
        for job, picture in zip(jobs, pictures, strict=True):
            if id(picture) in faults:
                job.future.set_exception(BadImage(str(faults[id(picture)])))
            else:
                job.future.set_result(self._explained(job, picture, next(results)))

    def _explained(self, job: Job, picture: Picture, result: Result) -> Answer:
        if job.method is None:
            return Answer(result)
        try:
            at = explain.prepare(self._run, picture, explain.Options())
            if at.image.shape not in self._shapes and len(self._shapes) == EXPLAINED_SHAPES:
                jax.clear_caches()
                self._shapes.clear()
            self._shapes.add(at.image.shape)
            options = explain.Options(layer=self._layer_of(at, job.method), draws=16)
            heat, found = explain.explain(at, job.method, options)
            return Answer(result, explain.overlay(at.image, heat, f"{at.target.text}: {job.method}"), found.said)
        except Exception as error:  # the answer is there all the same
            return Answer(result, None, f"no explanation: {' '.join(str(error).split())}")

    def _layer_of(self, at: Any, method: str) -> str | None:
        """The layer that such a method looks at; found once."""
        if "cam" not in method:
            return None
        self._layer = self._layer or default_layer(at.layers())
        return self._layer
