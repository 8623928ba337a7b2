"""Single objects of a foreground: components, and parts of components."""

import time

import cv2
import numpy as np
import pytest

from imgrec_jax.segmentation import objects
from imgrec_jax.segmentation.metrics import match_objects


def discs(size: int, *found: tuple[float, float, float]) -> np.ndarray:
    """int32 [size, size] of discs (row, column, radius), numbered 1, 2, ...; a pixel of two is of the nearer one."""
    rows, columns = np.mgrid[:size, :size]
    beyond = np.stack([np.hypot(rows - r, columns - c) / radius for r, c, radius in found])
    return np.where(beyond.min(0) <= 1, beyond.argmin(0) + 1, 0).astype(np.int32)


def test_components_are_numbered_without_holes_and_small_ones_are_none():
    mask = np.zeros((8, 8), bool)
    mask[0, 0] = mask[2:4, 2:4] = mask[4, 4] = mask[6:, 5:] = True  # (4, 4) touches the square by a corner alone
    assert objects.components()(mask).max() == 4
    found = objects.components(smallest=2)(mask)
    assert found.dtype == np.int32 and sorted(np.unique(found)) == [0, 1, 2]
    assert (found[2:4, 2:4] == 1).all() and (found[6:, 5:] == 2).all() and not found[0, 0] and not found[4, 4]


@pytest.mark.parametrize("seed", range(8))
def test_discs_that_overlap_are_parted_and_convex_ones_stay_whole(seed):
    rng = np.random.default_rng(seed)
    radius, other = rng.uniform(6, 14, 2)
    angle, apart = rng.uniform(0, 2 * np.pi), 0.85 * (radius + other)
    r, c = 40 + apart * np.sin(angle), 40 + apart * np.cos(angle)
    truth = discs(80, (40, 40, radius), (r, c, other))
    assert objects.components()(truth > 0).max() == 1
    separated = objects.by_distance()
    assert match_objects(truth > 0, truth, np.ones(truth.shape, bool), 0.7, separated) == (2, 2, 2)
    for k in (1, 2):
        alone = discs(80, [(40, 40, radius), (r, c, other)][k - 1])
        assert np.array_equal(separated(alone > 0), alone)


def test_parts_cover_the_foreground_and_nothing_else_and_the_border_of_the_image_is_no_neck():
    truth = discs(64, (0, 20, 12), (0, 42, 12), (40, 63, 10), (50, 10, 9), (50, 25, 9))
    found = objects.by_distance()(truth > 0)
    assert np.array_equal(found > 0, truth > 0)
    pairs = np.unique(np.stack([found[truth > 0], truth[truth > 0]]), axis=1)
    assert sorted(np.unique(found)) == [0, 1, 2, 3, 4, 5] and pairs.shape[1] < 10
    assert match_objects(truth > 0, truth, np.ones(truth.shape, bool), 0.8, objects.by_distance()).matched == 5


@pytest.mark.parametrize("seed", range(4))
def test_a_part_is_in_one_piece(seed):
    """The nearest middle of a pixel may lie behind another part."""
    rng, foreground = np.random.default_rng(seed), np.zeros((160, 160), np.uint8)
    for x, y, wide, high, turned in rng.integers((5, 5, 5, 5, 0), (155, 155, 16, 16, 180), (25, 5)).tolist():
        cv2.ellipse(foreground, (x, y), (wide, high), turned, 0, 360, 1, -1)
    found = objects.by_distance(smallest=0)(foreground > 0)
    np.testing.assert_array_equal(found > 0, foreground > 0)
    assert found.max() > 10
    for number in range(1, found.max() + 1):
        assert cv2.connectedComponents((found == number).astype(np.uint8), connectivity=8)[0] == 2


def test_height_and_sigma_say_how_much_is_parted():
    truth = discs(80, (40, 30, 12), (40, 48, 12)) > 0  # a neck of 8 pixels to either side, middles of 12
    assert objects.by_distance(height=0.5)(truth).max() == 2
    assert objects.by_distance(height=6.0)(truth).max() == 1
    rng = np.random.default_rng(0)
    ragged = truth.copy()
    ragged[rng.integers(20, 60, 60), rng.integers(15, 65, 60)] = False  # holes, as noise makes them
    assert objects.by_distance(sigma=0.0, height=0.1)(ragged).max() > objects.by_distance(sigma=3.0)(ragged).max()


def test_neighbours_in_one_bounding_box_do_not_mix():
    ring = np.zeros((60, 60), bool)
    ring[2:58, 2:58] = True
    ring[8:52, 8:52] = False
    inner = discs(60, (30, 30, 8)) > 0
    found = objects.by_distance(smallest=0, height=3.0)(ring | inner)
    assert found.max() == 2 and len(np.unique(found[inner])) == 1 and len(np.unique(found[ring])) == 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 5)])
@pytest.mark.parametrize("name", objects.NAMES)
def test_nothing_and_everything(name, shape):
    separate = objects.NAMES[name]()
    assert not separate(np.zeros(shape, bool)).any()
    whole = separate(np.ones(shape, bool))
    assert whole.shape == shape and whole.max() == (shape == (5, 5) or name == "components")


@pytest.mark.parametrize("seed", range(6))
def test_there_are_as_many_parts_as_maxima_that_rise_by_the_height(seed):
    """By their definition (Soille 6.3.4): the regional maxima of the reconstruction of the distance, lowered by the height."""
    rng = np.random.default_rng(seed)
    foreground = np.zeros((70, 90), np.uint8)
    for x, y, wide, high, turned in rng.integers((0, 0, 3, 3, 0), (90, 70, 14, 14, 180), (14, 5)).tolist():
        cv2.ellipse(foreground, (x, y), (wide, high), turned, 0, 360, 1, -1)
    foreground[rng.random(foreground.shape) < 0.01] = 0
    count = 0
    for number in range(1, cv2.connectedComponents(foreground, connectivity=4)[0]):
        own = np.pad(cv2.connectedComponents(foreground, connectivity=4)[1] == number, 1).astype(np.uint8)
        distance = cv2.distanceTransform(np.pad(foreground, 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        distance = cv2.GaussianBlur(distance, (0, 0), 1.0) * own
        lowered = reconstructed(distance - np.float32(0.5), distance)
        tops = (lowered - reconstructed(lowered - np.float32(1e-3), lowered) > 5e-4) & (own > 0)
        count += cv2.connectedComponents(tops.astype(np.uint8), connectivity=8)[0] - 1
    assert objects.by_distance(smallest=0)(foreground > 0).max() == count > 5


def reconstructed(marker: np.ndarray, mask: np.ndarray) -> np.ndarray:
    while not np.array_equal(grown := np.minimum(cv2.dilate(marker, np.ones((3, 3), np.uint8)), mask), marker):
        marker = grown
    return marker


def test_long_ways_and_many_pieces_take_no_longer_than_the_pixels_they_have():
    ring = np.ones((700, 700), bool)
    ring[3:-3, 3:-3] = False
    noise = np.random.default_rng(0).random((300, 300)) < 0.5
    begin = time.process_time()
    assert objects.by_distance(smallest=0)(ring).max() >= 1 and objects.by_distance()(noise).max() > 100
    assert time.process_time() - begin < 3  # by steps over the whole map it was 9
