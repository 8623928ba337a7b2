"""Boards show every record once, whatever was killed; pictures and samples are there; a board that fails costs itself alone."""

import json
import signal
import struct
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import imgrec_jax
from imgrec_jax import assemble
from imgrec_jax.data.source import ArraySource, SourceInfo
from imgrec_jax.pages import sections, training
from imgrec_jax.pages.watch import Watch
from imgrec_jax.run import boards, checkpoint, samples
from tests import small_runs


class Killed(Exception):
    pass


def config(data, **changes):
    return small_runs.config_of("classification", data, **changes)


def train(config, workdir, *, kill_at=None, say=lambda line: None):
    """Trains; kill_at: (step, split) at whose record it ends, as a kill would end it."""

    def callback(step, split, values):
        if (step, split) == kill_at:
            raise Killed

    try:
        return imgrec_jax.train(imgrec_jax.build(config), workdir, say, callbacks=[callback])
    except Killed:
        return None


def recorded(workdir):
    """{(name, step): value} of what boards are to show, from metrics.jsonl."""
    found = {}
    for record in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines()):
        values = {name: value for name, value in record.items() if boards._is_shown(name, value, record)}
        found |= {(f"{record['split']}/{name}", record["step"]): value for name, value in values.items()}
    return found


@pytest.fixture(scope="module")
def data(small_data):
    return small_data["classification"]


def test_tensorboard_shows_each_record_once_after_kills_and_what_a_kill_lost(data, tmp_path):
    settings = config(data, log__tensorboard=True, log__pictures=False)
    train(settings, tmp_path, kill_at=(6, "train"))  # the checkpoint before is of step 4: two steps are made again
    for file in (tmp_path / "tensorboard").iterdir():
        file.write_bytes(file.read_bytes()[:-25])  # a kill in the midst of an event
    train(settings, tmp_path)
    seen = Counter(boards._events(tmp_path / "tensorboard"))
    assert set(seen) == set(recorded(tmp_path)) | {
        (f"train/{name}", step) for name in ("img_per_s", "waiting_for_data") for step in (2, 4, 6)
    } and set(seen.values()) == {1}


def test_a_run_that_gets_a_board_later_shows_its_past(data, tmp_path):
    train(config(data), tmp_path, kill_at=(6, "train"))
    train(config(data, log__tensorboard=True, log__pictures=False), tmp_path)
    assert set(recorded(tmp_path)) <= set(boards._events(tmp_path / "tensorboard"))


def test_equal_runs_with_and_without_pictures_write_equal_metrics(data, finished, tmp_path):
    train(config(data, log__tensorboard=True), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (finished["classification"] / "metrics.jsonl").read_bytes()
    names = {name for name, _ in boards._events(tmp_path / "tensorboard")}
    assert {"train/batch", "validation/answers", "validation_plots/confusion", "validation_plots/reliability"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("task, plot", [("detection", "errors"), ("segmentation", "iou_per_class")])
def test_pictures_of_every_task(small_data, tmp_path, task, plot):
    said = []
    settings = small_runs.config_of(task, small_data[task], log__tensorboard=True)
    imgrec_jax.train(imgrec_jax.build(settings), tmp_path, said.append)
    names = {name for name, _ in boards._events(tmp_path / "tensorboard")}
    split = next(name.partition("/")[0] for name in names if name.endswith("/answers"))
    assert {"train/batch", f"{split}_plots/{plot}"} <= names, [line for line in said if "note" in line]


def test_a_board_that_fails_costs_itself_alone(data, tmp_path, monkeypatch):
    class Broken:
        PACKAGE = "json"

        def __init__(self, place):
            pass

        def write(self, step, split, values):
            raise ConnectionError("nobody answers")

        def close(self, finished):
            pass

    monkeypatch.setitem(boards.BOARDS, "mlflow", Broken)
    said = []
    results = train(config(data, log__writers=("mlflow", "tensorboard"), log__pictures=False), tmp_path, say=said.append)
    assert results["test"] and sum("mlflow cannot be written to (nobody answers)" in line for line in said) == 1
    assert ("train/loss", 6) in set(boards._events(tmp_path / "tensorboard"))


class Listed:
    """A board in memory that fails when it is told to; `written` outlives it, as a service does."""

    PACKAGE, written, closed, refuses, fails = "json", {}, [], False, 0

    def __init__(self, place):
        if Listed.refuses:
            raise ConnectionError("no network")

    def write(self, step, split, values):
        if Listed.fails and step >= Listed.fails:
            Listed.fails = 0
            raise ConnectionError("nobody answers")
        Listed.written |= {(name, step): value for name, value in values.items()}

    def close(self, finished):
        Listed.closed.append(finished)


@pytest.fixture
def listed(monkeypatch):
    monkeypatch.setitem(boards.BOARDS, "mlflow", Listed)
    for name, value in {"written": {}, "closed": [], "refuses": False, "fails": 0}.items():
        monkeypatch.setattr(Listed, name, value)
    return Listed


def test_what_failed_once_is_written_at_the_end(data, listed, tmp_path):
    listed.fails = 4
    train(config(data, log__writers=("mlflow",), log__pictures=False, checkpoint__enabled=False), tmp_path)
    assert set(recorded(tmp_path)) <= set(listed.written) and listed.closed == [False, True]


def test_a_run_goes_on_without_a_board_and_a_start_at_its_end_catches_up(data, listed, tmp_path):
    settings, said = config(data, log__writers=("mlflow",), log__pictures=False), []
    train(settings, tmp_path, kill_at=(6, "train"))
    listed.refuses, listed.written = True, {}
    assert train(settings, tmp_path, say=said.append)["test"]
    assert any("mlflow cannot be opened (no network); the run goes on without it" in line for line in said)
    train(settings, tmp_path, say=said.append)
    assert not listed.written and any("mlflow lacks records of this run" in line for line in said)
    listed.refuses = False
    train(settings, tmp_path)
    assert set(listed.written) == set(recorded(tmp_path)) and listed.closed[-1]
    count = len(listed.closed)
    train(settings, tmp_path)
    assert len(listed.closed) == count  # it has all


def test_a_run_does_not_begin_without_a_board_and_closes_the_others(listed, tmp_path, monkeypatch):
    class Refusing(Listed):
        def __init__(self, place):
            raise KeyError("run")

    monkeypatch.setitem(boards.BOARDS, "wandb", Refusing)
    with pytest.raises(ValueError, match="config.log.writers: wandb cannot be opened"):
        boards.Boards(("mlflow", "wandb"), boards.Place(tmp_path, {}), print)
    assert listed.closed == [False]


def test_a_board_that_does_not_answer_holds_up_nothing(listed, tmp_path, monkeypatch):
    answer, said = threading.Event(), []
    monkeypatch.setattr(Listed, "write", lambda self, *_: answer.wait(30))
    monkeypatch.setitem(boards.PATIENCE, False, 0.1)
    board = boards.Boards(("mlflow",), boards.Place(tmp_path, {}), said.append)
    board.write(1, "train", {"loss": 1.0})
    board.close(False)
    answer.set()
    assert "mlflow did not take everything" in said[0]


def test_a_start_waits_for_what_the_one_before_it_still_writes(listed, tmp_path, monkeypatch):
    answer, order, said = threading.Event(), [], []
    monkeypatch.setattr(Listed, "write", lambda self, step, *_: (answer.wait(30), order.append(step)))
    monkeypatch.setitem(boards.PATIENCE, False, 0.05)
    monkeypatch.setitem(boards.PATIENCE, True, 0.05)
    place = boards.Place(tmp_path, {})
    first = boards.Boards(("mlflow",), place, said.append)
    first.write(1, "train", {"loss": 1.0})
    first.close(False)
    without = boards.Boards(("mlflow",), place, said.append, fresh=False)
    assert not without and "still write what an earlier start gave them" in said[-1]
    monkeypatch.setitem(boards.PATIENCE, True, 30)
    threading.Timer(0.1, answer.set).start()
    second = boards.Boards(("mlflow",), place, said.append, fresh=False)
    assert order == [1] and len(said) == 2
    second.write(2, "train", {"loss": 1.0})
    second.close(True)
    assert order == [1, 2]


def test_tensorboard_of_one_second_and_with_a_damaged_event(tmp_path):
    pytest.importorskip("tensorboardX")
    for step in (1, 2):
        board = boards.TensorBoard(boards.Place(tmp_path, {}))
        board.write(step, "train", {"train/loss": 0.5})
        board.close(False)
    files = sorted((tmp_path / "tensorboard").iterdir())
    assert len(files) == 2 and set(boards._events(tmp_path / "tensorboard")) == {("train/loss", 1), ("train/loss", 2)}
    for path in files:
        data = bytearray(path.read_bytes())
        data[-20:-8] = b"\xff" * 12
        path.write_bytes(data)
    board = boards.TensorBoard(boards.Place(tmp_path, {}))
    board.write(1, "train", {"train/loss": 0.5})
    board.close(False)
    assert ("train/loss", 1) in set(boards._events(tmp_path / "tensorboard"))


def test_wandb_writes_again_what_failed_and_numbers_its_own_rows(tmp_path, monkeypatch):
    rows, fails = [], [False, True]

    class Fake:
        Settings = Image = staticmethod(lambda *_, **__: None)

        def define_metric(self, *_, **__):
            pass

        def log(self, row, step):
            if fails and fails.pop(0):
                raise ConnectionError("nobody answers")
            rows.append((step, row["step"]))

    monkeypatch.setitem(sys.modules, "wandb", Fake)
    monkeypatch.setattr(Fake, "init", lambda **_: Fake(), raising=False)
    told = [(2, "train"), (4, "train"), (4, "test")]
    board = boards.WandB(boards.Place(tmp_path, {}))
    board.write(*told[0], {})
    with pytest.raises(ConnectionError):
        board.write(*told[1], {})
    board = boards.WandB(boards.Place(tmp_path, {}))
    for one in [*told, (6, "train")]:
        board.write(*one, {})
    board = boards.WandB(boards.Place(tmp_path, {}))
    for one in [(step, "train") for step in (1, 2, 3, 4, 5, 6, 7)]:  # log.every_steps is another
        board.write(*one, {})
    assert rows == [(0, 2), (1, 4), (2, 4), (3, 6), (4, 7)]


@pytest.mark.slow
def test_tensorboard_shows_each_record_once_after_a_sigkill(data, tmp_path):
    command = small_runs.command(
        "classification", data, tmp_path / "run", "--config.log.tensorboard=True", "--config.train.total_steps=400",
        "--config.log.every_steps=1", "--config.checkpoint.every_steps=50",
    )  # fmt: skip
    process = small_runs.launch(command)
    metrics, killed_at = tmp_path / "run" / "metrics.jsonl", 0
    while process.poll() is None and killed_at < 120:
        time.sleep(0.01)
        killed_at = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    status, out, err = small_runs.run(command)
    assert status == 0 and "resumed at step" in out, err
    seen = Counter(boards._events(tmp_path / "run" / "tensorboard"))
    assert set(recorded(tmp_path / "run")) <= set(seen) and set(seen.values()) == {1}


def test_a_board_that_is_unknown_or_not_installed_is_told_before_the_first_step(data, tmp_path, monkeypatch):
    with pytest.raises(assemble.ConfigError, match="log.writers"):
        imgrec_jax.build(config(data, log__writers=("paper",)))
    monkeypatch.setattr(boards.WandB, "PACKAGE", "no_such_package")
    with pytest.raises(ValueError, match=r"wandb is not installed; pip install 'imgrec-jax\[wandb\]'"):
        train(config(data, log__writers=("wandb",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_mlflow_goes_on_in_the_same_run_and_writes_nothing_twice(data, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    workdir, settings = tmp_path / "run", config(data, log__writers=("mlflow",))
    train(settings, workdir, kill_at=(6, "train"))
    train(settings, workdir)
    client = mlflow.MlflowClient()
    found = client.search_runs([client.get_experiment_by_name("imgrec_jax").experiment_id])
    assert len(found) == 1 and found[0].info.status == "FINISHED" and found[0].data.params["model.name"]
    history = [(m.key, m.step) for key in found[0].data.metrics for m in client.get_metric_history(found[0].info.run_id, key)]
    wanted = recorded(workdir)
    assert max(Counter(history).values()) == 1 and {(boards._plain(name), step) for name, step in wanted} <= set(history)
    pictures = {item.path for item in client.list_artifacts(found[0].info.run_id)}
    assert {"train", "validation", "validation_plots"} <= pictures
    (workdir / "checkpoints").rename(tmp_path / "away")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.raises(ValueError, match="set MLFLOW_TRACKING_URI as it was at the start"):
        boards.MLflow(boards.Place(workdir, {}))


def wandb_records(data):
    """The records of a .wandb file: after 7 bytes LevelDB's log, blocks of 32 KiB of (checksum, length, kind, content)."""
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # too little of the block is left for a part
            at += 2**15 - at % 2**15
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def test_wandb_goes_on_offline_in_the_same_run_and_writes_nothing_twice(data, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    for name, value in {"MODE": "offline", "SILENT": "true", "CACHE_DIR": tmp_path / "cache"}.items():
        monkeypatch.setenv(f"WANDB_{name}", str(value))
    workdir, settings = tmp_path / "run", config(data, log__writers=("wandb",))
    train(settings, workdir, kill_at=(6, "train"))
    train(settings, workdir)
    rows, ids = [], set()
    for path in sorted(workdir.glob("wandb/offline-run-*/run-*.wandb")):
        for content in wandb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            if record.WhichOneof("record_type") == "history":
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                rows += [(name, row["step"]) for name in row if "/" in name]
    assert len(ids) == 1 and max(Counter(rows).values()) == 1 and set(recorded(workdir)) <= set(rows)
    assert {"train/batch", "validation/answers"} <= {name for name, _ in rows}


@pytest.mark.parametrize("error", [KeyError("image"), cv2.error("cannot"), TypeError("x")])
def test_samples_that_cannot_be_kept_cost_themselves_alone(data, tmp_path, monkeypatch, error):
    def broken(*_):
        raise error

    monkeypatch.setattr(samples, "_png", broken)
    said = []
    with pytest.raises(KeyboardInterrupt):
        train(config(data, log__samples=1), tmp_path, say=lambda line: said.append(line) or stop_at(line, "keeps no samples"))
    assert type(error).__name__ in said[-1] and not any(tmp_path.glob("*samples*"))


def stop_at(line, text):
    if text in line:
        raise KeyboardInterrupt


def test_samples_are_kept_once_small_and_of_any_type(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 40, 60, 3), np.uint8)
    source = ArraySource({"image": images}, SourceInfo("x"))
    samples.keep(tmp_path / "a", source, 8)
    kept = [cv2.imread(str(path))[..., ::-1] for path in samples.files(tmp_path / "a")]
    np.testing.assert_array_equal(kept, images[:8])
    before = small_runs.contents(tmp_path / "a")
    samples.keep(tmp_path / "a", ArraySource({"image": images[::-1]}, SourceInfo("x")), 8)
    assert small_runs.contents(tmp_path / "a") == before
    samples.keep(tmp_path / "none", source, 0)
    assert not (tmp_path / "none").exists()
    noise = ArraySource({"image": rng.random((4, 900, 1200, 1), np.float32)}, SourceInfo("x"))
    samples.keep(tmp_path / "b", noise, 8)
    files = samples.files(tmp_path / "b")
    assert 1 <= len(files) <= 4 and sum(path.stat().st_size for path in files) <= samples.BYTES
    assert cv2.imread(str(files[0])).shape == (384, 512, 3)
    deep = ArraySource({"image": images[:1].astype(np.uint16) * 257}, SourceInfo("x"))
    samples.keep(tmp_path / "c", deep, 1)
    np.testing.assert_array_equal(cv2.imread(str(samples.files(tmp_path / "c")[0]))[..., ::-1], images[0])


def test_pictures_and_report_that_cannot_be_made_cost_themselves_alone(data, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise checkpoint.CheckpointError("no checkpoint can be read")

    monkeypatch.setattr(training, "Watch", broken)
    monkeypatch.setattr(training.start, "has_ended", broken)
    monkeypatch.setattr(training.loop, "train", lambda *_, watch, **__: {"test": watch})
    experiment = imgrec_jax.build(config(data, log__tensorboard=True, log__report=True))
    said = []
    assert training.train(experiment, tmp_path, said.append) == {"test": None}
    assert [line.partition(" (")[0] for line in said] == ["note: no pictures", "note: no report"]
    experiment = imgrec_jax.build(config(data, log__report=True, checkpoint__enabled=False))
    training.train(experiment, tmp_path, said.append)
    assert "with config.checkpoint.enabled=False there is none" in said[-1]


def test_the_pixels_of_what_is_looked_at_are_not_kept(monkeypatch):
    """512 images with a hundred masks each would be."""
    watch, seen = Watch.__new__(Watch), []
    example = {"image": np.zeros((2, 2, 3)), "box_mask": np.zeros((1, 2, 1), np.uint8), "boxes": np.zeros((1, 4))}
    data = SimpleNamespace(multi_label=False)
    watch._experiment, watch._split = SimpleNamespace(config=SimpleNamespace(data=data)), "validation"
    watch._pipeline, watch._parts = SimpleNamespace(source=[example]), lambda: iter([{}])
    watch._results = lambda batch, predict: iter([(0, None)])
    monkeypatch.setattr(sections, "of", lambda evidence: (seen.append(evidence.truths), {}))
    watch.plots(None)
    assert [list(truth) for truth in seen[0]] == [["boxes"]]
