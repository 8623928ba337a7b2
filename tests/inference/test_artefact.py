"""What an exported file must show before it takes its name."""

import json

import numpy as np
import pytest

from imgrec_jax.inference import artefact

IMAGES = np.arange(5 * 4, dtype=np.uint8).reshape(5, 2, 2, 1)


def answers(images):
    return {"probs": np.asarray(images, np.float64).mean((1, 2)), "label": np.asarray(images)[:, 0, 0, 0] % 3}


@pytest.mark.parametrize(
    ("change", "gap"),
    [
        (lambda found: found, {"probs": 0, "label": 0}),
        (lambda found: {**found, "probs": found["probs"] + 0.5}, {"probs": 0.5, "label": 0}),
        (
            lambda found: {**found, "probs": np.where(found["probs"] > 15, np.nan, found["probs"])},
            {"probs": np.nan, "label": 0},
        ),
        (lambda found: {**found, "label": found["label"] + 1}, {"probs": 0, "label": 1}),
        (lambda found: {**found, "label": found["label"][:1]}, {"probs": 0, "label": np.inf}),
    ],
)
def test_every_difference_is_seen(change, gap):
    gaps = artefact.compare(lambda images: change(answers(images)), answers, IMAGES, (2, 3))
    np.testing.assert_equal({name: float(value) for name, value in gaps.items()}, {k: float(v) for k, v in gap.items()})


def test_what_both_do_not_know_is_no_difference():
    nan = {"probs": np.array([np.nan, np.inf, 1.0])}
    assert artefact.differences(nan, nan) == {"probs": 0}


def test_a_description_takes_the_place_of_nothing_else(tmp_path):
    artefact._refuse_to_overwrite(tmp_path / "m.json", tmp_path / "m.onnx")
    for content in (json.dumps({"file": "m.bin"}), "[]", "{", json.dumps({"format": 2})):
        (tmp_path / "m.json").write_text(content)
        with pytest.raises(ValueError, match=r"m\.json, which is of something else"):
            artefact._refuse_to_overwrite(tmp_path / "m.json", tmp_path / "m.onnx")
    (tmp_path / "m.json").write_text(json.dumps({"file": "m.onnx"}))
    artefact._refuse_to_overwrite(tmp_path / "m.json", tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="another suffix"):
        artefact._refuse_to_overwrite(tmp_path / "m.json", tmp_path / "m.json")
