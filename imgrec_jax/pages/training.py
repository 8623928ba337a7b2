"""Training with what people look at: pictures on the boards while it trains, and the report when it has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

import jax

from imgrec_jax import parallel
from imgrec_jax.experiment import Experiment
from imgrec_jax.pages.watch import Watch
from imgrec_jax.run import loop, start, workdir
from imgrec_jax.run.evaluate import Results
from imgrec_jax.run.record import Callback
from imgrec_jax.run.stop import Stop


def train(
    experiment: Experiment,
    folder: str | PathLike,
    say: Callable[[str], None],
    *,
    callbacks: Sequence[Callback] = (),
    restart: bool = False,
    stop: Stop | None = None,
) -> Results:
    """`loop.train`, with pictures where the config wants them on a board, and the report where it wants one."""
    watch = watch_of(experiment, say)
    results = loop.train(experiment, folder, say, callbacks=callbacks, restart=restart, stop=stop, watch=watch)
    report_of(experiment, workdir.resolve(folder), say)
    return results


def watch_of(experiment: Experiment, say: Callable[[str], None]) -> Watch | None:
    """None where nobody looks, where a batch is no array of one process, or where it cannot be made, which is said."""
    wanted = experiment.config.log.pictures and experiment.boards and experiment.data.evals
    simple = jax.process_count() == 1 and isinstance(experiment.compute.layout, parallel.Sharded)
    if not (wanted and simple):
        return None
    try:
        return Watch(experiment, jax.device_count())
    except Exception as error:
        say(f"note: no pictures ({type(error).__name__}: {_line(error)})")
        return None


def _has_ended(folder: Path, experiment: Experiment) -> bool:
    """Whether the run is at its end, and no report of that is there."""
    ended = start.has_ended(folder, experiment.optimisation.total_steps)
    page, metrics = folder / "report" / "index.html", folder / workdir.METRICS
    return ended and not (page.exists() and metrics.exists() and page.stat().st_mtime >= metrics.stat().st_mtime)


def report_of(experiment: Experiment, folder: Path, say: Callable[[str], None]) -> None:
    """Writes the report of a run that has ended, where its config wants one; one that cannot be written is said, for the run is
    whole without it."""
    if not (experiment.config.log.report and parallel.is_lead()):
        return
    from imgrec_jax.pages import report

    if not experiment.cadence.checkpoint_every:
        say("note: no report: it is made from a checkpoint, and with config.checkpoint.enabled=False there is none")
        return
    try:
        if _has_ended(folder, experiment):
            say(f"wrote {report.write(folder, say, allow_code=True)}")  # whoever trained it has allowed its code
    except Exception as error:
        say(f"note: no report ({_line(error)}); imgrec report --workdir={folder} tries again")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
