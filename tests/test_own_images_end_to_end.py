"""From own files to a score, in one go: what an evaluation writes is scikit-learn's on the same predictions."""

import json
import sys
import zipfile

import numpy as np
import pytest
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder
from sklearn import metrics as sk

import imgrec_jax
from imgrec_jax import assemble
from imgrec_jax.config import load
from imgrec_jax.run import loop
from tests import small_runs
from tests.data.own.make import encoded, folder, pixels, write

SMALL = {"train__total_epochs": 3.0, "log__tensorboard": False, "data__threads": 0}


def config_of(data, variant="", **changes):
    config = load(f"image_folder{':' * bool(variant)}{variant}")
    config.data.manual_dir, config.data.data_dir = str(data), str(data.parent / "cache")
    with config.unlocked(), config.ignore_type():
        config.model = ConfigDict({"name": "mlp", "num_classes": placeholder(int), "hidden": (16,)})  # compiles in no time
        for key, value in {**SMALL, **changes}.items():
            *sections, name = key.split("__")
            section = config
            for part in sections:
                section = section[part]
            section[name] = value
    return config


def trained(config, workdir):
    """(results, probabilities and targets of the test split as the run itself predicts them from the files)."""
    experiment = assemble.build(config)
    results = loop.train(experiment, workdir, lambda line: None)
    source = experiment.data.evals["test"].source
    run = imgrec_jax.load(workdir, "last")
    answers = run.predict([source[i]["image"] for i in range(len(source))])
    return results, np.array([a.probs for a in answers], np.float64), source


@pytest.fixture
def skewed(tmp_path):
    """Two classes of 60 and 15, hard to tell apart, in patients of three pictures each."""
    rng = np.random.default_rng(0)
    for p in range(25):
        label = "well" if p < 20 else "ill"
        tone = rng.integers(-40, 41)
        for n in range(3):
            image = np.clip(110 + 25 * (label == "ill") + tone + rng.integers(-30, 31, (12, 12)), 0, 255).astype(np.uint8)
            write(tmp_path / "d" / label / f"p{p:02}_{n}.png", encoded(image))
    return tmp_path / "d"


def expected_of_two(probs, truth, positive, values):
    said = probs[:, positive] >= values["threshold"]
    yes = truth == positive
    assert values["auc"] == pytest.approx(sk.roc_auc_score(yes, probs[:, positive]), abs=1e-9)
    assert values["recall"] == pytest.approx(sk.recall_score(yes, said), abs=1e-12)
    assert values["specificity"] == pytest.approx(sk.recall_score(~yes, ~said), abs=1e-12)
    assert values["precision"] is None or values["precision"] == pytest.approx(sk.precision_score(yes, said), abs=1e-12)
    assert values["f1"] == pytest.approx(sk.f1_score(yes, said), abs=1e-12)
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(truth, probs.argmax(1)), abs=1e-12)


@pytest.mark.parametrize("balance", [{}, {"data__balance": 1.0}, {"data__balance": 0.5, "data__balance_by": "sampling"}])
def test_a_skewed_folder_with_groups(skewed, tmp_path, balance):
    changes = {"data__group": r"(p\d+)_", "eval__positive": "ill", "select__metric": "auc", **balance}
    options = {"data__options": load("image_folder").data.options, "train__total_epochs": 4.0}
    config = config_of(skewed, **changes, **options)
    config.data.options = {"fractions": (0.6, 0.2, 0.2)}
    results, probs, source = trained(config, tmp_path / "run")
    truth = np.array([source[i]["label"] for i in range(len(source))])
    assert source.info.class_names == ("ill", "well") and len(source) == 15
    values = results["test"]
    expected_of_two(probs, truth, 0, values)
    for name in ("accuracy", "accuracy_groups", "auc", "auc_groups"):
        assert values[f"{name}_low"] is None or values[f"{name}_low"] <= values[f"{name}_high"]
    assert values["accuracy_groups_low"] is not None
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["split"] for line in lines} >= {"validation", "test", "best_test"}


def test_the_threshold_of_the_best_state_is_that_of_its_own_validation(skewed, tmp_path):
    config = config_of(skewed, select__metric="auc", train__total_epochs=5.0)
    config.data.options = {"fractions": (0.6, 0.2, 0.2)}
    experiment = assemble.build(config)
    loop.train(experiment, tmp_path / "run", lambda line: None)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = next(line for line in lines if line["split"] == "best_test")
    then = next(line for line in lines if line["split"] == "validation" and line["step"] == best["step"])
    assert best["threshold"] == pytest.approx(then["threshold"], abs=1e-6)


def test_class_weights_and_balanced_sampling():
    from imgrec_jax.assemble.preprocess import class_weights
    from imgrec_jax.data.pipeline import balanced_order

    labels = np.array([0] * 90 + [1] * 10)
    assert class_weights(labels, "ab", 1.0) == pytest.approx([100 / 180, 100 / 20])
    assert class_weights(labels, "ab", 0.0) == pytest.approx([1, 1])
    half = class_weights(labels, "ab", 0.5)
    assert half[1] / half[0] == pytest.approx(3) and half[labels].mean() == pytest.approx(1)
    order = balanced_order(class_weights(labels, "ab", 1.0)[labels], 10, 0, "pad")
    drawn = order(0).indices.ravel()
    assert abs((labels[drawn] == 1).sum() - 50) <= 1
    assert np.bincount(drawn[labels[drawn] == 1] - 90).tolist() == [5] * 10
    np.testing.assert_array_equal(drawn, order(0).indices.ravel())
    assert (order(1).indices.ravel() != drawn).any()
    assert sorted(balanced_order(np.ones(100), 10, 0, "pad")(3).indices.ravel()) == list(range(100))


def test_several_labels_with_unknown_ones(tmp_path):
    rng, rows = np.random.default_rng(0), ["file,red,green,dark"]
    for n in range(80):
        yes = rng.random(3) < (0.5, 0.3, 0.4)
        image = np.clip(
            np.array([90, 90, 60]) + (110 * yes[0], 110 * yes[1], 0) - 50 * yes[2] + rng.integers(-60, 61, (12, 12, 3)), 0, 255
        )
        write(tmp_path / "i" / f"{n}.png", encoded(image.astype(np.uint8)))
        cells = [("" if rng.random() < 0.5 else "-1") if rng.random() < 0.25 else str(int(y)) for y in yes]
        rows.append(f"i/{n}.png,{','.join(cells)}")
    table = write(tmp_path / "t.csv", "\n".join(rows).encode())
    config = config_of(table, "multi_label", data__balance=0.5)
    config.data.options = {"fractions": (0.5, 0.2, 0.3)}
    results, probs, source = trained(config, tmp_path / "run")
    labels = np.array([source[i]["labels"] for i in range(len(source))])
    known = np.array([source[i]["label_known"] for i in range(len(source))])
    assert not known.all() and source.info.class_names == ("red", "green", "dark")
    aps = [sk.average_precision_score(labels[known[:, n], n], probs[known[:, n], n]) for n in range(3)]
    f1s = [sk.f1_score(labels[known[:, n], n], probs[known[:, n], n] > 0.5) for n in range(3)]
    values = results["test"]
    assert values["mAP"] == pytest.approx(np.mean(aps), abs=1e-9)
    assert values["f1_macro"] == pytest.approx(np.mean(f1s), abs=1e-9)
    for n, name in enumerate(("red", "green", "dark")):
        assert values["per_label"][name]["AP"] == pytest.approx(aps[n], abs=1e-9)
        assert values["per_label"][name]["known"] == known[:, n].sum()
    answer = imgrec_jax.load(tmp_path / "run").predict([source[0]["image"]])[0]
    assert list(answer.names) == [n for n, p in zip(source.info.class_names, answer.probs, strict=True) if p > 0.5]
    with pytest.raises(ValueError, match="use --config=configs/image_folder.py:multi_label"):
        assemble.build(config_of(table))


def test_more_test_sets_are_reported_and_choose_nothing(tmp_path, capsys):
    root = folder(tmp_path / "d", {"cat": 20, "dog": 20}, size=(12, 12))
    folder(tmp_path / "east", {"dog": 6}, start=60, size=(30, 20))
    folder(tmp_path / "west", {"dog": 6, "cat": 2}, start=18, size=(12, 12))
    config = config_of(root)
    config.data.test_sets = {"east": str(tmp_path / "east"), "west": str(tmp_path / "west")}
    experiment = assemble.build(config)
    assert {name: len(p.source) for name, p in experiment.data.evals.items()} == {
        "validation": 4,
        "test": 4,
        "east": 6,
        "west": 8,
    }
    assert [experiment.data.evals["east"].source[i]["label"] for i in range(6)] == [1] * 6
    assert "files are equal to ones that are trained on or chosen by: " in capsys.readouterr().err
    results = loop.train(experiment, tmp_path / "run", lambda line: None)
    assert {"validation", "test", "east", "west", "best_test", "best_east", "best_west"} <= set(results)
    folder(tmp_path / "north", {"fox": 2})
    config.data.test_sets = {"north": str(tmp_path / "north")}
    with pytest.raises(ValueError, match="class 'fox' .*which training does not know"):
        assemble.build(config)


@pytest.mark.parametrize("kind", ["zip", "npz", "deep"])
def test_zip_npz_and_16_bits(tmp_path, kind):
    counts = {"cat": 20, "dog": 20, "emu": 20}
    root = folder(tmp_path / "d", counts, size=(12, 12))
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for file in sorted(root.rglob("*.png")):
                archive.write(file, file.relative_to(tmp_path))
        root = tmp_path / "a.zip"
    elif kind == "npz":
        images = np.stack([pixels(label, n, (12, 12)) for label in counts for n in range(20)])
        np.savez(tmp_path / "a.npz", images=images, labels=np.repeat([0, 1, 2], 20), class_names=np.array(list(counts)))
        root = tmp_path / "a.npz"
    else:
        import cv2

        for label in counts:
            for n in range(20):
                deep = pixels(label, n, (12, 12))[..., ::-1].astype(np.uint16) * 200
                (root / label / f"{n:03}.png").write_bytes(cv2.imencode(".png", deep)[1].tobytes())
    config = config_of(root)
    results, probs, source = trained(config, tmp_path / "run")
    truth = np.array([source[i]["label"] for i in range(len(source))])
    assert source.info.class_names == ("cat", "dog", "emu")
    assert source[0]["image"].dtype == (np.float32 if kind == "deep" else np.uint8)
    assert results["test"]["accuracy"] == pytest.approx(sk.accuracy_score(truth, probs.argmax(1)))
    assert results["test"]["confusion_matrix"] == sk.confusion_matrix(truth, probs.argmax(1), labels=[0, 1, 2]).tolist()


def test_a_run_opens_without_its_data_and_predicts_files_as_it_evaluated_them(tmp_path):
    root = folder(tmp_path / "d", {"cat": 20, "dog": 20}, size=(40, 30))
    config = config_of(root)
    config.data.options = {"size": (16, 12)}
    _, probs, source = trained(config, tmp_path / "run")
    names = source.info.meta["file_names"]
    originals = [pixels(name.split("/")[0], int(name[-7:-4]), (40, 30)) for name in names]
    root.rename(tmp_path / "gone")
    run = imgrec_jax.load(tmp_path / "run", "last")
    assert run.class_names == ("cat", "dog") and run.config.model.num_classes == 2
    np.testing.assert_array_equal([a.probs for a in run.predict(originals)], probs.astype(np.float32))


def test_the_same_command_goes_on_and_other_data_are_refused(tmp_path):
    root = folder(tmp_path / "d", {"cat": 20, "dog": 20}, size=(12, 12))
    loop.train(assemble.build(config_of(root)), tmp_path / "run", lambda line: None)
    command = [
        sys.executable, "-m", "imgrec_jax.main", "--config=configs/image_folder.py", f"--config.data.manual_dir={root}",
        f"--config.data.data_dir={tmp_path / 'cache'}", f"--workdir={tmp_path / 'run'}",
        "--config.model.name=mlp", "--config.model.hidden=(16,)", "--config.model.dropout=0",
        "--config.model.kernel_init=lecun_normal", "--config.log.tensorboard=false", "--config.data.threads=0",
    ]  # fmt: skip
    status, out, err = small_runs.run([*command, "--config.train.total_epochs=4"])
    assert status == 0 and "resumed at step 3" in out, out + err
    folder(root, {"cat": 2}, start=60, size=(12, 12))
    status, out, err = small_runs.run([*command, "--config.train.total_epochs=5"])
    assert status == 1 and "the data are not those of the run" in err
