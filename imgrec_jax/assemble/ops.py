"""Names to ops: one table, in the order in which they are applied."""

import types
import typing
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from imgrec_jax.assemble import own
from imgrec_jax.assemble.lookup import ConfigError, check_options, options_of
from imgrec_jax.config import did_you_mean, is_own
from imgrec_jax.data.ops import crops, elastic, geometry, mixing, photometric, randaugment, targets

# In the order in which they are applied, whatever the order in a config.
OPS: dict[str, Callable] = {
    "to_channels": photometric.to_channels,
    "resize": geometry.resize,
    "resize_shorter": crops.resize_shorter,
    "resize_and_center_crop": geometry.resize_and_center_crop,
    "foreground_crop": crops.foreground_crop,
    "random_resized_crop": geometry.random_resized_crop,
    "random_affine": geometry.random_affine,
    "elastic": elastic.elastic,
    "instance_targets": targets.instance_targets,
    "rand_augment": randaugment.rand_augment,
    "colour_jitter": photometric.colour_jitter,
    "gaussian_noise": photometric.gaussian_noise,
    "erase": photometric.erase,
}
BATCH_OPS: dict[str, Callable] = {"mixup": mixing.mixup, "cutmix": mixing.cutmix}
# Of OPS, those that draw whatever their options; random_affine draws by its options.
RANDOM_OPS = (
    "foreground_crop", "random_resized_crop", "elastic", "rand_augment", "colour_jitter", "gaussian_noise", "erase",
)  # fmt: skip
_FORM = "; expected a function of the op's options that returns the op: (example, rng) -> example, both dicts of arrays"
# Ops that only some tasks have the targets for.
TASKS_OF_OP = {
    "mixup": ("classification",),
    "cutmix": ("classification",),
    "rand_augment": ("classification",),
    "foreground_crop": ("segmentation",),
    "instance_targets": ("segmentation",),
}
# Of the user's own ops beside their options: the code, and the op of the table before which they are applied ("": after all).
OP, BEFORE = "op", "before"


def factory_of(where: str, name: str, given: Any) -> Callable:
    """What makes the op `name` of the section `where`, to which the config gives these options.

    Raises:
      ConfigError: for an unknown name, or options that are none.
    """
    if not isinstance(given, dict):
        raise ConfigError(f"config.{where}.{name}={given!r}; expected the options of {name!r}, {{}} for none")
    known = {**OPS, **BATCH_OPS}
    if OP not in given:
        if name not in known:
            raise ConfigError(
                f"config.{where}.{name} is unknown; choose one of {sorted(known)}, or give your own: "
                f"config.{where}.{name}={{'op': 'my_file.py:name'}}{did_you_mean(name, known)}"
            )
        return known[name]
    if name in known:
        raise ConfigError(f"config.{where}.{name} is an op of imgrec_jax; give {given[OP]!r} another name")
    if not is_own(given[OP]):
        raise ConfigError(f"config.{where}.{name}.{OP}={given[OP]!r}; expected my_file.py:name or package.module:name")
    if given.get(BEFORE, "") not in ("", *OPS):
        raise ConfigError(f"config.{where}.{name}.{BEFORE}={given[BEFORE]!r} is unknown; choose one of {sorted(OPS)}")
    return own.find(f"{where}.{name}.{OP}", given[OP])


def make_ops(where: str, section: ConfigDict, *, of_batches: bool = False) -> list[Callable]:
    """The ops of a section in the order in which they are applied, each called with its options; or the ops of batches."""
    options = options_of(section)
    factories = {name: factory_of(where, name, given) for name, given in options.items()}
    table = list(BATCH_OPS if of_batches else OPS)

    def place(name: str) -> tuple[int, bool, str]:
        if name in table:
            return table.index(name), True, name
        before = options[name].get(BEFORE, "")
        return table.index(before) if before else len(table), False, name

    chosen = [name for name in options if (name in BATCH_OPS) == of_batches]
    made = []
    for name in sorted(chosen, key=place):
        given = {key: value for key, value in options[name].items() if OP not in options[name] or key not in (OP, BEFORE)}
        check_options(f"{where}.{name}", given, factories[name])
        if OP not in options[name]:
            for option, value in given.items():
                _check_value(f"config.{where}.{name}.{option}", name, option, value, factories[name])
        try:
            made.append(factories[name](**given))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"config.{where}.{name}: {error}{own.where(error)}{_FORM if OP in options[name] else ''}"
            ) from error
        if OP in options[name] and not (callable(made[-1]) and own.takes(made[-1], 2)):
            raise ConfigError(f"config.{where}.{name}: what {options[name][OP]} returns is no op{_FORM}")
    return made


# Of options of ops: what is wrong with a value of the right type, by name or by (op, name).
_RANGE = (lambda v: 0 < v[0] <= v[1], "(low, high), more than 0 and in that order")
_SHARES = (lambda v: 0 <= v <= 1, "a number from 0 to 1")
_SIDES = (lambda v: all(side >= 1 for side in (v if isinstance(v, tuple) else (v,))), "1 or more pixels")
_GREY = (lambda v: all(0 <= part <= 255 for part in (v if isinstance(v, tuple) else (v,))), "0 to 255")
_NOT_LESS = (lambda v: v >= 0, "0 or more")
_RULES: dict[str | tuple[str, str], tuple[Callable[[Any], bool], str]] = {
    "scale": _RANGE, "area": _RANGE, ("random_resized_crop", "ratio"): _RANGE,
    "aspect": (lambda v: v >= 1, "1 or more"), ("erase", "ratio"): (lambda v: v >= 1, "1 or more"),
    "size": _SIDES, "length": _SIDES, "shorter": _SIDES, "fill": _GREY,
    "flip": _SHARES, "vertical_flip": _SHARES, "probability": _SHARES,
    "rotate": _NOT_LESS, "shear": _NOT_LESS, "translate": _NOT_LESS, "sigma": _NOT_LESS,
    "channels": (lambda v: v in (1, 3), "1 or 3"),
    "fit": (lambda v: v in ("none", "inside", "cover", "stretch"), "'none', 'inside', 'cover' or 'stretch'"),
}  # fmt: skip


def _check_value(key: str, op: str, option: str, value: Any, factory: Callable) -> None:
    """Raises ConfigError for a value that is of another type than the factory's argument, or cannot be."""
    value = tuple(value) if isinstance(value, list) else value
    hint = typing.get_type_hints(factory).get(option)
    expected = _missing(value, hint)
    if expected is None and value is not None and (rule := _RULES.get((op, option)) or _RULES.get(option)):
        good, expected = rule
        expected = None if good(value) else expected
    if expected is not None:
        raise ConfigError(f"{key}={value!r}; expected {expected}")


def _missing(value: Any, hint: Any) -> str | None:
    """What a value of this type would be; None where it is one, or where the hint says nothing."""
    numbers = {float: ("a number", (int, float)), int: ("an integer", (int,)), str: ("a text", (str,))}
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        wanted = [_missing(value, part) for part in typing.get_args(hint)]
        return None if None in wanted else " or ".join(filter(None, wanted))
    if hint is type(None):
        return None if value is None else "None"
    if hint is bool:
        return None if isinstance(value, bool) else "True or False"
    if hint in numbers:
        name, kinds = numbers[hint]
        good = isinstance(value, kinds) and not isinstance(value, bool) and (isinstance(value, str) or np.isfinite(value))
        return None if good else name
    if typing.get_origin(hint) is tuple and ... not in typing.get_args(hint):
        parts = typing.get_args(hint)
        good = isinstance(value, tuple) and len(value) == len(parts)
        good = good and all(_missing(v, part) is None for v, part in zip(value, parts, strict=True))
        what = "integers" if set(parts) == {int} else "numbers"
        return None if good else f"{len(parts)} {what}, e.g. {(28, 28) if what == 'integers' else (0.9, 1.1)}"
    return None
