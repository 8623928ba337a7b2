"""Workdirs made by commit b7d72e4 (format 1, kept in `goldens/workdirs`) are opened, evaluated and resumed."""

import json
import random
import shutil
import tarfile

import numpy as np
import pytest

import imgrec_jax
from imgrec_jax import assemble
from imgrec_jax.run import checkpoint, loop, saved, start, workdir
from tests import small_runs


@pytest.fixture(params=small_runs.TASKS)
def old(request, tmp_path):
    """(task, a workdir of it)."""
    with tarfile.open(small_runs.ROOT / "tests" / "goldens" / "workdirs" / f"{request.param}.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return request.param, tmp_path / request.param


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def close(a, b, rel=1e-4):
    """Equal but for the rounding of another machine or version of JAX."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key], rel) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == pytest.approx(b, rel=rel, abs=1e-5) if isinstance(a, float) and isinstance(b, float) else a == b


def test_it_is_evaluated_to_what_it_said_itself(old, small_data):
    task, folder = old
    before = small_runs.contents(folder)
    results = saved.evaluate_workdir(assemble.build(small_runs.config_of(task, small_data[task])), folder, lambda line: None)
    said = {row["split"]: row for row in rows(folder / "metrics.jsonl")}
    for split, values in results.items():
        assert close(values, {key: said[split][key] for key in values})
    after = small_runs.contents(folder)
    assert after.pop("eval.json") and after == before


def test_it_goes_on_to_where_the_old_code_came(old, small_data):
    task, folder = old
    config = small_runs.config_of(task, small_data[task], train__total_steps=9)
    said = []
    loop.train(assemble.build(config), folder, said.append)
    assert "resumed at step 6" in said
    assert all(map(close, rows(folder / "metrics.jsonl"), rows(folder / "metrics_after_9_steps.jsonl")))
    assert workdir.read_card(folder)["format"] == workdir.FORMAT and workdir.read_card(folder)["splits"]["train"]["identity"]
    starts = workdir.starts(folder)
    assert len(starts) == 2 and starts[0]["packages"]["jax"], "the old entry is kept"
    again = []
    loop.train(assemble.build(config), folder, again.append)
    assert again[-1] == "nothing left to train at step 9"


def test_another_config_is_refused_in_todays_words(old, small_data):
    task, folder = old
    config = small_runs.config_of(task, small_data[task], optim__learning_rate=0.5)
    with pytest.raises(workdir.WorkdirError, match=r"another config:\n  optim.learning_rate: 0.02 -> 0.5\nGive"):
        loop.train(assemble.build(config), folder)


def test_it_opens_without_data_and_says_what_it_lacks(old):
    task, folder = old
    run = imgrec_jax.load(folder)
    side = {"classification": (28, 28), "detection": (64, 64, 3), "segmentation": (32, 32, 3)}[task]
    assert len(run.predict([np.zeros(side, np.uint8)])) == 1
    assert (
        run.class_names
        == {"classification": tuple("0123456789"), "detection": (), "segmentation": ("background", "foreground")}[task]
    )
    assert any("of what size" in line for line in run.lacks) and any("name its classes" in line for line in run.lacks) == (
        task == "detection"
    )


def test_damage_to_its_newest_checkpoint_leaves_the_one_before(old, tmp_path):
    task, folder = old
    rng = random.Random(task)
    files = [path for path in sorted((folder / "checkpoints" / "6").rglob("*")) if path.is_file()]
    arrays = {step: checkpoint._read_tree(folder / "checkpoints" / step / "state")["params"] for step in ("4", "6")}
    for path in rng.sample(files, 5):
        copy = shutil.copytree(folder, tmp_path / "copy")
        target = copy / path.relative_to(folder)
        data = bytearray(target.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        target.write_bytes(rng.choice([bytes(data), bytes(data[: len(data) // 2])]))
        found = start.find(copy)  # a flip may hit what nobody reads
        assert found.found.step == found.clock["step"] and found.found.step in (4, 6)
        read = checkpoint._read_tree(found.found.path / "state")["params"]
        flat = [np.concatenate([leaf.ravel() for leaf in leaves(tree)]) for tree in (read, arrays[str(found.found.step)])]
        np.testing.assert_array_equal(*flat)
        shutil.rmtree(copy)


def leaves(tree):
    import jax

    return jax.tree.leaves(tree)
