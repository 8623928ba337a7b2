"""What an exported file must show before it takes its name."""

import ast
import contextlib
import dataclasses
import json
import socket
import subprocess
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

import imgrec_jax
from imgrec_jax import export
from imgrec_jax.assemble import preprocess
from imgrec_jax.inference import artefact, onnx_export, stablehlo
from imgrec_jax.pages import report
from tests import small_runs

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


def test_what_lies_beside_a_file_takes_the_place_of_nothing_else(tmp_path):
    out, script = tmp_path / "m.onnx", tmp_path / "run_m.py"
    artefact.refuse_to_overwrite(out)
    for content in (json.dumps({"file": "m.bin"}), "[]", "{", json.dumps({"format": 2})):
        (tmp_path / "m.json").write_text(content)
        with pytest.raises(ValueError, match=r"m\.json, which is of something else"):
            artefact.refuse_to_overwrite(out)
    (tmp_path / "m.json").write_text(json.dumps({"file": "m.onnx"}))
    artefact.refuse_to_overwrite(out)
    script.write_text("print('two days of work')\n")
    with pytest.raises(ValueError, match=r"m\.onnx would come with .*run_m\.py, which is something else; give another name"):
        artefact.deliver(None, out, None, IMAGES, "the test split")
    script.write_text(stablehlo._SCRIPT.format(name="m.onnx", script="run_m.py", shape=[1], zeros=(1,)))
    artefact.refuse_to_overwrite(out)
    with pytest.raises(ValueError, match="another suffix"):
        artefact.refuse_to_overwrite(tmp_path / "m.json")
    with pytest.raises(ValueError, match="is a folder; give the name of a file"):
        artefact.refuse_to_overwrite(tmp_path)


@pytest.mark.parametrize("template", [stablehlo._SCRIPT, onnx_export._SCRIPT])
@pytest.mark.parametrize("name", ['a"""b.bin', "a'b.bin", "a\\b.bin", "a{0}b.bin", "a\nb.bin", "größe 😀.bin", 'end"'])
def test_a_script_is_python_whatever_its_file_is_called(template, name):
    names = {"name": artefact._in_quotes(name), "script": artefact._in_quotes(f"run_{name}.py")}
    tree = ast.parse(template.format(**names, shape=[1, 2, 2, 1], zeros=(1, 2, 2, 1)))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert name in texts and texts[0].startswith(f"Runs {name} on an image: python run_{name}.py ")


def made_of(program):
    return artefact.Artefact(b"x", lambda path: program, program, (2,), 2, "{name}", {})


@pytest.mark.parametrize(("best", "said"), [((0.5,), ""), ((0.0, 0.04), "with a score threshold of 0.02, too)")])
def test_a_detector_that_finds_nothing_is_compared_at_a_lower_threshold(monkeypatch, tmp_path, best, said):
    """So that a file whose boxes are wrong is seen, though none of them passes the run's own threshold."""

    def boxes(count):
        return lambda images: {"boxes": np.full((len(images), 1, 4), float(count)), "scores": np.zeros((len(images), 1))}

    scores, run = list(best), SimpleNamespace(config=SimpleNamespace(task="detection"), workdir="runs/x", lower=False)
    monkeypatch.setattr(artefact, "_best_score", lambda *_: scores.pop(0))
    monkeypatch.setattr(artefact, "_with_threshold", lambda run, score: SimpleNamespace(**{**vars(run), "lower": True}))
    monkeypatch.setattr(artefact.jax, "jit", lambda function: function)
    monkeypatch.setattr(artefact, "_described", lambda run, out, made, shape, checked: checked)
    text = artefact.deliver(run, tmp_path / "a.bin", lambda run: made_of(boxes(run.lower)), IMAGES, "the test split")
    assert text.endswith(said or "scores 0.0e+00") and (tmp_path / "a.bin").exists()

    def wrong(run):
        return dataclasses.replace(made_of(boxes(0)), function=boxes(1)) if run.lower else made_of(boxes(0))

    scores[:] = [0.0, 0.04]
    with pytest.raises(ValueError, match="would answer otherwise than the live model .*'boxes': 1.0"):
        artefact.deliver(run, tmp_path / "b.bin", wrong, IMAGES, "the test split")
    scores[:] = [0.0, 0.0]
    with pytest.raises(ValueError, match="finds no box on 5 images at any score; train it before it is exported"):
        artefact.deliver(run, tmp_path / "c.bin", wrong, IMAGES, "the test split")
    assert not list(tmp_path.glob("[bc].*"))


@pytest.mark.parametrize("depth", [8, 16])
def test_samples_of_16_bits_are_rounded_and_it_is_said(monkeypatch, depth):
    values = np.arange(5 * 4).reshape(5, 2, 2, 1) / np.float32(19)
    stored = list(values if depth == 16 else IMAGES)
    batch = lambda examples, *_: {"image": np.stack([example["image"] for example in examples])}  # noqa: E731
    run = SimpleNamespace(
        workdir="runs/a", config=SimpleNamespace(task="classification"), image_shape=(2, 2, 1), carried=contextlib.nullcontext,
        evaluates_at_a_size=True,
        as_image=lambda image, name: image, example=lambda image, name, targets: {"image": image},
        preprocess=SimpleNamespace(batch=batch),
    )  # fmt: skip
    monkeypatch.setattr(artefact.assemble, "complete", lambda config: config)
    monkeypatch.setattr(artefact, "open_sources", lambda config: (None, {"test": [{"image": image} for image in stored]}))
    images, origin = artefact.sample_images(run, 4)
    np.testing.assert_array_equal(images, np.rint(values[:4] * 255) if depth == 16 else IMAGES[:4])
    assert images.dtype == np.uint8 and origin.startswith("the test split") and ("rounded to 8 bits" in origin) == (depth == 16)
    stored[0] = np.full((2, 2, 1), -1.5, np.float32)
    with pytest.raises(ValueError, match=r"runs/a, the test split: the network takes images of values -1\.5 to -1\.5"):
        artefact.sample_images(run, 4)


def source_of(images, **meta):
    class Source(list):
        info = SimpleNamespace(meta=meta)

    return Source({"image": image} for image in images)


def test_the_size_of_a_file_is_that_of_the_evaluation_whatever_is_trained_on(small_data):
    image = lambda *size: np.zeros((*size, 3), np.uint8)  # noqa: E731
    config = small_runs.config_of("segmentation", "nowhere", data__pad_multiple=16)
    config.data.train_ops = ConfigDict({"random_resized_crop": {"size": (16, 16)}})
    for sizes, size in (
        ([(60, 44)] * 3, (64, 48)),
        ([(16, 16), (48, 32), (16, 16)], (16, 16)),
        ([(9, 9), (16, 48), (48, 16)], (48, 16)),
    ):
        found = preprocess.shapes(config, source_of([image(*size) for size in sizes]), 3)
        assert found["eval_shape"] == [*size, 3] and (found["stored_shape"] == [*sizes[0], 3]) == (len(set(sizes)) == 1)
    config = small_runs.config_of("detection", "nowhere", data__min_size=(64,), data__max_size=96)
    for canvases in (((64, 96), (96, 64)), ((96, 64), (64, 96))):
        config.data.canvases = canvases
        for sizes in ([(96, 64), (64, 96), (60, 90)], [(64, 96), (96, 64), (60, 90)], [(60, 90), (66, 99), (96, 64)]):
            annotations = SimpleNamespace(sizes=np.array(sizes))
            assert preprocess.shapes(config, source_of([image(8, 8)], annotations=annotations), 3)["eval_shape"] == [64, 96, 3]


def test_a_file_of_another_size_and_why_it_has_one(finished, monkeypatch, tmp_path):
    run = imgrec_jax.load(finished["classification"])
    assert artefact.size_taken(run) == ((28, 28), "to which its evaluation brings every image")
    with pytest.raises(ValueError, match=r"--image_size=30,28: .* takes no such images .* its own are of 28 x 28"):
        artefact.size_taken(run, (30, 28))
    monkeypatch.setattr(artefact, "answers_of", lambda run, shape: lambda images: images)
    images, origin = artefact.sample_images(run, 4, (30, 28))
    assert images.shape == (4, 30, 28, 1) and origin == "the test split; stretched to 30 x 28"
    assert artefact.size_taken(run, (30, 28)) == ((30, 28), "as --image_size says")
    monkeypatch.setattr(artefact, "deliver", lambda run, out, make, images, origin: f"wrote {make(run)}")
    said = artefact.write(run, tmp_path / "a.bin", lambda run, images: images.shape, (30, 28))
    assert said == "wrote (60, 30, 28, 1)\nit takes images of 30 x 28 pixels: as --image_size says"
    del run._card["eval_shape"]
    assert artefact.size_taken(run)[1].startswith("that of a training batch")
    with pytest.raises(SystemExit, match="--image_size=8,9: --format=torchvision writes weights alone"):
        export.main(["--workdir=x", "--format=torchvision", "--image_size=8,9"])


def test_nothing_is_fetched_or_prepared_for_a_file_or_a_report(finished, monkeypatch, tmp_path):
    run, said = imgrec_jax.load(finished["classification"]), list[str]()

    def fetched(*given, **options):
        raise AssertionError(f"reaches for {given}")

    monkeypatch.setattr(urllib.request, "urlopen", fetched)
    monkeypatch.setattr(subprocess, "run", fetched)
    monkeypatch.setattr(socket, "create_connection", fetched)
    monkeypatch.setenv("IMGREC_WEIGHTS", str(tmp_path / "cache"))
    for name, weights in (("mnist", ""), ("cifar10", ""), ("digit_scenes", ""), ("mnist", "hf:timm/resnet18.a1_in1k")):
        with run.config.unlocked():
            run.config.data.name, run.config.data.data_dir, run.config.pretrained.path = name, str(tmp_path / "none"), weights
            run.config.data.mean, run.config.data.std = (0.0,), (1.0,)  # which weights would tell
        assert artefact.sample_images(run, 4)[1] == "those that the folder keeps; the data are not here"
        assert report.gather(run, said.append) == [] and report._training_batch(run, said.append) == ""
        report._completed(run)
    assert not list(tmp_path.iterdir()) and all("is neither fetched nor prepared" in line for line in said[:2])


@pytest.mark.slow
def test_a_threshold_that_no_box_passes(finished, tmp_path):
    run = imgrec_jax.load(finished["detection"])
    silent = artefact._with_threshold(run, 0.999)
    images, origin = artefact.sample_images(run, 4)
    assert artefact._best_score(run, images, 4) > 0 and artefact._best_score(silent, images, 4) == 0
    text = artefact.deliver(silent, tmp_path / "a.bin", lambda run: stablehlo.make(run, images), images, origin)
    assert "the run finds no box there; compared with a score threshold of" in text
