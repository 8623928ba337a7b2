"""Whatever is written after --config.KEY= either works or is named: generated values for every key of several configs."""

import random

import pytest

from imgrec_jax import assemble
from imgrec_jax.assemble.components import SWITCHES, complete, switch
from imgrec_jax.config import OverrideError, flatten, override
from imgrec_jax.data.pipeline import Pipeline
from tests import small_runs

TEXTS = (
    *(
        "0",
        "1",
        "-1",
        "3",
        "1e9",
        "1e-9",
        "0.5",
        "-0.5",
        "1.5",
        "nan",
        "inf",
        "-inf",
        "None",
        "true",
        "false",
        "",
        " ",
        "x",
        "(",
    ),
    *(
        "[",
        "()",
        "(1,)",
        "(0,)",
        "(-1, 2)",
        "(1, 2, 3)",
        "(0.5, 0.5)",
        "('x',)",
        "(('x', 1.0),)",
        "(('(', 1.0),)",
        "{}",
        "[1, 2]",
    ),
    *(
        "((1, 2), (3, 4))",
        "{'x': 1}",
        "'x'",
        "\\",
        "ümläut",
        "*",
        "(?P<",
        "train[",
        "train[:0]",
        "train[5:1]",
        "train[:5]",
        "test",
    ),
    *(
        "adam",
        "lbfgs",
        "cosine",
        "mlp",
        "unet",
        "__class__",
        "os.system",
        "../x",
        "/dev/null",
        "~",
        "a" * 300,
        "1_0",
        "0x10",
        "((((",
    ),
)


def configs(small_data):
    yield from ((task, small_runs.config_of(task, small_data[task])) for task in small_runs.TASKS)


def outcome(config, key: str, text: str) -> str:
    """What the command line makes of one more override: "works" or the error's text."""
    try:
        config = config.copy_and_resolve_references()
        if key in SWITCHES:
            switch(config, key, text)
        config = complete(config)
        override(config, key, text)
        experiment = assemble.build(config)
        pipeline: Pipeline = experiment.data.train
        pipeline.batch(0)
    except (OverrideError, assemble.ConfigError, ValueError, FileNotFoundError, OSError) as error:
        assert str(error).strip() and len(str(error).splitlines()[0]) < 2000
        return str(error)
    return "works"


def throw(small_data, count: int, seed: int) -> None:
    rng = random.Random(seed)
    made = list(configs(small_data))
    results = {"works": 0, "named": 0}
    for _ in range(count):
        task, config = rng.choice(made)
        key = rng.choice(sorted(flatten(complete(config))))
        text = rng.choice(TEXTS)
        if key in ("data.data_dir", "data.manual_dir") or ("9" in text and "e-9" not in text):
            continue  # folders would be made, and large numbers may be had, at a price
        try:
            said = outcome(config, key, text)
        except Exception as error:
            pytest.fail(f"{task}: --config.{key}={text!r} ends in {type(error).__name__}: {error}")
        results["works" if said == "works" else "named"] += 1
    assert min(results.values()) > 0, results


def test_a_sample_of_generated_overrides(small_data):
    throw(small_data, 60, seed=0)


@pytest.mark.slow
def test_five_hundred_generated_overrides(small_data):
    throw(small_data, 600, seed=1)
