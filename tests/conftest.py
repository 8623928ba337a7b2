"""Shared fixtures: a small prepared MNIST of made-up digits, so that nothing here needs a network or a download."""

import os
import signal
import tempfile

# Many tests compile the same small programs, in processes of their own too: each is compiled once a session.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="jax_cache_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

# Half of the suite's time would be LLVM's optimisation of programs that run once. IMGREC_TEST_OPTIMISED=1: as users run them.
if "--xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", "") and not os.environ.get("IMGREC_TEST_OPTIMISED"):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()

import cv2
import numpy as np
import pytest

from imgrec_jax import assemble
from imgrec_jax.data.sets import mnist, tfds
from imgrec_jax.run import loop
from tests import small_runs

# In the background of a script, or under nohup, these are ignored, by the programs that tests start, too.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (getattr(signal, "SIGHUP", None), signal.SIG_DFL)):
    if _number is not None and signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)


def drawn_digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits drawn with OpenCV's font, moved and dimmed a little: (uint8 [N, 28, 28, 1], int64 [N])."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, count)
    images = np.zeros((count, 28, 28, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        x, y = 4 + rng.integers(-2, 3), 23 + rng.integers(-2, 3)
        cv2.putText(image, str(label), (int(x), int(y)), cv2.FONT_HERSHEY_SIMPLEX, 0.9, int(rng.integers(150, 256)), 2)
    return images, labels.astype(np.int64)


@pytest.fixture(autouse=True)
def _own_draws(request, monkeypatch):
    """Each test draws from the beginning of its module's RNG, whichever tests ran before it in its process."""
    if hasattr(request.module, "RNG"):
        monkeypatch.setattr(request.module, "RNG", np.random.default_rng(0))


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory):
    """A data_dir with `mnist:3.0.1` of 600 training and 200 test digits, decoded."""
    folder = tmp_path_factory.mktemp("data")
    for split, count, seed in (("train", 600, 0), ("test", 200, 1)):
        image, label = drawn_digits(count, seed)
        tfds.save_decoded({"image": image, "label": label}, [str(i) for i in range(10)], mnist.NAME, split, folder)
    return folder


@pytest.fixture(scope="session")
def small_data(tmp_path_factory):
    """{task: folder of its small data set}; made when asked for."""
    return _Made(lambda task: small_runs.MAKERS[task](tmp_path_factory.mktemp("data") / task))


@pytest.fixture(scope="session")
def finished(small_data, tmp_path_factory):
    """{task: workdir of a finished run on `small_data`}: six steps, checkpoints at 4 and 6; copy it before you change it."""

    def make(task):
        workdir = tmp_path_factory.mktemp("finished") / task
        loop.train(assemble.build(small_runs.config_of(task, small_data[task])), workdir, lambda line: None)
        return workdir

    return _Made(make)


class _Made(dict):
    """A dict whose values are made when they are first asked for."""

    def __init__(self, make):
        super().__init__()
        self._make = make

    def __missing__(self, key):
        self[key] = self._make(key)
        return self[key]
