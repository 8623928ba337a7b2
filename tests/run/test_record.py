"""What a run remembers: the early stop; what it says of the time."""

import json
import math
import time

import jax
import jax.numpy as jnp
import pytest

from imgrec_jax.run.record import EarlyStop, Window
from imgrec_jax.run.writers import Console

UNDEFINED = [None, math.nan, math.inf, -math.inf]


def updates(values, mode="max", patience=None, memory=None):
    stop = EarlyStop("AP", mode, patience, memory)
    return [stop.update(step, {"AP": value}) for step, value in enumerate(values)], stop


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("value", UNDEFINED)
def test_what_is_no_number_is_never_best_nor_better(mode, value):
    better, stop = updates([value, 0.5, value, 0.7, 0.3], mode)
    assert better == [False, True, False, mode == "max", mode == "min"]
    assert stop.memory == {
        "best": 0.7 if mode == "max" else 0.3,
        "best_step": 3 if mode == "max" else 4,
        "waited": mode == "max",
    }


@pytest.mark.parametrize("value", UNDEFINED)
def test_a_run_of_them_wears_patience_out(value):
    better, stop = updates([value, value, value], patience=3)
    assert better == [False] * 3 and stop.exhausted and stop.memory == {"best": None, "best_step": None, "waited": 3}


def test_a_nan_that_an_early_version_kept_as_best_gives_way():
    memory = json.loads(json.dumps({"best": math.nan, "best_step": 2, "waited": 1}))
    better, stop = updates([math.nan, 0.1], memory=memory)
    assert better == [False, True] and stop.memory == {"best": 0.1, "best_step": 1, "waited": 0}


def test_an_equal_value_is_no_better():
    assert updates([0.5, 0.5])[0] == [True, False]


def test_of_equal_values_the_one_of_the_lower_loss_is_better_but_no_progress():
    stop = EarlyStop("accuracy", "max", 3, None)
    seen = [(0.5, 1.0), (0.5, 0.8), (0.5, 0.9), (0.4, 0.1)]
    assert [stop.update(n, {"accuracy": a, "loss": loss}) for n, (a, loss) in enumerate(seen)] == [True, True, False, False]
    assert stop.memory == {"best": 0.5, "best_step": 1, "waited": 3, "loss": 0.8} and stop.exhausted
    assert not EarlyStop("accuracy", "max", None, {"best": 0.5, "best_step": 1, "waited": 0}).update(
        2, {"accuracy": 0.5, "loss": 0.1}
    )


def test_a_wait_for_data_counts_where_no_step_is_left_to_compute():
    matrix = jnp.full((500, 500), 1e-3)
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 100, lambda i, x: x @ x, x)).lower(matrix).compile()
    console, window = Console(10, 0, 5, 8, silent=True), Window(None, None, jax.device_get, str)

    def wait() -> float:
        with console.waiting(lambda: window.computing):
            time.sleep(0.01)
        return console.report(1, {})[1]

    assert wait() > 0
    window.add(0, {"loss": slow(matrix)})
    assert window.computing and wait() == 0
    jax.block_until_ready(window._pending)
    assert not window.computing and wait() > 0
