"""A config by its name, with values given as text: what the command lines share."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ml_collections import ConfigDict


def configure(name: str, overrides: Mapping[str, str]) -> tuple[ConfigDict, list[str]]:
    """(the config of that name with these values, given as text; what to say of it).

    Raises:
      ConfigFileError, OverrideError, ConfigError: for a config, key or value that cannot be.
    """
    from imgrec_jax.config import flatten, load, modernise, override

    notes: list[str | None] = []
    config = modernise(load(name))
    given: set[str] = set()
    opened = any(key not in flatten(config) or key.endswith((".name", ".kind")) for key in overrides)
    if opened:
        from imgrec_jax.assemble import components, values

        notes = [components.switch(config, key, overrides[key]) for key in components.SWITCHES if key in overrides]
        if "schedule.name" in overrides:
            notes.append(values.switch_schedule(config, overrides["schedule.name"]))
        given = set(flatten(config))
        config = components.complete(config, settle=False)
    for key, text in overrides.items():
        override(config, key, text)
    if opened:
        components.close(config, given)
    settle_durations(config, overrides)
    return config, [note for note in notes if note]


def settle_durations(config, overridden: Iterable[str]) -> None:
    """A duration given on the command line replaces the config's, whatever the unit of either.

    Raises:
      OverrideError: for one that is given in two units.
    """
    from imgrec_jax.config import OverrideError

    units, given = ("_steps", "_epochs", "_examples"), list(overridden)
    for key in given:
        section, _, name = key.rpartition(".")
        unit = next((u for u in units if name.endswith(u)), None)
        others = [name.removesuffix(unit) + u for u in units if u != unit] if unit else []
        if section and others and all(other in config[section] for other in others) and config[section][name] is not None:
            for other in others:
                if f"{section}.{other}" in given and config[section][other] is not None:
                    raise OverrideError(
                        f"--config.{key}={config[section][name]} and --config.{section}.{other}={config[section][other]} are "
                        "two units of one duration; give one"
                    )
                config[section][other] = None


def default_workdir(config_path: str) -> Path:
    """configs/scenes_detection.py:faster,tiny -> runs/scenes_detection_faster_tiny."""
    path, _, variant = config_path.partition(":")
    return Path("runs") / "_".join(filter(None, [Path(path).stem, *re.split(r"[^\w.-]+", variant)]))
