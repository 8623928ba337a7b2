import numpy as np
import pytest

from imgrec_jax.detection.anchors import cell_anchors, grid_anchors, pyramid_anchors
from tests.goldens import seeded

RATIOS = (0.5, 1.0, 2.0)


@pytest.mark.parametrize(
    ("size", "half_extents"),
    [
        (32, [(23, 11), (16, 16), (11, 23)]),
        (64, [(45, 23), (32, 32), (23, 45)]),
        (128, [(91, 45), (64, 64), (45, 91)]),
        (256, [(181, 91), (128, 128), (91, 181)]),
        (512, [(362, 181), (256, 256), (181, 362)]),
    ],
)
def test_cell_anchors_are_torchvisions(size, half_extents):
    expected = [(-w, -h, w, h) for w, h in half_extents]
    assert cell_anchors([size], RATIOS).tolist() == [list(map(float, box)) for box in expected]


def test_unrounded_cell_anchors_have_the_area_and_ratio():
    cell = cell_anchors([32, 64], RATIOS, rounded=False)
    width, height = cell[:, 2] - cell[:, 0], cell[:, 3] - cell[:, 1]
    np.testing.assert_allclose(width * height, [32**2, 64**2] * 3, rtol=1e-5)
    np.testing.assert_allclose(height / width, np.repeat(RATIOS, 2), rtol=1e-5)


def test_grid_order_is_row_column_anchor():
    cell = np.array([[-1, -1, 1, 1], [-2, -2, 2, 2]], np.float32)
    grid = grid_anchors(cell, (2, 3), (10, 20))
    assert grid.shape == (12, 4)
    assert grid[0].tolist() == [-1, -1, 1, 1]
    assert grid[1].tolist() == [-2, -2, 2, 2]
    assert grid[2].tolist() == [19, -1, 21, 1]  # next column
    assert grid[6].tolist() == [-1, 9, 1, 11]  # next row
    assert grid_anchors(cell, (1, 1), (10, 20), offset=0.5)[0].tolist() == [9, 4, 11, 6]


def test_strides_are_integer_quotients_of_the_padded_image():
    cells = [cell_anchors([512], RATIOS)]
    (coarsest,) = pyramid_anchors(cells, [(13, 21)], image_size=(800, 1344))
    assert coarsest.reshape(13, 21, 3, 4)[1, 0, 1, 1] - coarsest[1, 1] == 61
    (fixed,) = pyramid_anchors(cells, [(13, 21)], strides=[64])
    assert fixed.reshape(13, 21, 3, 4)[1, 0, 1, 1] - fixed[1, 1] == 64
    with pytest.raises(ValueError, match="either image_size or strides"):
        pyramid_anchors(cells, [(13, 21)])


def test_equal_to_torchvision():
    torch = pytest.importorskip("torch")
    tv = seeded.import_torchvision()
    from torchvision.models.detection.image_list import ImageList

    sizes = ((32,), (64, 80), (128,))
    generator = tv.models.detection.anchor_utils.AnchorGenerator(sizes, (RATIOS,) * 3)
    grids = [(25, 38), (13, 19), (7, 10)]
    images = ImageList(torch.zeros(1, 3, 200, 304), [(190, 300)])
    theirs = generator(images, [torch.zeros(1, 8, *grid) for grid in grids])[0].numpy()
    ours = pyramid_anchors([cell_anchors(size, RATIOS) for size in sizes], grids, image_size=(200, 304))
    np.testing.assert_array_equal(np.concatenate(ours), theirs)
