"""A run of this project as the weights of another: whole, and as they are without training."""

import json
import shutil

import numpy as np
import pytest

import imgrec_jax
from imgrec_jax import assemble
from imgrec_jax.assemble import pretrained
from imgrec_jax.run import loop, saved
from imgrec_jax.run.workdir import read_card
from tests import small_runs


@pytest.fixture
def config(small_data, finished):
    made = small_runs.config_of("classification", small_data["classification"])
    with made.unlocked():
        made.pretrained.path = str(finished["classification"])
    return made


def test_evaluated_as_they_are_the_weights_give_the_numbers_of_their_run(config, finished, tmp_path):
    said = []
    results = saved.evaluate_pretrained(assemble.build(config), tmp_path / "new", said.append)
    lines = [json.loads(line) for line in (finished["classification"] / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] in results][-1]
    assert results[last["split"]]["accuracy"] == last["accuracy"]
    written = json.loads((tmp_path / "new" / "eval.json").read_text())
    assert written["checkpoint"] == "pretrained" and str(finished["classification"]) in written["pretrained"]["source"]
    assert any("names of own" in line for line in said) and not (tmp_path / "new" / "config.json").exists()


def test_a_new_head_leaves_the_rest(config, finished):
    with config.unlocked():
        config.pretrained.head = "new"
    experiment = assemble.build(config)
    fresh, _ = loop.create_state(experiment)
    variables, _ = pretrained.make_initialise(config)({"params": fresh.params, **fresh.model_state})
    run = imgrec_jax.load(finished["classification"])
    for layer, values in variables["params"].items():
        kept = fresh.params if layer == "logits" else run.variables["params"]
        assert all(np.array_equal(value, kept[layer][name]) for name, value in values.items()), layer


def test_a_run_that_has_begun_needs_its_weights_no_more_and_says_whose_they_were(config, finished, tmp_path):
    weights = shutil.copytree(finished["classification"], tmp_path / "weights")
    config.pretrained.path, config.train.total_steps = str(weights), 4
    loop.train(assemble.build(config), tmp_path / "run", lambda line: None)
    begun = read_card(tmp_path / "run")["pretrained"]
    assert begun["source"].startswith("best checkpoint")
    shutil.rmtree(weights / "best")  # other weights in their place
    loop.train(assemble.build(config), tmp_path / "run", lambda line: None)
    config.train.total_steps = 6
    loop.train(assemble.build(config), tmp_path / "run", lambda line: None)
    assert read_card(tmp_path / "run")["pretrained"] == begun
    shutil.rmtree(weights)
    config.train.total_steps = 8
    loop.train(assemble.build(config), tmp_path / "run", lambda line: None)
    saved.evaluate_workdir(assemble.build(config), tmp_path / "run", lambda line: None)
    command = [*small_runs.command("classification", tmp_path, tmp_path / "run")[:3], f"--workdir={tmp_path / 'run'}"]
    status, out, error = small_runs.run([*command, "--mode=eval"])
    assert status == 0 and "step 8  test: " in out, error
    with pytest.raises(assemble.ConfigError, match="is no file"):
        loop.train(assemble.build(config), tmp_path / "new", lambda line: None)
    status, _, error = small_runs.run([*command, "--restart"])
    assert status == 1 and "is no file" in error and not (tmp_path / "run" / "before_restart_1").exists()
