"""Segmentation batches, targets from instances, and adaptors of stock TFDS sets on small stand-ins."""

import cv2
import numpy as np
import pytest

from imgrec_jax.data.ops import geometry as geometry_ops
from imgrec_jax.data.ops.canvases import collate_maps as collate
from imgrec_jax.data.ops.crops import foreground_crop, resize_shorter
from imgrec_jax.data.ops.targets import border_weights, instance_targets, touching
from imgrec_jax.data.pipeline import Pipeline, sequential_order
from imgrec_jax.data.records import record_format
from imgrec_jax.data.sets import panoptic, pets, tfds
from imgrec_jax.data.sets.mask_folder import open_masks
from imgrec_jax.data.source import Request, SourceInfo, part

RNG = np.random.default_rng(0)


def example(height=6, width=9, **maps):
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return {"image": image, "segmentation": (image[..., 0] > 128).astype(np.uint8), "file_name": "x.png", **maps}


def test_border_weights_equal_the_formula_pixel_by_pixel():
    instances = np.zeros((12, 20), np.int32)
    instances[2:6, 1:6], instances[3:8, 9:13], instances[9:, 4:8] = 1, 2, 5
    grid = np.indices(instances.shape).transpose(1, 2, 0).reshape(-1, 2)
    distances = []
    for number in (1, 2, 5):
        points = np.argwhere(instances == number)
        distances.append(np.sqrt(((grid[:, None] - points[None]) ** 2).sum(-1)).min(1).reshape(instances.shape))
    d1, d2 = np.sort(distances, axis=0)[:2]
    expected = np.where(instances == 0, 1 + 10 * np.exp(-((d1 + d2) ** 2) / (2 * 5**2)), 1)
    np.testing.assert_allclose(border_weights(instances), expected, atol=0.01)  # cut where the weight is below w0 e^-8
    assert border_weights(instances).dtype == np.float32


def test_border_weights_without_neighbours_are_one():
    lone = np.zeros((9, 9), np.int32)
    assert np.all(border_weights(lone) == 1)
    lone[4, 4] = 3
    assert np.all(border_weights(lone) == 1)


def test_touching_by_hand():
    instances = np.array([[1, 1, 2, 0], [1, 1, 2, 0], [0, 0, 0, 3], [4, 0, 0, 3]])
    expected = np.array([[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    # 2 and 3 touch at a corner
    np.testing.assert_array_equal(touching(instances), expected.astype(bool))


def test_instance_targets():
    instances = np.array([[1, 1, 1, 2, 2, 2, 0, 0]] * 4)
    given = {"image": np.zeros((4, 8, 3), np.uint8), "segmentation": (instances > 0) * 1, "instances": instances}
    out = instance_targets(separate=True, w0=10.0, sigma=2.0)(given, RNG)
    np.testing.assert_array_equal(out["segmentation"][0], [1, 1, 0, 0, 1, 1, 0, 0])
    assert "instances" not in out
    assert out["pixel_weight"][0, 2] == pytest.approx(1 + 10 * np.exp(-((1 + 2) ** 2) / 8), rel=1e-5)
    plain = instance_targets(separate=False)(given, RNG)
    np.testing.assert_array_equal(plain["segmentation"], given["segmentation"])
    assert "pixel_weight" not in plain
    with pytest.raises(ValueError, match="remove it"):
        instance_targets()(example(), RNG)


def test_collate_pads_to_a_multiple_and_marks_it_void():
    first, second = (
        example(6, 9, instances=np.ones((6, 9), np.uint16)),
        example(5, 10, instances=np.ones((5, 10), np.uint16)),
    )
    batch = collate(multiple=4)([first, second])
    assert set(batch) == {"image", "segmentation", "pixel_valid", "instances"}  # no names: a batch holds arrays
    assert {key: value.shape[1:3] for key, value in batch.items()} == dict.fromkeys(batch, (8, 12))
    assert batch["segmentation"].dtype == batch["instances"].dtype == np.int32 and batch["image"].dtype == np.uint8
    for i, (height, width) in enumerate(((6, 9), (5, 10))):
        assert batch["pixel_valid"][i, :height, :width].all() and batch["pixel_valid"][i].sum() == height * width
        assert batch["instances"][i].sum() == height * width
    np.testing.assert_array_equal(batch["image"][0, :6, :9], first["image"])
    np.testing.assert_array_equal(batch["image"][0, 6, :9], first["image"][4])  # mirrored at the last row
    np.testing.assert_array_equal(batch["segmentation"][1, :5, :10], second["segmentation"])


def test_collate_to_one_size():
    assert collate(size=(16, 16))([example()])["image"].shape == (1, 16, 16, 3)
    with pytest.raises(ValueError, match=r"\(6, 9\) does not fit data.pad_to=\(4, 16\)"):
        collate(size=(4, 16))([example()])


def test_foreground_crop_holds_foreground_and_cuts_all_maps_alike():
    segmentation = np.zeros((40, 60), np.int32)
    segmentation[31:33, 50:53] = 4
    index = np.arange(40 * 60).reshape(40, 60)
    given = example(40, 60, instances=index)
    given["segmentation"] = segmentation
    starts = set()
    for seed in range(50):
        out = foreground_crop(size=(8, 16), probability=1.0)(given, np.random.default_rng(seed))
        y, x = divmod(int(out["instances"][0, 0]), 60)
        assert out["segmentation"].any()
        np.testing.assert_array_equal(out["image"], given["image"][y : y + 8, x : x + 16])
        np.testing.assert_array_equal(out["segmentation"], segmentation[y : y + 8, x : x + 16])
        starts.add((y, x))
    assert len(starts) > 20
    anywhere = foreground_crop(size=(8, 16), probability=0.0)
    assert sum(anywhere(given, np.random.default_rng(seed))["segmentation"].any() for seed in range(50)) < 25


def test_foreground_crop_takes_the_candidate_with_the_most_foreground():
    given = example(48, 48)
    given["segmentation"] = np.zeros((48, 48), np.int32)
    given["segmentation"][4:12, 4:12] = 2  # 64 pixels
    given["segmentation"][30:36, 30:36] = 5  # 36, too far away to be in the same crop

    def pixels(**options):
        crop = foreground_crop(size=(12, 12), probability=1.0, **options)
        seen = [crop(given, np.random.default_rng(seed))["segmentation"] for seed in range(60)]
        return np.array([[np.count_nonzero(s == label) for label in (2, 5)] for s in seen])

    one, many = pixels(), pixels(candidates=30)
    assert one[:, 0][one[:, 0] > 0].min() < 32  # cut here and there
    assert set(map(tuple, many)) <= {(64, 0), (56, 0), (0, 36), (0, 30)} and (many > 0).sum(0).min() > 5
    with pytest.raises(ValueError, match="candidates=0; expected 1 or more"):
        foreground_crop(size=(8, 8), candidates=0)


def test_foreground_crop_of_small_and_empty_images():
    empty = {"image": np.zeros((6, 9, 3), np.uint8), "segmentation": np.zeros((6, 9), np.int32)}
    out = foreground_crop(size=(8, 8), probability=1.0)(empty, RNG)
    assert out["image"].shape == (8, 8, 3) and out["pixel_valid"].sum() == 6 * 8


def test_resize_shorter_keeps_the_ratio():
    out = resize_shorter(12)(example(6, 9), RNG)
    assert out["image"].shape == (12, 18, 3) and out["pixel_valid"].all()
    np.testing.assert_array_equal(out["segmentation"][::2, ::2], example(6, 9)["segmentation"])
    assert resize_shorter(520)(example(60, 43), RNG)["image"].shape == (725, 520, 3)  # 725.6


def test_affine_round_trip_of_mask_and_instances():
    """Turned by 90 degrees four times, maps are what they were; turned by 30 and back, they are along no outline."""
    y, x = np.mgrid[:64, :64]
    disc = ((y - 30) ** 2 + (x - 36) ** 2 < 15**2).astype(np.int32)
    given = {
        "image": np.repeat((disc * 200).astype(np.uint8)[..., None], 3, 2),
        "segmentation": disc,
        "instances": disc * 9,
    }
    quarter = geometry_ops.about(geometry_ops.rotation(90), 32, 32)
    out = given
    for _ in range(4):
        out = geometry_ops.warp_example(out, quarter, (64, 64))
    np.testing.assert_array_equal(out["segmentation"], disc)
    turned = geometry_ops.warp_example(given, geometry_ops.about(geometry_ops.rotation(30), 32, 32), (64, 64))
    if not np.array_equal(turned["instances"], turned["segmentation"] * 9):
        pytest.fail("geometry_ops.warp_example does not warp 'instances' with the segmentation")
    assert not turned["pixel_valid"][0, 0]
    back = geometry_ops.warp_example(turned, geometry_ops.about(geometry_ops.rotation(-30), 32, 32), (64, 64))
    seen = back["pixel_valid"]
    assert np.mean(back["segmentation"][seen] == disc[seen]) > 0.99


PETS = np.array([[2, 2, 3], [3, 1, 1]], np.uint8)


def test_pets_with_their_border_as_a_class_or_void():
    record = {"image": np.zeros((2, 3, 3), np.uint8), "segmentation_mask": PETS[..., None]}
    as_class = pets.pet_example(record, border="class")
    np.testing.assert_array_equal(as_class["segmentation"], [[0, 0, 2], [2, 1, 1]])
    assert as_class["pixel_valid"].all() and pets.PET_CLASSES == ("background", "pet", "border")
    void = pets.pet_example(record, border="void")
    np.testing.assert_array_equal(void["segmentation"] * void["pixel_valid"], [[0, 0, 0], [0, 1, 1]])
    np.testing.assert_array_equal(void["pixel_valid"], PETS != 3)


def panoptic_record():
    """Segments 7 (a cat), 300 (grass), 70000 (a crowd of people); 5 is in the image and not in the table."""
    ids = np.array([[7, 7, 300], [70000, 5, 300]])
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    objects = {
        "id": np.array([300, 7, 70000]),
        "label": np.array([2, 1, 0]),
        "is_crowd": np.array([False, False, True]),
    }
    return {"image": np.zeros((2, 3, 1), np.uint8), "panoptic_image": colours, "panoptic_objects": objects}


def test_panoptic_segments_become_classes():
    names, lookup = panoptic.panoptic_classes(("person", "cat", "grass"), "panoptic")
    assert names == ("background", "person", "cat", "grass")
    out = panoptic.panoptic_example(panoptic_record(), lookup=lookup)
    np.testing.assert_array_equal(out["pixel_valid"], [[True, True, True], [False, False, True]])
    np.testing.assert_array_equal(out["segmentation"] * out["pixel_valid"], [[2, 2, 3], [0, 0, 3]])
    assert out["image"].shape == (2, 3, 3)


def test_panoptic_as_voc():
    labels = ("person", "cat", "grass", *(n for n in panoptic.VOC_CLASSES[1:] if n not in ("person", "cat")))
    names, lookup = panoptic.panoptic_classes(labels, "voc")
    assert len(names) == 21
    out = panoptic.panoptic_example(panoptic_record(), lookup=lookup)
    assert names[out["segmentation"][0, 0]] == "cat" and names[out["segmentation"][0, 2]] == "background"
    assert out["pixel_valid"][0].all()  # other classes are background, not void
    with pytest.raises(ValueError, match="no classes"):
        panoptic.panoptic_classes(("person",), "voc")


def test_an_image_without_segments_is_void():
    record = {
        **panoptic_record(),
        "panoptic_objects": {"id": np.zeros(0), "label": np.zeros(0), "is_crowd": np.zeros(0)},
    }
    assert not panoptic.panoptic_example(record, lookup=np.arange(3))["pixel_valid"].any()


def test_records_go_through_the_pipeline():
    records = [{"image": np.full((4 + i, 6, 3), i, np.uint8), "segmentation_mask": np.full((4 + i, 6, 1), 1)} for i in range(5)]
    source = tfds.RecordSource(
        records,
        SourceInfo("pets", pets.PET_CLASSES),
        lambda r: pets.pet_example(r, border="void"),
    )
    pipeline = Pipeline(
        source=part(source, "train[:3]"), order=sequential_order(3, 2), seed=0, collate=collate(multiple=8), threads=0
    )
    batch = pipeline.batch(1)
    assert batch["image"].shape == (2, 8, 8, 3) and batch["example_valid"].tolist() == [True, False]
    assert batch["pixel_valid"][0].sum() == 6 * 6 and batch["segmentation"].max() == 1


def test_opening_errors(tmp_path):
    with pytest.raises(ValueError, match="data.manual_dir"):
        open_masks(Request("mask_folder", "train", tmp_path), kind="index")
    with pytest.raises(ValueError, match="data.border='ignore'"):
        pets.open_pets(Request("oxford_iiit_pet", "train", tmp_path), border="ignore")
    with pytest.raises(FileNotFoundError, match="not prepared"):
        panoptic.open_panoptic(Request("coco/2017_panoptic", "train", tmp_path))


def prepare_stand_in(data_dir, full_name, features, records):
    """Writes `records` as the TFDS set "name/config", prepared as the stock builder would, without TensorFlow."""
    core = pytest.importorskip("tensorflow_datasets")
    builder_name, _, config = full_name.partition("/")

    class StandIn(core.core.GeneratorBasedBuilder, skip_registration=True):
        name = builder_name
        VERSION = core.core.Version("1.0.0")
        BUILDER_CONFIGS = [core.core.BuilderConfig(name=config)] if config else []

        @classmethod
        def _get_pkg_dir_path(cls):  # stock metadata beside the class: there are none
            return core.core.Path(data_dir)

        def _info(self):
            return core.core.DatasetInfo(builder=self, features=core.features.FeaturesDict(features(core.features)))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(records)

    tfds.download_and_prepare(StandIn(data_dir=data_dir, file_format=record_format()))


def png(array):
    return cv2.imencode(".png", array[..., ::-1] if array.shape[-1] == 3 else array)[1].tobytes()


def test_a_prepared_pet_set(tmp_path):
    def features(f):
        return {"image": f.Image(), "segmentation_mask": f.Image(shape=(None, None, 1)), "file_name": f.Text()}

    colours = [np.full((2, 3, 3), (10, 20, 30 + i), np.uint8) for i in range(3)]
    records = [{"image": png(c), "segmentation_mask": png(PETS[..., None]), "file_name": "cat.jpg"} for c in colours]
    prepare_stand_in(tmp_path, "oxford_iiit_pet", features, records)
    source = pets.open_pets(Request("oxford_iiit_pet", "train[1:]", tmp_path), border="void")
    assert len(source) == 2 and source.info.class_names == ("background", "pet")
    assert {source[i]["image"][0, 0].tolist()[2] for i in range(2)} < {30, 31, 32}
    np.testing.assert_array_equal(source[0]["pixel_valid"], PETS != 3)
    with pytest.raises(ValueError, match=r"no split 'test'; it has \['train'\]"):
        pets.open_pets(Request("oxford_iiit_pet", "test", tmp_path))


def test_a_prepared_panoptic_set(tmp_path):
    names = ("person", "grass", *(name for name in panoptic.VOC_CLASSES[1:] if name != "person"))

    def features(f):
        segment = {"id": np.int64, "label": f.ClassLabel(names=names), "is_crowd": np.bool_}
        return {
            "image": f.Image(),
            "panoptic_image": f.Image(encoding_format="png"),
            "panoptic_objects": f.Sequence(segment),
        }

    record = panoptic_record()
    segments = [
        {"id": 300, "label": "grass", "is_crowd": False},
        {"id": 7, "label": "cat", "is_crowd": False},
        {"id": 70000, "label": "person", "is_crowd": True},
    ]
    encoded = {"image": png(np.zeros((2, 3, 3), np.uint8)), "panoptic_image": png(record["panoptic_image"])}
    prepare_stand_in(tmp_path, "coco/2017_panoptic", features, [{**encoded, "panoptic_objects": segments}])
    source = panoptic.open_panoptic(Request("coco/2017_panoptic", "train", tmp_path), classes="voc")
    assert source.info.class_names == panoptic.VOC_CLASSES
    cat = panoptic.VOC_CLASSES.index("cat")
    np.testing.assert_array_equal(source[0]["segmentation"] * source[0]["pixel_valid"], [[cat, cat, 0], [0, 0, 0]])
    np.testing.assert_array_equal(source[0]["pixel_valid"], [[True, True, True], [False, False, True]])
