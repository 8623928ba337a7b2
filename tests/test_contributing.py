"""The examples of CONTRIBUTING.md, added to a copy of the package as the page says, and used."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_LINES = 10
PROGRAM = """
from pathlib import Path

from ml_collections import ConfigDict

import imgrec_jax
from imgrec_jax.models.patches import Patches
from imgrec_jax.tasks import brightness

assert Path.cwd() in Path(imgrec_jax.__file__).parents, imgrec_jax.__file__
config = imgrec_jax.load_config("mnist:tiny")
with config.unlocked():
    config.model = ConfigDict({"name": "patches", "num_classes": 2, "width": 8})
    config.data.update(name="stripes", train_split="train[:16]", validation_split="train[16:]", test_split="", mean=(0.5,))
    config.data.update(options={"side": 12}, train_ops={"invert": {"probability": 1.0}}, batch_size=16, threads=0)
experiment = imgrec_jax.build(config)
made = experiment.data.train.batch(0)["image"]
assert made.shape == (16, 12, 12, 1) and set(made.ravel()) == {0, 255}
print("of the set:", imgrec_jax.train(experiment, "run")["validation"]["accuracy"])
other = experiment._replace(task=brightness.make_task(Patches(num_classes=1, width=8)))
print("of the task:", imgrec_jax.train(other._replace(config=config), "other")["validation"]["loss"])
"""


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)


def add(example: str, copy: Path) -> None:
    """Writes the module of an example, and its line into the table it names."""
    for where, lines in re.findall(r"^# (\S+\.py(?:: \w+)?)\n((?:(?!# \S+\.py).*\n)+)", example, re.M):
        file, _, table = where.partition(": ")
        if not table:
            (copy / file).write_text(lines)
            module = Path(file)
            continue
        text = (copy / file).read_text()
        start = text.index("\n}", re.search(rf"^{table}\b.*\{{$", text, re.M).start())
        named = f"from {'.'.join(module.parent.parts)} import {module.stem}\n"
        (copy / file).write_text(text[:start] + "\n" + lines.rstrip() + text[start:])
        text = (copy / file).read_text()
        first = re.search(r"^(from|import) ", text, re.M).start()
        (copy / file).write_text(text[:first] + named + text[first:])


@pytest.mark.parametrize("example", examples(), ids=lambda text: Path(text.split()[1]).stem)
def test_examples_are_short(example):
    assert len([line for line in example.splitlines() if line.strip() and not line.startswith("# ")]) <= MOST_LINES


def test_examples_run(tmp_path):
    assert len(examples()) == 4
    shutil.copytree(ROOT / "imgrec_jax", tmp_path / "imgrec_jax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    for example in examples():
        add(example, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "of the set: " in done.stdout and "of the task: " in done.stdout
