"""Whether data and weights may be fetched and prepared, or only opened where they are.

A training gets what it lacks. What looks at a finished run, which may be a copy on another machine, does not.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_ONLY = ContextVar("only_at_hand", default=False)


@contextlib.contextmanager
def only() -> Iterator[None]:
    """Within, in this thread, nothing is fetched or prepared: what is not at hand is a FileNotFoundError."""
    before = _ONLY.set(True)
    try:
        yield
    finally:
        _ONLY.reset(before)


def is_only() -> bool:
    """Whether this is within `only`."""
    return _ONLY.get()


def check(what: str) -> None:
    """Before something is fetched or prepared.

    Raises:
      FileNotFoundError: within `only`.
    """
    if is_only():
        raise FileNotFoundError(f"{what} is not on this machine, and is neither fetched nor prepared for this")
