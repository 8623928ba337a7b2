"""Names to models: one table, in which each entry says which tasks it serves."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from imgrec_jax.assemble import own
from imgrec_jax.assemble.lookup import DTYPES, ConfigError, check_options, choice, options_of
from imgrec_jax.config import is_own
from imgrec_jax.models.classifiers import CLASSIFIERS, FIELDS
from imgrec_jax.models.detectors import DETECTORS
from imgrec_jax.models.segmenters import SEGMENTERS
from imgrec_jax.models.zoo import ARCHITECTURES


class Entry(NamedTuple):
    """factory: (**options, dtype=) -> module; tasks: that can train it."""

    factory: Callable
    tasks: tuple[str, ...]


MODELS: dict[str, Entry] = {
    **{name: Entry(factory, ("classification",)) for name, factory in CLASSIFIERS.items()},
    **{name: Entry(factory, ("detection",)) for name, factory in DETECTORS.items()},
    **{name: Entry(factory, ("segmentation",)) for name, factory in SEGMENTERS.items()},
}


def find(config: ConfigDict) -> tuple[Callable, Any] | None:
    """(what says the names of the options of the model that a config names, a model whose fields are their defaults).

    The second is None where the defaults are those of the first; all is None for an unknown name.
    """
    name = config.model.name
    entry = Entry(own.find("model.name", name), (config.task,)) if is_own(name) else MODELS.get(name)
    if not entry or config.task not in entry.tasks:
        return None
    return (FIELDS[entry.factory], entry.factory()) if entry.factory in FIELDS else (entry.factory, None)


def make_model(config: ConfigDict, axis_name: str | None = None) -> Any:
    """The model that `config.model` names, called with its options and the dtype of the computation.

    axis_name: mapped axis under `pmap`, for the models that normalise over the batch.
    """
    options = options_of(config.model)
    name = options.pop("name")
    factory = _factory(config)
    named = FIELDS.get(factory, factory)  # what says the names of the options
    check_options("model", options, named)
    taken = inspect.signature(named).parameters
    if axis_name and "axis_name" in taken:
        options["axis_name"] = axis_name
    if "dtype" in taken or not is_own(name):
        options["dtype"] = DTYPES[config.dtype]
    elif config.dtype != "float32":
        raise ConfigError(f"config.dtype={config.dtype!r}: {name} takes no dtype; give it that argument, or use 'float32'")
    try:
        model = factory(**options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model {name}: {error}{own.where(error)}") from error
    if is_own(name) and config.task != "detection" and "num_classes" not in options:
        raise ConfigError(f"model {name} takes no num_classes; give it that argument: how many outputs it has")
    if is_own(name) and config.task != "detection" and not (callable(model) and own.takes(model, 1, "train")):
        raise ConfigError(f"model {name} cannot be called; expected __call__(self, x, *, train=False), x [B, H, W, C]")
    return model


def _factory(config: ConfigDict) -> Callable:
    name = config.model.name
    if is_own(name):
        return own.find("model.name", name)
    known = sorted(n for n, entry in MODELS.items() if config.task in entry.tasks)
    if name in MODELS and name not in known:
        raise ConfigError(f"config.model.name={name!r} is for {' and '.join(MODELS[name].tasks)}; for {config.task}: {known}")
    return MODELS[choice("model.name", name, known)].factory


def check(config: ConfigDict) -> None:
    """Raises ConfigError for a model that cannot be made."""
    model = make_model(config)
    # The zoo's architectures look up their names when they are made.
    if config.task == "classification" and config.model.name not in ARCHITECTURES and not is_own(config.model.name):
        try:  # names inside (activation, initialiser, norm) are looked up when a model is traced; a small image shows them all
            jax.eval_shape(model.init, jax.random.PRNGKey(0), jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"model {config.model.name}: {error}") from error
    if config.task == "detection" and model.needs_proposals != bool(config.data.max_proposals):
        raise ConfigError(
            f"config.data.max_proposals={config.data.max_proposals}: a detector without an RPN needs proposals from outside "
            "(R-CNN's authors took 2000), and one with an RPN takes none (0)"
        )


def check_classes(config: ConfigDict, source_name: str, class_names: tuple[str, ...]) -> None:
    """Raises ConfigError when the model has not as many outputs as the data set has classes."""
    if not class_names:
        return
    have, need = config.model.num_classes, len(class_names)
    if config.task == "detection":
        if have != need + 1:
            raise ConfigError(
                f"model.num_classes={have}, but {source_name} has {need} classes and the background: expected {need + 1}"
            )
    elif have != need:
        raise ConfigError(f"model.num_classes={have}, but {source_name} has {need} classes: {list(class_names)}")
