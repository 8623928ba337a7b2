"""Sweeps: their points, runs that equal single ones, going on after a kill, the table."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imgrec_jax import assemble, report, sweep
from imgrec_jax.run import loop
from imgrec_jax.sweeps import runs
from imgrec_jax.sweeps.points import grid, points, sample, split_values
from imgrec_jax.sweeps.runs import finished
from imgrec_jax.sweeps.table import summarise
from tests import small_runs

CONFIG = small_runs.ROOT / "tests" / "goldens" / "workdir_configs.py"


def flags(data: Path, folder: Path, *more: str) -> list[str]:
    return [f"--config={CONFIG}:classification", f"--config.data.data_dir={data}", f"--folder={folder}", *more]


def sweep_command(data: Path, folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "imgrec_jax.sweep", *flags(data, folder, *more)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small_runs.MAKERS["classification"](tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished_run(data, tmp_path_factory) -> Path:
    """The workdir of a run that is at its end."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    loop.train(assemble.build(small_runs.config_of("classification", data)), workdir, lambda line: None)
    return workdir


def test_values_are_divided_at_the_commas_between_them():
    assert split_values("0.1,0.2") == ["0.1", "0.2"]
    assert split_values("(8, 8),(16,16)") == ["(8, 8)", "(16,16)"]
    assert split_values("\"a,b\",{'erase': {}}") == ['"a,b"', "{'erase': {}}"]


def test_a_grid_is_every_combination_and_its_names_differ():
    combinations = grid(["optim.learning_rate=0.1,0.2", "config.model.hidden=(8,),(16,16)"])
    assert [tuple(c.values()) for c in combinations] == [
        ("0.1", "(8,)"), ("0.1", "(16,16)"), ("0.2", "(8,)"), ("0.2", "(16,16)"),
    ]  # fmt: skip
    every = points(combinations, [0, 3], {"data.threads": "0"})
    assert len({point.name for point in every}) == 8 and not any("," in point.name or "/" in point.name for point in every)
    assert every[1].overrides == {
        "data.threads": "0", "optim.learning_rate": "0.1", "model.hidden": "(8,)", "seed": "3",
    }  # fmt: skip
    same = points([{"a.x": "a/b"}, {"a.x": "a-b"}], [0], {})
    assert same[0].name != same[1].name


def test_random_points_keep_to_their_ranges_and_are_the_first_of_more():
    texts = ["optim.learning_rate=1e-4:1e-1:log", "model.width=4:9:int", "optim.name=sgd,a:b", "loss.label_smoothing=0:0.2"]
    few, many = sample(texts, 5, 0), sample(texts, 200, 0)
    assert many[:5] == few and sample(texts, 5, 1) != few
    rates = [float(point["optim.learning_rate"]) for point in many]
    assert 1e-4 <= min(rates) < 2e-4 and 5e-2 < max(rates) <= 1e-1
    assert 60 < sum(rate < 10**-2.5 for rate in rates) < 140  # half of them below the middle of the logarithms
    assert {point["model.width"] for point in many} == set("456789") and {point["optim.name"] for point in many} == {
        "sgd",
        "a:b",
    }
    assert all(0 <= float(point["loss.label_smoothing"]) <= 0.2 for point in many)
    narrow = [float(point["x"]) for point in sample(["x=0.12345:0.12348"], 20, 0)]
    assert min(narrow) >= 0.12345 and max(narrow) <= 0.12348  # not rounded out of their range


def test_a_random_point_that_is_drawn_again_is_made_once():
    few, many = sample(["a.x=1,2", "a.y=1:2:int"], 3, 0), sample(["a.x=1,2", "a.y=1:2:int"], 60, 0)
    assert many[: len(few)] == few and sorted(tuple(p.values()) for p in many) == [(x, y) for x in "12" for y in "12"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "optim.learning_rate"], "expected KEY=VALUES"),
        (["--grid", "optim.learning_rate=0.1", "--grid", "optim.learning_rate=0.2"], "a key twice"),
        (["--grid", "optim.learning_rat=0.1"], "did you mean"),
        (["--grid", "optim.learning_rate=0.1,-1"], "learning_rate=-1_seed=0: config.optim.learning_rate=-1"),
        (["--random", "3"], "give --grid, or --random N with --sample"),
        (["--random", "3", "--sample", "optim.learning_rate=0:1:log"], "LOW above 0"),
        (["--random", "3", "--sample", "optim.accumulate=0.5:1.5:int"], "LOW:HIGH:int of whole numbers"),
        (["--random", "3", "--sample", "optim.learning_rate=nan:nan"], "of finite numbers"),
        (["--random", "3", "--sample", "optim.learning_rate=1:inf"], "of finite numbers"),
        (["--grid", "optim.learning_rate=0.1,0.1,0.1"], "is the same run as learning_rate=0.1_seed=0: .* give each value once"),
        (["--grid", "optim.learning_rate=0.1,1e-1"], "learning_rate=1e-1_seed=0 is the same run as learning_rate=0.1_seed=0"),
        (["--seeds", "1,0,1"], "--seeds=1,0,1 has a seed twice"),
        (["--config.pretrained.path=gone.pth"], "seed=0: config.pretrained.path='gone.pth' is no file"),
        (["--seeds", "0"], "expected how many"),
        (["--config.seeds=3"], "give --seeds=N"),
        (["--grid", "optim.learning_rate=0.1", "--config.optim.learning_rate=1"], "the sweep varies it"),
        (["--jobs=-1"], "--jobs=-1; expected 1 or more"),
        (["--cores=0"], "--cores=0; expected 1 or more"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(data, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        sweep.run(flags(data, tmp_path / "sweep", *arguments))
    assert not (tmp_path / "sweep").exists()


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_and_its_runs_equal_single_ones(data, tmp_path):
    folder, asked = tmp_path / "sweep", ["--grid", "optim.learning_rate=0.01,0.02", "--seeds=2", "--jobs=1"]
    process = subprocess.Popen(sweep_command(data, folder, *asked), cwd=small_runs.ROOT, stderr=subprocess.PIPE)
    try:
        while not finished(folder) and process.poll() is None:
            time.sleep(0.1)
        time.sleep(1.0)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    first = finished(folder)
    assert 1 <= len(first) < 4
    done = subprocess.run(sweep_command(data, folder, *asked), cwd=small_runs.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = finished(folder)
    assert len(results) == 4 and {name: results[name] for name in first} == first
    assert done.stdout.splitlines()[0].startswith("| optim.learning_rate | ") and len(done.stdout.splitlines()) == 4
    name = "learning_rate=0.02_seed=1"
    cores = sorted(os.sched_getaffinity(0))[:1] if hasattr(os, "sched_getaffinity") else []
    pin = ["taskset", "-c", str(cores[0])] if cores else []
    single = small_runs.command("classification", data, tmp_path / "single", "--config.optim.learning_rate=0.02")
    status, _, error = small_runs.run([*pin, *single, "--config.seed=1"])
    assert status == 0, error
    metrics = [(path / "metrics.jsonl").read_bytes() for path in (folder / name, tmp_path / "single")]
    assert metrics[0] == metrics[1]
    assert report.finished_runs(folder) == [folder / point for point in results] and report.finished_runs(tmp_path) == [
        tmp_path
    ]
    with (folder / "table.csv").open() as file:
        table = {line["point"]: line for line in csv.DictReader(file)}
    last = json.loads(metrics[0].splitlines()[-1])
    assert float(table[name][f"{last['split']} loss"]) == last["loss"] and (folder / "plot.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="holds a sweep of --config=.*, not of .* --config.data.threads=0; give another"):
        sweep.run(flags(data, folder, *asked, "--config.data.threads=0"))


def test_a_run_that_fails_is_named_and_the_others_are_done(data, tmp_path, capfd):
    blocked = tmp_path / "sweep" / "learning_rate=0.01_seed=0"
    blocked.parent.mkdir()
    blocked.write_text("a file where a workdir should be")
    assert sweep.run(flags(data, tmp_path / "sweep", "--grid", "optim.learning_rate=0.01,0.02", "--jobs=1")) == 1
    said = capfd.readouterr()
    assert "learning_rate=0.01_seed=0 failed: error: --workdir=" in said.err and "1 of 2 runs failed" in said.err
    assert "| 0.02 |" in said.out and "| 0.01 |" not in said.out


def test_an_edited_config_file_does_not_mix_with_what_is_done(data, finished_run, tmp_path):
    file, folder = tmp_path / "mine.py", tmp_path / "sweep"
    text = CONFIG.read_text().replace("from ml_collections", f"DATA = {str(data)!r}\nfrom ml_collections")
    file.write_text(text.replace("    return config\n", "    config.data.data_dir = DATA\n    return config\n", 1))
    [point] = points([{}], [0], {})
    shutil.copytree(finished_run, folder / point.name)
    runs.record(folder, point, 1.0)
    asked = [f"--config={file}:classification", f"--folder={folder}"]
    assert sweep.run(asked) == 0
    before = file.read_text()
    file.write_text(before.replace("    return config\n", "    config.train.total_steps = 4\n    return config\n", 1))
    with pytest.raises(ValueError, match=r"(?s)seed=0 is done with another config:.*train.total_steps: 6 -> 4.*--folder"):
        sweep.run([*asked, "--seeds=2"])  # runs of two lengths are not one row
    file.write_text(before.replace("learning_rate = 0.02", "learning_rate = 0.0001"))
    with pytest.raises(ValueError, match=r"(?s)seed=0 is done with another config:.*learning_rate: 0.02 -> 0.0001.*--folder"):
        sweep.run(asked)


def test_a_metric_that_no_evaluation_has_is_named_before_the_table(data, finished_run, tmp_path):
    folder = tmp_path / "sweep"
    shutil.copytree(finished_run, folder / "seed=0")
    with pytest.raises(ValueError, match="--metrics=acuracy: no evaluation has it; did you mean 'accuracy'.; there are "):
        sweep.run(flags(data, folder, "--metrics=loss,acuracy"))
    sweep.metrics_check(folder, points([{}], [0], {}), ["accuracy", "loss"])()
    sweep.metrics_check(tmp_path, points([{}], [0], {}), ["of a run that has not begun"])()


def test_a_tilde_is_home_as_it_is_of_a_workdir(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert sweep.run(flags(data, Path("~/sweep"), "--slurm=~/array.sh")) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"sweep", "array.sh"}


def test_the_same_flags_in_another_order_are_the_same_sweep(data, tmp_path):
    given = ["--config.data.threads=0", "--config.log.every_steps=2"]
    assert sweep.run(flags(data, tmp_path / "sweep", *given, f"--slurm={tmp_path / 'a.sh'}")) == 0
    assert sweep.run(flags(data, tmp_path / "sweep", *given[::-1], f"--slurm={tmp_path / 'a.sh'}")) == 0


def test_a_table_says_of_how_many_seeds_a_mean_is_and_takes_any_value(tmp_path):
    every = points(grid(["optim.frozen=('a|b',),('c',)"]), [0, 1, 2, 3], {})
    for point in (*every[::2], *every[1::2]):  # the seeds of a point need not lie side by side
        (tmp_path / point.name).mkdir()
        line = {"step": 1, "epoch": 1.0, "split": "test", "loss": 0.5, "f1": None if point.seed == 2 else 0.25}
        (tmp_path / point.name / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        runs.record(tmp_path, point, 1.0)
    text = summarise(tmp_path, [*every[::2], *every[1::2]], ["f1", "loss"])
    assert text.splitlines()[2:4] == [
        r"| ('a\|b',) | 0.25 ± 0 (3 of 4) | 0.5 ± 0 | 4 |", "| ('c',) | 0.25 ± 0 (3 of 4) | 0.5 ± 0 | 4 |",
    ]  # fmt: skip
    assert text.endswith("optim.frozen ('c',): test loss, interquartile mean 0.5 (all seeds alike)")
    assert summarise(tmp_path, every, []).splitlines()[2:] == [r"| ('a\|b',) | 4 |", "| ('c',) | 4 |"]


def test_a_result_below_a_torn_one_is_kept_and_what_is_missing_is_said(tmp_path):
    every = points([{"a.x": "1"}, {"a.x": "2"}, {"a.x": "3"}], [0], {})
    (tmp_path / runs.RESULTS).write_text('{"point": "x=1_seed=0", "se')  # the disk was full
    for point in every[:2]:
        (tmp_path / point.name).mkdir()
        line = {"step": 1, "epoch": 1.0, "split": "test", "loss": 0.5}
        (tmp_path / point.name / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        runs.record(tmp_path, point, 1.0)
    assert list(finished(tmp_path)) == ["x=1_seed=0", "x=2_seed=0"]
    assert len((tmp_path / runs.RESULTS).read_text().splitlines()) == 3
    text = summarise(tmp_path, every, ["loss"])
    assert text.endswith("1 of 3 runs are missing here: x=3_seed=0") and text.count("| 0.5 |") == 2


def test_readers_that_leave_end_neither_the_sweep_nor_its_status(data, tmp_path, monkeypatch):
    class Gone(io.TextIOWrapper):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Gone(io.BytesIO()))
    monkeypatch.setattr(sys, "stdout", Gone(io.BytesIO()))
    monkeypatch.setattr(sweep, "command", lambda config, point, folder: [sys.executable, "-c", "raise SystemExit('no')"])
    assert sweep.run(flags(data, tmp_path / "sweep", "--seeds=2")) == 1
    assert {f"seed={seed}.log" for seed in (0, 1)} <= {path.name for path in (tmp_path / "sweep").iterdir()}


def test_a_run_is_done_when_it_is_at_its_end_not_when_it_ends(finished_run, tmp_path, capfd):
    """A run that SIGTERM ended has saved and exits with 0; one that had not begun leaves nothing."""
    every = points([{}], [0, 1, 2], {})
    for point, steps in zip(every, (["4", "6"], ["4"], []), strict=True):
        workdir = tmp_path / point.name
        shutil.copytree(finished_run, workdir, ignore=lambda folder, names: [n for n in names if n == "best"])
        for path in (workdir / "checkpoints").iterdir():
            if path.name not in steps:
                shutil.rmtree(path)
    status = [sys.executable, "-c", "print('terminated at step 4')"]
    failed = runs.run_all(lambda point: status, every, tmp_path, runs.Places(2, 1, []), 3, 0)
    assert list(finished(tmp_path)) == [every[0].name]
    assert list(failed) == [point.name for point in every[1:]] and all(
        why.startswith("it was ended ") for why in failed.values()
    )
    assert "seed=1 is unfinished: it was ended at step 4, before its end" in capfd.readouterr().err


def test_an_array_script_names_every_point(data, tmp_path):
    script = tmp_path / "array.sh"
    asked = ["--grid", "optim.learning_rate=0.01,0.02", "--seeds=3"]
    assert sweep.run(flags(data, tmp_path / "sweep", *asked, f"--slurm={script}")) == 0
    text = script.read_text()
    assert "#SBATCH --signal=B:TERM@60\n" in text  # the script is the run, and no step of srun
    assert "#SBATCH --array=0-5" in text and "--only=$SLURM_ARRAY_TASK_ID" in text and "--slurm" not in text
    task = text.splitlines()[-1].removeprefix("exec ").replace("$SLURM_ARRAY_TASK_ID", "4")
    done = subprocess.run(task, shell=True, cwd=small_runs.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(finished(tmp_path / "sweep")) == ["learning_rate=0.02_seed=1"]
