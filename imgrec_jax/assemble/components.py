"""The components that a config names, and their options: what each takes, its defaults, and what another name does to them.

A component's options are the arguments of what its name stands for. `complete` fills in those that a config leaves out, so that
every one has a key; `switch` changes a name and drops the options that the new component does not take.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from imgrec_jax import optim
from imgrec_jax.assemble import data, model, optimizer, pretrained, task
from imgrec_jax.assemble.lookup import HIDDEN, ConfigError
from imgrec_jax.assemble.ops import BEFORE, OP, factory_of
from imgrec_jax.config import OP_SECTIONS, base, check_keys, flatten
from imgrec_jax.data.proposals import SearchOptions

_KINDS = {"tuple": tuple, "int": int, "float": float, "bool": bool, "str": str}  # of tuple[int, int], tuple


class Option(NamedTuple):
    """default: inspect.Parameter.empty where one must be given; kind: the type of an option whose default is None."""

    default: Any
    kind: type | None = None


def options_like(factory: Callable, skip: int = 0, but: tuple[str, ...] = ()) -> dict[str, Option]:
    """The arguments of `factory` that a config can give: those with plain values, and sections of further options."""
    options = {}
    for name, parameter in list(inspect.signature(factory).parameters.items())[skip:]:
        plain = parameter.default is inspect.Parameter.empty or isinstance(
            parameter.default, bool | int | float | str | tuple | Mapping | None
        )
        if name in (*HIDDEN, "dtype", *but) or not plain or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        written = parameter.annotation if isinstance(parameter.annotation, str) else getattr(
            parameter.annotation, "__name__", str(parameter.annotation)
        )  # fmt: skip
        options[name] = Option(parameter.default, next((kind for word, kind in _KINDS.items() if word in str(written)), None))
    return options


def _model(config: ConfigDict) -> dict[str, Option] | None:
    found = model.find(config)
    if found is None:
        return None
    options = options_like(found[0])
    if found[1] is None:
        return options
    # A preset of another model has its own defaults.
    return {name: option._replace(default=_plain(getattr(found[1], name))) for name, option in options.items()}


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def _loss(config: ConfigDict) -> dict[str, Option] | None:
    found = task.find_loss(config)
    return (
        options_like(found[0], skip=found[1]) | ({"aux_weight": Option(0.5)} if config.task == "segmentation" else {})
        if found
        else None
    )


def _optimiser(config: ConfigDict) -> dict[str, Option] | None:
    found = optimizer.find(config)
    if callable(found):
        return options_like(found, but=("learning_rate",))
    try:
        return options_like(optim.find(found), but=("learning_rate", "weight_decay", "mask"))
    except ValueError:
        return None


def _set(config: ConfigDict) -> dict[str, Option] | None:
    try:
        entry = data.entry_of(config)
    except ConfigError:
        return None
    return options_like(entry.options_like or entry.open, skip=1, but=("split", "in_memory", "keys"))


def _detection(config: ConfigDict) -> dict[str, Option]:
    if config.task != "detection":
        return {}
    return {name: Option(value, float) for name, value in task.stages_of(config).OPTIONS.items()}


def _objects(config: ConfigDict) -> dict[str, Option] | None:
    if not config.eval.objects.name:
        return {}
    found = task.find_objects(config)
    return options_like(found) if found else None


def _search(config: ConfigDict) -> dict[str, Option]:
    return options_like(SearchOptions) if config.task == "detection" and config.data.max_proposals else {}


def _op(where: str, name: str, given: ConfigDict) -> dict[str, Option]:
    try:
        options = options_like(factory_of(where, name, given.to_dict()))
    except ConfigError:
        return {}
    return {BEFORE: Option(""), **options} if OP in given else options


# Key of the name, key of the section of its options, and what they are; None where the name is unknown.
COMPONENTS: tuple[tuple[str | None, str, Callable], ...] = (
    ("model.name", "model", _model),
    ("loss.name", "loss", _loss),
    ("optim.name", "optim.options", _optimiser),
    ("data.name", "data.options", _set),
    ("eval.objects.name", "eval.objects", _objects),
    (None, "detection", _detection),
    (None, "data.search", _search),
)


def _section(config: ConfigDict, key: str) -> ConfigDict:
    for part in key.split("."):
        config = config[part]
    return config


def complete(config: ConfigDict, *, settle: bool = True) -> ConfigDict:
    """A copy in which every option of every component that is named has a key, at its default where the config says nothing.

    settle: what is open of the preprocessing is that of the pretrained weights; not while values are still to be given. Until
    then options that must be given have a key, too, at None, and sections of further options, empty; `close` takes back those
    that were not.

    Raises:
      ConfigError: for a config that lacks what every one has.
    """
    try:
        check_keys(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    config = config.copy_and_resolve_references()
    locked = config.is_locked
    with config.unlocked():
        for _, section, options_of in COMPONENTS:
            _fill(_section(config, section), options_of(config) or {}, required=not settle)
        for where in OP_SECTIONS:
            for name, given in _section(config, where).items():
                if isinstance(given, ConfigDict):
                    _fill(given, _op(where, name, given))
        if settle:
            pretrained.settle(config)
    if locked:
        config.lock()
    return config


def close(config: ConfigDict, given: Collection[str] = ()) -> None:
    """Takes away, in place, the options that must be given and were not, and empty sections of further options, unless the
    config had them itself (`given`: its keys before): what the data are to tell."""
    with config.unlocked():
        for _, key, options_of in COMPONENTS:
            section = _section(config, key)
            for name, option in (options_of(config) or {}).items():
                must = option.default is inspect.Parameter.empty
                if (
                    name in section
                    and f"{key}.{name}" not in given
                    and ((must and section[name] is None) or (isinstance(option.default, Mapping) and not section[name]))
                ):
                    del section[name]


def _fill(section: ConfigDict, options: dict[str, Option], required: bool = False) -> None:
    for name, option in options.items():
        must = option.default is inspect.Parameter.empty
        further = isinstance(option.default, Mapping)
        if name in section or ((must or further) and not required):
            continue
        if further:
            section[name] = ConfigDict()
        elif must or option.default is None:
            section[name] = placeholder(option.kind or object)
        else:
            section[name] = option.default


def check_types(config: ConfigDict) -> None:
    """Raises ConfigError for a value of another type than its key or its component has."""
    flat = flatten(config)
    for key, default in flatten(base()).items():
        if default is not None and key in flat and not isinstance(default, dict):
            _check_type(key, flat[key], default)
    for _, section_key, options_of in COMPONENTS:
        _check_types_of(section_key, _section(config, section_key), options_of(config) or {})
    for where in OP_SECTIONS:
        for name, given in _section(config, where).items():
            if isinstance(given, ConfigDict) and OP not in given:
                known = _op(where, name, given).items()
                _check_types_of(f"{where}.{name}", given, {key: option for key, option in known if option.kind})


def _check_types_of(where: str, section: Mapping[str, Any], options: dict[str, Option]) -> None:
    """Raises ConfigError for a value of the section `where` of another type than its option."""
    for name, option in options.items():
        if name not in section:
            continue
        if option.default is None or option.default is inspect.Parameter.empty:
            if option.default is not None and section[name] is None:
                raise ConfigError(f"config.{where}.{name}=None; expected a value")
            continue
        _check_type(f"{where}.{name}", section[name], option.default)


def _check_type(key: str, value: Any, default: Any) -> None:
    kinds = {bool: (bool,), int: (int,), float: (int, float), str: (str,), tuple: (tuple, list), list: (tuple, list)}
    expected = kinds.get(type(default), (object,))
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected and expected != (object,)):
        kind = "tuple" if list in expected else type(default).__name__
        raise ConfigError(f"config.{key}={value!r}; expected {kind}, e.g. {default!r}")


def switch(config: ConfigDict, key: str, name: str) -> str | None:
    """Sets the name of a component, in place, and drops the options that the new one does not take; returns what to say.

    Those under `detection`, too: a detector of one stage takes other ones than a detector of two. Of a model also what both
    take but with another default, e.g. `padding` or `dropout`: a value that was chosen for one means nothing to the other.
    """
    section, _, leaf = key.rpartition(".")
    named = _section(config, section)
    if leaf not in named:
        return None  # `override` names the key
    before, dropped, own = named[leaf], [], []
    had = _model(config) or {} if key == "model.name" else {}
    with config.unlocked():
        named[leaf] = name
        if name == before:
            return None
        for of, where, options_of in COMPONENTS:
            follows = of == key or (where == "detection" and section == "model")
            taken = options_of(config) if follows else None
            if taken is None:
                continue
            options = _section(config, where)
            for option in [option for option in options if option not in ("name", leaf)]:
                if option not in taken:
                    dropped.append(option if of else f"{where}.{option}")
                elif of and _own_default(option, had, taken):
                    own.append(option)
                else:
                    continue
                del options[option]
    said = [f"takes no {', '.join(dropped)}; dropped, as {before} had them"] if dropped else []
    said += [f"has its own {', '.join(own)}"] if own else []
    return f"note: {key}={name} {', and '.join(said)}" if said else None


def _own_default(option: str, had: dict[str, Option], takes: dict[str, Option]) -> bool:
    """Whether an option has other defaults in two models; how many classes there are is told by the data."""
    if option == "num_classes" or option not in had:
        return False
    return had[option].default != takes[option].default


# Keys that `switch` is for: names of components, and the kind of detector, which decides on the options under `detection`.
SWITCHES = (*(key for key, _, _ in COMPONENTS if key), "model.kind")
