"""The shape of every config: all keys, with their defaults. `configs/*.py` start from it and change values.

It is locked, so a misspelt key is an error where it is written. Durations take one of three units: of `x_steps`, `x_epochs`
and `x_examples` exactly one is set. The sections in FREE are the arguments of what they name and are checked by `assemble`.

A run keeps its config as JSON (`to_plain`, `from_plain`).
"""

from imgrec_jax.config.files import ConfigFileError, find_file, load, load_file, shipped
from imgrec_jax.config.names import NAME_KEYS, OP_SECTIONS, did_you_mean, is_own, own_names
from imgrec_jax.config.shape import FREE, SEEDS_IN, base, check_keys, replica, replicas_of
from imgrec_jax.config.stored import (
    MAY_CHANGE,
    OLD_DEFAULTS,
    RENAMED_KEYS,
    RENAMED_VALUES,
    data_folders,
    difference,
    flatten,
    from_plain,
    modernise,
    to_plain,
    whole_path,
    with_whole_paths,
)
from imgrec_jax.config.text import OverrideError, override

__all__ = [
    "FREE", "MAY_CHANGE", "NAME_KEYS", "OLD_DEFAULTS", "OP_SECTIONS", "RENAMED_KEYS", "RENAMED_VALUES", "SEEDS_IN",
    "ConfigFileError", "OverrideError", "base", "check_keys", "data_folders", "did_you_mean", "difference", "find_file",
    "flatten", "from_plain", "is_own", "load", "load_file", "modernise", "override", "own_names", "replica", "replicas_of",
    "shipped", "to_plain", "whole_path", "with_whole_paths",
]  # fmt: skip
