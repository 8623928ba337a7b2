"""Every byte of a checkpoint counts: damaged ones are noticed, passed over and kept; sound ones are never set aside."""

import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax import assemble, optim
from imgrec_jax.run import checkpoint, loop, start
from imgrec_jax.run.checkpoint import Checkpointer, CheckpointError, DamagedError, Found
from imgrec_jax.step import TrainState
from tests import small_runs

KINDS = ("delete", "empty", "halve", "flip", "append")


def damage(path, kind: str, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if kind == "delete":
        return path.unlink()
    if kind == "flip":
        if not data:
            data += b"?"
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(
        {"empty": b"", "halve": bytes(data[: len(data) // 2]), "append": bytes(data) + b"?"}.get(kind, bytes(data))
    )
    return None


def cases(workdir):
    """(file of the newest checkpoint, kind of damage) that change its bytes."""
    for path in sorted((workdir / "checkpoints" / "6").rglob("*")):
        if path.is_file():
            yield from ((path, kind) for kind in KINDS if path.stat().st_size or kind in ("delete", "flip", "append"))


@pytest.mark.parametrize("task", small_runs.TASKS)
def test_damage_to_any_file_of_the_newest_checkpoint_leaves_the_one_before(finished, tmp_path, task):
    """60 to 100 cases a task: each file deleted, emptied, halved, lengthened, and with one bit flipped."""
    workdir, rng, count = finished[task], random.Random(0), 0
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    for path, kind in cases(workdir):
        target = copy / path.relative_to(workdir)
        damage(target, kind, rng)
        before = small_runs.contents(copy)
        found = start.find(copy)
        assert (found.found.kind, found.found.step, found.clock["step"]) == ("checkpoints", 4, 4), (path.name, kind)
        assert [str(bad) for bad, _ in found.damaged] == ["checkpoint 6"]
        assert small_runs.contents(copy) == before, "looking changes nothing"
        target.write_bytes(path.read_bytes())
        count += 1
    assert start.find(copy).found.step == 6 and count >= 50


@pytest.mark.parametrize(
    "which", ["clock.json", *(pytest.param(name, marks=pytest.mark.slow) for name in ("manifest.json", "_METADATA", "biggest"))]
)
def test_a_run_goes_on_bit_for_bit_from_before_the_damage(finished, small_data, tmp_path, which):
    task, rng = "segmentation", random.Random(which)
    copy = shutil.copytree(finished[task], tmp_path / "copy")
    files = [path for path in (copy / "checkpoints" / "6").rglob("*") if path.is_file()]
    biggest = max(files, key=lambda path: path.stat().st_size)
    damage(next((path for path in files if path.name == which), biggest), "flip", rng)
    said = []
    loop.train(assemble.build(small_runs.config_of(task, small_data[task])), copy, said.append)
    assert any("checkpoint 6 is damaged" in line and "damaged/6" in line for line in said) and "resumed at step 4" in said
    assert (copy / "metrics.jsonl").read_bytes() == (finished[task] / "metrics.jsonl").read_bytes()
    again, expected = (checkpoint._read_tree(w / "checkpoints" / "6" / "state") for w in (copy, finished[task]))
    jax.tree.map(np.testing.assert_array_equal, again, expected)
    assert (copy / "damaged" / "6").is_dir()


def test_without_a_whole_last_checkpoint_the_best_is_gone_on_from(finished, small_data, tmp_path):
    task = "classification"
    copy = shutil.copytree(finished[task], tmp_path / "copy")
    for step in ("4", "6"):
        damage(copy / "checkpoints" / step / "clock.json", "halve", random.Random(0))
    said = []
    loop.train(assemble.build(small_runs.config_of(task, small_data[task])), copy, said.append)
    assert "resumed at step 6 (the best checkpoint)" in said
    assert (copy / "metrics.jsonl").read_bytes() == (finished[task] / "metrics.jsonl").read_bytes()
    assert checkpoint.saved(copy, "best"), "the intact best stays"


def test_a_damaged_best_is_reported_and_the_run_ends_whole(finished, small_data, tmp_path):
    task = "classification"
    copy = shutil.copytree(finished[task], tmp_path / "copy")
    damage(copy / "best" / "6" / "state" / "_METADATA", "flip", random.Random(0))
    # A rate of zero from here on: nothing gets better, so that the best stays that of step 6.
    config = small_runs.config_of(task, small_data[task], train__total_steps=9)
    experiment = assemble.build(config)
    for _ in range(2):
        said = []
        results = loop.train(experiment, copy, said.append)
        assert [found.step for found in checkpoint.saved(copy)][-1] == 9
    assert results["test"]["examples"] == 60


@pytest.mark.parametrize("change", ["ema", "momentum", "width"])
def test_a_state_of_another_structure_is_an_error_that_names_it_and_moves_nothing(finished, small_data, tmp_path, change):
    task = "classification"
    copy = shutil.copytree(finished[task], tmp_path / "copy")
    values = {
        "ema": {"optim__ema_decay": 0.0},
        "momentum": {"optim__options": {}},
        "width": {"model": {"name": "mlp", "num_classes": 10, "hidden": (3,)}},
    }
    other = assemble.build(small_runs.config_of(task, small_data[task], **values[change]))
    state, _ = loop.create_state(other)
    before = small_runs.contents(copy)
    with pytest.raises(CheckpointError, match="other arrays than this config") as error:
        checkpoint.read_state(start.find(copy).found, state)
    assert {"ema": "ema/params", "momentum": "opt_state", "width": "params/dense1/kernel"}[change] in str(error.value)
    assert small_runs.contents(copy) == before


def test_a_failing_machine_damages_nothing(finished, small_data, tmp_path, monkeypatch):
    copy = shutil.copytree(finished["classification"], tmp_path / "copy")
    experiment = assemble.build(small_runs.config_of("classification", small_data["classification"], train__total_steps=9))

    def failing(error):
        def fail(*args, **kwargs):
            raise error

        return fail

    for target, error in (("_crc_of_file", OSError(5, "Input/output error")), ("_crc_of_file", MemoryError())):
        before = small_runs.contents(copy)
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, target, failing(error))
            with pytest.raises(CheckpointError, match=r"cannot be read on this machine"):
                loop.train(experiment, copy, lambda line: None)
        assert small_runs.contents(copy) == before
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.load_orbax().StandardCheckpointer, "restore", failing(ValueError("a new orbax")))
        with pytest.raises(CheckpointError, match="is whole but could not be read: ValueError: a new orbax"):
            loop.train(experiment, copy, lambda line: None)
    assert small_runs.contents(copy) == before


def state_of(value: float):
    from imgrec_jax.step import TrainState

    params = {"w": jax.numpy.full((4, 3), value)}
    return TrainState(jax.numpy.asarray(int(value), jax.numpy.int32), params, {}, (), None)


CLOCK = {"step": 0, "selection": None}


def write(folder, *steps, best=False):
    writer = Checkpointer(folder)
    for step in steps:
        writer.save(step, state_of(step), {**CLOCK, "step": step}, best=best)
    writer.close()


def test_the_last_few_stay_and_a_step_can_be_saved_again(tmp_path):
    write(tmp_path, 1, 2, 3)
    assert [found.step for found in checkpoint.saved(tmp_path)] == [2, 3]
    write(tmp_path, 3)
    assert [found.step for found in checkpoint.saved(tmp_path)] == [2, 3]
    write(tmp_path, 2)  # what was later is the future again
    assert [found.step for found in checkpoint.saved(tmp_path)] == [2]
    assert float(checkpoint.read_variables(checkpoint.saved(tmp_path)[0])["params"]["w"][0, 0]) == 2.0


def test_the_key_of_an_optimiser_that_draws_noise_is_read_as_it_was(tmp_path):
    params = {"w": jnp.ones((2, 3))}
    tx = optim.make_optimizer("noisy_sgd", schedule=lambda step: 0.1, params=params, options={"seed": 3})
    state = TrainState(jnp.asarray(1), params, {}, tx.init(params), None)
    writer = Checkpointer(tmp_path)
    writer.save(1, state, {**CLOCK, "step": 1})
    writer.close()
    read = checkpoint.read_state(checkpoint.saved(tmp_path)[0], state)
    keys = [jax.random.key_data(one.opt_state[0][0].rng_key) for one in (read, state)]
    assert np.array_equal(*keys) and read.opt_state[0][0].rng_key.dtype == state.opt_state[0][0].rng_key.dtype


def test_a_checkpoint_without_its_name_is_not_one_and_a_replaced_one_is_found_again(tmp_path):
    write(tmp_path, 1, 2)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "2", folder / ".3.partial")  # killed before the rename
    (folder / "2").rename(folder / ".2.replaced")  # killed between the renames
    assert start.find(tmp_path).found.step == 2  # which changes nothing
    Checkpointer(tmp_path).close()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    assert start.find(tmp_path).found.step == 2


def test_the_best_before_stays_until_a_last_checkpoint_remembers_the_new_one(tmp_path):
    writer = Checkpointer(tmp_path)
    for step, best, remembered in ((1, True, 1), (2, False, 1), (3, True, 3)):
        writer.save(step, state_of(step), {"step": step, "selection": {"best_step": remembered}}, best=best)
    writer.wait()
    assert [found.step for found in checkpoint.saved(tmp_path, "best")] == [1, 3]  # a kill now goes on from 2, whose best is 1
    writer.save(4, state_of(4), {"step": 4, "selection": {"best_step": 3}})
    writer.close()
    assert [found.step for found in checkpoint.saved(tmp_path, "best")] == [3]


OF_A_FULL_DISK = [
    OSError(28, "No space left on device"),
    ValueError(f"RESOURCE_EXHAUSTED: Error writing {'a/' * 150}: [OS error 28: ENOSPC No space left on device]"),  # tensorstore
]


@pytest.mark.parametrize("error", OF_A_FULL_DISK)
def test_a_write_that_fails_is_named_and_leaves_the_others(tmp_path, monkeypatch, error):
    write(tmp_path, 1, 2)
    writer = Checkpointer(tmp_path)
    writer.save(2, state_of(2), {**CLOCK, "step": 2}, best=True)
    writer.wait()
    monkeypatch.setattr(checkpoint, "_write", lambda path, text: (_ for _ in ()).throw(error))
    writer.save(3, state_of(3), {**CLOCK, "step": 3})
    intact = "Earlier ones are intact: checkpoint 1, checkpoint 2, best checkpoint 2. Free space"
    with pytest.raises(CheckpointError, match=f"checkpoint 3 could not be written.*No space left on device.* {intact}"):
        writer.close()
    first = Checkpointer(tmp_path / "new")
    first.save(1, state_of(1), {**CLOCK, "step": 1})
    with pytest.raises(CheckpointError, match="No space left on device.* There is none from before. Free space"):
        first.close()
    assert start.find(tmp_path).found.step == 2


def test_an_old_one_that_cannot_be_deleted_ends_no_run(tmp_path, monkeypatch):
    write(tmp_path, 1, 2)
    remove, said = shutil.rmtree, []

    def busy(path, ignore_errors=False, **options):
        if ".1." not in str(path):
            remove(path, ignore_errors=ignore_errors, **options)
        elif not ignore_errors:
            raise OSError(39, "Directory not empty", str(path))

    monkeypatch.setattr(shutil, "rmtree", busy)
    writer = Checkpointer(tmp_path, say=said.append)
    writer.save(3, state_of(3), {**CLOCK, "step": 3})
    writer.close()
    assert len(said) == 1 and said[0].startswith("note: the old checkpoint") and "could not be deleted" in said[0]
    assert [found.step for found in checkpoint.saved(tmp_path)] == [2, 3] and start.find(tmp_path).found.step == 3
    write(tmp_path, 4)  # and the next start is none the worse for it
    assert [found.step for found in checkpoint.saved(tmp_path)] == [3, 4]


def test_a_renamed_or_swapped_checkpoint_is_no_other_step(tmp_path):
    write(tmp_path, 1, 2)
    (tmp_path / "checkpoints" / "2").rename(tmp_path / "checkpoints" / "7")
    assert start.find(tmp_path).found.step == 1
    with pytest.raises(DamagedError, match="holds step 2, not 7"):
        checkpoint.verify(Found("checkpoints", 7, tmp_path / "checkpoints" / "7"))


def test_variables_are_read_without_a_model(finished):
    found = checkpoint.saved(finished["classification"])[-1]
    averaged, plain = checkpoint.read_variables(found), checkpoint.read_variables(found, averaged=False)
    assert averaged["params"]["logits"]["kernel"].shape == plain["params"]["logits"]["kernel"].shape == (784, 10)
    assert not np.array_equal(averaged["params"]["logits"]["kernel"], plain["params"]["logits"]["kernel"])
    with pytest.raises(CheckpointError, match="no parameter average"):
        checkpoint.read_variables(checkpoint.saved(finished["detection"])[-1], averaged=True)


def test_the_clock_is_plain_json(finished):
    clock = json.loads((checkpoint.saved(finished["detection"])[-1].path / "clock.json").read_text())
    assert clock["step"] == 6 and clock["phase"] == "whole" and clock["total_steps"] == 6
