"""Out of memory is one line with the bytes, the batch and what to try."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax import main
from imgrec_jax.run import memory
from imgrec_jax.run.checkpoint import CheckpointError
from tests import small_runs


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory allocating 257698037760 bytes.", 257698037760),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1.50GiB.", 3 * 2**29),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12345 bytes.", 12345),
        ("Unable to allocate 7.45 GiB for an array with shape (1000000000,) and data type float64", round(7.45 * 2**30)),
        ("something else", None),
    ],
)
def test_the_bytes_of_a_message(text, wanted):
    assert memory.wanted_bytes(text) == wanted


def test_real_allocations_that_fail_are_recognised():
    with pytest.raises(jax.errors.JaxRuntimeError) as of_xla:
        jnp.zeros((1 << 14, 1 << 30)).block_until_ready()
    with pytest.raises(MemoryError) as of_numpy:
        np.ones((1 << 20, 1 << 30))
    for error, size in ((of_xla.value, 4 << 44), (of_numpy.value, 8 << 50)):
        assert memory.is_out_of_memory(error)
        assert memory.wanted_bytes(str(error)) == size
        line = memory.describe(error, 7, 8)
        assert "\n" not in line and f"{size / 1e9:.2f} GB asked for" in line and "data.batch_size=7" in line
    assert 0 < memory.free_bytes() < 1 << 50


def test_a_batch_that_is_too_large_ends_the_program_in_one_line(tmp_path):
    data = small_runs.MAKERS["classification"](tmp_path / "data")
    command = small_runs.command("classification", data, tmp_path / "run")
    status, _, error = small_runs.run(
        [*command, "--config.model.name=mlp", "--config.model.hidden=(2000000,2000000)", "--config.optim.ema_decay=0"]
    )
    assert status == 1 and re.fullmatch(r"error: out of memory: [\d.]+ GB asked for at once, [\d.]+ GB free, .*\n", error), (
        error
    )


def test_a_full_disk_is_not_called_memory(monkeypatch):
    monkeypatch.setattr(main, "FLAGS", SimpleNamespace(verbosity=0))
    config = SimpleNamespace(data=SimpleNamespace(batch_size=7, eval_batch_size=8))
    said = "checkpoint 3 could not be written to w: ValueError: RESOURCE_EXHAUSTED: Error writing w/3. Free space"
    assert str(main._one_line(CheckpointError(said), config)) == f"error: {said}"
    assert "out of memory" in str(main._one_line(RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), config))
