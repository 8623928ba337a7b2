"""The tour runs from its first cell to its last, without a network, and is committed without outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "experiments" / "tour.ipynb"

# Runs the cells, with MNIST out of reach; plots are drawn and not shown.
PROGRAM = """
import json, sys
from imgrec_jax.data.sets import mnist

def closed():
    raise mnist.RoadClosed("this is a test")

mnist.from_host = mnist.from_package_index = closed
names = {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1]))["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
print("accuracy", names["results"]["test"]["accuracy"])
"""


def cells():
    return json.loads(NOTEBOOK.read_text())["cells"]


def test_it_is_committed_without_outputs():
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)
    for number, cell in enumerate(code):
        compile("".join(cell["source"]), f"cell {number}", "exec")
    assert "imgrec-jax[" not in NOTEBOOK.read_text()  # that name at a package index may be anybody's


@pytest.mark.slow
def test_it_runs_without_a_network(tmp_path):
    pytest.importorskip("flatbuffers", reason="exported programs are serialised by flatbuffers")
    root = str(NOTEBOOK.parents[1])
    environment = {**os.environ, "MPLBACKEND": "Agg", "TFDS_DATA_DIR": str(tmp_path / "none"), "PYTHONPATH": root}
    command = [sys.executable, "-c", PROGRAM, str(NOTEBOOK)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Drawn digits instead" in done.stdout and "the file answers" in done.stdout
    assert float(done.stdout.split("accuracy")[-1]) > 0.9
