"""Progress of what takes long: a bar on a terminal, nothing but the first and last line in a pipe."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yields `items` and shows how far they are on stderr."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=what, total=total, leave=False, dynamic_ncols=True)
        return
    print(f"{what} ...", file=sys.stderr, flush=True)
    yield from items
