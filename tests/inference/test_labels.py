"""Truth beside images: read as training reads it, found by whatever path the lists give."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from imgrec_jax.data.sets.mask_folder import open_mask_folder
from imgrec_jax.inference.labels import open_labels

BLACK_IS_1 = [255, 255, 255, 0, 0, 0]


def save(path, values, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8))
    if palette is not None:
        image = image.convert("L")
        image.putpalette(palette)
    image.save(path)


COLOURED = [[[0, 0, 0], [0, 0, 0], [255, 255, 255], [255, 0, 0]]]
MASKS = {
    "index": ("index", [[0, 1, 255, 2]], None),
    "grey": ("grey", [[0, 90, 200, 255]], None),
    "instance_map": ("instance_map", [[0, 1, 7, 7]], None),
    "binary": ("binary", [[0, 0, 3, 255]], None),
    "binary RGB": ("binary", COLOURED, None),
    "binary, black is index 1": ("binary", [[0, 0, 1, 1]], BLACK_IS_1),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks_are_those_of_training(tmp_path, case):
    kind, values, palette = MASKS[case]
    save(tmp_path / "images/a.png", np.zeros((1, 4, 3)))
    save(tmp_path / "masks/a.png", values, palette)
    trained_on = open_mask_folder(tmp_path, "all", kind=kind, class_names=("x", "y", "z"), fractions=(("all", 1.0),))[0]
    found = open_labels(tmp_path / "masks", config_of(kind), ("x", "y", "z")).targets(str(tmp_path / "images/a.png"), (1, 4))
    assert set(found) == set(trained_on) - {"image"}
    for key, value in found.items():
        np.testing.assert_array_equal(value, trained_on[key])


@pytest.mark.parametrize("at", [".", "one", "one/masks"])
def test_objects_of_a_file_each_are_those_of_training(tmp_path, at):
    save(tmp_path / "one/images/any.png", np.zeros((1, 4, 3)))
    for number in range(2):
        save(tmp_path / f"one/masks/{number}.png", [[255 * (number == n) for n in range(4)]])
    trained_on = open_mask_folder(tmp_path, "all", kind="instances", fractions=(("all", 1.0),))[0]
    labels = open_labels(tmp_path / at, config_of("instances"), ())
    for image in ("one/images/any.png", "one.png"):
        found = labels.targets(str(tmp_path / image), (1, 4))
        np.testing.assert_array_equal(found["instances"], trained_on["instances"])
        np.testing.assert_array_equal(found["segmentation"], [[1, 1, 0, 0]])


def test_a_mask_that_training_refuses_is_refused(tmp_path):
    save(tmp_path / "a.jpg", np.zeros((4, 4)))
    save(tmp_path / "b_mask.png", np.zeros((4, 5)))
    labels = open_labels(tmp_path, config_of("index"), ())
    with pytest.raises(ValueError, match="lossy JPEG"):
        labels.targets("a.png", (4, 4))
    with pytest.raises(ValueError, match=r"b_mask\.png has \(height, width\) \(4, 5\)"):
        labels.targets("b.png", (4, 4))


def config_of(kind):
    data = {"multi_label": False, "options": {"kind": kind}, "max_pixels": 1000}
    return ConfigDict({"task": "segmentation", "data": data, "model": {"num_classes": 3}})
