"""Whole runs of every task that take seconds: their data, their configs, and the command line that trains them."""

import os
import subprocess
import sys
from pathlib import Path

from ml_collections import ConfigDict

from imgrec_jax.config import modernise
from tests.goldens import small_data, workdir_configs

ROOT = Path(__file__).parents[1]
TASKS = ("classification", "detection", "segmentation")
DATA_KEYS = {"classification": "data_dir", "detection": "manual_dir", "segmentation": "manual_dir"}
MAKERS = {"classification": small_data.digits, "detection": small_data.coco, "segmentation": small_data.masks}


def config_of(task: str, data: Path, **changes) -> ConfigDict:
    """The config of a task on `data`; changes: section__key=value."""
    config = modernise(workdir_configs.get_config(task))
    config.data[DATA_KEYS[task]] = str(data)
    with config.unlocked(), config.ignore_type():
        for key, value in changes.items():
            section, _, name = key.rpartition("__")
            (config[section] if section else config)[name] = value
    return config


def command(task: str, data: Path, workdir: Path, *flags: str) -> list[str]:
    config = ROOT / "tests" / "goldens" / "workdir_configs.py"
    return [
        sys.executable, "-m", "imgrec_jax.main", f"--config={config}:{task}", f"--config.data.{DATA_KEYS[task]}={data}",
        f"--workdir={workdir}", *flags,
    ]  # fmt: skip


def launch(arguments: list[str], **options) -> subprocess.Popen:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **options.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(arguments, cwd=ROOT, env=environment, **{**pipes, **options})


def run(arguments: list[str], **options) -> tuple[int, str, str]:
    """(exit status, stdout, stderr)."""
    process = launch(arguments, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder but the lock, by its path."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
