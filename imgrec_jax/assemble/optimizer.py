"""Optimiser and schedule of a config."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from imgrec_jax import optim
from imgrec_jax.assemble import own
from imgrec_jax.assemble.lookup import ConfigError, options_of, steps_of
from imgrec_jax.config import is_own

_LATER = ("unfreeze_after_steps", "unfreeze_after_epochs", "unfreeze_after_examples")


def check(config: ConfigDict) -> None:
    """Raises ConfigError for names, options and ranges that cannot be."""
    if not 0 <= config.optim.ema_decay < 1:
        raise ConfigError(f"optim.ema_decay={config.optim.ema_decay}; expected 0 (none) or a decay below 1")
    accumulate, batch_size = config.optim.accumulate, config.data.batch_size
    if accumulate < 1 or batch_size % accumulate:
        raise ConfigError(f"optim.accumulate={accumulate} does not divide data.batch_size={batch_size}")
    if any(config.optim[key] is not None for key in _LATER) and not config.optim.frozen:
        raise ConfigError("config.optim.unfreeze_after_* says when frozen parameters are trained, and optim.frozen is empty")
    try:  # an optimiser for no parameters: names and options, not rules
        _optimizer(config, lambda step: 0.0)(params={})
        make_schedule(config, 1, 1)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"config.optim or config.schedule: {error}") from error


def make_optimizer(config: ConfigDict, schedule: Callable, *, params: Any, steps_per_epoch: int = 1) -> Any:
    """The optax transformation for these parameters (or their shapes); ConfigError for a rule that matches none."""
    rules = {name: config.optim[name] for name in ("weight_decay", "lr_multiplier", "frozen", "layer_decay")}
    later = {key: config.optim[key] for key in _LATER}
    if any(value is not None for value in later.values()):
        rules["unfreeze_at"] = steps_of(later, "optim.unfreeze_after", steps_per_epoch, config.data.batch_size)
    try:
        return _optimizer(config, schedule)(params=params, **rules)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"config.optim: {error}") from error


def _optimizer(config: ConfigDict, schedule: Callable) -> Callable:
    options = {"options": options_of(config.optim.options), "clip_norm": config.optim.clip_norm}
    return partial(optim.make_optimizer, find(config), schedule=schedule, **options)


def find(config: ConfigDict) -> str | Callable:
    """The optimiser that a config names: a name that `optim` knows, or the user's own."""
    name = config.optim.name
    return own.find("optim.name", name) if is_own(name) else name


def learning_rate(config: ConfigDict) -> float:
    """The peak rate, scaled linearly with the batch where a base is given (Goyal et al. 2017, arXiv 1706.02677)."""
    base = config.optim.base_batch_size
    return config.optim.learning_rate * (config.data.batch_size / base if base else 1.0)


def make_schedule(config: ConfigDict, total_steps: int, steps_per_epoch: int) -> Callable:
    """step -> learning rate, of a run of `total_steps`."""
    options = config.schedule.to_dict()
    warmup = {key: options.pop(key) for key in list(options) if key.startswith("warmup_") and key != "warmup_factor"}
    return optim.make_schedule(
        options.pop("name"),
        learning_rate=learning_rate(config),
        total_steps=total_steps,
        warmup_steps=steps_of(warmup, "schedule.warmup", steps_per_epoch, config.data.batch_size, default=0),
        boundaries=[round(epoch * steps_per_epoch) for epoch in options.pop("boundaries_epochs")],
        **options,
    )
