"""Two threads that compute: one takes what waits, up to a batch, and answers it together; the other explains.

A job is an encoded image; what its future holds in the end is the `Result`, or a `BadImage` that says what is wrong with it.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np

from imgrec_jax.attribution import explain
from imgrec_jax.attribution.methods import Pace
from imgrec_jax.inference import inputs
from imgrec_jax.inference.command import note
from imgrec_jax.inference.inputs import Picture
from imgrec_jax.inference.predictor import Predictor
from imgrec_jax.inference.results import Result

# Those that take a few passes through the network; the others take hundreds.
METHODS = ("gradcam", "gradcam++", "hirescam", "gradients", "smoothgrad", "ig")
EXPLAINED_SHAPES = 32  # sizes of images, each with programs of its own, which are kept
EXPLAINED_STEPS, EXPLAINED_DRAWS = 50, 16  # of integrated gradients, of SmoothGrad
EXPLAINED_AT_ONCE = 2**20  # height x width x images of one call of these
EXPLAINED_PIXELS = 4_000_000  # height x width as the network sees it; a gradient keeps every layer's map of it


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
    """Answers jobs in the order in which they come, up to `rows` at once. Explanations are made by a thread of their own, since
    their programs take seconds to compile; between the calls that they are made of they wait until nothing else does.

    Attributes:
      ready: set once the programs for images of the run's own size are compiled.
    """

    def __init__(self, run: Predictor, rows: int, max_pixels: int | None = None):
        """max_pixels: of an image that is decoded; None for as many as the run's config takes."""
        self.ready = threading.Event()
        self._run, self._rows = run, rows
        self._jobs = queue.SimpleQueue[Job | None]()
        self._later = queue.SimpleQueue[tuple[Job, Picture, Result] | None]()
        self._idle = threading.Event()  # nothing waits for an answer
        self._stopping, self._layer, self._shapes = False, "", set[tuple[int, ...]]()
        reading = run.reading()
        decode = reading["decode"] or functools.partial(inputs.decode, upright=reading["upright"])
        self._decode = functools.partial(decode, max_pixels=min(reading["max_pixels"], max_pixels or reading["max_pixels"]))
        # Of the interpreter's end: a program that is being compiled is not waited for.
        self._thread = threading.Thread(target=self._work, name="predicting", daemon=True)
        self._explainer = threading.Thread(target=self._explain, name="explaining", daemon=True)

    @property
    def usual(self) -> str:
        """The method of an explanation that is not asked for by name, as in `imgrec explain`."""
        return "hirescam" if self._run.config.task == "detection" else "gradcam"

    def start(self) -> None:
        self._thread.start()
        self._explainer.start()

    def stop(self, seconds: float) -> bool:
        """Ends after the batch at hand; returns whether that came within so many seconds. What waits gets an error."""
        until = time.monotonic() + seconds
        self._stopping = True
        self._jobs.put(None)
        for thread in (self._thread, self._explainer):
            thread.join(max(until - time.monotonic(), 0))
        return not (self._thread.is_alive() or self._explainer.is_alive())

    @property
    def state(self) -> str:
        """ "compiling", "ok", or "ended": nothing answers any more."""
        if not self.ready.is_set():
            return "compiling"
        return "ok" if self._thread.is_alive() else "ended"

    def submit(self, name: str, data: bytes, method: str | None = None) -> Future[Answer]:
        job = Job(name, data, method, Future())
        self._jobs.put(job)
        return job.future

    def _work(self) -> None:
        with contextlib.suppress(Exception):  # a run that does not say of what size its images are
            self._warm_up()
        self.ready.set()
        while not self._stopping:
            if self._jobs.empty():
                self._idle.set()
            jobs = self._waiting()
            self._idle.clear()
            if jobs:
                self._answer(jobs)
        self._later.put(None)  # after the last answer, which may ask for one
        for job in _left(self._jobs):
            _settle(job, RuntimeError("the server was stopped"))

    def _explain(self) -> None:
        while (asked := self._later.get()) is not None:
            job, picture, result = asked
            self._wait_for_a_lull(job)
            if not job.future.cancelled():
                _settle(job, self._explained(job, picture, result))

    def _warm_up(self) -> None:
        black = self._run.black
        for count in sorted({1, self._rows}):
            self._run.predict([black] * count, rows=self._rows)

    def _waiting(self) -> list[Job]:
        """The jobs that wait, up to a batch; the first is waited for."""
        jobs = [self._jobs.get()]
        with contextlib.suppress(queue.Empty):
            while len(jobs) < self._rows:
                jobs.append(self._jobs.get_nowait())
        return [job for job in jobs if job is not None and not job.future.cancelled()]

    def _answer(self, jobs: list[Job]) -> None:
        pictures = [Picture(job.name, functools.partial(self._decode, job.data, job.name)) for job in jobs]
        faults: dict[int, ValueError] = {}
        try:
            found = self._run.stream(pictures, on_fault=lambda one, error: faults.update({id(one): error}), rows=self._rows)
            results = iter(list(found))
        except Exception as error:  # of the program, of one of the images: the next batch is another
            if len(jobs) > 1:
                for job in jobs:
                    self._answer([job])
                return
            _settle(jobs[0], error)
            note(f"error: {type(error).__name__}: {_line(error)}")
            return
        for job, picture in zip(jobs, pictures, strict=True):
            if id(picture) in faults:
                _settle(job, BadImage(str(faults[id(picture)])))
            elif job.method is None:
                _settle(job, Answer(next(results)))
            else:
                self._later.put((job, picture, next(results)))

    def _explained(self, job: Job, picture: Picture, result: Result) -> Answer:
        assert job.method is not None
        try:
            at = explain.prepare(self._run, picture, explain.Options(), self._admit)
            layer, pace = self._layer_of(at, job.method), Pace(EXPLAINED_AT_ONCE, functools.partial(self._give_way, job))
            options = explain.Options(layer=layer, draws=EXPLAINED_DRAWS, steps=EXPLAINED_STEPS, pace=pace)
            heat, found = explain.explain(at, job.method, options)
            return Answer(result, explain.drawn(at, heat, job.method), found.said)
        except Exception as error:  # the answer is there all the same
            return Answer(result, None, f"no explanation: {_line(error)}")

    def _wait_for_a_lull(self, job: Job) -> None:
        """Until nothing waits for an answer, or nobody for this explanation."""
        while not (self._stopping or job.future.cancelled() or self._idle.wait(0.1)):
            pass

    def _give_way(self, job: Job) -> None:
        """Before each call of an explanation.

        Raises:
          RuntimeError: where nobody waits for it any more.
        """
        self._wait_for_a_lull(job)
        if self._stopping:
            raise RuntimeError("the server was stopped")
        if job.future.cancelled():
            raise RuntimeError("nobody waits for it any more")

    def _admit(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError for a shape [H, W, C] that is not explained here."""
        elsewhere = f"imgrec explain --workdir={self._run.workdir.name} does it"
        if shape[0] * shape[1] > EXPLAINED_PIXELS:
            raise ValueError(f"{shape[0]} x {shape[1]} pixels, and this server explains {EXPLAINED_PIXELS:,}; {elsewhere}")
        if shape not in self._shapes and len(self._shapes) >= EXPLAINED_SHAPES:
            raise ValueError(f"an image of another size than the {EXPLAINED_SHAPES} that were explained so far; {elsewhere}")
        self._shapes.add(shape)

    def _layer_of(self, at: Any, method: str) -> str | None:
        """The layer that such a method looks at; found once."""
        if "cam" not in method:
            return None
        self._layer = self._layer or at.default_layer()
        return self._layer


def _left(jobs: queue.SimpleQueue[Job | None]) -> Iterator[Job]:
    """What waits in a queue, which is then empty."""
    with contextlib.suppress(queue.Empty):
        while True:
            if (job := jobs.get_nowait()) is not None:
                yield job


def _settle(job: Job, found: Answer | Exception) -> None:
    """Ends a job, unless whoever asked is gone."""
    if not job.future.set_running_or_notify_cancel():
        return
    if isinstance(found, Exception):
        job.future.set_exception(found)
    else:
        job.future.set_result(found)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
