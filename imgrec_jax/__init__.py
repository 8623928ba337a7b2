"""imgrec_jax: image recognition in JAX and Flax. From Python:

config = imgrec_jax.load_config("mnist:tiny")   # change it as you like
experiment = imgrec_jax.build(config)           # opens the data; of a run that goes on: build(config, "runs/mine")
imgrec_jax.train(experiment, "runs/mine")       # the same call goes on after an interruption
run = imgrec_jax.load("runs/mine")              # needs no data
run.predict(images)
"""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from imgrec_jax.experiment import Experiment
    from imgrec_jax.inference.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["build", "evaluate", "load", "load_config", "train", "train_seeds"]

# Each function imports what it needs when it is called: importing the package costs nothing.


def load_config(name: str) -> "ConfigDict":
    """A config that comes with the package ("mnist", "mnist:fast") or of a file ("path/to/file.py:VARIANT").

    Raises:
      ConfigFileError: for an unknown name, file or variant, with those that exist.
    """
    from imgrec_jax import config

    return config.load(name)


def build(config: "ConfigDict", workdir: str | PathLike | None = None) -> "Experiment":
    """Everything that a config describes, as objects; opens the data, and prepares them where they are not.

    Args:
      workdir: of a run that is to go on or to be evaluated: what it found in its data and in pretrained weights when it began,
        and the config leaves open, is taken from there, for these may be others by now, or gone.

    Raises:
      ConfigError: for what the config gets wrong; ValueError, FileNotFoundError for what is wrong with the data; WorkdirError
        for a workdir that cannot be read.
    """
    from imgrec_jax import assemble
    from imgrec_jax.run import workdir as workdirs

    return assemble.build(config if workdir is None else assemble.going_on(config, workdirs.resolve(workdir)))


def train(
    experiment: "Experiment",
    workdir: str | PathLike,
    say: Callable[[str], None] | None = None,
    *,
    callbacks: Sequence[Callable[[int, str, dict[str, Any]], None]] = (),
    restart: bool = False,
) -> dict[str, dict[str, Any]]:
    """Trains to the end, or goes on in a workdir that holds a part of this run; returns the last evaluation of every split.

    Args:
      say: prints a line; None prints to stdout.
      callbacks: called with (step, split, values) at every report and evaluation.
      restart: begin anew; what the workdir holds is kept in it under another name.

    Ctrl-C saves and returns. Raises what `imgrec_jax.run.loop.train` does.
    """
    from imgrec_jax.pages import training
    from imgrec_jax.run.writers import emit

    return training.train(experiment, workdir, say or emit, callbacks=callbacks, restart=restart)


def train_seeds(
    config: "ConfigDict", workdir: str | PathLike, say: Callable[[str], None] | None = None, *, restart: bool = False
) -> dict[int, dict[str, dict[str, Any]]]:
    """Trains the `config.seeds` runs that a config stands for side by side, each in a folder of its own in the workdir; returns
    {seed: the last evaluation of every split}. say, restart, Ctrl-C: as of `train`."""
    from imgrec_jax.run.writers import emit
    from imgrec_jax.sweeps import seeds

    return seeds.train(config, workdir, say or emit, restart=restart)


def evaluate(
    experiment: "Experiment", workdir: str | PathLike, *, checkpoint: str | int = "last", allow_changes: bool = False
) -> dict[str, dict[str, Any]]:
    """Evaluates a checkpoint ("last", "best" or a step) of a workdir on every split, and writes the result file there."""
    from imgrec_jax.run import saved

    return saved.evaluate_workdir(experiment, workdir, which=checkpoint, allow_changes=allow_changes)


def load(
    workdir: str | PathLike,
    checkpoint: str | int | None = None,
    *,
    averaged: bool | None = None,
    allow_code: bool = False,
) -> "Predictor":
    """A trained run: its model, preprocessing, class names and variables, without the data it was trained on.

    Args:
      checkpoint: "best", "last" or a step; None takes the best where there is one, else the last.
      averaged: the parameter average; None: where there is one.
      allow_code: run the Python files that the workdir carries, where its config names a model, loss or op of the user's own.

    Raises:
      WorkdirError, CheckpointError: where there is no such run or checkpoint, or it cannot be read.
      ConfigError: where the run needs code of its own that was not allowed.
    """
    from imgrec_jax.inference import predictor

    return predictor.load(workdir, checkpoint, averaged=averaged, allow_code=allow_code)
