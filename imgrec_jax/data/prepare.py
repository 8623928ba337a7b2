"""Opens a named data set, preparing it first where that is possible."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

from imgrec_jax.data import mnist
from imgrec_jax.data.source import Source, default_data_dir, open_tfds


def open_classification(
    name: str, split: str, *, data_dir: str = "", manual_dir: str = "", in_memory: bool | None = None
) -> Source:
    """Opens a split of any TFDS classification set ("image" and "label" features).

    Args:
      name: "mnist:3.0.1", "cifar10", ...; MNIST is fetched without TensorFlow (see `mnist.py`).
      split: "train", "train[:90%]", ...
      data_dir: of prepared sets; "" is TFDS's own.
      manual_dir: MNIST's files, placed by hand.
      in_memory: see `open_tfds`.

    Raises:
      FileNotFoundError: when the set is not prepared and cannot be; says what was tried.
    """
    folder = Path(data_dir).expanduser() if data_dir else default_data_dir()
    if name in ("mnist", mnist.NAME):
        name = mnist.NAME
        mnist.prepare(folder, Path(manual_dir).expanduser() if manual_dir else None)
    return opened_or_prepared(lambda: open_tfds(name, split, folder, in_memory=in_memory), name, folder)


def opened_or_prepared(open_source: Callable[[], Source], name: str, data_dir: Path) -> Source:
    """`open_source()`, after letting TFDS download and prepare the set when it is not there."""
    try:
        return open_source()
    except FileNotFoundError:
        prepare_with_tfds(name, data_dir)
        return open_source()


def prepare_with_tfds(name: str, data_dir: Path) -> None:
    """Downloads and prepares a stock TFDS set as ArrayRecord; many of TFDS's builders read their files with TensorFlow."""
    import tensorflow_datasets as tfds

    print(f"{name} is not in {data_dir}; TFDS downloads and prepares it (once)", flush=True)
    try:
        tfds.builder(name, data_dir=data_dir, file_format="array_record").download_and_prepare()
    except Exception as error:
        needs_tf = importlib.util.find_spec("tensorflow") is None
        hint = "; its builder may need TensorFlow: pip install 'imgrec-jax[tf]'" if needs_tf else ""
        raise FileNotFoundError(
            f"{name} is not prepared in {data_dir}, and TFDS could not prepare it ({type(error).__name__}: {error}){hint}. "
            "A set prepared elsewhere (file_format='array_record') can be copied there"
        ) from error
