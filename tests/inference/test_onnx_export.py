"""A run as one ONNX file under ONNX Runtime: what it answers, what is refused."""

import json
import shutil

import numpy as np
import pytest

import imgrec_jax
from imgrec_jax import export
from imgrec_jax.inference import artefact

pytest.importorskip("jax2onnx", reason="jax2onnx, of imgrec-jax[onnx], is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime, of imgrec-jax[onnx], is not installed")


def exported(finished, task, folder, *flags):
    copy = shutil.copytree(finished[task], folder / "run")
    export.main(["--workdir", str(copy), "--format=onnx", *flags])
    return copy / "export"


@pytest.mark.parametrize("task", ["classification", pytest.param("segmentation", marks=pytest.mark.slow)])
def test_one_file_takes_batches_of_any_size(finished, tmp_path, task):
    folder = exported(finished, task, tmp_path)
    session = onnxruntime.InferenceSession(str(folder / "onnx.onnx"))
    described = json.loads((folder / "onnx.json").read_text())
    run = imgrec_jax.load(finished[task])
    shape = described["inputs"]["images"]["shape"]
    assert shape[0] == "batch" and [output.name for output in session.get_outputs()] == sorted(described["outputs"])
    live = artefact.answers_of(run, tuple(shape[1:]))
    for count in (1, 3):
        images = np.random.default_rng(count).integers(0, 256, (count, *shape[1:]), np.uint8)
        answers = session.run(["probs"], {"images": images})[0]
        np.testing.assert_allclose(answers, live(images)["probs"], atol=1e-5)


@pytest.mark.slow
def test_a_detector_has_its_suppression_inside_and_one_size_of_batch(finished, tmp_path):
    folder = exported(finished, "detection", tmp_path, "--batch_size=2")
    described = json.loads((folder / "onnx_batch2.json").read_text())
    assert described["inputs"]["images"]["shape"][0] == 2
    assert described["checked"]["largest_difference"]["boxes"] <= 1e-2
    assert described["checked"]["largest_difference"]["valid"] == 0


def test_what_onnx_cannot_express_is_refused_with_the_reason(finished, tmp_path, monkeypatch):
    run = imgrec_jax.load(finished["classification"])
    from imgrec_jax.inference import onnx_export

    monkeypatch.setattr(onnx_export.primitives, "called", lambda *a: 1 / 0)
    with pytest.raises(ValueError, match=" cannot be written as ONNX, ZeroDivisionError: division by zero; --format="):
        onnx_export.write(run, tmp_path / "a.onnx")
    with run.config.unlocked():
        run.config.data.max_proposals = 8
    with pytest.raises(ValueError, match="selective search, a program of OpenCV that ONNX cannot express"):
        onnx_export.write(run, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
