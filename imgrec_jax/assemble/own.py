"""The user's own parts: `my_file.py:Name` or `package.module:Name` wherever a config names a model, loss, op, optimiser or set.

A run keeps the path and the hash of each, and a copy of the file (`run.workdir`). A config that comes from a workdir names code
that its reader may never have seen: it runs only where the reader says so, and then it is the copy that lies there.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from imgrec_jax.assemble.lookup import ConfigError
from imgrec_jax.config import own_names

_LOADED: dict[tuple[str, str], ModuleType] = {}  # (path, hash) -> module
_CARRIED: ContextVar[Mapping[str, Path] | None] = ContextVar("carried", default=None)


class Code(NamedTuple):
    """file: absolute; sha256: of its bytes; kept: whether a run keeps a copy: of a file, but not of an installed module."""

    file: str
    sha256: str
    kept: bool


def find(key: str, name: str) -> Callable:
    """What `name` stands for.

    Raises:
      ConfigError: a file, module or name that is not there, or whose import fails; with the line of the file.
    """
    place, _, attribute = name.rpartition(":")
    module = _module(key, name, place)
    value = getattr(module, attribute, None)
    if value is None:
        there = sorted(n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", None) == module.__name__)
        raise ConfigError(f"config.{key}={name!r}: {module.__file__} has no {attribute}; it defines {there}")
    if not callable(value):
        raise ConfigError(f"config.{key}={name!r} is {type(value).__name__}; expected a class or a function")
    return value


def record(config: ConfigDict) -> dict[str, Code]:
    """{own name: where its code lies, and its hash} of all that a config names."""
    return {name: _code(key, name) for key, name in own_names(config).items()}


def of_workdir(folder: Path, config: ConfigDict, recorded: Mapping[str, Mapping[str, Any]], allowed: bool) -> dict[str, Path]:
    """{own name: the copy of its file that the workdir keeps}, for `carried`.

    Args:
      folder, config: of the workdir.
      recorded: what its run.json says of its code.
      allowed: whether the reader said that it may run.

    Raises:
      ConfigError: where the config names code and it was not allowed, or a copy is not what the run kept.
    """
    given = own_names(config)
    if given and not allowed:
        listed = ", ".join(f"{key}={name!r}" for key, name in given.items())
        kept = {str(folder / part["copy"]) for part in recorded.values() if part.get("copy")}
        copies = ", ".join(sorted(kept)) or "installed modules"
        raise ConfigError(
            f"the run in {folder} uses code of its own ({listed}), which lies in {copies}; look at it, then give --allow_code "
            "(in Python load(..., allow_code=True)) to run it"
        )
    files = {name: folder / recorded[name]["copy"] for name in given.values() if recorded.get(name, {}).get("copy")}
    for name, file in files.items():
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != recorded[name]["sha256"]:
            raise ConfigError(f"{file}, the code of {name!r}, is not what this run kept; put it back as it was")
    return files


@contextlib.contextmanager
def carried(files: Mapping[str, Path]) -> Iterator[None]:
    """Within, these own names stand for the code in these files."""
    token = _CARRIED.set(files)
    try:
        yield
    finally:
        _CARRIED.reset(token)


def where(error: BaseException) -> str:
    """ " (net.py line 12)", the last line of the user's own code that an error went through; "" where there is none."""
    files = {path for path, _ in _LOADED}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f" ({frames[-1].filename} line {frames[-1].lineno})" if frames else ""


def takes(function: Callable, count: int, *words: str) -> bool:
    """Whether a function can be called with so many arguments by place, and these words by name; True where nobody can say."""
    try:
        inspect.signature(function).bind(*[None] * count, **dict.fromkeys(words))
    except TypeError:
        return False
    except ValueError:  # of what is not written in Python
        return True
    return True


def _code(key: str, name: str) -> Code:
    place = name.rpartition(":")[0]
    file = _file(key, name, place) if _is_file(name, place) else Path(_module(key, name, place).__file__ or "")
    data = file.read_bytes() if file.is_file() else b""
    return Code(str(file), hashlib.sha256(data).hexdigest(), _is_file(name, place))


def _is_file(name: str, place: str) -> bool:
    return place.endswith(".py") or name in (_CARRIED.get() or {})


def _file(key: str, name: str, place: str) -> Path:
    file = Path((_CARRIED.get() or {}).get(name, place)).expanduser().absolute()
    if not file.is_file():
        raise ConfigError(f"config.{key}={name!r}: there is no file {file}; give its path, from here or from the root")
    return file


def _module(key: str, name: str, place: str) -> ModuleType:
    if not _is_file(name, place):
        try:
            return importlib.import_module(place)
        except Exception as error:
            raise ConfigError(f"config.{key}={name!r}: import {place} fails: {_described(error)}") from error
    file = _file(key, name, place)
    data = file.read_bytes()
    sha = hashlib.sha256(data).hexdigest()
    if (str(file), sha) not in _LOADED:
        _LOADED[str(file), sha] = _execute(key, name, file, data, sha)
    return _LOADED[str(file), sha]


def _execute(key: str, name: str, file: Path, data: bytes, sha: str) -> ModuleType:
    module = ModuleType(f"{file.stem}_{sha[:8]}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    sys.path.insert(0, str(file.parent))  # as `python file.py` does: what lies beside it can be imported
    try:
        exec(compile(data, str(file), "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[module.__name__]
        raise ConfigError(f"config.{key}={name!r}: {file} cannot be imported: {_described(error, str(file))}") from error
    finally:
        sys.path.remove(str(file.parent))
    return module


def _described(error: BaseException, file: str = "") -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    line = frames[-1].lineno if frames else getattr(error, "lineno", None)
    return f"{type(error).__name__}{f' in line {line}' if line else ''}: {error}"
