"""A run as one StableHLO file: what it answers, what is written beside it, what is refused."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import imgrec_jax
from imgrec_jax import export
from imgrec_jax.inference import artefact, stablehlo

pytest.importorskip("flatbuffers", reason="exported programs are serialised by flatbuffers")


@pytest.fixture(scope="module")
def written(finished, tmp_path_factory):
    """The file of the classification run, of a copy: comparing it may leave files in the workdir."""
    folder = tmp_path_factory.mktemp("export")
    out, copy = folder / "program.bin", shutil.copytree(finished["classification"], folder / "run")
    export.main(["--workdir", str(copy), "--format=stablehlo", "--out", str(out)])
    return out


def test_the_file_answers_as_the_run_does_at_any_size_of_batch(finished, written):
    import jax

    program = jax.export.deserialize(bytearray(written.read_bytes()))
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}
    run = imgrec_jax.load(finished["classification"])
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28, 1), np.uint8)
    for count in (1, 7):
        probs = np.asarray(program.call(images[:count])["probs"])
        np.testing.assert_allclose(probs, [r.probs for r in run.predict(images[:count])], atol=1e-6)


def test_a_json_says_what_goes_in_and_comes_out(written):
    described = json.loads(written.with_suffix(".json").read_text())
    assert described["inputs"]["images"]["shape"] == ["batch", 28, 28, 1]
    assert described["outputs"]["probs"] == {"dtype": "float32", "shape": ["batch", 10]}
    assert described["class_names"] == [str(n) for n in range(10)] and described["checked"]["images"] > 10
    assert max(described["checked"]["largest_difference"].values()) <= 1e-4


def test_the_script_beside_it_needs_no_imgrec(written, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, runpy; sys.modules['imgrec_jax'] = sys.modules['flax'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(written.with_name("run_program.py")), str(tmp_path / "images.npy")]
    done = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "probs (3, 10)" in done.stdout


def test_a_difference_is_an_error_and_what_cannot_be_expressed_is_refused(finished, tmp_path, monkeypatch):
    run = imgrec_jax.load(finished["classification"])
    monkeypatch.setattr(artefact, "compare", lambda *a: {"probs": 2e-4})
    with pytest.raises(ValueError, match="would answer otherwise than the live model .*'probs': 0.0002.*it is not written"):
        stablehlo.write(run, tmp_path / "a.bin")
    assert not list(tmp_path.iterdir())
    with run.config.unlocked():
        run.config.task, run.config.eval.window = "detection", (64, 64)
    with pytest.raises(ValueError, match=r"through windows of \(64, 64\) \(eval.window\), which StableHLO cannot express"):
        stablehlo.write(run, tmp_path / "a.bin")
    with run.config.unlocked():
        run.config.eval.window = ()
    with run.config.unlocked():
        run.config.data.max_proposals = 8
    with pytest.raises(ValueError, match="selective search, a program of OpenCV"):
        stablehlo.write(run, tmp_path / "a.bin")


def test_sizes_of_batches_are_for_formats_that_have_them():
    with pytest.raises(SystemExit, match="--batch_size=4: --format=stablehlo takes batches of any size; leave it out"):
        export.main(["--workdir=x", "--format=stablehlo", "--batch_size=4"])
    with pytest.raises(SystemExit, match="--batch_size=0: expected 1 or more"):
        export.main(["--workdir=x", "--format=onnx", "--batch_size=0"])


def test_without_the_data_it_is_compared_on_the_images_that_the_folder_keeps(finished, monkeypatch):
    def absent(config):
        raise FileNotFoundError("no data")

    run = imgrec_jax.load(finished["classification"])
    from_data, _ = artefact.sample_images(run, 8)
    monkeypatch.setattr(artefact, "open_sources", absent)
    kept, origin = artefact.sample_images(run, 100)
    assert len(kept) == 8 and "folder keeps" in origin
    monkeypatch.setattr(artefact, "open_sources", lambda config: exec("import a_package_that_is_not_there"))
    assert artefact.sample_images(run, 100)[1] == origin
    monkeypatch.setattr(run, "samples", list)
    assert "random ones" in artefact.sample_images(run, 4)[1] and from_data.shape == kept.shape
