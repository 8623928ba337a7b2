"""The package from Python: few names, nothing imported that is not needed, and the README's example."""

import re
import subprocess
import sys

import pytest

import imgrec_jax
from imgrec_jax.config import ConfigFileError
from tests import small_runs

README = (small_runs.ROOT / "imgrec_jax" / "README.md").read_text()


def test_the_readme_example_runs(digits_dir, tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(import imgrec_jax\n.*?)```", README, flags=re.S)
    assert len(example.splitlines()) <= 20
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(digits_dir))
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert len(names["losses"]) == 1 and (tmp_path / "runs" / "notebook" / "checkpoints" / "10").is_dir()
    assert names["run"].step == 10 and len(names["answers"]) == 2 and names["answers"][0].name in "0123456789"


def test_importing_the_package_costs_nothing():
    program = "import sys, imgrec_jax; print(sorted(set(sys.modules) & {'jax', 'numpy', 'flax', 'orbax', 'ml_collections'}))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_configs_are_found_by_name_and_by_path(tmp_path):
    assert imgrec_jax.load_config("mnist:fast") == imgrec_jax.load_config(
        str(small_runs.ROOT / "configs" / "mnist.py") + ":fast"
    )
    with pytest.raises(ConfigFileError, match="there is no config minst; those that come with the package: .*mnist"):
        imgrec_jax.load_config("minst")
    with pytest.raises(ConfigFileError, match="unknown variant 'fsat'"):
        imgrec_jax.load_config("mnist:fsat")
    (tmp_path / "mine.py").write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises(ConfigFileError, match="mine.py: ZeroDivisionError"):
        imgrec_jax.load_config(str(tmp_path / "mine.py"))


def test_the_script_trains_and_names_an_unknown_command(small_data, tmp_path):
    program = "import sys; from imgrec_jax.main import imgrec; sys.exit(imgrec())"
    code, _, err = small_runs.run([sys.executable, "-c", program, "fly", "--x"])
    assert code == 1 and "imgrec knows no command 'fly'" in err
    _, _, *flags = small_runs.command(
        "classification", small_data["classification"], tmp_path / "w", "--config.train.total_steps=2"
    )
    code, out, err = small_runs.run([sys.executable, "-c", program, *flags[1:]])
    assert code == 0 and "2 steps in" in out, err
    code, out, err = small_runs.run(
        [sys.executable, "-c", program, f"--workdir={tmp_path / 'w'}"]
    )  # goes on with its own config
    assert code == 0 and "nothing left to train at step 2" in out, err
    code, out, err = small_runs.run([sys.executable, "-c", program, f"--workdir={tmp_path / 'w'}", "--mode=eval"])
    assert code == 0 and "step 2  test: average loss" in out, err


def test_every_package_is_shipped():
    import tomllib

    listed = tomllib.loads((small_runs.ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(p.parent.relative_to(small_runs.ROOT).parts) for p in (small_runs.ROOT / "imgrec_jax").rglob("__init__.py")
    }
    assert set(listed) == found | {"imgrec_jax.configs"}
