"""The one place where the names in a config become objects. Below it nothing sees a config.

Every check that needs no data runs first (`check`), so that a mistake costs a second, not a download.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from imgrec_jax import losses, metrics, optim
from imgrec_jax.data import batch as batch_lib
from imgrec_jax.data import geometry_ops, image_ops, prepare
from imgrec_jax.data.pipeline import Pipeline, sequential_order, shuffled_order
from imgrec_jax.data.source import Source
from imgrec_jax.models import convnet, mlp
from imgrec_jax.tasks import classify
from imgrec_jax.tasks.task import Task

MODELS: dict[str, Callable] = {
    "linear": mlp.Mlp,
    "mlp": mlp.Mlp,
    "convnet": convnet.ConvNet,
    "seed_a": convnet.seed_a,
    "seed_b": convnet.seed_b,
    "seed_c": convnet.seed_c,
}
# What factories that take **options build, for the names of those options.
_FIELDS = {convnet.seed_a: convnet.ConvNet, convnet.seed_b: convnet.ConvNet, convnet.seed_c: convnet.ConvNet}

LOSSES: dict[str, Callable] = {
    "softmax_cross_entropy": losses.softmax_cross_entropy,
    "negative_log_likelihood": losses.negative_log_likelihood,
    "binary_cross_entropy": losses.binary_cross_entropy,
    "mean_squared_error": losses.mean_squared_error,
}

# In the order in which they are applied, whatever the order in a config.
OPS: dict[str, Callable] = {
    "to_channels": image_ops.to_channels,
    "resize": geometry_ops.resize,
    "resize_and_center_crop": geometry_ops.resize_and_center_crop,
    "random_resized_crop": geometry_ops.random_resized_crop,
    "random_affine": geometry_ops.random_affine,
    "colour_jitter": image_ops.colour_jitter,
    "gaussian_noise": image_ops.gaussian_noise,
    "erase": image_ops.erase,
}
BATCH_OPS: dict[str, Callable] = {"mixup": image_ops.mixup, "cutmix": image_ops.cutmix}

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
TASKS = ("classification",)


class ConfigError(ValueError):
    """A value in the config that cannot be: names the key, the value and what is expected."""


class Experiment(NamedTuple):
    """All that the loop runs. Durations are in steps."""

    seed: int
    task: Task
    batch_spec: dict[str, jax.ShapeDtypeStruct]
    train: Pipeline
    evals: dict[str, Pipeline]
    summarise: dict[str, Callable]
    make_optimizer: Callable
    describe_optimizer: Callable
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


def check(config: ConfigDict) -> None:
    """Raises ConfigError for what can be seen to be wrong without any data."""
    _choice("task", config.task, TASKS)
    _choice("dtype", config.dtype, DTYPES)
    make_model(config)
    make_loss(config)
    make_ops("data.train_ops", config.data.train_ops, {**OPS, **BATCH_OPS})
    make_ops("data.eval_ops", config.data.eval_ops, OPS)
    _choice("select.mode", config.select.mode, ("min", "max"))
    _choice("data.remainder", config.data.remainder, ("pad", "drop"))
    if config.select.metric and not config.data.validation_split:
        raise ConfigError(
            f"select.metric={config.select.metric!r} chooses by the validation split, and data.validation_split is empty; "
            "give one, e.g. data.train_split='train[:55000]' data.validation_split='train[55000:]' (never the test split)"
        )
    if config.data.validation_split and config.data.validation_split == config.data.test_split:
        raise ConfigError(f"data.validation_split and data.test_split are both {config.data.test_split!r}: nothing is selected on test data")
    if not 0 <= config.optim.ema_decay < 1:
        raise ConfigError(f"optim.ema_decay={config.optim.ema_decay}; expected 0 (none) or a decay below 1")
    if config.optim.accumulate < 1 or config.data.batch_size % config.optim.accumulate:
        raise ConfigError(f"optim.accumulate={config.optim.accumulate} does not divide data.batch_size={config.data.batch_size}")
    for name, section in (("train.total", config.train), ("eval.every", config.eval)):
        _unit(section, name)
    try:  # an optimiser for a parameter that does not exist: names and options, not rules
        optim.make_optimizer(
            config.optim.name, schedule=lambda step: 0.0, params={}, options=_options(config.optim.options),
            clip_norm=config.optim.clip_norm,
        )  # fmt: skip
        make_schedule(config, 1, 1, config.data.batch_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def build(config: ConfigDict) -> Experiment:
    """A checked config -> everything the loop runs; opens (and prepares) the data."""
    check(config)
    data = config.data
    train_source, eval_sources = _open_splits(config)
    process = {"process_index": jax.process_index(), "process_count": jax.process_count(), "threads": data.threads}
    batch_lib.examples_per_process(data.batch_size, jax.process_count(), jax.device_count())
    # An evaluation batch is padded anyway: round it up to what divides among the devices.
    eval_batch = -(-min(data.eval_batch_size, max(map(len, eval_sources.values()))) // jax.device_count()) * jax.device_count()
    train_ops, batch_ops = make_ops("data.train_ops", data.train_ops, OPS), make_ops("data.train_ops", data.train_ops, BATCH_OPS)
    train = Pipeline(
        source=train_source, order=shuffled_order(len(train_source), data.batch_size, config.seed, data.remainder),
        seed=config.seed, ops=train_ops, batch_ops=batch_ops, **process,
    )  # fmt: skip
    eval_ops = make_ops("data.eval_ops", data.eval_ops, OPS)
    evals = {
        split: Pipeline(source=source, order=sequential_order(len(source), eval_batch), seed=config.seed, ops=eval_ops, **process)
        for split, source in eval_sources.items()
    }
    example = train.batch(0)
    spec = {k: jax.ShapeDtypeStruct((data.batch_size, *v.shape[1:]), v.dtype) for k, v in example.items()}
    epoch = train.steps_per_epoch
    total = _steps(config.train, "train.total", epoch, data.batch_size)
    schedule = make_schedule(config, total, epoch, data.batch_size)
    rules = {"weight_decay": config.optim.weight_decay, "lr_multiplier": config.optim.lr_multiplier, "frozen": config.optim.frozen}
    make_optimizer = partial(
        optim.make_optimizer, config.optim.name, schedule=schedule, options=_options(config.optim.options),
        clip_norm=config.optim.clip_norm, **rules,
    )  # fmt: skip
    eval_every = _steps(config.eval, "eval.every", epoch, data.batch_size)
    checkpoint_every = _steps(config.checkpoint, "checkpoint.every", epoch, data.batch_size, default=eval_every)
    return Experiment(
        seed=config.seed,
        task=make_task(config, train_source),
        batch_spec=spec,
        train=train,
        evals=evals,
        summarise=dict.fromkeys(evals, metrics.compute),
        make_optimizer=lambda params: make_optimizer(params=params),
        describe_optimizer=lambda params: optim.describe(params, **rules),
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
    )


def _open_splits(config: ConfigDict) -> tuple[Source, dict[str, Source]]:
    data = config.data
    places = {"data_dir": data.data_dir, "manual_dir": data.manual_dir, "in_memory": data.in_memory}
    open_split = partial(prepare.open_classification, data.name, **places)
    evals = {"validation": data.validation_split, "test": data.test_split}
    return open_split(data.train_split), {name: open_split(split) for name, split in evals.items() if split}


def make_task(config: ConfigDict, source: Source) -> Task:
    classes = make_model(config).classes
    if source.info.class_names and len(source.info.class_names) != classes:
        raise ConfigError(f"model.classes={classes}, but {source.info.name} has {len(source.info.class_names)} classes")
    return classify.make_task(
        model=make_model(config),
        loss_fn=make_loss(config),
        classes=classes,
        mean=config.data.mean,
        std=config.data.std,
        top_k=config.eval.top_k,
        outputs_are_probabilities=config.loss.name == "mean_squared_error",
    )


def make_model(config: ConfigDict) -> Any:
    options = _options(config.model)
    name = options.pop("name")
    factory = MODELS[_choice("model.name", name, MODELS)]
    _known_options("model", options, _FIELDS.get(factory, factory))
    try:
        model = factory(**options, dtype=DTYPES[config.dtype])
        # Names inside (activation, initialiser, norm) are looked up when a model is traced; a small image shows them all.
        jax.eval_shape(model.init, jax.random.PRNGKey(0), jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model {name}: {error}") from error
    return model


def make_loss(config: ConfigDict) -> Callable:
    options = _options(config.loss)
    loss = LOSSES[_choice("loss.name", options.pop("name"), LOSSES)]
    _known_options("loss", options, loss, skip=2)
    return partial(loss, **options)


def make_ops(where: str, section: ConfigDict, table: dict[str, Callable]) -> list[Callable]:
    """The ops of `section` that are in `table`, in the table's order, each called with its options."""
    options = _options(section)
    for name in options:
        _choice(where, name, {**OPS, **BATCH_OPS})
    chosen = [(name, factory) for name, factory in table.items() if name in options]
    for name, factory in chosen:
        _known_options(f"{where}.{name}", options[name], factory)
    return [factory(**options[name]) for name, factory in chosen]


def make_schedule(config: ConfigDict, total_steps: int, steps_per_epoch: int, batch_size: int) -> Callable:
    options = config.schedule.to_dict()
    warmup = {key: options.pop(key) for key in list(options) if key.startswith("warmup_") and key != "warmup_factor"}
    return optim.make_schedule(
        options.pop("name"),
        learning_rate=config.optim.learning_rate,
        total_steps=total_steps,
        warmup_steps=_steps(warmup, "schedule.warmup", steps_per_epoch, batch_size, default=0),
        boundaries=[round(epoch * steps_per_epoch) for epoch in options.pop("boundaries_epochs")],
        **options,
    )


def _unit(section: Any, name: str, required: bool = True) -> str | None:
    """Which of name_steps, name_epochs and name_examples is set."""
    short = name.rsplit(".", 1)[-1]
    given = [unit for unit in ("steps", "epochs", "examples") if section[f"{short}_{unit}"] is not None]
    if len(given) > 1 or (required and not given):
        raise ConfigError(f"{name}_steps, {name}_epochs, {name}_examples: {given or 'none'} set; set exactly one (the others None)")
    if given and not section[f"{short}_{given[0]}"] >= 0:
        raise ConfigError(f"{name}_{given[0]}={section[f'{short}_{given[0]}']} is negative")
    return given[0] if given else None


def _steps(section: Any, name: str, steps_per_epoch: int, batch_size: int, default: int | None = None) -> int:
    """A duration in steps, at least 1."""
    unit = _unit(section, name, required=default is None)
    if unit is None:
        return default
    value = section[f"{name.rsplit('.', 1)[-1]}_{unit}"]
    factor = {"steps": 1.0, "epochs": steps_per_epoch, "examples": 1 / batch_size}[unit]
    return max(round(value * factor), 1)


def _choice(key: str, value: str, known: Any) -> str:
    if value not in known:
        raise ConfigError(f"config.{key}={value!r} is unknown; choose one of {sorted(known)}")
    return value


def _known_options(where: str, options: dict[str, Any], factory: Callable, skip: int = 0) -> None:
    accepted = [name for name in list(inspect.signature(factory).parameters)[skip:] if name not in ("parent", "name")]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ConfigError(f"config.{where} takes no {unknown}; it takes {accepted}")


def _options(section: ConfigDict) -> dict[str, Any]:
    return section.to_dict()
