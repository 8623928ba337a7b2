"""Models, losses, ops, optimisers and sets of the user's own, by the name of their file; kept with the run, and run only where
somebody says so."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

import imgrec_jax
from imgrec_jax import assemble
from imgrec_jax.assemble.components import complete, switch
from imgrec_jax.assemble.lookup import ConfigError
from imgrec_jax.assemble.ops import OPS, make_ops
from imgrec_jax.config import is_own, override
from imgrec_jax.inference import artefact
from imgrec_jax.losses import softmax_cross_entropy
from imgrec_jax.pages import evidence, report
from imgrec_jax.run.workdir import WorkdirError, read_config
from imgrec_jax.segmentation.losses import loss_of_pixels, segmentation_loss
from tests import small_runs

PARTS = '''
import optax
from imgrec_jax import losses
from imgrec_jax.data.ops import geometry
from imgrec_jax.data.sets import mnist
from imgrec_jax.models.mlp import Mlp

class Net(Mlp):
    """The package's own under another name."""

def loss(logits, label, label_smoothing: float = 0.0):
    return losses.softmax_cross_entropy(logits, label, label_smoothing)

def optimiser(learning_rate, momentum: float | None = None, nesterov: bool = False):
    return optax.sgd(learning_rate, momentum, nesterov)

def affine(rotate: float = 0.0):
    return geometry.random_affine(rotate=rotate)

def digits(request):
    return mnist.open_digits(request._replace(name="mnist:3.0.1"))
'''
QUIET = lambda line: None  # noqa: E731


@pytest.fixture
def parts(tmp_path) -> Path:
    file = tmp_path / "my parts.py"
    file.write_text(PARTS)
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_runs.MAKERS["classification"](tmp_path_factory.mktemp("data"))


def own_config(parts: Path, data: Path) -> ConfigDict:
    config = small_runs.config_of("classification", data, model__name=f"{parts}:Net", loss__name=f"{parts}:loss")
    with config.unlocked():
        config.optim.name, config.data.name = f"{parts}:optimiser", f"{parts}:digits"
        config.data.train_ops.turn = ConfigDict({"op": f"{parts}:affine", "rotate": 8.0})
    return config


def train(config: ConfigDict, workdir: Path) -> dict:
    return imgrec_jax.train(imgrec_jax.build(config), workdir, QUIET)


def without_seconds(workdir: Path) -> list[dict]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if not k.endswith(("_per_second", "seconds", "share"))} for line in lines]


def test_own_parts_of_every_kind_train_as_the_package_s(parts, data, tmp_path):
    plain = small_runs.config_of("classification", data)
    with plain.unlocked():
        plain.data.train_ops.random_affine = ConfigDict({"rotate": 8.0})
    assert train(own_config(parts, data), tmp_path / "own") == train(plain, tmp_path / "plain")
    assert without_seconds(tmp_path / "own") == without_seconds(tmp_path / "plain")
    code = json.loads((tmp_path / "own" / "run.json").read_text())["code"]
    assert set(code) == {f"{parts}:{name}" for name in ("Net", "loss", "optimiser", "affine", "digits")}
    assert {(tmp_path / "own" / part["copy"]).read_text() for part in code.values()} == {PARTS}


def test_a_run_with_own_code_opens_only_where_that_is_said_and_from_its_copy(parts, data, tmp_path):
    train(own_config(parts, data), tmp_path / "run")
    before = imgrec_jax.load(tmp_path / "run", allow_code=True)
    image = np.zeros((1, 28, 28, 1), np.uint8)
    moved = tmp_path / "elsewhere" / "run"
    shutil.move(tmp_path / "run", moved)
    parts.unlink()
    with pytest.raises(ConfigError, match=r"(?s)code of its own \(model.name=.*elsewhere/run/code/my parts_.*--allow_code"):
        imgrec_jax.load(moved)
    run = imgrec_jax.load(moved, allow_code=True)
    np.testing.assert_array_equal(run.predict(image)[0].probs, before.predict(image)[0].probs)
    copy = next((moved / "code").iterdir())
    copy.write_text(PARTS + "\n")
    with pytest.raises(ConfigError, match="is not what this run kept"):
        imgrec_jax.load(moved, allow_code=True)


@pytest.mark.parametrize("there", ["another", "gone"])
def test_reports_and_exports_run_the_copy_that_was_looked_at(parts, data, tmp_path, there):
    train(own_config(parts, data), tmp_path / "run")
    moved = shutil.move(tmp_path / "run", tmp_path / "moved")
    parts.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + PARTS)
    if there == "gone":
        parts.unlink()
    run = imgrec_jax.load(moved, allow_code=True)
    assert list(evidence.splits(run)) == ["test", "validation"]
    said: list[str] = []
    assert "<img" in report._training_batch(run, said.append) and said == []
    assert "the same config" in report._differences(["a", "b"], [run, run])
    images, origin = artefact.sample_images(run, 4)
    assert origin == "the test split" and len(images) == 4
    assert not (tmp_path / "ran").exists()


def test_the_command_goes_on_and_evaluates_from_the_copy(parts, data, tmp_path):
    train(own_config(parts, data), tmp_path / "run")
    parts.unlink()
    command = [*small_runs.command("classification", data, tmp_path / "run")[:3], f"--workdir={tmp_path / 'run'}"]
    status, _, error = small_runs.run([*command, "--mode=eval"])
    assert status == 1 and error.startswith("error: the run in") and error.count("\n") == 1
    status, out, error = small_runs.run([*command, "--mode=eval", "--allow_code"])
    assert status == 0, error
    stored = read_config(tmp_path / "run")
    assert stored.model.name == f"{parts}:Net" and "test: average loss" in out
    code = small_runs.contents(tmp_path / "run" / "code")
    status, out, error = small_runs.run([*command, "--restart", "--allow_code"])  # from the copies that are moved
    assert status == 0 and "is kept in" in out, error
    kept = tmp_path / "run" / "before_restart_1" / "code"
    assert small_runs.contents(tmp_path / "run" / "code") == code == small_runs.contents(kept)


def test_changed_code_is_not_gone_on_with(parts, data, tmp_path):
    train(own_config(parts, data), tmp_path / "run")
    parts.write_text(PARTS.replace("softmax_cross_entropy(logits", "softmax_cross_entropy(2 * logits"))
    experiment = imgrec_jax.build(own_config(parts, data))
    with pytest.raises(WorkdirError, match=r"(?s)the code is not that of the run.*my parts.py is another.*code/my parts_"):
        imgrec_jax.train(experiment, tmp_path / "run", QUIET)
    with pytest.raises(WorkdirError, match="is another than at the start"):
        imgrec_jax.evaluate(experiment, tmp_path / "run")


def test_a_workdir_s_code_does_not_run_to_be_compared(parts, data, tmp_path):
    train(own_config(parts, data), tmp_path / "run")
    parts.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(WorkdirError, match=r"(?s)holds a run of another config.*model.name: .*my parts.py:Net -> linear"):
        train(small_runs.config_of("classification", data), tmp_path / "run")
    with pytest.raises(ConfigError):
        imgrec_jax.load(tmp_path / "run")
    assert not (tmp_path / "ran").exists()


def test_an_own_loss_of_pixels_is_their_mean(tmp_path):
    (tmp_path / "parts.py").write_text(PARTS)
    data = small_runs.MAKERS["segmentation"](tmp_path / "data")
    own = small_runs.config_of("segmentation", data)
    own.loss = ConfigDict({"name": f"{tmp_path / 'parts.py'}:loss", "label_smoothing": 0.1})
    assemble.check(complete(own))
    rng = np.random.default_rng(0)
    logits, label = rng.standard_normal((2, 4, 5, 3)).astype(np.float32), rng.integers(0, 3, (2, 4, 5))
    valid, weight = rng.random((2, 4, 5)) < 0.7, rng.random((2, 4, 5)).astype(np.float32)
    for pixel_weight in (None, weight):
        given = loss_of_pixels(softmax_cross_entropy, logits, label, valid, pixel_weight)
        want = segmentation_loss(logits, label, valid, pixel_weight)
        np.testing.assert_allclose(given.value(), want.value(), rtol=1e-6)


def test_own_ops_come_after_all_others_or_before_a_named_one(tmp_path):
    (tmp_path / "ops.py").write_text(
        "def add(value: int):\n    return lambda example, rng: {**example, 'seen': (*example.get('seen', ()), value)}\n"
    )
    op = f"{tmp_path / 'ops.py'}:add"
    section = ConfigDict({
        "b": {"op": op, "value": 2}, "a": {"op": op, "value": 1}, "erase": {}, "c": {"op": op, "value": 3, "before": "erase"},
    })  # fmt: skip
    example = {"image": np.zeros((8, 8, 1), np.uint8)}
    for made in make_ops("data.train_ops", section):
        example = made(example, np.random.default_rng(0))
    assert example["seen"] == (3, 1, 2)
    assert list(OPS)[-1] == "erase"


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "none.py:Net", r"there is no file .*none\.py"),
        ("", "{file}:Net", r"has no Net; it defines \[\]"),
        ("Net = 3", "{file}:Net", "is int; expected a class or a function"),
        ("x = 1\nNet = (", "{file}:Net", r"parts\.py cannot be imported: SyntaxError in line 2"),
        ("import not_there", "{file}:Net", r"parts\.py cannot be imported: ModuleNotFoundError in line 1: No module"),
        ("x = 1\n1 / 0", "{file}:Net", r"parts\.py cannot be imported: ZeroDivisionError in line 2"),
        (None, "not_there.nets:Net", "import not_there.nets fails: ModuleNotFoundError"),
        ("def Net(dtype=None): ...", "{file}:Net", "takes no num_classes"),
        ("def Net(num_classes, dtype):\n    raise ValueError('no')", "{file}:Net", r"parts\.py:Net: no \(.*parts\.py line 2"),
        ("def Net(num_classes): ...", "{file}:Net", "takes no dtype"),
        ("def Net(num_classes, dtype):\n    return lambda x: x", "{file}:Net", r"cannot be called; expected __call__"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_own_code_is_named(tmp_path, content, name, message):
    file = tmp_path / "parts.py"
    if content is not None:
        file.write_text(content)
    config = small_runs.config_of("classification", tmp_path, dtype="bfloat16")
    with pytest.raises(ConfigError, match=message):
        switch(config, "model.name", name.format(file=file))
        assemble.build(config)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "def flip(example):\n    return example",
            r"missing 1 required positional argument: 'example'.*; expected a function of",
        ),
        (
            "def flip():\n    return lambda example: example",
            r"what .*parts\.py:flip returns is no op; expected .*\(example, rng\)",
        ),
        ("def flip(): ...", "returns is no op"),
    ],
)
def test_an_own_function_that_is_no_op_is_told_what_one_is(tmp_path, content, message):
    (tmp_path / "parts.py").write_text(content)
    with pytest.raises(ConfigError, match=message):
        make_ops("data.train_ops", ConfigDict({"flip": {"op": f"{tmp_path / 'parts.py'}:flip"}}))


def test_an_own_op_by_the_command_line(parts, data):
    config = complete(small_runs.config_of("classification", data))
    override(config, "data.train_ops.turn", f"{{'op': '{parts}:affine'}}")
    assert complete(config).data.train_ops.turn.to_dict() == {"op": f"{parts}:affine", "before": "", "rotate": 0.0}
    for name, given, message in [
        ("erase", {"op": f"{parts}:affine"}, "is an op of imgrec_jax"),
        ("turn", {"op": "affine"}, r"expected my_file\.py:name"),
        ("turn", {"op": f"{parts}:affine", "before": "nothing"}, "before='nothing' is unknown"),
        ("turn", {"op": f"{parts}:affine", "scale": 2}, r"takes no \['scale'\]"),
        ("turn", {}, r"data\.train_ops\.turn is unknown; choose one of"),
    ]:
        with pytest.raises(ConfigError, match=message):
            make_ops("data.train_ops", ConfigDict({name: given}))


@pytest.mark.parametrize(
    "option", ["scale: float = 1.5", "size: int = 64", "fill: str = 'mean'", "channels: int = 4", "probability: int = 7"]
)
def test_options_of_own_ops_are_their_own(data, tmp_path, option):
    file = tmp_path / "free.py"
    file.write_text(f"def op({option}):\n    return lambda example, rng: example\n")
    config = small_runs.config_of("classification", data)
    override(config, "data.train_ops.mine", f"{{'op': '{file}:op'}}")
    assemble.check(complete(config))


@pytest.mark.parametrize("name", ["mnist:3.0.1", "coco/2017", "coco/2017:1.1.0", "linear", "cifar10:latest.1", "", None])
def test_names_of_sets_and_versions_are_no_code(name):
    assert not is_own(name)


def test_what_a_workdir_found_is_remembered_without_running_its_code(parts, data, tmp_path):
    train(own_config(parts, data), tmp_path / "run")
    parts.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    stored, plain = read_config(tmp_path / "run"), small_runs.config_of("classification", data)
    assemble.remembered(plain, stored)
    assert not (tmp_path / "ran").exists()
