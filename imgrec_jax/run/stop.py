"""Signals: SIGTERM, SIGHUP and Ctrl-C end a run in order, whatever it is doing.

Before the first step nothing can be lost, and the program ends at once. From then on a signal is noted: the loop asks for it
between steps, and what takes long (evaluation, compilation, waiting for data) asks while it waits; then the loop saves. A
program that is in a long call of a library answers no Python signal handler, so a thread ends it after GRACE_SECONDS: the last
checkpoint is what it goes on from.

Of several processes all stop, and at one place (`distributed.Agreement`): only what each does alone, between two things that
they do together, may be broken off.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

GRACE_SECONDS = 8.0
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name))
_RECALL = signal.SIGTERM  # what wakes the main thread when it is agreed where to stop; never Ctrl-C, whose second has a meaning


class Interrupted(KeyboardInterrupt):
    """A signal asked for the end. `KeyboardInterrupt`, so that no `except Exception` swallows it."""


class Stop:
    """What the run knows of signals; `caught` installs it. Without handlers it never asks for anything.

    Attributes:
      signal: the first that came, or None.
      kept: whether what was done so far is on the disk and is gone on from; set by whoever saved it.
    """

    def __init__(self, *, of_program: bool = False):
        """of_program: a signal before the first step ends the process, not only the call."""
        self.signal: int | None = None
        self.kept = False
        self._mode = "leave" if of_program else "raise"
        self._answered = threading.Event()
        self._came: int | None = None  # to this process
        self._handled: tuple[int, ...] = ()
        self._others: Any = None

    def handle(self, number: int, frame: Any) -> None:
        if self._came is not None and number == signal.SIGINT:  # the second Ctrl-C
            self._leave("interrupted twice; the same command goes on from the last checkpoint")
        if self._others is None:
            self._came = self.signal = self.signal or number
        elif number != _RECALL or not self._others.is_made:
            self._came = self._came or number
            self._others.ask(number)
        if self.signal is None:  # the others are not asked yet
            return
        if self._mode == "leave":
            how = (
                "what was trained is saved" if self.kept else "before there was anything to save; the same command starts again"
            )
            self._leave(f"{self.word}{'; ' if self.kept else ' '}{how}", self.status)
        if self._mode == "raise" and self.asked:
            raise Interrupted

    def together(self) -> None:
        """From here on a signal to one of several processes ends all of them, at the same place; each has to call it."""
        import jax

        if jax.process_count() > 1:
            from imgrec_jax import distributed

            self._others = distributed.Agreement(self._agreed)
            for number in self._handled:  # JAX took SIGTERM for itself when the processes met
                signal.signal(number, self.handle)

    def _agreed(self, number: int) -> None:
        """In the thread of the agreement: the main thread shall look, also where it waits."""
        self.signal = number
        main = threading.main_thread().ident
        if self._handled and main is not None:
            signal.pthread_kill(main, _RECALL)

    @property
    def word(self) -> str:
        return "interrupted" if self.signal == signal.SIGINT else "terminated"

    @property
    def status(self) -> int:
        """Exit status of an orderly end: 130 after Ctrl-C; after SIGTERM 0 where what was done is kept, else 143."""
        if self.signal is None or (self.kept and self.signal != signal.SIGINT):
            return 0
        return 128 + self.signal

    @property
    def asked(self) -> bool:
        """Whether a signal came, and this is where it is to be answered."""
        return self.signal is not None and (self._others is None or self._others.reached())

    def check(self) -> None:
        """Raises Interrupted once a signal came."""
        if self.asked:
            raise Interrupted

    def passing(self) -> None:
        """As `check`, before what several processes do together, or what changes how an interruption there is answered."""
        if self._others is None:
            self.check()
        elif self._others.passing():
            raise Interrupted

    def answered(self) -> None:
        """The signal is being answered: a checkpoint is being written, which may take as long as it takes."""
        self._answered.set()

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Signals are noted and raise nothing."""
        with self._in_mode("note"):
            yield

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """A signal, also one noted before, ends the body with `Interrupted`: for work that may break off at any place."""
        with self._in_mode("raise"):
            self.check()
            yield

    @contextlib.contextmanager
    def _in_mode(self, mode: str) -> Iterator[None]:
        before, self._mode = self._mode, mode
        try:
            yield
        finally:
            self._mode = before

    def part(self) -> None:
        """No signal to another process is answered any more."""
        if self._others is not None:
            self._others.close()

    def watch(self, pipe: int) -> None:
        """Body of the watching thread: reads a byte for every signal, which arrives also where no handler can run."""
        with contextlib.suppress(OSError), os.fdopen(pipe, "rb", buffering=0) as signals:
            while byte := signals.read(1):
                if byte[0] in SIGNALS:
                    break
            if byte and not self._answered.wait(GRACE_SECONDS):
                self.signal = self.signal or byte[0]
                self._leave(f"{self.word} within a call that did not return in {GRACE_SECONDS:.0f} s; the same command goes "
                            "on from the last checkpoint", 128 + byte[0])  # fmt: skip

    def _leave(self, why: str, status: int = 130) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"\n{why}\n".encode())  # a handler may have come in the midst of a print
        if self._others is not None:
            from imgrec_jax import distributed

            distributed.let_leave()
        os._exit(status)


@contextlib.contextmanager
def caught(*, of_program: bool = False) -> Iterator[Stop]:
    """Signals are answered by the `Stop` that is yielded; the handlers that were there come back afterwards.

    Does nothing outside the main thread, and leaves a signal that is ignored (nohup) ignored. of_program: see `Stop`.
    """
    stop = Stop(of_program=of_program)
    if threading.current_thread() is not threading.main_thread():
        try:
            yield stop
        finally:
            stop.part()
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    pipe_before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    stop._handled = tuple(number for number, handler in before.items() if handler is not signal.SIG_IGN)
    for number in stop._handled:
        signal.signal(number, stop.handle)
    threading.Thread(target=stop.watch, args=(reading,), daemon=True, name="signals").start()
    try:
        yield stop
    finally:
        stop.answered()
        stop.part()
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(pipe_before)
        os.close(writing)  # the thread reads the end of the pipe


def is_ready(leaf: Any) -> bool:
    """Whether an array is computed; numpy's always are."""
    return not hasattr(leaf, "is_ready") or leaf.is_ready()


def until_ready(tree: Any, stop: Stop) -> None:
    """Waits for arrays in a way that a signal can end."""
    import jax

    pause = 1e-4
    for leaf in jax.tree.leaves(tree):
        while not is_ready(leaf):
            stop.check()
            time.sleep(pause)
            pause = min(2 * pause, 5e-3)
