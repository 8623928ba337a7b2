"""Looking things up by the names and options of a config, with errors that list what exists."""

import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from imgrec_jax.config import did_you_mean

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}

# Arguments that no config gives.
HIDDEN = ("parent", "name", "axis_name")


class ConfigError(ValueError):
    """A value in the config that cannot be: names the key, the value and what is expected."""


def options_of(section: ConfigDict) -> dict[str, Any]:
    return section.to_dict()


def choice(key: str, value: str, known: Any) -> str:
    """`value`, if it is one of `known`."""
    if value not in known:
        raise ConfigError(f"config.{key}={value!r} is unknown; choose one of {sorted(known)}{did_you_mean(value, known)}")
    return value


def check_options(where: str, options: dict[str, Any], factory: Callable, skip: int = 0, but: tuple[str, ...] = ()) -> None:
    """Raises ConfigError for options that `factory` does not take; its first `skip` arguments and `but` are not options."""
    accepted = [name for name in list(inspect.signature(factory).parameters)[skip:] if name not in (*HIDDEN, *but)]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ConfigError(f"config.{where} takes no {unknown}; it takes {accepted}")


def unit_of(section: Any, name: str, required: bool = True) -> str | None:
    """Which of name_steps, name_epochs and name_examples is set."""
    short = name.rsplit(".", 1)[-1]
    given = [unit for unit in ("steps", "epochs", "examples") if section[f"{short}_{unit}"] is not None]
    if len(given) > 1 or (required and not given):
        raise ConfigError(
            f"{name}_steps, {name}_epochs, {name}_examples: {given or 'none'} set; set exactly one (the others None)"
        )
    return given[0] if given else None


def steps_of(section: Any, name: str, steps_per_epoch: int, batch_size: int, default: int | None = None) -> int:
    """A duration in steps, at least 1 of one that is not 0."""
    unit = unit_of(section, name, required=default is None)
    if unit is None:
        assert default is not None  # or one of the three was required
        return default
    value = section[f"{name.rsplit('.', 1)[-1]}_{unit}"]
    factor = {"steps": 1.0, "epochs": steps_per_epoch, "examples": 1 / batch_size}[unit]
    return max(round(value * factor), 1) if value else 0
