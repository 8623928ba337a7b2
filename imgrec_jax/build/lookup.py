"""Looking things up by the names and options of a config, with errors that list what exists."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from imgrec_jax.data import elastic, geometry_ops, image_ops, segmentation_batch
from imgrec_jax.data.pipeline import Order
from imgrec_jax.data.source import Source
from imgrec_jax.tasks.task import Task

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}

# In the order in which they are applied, whatever the order in a config.
OPS: dict[str, Callable] = {
    "to_channels": image_ops.to_channels,
    "resize": geometry_ops.resize,
    "resize_shorter": segmentation_batch.resize_shorter,
    "resize_and_center_crop": geometry_ops.resize_and_center_crop,
    "foreground_crop": segmentation_batch.foreground_crop,
    "random_resized_crop": geometry_ops.random_resized_crop,
    "random_affine": geometry_ops.random_affine,
    "elastic": elastic.elastic,
    "instance_targets": segmentation_batch.instance_targets,
    "colour_jitter": image_ops.colour_jitter,
    "gaussian_noise": image_ops.gaussian_noise,
    "erase": image_ops.erase,
}
BATCH_OPS: dict[str, Callable] = {"mixup": image_ops.mixup, "cutmix": image_ops.cutmix}


class ConfigError(ValueError):
    """A value in the config that cannot be: names the key, the value and what is expected."""


class Parts(NamedTuple):
    """What differs from task to task.

    Attributes:
      task: the contract.
      train, evals: sources.
      train_order, eval_order: (source) -> (epoch -> Order).
      train_ops, eval_ops: fixed steps of the task that follow the config's ops.
      train_collate, eval_collate: examples -> batch.
      summarise: {split: merged metric states -> values}.
    """

    task: Task
    train: Source
    evals: dict[str, Source]
    train_order: Callable[[Source], Callable[[int], Order]]
    eval_order: Callable[[Source], Callable[[int], Order]]
    train_ops: list[Callable]
    eval_ops: list[Callable]
    train_collate: Callable
    eval_collate: Callable
    summarise: dict[str, Callable]


def options_of(section: ConfigDict) -> dict[str, Any]:
    return section.to_dict()


def choice(key: str, value: str, known: Any) -> str:
    """`value`, if it is one of `known`."""
    if value not in known:
        raise ConfigError(f"config.{key}={value!r} is unknown; choose one of {sorted(known)}")
    return value


def check_options(where: str, options: dict[str, Any], factory: Callable, skip: int = 0) -> None:
    """Raises ConfigError for options that `factory` does not take; its first `skip` arguments are not options."""
    accepted = [
        name for name in list(inspect.signature(factory).parameters)[skip:] if name not in ("parent", "name", "axis_name")
    ]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ConfigError(f"config.{where} takes no {unknown}; it takes {accepted}")


def make_model(
    config: ConfigDict,
    models: dict[str, Callable],
    axis_name: str | None = None,
    fields: Mapping[Callable, Callable] = MappingProxyType({}),
) -> Any:
    """The model that `config.model` names in `models`, called with its options and the dtype of the computation.

    Args:
      axis_name: mapped axis under `pmap`, for the models that normalise over the batch.
      fields: for a factory that takes **options, what names them.
    """
    options = options_of(config.model)
    factory = models[choice("model.name", options.pop("name"), models)]
    named = fields.get(factory, factory)
    check_options("model", options, named)
    if axis_name and "axis_name" in inspect.signature(named).parameters:
        options["axis_name"] = axis_name
    try:
        return factory(**options, dtype=DTYPES[config.dtype])
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model {config.model.name}: {error}") from error


def make_ops(where: str, section: ConfigDict, table: dict[str, Callable]) -> list[Callable]:
    """The ops of `section` that are in `table`, in the table's order, each called with its options."""
    options = options_of(section)
    for name in options:
        choice(where, name, {**OPS, **BATCH_OPS})
    chosen = [(name, factory) for name, factory in table.items() if name in options]
    for name, factory in chosen:
        check_options(f"{where}.{name}", options[name], factory)
    return [factory(**options[name]) for name, factory in chosen]


def open_splits(config: ConfigDict, open_split: Callable[[str], Source]) -> tuple[Source, dict[str, Source]]:
    """(training source, {"validation", "test": those that the config names})."""
    evals = {"validation": config.data.validation_split, "test": config.data.test_split}
    return open_split(config.data.train_split), {name: open_split(split) for name, split in evals.items() if split}


def unit_of(section: Any, name: str, required: bool = True) -> str | None:
    """Which of name_steps, name_epochs and name_examples is set."""
    short = name.rsplit(".", 1)[-1]
    given = [unit for unit in ("steps", "epochs", "examples") if section[f"{short}_{unit}"] is not None]
    if len(given) > 1 or (required and not given):
        raise ConfigError(
            f"{name}_steps, {name}_epochs, {name}_examples: {given or 'none'} set; set exactly one (the others None)"
        )
    if given and not section[f"{short}_{given[0]}"] >= 0:
        raise ConfigError(f"{name}_{given[0]}={section[f'{short}_{given[0]}']} is negative")
    return given[0] if given else None


def steps_of(section: Any, name: str, steps_per_epoch: int, batch_size: int, default: int | None = None) -> int:
    """A duration in steps, at least 1."""
    unit = unit_of(section, name, required=default is None)
    if unit is None:
        return default
    value = section[f"{name.rsplit('.', 1)[-1]}_{unit}"]
    factor = {"steps": 1.0, "epochs": steps_per_epoch, "examples": 1 / batch_size}[unit]
    return max(round(value * factor), 1)
