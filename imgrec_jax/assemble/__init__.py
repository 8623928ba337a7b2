"""The one place where the names in a config become objects. Below it nothing sees a config.

Each module here makes one part of an experiment, from tables in which every entry says which tasks it serves. Every check that
needs no data runs first (`check`), so that a mistake costs a second, not a download. What a trained run needs to predict
(`inference`) is made without any data.
"""

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from imgrec_jax.assemble import as_trained, data, found, model, optimizer, own, preprocess, pretrained, task, values
from imgrec_jax.assemble.components import check_types, close, complete
from imgrec_jax.assemble.lookup import DTYPES, ConfigError, choice, steps_of, unit_of
from imgrec_jax.config import SEEDS_IN, flatten, modernise, replica, replicas_of
from imgrec_jax.data import batch as batch_lib
from imgrec_jax.data.check import Report
from imgrec_jax.data.check_examples import ExamplesReport
from imgrec_jax.data.pipeline import Pipeline
from imgrec_jax.data.preprocess import Preprocess
from imgrec_jax.data.source import Source, fingerprint
from imgrec_jax.experiment import Cadence, Compute, Data, Experiment, Optimisation, Selection
from imgrec_jax.parallel import MODES, Layout, make_layout
from imgrec_jax.run import workdir
from imgrec_jax.run.writers import emit
from imgrec_jax.step import REMAT
from imgrec_jax.tasks.task import Task

__all__ = [
    "ConfigError",
    "Inference",
    "build",
    "check",
    "class_names",
    "complete",
    "going_on",
    "inference",
    "remembered",
    "replicas",
    "reports",
]

TASKS = tuple(data.TARGETS)


def check(config: ConfigDict) -> None:
    """Raises ConfigError for what can be seen to be wrong without any data."""
    config = found.stand_in(config) if data.entry_of(config).survey else config
    choice("task", config.task, TASKS)
    choice("dtype", config.dtype, DTYPES)
    choice("seeds_in", config.seeds_in, SEEDS_IN)
    if config.dtype == "float64" and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]  # flags are added at run time
        raise ConfigError("config.dtype='float64' needs JAX's 64-bit mode: set JAX_ENABLE_X64=1")
    check_types(config)
    values.check(config)
    values.check_used(config)
    _check_seeds(config)
    choice("select.mode", config.select.mode, ("min", "max"))
    choice("parallel.mode", config.parallel.mode, MODES)
    choice("parallel.remat", config.parallel.remat, REMAT)
    choice("data.remainder", config.data.remainder, ("pad", "drop"))
    preprocess.check(config)
    if config.select.metric and not config.data.validation_split:
        raise ConfigError(
            f"select.metric={config.select.metric!r} chooses by the validation split, and data.validation_split is empty; "
            "give one, e.g. data.train_split='train[:55000]' data.validation_split='train[55000:]' (never the test split)"
        )
    if (
        config.data.validation_split
        and config.data.validation_split == config.data.test_split
        and not config.data.allow_overlap
    ):
        raise ConfigError(
            f"data.validation_split and data.test_split are both {config.data.test_split!r}: nothing is selected on test data"
        )
    optimizer.check(config)
    for name, section in (("train.total", config.train), ("eval.every", config.eval)):
        unit_of(section, name)
    pretrained.check(config)
    model.check(config)
    task.check(config)
    data.check(config)


def _check_seeds(config: ConfigDict) -> None:
    """Raises ConfigError for what several seeds in one program cannot be combined with."""
    if config.seeds == 1:
        if config.seeds_in != SEEDS_IN[0]:
            raise ConfigError(f"config.seeds_in={config.seeds_in!r} is how several seeds are trained; give config.seeds, too")
        return
    given = f"config.seeds={config.seeds}"
    if jax.process_count() > 1:
        raise ConfigError(f"{given} is for one process, and there are {jax.process_count()}; give each seed a run of its own")
    if not config.checkpoint.enabled:
        raise ConfigError(f"{given} needs the checkpoints of its runs: set config.checkpoint.enabled=True")
    if config.seeds_in not in ("vmap", "devices"):
        return
    given = f"config.seeds_in={config.seeds_in!r}"
    if config.parallel.mode != "jit" or config.parallel.fsdp != 1:
        raise ConfigError(
            f"{given} lays whole states on the devices itself, and config.parallel.mode={config.parallel.mode!r}, "
            f"fsdp={config.parallel.fsdp} would cut them; expected 'jit' and 1, or seeds_in='processes'"
        )
    if config.log.writers or config.profile.first_step is not None:
        name = "log.writers" if config.log.writers else "profile.first_step"
        raise ConfigError(f"{given} trains in one process, and config.{name} is of one run; give seeds_in='processes'")


def remembered(config: ConfigDict, before: ConfigDict) -> ConfigDict:
    """The config with what the run of the config `before` found in its data when it began, where it leaves that open."""
    # The config of a workdir is complete; completing it again could run code that only the workdir names. What pretrained
    # weights would bring comes after what the run has.
    before, config = modernise(before), modernise(config)
    ours = as_trained.remembered(found.remembered(complete(config, settle=False), before), before)
    close(ours, flatten(config).keys())
    return ours


def going_on(config: ConfigDict, folder: Path) -> ConfigDict:
    """The config with what is `remembered` of the run that has begun in a folder; as it is where none has."""
    return remembered(config, workdir.read_config(folder)) if workdir.has_begun(folder) else config


def reports(config: ConfigDict, *, tell: bool = False) -> Iterator[Report | ExamplesReport]:
    """The sanity report of every split that a config names, one at a time.

    tell: what a training says of its data at its start is said, too; what stops one, beside errors of the reports, is raised.
    """
    check(config)
    return _reports(config, tell)


def _reports(config: ConfigDict, tell: bool) -> Iterator[Report | ExamplesReport]:
    config, survey = _surveyed(config, tell)
    source, eval_sources = data.open_sources(config, survey)
    errors = 0
    for report in data.reports(config, source, eval_sources):
        errors += len(report.bad())
        yield report
    if tell:
        try:
            data.check_overlap(config, source, eval_sources)
        except ConfigError as error:  # of the config, and not of the data
            _warn(f"{error}; a training does not begin")
        if not errors:
            data.check_detection(config, source, eval_sources, _warn)


def build(config: ConfigDict) -> Experiment:
    """A config -> everything the loop runs; opens (and prepares) the data.

    Raises:
      ConfigError: for what the config gets wrong.
      ValueError, FileNotFoundError: for what is wrong with the data.
    """
    if config.seeds != 1:
        raise ConfigError(
            f"config.seeds={config.seeds} stands for several runs, and this makes one; give seeds=1 and a seed, or train them "
            "with imgrec_jax.train_seeds(config, workdir)"
        )
    return _experiment(_opened(config))


def replicas(config: ConfigDict) -> list[Experiment]:
    """What `build` makes, of each of the config's seeds; the data are opened once where they are the same for all.

    Raises: as `build`.
    """
    check(complete(modernise(config)))
    each = replicas_of(config)
    if config.data.examples_per_class is not None:  # which examples these are is drawn by the seed
        return [_experiment(_opened(one)) for one in each]
    opened = _opened(each[0])
    return [_experiment(opened._replace(config=replica(opened.config, one.seed))) for one in each]


class _Opened(NamedTuple):
    """config: whole, with what was found in the data; source: of training; eval_sources: {split: source}."""

    config: ConfigDict
    layout: Layout
    source: Source
    eval_sources: dict[str, Source]


def _opened(config: ConfigDict) -> _Opened:
    config = complete(modernise(config))
    check(config)
    batch_lib.examples_per_process(config.data.batch_size, jax.process_count(), jax.device_count())
    try:
        layout = make_layout(config.parallel.mode, config.parallel.fsdp)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    config, survey = _surveyed(config, tell=True)
    source, eval_sources = data.open_sources(config, survey)
    data.check_overlap(config, source, eval_sources)
    data.check_detection(config, source, eval_sources, _warn)
    model.check_classes(config, getattr(source, "title", source.info.name), source.info.class_names)
    return _Opened(config, layout, source, eval_sources)


def _experiment(opened: _Opened) -> Experiment:
    config, layout, source, eval_sources = opened
    batch_size = config.data.batch_size
    eval_batch = _eval_batch_size(config.data.eval_batch_size, eval_sources)
    train, evals = _pipelines(config, source, eval_sources, eval_batch)
    epoch, spec = train.steps_per_epoch, train.batch(0)
    values.check_channels(config, spec["image"].shape[-1])
    made = task.make_task(config, layout.axis_name, **preprocess.loss_weights(config, source))
    try:
        shapes = jax.eval_shape(lambda: made.init(jax.random.PRNGKey(0), spec))
    except (ValueError, TypeError, ZeroDivisionError, IndexError) as error:
        given = tuple(spec["image"].shape[1:])
        where = own.where(error)
        raise ConfigError(f"config.model: {config.model.name} cannot take images of {given}: {error}{where}") from error
    optimisation = _optimisation(config, epoch, shapes["params"], source.info.class_names)
    eval_every = steps_of(config.eval, "eval.every", epoch, batch_size)
    checkpoint_every = steps_of(config.checkpoint, "checkpoint.every", epoch, batch_size, default=eval_every)
    profile = config.profile
    return Experiment(
        config=config,
        settle=complete,
        card={
            **_card({"train": source, **eval_sources}, spec["image"], eval_batch, own.record(config)),
            **preprocess.shapes(config, next(iter(_tests_first(eval_sources)), source), spec["image"].shape[-1]),
            **_weights(config),
        },
        seed=config.seed,
        task=made,
        variable_shapes=shapes,
        data=Data(
            train=train,
            evals=evals,
            summarise=task.make_summarise(config, eval_sources),
            batch_spec=spec,
            batch_size=batch_size,
            on_device=config.data.on_device,
            first=("validation",) if config.eval.intervals and "validation" in eval_sources else (),
        ),
        optimisation=optimisation,
        selection=Selection(config.select.metric, config.select.mode, config.select.patience),
        cadence=Cadence(
            eval_every=eval_every,
            checkpoint_every=checkpoint_every if config.checkpoint.enabled else None,
            keep_checkpoints=config.checkpoint.keep,
            log_every=config.log.every_steps,
            profile=(profile.first_step, profile.steps) if profile.first_step is not None else None,
            samples=config.log.samples,
        ),
        compute=Compute(jnp.promote_types(DTYPES[config.dtype], jnp.float32), layout, config.parallel.remat),
        show=tuple(config.log.show),
        boards=tuple(dict.fromkeys(("tensorboard",) * config.log.tensorboard + tuple(config.log.writers))),
    )


def _surveyed(config: ConfigDict, tell: bool) -> tuple[ConfigDict, data.Survey | None]:
    """(the config with what was found in the user's own data, what found it); tell: on stderr, what it was."""
    survey = data.survey(config)
    if survey is None:
        return config, None
    config = found.with_values(config, survey.found)
    if tell and jax.process_index() == 0:
        emit("\n".join(f"found: {line}" for line in survey.lines), sys.stderr)
    check(config)
    return config, survey


def _warn(line: str) -> None:
    if jax.process_index() == 0:
        emit(f"warning: {line}", sys.stderr)


def _pipelines(
    config: ConfigDict, source: Source, eval_sources: dict[str, Source], eval_batch: int
) -> tuple[Pipeline, dict[str, Pipeline]]:
    shared = {
        "seed": config.seed,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "threads": config.data.threads,
    }
    training, evaluation = preprocess.training(config), preprocess.evaluation(config)
    train = Pipeline(
        source=data.with_proposals(config, source),
        order=training.order(source),
        ops=training.ops,
        batch_ops=training.batch_ops,
        collate=training.collate,
        **shared,
    )
    evals = {
        split: Pipeline(
            source=seen,
            order=preprocess.eval_order(config, seen, eval_batch),
            ops=evaluation.ops,
            collate=evaluation.collate,
            **shared,
        )
        for split, part in eval_sources.items()
        for seen in [data.in_windows(config, data.with_proposals(config, part))]
    }
    return train, evals


def _optimisation(config: ConfigDict, epoch: int, params: Any, class_names: tuple[str, ...]) -> Optimisation:
    schedule = partial(optimizer.make_schedule, config, steps_per_epoch=epoch)
    total = steps_of(config.train, "train.total", epoch, config.data.batch_size)
    make_optimizer = partial(optimizer.make_optimizer, config, steps_per_epoch=epoch)
    make_optimizer(schedule(total), params=params)  # the rules look for their parameters
    return Optimisation(
        total_steps=total,
        make_schedule=schedule,
        make_optimizer=make_optimizer,
        initialise=pretrained.make_initialise(config, class_names),
        ema_decay=config.optim.ema_decay,
        accumulate=config.optim.accumulate,
    )


def _eval_batch_size(wanted: int, sources: dict[str, Source]) -> int:
    """At most the largest split, and rounded up to what divides among the devices: the rest is padding anyway."""
    size = min(wanted, max(map(len, sources.values()), default=wanted))
    if size == 1 and "xla_cpu_multi_thread_eigen=false" in os.environ.get("XLA_FLAGS", ""):
        size = 2  # with that flag XLA takes 14 GB to compile a detector's evaluation of a single image
    return -(-size // jax.device_count()) * jax.device_count()


def _card(sources: dict[str, Source], image: Any, eval_batch: int, code: dict[str, own.Code]) -> dict[str, Any]:
    """What a run's folder says of it beside the config; plain values, for JSON."""
    table = sources["train"].info.meta.get("annotations")
    return {
        "class_names": list(sources["train"].info.class_names),
        **({"category_ids": [int(number) for number in table.category_ids]} if table is not None else {}),
        "image_shape": list(image.shape[1:]),  # of a training batch
        "eval_batch_size": eval_batch,
        **({"code": {name: part._asdict() for name, part in code.items()}} if code else {}),
        "splits": {
            name: {**kept._asdict(), "class_names": list(kept.class_names)}
            for name, kept in ((name, fingerprint(source)) for name, source in sources.items())
        },
    }


def _tests_first(sources: dict[str, Source]) -> list[Source]:
    """The sources of evaluations; the test split first, then the validation split."""
    return [sources[name] for name in dict.fromkeys(("test", "validation", *sources)) if name in sources]


def _weights(config: ConfigDict) -> dict[str, Any]:
    record = pretrained.record(config)
    return {"pretrained": record} if record else {}


def class_names(config: ConfigDict) -> tuple[str, ...]:
    """The names of the classes where the config alone tells them; () where only the data do."""
    return tuple(config.data.options.get("class_names", ()) or data.entry_of(config).class_names)


class Inference(NamedTuple):
    """What prediction needs of a config: made without data, and without tracing anything."""

    task: Task
    preprocess: Preprocess


def inference(config: ConfigDict) -> Inference:
    """The task and the preprocessing of a config."""
    config = modernise(config)
    choice("task", config.task, TASKS)
    if config.dtype == "float64" and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]  # flags are added at run time
        raise ConfigError("config.dtype='float64' needs JAX's 64-bit mode: set JAX_ENABLE_X64=1")
    return Inference(task.make_task(config), preprocess.evaluation(config))
