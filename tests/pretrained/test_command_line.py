"""The road of a user: a network of the zoo is trained on own images from weights of a file, and its weights go out again."""

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import imgrec_jax
from imgrec_jax import config as configs
from imgrec_jax import export
from imgrec_jax.models import zoo
from imgrec_jax.pretrained.export import torchvision_state
from imgrec_jax.run import loop
from tests.pretrained.test_fit import drawn, shapes_of


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for kind, value in (("dark", 40), ("light", 200)):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for i in range(20):
            image = np.clip(rng.normal(value, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(tmp_path / "data" / kind / f"{i}.png"), image)
    return tmp_path / "data"


@pytest.mark.slow
def test_weights_in_a_run_and_weights_out(folder, tmp_path):
    weights = drawn(shapes_of(zoo.make_classifier("mobilenet_v3_small", num_classes=7)), seed=1)
    save_file(torchvision_state(weights), tmp_path / "in.safetensors")
    config = configs.load("transfer:probe")
    with config.unlocked():
        config.model.name, config.pretrained.path = "mobilenet_v3_small", str(tmp_path / "in.safetensors")
        config.data.manual_dir, config.data.batch_size = str(folder), 8
        config.train.total_epochs, config.train.total_steps = None, 2
        config.eval.every_epochs, config.eval.every_steps = None, 2
        for ops in (config.data.eval_ops.resize, config.data.train_ops.random_affine):
            ops.size = (32, 32)
    experiment = imgrec_jax.build(config)
    loop.train(experiment, tmp_path / "run", lambda line: None)
    run = imgrec_jax.load(tmp_path / "run")
    assert run.started_from["sha256"] and run.config.data.mean == (0.485, 0.456, 0.406)
    export.main([f"--workdir={tmp_path / 'run'}", "--format=torchvision"])
    out = load_file(tmp_path / "run" / "export" / "torchvision.safetensors")
    before = torchvision_state(weights)
    assert out.keys() == before.keys() and out["classifier.3.weight"].shape == (2, 1024)
    # A probe: the body stands still, its statistics included.
    assert all(np.array_equal(out[name], before[name]) for name in before if not name.startswith("classifier.3"))
