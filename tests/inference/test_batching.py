"""Images of many sizes in batches of few shapes; every image in one batch, in whatever order they come."""

import numpy as np
import pytest

from imgrec_jax.data.batch import stack
from imgrec_jax.data.ops import canvases
from imgrec_jax.data.preprocess import Preprocess
from imgrec_jax.inference.batching import FINE_SQUARES, PIXELS_OF_A_BATCH, Batcher, Piece, Shapes


def batches(sizes, rows=4, shapes=None):
    """[(numbers of the images, shape of the batch)] of images of these sizes."""
    preprocess = Preprocess((), canvases.collate_maps(multiple=1), pad=canvases.pad_maps)
    batcher, found = Batcher(preprocess, shapes or Shapes(), rows), []
    for number, (height, width) in enumerate(sizes):
        image = np.full((height, width, 1), number % 256, np.uint8)
        found += batcher.add(Piece(number, 0, 0, {"image": image}))
    found += batcher.rest()
    for pieces, batch in found:
        for piece, row, size in zip(pieces, batch["image"], batch["image_size"], strict=False):
            assert tuple(size) == sizes[piece.owner] and (row == piece.owner % 256).all()
    return [([piece.owner for piece in pieces], batch["image"].shape[:3]) for pieces, batch in found]


def test_few_sizes_stay_as_they_are():
    found = batches([(10, 12), (9, 9), (10, 12), (20, 8), (9, 9)], rows=2)
    assert {shape[1:] for _, shape in found} == {(10, 12), (9, 9), (20, 8)}


def test_many_sizes_share_squares_also_those_that_came_first():
    found = batches([(70 + n, 60) for n in range(20)])
    assert {shape[1:] for _, shape in found} == {(96, 96)} and len(found) == 5
    assert sorted(number for numbers, _ in found for number in numbers) == list(range(20))


def test_a_size_with_a_program_keeps_it():
    found = batches([(10, 10)] * 4 + [(n, 50) for n in range(11, 19)] + [(10, 10)] * 4)
    assert [shape for _, shape in found].count((4, 10, 10)) == 2


def test_the_number_of_shapes_is_bounded():
    rng = np.random.default_rng(0)
    sizes = [tuple(map(int, size)) for size in rng.integers(2, 1500, (120, 2))]
    shapes = {shape[1:] for _, shape in batches(sizes)}
    assert len(shapes) <= FINE_SQUARES + 1 and all(height == width for height, width in shapes)


def test_no_picture_is_padded_to_many_times_its_size_beyond_a_batch():
    rng, shapes = np.random.default_rng(0), Shapes(exact=0)
    sizes = np.exp(rng.uniform(0, np.log(2**18), (500, 2))).astype(int) + 1
    found = {(10, 60_000): shapes.of((10, 60_000))} | {tuple(size): shapes.of(tuple(size)) for size in sizes.tolist()}
    for size, padded in found.items():
        area = padded[0] * padded[1]
        assert padded[0] >= size[0] and padded[1] >= size[1] and area <= max(PIXELS_OF_A_BATCH, 9 / 4 * size[0] * size[1])
    assert found[10, 60_000] == (12, 2**16)


def test_without_padding_sizes_are_the_preprocessings():
    preprocess = Preprocess((), stack)
    batcher = Batcher(preprocess, Shapes(), 2)
    made = [
        batch for n in range(6) for _, batch in batcher.add(Piece(n, 0, 0, {"image": np.zeros((n // 2 + 1, 2, 1), np.uint8)}))
    ]
    assert [batch["image"].shape for batch in made] == [(2, 1, 2, 1), (2, 2, 2, 1), (2, 3, 2, 1)]
    with pytest.raises(StopIteration):
        next(batcher.rest())
