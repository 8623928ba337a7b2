"""The loop as a whole, on drawn digits."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from imgrec_jax import assemble
from imgrec_jax.config import base, difference, from_plain, to_plain
from imgrec_jax.overrides import default_workdir, settle_durations
from imgrec_jax.run import after_step, checkpoint, loop, saved, start
from imgrec_jax.run.checkpoint import CheckpointError
from imgrec_jax.step import init_state, make_train_step, train_key
from tests import small_runs

ROOT = Path(__file__).parents[2]


def small_config(data_dir, **changes) -> ConfigDict:
    config = base()
    config.model = ConfigDict({"name": "mlp", "num_classes": 10, "hidden": (16,), "dropout": 0.1})
    config.data.name, config.data.data_dir = "mnist:3.0.1", str(data_dir)
    config.data.train_split, config.data.validation_split = "train[:500]", "train[500:]"
    config.data.batch_size, config.data.remainder, config.data.eval_batch_size = 32, "pad", 64
    config.optim.options = ConfigDict({"momentum": 0.9})
    config.optim.learning_rate, config.optim.ema_decay = 0.05, 0.9
    config.train.total_steps, config.eval.every_steps, config.checkpoint.every_steps = 24, 8, 6
    config.log.every_steps, config.log.tensorboard = 5, False
    config.select.metric = "accuracy"
    with config.unlocked():
        for key, value in changes.items():
            section, _, name = key.replace("__", ".").rpartition(".")
            (config[section] if section else config)[name] = value
    return config


def run(config, workdir, say=print):
    return loop.train(assemble.build(config), workdir, say)


def final_state(config, workdir):
    state, _ = loop.create_state(assemble.build(config))
    found, clock = start.choose(workdir, "last")
    return checkpoint.read_state(found, state), clock


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope="module")
def finished(digits_dir, tmp_path_factory):
    """A whole run: (config, workdir, results)."""
    workdir = tmp_path_factory.mktemp("finished")
    config = small_config(digits_dir)
    return config, workdir, run(config, workdir)


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_learns_and_writes_what_it_did(finished):
    _, workdir, results = finished
    rows = records(workdir)
    assert [r["step"] for r in rows if r["split"] == "train"] == [5, 10, 15, 20, 24]
    assert [r["step"] for r in rows if r["split"] == "test"] == [8, 16, 24]
    training = [r["loss"] for r in rows if r["split"] == "train"]
    assert training[-1] < 0.8 * training[0]
    assert results["test"]["examples"] == 200 and results["validation"]["examples"] == 100
    assert results["test"]["accuracy_correct"] == round(200 * results["test"]["accuracy"])
    assert {"confusion_f1_macro", "calibration_error", "loss"} <= results["test"].keys()


def test_training_records_cover_every_example_once(finished):
    # 500 examples in batches of 32: the 16th batch of the epoch holds 20, so steps 16-20 count 4 * 32 + 20.
    _, workdir, _ = finished
    rows = {r["step"]: r for r in records(workdir) if r["split"] == "train"}
    assert rows[15]["accuracy_count"] == 5 * 32
    assert rows[20]["accuracy_count"] == 4 * 32 + 20


@pytest.mark.parametrize("stop", [3, 6, 13])
def test_a_run_cut_short_resumes_bit_for_bit(finished, digits_dir, tmp_path, stop, monkeypatch):
    config, whole, results = finished
    feed = loop.parallel.feed

    class Cut(Exception):
        pass

    def short_feed(pipeline, start, total, mesh, **kwargs):
        for step, batch in feed(pipeline, start, total, mesh, **kwargs):
            if pipeline is experiment.data.train and step == stop:
                raise Cut
            yield step, batch

    experiment = assemble.build(config)
    workdir = tmp_path / "run"
    workdir.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(loop.parallel, "feed", short_feed)
        with pytest.raises(Cut):
            loop.train(experiment, workdir)
    again = run(small_config(digits_dir), workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert same(final_state(config, workdir)[0], final_state(config, whole)[0])
    assert again == results


def test_a_finished_run_is_not_trained_again(finished, digits_dir):
    config, workdir, results = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    said = []
    assert loop.train(assemble.build(config), workdir, said.append) == results
    assert said[-1] == "nothing left to train at step 24"
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_evaluation_of_a_finished_workdir_gives_the_very_numbers(finished):
    config, workdir, results = finished
    evaluated = saved.evaluate_workdir(assemble.build(config), workdir)
    assert evaluated == {split: results[split] for split in evaluated} and "test" in evaluated
    last = [r for r in records(workdir) if r["split"] == "test"][-1]
    assert {k: last[k] for k in evaluated["test"]} == evaluated["test"]


@pytest.mark.parametrize("total", [6, 12, 16])
def test_a_run_that_is_cut_at_a_checkpoint_ends_as_if_it_had_been_planned_so(digits_dir, tmp_path, total, monkeypatch):
    """Of the steps that were made after the checkpoint nothing stays."""
    changes = {"schedule__name": "constant", "checkpoint__every_steps": 2, "checkpoint__keep": 9}
    run(small_config(digits_dir, train__total_steps=total, **changes), tmp_path / "planned")

    def cut(lane, sums, took=loop.Lane.took):
        took(lane, sums)
        if lane.done == total + 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Lane, "took", cut)
        run(small_config(digits_dir, train__total_steps=24, **changes), tmp_path / "cut")
    for later in ("checkpoints", "best"):
        for path in (tmp_path / "cut" / later).iterdir():
            if path.name.isdigit() and int(path.name) > total:
                shutil.rmtree(path)
    config = small_config(digits_dir, train__total_steps=total, **changes)
    assert not start.has_ended(tmp_path / "cut", total)
    run(config, tmp_path / "cut")
    assert start.has_ended(tmp_path / "cut", total) and start.has_ended(tmp_path / "cut")
    planned, found = ({(r["step"], r["split"]): r for r in records(tmp_path / name)} for name in ("planned", "cut"))
    assert found == planned
    assert same(*(final_state(config, tmp_path / name)[0] for name in ("planned", "cut")))


@pytest.mark.parametrize("damage", ["truncate", "remove", "flip"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(finished, tmp_path, damage):
    config, whole, results = finished
    import shutil

    source = shutil.copytree(whole, tmp_path / "copy")
    last = source / "checkpoints" / "24"
    biggest = max((p for p in last.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = biggest.read_bytes()
    if damage == "remove":
        biggest.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
        biggest.write_bytes(data[:middle] if damage == "truncate" else flipped)
    said = []
    again = loop.train(assemble.build(config), source, said.append)
    assert any(line.startswith("checkpoint 24 is damaged (") for line in said)
    assert "resumed at step 18" in said
    assert again == results
    assert same(final_state(config, source)[0], final_state(config, whole)[0])
    assert (source / "damaged" / "24").exists()


def test_when_every_checkpoint_is_damaged_nothing_is_thrown_away(finished, tmp_path):
    config, whole, _ = finished
    import shutil

    source = shutil.copytree(whole, tmp_path / "copy")
    for path in source.rglob("_METADATA"):
        path.unlink()
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole(.|\n)*_METADATA is missing(.|\n)*--restart"):
            loop.train(assemble.build(config), source, lambda line: None)
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


def test_early_stop_and_best(digits_dir, tmp_path):
    config = small_config(digits_dir, optim__learning_rate=0.0, optim__ema_decay=0.0, select__patience=2)
    said = []
    workdir = tmp_path / "w"
    workdir.mkdir()
    results = loop.train(assemble.build(config), workdir, said.append)
    # Nothing is learned: the first evaluation stays the best, and two more end the run at step 24 of ever so many.
    assert "stopped early at step 24: accuracy was best at step 8" in said
    assert results["best_test"]["accuracy"] == results["test"]["accuracy"]
    assert [r["step"] for r in records(workdir) if r["split"] == "best_test"] == [8]
    said.clear()
    longer = small_config(digits_dir, optim__learning_rate=0.0, optim__ema_decay=0.0, select__patience=2, train__total_steps=90)
    loop.train(assemble.build(longer), workdir, said.append)
    assert said[-2].startswith("stopped early at step 24") and said[-1] == "nothing left to train at step 24"


def test_a_kill_after_the_best_is_saved_does_not_undo_the_early_stop(small_data, tmp_path, monkeypatch):
    """The evaluation that exhausts the patience may be the best one, by its loss, and all that is on the disk."""
    changes = {
        "train__total_steps": 60, "eval__every_steps": 3, "checkpoint__every_steps": 1000, "select__patience": 1,
    }  # fmt: skip
    config = small_runs.config_of("classification", small_data["classification"], **changes)

    class Killed(BaseException):
        pass

    def killed(run, step, state, phase, *, best=False, save=loop.Run.save):
        if not best and step:
            run.checkpointer.wait()
            raise Killed
        save(run, step, state, phase, best=best)

    loop.train(assemble.build(config), tmp_path / "whole", lambda line: None)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop.Run, "save", killed)
        loop.train(assemble.build(config), tmp_path / "killed", lambda line: None)
    assert not any((tmp_path / "killed" / "checkpoints").iterdir()) and any((tmp_path / "killed" / "best").iterdir())
    said = []
    loop.train(assemble.build(config), tmp_path / "killed", said.append)
    whole, resumed = (tmp_path / name / "metrics.jsonl" for name in ("whole", "killed"))
    assert whole.read_bytes() == resumed.read_bytes() and "stopped early at step 9" in "\n".join(said)


def test_the_test_split_is_not_evaluated_again_when_the_last_state_is_the_best(digits_dir, tmp_path):
    config = small_config(digits_dir, train__total_steps=8)
    with mock.patch.object(after_step, "evaluate", wraps=after_step.evaluate) as evaluate:
        results = run(config, tmp_path / "w")
    assert evaluate.call_count == 2  # validation, test
    assert results["best_test"] == results["test"]
    by_split = {r["split"]: r for r in records(tmp_path / "w")}
    assert {**by_split["test"], "split": "best_test"} == by_split["best_test"]
    last = final_state(config, tmp_path / "w")[0]
    best, _ = start.choose(tmp_path / "w", "best")
    assert same(checkpoint.read_state(best, last).params, last.params)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(digits_dir, tmp_path):
    config = small_config(digits_dir, optim__learning_rate=1e30, optim__ema_decay=0.0)
    with pytest.raises(loop.NonFiniteError) as error:
        run(config, tmp_path / "w")
    message = str(error.value)
    assert "not finite at step" in message and "Examples of its batch" in message and "loss" in message
    step = int(message.split("at step ")[1].split(":")[0])
    indices = assemble.build(config).data.train.batch(step - 1)["index"].tolist()
    assert str(indices) in message


def test_accumulated_gradients_equal_the_whole_batch(digits_dir, tmp_path):
    plain = {"model": ConfigDict({"name": "linear", "num_classes": 10}), "data__batch_size": 20, "optim__ema_decay": 0.0}
    states = []
    for accumulate in (1, 4):
        config = small_config(digits_dir, **plain, optim__accumulate=accumulate, train__total_steps=6)
        run(config, tmp_path / str(accumulate))
        states.append(final_state(config, tmp_path / str(accumulate))[0].params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), *states)


def test_accumulating_saves_memory(digits_dir):
    """Parts that XLA's CPU backend runs in no loop could all be computed side by side."""
    model = ConfigDict({"name": "convnet", "num_classes": 10, "convs": ((16, 3, 1, 1), (16, 3, 1, 2)), "dense": ()})
    experiment = assemble.build(small_config(digits_dir, model=model))
    batch = {
        "image": jnp.zeros((128, 28, 28, 1), jnp.uint8),
        "label": jnp.zeros(128, int),
        "example_valid": jnp.ones(128, bool),
    }
    tx, used = optax.sgd(0.1), {}
    state = init_state(experiment.task.init(jax.random.PRNGKey(0), batch), tx, with_ema=False)
    for accumulate in (1, 4):
        step = make_train_step(experiment.task, tx, schedule=lambda step: 0.1, accumulate=accumulate)
        used[accumulate] = jax.jit(step).lower(train_key(0), state, batch).compile().memory_analysis().temp_size_in_bytes
    assert used[4] < 0.6 * used[1], used


def test_data_on_the_device_gives_the_same_run(finished, digits_dir, tmp_path):
    _, whole, results = finished
    assert run(small_config(digits_dir, data__on_device=True), tmp_path / "w") == results
    assert (tmp_path / "w" / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_bfloat16_learns_with_float32_parameters(digits_dir, tmp_path):
    config = small_config(digits_dir, dtype="bfloat16")
    results = run(config, tmp_path / "w")
    assert results["test"]["accuracy"] > 0.2
    assert {leaf.dtype for leaf in jax.tree.leaves(final_state(config, tmp_path / "w")[0].params)} == {np.dtype("float32")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim__name": "sdg"}, "unknown optimiser 'sdg'"),
        ({"model": ConfigDict({"name": "mpl"})}, "config.model.name='mpl' is unknown; choose one of .*'mlp'"),
        ({"model": ConfigDict({"name": "mlp", "hiden": (3,)})}, r"takes no \['hiden'\]; it takes .*'hidden'"),
        ({"model": ConfigDict({"name": "mlp", "activation": "rlu", "hidden": (3,)})}, "unknown activation 'rlu'"),
        ({"loss": ConfigDict({"name": "mse"})}, "config.loss.name='mse' is unknown"),
        (
            {"data__train_ops": ConfigDict({"rotate": {}})},
            "config.data.train_ops.rotate is unknown; choose one of .*random_affine",
        ),
        ({"data__train_ops": ConfigDict({"erase": {"prob": 1}})}, r"data.train_ops.erase takes no \['prob'\]"),
        ({"data__validation_split": ""}, "data.validation_split is empty"),
        ({"data__validation_split": "test"}, "nothing is selected on test data"),
        ({"train__total_epochs": 3.0}, r"\['steps', 'epochs'\] set; set exactly one"),
        ({"optim__accumulate": 5}, "optim.accumulate=5 does not divide data.batch_size=32"),
        ({"schedule__name": "cosin"}, "unknown schedule 'cosin'"),
        ({"dtype": "float16"}, "config.dtype='float16' is unknown"),
    ],
)
def test_mistakes_are_named_before_anything_is_built(digits_dir, change, message):
    with pytest.raises(assemble.ConfigError, match=message):
        assemble.check(small_config(digits_dir, **change))


def test_selecting_by_an_unknown_metric_is_named_before_training(digits_dir, tmp_path):
    with pytest.raises(ValueError, match="'acuracy' is no metric of this task; choose one of .*'accuracy'"):
        run(small_config(digits_dir, select__metric="acuracy"), tmp_path / "w")


def test_a_wrong_number_of_classes_is_named(digits_dir):
    config = small_config(digits_dir, model=ConfigDict({"name": "mlp", "num_classes": 7}))
    with pytest.raises(assemble.ConfigError, match=r"model.num_classes=7, but mnist:3.0.1 train.* has 10"):
        assemble.build(config)


def test_config_difference_ignores_what_may_change(digits_dir):
    old = small_config(digits_dir)
    new = small_config(digits_dir, train__total_steps=99, log__every_steps=1, optim__learning_rate=0.5)
    assert difference(old, new) == ["optim.learning_rate: 0.05 -> 0.5"]
    named = small_config(digits_dir, data__manual_dir="digits", data__test_sets={"more": "./more"})
    kept = small_config(digits_dir, data__manual_dir=str(Path("digits").absolute()) + "/", data__test_sets={"more": "more"})
    assert difference(named, kept, may_change=()) == []  # of one folder, by whatever name
    again = from_plain(json.loads(json.dumps(to_plain(old))))
    assert again == old and again.is_locked and isinstance(again.data.mean, tuple)


def test_a_duration_of_another_unit_replaces_the_configs(digits_dir):
    config = small_config(digits_dir)
    config.train.total_epochs = 2.0
    settle_durations(config, ["train.total_epochs"])
    assert config.train.total_steps is None and config.train.total_epochs == 2.0
    settle_durations(config, ["train.total_epochs", "train.total_steps"])  # --config.train.total_steps=None takes nothing back
    assert config.train.total_epochs == 2.0


def test_default_workdir():
    assert default_workdir("configs/mnist.py:fast") == Path("runs/mnist_fast")
    assert default_workdir("configs/mnist.py") == Path("runs/mnist")


def command_line(digits_dir, workdir, *flags):
    environment = {**os.environ, "TFDS_DATA_DIR": str(digits_dir)}
    small = ["train_split=train[:500]", "test_split=test", "eval_batch_size=100"]
    arguments = [
        "--config=configs/mnist.py:tiny",
        f"--workdir={workdir}",
        *(f"--config.data.{s}" for s in small),
        *flags,
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "imgrec_jax.main", *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_command_line_from_start_to_end_and_refusal_of_another_config(digits_dir, tmp_path):
    workdir = tmp_path / "w"
    out, err = command_line(digits_dir, workdir).communicate(timeout=300)
    assert "accuracy" in out and "21,840 parameters" in out, err
    assert err == "", "nothing a user cannot act on"
    assert {"config.json", "environment.json", "metrics.jsonl", "checkpoints"} <= {p.name for p in workdir.iterdir()}
    process = command_line(digits_dir, workdir, "--config.optim.learning_rate=0.5")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1 and "optim.learning_rate: 0.01 -> 0.5" in err and "Traceback" not in err


def test_sigterm_saves_and_exits_cleanly_and_the_run_goes_on(digits_dir, tmp_path):
    workdir = tmp_path / "w"
    endless = ["--config.train.total_steps=100000", "--config.log.every_steps=5", "--config.eval.every_steps=100000"]
    process = command_line(digits_dir, workdir, *endless)
    for line in process.stdout:
        if line.startswith("step 10/"):
            break
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "the same command goes on from there" in out
    saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir())
    out, err = command_line(digits_dir, workdir, f"--config.train.total_steps={saved + 5}", *endless[1:]).communicate(
        timeout=300
    )
    assert f"resumed at step {saved}" in out, err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.optim.learnng_rate=1", "no key 'optim.learnng_rate'; did you mean 'optim.learning_rate'?"),
        ("--config.optim.name=sdg", "unknown optimiser 'sdg'; optax has"),
        ("--config.data.train_split=train[", "is not of the form"),
    ],
)
def test_command_line_mistakes_are_one_line(digits_dir, tmp_path, flag, message):
    process = command_line(digits_dir, tmp_path / "w", flag)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and message in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint=4"], "--checkpoint is for --mode=eval, and this is --mode=train; a run goes on from its last"),
        (["--mode=eval", "--restart"], "--restart is for --mode=train or check or browse, and this is --mode=eval"),
        (["--mode=check", "--limit=3"], "--limit is for --mode=browse"),
    ],
)
def test_a_flag_of_another_mode_is_not_ignored(tmp_path, flags, message):
    status, _, err = small_runs.run([sys.executable, "-m", "imgrec_jax.main", f"--workdir={tmp_path}", *flags])
    assert status == 1 and message in err and err.count("\n") == 1


def test_what_is_to_be_shown_and_is_not_there_is_said_once(small_data, tmp_path, capsys):
    config = small_runs.config_of("classification", small_data["classification"], log__show=("loss", "acuracy", "grad_norm"))
    loop.train(assemble.build(config), tmp_path / "w")
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert notes == ["note: config.log.show names acuracy, which neither training nor an evaluation of this run has"]


def test_an_unknown_variant_lists_the_known(digits_dir, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "imgrec_jax.main", "--config=configs/mnist.py:fsat"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and "unknown variant 'fsat'; choose one of ['best', 'fast'" in result.stderr


def test_a_fresh_run_starts_from_the_weights_it_is_given_and_a_resumed_one_does_not_ask(digits_dir, tmp_path):
    given, asked, said = 0.125, [], []

    def initialise(variables):
        asked.append(True)
        return jax.tree.map(lambda x: np.full_like(x, given), variables), "2 tensors of a file"

    # A rate of 0 leaves the parameters where they began, and so the average of them.
    config = small_config(digits_dir, optim__learning_rate=0.0, train__total_steps=2, eval__every_steps=2)
    config.checkpoint.every_steps = 2
    experiment = assemble.build(config)
    experiment = experiment._replace(optimisation=experiment.optimisation._replace(initialise=initialise))
    loop.train(experiment, tmp_path, said.append)
    state, _ = final_state(config, tmp_path)
    assert all(np.all(leaf == given) for leaf in jax.tree.leaves((state.params, state.ema)))
    assert said[0] == "2 tensors of a file" and len(asked) == 1
    loop.train(experiment._replace(optimisation=experiment.optimisation._replace(total_steps=4)), tmp_path, said.append)
    assert len(asked) == 1


def test_float64_is_the_precision_of_the_whole_state(digits_dir):
    config = small_config(digits_dir, dtype="float64")
    with pytest.raises(assemble.ConfigError, match="set JAX_ENABLE_X64=1"):
        assemble.build(config)
    with jax.enable_x64(True):
        state, _ = loop.create_state(assemble.build(config))
    floats = {str(leaf.dtype) for leaf in jax.tree.leaves(state) if np.issubdtype(leaf.dtype, np.floating)}
    assert floats == {"float64"}


def test_a_rule_for_no_parameter_is_a_config_error_before_training(digits_dir):
    config = small_config(digits_dir, optim__lr_multiplier=(("hed", 2.0), (".*", 1.0)))
    with pytest.raises(
        assemble.ConfigError, match=r"config\.optim: lr_multiplier rules that match no parameter first: \['hed'\]"
    ):
        assemble.build(config)
