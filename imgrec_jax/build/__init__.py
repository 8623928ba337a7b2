"""The one place where the names in a config become objects. Below it nothing sees a config.

A task has a module here that knows its models, losses and data sets; what all tasks share is in this file. Every check that
needs no data runs first (`check`), so that a mistake costs a second, not a download.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from imgrec_jax import optim
from imgrec_jax.build import classification, detection, pretrained, segmentation
from imgrec_jax.build.lookup import BATCH_OPS, DTYPES, OPS, ConfigError, choice, make_ops, options_of, steps_of, unit_of
from imgrec_jax.data import batch as batch_lib
from imgrec_jax.data.check import Report
from imgrec_jax.data.pipeline import Pipeline
from imgrec_jax.data.source import Source
from imgrec_jax.parallel import MODES, Layout, make_layout
from imgrec_jax.step import REMAT
from imgrec_jax.tasks.task import Task

__all__ = ["ConfigError", "Experiment", "build", "check", "reports"]

TASKS = {"classification": classification, "detection": detection, "segmentation": segmentation}
REPORTS: dict[str, Callable] = {"detection": detection.reports}  # tasks whose data can be checked


class Experiment(NamedTuple):
    """All that the loop runs. Durations are in steps.

    `initialise` changes the variables that a fresh run begins with, before the optimiser's state is made of them:
    variables -> (variables, what it did, as text). None leaves them as the task drew them.
    """

    seed: int
    dtype: jnp.dtype  # of the parameters
    task: Task
    batch_spec: dict[str, Any]  # arrays or shapes of one process's rows
    variable_shapes: dict[str, Any]
    train: Pipeline
    evals: dict[str, Pipeline]
    summarise: dict[str, Callable]
    initialise: Callable[[dict], tuple[dict, str]] | None
    make_optimizer: Callable  # (params=...) -> optax transformation
    schedule: Callable
    batch_size: int
    total_steps: int
    eval_every: int
    checkpoint_every: int | None
    keep_checkpoints: int
    log_every: int
    show: tuple[str, ...]
    tensorboard: bool
    ema_decay: float
    accumulate: int
    select_metric: str
    select_mode: str
    patience: int | None
    on_device: bool | None
    layout: Layout
    remat: str
    profile: tuple[int, int] | None  # first step, number of steps


def check(config: ConfigDict) -> None:
    """Raises ConfigError for what can be seen to be wrong without any data."""
    choice("task", config.task, TASKS)
    choice("dtype", config.dtype, DTYPES)
    if config.dtype == "float64" and not jax.config.jax_enable_x64:
        raise ConfigError("config.dtype='float64' needs JAX's 64-bit mode: set JAX_ENABLE_X64=1")
    choice("select.mode", config.select.mode, ("min", "max"))
    choice("parallel.mode", config.parallel.mode, MODES)
    choice("parallel.remat", config.parallel.remat, REMAT)
    choice("data.remainder", config.data.remainder, ("pad", "drop"))
    make_ops("data.train_ops", config.data.train_ops, {**OPS, **BATCH_OPS})
    make_ops("data.eval_ops", config.data.eval_ops, OPS)
    if config.select.metric and not config.data.validation_split:
        raise ConfigError(
            f"select.metric={config.select.metric!r} chooses by the validation split, and data.validation_split is empty; "
            "give one, e.g. data.train_split='train[:55000]' data.validation_split='train[55000:]' (never the test split)"
        )
    if config.data.validation_split and config.data.validation_split == config.data.test_split:
        raise ConfigError(
            f"data.validation_split and data.test_split are both {config.data.test_split!r}: nothing is selected on test data"
        )
    if not 0 <= config.optim.ema_decay < 1:
        raise ConfigError(f"optim.ema_decay={config.optim.ema_decay}; expected 0 (none) or a decay below 1")
    accumulate, batch_size = config.optim.accumulate, config.data.batch_size
    if accumulate < 1 or batch_size % accumulate:
        raise ConfigError(f"optim.accumulate={accumulate} does not divide data.batch_size={batch_size}")
    for name, section in (("train.total", config.train), ("eval.every", config.eval)):
        unit_of(section, name)
    try:  # an optimiser for no parameters: names and options, not rules
        _optimizer(config, lambda step: 0.0)(params={})
        make_schedule(config, 1, 1)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    pretrained.check(config)
    TASKS[config.task].check(config)


def reports(config: ConfigDict) -> Iterator[Report]:
    """The sanity report of every split that a config names, one at a time; ConfigError for a task without one."""
    check(config)
    if config.task not in REPORTS:
        raise ConfigError(f"there is no sanity report for config.task={config.task!r}; there is one for {sorted(REPORTS)}")
    return REPORTS[config.task](config)


def build(config: ConfigDict) -> Experiment:
    """A config -> everything the loop runs; opens (and prepares) the data."""
    check(config)
    data = config.data
    batch_lib.examples_per_process(data.batch_size, jax.process_count(), jax.device_count())
    try:
        layout = make_layout(config.parallel.mode, config.parallel.fsdp)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    parts = TASKS[config.task].parts(config, partial(_eval_batch_size, data.eval_batch_size), layout.axis_name)
    shared = {
        "seed": config.seed,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "threads": data.threads,
    }
    train = Pipeline(
        source=parts.train,
        order=parts.train_order(parts.train),
        ops=make_ops("data.train_ops", data.train_ops, OPS) + parts.train_ops,
        batch_ops=make_ops("data.train_ops", data.train_ops, BATCH_OPS),
        collate=parts.train_collate,
        **shared,
    )
    eval_ops = make_ops("data.eval_ops", data.eval_ops, OPS) + parts.eval_ops
    evals = {
        split: Pipeline(source=source, order=parts.eval_order(source), ops=eval_ops, collate=parts.eval_collate, **shared)
        for split, source in parts.evals.items()
    }
    epoch = train.steps_per_epoch
    total = steps_of(config.train, "train.total", epoch, data.batch_size)
    schedule = make_schedule(config, total, epoch)
    spec = train.batch(0)
    shapes = jax.eval_shape(lambda: parts.task.init(jax.random.PRNGKey(0), spec))
    make_optimizer = partial(_optimizer(config, schedule), **_rules(config))
    try:  # the rules look for their parameters
        make_optimizer(params=shapes["params"])
    except ValueError as error:
        raise ConfigError(f"config.optim: {error}") from error
    eval_every = steps_of(config.eval, "eval.every", epoch, data.batch_size)
    checkpoint_every = steps_of(config.checkpoint, "checkpoint.every", epoch, data.batch_size, default=eval_every)
    return Experiment(
        seed=config.seed,
        dtype=jnp.promote_types(DTYPES[config.dtype], jnp.float32),
        task=parts.task,
        batch_spec=spec,
        variable_shapes=shapes,
        train=train,
        evals=evals,
        summarise=parts.summarise,
        initialise=pretrained.make_initialise(config),
        make_optimizer=make_optimizer,
        schedule=schedule,
        batch_size=data.batch_size,
        total_steps=total,
        eval_every=eval_every,
        checkpoint_every=checkpoint_every if config.checkpoint.enabled else None,
        keep_checkpoints=config.checkpoint.keep,
        log_every=config.log.every_steps,
        show=tuple(config.log.show),
        tensorboard=config.log.tensorboard,
        ema_decay=config.optim.ema_decay,
        accumulate=config.optim.accumulate,
        select_metric=config.select.metric,
        select_mode=config.select.mode,
        patience=config.select.patience,
        on_device=data.on_device,
        layout=layout,
        remat=config.parallel.remat,
        profile=(config.profile.first_step, config.profile.steps) if config.profile.first_step is not None else None,
    )


def _eval_batch_size(wanted: int, sources: dict[str, Source]) -> int:
    """At most the largest split, and rounded up to what divides among the devices: the rest is padding anyway."""
    size = min(wanted, max(map(len, sources.values()), default=wanted))
    return -(-size // jax.device_count()) * jax.device_count()


def _rules(config: ConfigDict) -> dict[str, Any]:
    return {name: config.optim[name] for name in ("weight_decay", "lr_multiplier", "frozen")}


def _optimizer(config: ConfigDict, schedule: Callable) -> Callable:
    options = {"options": options_of(config.optim.options), "clip_norm": config.optim.clip_norm}
    return partial(optim.make_optimizer, config.optim.name, schedule=schedule, **options)


def learning_rate(config: ConfigDict) -> float:
    """The peak rate, scaled linearly with the batch where a base is given (Goyal et al. 2017, arXiv 1706.02677)."""
    base = config.optim.base_batch_size
    return config.optim.learning_rate * (config.data.batch_size / base if base else 1.0)


def make_schedule(config: ConfigDict, total_steps: int, steps_per_epoch: int) -> Callable:
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
