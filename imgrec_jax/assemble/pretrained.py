"""Pretrained weights: a file of another framework, merged into the fresh variables of a model."""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from imgrec_jax.assemble.lookup import ConfigError, choice
from imgrec_jax.pretrained import merge, torch_file, torchvision

Converter = Callable[[Mapping[str, np.ndarray], Collection[str]], torchvision.Converted]
FORMATS: dict[str, Converter] = {"torchvision": torchvision.convert_for}
ALLOWANCES = ("allow_missing", "allow_unexpected", "allow_wrong_shape")


def check(config: ConfigDict) -> None:
    section = config.pretrained
    choice("pretrained.format", section.format, FORMATS)
    if section.path and not _path(section).is_file():
        raise ConfigError(f"config.pretrained.path={section.path!r} is no file; give a .pth or .safetensors file, or ''")
    for key in ALLOWANCES:
        for pattern in section[key]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"config.pretrained.{key}: {pattern!r} is no regular expression: {error}") from error


def make_initialise(config: ConfigDict) -> Callable[[dict], tuple[dict, str]] | None:
    """fresh variables -> (variables with the file's values, what was loaded, as text); None without a file.

    The function raises ConfigError when the file cannot be read or does not fit.
    """
    section = config.pretrained
    if not section.path:
        return None

    def initialise(variables: dict[str, Any]) -> tuple[dict[str, Any], str]:
        paths = {"/".join(path[1:]) for path in traverse_util.flatten_dict(variables)}
        try:
            converted = FORMATS[section.format](torch_file.read_tensors(_path(section)), paths)
            merged, report = merge.merge(
                variables, converted.tensors, source_names=converted.source_names,
                **{key: tuple(section[key]) for key in ALLOWANCES},
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(f"config.pretrained with {section.path}: {error}") from error
        return merged, f"pretrained weights of {section.path}\n{report}"

    return initialise


def _path(section: ConfigDict) -> Path:
    return Path(section.path).expanduser()
