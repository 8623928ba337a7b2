"""Values of a config, given as text."""

import ast
import re

from ml_collections import ConfigDict

from imgrec_jax.config.names import OP_SECTIONS, did_you_mean
from imgrec_jax.config.shape import FREE, base
from imgrec_jax.config.stored import RENAMED_KEYS, flatten, tuples


class OverrideError(ValueError):
    """A value given for a key of the config cannot be one: says which, the value, and what is expected."""


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets a key from text, as the type that it has: `0.1`, `true`, `(64, 64)`, `None`, `{"erase": {}}` for a section.

    `data.train_ops.NAME` and `data.eval_ops.NAME` may also be new: the options of an op, `{}` for none.

    Raises:
      OverrideError: for a key that does not exist, with those that do; or text of another type.
    """
    known = flatten(config)
    *sections, name = key.split(".")
    section = config
    for part in sections:
        section = section[part] if isinstance(section, ConfigDict) and part in section else None
    adds = ".".join(sections) in OP_SECTIONS and name not in section
    if not isinstance(section, ConfigDict) or (name not in section and not adds):
        raise OverrideError(_no_key(key, known))
    kind = ConfigDict if adds else section.get_type(name)
    if kind is ConfigDict and not adds and not key.startswith(FREE):
        first = next(iter(section[name]))
        raise OverrideError(f"config.{key} is a section; give its keys one by one, e.g. --config.{key}.{first}=VALUE")
    if kind is type(None):  # a key without a value has the type that `base` gives it
        kind = _base_type(key) or kind
    try:
        value = _none(key, text) if kind is str and text == "None" else _parse(text, kind)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        expected = {
            ConfigDict: "a section, e.g. {} or {'a': 1}", tuple: "a tuple, e.g. (1, 2) or ('a', 'b')",
            str: f"text; nothing at all is --config.{key}=",
        }.get(kind, getattr(kind, "__name__", str(kind)))  # fmt: skip
        raise OverrideError(f"config.{key}={text!r}; expected {expected}") from error
    if isinstance(value, dict) and _base_type(f"{key}.name") is str and not isinstance(value.get("name"), str):
        raise OverrideError(f"config.{key}={text!r}; expected a section with a name, e.g. {{'name': {section[name].name!r}}}")
    with config.unlocked(), config.ignore_type():
        if isinstance(value, dict):
            section[name] = ConfigDict(value)
        elif value is None or not isinstance(section.get(name), ConfigDict):
            section[name] = value


def _base_type(key: str) -> type | None:
    section, (*sections, name) = base(), key.split(".")
    for part in sections:
        if not isinstance(section, ConfigDict) or part not in section:
            return None
        section = section[part]
    return section.get_type(name) if isinstance(section, ConfigDict) and name in section else None


def _parse(text: str, kind: type) -> object:
    if kind is str:  # quoted for its commas, in a sweep, or where no shell has taken the quotes
        return text[1:-1] if re.fullmatch(r"'[^']*'|\"[^\"]*\"", text, re.S) else text
    if kind is bool and text != "None":
        truth = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        return truth[text.lower()] if text.lower() in truth else _raise(text)
    if text.strip() in ("None", "none", "null") and kind not in (ConfigDict, tuple):
        return None
    if kind is int:
        return int(text)
    if kind is float:
        return float(text)
    value = ast.literal_eval(text)
    if kind is ConfigDict:
        return value if isinstance(value, dict) and _has_names(value) else _raise(text)
    if kind is tuple:
        return tuples(value) if isinstance(value, tuple | list) else (value,)
    return tuples(value)


def _none(key: str, text: str) -> str | None:
    """`None` of a key that holds text: the options of a component may have it, the keys of every config have "" for nothing."""
    if key == "eval.positive":  # a class may be called that
        return text
    return None if _base_type(key) is None else str(_raise(text))


def _has_names(value: object) -> bool:
    """Whether all keys of a dictionary, and of those in it, are words."""
    return not isinstance(value, dict) or all(isinstance(key, str) and _has_names(v) for key, v in value.items())


def _raise(text: str) -> object:
    raise ValueError(text)


def _no_key(key: str, known: dict[str, object]) -> str:
    section = key.rpartition(".")[0]
    valid = [name for name in known if name.startswith(f"{section}.")] if section else []
    valid = valid or sorted({name.split(".")[0] for name in known})
    close = f"; did you mean {RENAMED_KEYS[key]!r}?" if RENAMED_KEYS.get(key) in known else did_you_mean(key, known)
    return f"the config has no key {key!r}{close or '.'} Keys there: {', '.join(valid)}"
