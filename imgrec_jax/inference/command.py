"""What the commands after training share: their common flags, one line for what goes wrong, progress, memory."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from imgrec_jax.run.writers import emit, open_closed, silence

T = TypeVar("T")
UNREAD = 128 + 13  # exit status of a program that SIGPIPE ended


class Parser(argparse.ArgumentParser):
    """argparse with flags and paths in any order, no abbreviations, and one line for what it cannot parse."""

    def __init__(self, name: str, description: str | None):
        super().__init__(
            prog=f"imgrec {name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        return self.parse_intermixed_args(argv)

    def error(self, message: str) -> NoReturn:
        raise SystemExit(f"error: {message}; {self.prog} --help lists the flags")


def workdir_flags(parser: argparse.ArgumentParser) -> None:
    """--workdir, --checkpoint, --averaged and --verbosity."""
    parser.add_argument("--workdir", required=True, help="the trained run; nothing else is needed")
    parser.add_argument("--checkpoint", help="best, last or a step (default: best where there is one, else last)")
    averaged = "the parameter average (default: where there is one)"
    parser.add_argument("--averaged", action=argparse.BooleanOptionalAction, help=averaged)
    code = "run the Python files that the workdir carries, where its config names some"
    parser.add_argument("--allow_code", action="store_true", help=code)
    parser.add_argument("--verbosity", type=int, default=0, help="1 shows where an error happened")


def load(arguments: argparse.Namespace) -> Any:
    """The run that the flags name."""
    import imgrec_jax
    from imgrec_jax import compiled

    compiled.keep(compiled.AUTO)

    return imgrec_jax.load(
        arguments.workdir, arguments.checkpoint, averaged=arguments.averaged, allow_code=arguments.allow_code
    )


def size_of_text(text: str) -> tuple[int, int]:
    """ "256,320" or "256" -> (256, 320) or (256, 256)."""
    try:
        values = [int(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 2) or min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected HEIGHT,WIDTH in pixels, or one number for both")
    return values[0], values[-1]


def window_of_text(text: str) -> tuple[int, ...]:
    """ "none" -> (), else as `size_of_text`."""
    try:
        return () if text == "none" else size_of_text(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or none") from error


def note(line: str) -> None:
    """Prints a line to standard error, as `emit`: standard output is for answers."""
    emit(line, sys.stderr)


class Faults:
    """Names every image that could not be read, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, picture: Any, error: ValueError) -> None:
        self.count += 1
        note(f"error: {error}")


def shown(items: Iterable[T]) -> Iterator[T]:
    """The items, counted on a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    from tqdm import tqdm

    yield from tqdm(items, desc="predicting", unit="image", dynamic_ncols=True, leave=False)


def peak_memory() -> str:
    """The most memory that this process has held, "812 MB"."""
    try:
        import resource
    except ImportError:  # no POSIX
        return "an unknown amount"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6:,.0f} MB"


# What a user can get wrong, named by whoever found it; anything else may be a fault of the program.
NAMED = ("WorkdirError", "CheckpointError", "ValueError", "FileNotFoundError", "OSError", "ImportError")


@contextlib.contextmanager
def ending_in_one_line() -> Iterator[None]:
    """Ends the program with one line on standard error where something is wrong; --verbosity=1 shows where it happened.

    A reader that leaves in the midst of the answers (`| head`) ends it with 141, as the signal SIGPIPE does other programs; one
    that leaves when all of them are made changes nothing.
    """
    open_closed()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name of a file need not be UTF-8: what is not is escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(UNREAD) from None
    except Exception as error:
        if re.search(r"(^| )--verbosity[ =][^0]", " ".join(sys.argv)):
            raise
        text = str(error).strip() or type(error).__name__
        known = any(kind.__name__ in NAMED for kind in type(error).__mro__)
        if known:
            raise SystemExit(f"error: {text}") from error
        raise SystemExit(f"error: {type(error).__name__}: {text.splitlines()[0]} (--verbosity=1 shows where)") from error
    finally:
        try:
            sys.stdout.flush()
        except (OSError, ValueError):  # nobody reads it, or it is closed
            silence(sys.stdout)
