"""What a config leaves to be found in the user's own data: classes, sizes, channels, splits. What it gives, it keeps.

The config of a run holds what was found, so that the run opens without its data, and goes on with what it began with.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from imgrec_jax.config import flatten


class Open(NamedTuple):
    """left: the value of a key that is left to be found; stand_in: what takes its place in checks that need no data; task: the
    only one that uses the key."""

    left: Any
    stand_in: Any
    task: str = ""


AUTO = "auto"  # of a split
KEYS: dict[str, Open] = {
    "model.num_classes": Open(None, 1000),  # as many as any top_k needs
    "model.kind": Open("", "faster"),
    "model.anchor_sizes": Open((), ((16,), (32,), (64,))),
    "model.aspect_ratios": Open((), (1.0,)),
    "data.options.class_names": Open((), ("background", "foreground")),
    "data.options.size": Open(None, (64, 64)),
    "data.options.channels": Open(None, 3),
    "data.options.depth": Open(None, 8),
    "data.options.kind": Open("", "index"),
    "data.eval_ops.resize.size": Open(None, (64, 64)),
    "data.eval_ops.to_channels.channels": Open(None, 3),
    "data.train_ops.random_affine.size": Open(None, (64, 64)),
    "data.train_ops.foreground_crop.size": Open(None, (96, 96)),
    "data.train_ops.to_channels.channels": Open(None, 3),
    "data.mean": Open((), (0.5,)),
    "data.std": Open((), (0.5,)),
    "data.min_size": Open((), (256,), "detection"),
    "data.max_size": Open(None, 256, "detection"),
    "data.canvases": Open((), ((256, 256),), "detection"),
    "data.max_boxes": Open(None, 100, "detection"),
    "data.validation_split": Open(AUTO, "validation"),
    "data.test_split": Open(AUTO, "test"),
}


def left_open(config: ConfigDict) -> list[str]:
    """The keys of a config that are to be found."""
    flat = flatten(config)
    unset = {key: list(o.left) if o.left == () else o.left for key, o in KEYS.items() if o.task in ("", config.task)}
    return [key for key, left in unset.items() if key in flat and flat[key] == left]


def with_values(config: ConfigDict, values: dict[str, Any]) -> ConfigDict:
    """A copy in which the keys that are left open have these values, where there are any."""
    keys = left_open(config)
    config = config.copy_and_resolve_references()
    locked = config.is_locked
    with config.unlocked(), config.ignore_type():
        for key in keys:
            if key in values:
                *sections, name = key.split(".")
                section = config
                for part in sections:
                    section = section[part]
                section[name] = values[key]
    if locked:
        config.lock()
    return config


def stand_in(config: ConfigDict) -> ConfigDict:
    """A copy that can be checked without data."""
    return with_values(config, {key: entry.stand_in for key, entry in KEYS.items()})


def remembered(config: ConfigDict, before: ConfigDict) -> ConfigDict:
    """A copy with what was found when the run of the config `before` began."""
    flat = flatten(before)
    values = {key: flat[key] for key in KEYS if key in flat}
    return with_values(config, {key: _tuples(value) for key, value in values.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
