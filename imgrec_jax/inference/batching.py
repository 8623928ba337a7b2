"""Images of any size and number as batches of few shapes, so that few programs are compiled and little is kept in memory.

Shape letters: B rows of a batch, H W image.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from imgrec_jax.data.batch import Batch
from imgrec_jax.data.preprocess import Preprocess

EXACT_SHAPES = 4  # shapes that images keep; where there are more, those of no program yet are padded to squares
SMALLEST_SQUARE = 64
FINE_SQUARES = 7  # sides are powers of two, and one and a half of those while there are fewer shapes than this
PIXELS_OF_A_BATCH = 2**24  # of all rows together; a larger image has a batch of its own, and is padded along its own sides
FEW = 4  # a batch with one row in so many filled is not worth its padding
BYTES_WAITING = 512 * 2**20  # of prepared images that wait for others of their shape

Size = tuple[int, int]
T = TypeVar("T")
U = TypeVar("U")


class Piece(NamedTuple):
    """One example of the network: an image, or a window of one.

    Attributes:
      owner: the number of the image in its stream.
      part: which piece of it.
      row: position among labels, 0 where there are none.
      example: prepared for `Preprocess.batch`.
    """

    owner: int
    part: int
    row: int
    example: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of its arrays."""
        return sum(getattr(value, "nbytes", 0) for value in self.example.values())


class Filled(NamedTuple):
    """pieces: of the first rows of a batch; batch: None where the memory is not there for it."""

    pieces: list[Piece]
    batch: Batch | None


class Shapes:
    """Which sizes batches have: few are kept as they are; where there are more, images are padded to a few squares.

    A network without padding of its own sees a mirrored border there, as it does in evaluation where a batch mixes sizes.

    Attributes:
      compiled: sizes of which a batch was made.
    """

    def __init__(self, exact: int = EXACT_SHAPES):
        self.compiled = set[Size]()
        self._exact, self._seen, self._squares = exact, set[Size](), set[Size]()

    @property
    def many(self) -> bool:
        """Whether more sizes were seen than are kept."""
        return len(self._seen) > self._exact

    def of(self, size: Size) -> Size:
        """The size that an image of `size` has in a batch, as far as is known now."""
        if not self.many:
            self._seen.add(size)
        if not self.many or size in self.compiled:
            return size
        if max(size) ** 2 > PIXELS_OF_A_BATCH:  # a square around a long picture may be thousands of times as large
            return _rounded(size[0]), _rounded(size[1])
        return self._square(max(size))

    def _square(self, side: int) -> Size:
        power = max(1 << (side - 1).bit_length(), SMALLEST_SQUARE)
        between = power * 3 // 4
        few = len(self._squares | self.compiled) < FINE_SQUARES
        fine = between >= side and ((between, between) in self._squares or (few and power > SMALLEST_SQUARE))
        square = (between, between) if fine else (power, power)
        self._squares.add(square)
        return square


def _rounded(side: int) -> int:
    """The next power of two, or one and a half of one."""
    power = 1 << (side - 1).bit_length()
    return between if (between := power * 3 // 4) >= side else power


class Batcher:
    """Collects pieces by the shape of their batch and gives away those that are full.

    Attributes:
      waiting: pieces that wait, by the size and the type of their images: bytes and floats mean other values.
    """

    def __init__(self, preprocess: Preprocess, shapes: Shapes, rows: int):
        """Args: preprocess of the run; shapes that streams met so far; rows: B, fewer where images are large."""
        self._preprocess, self._shapes, self._rows = preprocess, shapes, rows
        self.waiting: dict[tuple[Size, str], list[Piece]] = {}
        self._filled: set[tuple[Size, str]] = set()
        self._bytes = 0

    def add(self, piece: Piece) -> Iterator[Filled]:
        """Takes a piece; yields the batches that are ready now."""
        were_many = self._shapes.many
        yield from self._put(piece)
        if self._shapes.many and not were_many:  # those of a size of their own share squares from now on
            moved = [
                member for (size, _), members in self.waiting.items() if size not in self._shapes.compiled for member in members
            ]
            self.waiting = {key: members for key, members in self.waiting.items() if key[0] in self._shapes.compiled}
            self._bytes = sum(member.size for members in self.waiting.values() for member in members)
            for member in sorted(moved, key=lambda member: (member.owner, member.part)):
                yield from self._put(member)
        while self._bytes > BYTES_WAITING:
            yield from self.oldest()

    def _put(self, piece: Piece) -> Iterator[Filled]:
        size = self._preprocess.group(piece.example)
        if self._preprocess.pad is not None and (target := self._shapes.of(size)) != size:
            try:
                piece, size = piece._replace(example=self._preprocess.pad(piece.example, target)), target
            except MemoryError:
                yield Filled([piece], None)
                return
        key = size, piece.example["image"].dtype.str
        members = self.waiting.setdefault(key, [])
        members.append(piece)
        self._bytes += piece.size
        if len(members) == self._rows_of(size):
            self._filled.add(key)
            yield from self._take(key)

    def oldest(self) -> Iterator[Filled]:
        """The batch of the shape that waits longest, full or not."""
        if self.waiting:
            yield from self._take(min(self.waiting, key=lambda key: self.waiting[key][0].owner))

    def rest(self) -> Iterator[Filled]:
        while self.waiting:
            yield from self.oldest()

    def _rows_of(self, size: Size) -> int:
        fitting = max(PIXELS_OF_A_BATCH // (size[0] * size[1]), 1)
        return min(self._rows, 1 << (fitting.bit_length() - 1))

    def _take(self, key: tuple[Size, str]) -> Iterator[Filled]:
        """The pieces of a shape in one batch; one by one where they are few and no full batch of it was ever compiled."""
        pieces, rows = self.waiting.pop(key), self._rows_of(key[0])
        self._shapes.compiled.add(key[0])
        self._bytes -= sum(piece.size for piece in pieces)
        alone = FEW * len(pieces) <= rows and key not in self._filled
        for group in [[piece] for piece in pieces] if alone else [pieces]:
            examples, indices = [piece.example for piece in group], [piece.row for piece in group]
            try:
                batch = self._preprocess.batch(examples, indices, 1 if alone else rows)
            except MemoryError:
                batch = None
            yield Filled(group, batch)


def ahead(function: Callable[[T], U], items: Iterable[T], threads: int) -> Iterator[tuple[T, Future[U]]]:
    """(item, future of `function(item)`) in order; `threads` work at a time on a few items ahead of the reader."""
    pending: deque[tuple[T, Future[U]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                pending.append((item, pool.submit(function, item)))
                if len(pending) > 2 * threads:
                    yield pending.popleft()
            while pending:
                yield pending.popleft()
        finally:
            for _, future in pending:
                future.cancel()
