"""A config as JSON, also of early versions, and what differs between two.

A key that such a file lacks has the default that it had when the file was written, and names that changed since are known by
both (`modernise`).
"""

from pathlib import Path, PurePath

from ml_collections import ConfigDict

from imgrec_jax.config.shape import FREE, base

# What a key or a value was called before: {old key: new key}, {key: {old value: new value}}.
RENAMED_KEYS = {"model.classes": "model.num_classes"}
RENAMED_VALUES = {
    "model.name": {"seed_a": "pytorch_cnn", "seed_b": "keras_cnn", "seed_c": "wide_cnn"},
    "pretrained.format": {"torchvision": "auto"},
}

# Workdirs are of format 2 since they keep a `run.json`; see `run.workdir`. A default that changes is listed here with the
# last format that had the old one, so that a file without the key keeps its meaning: {key: [(last format, old default)]}.
OLD_DEFAULTS: dict[str, list[tuple[int, object]]] = {}


# A workdir may be resumed with other values of these: they change how long a run is and what it prints, not what it computes.
MAY_CHANGE = (
    "seeds",
    "train.total_",
    "log.",
    "checkpoint.",
    "data.data_dir",
    "data.manual_dir",
    "data.prepare",
    "data.test_sets",
    "data.threads",
    "data.in_memory",
    "data.on_device",
    "data.max_pixels",
    "parallel.",
    "profile.",
)


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict[str, object]:
    """{"optim.name": "sgd", ...}; an empty section is kept as {}."""
    flat: dict[str, object] = {}
    for key, value in (config.to_dict() if isinstance(config, ConfigDict) else config).items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _plain(value)
    return flat


def to_plain(config: ConfigDict) -> dict[str, object]:
    """The config as nested dicts of what JSON can hold; `from_plain` reads it back."""
    return {key: _plain(value) for key, value in config.to_dict().items()}


def from_plain(stored: dict[str, object], stored_format: int = 2) -> ConfigDict:
    """What `to_plain` wrote, also of early versions, as a complete, locked config.

    Args:
      stored: nested, or flat with dots as early versions wrote it.
      stored_format: of the workdir it lies in.
    """
    nested: dict = {}
    for key, value in stored.items():
        *sections, name = key.split(".")
        section = nested
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = tuples(value)
    config = base()
    with config.unlocked(), config.ignore_type():
        for key, history in OLD_DEFAULTS.items():
            old = [default for last, default in history if stored_format <= last]
            if old:
                _set(config, key, old[0])
        _fill(config, nested, "")
    return modernise(config)


def _fill(config: ConfigDict, values: dict, prefix: str) -> None:
    for name, value in values.items():
        if isinstance(value, dict) and f"{prefix}{name}" not in FREE and isinstance(config.get(name), ConfigDict):
            _fill(config[name], value, f"{prefix}{name}.")
        else:
            config[name] = ConfigDict(value) if isinstance(value, dict) else value


def _set(config: ConfigDict, key: str, value: object) -> None:
    *sections, name = key.split(".")
    for section in sections:
        config = config[section]
    config[name] = value


def modernise(config: ConfigDict) -> ConfigDict:
    """A copy with today's names of keys and values, locked as the config was."""
    config = config.copy_and_resolve_references()
    locked, flat = config.is_locked, flatten(config)
    with config.unlocked():
        for old, new in RENAMED_KEYS.items():
            if old in flat:
                section = config[old.rpartition(".")[0]] if "." in old else config
                _set(config, new, section[old.rpartition(".")[2]])
                del section[old.rpartition(".")[2]]
        for key, values in RENAMED_VALUES.items():
            if flat.get(key) in values:
                _set(config, key, values[str(flat[key])])
    if locked:
        config.lock()
    return config


def _plain(value: object) -> object:
    """As JSON reads it back: tuples are lists; a config made in Python may have numbers of numpy, and paths."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def tuples(value: object) -> object:
    if isinstance(value, dict):
        return {key: tuples(v) for key, v in value.items()}
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


def whole_path(place: str) -> str:
    """A folder as it is called from everywhere; "" and "gs://..." as they are."""
    return str(Path(place).expanduser().absolute()) if place and "://" not in place else place


def data_folders(config: ConfigDict) -> list[str]:
    """Whence a config reads, by whole paths."""
    data = with_whole_paths(config).data
    return [place for place in (data.manual_dir, data.data_dir, *data.test_sets.values()) if isinstance(place, str) and place]


def with_whole_paths(config: ConfigDict) -> ConfigDict:
    """A copy whose folders of data are whole: a run may go on from another folder than it began in."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for section, keys in ((config.data, ("manual_dir", "data_dir")), (config.data.test_sets, list(config.data.test_sets))):
            for key in keys:
                if isinstance(section[key], str):
                    section[key] = whole_path(section[key])
    return config


def difference(old: ConfigDict, new: ConfigDict, may_change: tuple[str, ...] = MAY_CHANGE) -> list[str]:
    """Lines `key: old -> new` for every value that decides what a run computes; may_change: beginnings of keys that do not."""
    whole = (with_whole_paths(modernise(c)) for c in (old, new))
    a, b = ({k: v for k, v in flatten(c).items() if not (k in FREE and v == {})} for c in whole)
    absent = "(absent)"
    return [
        f"{key}: {a.get(key, absent)} -> {b.get(key, absent)}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key, absent) != b.get(key, absent) and not key.startswith(may_change)
    ]
