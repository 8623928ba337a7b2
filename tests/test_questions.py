"""Experiments that go on from their records (`experiments/questions.py`)."""

import importlib.util
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture(scope="module")
def questions():
    sys.path.insert(0, str(EXPERIMENTS))
    spec = importlib.util.spec_from_file_location("questions", EXPERIMENTS / "questions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(EXPERIMENTS))
    return module


def test_a_sweep_is_kept_where_every_run_is_there_and_made_by_its_settings(questions):
    sweep = questions.Sweep("s", "mnist", {"a": (1, 2), "b": ("x",)}, {"c": 0.5}, {})
    records = [
        {"sweep": "s", "seed": seed, "values": {"a": a, "b": "x"}, "recipe": questions._recipe(sweep)}
        for a in "12"
        for seed in range(3)
    ]
    assert questions._kept(sweep, records, 3) == records
    assert len(questions._kept(sweep, records, 2)) == 4  # fewer seeds are wanted
    assert questions._kept(sweep, records, 4) == questions._kept(sweep, records[1:], 3) == []
    assert questions._kept(sweep._replace(common={"c": 0.25}), records, 3) == []
    assert questions._kept(sweep._replace(grid={"a": (1, 2, 3), "b": ("x",)}), records, 3) == []


def test_choosing_looks_at_the_validation_split_alone(questions):
    runs = [("1", 0.9, 0.5), ("1", 0.9, 0.5), ("2", 0.8, 0.99), ("2", 0.8, 0.99)]
    records = [
        {"sweep": "s", "seed": n % 2, "values": {"rate": rate}, "validation": {"accuracy": v}, "test": {"accuracy": t}}
        for n, (rate, v, t) in enumerate(runs)
    ]
    assert questions.chosen(records, "rate") == records[:2]
    assert questions.percent(records[:2]) == "50.00 ± 0.00"
