"""Detection batches: torchvision's sizes and pixels, one canvas per batch, the contract's arrays."""

import sys
from pathlib import Path

import numpy as np
import pytest

from imgrec_jax.data.ops import bits
from imgrec_jax.data.ops import canvases as batches
from tests.goldens import make_nearest

TOOLS = Path(__file__).parents[3] / "shared" / "tools"
CANVASES = batches.default_canvases(800, 1333)


def example(size, boxes=(), seed=0, **extra):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return {
        "image": np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8),
        "boxes": boxes,
        "box_label": np.arange(1, len(boxes) + 1),
        "box_crowd": np.zeros(len(boxes), np.bool_),
        "file_name": f"image_{seed}.jpg",
        "original_size": np.array(size, np.int32),
        **extra,
    }


def test_sizes_by_hand():
    assert batches.resized_size((480, 640), 800, 1333) == (800, 1066)
    assert batches.resized_size((480, 1000), 800, 1333) == (639, 1333)  # the longer side limits
    assert batches.resized_size((100, 100), 50, 1333) == (50, 50)


def test_truncation_trap():
    """For 153 of the short sides 100..2999, int(side * (800 / side)) is 799."""
    short = [side for side in range(100, 3000) if batches.resized_size((side, side), 800, 10**9)[0] == 799]
    assert len(short) == 153 and short[:7] == [161, 167, 193, 194, 195, 199, 289]


def test_resize_is_torchvisions():
    torch = pytest.importorskip("torch")
    if not TOOLS.exists():
        pytest.skip("needs ../shared/tools to run torchvision on the CPU")
    sys.path.insert(0, str(TOOLS))
    import torchvision_on_cpu  # noqa: F401
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    transform = GeneralizedRCNNTransform(200, 333, [0.0] * 3, [1.0] * 3)
    op = batches.resize((200,), 333, batches.default_canvases(200, 333), as_float=True)
    for size in ((60, 80), (161, 120), (70, 190), (260, 199)):
        ours = op(example(size, [[3, 5, 40, 50.5]]), np.random.default_rng(0))
        image = torch.from_numpy(example(size)["image"].transpose(2, 0, 1) / np.float32(255))
        target = {"boxes": torch.tensor([[3, 5, 40, 50.5]])}
        theirs, targets = transform([image], [target])
        assert theirs.image_sizes[0] == ours["image"].shape[:2]
        height, width = ours["image"].shape[:2]
        np.testing.assert_allclose(ours["image"], theirs.tensors[0, :, :height, :width].permute(1, 2, 0), atol=2e-4)
        np.testing.assert_allclose(ours["boxes"], targets[0]["boxes"], rtol=1e-6)
        padded = batches.collate_boxes(max_boxes=2)([{k: v for k, v in ours.items() if k != "canvas"}])
        assert padded["image"].shape[1:3] == theirs.tensors.shape[2:]


def test_every_size_has_a_canvas():
    assert CANVASES == ((800, 1088), (1088, 800), (800, 1344), (1344, 800))
    rng = np.random.default_rng(0)
    for size in rng.integers(50, 3000, (500, 2)).tolist():
        canvas = batches.canvas_of(size, 800, 1333, CANVASES)
        height, width = batches.resized_size(size, 800, 1333)
        assert height <= canvas[0] and width <= canvas[1] and canvas[0] % 32 == canvas[1] % 32 == 0
    assert batches.canvas_of((480, 640), 800, 1333, CANVASES) == (800, 1088)
    assert batches.canvas_of((640, 480), 800, 1333, CANVASES) == (1088, 800)
    assert batches.canvas_of((300, 640), 800, 1333, CANVASES) == (800, 1344)
    with pytest.raises(ValueError, match=r"becomes \(1066, 800\).*no canvas.*add one"):
        batches.canvas_of((640, 480), 800, 1333, CANVASES[:1])


def test_an_image_that_none_of_the_canvases_holds_takes_one_of_few_others():
    rng = np.random.default_rng(0)
    for offered in (((256, 352),), ((256, 256), (256, 288)), ((64, 64),)):
        taken = set()
        for size in rng.integers(1, 900, (300, 2)).tolist():
            canvas = batches.canvas_of(size, 256, 416, offered, only=False)
            height, width = batches.resized_size(size, 256, 416)
            assert height <= canvas[0] and width <= canvas[1]
            fitting = [one for one in offered if height <= one[0] and width <= one[1]]
            assert not fitting or canvas == batches.canvas_of(size, 256, 416, offered) == min(fitting)
            taken.add(canvas)
        assert len(taken) <= 2 * len(offered) + 4


@pytest.mark.parametrize("seed", [None, 3])
def test_order_covers_every_image_once_in_pure_batches(seed):
    sizes = np.random.default_rng(1).integers(200, 900, (101, 2))
    settings = {"min_size": 800, "max_size": 1333, "canvases": CANVASES}
    order = batches.bucketed_order(sizes, 8, seed=seed, **settings)
    first = order(0)
    np.testing.assert_array_equal(np.sort(first.indices[first.valid]), np.arange(101))
    for row in first.indices:
        assert len({batches.canvas_of(sizes[i].tolist(), 800, 1333, CANVASES) for i in row}) == 1
    again = batches.bucketed_order(sizes, 8, seed=seed, **settings)(0)
    np.testing.assert_array_equal(first.indices, again.indices)
    assert len(order(1).indices) == len(first.indices)
    assert (order(1).indices != first.indices).any() == (seed is not None)


def test_order_with_a_canvas_that_no_image_needs():
    order = batches.bucketed_order(np.array([[480, 640]] * 3), 2, min_size=800, max_size=1333, canvases=CANVASES, seed=0)(0)
    assert order.indices.shape == (2, 2) and order.valid.sum() == 3


def test_resize_moves_boxes_masks_and_proposals():
    mask = np.zeros((1, 10, 20), np.bool_)
    mask[0, 2:4, 5:10] = True
    given = example((10, 20), [[5, 2, 10, 4]], box_mask=bits.pack(mask), proposals=np.float32([[0, 0, 20, 10]]))
    out = batches.resize((20,), 100, ((32, 64),))(given, np.random.default_rng(0))
    np.testing.assert_array_equal(out["boxes"], [[10, 4, 20, 8]])
    np.testing.assert_array_equal(out["proposals"], [[0, 0, 40, 20]])
    masks = bits.unpack(out["box_mask"], 40)
    assert masks[0, 4:8, 10:20].all() and masks.sum() == 40
    batch = batches.collate_boxes(max_boxes=3)([{**out, "box_crowd": np.zeros(1, bool)}])
    assert batch["box_mask"].shape == (1, 3, 32, 8) and bits.areas(batch["box_mask"][0]).tolist() == [40, 0, 0]
    assert out["canvas"] == (32, 64) and out["image"].dtype == np.uint8


def test_multi_scale_draws_sizes_but_one_canvas():
    op = batches.resize((640, 672, 800), 1333, CANVASES)
    outs = [op(example((48, 64)), np.random.default_rng(seed)) for seed in range(12)]
    assert {out["image"].shape[0] for out in outs} == {640, 672, 800}
    assert {out["canvas"] for out in outs} == {(800, 1088)}


def test_batch_is_the_contract():
    examples = [
        example((20, 30), [[1, 2, 3, 4], [5, 6, 7, 8]], 0, proposals=np.ones((3, 4), np.float32)),
        example((32, 10), [], 1, proposals=np.ones((7, 4), np.float32)),
    ]
    batch = batches.collate_boxes(max_boxes=4, max_proposals=5)(examples)
    shapes = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
    assert shapes == {
        "image": ((2, 32, 32, 3), "uint8"),
        "image_size": ((2, 2), "int32"),
        "original_size": ((2, 2), "int32"),
        "boxes": ((2, 4, 4), "float32"),
        "box_valid": ((2, 4), "bool"),
        "box_label": ((2, 4), "int32"),
        "box_crowd": ((2, 4), "bool"),
        "proposals": ((2, 5, 4), "float32"),
        "proposal_valid": ((2, 5), "bool"),
    }
    np.testing.assert_array_equal(batch["image"][0, :20, :30], examples[0]["image"])
    assert not batch["image"][0, 20:].any() and not batch["image"][0, :, 30:].any()
    np.testing.assert_array_equal(batch["image_size"], [[20, 30], [32, 10]])
    np.testing.assert_array_equal(batch["box_valid"], [[True, True, False, False], [False] * 4])
    np.testing.assert_array_equal(batch["box_label"][0], [1, 2, 0, 0])
    np.testing.assert_array_equal(batch["proposal_valid"].sum(1), [3, 5])


def test_too_many_boxes():
    crowded = example((20, 30), [[0, 0, 1, 1], [0, 0, 9, 9], [0, 0, 5, 5]], 4)
    with pytest.raises(ValueError, match="image_4.jpg has 3 boxes, more than max_boxes=2"):
        batches.collate_boxes(max_boxes=2)([crowded])
    kept = batches.collate_boxes(max_boxes=2, drop_extra_boxes=True)([crowded])
    np.testing.assert_array_equal(kept["box_label"], [[2, 3]])  # the largest, in their order


def test_a_batch_of_two_canvases_is_refused():
    with pytest.raises(ValueError, match="mixes canvases"):
        batches.collate_boxes(max_boxes=1)([example((8, 8), canvas=(32, 32)), example((8, 8), canvas=(32, 64))])
    with pytest.raises(ValueError, match=r"image_0.jpg of \(40, 8\) does not fit its canvas \(32, 32\)"):
        batches.collate_boxes(max_boxes=1)([example((40, 8), canvas=(32, 32))])


def test_without_canvases_each_image_has_its_own():
    sizes = np.array([(480, 640), (640, 480), (480, 640), (333, 500)])
    assert batches.canvas_of((480, 640), 160, 256, ()) == (160, 224)
    order = batches.bucketed_order(sizes, 2, min_size=160, max_size=256, canvases=(), seed=None)(0)
    of_rows = [{batches.canvas_of(sizes[i], 160, 256, ()) for i in row} for row in order.indices]
    assert all(len(canvas) == 1 for canvas in of_rows) and sorted(order.indices[order.valid].tolist()) == [0, 1, 2, 3]


def test_masks_take_the_pixels_that_torch_takes():
    """400 pairs of lengths, half of them with an index that float64 rounds to another pixel; see goldens/make_nearest.py."""
    with np.load(make_nearest.FILE) as golden:
        pairs, sums = golden["pairs"].tolist(), golden["sums"].tolist()
    assert [make_nearest.checksum(batches._nearest(*pair)) for pair in pairs] == sums
