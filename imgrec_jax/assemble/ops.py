"""Names to ops: one table, in the order in which they are applied."""

from collections.abc import Callable
from typing import Any

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
        try:
            made.append(factories[name](**given))
        except (ValueError, TypeError) as error:
            raise ConfigError(
                f"config.{where}.{name}: {error}{own.where(error)}{_FORM if OP in options[name] else ''}"
            ) from error
        if OP in options[name] and not (callable(made[-1]) and own.takes(made[-1], 2)):
            raise ConfigError(f"config.{where}.{name}: what {options[name][OP]} returns is no op{_FORM}")
    return made
