"""Compiled programs that are kept: read again, never where half written, and bounded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imgrec_jax import compiled, machine

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import sys
import jax, jax.numpy as jnp
from imgrec_jax import compiled, machine
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
compiled.keep(sys.argv[1])
f = jax.jit(lambda x: jnp.sort(jnp.sin(x) @ jnp.cos(x).T, axis=0).sum())
print(float(f(jnp.arange(64.0).reshape(8, 8))), len(hits) > 0)
"""


def start(folder) -> tuple[str, str]:
    """What a process of its own computes, and whether it found programs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")} | {"HOME": str(folder)}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "error", "-c", PROGRAM, compiled.AUTO]
    done = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    value, found = done.stdout.split()
    return value, found


def test_the_next_process_finds_what_is_whole_and_makes_again_what_is_not(tmp_path):
    first, found = start(tmp_path)
    assert found == "False"
    again = start(tmp_path)
    assert again == (first, "True")
    programs = list((tmp_path / ".cache/imgrec_jax/compiled").glob("*/*-cache"))
    assert programs and all(path.with_name(path.name + ".whole").exists() for path in programs)
    for path in programs:
        path.write_bytes(path.read_bytes()[:-7])  # as a killed process leaves it
    assert start(tmp_path) == (first, "False")
    assert start(tmp_path) == (first, "True")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    here = tmp_path / "jaxlib-here"
    here.mkdir()
    monkeypatch.setattr(compiled, "_folder", here)
    return here


def test_the_oldest_go(folder, monkeypatch):
    for number in range(4):
        path = folder / f"{number}-cache"
        path.write_bytes(bytes(100))
        os.utime(path, (number, number))
    compiled.confirm()
    (folder / "half-cache").write_bytes(b"not confirmed")
    old = folder.with_name("jaxlib-old")
    old.mkdir()
    for number in (2.5, 0.5):
        (old / f"{number}-cache").write_bytes(bytes(100))  # another process may be writing it
        os.utime(old / f"{number}-cache", (number, number))
    monkeypatch.setattr(compiled, "MOST_BYTES", 350)
    compiled._clean(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["2-cache", "2-cache.whole", "3-cache", "3-cache.whole"]
    assert [path.name for path in old.iterdir()] == ["2.5-cache"]


def test_a_program_of_one_core_is_not_one_of_all(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "_folder", None)
    updated = {}
    monkeypatch.setattr(compiled.jax.config, "update", updated.__setitem__)
    for cores in ([0], [0, 1], [0], [1]):
        monkeypatch.setattr(machine, "cores", lambda cores=cores: cores)
        compiled.keep(str(tmp_path))
        updated.setdefault("folders", []).append(updated[compiled._DIRECTORY])
    one, two, *others = updated["folders"]
    assert others == [one, one] and two != one


def test_nothing_is_kept_where_nothing_can_be(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "_folder", None)
    (tmp_path / "file").write_text("")
    compiled.keep(str(tmp_path / "file"))
    compiled.keep("")
    assert compiled._folder is None


def test_a_processor_has_one_name():
    assert machine.processor() == machine.processor() and "/" not in machine.processor()
