"""What the loop runs: everything that a config describes, as a few named parts. Durations are in steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from ml_collections import ConfigDict

from imgrec_jax.data.pipeline import Pipeline
from imgrec_jax.parallel import Layout
from imgrec_jax.tasks.task import Task


class Data(NamedTuple):
    """Attributes:
    train: the training pipeline.
    evals: {split: pipeline}.
    summarise: {split: merged metric states -> values}.
    batch_spec: arrays or shapes of one process's rows of a training batch.
    batch_size: global.
    on_device: keep a split on the devices; None where it fits.
    first: splits that are evaluated before the others with the same state, for these use what those choose (a threshold).
    """

    train: Pipeline
    evals: dict[str, Pipeline]
    summarise: dict[str, Callable]
    batch_spec: dict[str, Any]
    batch_size: int
    on_device: bool | None
    first: tuple[str, ...] = ()


class Optimisation(NamedTuple):
    """Attributes:
    total_steps: of the whole run.
    make_schedule: (total steps) -> (step -> learning rate).
    make_optimizer: (schedule, params=...) -> optax transformation.
    initialise: changes the variables that a fresh run begins with, before the optimiser's state is made of them:
      variables -> (variables, what it did, as text). None leaves them as the task drew them.
    ema_decay: of the parameter average, 0 for none.
    accumulate: parts of a batch.
    """

    total_steps: int
    make_schedule: Callable
    make_optimizer: Callable
    initialise: Callable[[dict], tuple[dict, str]] | None
    ema_decay: float
    accumulate: int


class Selection(NamedTuple):
    """Which evaluation of the validation split is the best ("" for none), and after how many without a better one to stop."""

    metric: str
    mode: str
    patience: int | None


class Cadence(NamedTuple):
    """How often what happens; checkpoint_every None keeps no checkpoints. profile: (first step, number of steps) or None.
    samples: images that the folder keeps."""

    eval_every: int
    checkpoint_every: int | None
    keep_checkpoints: int
    log_every: int
    profile: tuple[int, int] | None
    samples: int = 0


class Compute(NamedTuple):
    """dtype: of the parameters; layout: see `parallel`; remat: a name of `step.REMAT`."""

    dtype: jnp.dtype
    layout: Layout
    remat: str


class Experiment(NamedTuple):
    """All that a run is made of.

    Attributes:
      config: what it was built from; kept with the run, read by nobody below.
      settle: a config -> the same with every option that it leaves out, so that two can be compared.
      card: what the run's folder says of it beside the config (see `run.workdir`): class names, input, splits.
      seed: the one seed.
      variable_shapes: of the model.
      show: names of the metrics for the terminal; boards: names of `run.boards` that show them.
    """

    config: ConfigDict
    settle: Callable[[ConfigDict], ConfigDict]
    card: dict[str, Any]
    seed: int
    task: Task
    variable_shapes: dict[str, Any]
    data: Data
    optimisation: Optimisation
    selection: Selection
    cadence: Cadence
    compute: Compute
    show: tuple[str, ...]
    boards: tuple[str, ...]
