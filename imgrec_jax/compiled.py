"""Compiled programs, kept in the user's cache folder for the next start.

JAX looks a program up by a hash of what it computes, its own version and its flags. Here stand the rest: a folder for each
kind of processor (machine code of one may not run on another) and each number of its cores (loops that were compiled for one
core are never shared out), and that what a killed process left half written is never read: a program counts once `confirm` has
noted its size and time beside it.
"""

import atexit
import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import jaxlib

from imgrec_jax import machine

AUTO = "auto"
MOST_BYTES = 2**31  # in all folders; the oldest go
_DIRECTORY = "jax_compilation_cache_dir"
_PROGRAM, _WHOLE = "-cache", ".whole"
_LEAST_SECONDS = 0.02  # of compilation: reading takes a few milliseconds

_folder: Path | None = None  # of this process


def keep(folder: str) -> None:
    """Programs are looked up and kept there from now on.

    Args:
      folder: AUTO is the user's, ~/.cache/imgrec_jax/compiled, unless JAX's own variable names another; "" keeps none.
    """
    global _folder
    if not folder or (folder == AUTO and getattr(jax.config, _DIRECTORY)):
        return
    base = Path("~/.cache/imgrec_jax/compiled" if folder == AUTO else folder).expanduser()
    place = base / f"jaxlib-{jaxlib.__version__}-{machine.processor()}-{len(machine.cores())}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        _clean(place)
    except OSError:  # a read-only home, a full disk: everything is compiled
        return
    if _folder is None:
        atexit.register(confirm)
    _folder = place
    jax.config.update(_DIRECTORY, str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS)


def confirm() -> None:
    """Notes which programs are whole; to be called where none is being written."""
    if _folder is not None:
        _confirm(_folder)


def _confirm(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for path, stamp in _programs(folder):
            if not (mark := _mark(path)).exists():
                mark.write_text(stamp)


@contextlib.contextmanager
def of_one_core() -> Iterator[None]:
    """Within it, where this process runs on one core for a while, programs are those of processes that have one."""
    if _folder is None:
        yield
        return
    from jax.experimental.compilation_cache import compilation_cache

    there = _folder.with_name(f"{_folder.name.rpartition('-')[0]}-1")

    def use(folder: Path) -> None:
        with contextlib.suppress(OSError):  # a full disk: as in `keep`
            folder.mkdir(exist_ok=True)
        jax.config.update(_DIRECTORY, str(folder))
        compilation_cache.reset_cache()  # which reads the folder once

    try:
        use(there)
        yield
    finally:
        _confirm(there)
        use(_folder)


def _programs(folder: Path) -> Iterator[tuple[Path, str]]:
    """(file, its size and time)."""
    for path in folder.glob(f"*{_PROGRAM}"):
        with contextlib.suppress(FileNotFoundError):  # another process has just removed it
            stat = path.stat()
            yield path, f"{stat.st_size} {stat.st_mtime_ns}"


def _mark(path: Path) -> Path:
    return path.with_name(path.name + _WHOLE)


def _clean(folder: Path) -> None:
    """Removes what is not known to be whole there, and the oldest over MOST_BYTES there and beside it."""
    kept = []
    for other in folder.parent.glob("jaxlib-*"):
        for path, stamp in _programs(other):
            if other != folder or _read(_mark(path)) == stamp:
                kept.append((int(stamp.partition(" ")[2]), int(stamp.partition(" ")[0]), path))
            else:
                _remove(path)
    total = sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if total <= MOST_BYTES:
            break
        _remove(path)
        total -= size


def _read(mark: Path) -> str:
    try:
        return mark.read_text()
    except FileNotFoundError:
        return ""


def _remove(path: Path) -> None:
    for each in (_mark(path), path):
        each.unlink(missing_ok=True)
