"""Geometry: matrices by hand, round trips, and boxes that follow the pixels they were drawn around."""

import cv2
import numpy as np
import pytest

from imgrec_jax.data.ops import bits, crops
from imgrec_jax.data.ops import geometry as geo

SIZE = (40, 60)


def scene(boxes, size=SIZE, masks=True):
    """Filled rectangles, the n-th in channel n, with their boxes, masks and semantic map."""
    image = np.zeros((*size, 3), np.uint8)
    instances = np.zeros((len(boxes), *size), np.bool_)
    for n, (x1, y1, x2, y2) in enumerate(boxes):
        instances[n, y1:y2, x1:x2] = True
        image[y1:y2, x1:x2, n % 3] = 255
    example = {
        "image": image,
        "boxes": np.array(boxes, np.float32).reshape(-1, 4),
        "box_label": np.arange(1, len(boxes) + 1),
        "box_crowd": np.zeros(len(boxes), np.bool_),
        "segmentation": (instances * np.arange(1, len(boxes) + 1)[:, None, None]).max(0, initial=0).astype(np.int32),
    }
    return {**example, "box_mask": bits.pack(instances)} if masks else example


def masks_of(example):
    """bool [N, H, W]"""
    return bits.unpack(example["box_mask"], example["image"].shape[1])


def test_flip_by_hand():
    matrix = geo.flipping((10, 20), horizontal=True)
    np.testing.assert_array_equal(geo.warp_boxes(np.float32([[2, 3, 5, 7]]), matrix), [[15, 3, 18, 7]])
    matrix = geo.flipping((10, 20), vertical=True)
    np.testing.assert_array_equal(geo.warp_boxes(np.float32([[2, 3, 5, 7]]), matrix), [[2, 3, 5, 7]])


@pytest.mark.parametrize("nearest", [True, False])
def test_flips_and_crops_move_pixels_exactly(nearest):
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    both = geo.flipping(SIZE, horizontal=True, vertical=True)
    np.testing.assert_array_equal(geo.warp_array(image, both, SIZE, nearest=nearest), image[::-1, ::-1])
    crop = geo.warp_array(image, geo.translation(-7, -5), (20, 30), nearest=nearest)
    np.testing.assert_array_equal(crop, image[5:25, 7:37])
    outside = geo.warp_array(image, geo.translation(10, 0), SIZE, nearest=nearest, fill=9)
    np.testing.assert_array_equal(outside[:, 10:], image[:, :-10])
    assert (outside[:, :10] == 9).all()


def test_a_quarter_turn_is_rot90():
    """Counter-clockwise on the screen, and a box turns with its pixels."""
    example = scene([(5, 4, 20, 10)], (40, 40))
    matrix = np.round(geo.about(geo.rotation(90), 20, 20))
    out = geo.warp_example(example, matrix, (40, 40))
    np.testing.assert_array_equal(out["image"], np.rot90(example["image"]))
    np.testing.assert_array_equal(out["boxes"], [[4, 20, 10, 35]])
    np.testing.assert_array_equal(geo.boxes_of_masks(masks_of(out)), out["boxes"])


def test_scaling_equals_resize():
    image = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 256, (*SIZE, 3), np.uint8), (0, 0), 2)
    warped = geo.warp_array(image, geo.scaling(1.5, 2.0), (80, 90), nearest=False)
    expected = cv2.resize(image, (90, 80), interpolation=cv2.INTER_LINEAR)
    inner = np.s_[2:-2, 2:-2]  # at the border one replicates, the other fills
    assert np.abs(warped[inner].astype(int) - expected[inner]).max() <= 2


def test_strong_shrinking_averages():
    """A one-pixel checkerboard shrunk by 8 is grey, not an alias."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    small = geo.warp_array(board, geo.scaling(1 / 8, 1 / 8), (8, 8), nearest=False)
    assert np.abs(small[1:-1, 1:-1].astype(int) - 127).max() <= 2


@pytest.mark.parametrize("seed", range(12))
def test_boxes_follow_pixels(seed):
    """After a random affine, each box is the tight box of what was drawn, to within a pixel."""
    op = geo.random_affine(flip=0.5, vertical_flip=0.5, scale=(0.6, 1.6), aspect=1.3, rotate=30, shear=10, translate=0.1)
    example = scene([(10, 8, 30, 20), (35, 22, 50, 36)])
    out = op(example, np.random.default_rng(seed))
    assert out["image"].shape == example["image"].shape
    assert len(out["boxes"]) == len(out["box_mask"]) == len(out["box_label"]) == len(out["box_crowd"]) > 0
    for box, label, mask in zip(out["boxes"], out["box_label"], masks_of(out), strict=True):
        np.testing.assert_array_equal(mask, out["segmentation"] == label)
        drawn = geo.boxes_of_masks(out["image"][None, ..., label - 1] > 127)[0]
        assert np.abs(box - drawn).max() <= 1
    assert not out["segmentation"][~out["pixel_valid"]].any()


@pytest.mark.parametrize("seed", range(4))
def test_warp_and_back(seed):
    rng = np.random.default_rng(seed)
    example = scene([(14, 10, 44, 32)])
    matrix = geo.about(geo.rotation(rng.uniform(-20, 20)) @ geo.scaling(1.5, 1.4), 30, 20)
    canvas = geo.translation(40, 40)
    there = geo.warp_example(example, canvas @ matrix, (120, 140))
    back = geo.warp_example(there, np.linalg.inv(canvas @ matrix), SIZE)
    assert np.abs(back["boxes"] - example["boxes"]).max() <= 1
    returned, first = masks_of(back), masks_of(example)
    both, either = (returned & first).sum(), (returned | first).sum()
    assert both / either > 0.95
    # twice nearest neighbour: only pixels at an outline may change class
    outline = cv2.morphologyEx(example["segmentation"].astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
    np.testing.assert_array_equal(back["segmentation"][~outline], example["segmentation"][~outline])
    assert back["pixel_valid"].mean() > 0.99


def test_boxes_that_leave_the_image():
    """A shift by 10 to the left: 5 of 10 columns of the first box stay, 2 of 20 of the second, none of the third."""
    boxes = [(5, 5, 15, 15), (0, 20, 12, 30), (0, 0, 8, 8)]
    example = scene(boxes, masks=False)
    matrix = geo.translation(-10, 0)
    out = geo.warp_example(example, matrix, SIZE)
    np.testing.assert_array_equal(out["boxes"], [[0, 5, 5, 15], [0, 20, 2, 30]])
    np.testing.assert_array_equal(out["box_label"], [1, 2])
    np.testing.assert_array_equal(geo.warp_example(example, matrix, SIZE, min_side=3)["box_label"], [1])
    np.testing.assert_array_equal(geo.warp_example(example, matrix, SIZE, min_visible=0.5)["box_label"], [1])
    assert len(geo.warp_example(example, matrix, SIZE, min_visible=0.51)["boxes"]) == 0


def test_a_cut_object_is_tightened_to_its_mask():
    """An L whose foot is cut away: what stays is the 3-pixel stem, and the visible fraction counts pixels of the mask."""
    example = scene([(10, 10, 30, 30)])
    shape = masks_of(example)
    shape[0, 10:27, 13:30] = False  # stem 3 x 20 at x = 10, foot 20 x 3 at y = 27: 60 + 51 pixels
    example["box_mask"] = bits.pack(shape)
    out = geo.warp_example(example, geo.translation(0, 15), SIZE)  # rows 25.. leave the image of height 40
    np.testing.assert_array_equal(out["boxes"], [[10, 25, 13, 40]])
    assert len(geo.warp_example(example, geo.translation(0, 15), SIZE, min_visible=46 / 111)["boxes"]) == 0
    assert len(geo.warp_example(example, geo.translation(0, 15), SIZE, min_visible=45 / 111)["boxes"]) == 1


def test_an_object_whose_mask_vanishes_is_dropped_though_its_box_stays():
    """A pixel in a box of 20: at a third of the size, nearest neighbour reads one beside it."""
    example = scene([(10, 10, 30, 30), (40, 10, 50, 30)])
    shape = np.zeros((2, *SIZE), np.bool_)
    shape[0, 9, 9] = shape[1, 10:30, 40:50] = True
    out = geo.warp_example({**example, "box_mask": bits.pack(shape)}, geo.scaling(1 / 3, 1 / 3), (13, 20))
    np.testing.assert_array_equal(out["box_label"], [2])
    never = geo.warp_example({**example, "box_mask": bits.pack(shape & False)}, geo.scaling(1 / 3, 1 / 3), (13, 20))
    assert len(never["boxes"]) == 2  # an object without a mask has lost none


def test_images_without_boxes_and_plain_images():
    op = geo.random_affine(rotate=10, scale=(0.5, 2))
    out = op(scene([]), np.random.default_rng(0))
    assert out["boxes"].shape == (0, 4) and masks_of(out).shape == (0, *SIZE)
    plain = op({"image": np.zeros((8, 8, 1), np.uint8), "label": 3}, np.random.default_rng(0))
    assert plain["label"] == 3 and plain["image"].shape == (8, 8, 1)


def test_proposals_move_and_clip():
    example = {**scene([(5, 5, 15, 15)]), "proposals": np.float32([[0, 0, 10, 10], [50, 30, 60, 40]])}
    out = geo.warp_example(example, geo.translation(20, 0), SIZE)
    np.testing.assert_array_equal(out["proposals"], [[20, 0, 30, 10]])


def test_instance_maps_move_with_the_masks():
    """Ids beyond one byte survive."""
    example = scene([(14, 10, 44, 32)])
    example["instances"] = np.where(masks_of(example)[0], 1000, 0).astype(np.uint16)
    out = geo.random_affine(rotate=30, scale=(0.7, 1.5))(example, np.random.default_rng(2))
    np.testing.assert_array_equal(out["instances"], np.where(masks_of(out)[0], 1000, 0))


def test_the_same_generator_gives_the_same_example():
    op = geo.random_affine(flip=0.5, scale=(0.5, 2), rotate=20)
    one, two = (op(scene([(5, 5, 25, 25)]), np.random.default_rng(7)) for _ in range(2))
    for key in one:
        np.testing.assert_array_equal(one[key], two[key])


def test_random_crops_take_whole_pixels():
    image = np.random.default_rng(3).integers(0, 256, (*SIZE, 3), np.uint8)
    op = geo.random_affine(size=(16, 16), random_position=True)
    seen = set()
    for seed in range(20):
        crop = op({"image": image}, np.random.default_rng(seed))["image"]
        windows = np.lib.stride_tricks.sliding_window_view(image, (16, 16), axis=(0, 1)).transpose(0, 1, 3, 4, 2)
        matches = np.argwhere((windows == crop).all((2, 3, 4)))
        assert len(matches) == 1
        seen.add(tuple(matches[0]))
    assert len(seen) > 15


@pytest.mark.parametrize(
    ("fit", "covered"), [("none", (40, 60)), ("inside", (53, 80)), ("cover", (80, 80)), ("stretch", (80, 80))]
)
def test_fits(fit, covered):
    out = geo.random_affine(size=(80, 80), fit=fit)(scene([]), np.random.default_rng(0))
    rows, columns = out["pixel_valid"].any(1).sum(), out["pixel_valid"].any(0).sum()
    assert abs(rows - covered[0]) <= 1 and abs(columns - covered[1]) <= 1


@pytest.mark.parametrize(
    "op",
    [
        geo.random_affine(flip=0.5),
        geo.random_affine(size=(30, 20), fit="cover", rotate=9),
        geo.random_resized_crop(size=(8, 24), flip=0.5),
        geo.resize((17, 31)),
        geo.resize_and_center_crop(20, (16, 18)),
        crops.resize_shorter(24),
    ],
)
def test_an_op_tells_the_size_that_it_leaves(op):
    rng = np.random.default_rng(0)
    for size in rng.integers(10, 60, (12, 2)).tolist():
        made = op({"image": np.zeros((*size, 3), np.uint8)}, rng)["image"].shape[:2]
        assert geo.size_after([op, lambda example, rng: example], tuple(size)) == made


def torch_rule(image, size):
    """torch's interpolate(mode="bilinear", align_corners=False): beyond the outermost centres the border is repeated."""

    def weights(old, new):
        position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        return np.maximum(1 - np.abs(position[:, None] - np.arange(old)), 0)

    rows, columns = (weights(old, new) for old, new in zip(image.shape, size, strict=False))
    return np.einsum("hH,HWc,wW->hwc", rows, image.astype(float), columns)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(
    "make",
    [
        geo.resize,
        lambda size: geo.random_affine(size=size, fit="stretch", fill=77),
        lambda size: geo.random_resized_crop(size=size, area=(1, 1), ratio=(1e-9, 1e9)),
        lambda size: geo.random_affine(size=size, fit="cover"),
        lambda size: geo.resize_and_center_crop(min(size), size),
        lambda size: crops.resize_shorter(min(size)),
    ],
)
def test_a_resized_image_repeats_its_border_as_torch_does(make, dtype):
    rng = np.random.default_rng(0)
    for height, width, scale in [(7, 7, 8), (5, 12, 3), (1, 6, 5), (40, 30, 0.6), (28, 28, 2)]:
        image = rng.integers(0, 256, (height, width, 3)).astype(dtype)
        image = image if dtype == np.uint8 else image / dtype(255)
        size = (int(height * scale) or 1, int(width * scale))
        made = make(size)({"image": image}, rng)["image"]
        assert made.shape[:2] == size
        # this OpenCV or another takes coordinates to a 32nd of a pixel
        np.testing.assert_allclose(made, torch_rule(image, size), atol=8.5 * (1 if dtype == np.uint8 else 1 / 255))
        white = make(size)({"image": np.ones_like(image) * (255 if dtype == np.uint8 else 1)}, rng)["image"]
        assert white.min() == white.max() == (255 if dtype == np.uint8 else 1)


def test_what_lies_outside_is_fill_exactly_where_it_is_void():
    rng = np.random.default_rng(0)
    moves = [
        {"translate": 0.3},
        {"scale": (0.5, 2.0)},
        {"size": (50, 31), "fit": "inside"},
        {"size": (21, 33)},
        {"aspect": 2.0},
    ]
    for options in moves:
        op = geo.random_affine(fill=(10, 20, 30), flip=0.5, random_position=True, **options)
        for size in rng.integers(8, 40, (8, 2)).tolist():
            white = {"image": np.full((*size, 3), 255, np.uint8), "segmentation": np.ones(size, np.int32)}
            out = op(white, rng)
            expected = np.where(out["pixel_valid"][..., None], 255, np.array([10, 20, 30]))
            np.testing.assert_array_equal(out["image"], expected)


def test_an_image_with_a_border_of_fill_is_warped_as_by_opencv_alone():
    """To the last bit: digits on black were trained on so."""
    rng = np.random.default_rng(0)
    image = np.zeros((28, 28, 1), np.uint8)
    image[3:-3, 3:-3] = rng.integers(0, 256, (22, 22, 1))
    for turned in (0, 12.0):
        for _ in range(60):
            matrix = geo.scaling(*rng.uniform(0.8, 1.2, 2)) @ geo.rotation(rng.uniform(-turned, turned))
            matrix = geo.translation(*rng.uniform(-3, 3, 2)) @ geo.about(matrix, 14, 14)
            centred = geo.translation(-0.5, -0.5) @ matrix @ geo.translation(0.5, 0.5)
            expected = cv2.warpAffine(image, centred[:2], (28, 28), flags=cv2.INTER_LINEAR)
            np.testing.assert_array_equal(geo.warp_array(image, matrix, (28, 28), nearest=False)[..., 0], expected)


def test_unknown_fit_is_named():
    with pytest.raises(ValueError, match="fit='fill' is unknown"):
        geo.random_affine(size=(8, 8), fit="fill")(scene([]), np.random.default_rng(0))


def test_resized_crop_of_everything_is_a_resize():
    example = scene([(10, 8, 30, 20)])
    crop = geo.random_resized_crop(size=(80, 120), area=(1, 1), ratio=(1.5, 1.5))(example, np.random.default_rng(0))
    plain = geo.resize((80, 120))(example, np.random.default_rng(0))
    np.testing.assert_array_equal(crop["image"], plain["image"])
    np.testing.assert_allclose(crop["boxes"], [[20, 16, 60, 40]])


def test_resize_and_center_crop():
    """40 x 60 to a shorter side of 80 is 80 x 120; the middle 64 x 64 begins at (28, 8)."""
    out = geo.resize_and_center_crop(80, (64, 64))(scene([(15, 5, 45, 35)]), np.random.default_rng(0))
    np.testing.assert_allclose(out["boxes"], [[2, 2, 62, 62]])
