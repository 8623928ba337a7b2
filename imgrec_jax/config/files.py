"""Config files, by path or by the name of one that comes with the package."""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

from imgrec_jax.config.names import did_you_mean
from imgrec_jax.config.shape import base, check_keys, unknown_keys
from imgrec_jax.config.stored import flatten


class ConfigFileError(ValueError):
    """A config file that is not there or cannot be used: says which, why, and what there is."""


def shipped() -> dict[str, Path]:
    """The configs that come with the package, by name: those of the wheel, or the clone's `configs/`."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        found = {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}
        if found:
            return found
    return {}


def find_file(name: str) -> Path:
    """The file that `--config` names: a path, or the name of a config that comes with the package."""
    path, known = Path(name).expanduser(), shipped()
    if path.is_file():
        return path
    if name in known:
        return known[name]
    beside = sorted(map(str, path.parent.glob("*.py"))) if path.parent != Path() and path.parent.is_dir() else []
    there = f"; in {path.parent} there are {beside}" if beside else ""
    raise ConfigFileError(
        f"there is no config {name}{there}; those that come with the package: {', '.join(known) or 'none'}"
        + did_you_mean(name, known)
    )


def load_file(path: Path, variant: str = "") -> ConfigDict:
    """What `get_config(variant)` of a config file returns."""
    try:
        spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise ValueError("a config is a Python file, whose name ends in .py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        made = module.get_config(*([variant] if variant else []))
        if not isinstance(made, ConfigDict):
            raise ValueError(
                f"get_config returns {type(made).__name__}; expected a ConfigDict made from imgrec_jax.config.base()"
            )
        if unknown := unknown_keys(made):
            raise ValueError(f"no config has a key {unknown[0]!r}{did_you_mean(unknown[0], flatten(base()))}")
        check_keys(made)
        return made
    except Exception as error:  # whatever a user's file does
        raise ConfigFileError(f"{path}: {f'{type(error).__name__}: ' * (type(error) is not ValueError)}{error}") from error


def load(name: str) -> ConfigDict:
    """A config as `--config` names it: "mnist", "mnist:fast", "path/to/file.py:VARIANT"; change it as you like."""
    path, _, variant = name.partition(":")
    return load_file(find_file(path), variant)
