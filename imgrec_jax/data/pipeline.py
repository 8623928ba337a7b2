"""The pipeline: the batch of a step is a pure function of (seed, step), so a position is a step and nothing else.

Shape letters: B global batch, S steps of an epoch.
"""

import itertools
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np

from imgrec_jax.data.batch import Batch, stack
from imgrec_jax.data.ops.geometry import Op
from imgrec_jax.data.ops.mixing import BatchOp
from imgrec_jax.data.source import ArraySource, Source

T = TypeVar("T")


def ahead(make: Callable[[int], T], steps: Sequence[int], threads: int) -> Iterator[T]:
    """make(step) for every step, in order; `threads` threads are at most two steps each ahead of who asks."""
    pool, todo = ThreadPoolExecutor(threads, "batches"), iter(steps)
    waiting = deque(pool.submit(make, step) for step in itertools.islice(todo, 2 * threads))
    try:
        while waiting:
            batch = waiting.popleft().result()
            waiting.extend(pool.submit(make, step) for step in itertools.islice(todo, 1))
            yield batch
            del batch  # while the next one is waited for, it is who asked that keeps it
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class Order(NamedTuple):
    """Which examples the batches of one epoch hold.

    Attributes:
      indices: int64 [S, B].
      valid: bool [S, B]; False rows are padding (their index repeats a real example).
    """

    indices: np.ndarray
    valid: np.ndarray


def rng_for(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """An independent generator for each (seed, purpose, keys)."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode()), *keys])


def shuffled_order(size: int, batch_size: int, seed: int, remainder: str) -> Callable[[int], Order]:
    """A new permutation every epoch.

    Args:
      size: examples of the split.
      batch_size: global batch.
      seed: of the permutations.
      remainder: "pad" keeps the examples that do not fill a batch as a last, partly valid one; "drop" leaves them out (another
        few each epoch).

    Raises:
      ValueError: unknown remainder, or "drop" with fewer examples than one batch.
    """
    if remainder not in ("pad", "drop"):
        raise ValueError(f"data.remainder is {remainder!r}; expected 'pad' or 'drop'")
    if remainder == "drop" and size < batch_size:
        raise ValueError(
            f"{size} training examples do not fill one batch of {batch_size}; lower it or set data.remainder='pad'"
        )

    def order(epoch: int) -> Order:
        permutation = rng_for(seed, "shuffle", epoch).permutation(size)
        return _batches(permutation, batch_size, remainder)

    return order


def balanced_order(weights: np.ndarray, batch_size: int, seed: int, remainder: str) -> Callable[[int], Order]:
    """As `shuffled_order`, but an epoch holds each example about in proportion to its weight, float [N], and N in all.

    Whole shares are taken as they are, what is left of them by systematic sampling, so no example is drawn more than once above
    its share.
    """
    shuffled = shuffled_order(len(weights), batch_size, seed, remainder)  # checks the sizes
    shares = np.cumsum(weights / weights.sum() * len(weights))

    def order(epoch: int) -> Order:
        rng = rng_for(seed, "balance", epoch)
        turn = rng.permutation(len(weights))
        stops = np.cumsum(np.diff(shares, prepend=0.0)[turn])
        drawn = turn[np.minimum(np.searchsorted(stops, rng.random() + np.arange(len(weights)), side="right"), len(weights) - 1)]
        found = shuffled(epoch)
        return Order(drawn[found.indices], found.valid)

    return order


def sequential_order(size: int, batch_size: int) -> Callable[[int], Order]:
    """Every example exactly once, in order, the last batch padded: for evaluation."""
    return lambda epoch: _batches(np.arange(size), batch_size, "pad")


def _batches(indices: np.ndarray, batch_size: int, remainder: str) -> Order:
    steps = len(indices) // batch_size if remainder == "drop" else -(-len(indices) // batch_size)
    # Padding repeats examples of this epoch, so a padded row decodes and augments like any other.
    filled = np.resize(indices, steps * batch_size).reshape(steps, batch_size)
    return Order(filled, (np.arange(steps * batch_size) < len(indices)).reshape(steps, batch_size))


@dataclass(frozen=True)
class Pipeline:
    """Everything that turns a step into a batch.

    Attributes:
      source: the examples.
      order: epoch -> Order; the number of steps must not depend on the epoch.
      seed: of the augmentations.
      ops: `op(example, rng) -> example`, each example's generator seeded by (seed, step, row of the global batch).
      batch_ops: `op(batch, partners, rngs) -> batch` on one process's rows: row i of `partners` is the next row of the global
        batch (of its last row, the first), each row's generator seeded by (seed, step, row). So what a row becomes does not
        depend on the number of processes; each makes one row more than its own for it.
      collate: list of examples -> batch. With `size_of(examples)` a batch is as large as that, or as a second argument says.
      process_index, process_count: which rows of the global batch this process makes.
      threads: how many batches are made at a time.
    """

    source: Source
    order: Callable[[int], Order]
    seed: int
    ops: Sequence[Op] = ()
    batch_ops: Sequence[BatchOp] = ()
    collate: Callable[..., Batch] = stack
    process_index: int = 0
    process_count: int = 1
    threads: int = 2

    def __post_init__(self):
        # An epoch's order is asked for at each of its steps; two cover the seam between epochs.
        object.__setattr__(self, "order", lru_cache(maxsize=2)(self.order))

    @property
    def steps_per_epoch(self) -> int:
        return len(self.order(0).indices)

    @property
    def is_plain(self) -> bool:
        """Whether a batch is nothing but rows of arrays, so that it can be gathered anywhere, also on a device."""
        return isinstance(self.source, ArraySource) and not self.ops and not self.batch_ops and self.collate is stack

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The whole split, where `is_plain`."""
        assert isinstance(self.source, ArraySource)
        return self.source.arrays

    def rows(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(indices int64, valid bool, rows of the global batch), each [B / process_count], of this process."""
        batch_size = self.order(0).indices.shape[1]
        return self._rows(step, np.array_split(np.arange(batch_size), self.process_count)[self.process_index])

    def _rows(self, step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        epoch, position = divmod(step, self.steps_per_epoch)
        order = self.order(epoch)
        return order.indices[position][rows], order.valid[position][rows], rows

    def batch(self, step: int) -> Batch:
        """The batch of `step`, counted over all epochs, as large as this process's own rows are."""
        return self._batch(step, self._examples(step))

    def _with_partner(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `rows`, and where `batch_ops` mix it in, the first row of the next process."""
        _, _, rows = self.rows(step)
        if self.batch_ops and self.process_count > 1:
            rows = np.concatenate([rows, (rows[-1:] + 1) % self.order(0).indices.shape[1]])
        return self._rows(step, rows)

    def _examples(self, step: int) -> list[dict]:
        """What `collate` takes; nothing where a batch is rows of arrays."""
        if self.is_plain:
            return []
        indices, _, rows = self._with_partner(step)
        return [self._example(*key) for key in zip(self._read(indices), [step] * len(rows), rows, strict=True)]

    def _batch(self, step: int, examples: list[dict], *size: Sequence[int]) -> Batch:
        indices, valid, rows = self._with_partner(step)
        made = {name: array[indices] for name, array in self.arrays.items()} if self.is_plain else self.collate(examples, *size)
        made["index"] = indices.astype(np.int32)
        made["example_valid"] = valid
        if not self.batch_ops:
            return made
        _, _, rows = self.rows(step)
        # The partner of the last row is another process's, made here too; without other processes it is the first row.
        after = np.arange(1, len(rows) + 1) % len(made["index"])
        batch, partners = ({name: array[take] for name, array in made.items()} for take in (slice(len(rows)), after))
        rngs = [rng_for(self.seed, "batch", step, row) for row in rows]
        for op in self.batch_ops:
            batch = op(batch, partners, rngs)
        return batch

    def _read(self, indices: np.ndarray) -> list[dict]:
        if (channels := self._undecoded_channels) is not None:
            source: Any = self.source
            return [source.undecoded(int(index), channels) for index in indices]
        if hasattr(self.source, "__getitems__"):
            return self.source.__getitems__(indices.tolist())
        return [self.source[int(index)] for index in indices]

    @cached_property
    def _undecoded_channels(self) -> int | None:
        """Of images that the first op that looks at pixels decodes as far as it needs them, 0 for any; None: no op does."""
        channels: int | None = 0
        for op in self.ops if hasattr(self.source, "undecoded") else ():
            if getattr(op, "takes_undecoded", False):
                return channels
            channels = getattr(op, "passes_undecoded", None)
            if channels is None:
                break
        return None

    def _example(self, example: dict, step: int, row: int) -> dict:
        rng = rng_for(self.seed, "augment", step, row)
        for op in self.ops:
            example = op(example, rng)
        return example

    def batches(self, start: int, stop: int, largest: Callable[[list[int]], list[int]] | None = None) -> Iterator[Batch]:
        """The batches of steps start..stop-1 in order, made ahead of time by `threads` threads.

        What is in flight is never part of a position: a run resumed at step s draws batch s again.

        Args:
          largest: numbers of this process -> the largest of all processes, which ask one another here, at the same batches; for
            a `collate` that has `size_of`.
        """
        steps, size_of = range(start, stop), getattr(self.collate, "size_of", None)
        if largest is None or size_of is None:
            yield from self._ahead(self.batch, steps)
            return
        # They ask where a batch is wanted: what is made ahead may never be.
        for step, examples in zip(steps, self._ahead(self._examples, steps), strict=True):
            yield self._batch(step, examples, largest(size_of(examples)))

    def _ahead(self, make: Callable[[int], T], steps: range) -> Iterator[T]:
        if self.is_plain or self.threads == 0:  # slicing arrays takes less time than handing them over
            return map(make, steps)
        import cv2

        cv2.setNumThreads(0)  # parallel over batches; OpenCV's own threads would fight over the same cores
        return ahead(make, steps, self.threads)
