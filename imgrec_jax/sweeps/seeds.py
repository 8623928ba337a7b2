"""Several seeds of one config. Each is an ordinary run in a folder of its own in the workdir, seed_0, seed_1, ...: the files
that the run of that seed alone would leave, which every command takes. Beside them lie

  config.json, run.json   the config with its seeds, and what is found in the data
  seeds.json       which seeds, which way they are trained and why; kept, so that a killed start goes on in the same way
  metrics.jsonl    mean and standard deviation of every record, and the ensemble's evaluation at the end
  ensemble.json    of which checkpoints that is
  results.jsonl, table.md, table.csv   as of a sweep
  seed_0.log       what a run said that was a process of its own
"""

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imgrec_jax import assemble, machine
from imgrec_jax.config import to_plain
from imgrec_jax.data.files import write_whole
from imgrec_jax.experiment import Experiment
from imgrec_jax.pages import training
from imgrec_jax.run import checkpoint, loop, saved, start
from imgrec_jax.run import workdir as workdirs
from imgrec_jax.run.evaluate import Results, headline
from imgrec_jax.run.start import SEEDS, folder_of_seed
from imgrec_jax.run.stop import Interrupted, Stop, caught
from imgrec_jax.run.writers import emit, to_json
from imgrec_jax.sweeps import over_seeds, runs, ways
from imgrec_jax.sweeps.ensemble import evaluate_ensemble
from imgrec_jax.sweeps.over_seeds import Following
from imgrec_jax.sweeps.points import Point
from imgrec_jax.sweeps.table import summarise
from imgrec_jax.sweeps.ways import Way

ENSEMBLE = "ensemble.json"


class SeedsFailedError(ValueError):
    """Some of the runs cannot go on: says which and why."""


def train(
    config: ConfigDict,
    workdir: str | PathLike,
    say: Callable[[str], None] = emit,
    *,
    restart: bool = False,
    stop: Stop | None = None,
    describe: Callable[[Experiment, Path], str] | None = None,
) -> dict[int, Results]:
    """Trains the seeds of a config to their ends; the same call goes on after an interruption.

    describe: makes a text on the first of them, which is said.

    Returns:
      {seed: the last evaluation of every split}, of those that have ended.

    Raises:
      SeedsFailedError: where some runs failed; the others have ended.
      Otherwise as `assemble.build` and `loop.train`.
    """
    folder = workdirs.resolve(workdir)
    with contextlib.ExitStack() as stack:
        stop = stop or stack.enter_context(caught())
        stack.enter_context(workdirs.held(folder))
        if not restart:
            config = assemble.going_on(config, folder)
            check_folder(folder, config)
        experiments = assemble.replicas(config)
        folders = [folder_of_seed(folder, experiment.seed) for experiment in experiments]
        if restart:
            loop.rehearse(experiments[0])
            way = ways.choose(config.seeds_in, experiments)
            if kept := workdirs.restart(folder, config):
                say(f"what was in {folder} is kept in {kept}")
        else:
            for experiment, own in zip(experiments, folders, strict=True):
                workdirs.check_config(own, experiment.config, experiment.settle)
                workdirs.check_card(own, experiment.card)
            way = _way(folder, config, experiments, say)
        if describe is not None:
            say(describe(experiments[0], folder))
        _write_record(folder, config, experiments, way)
        say(f"seeds {experiments[0].seed} to {experiments[-1].seed} by {way.name} ({way.why})")
        first = experiments[0]
        following = Following(
            folder, [e.seed for e in experiments], first.data.batch_size, first.optimisation.total_steps, first.show, say
        )
        following.ended |= {e.seed for e, own in zip(experiments, folders, strict=True) if has_ended(e, own)}
        began = time.perf_counter()
        if way.name == ways.PROCESSES:
            failed = _in_processes(experiments, folder, way, following, stop)
        else:
            failed = _stacked(experiments, folders, way, following, say, stop)
        ended = {e.seed for e, own in zip(experiments, folders, strict=True) if has_ended(e, own)}
        _finish(experiments, folder, ended, set(failed) - ended, time.perf_counter() - began, say, stop)
    if failed:
        lines = "; ".join(f"seed {seed}: {why}" for seed, why in failed.items())
        raise SeedsFailedError(f"{len(failed)} of {len(experiments)} seeds failed or are unfinished: {lines}")
    return {seed: runs.final_values(folder_of_seed(folder, seed)) for seed in sorted(ended)}


def check_folder(folder: Path, config: ConfigDict) -> None:
    """Raises WorkdirError where the folder is a single run's, or that of seeds of another config."""
    if checkpoint.any_ever(folder) or (workdirs.was_trained(folder) and not start.seeds_of(folder)):
        raise workdirs.WorkdirError(
            f"{folder} holds a single run, and config.seeds={config.seeds} asks for several; give another --workdir (--restart "
            "begins anew and keeps the old files under another name)"
        )
    if start.seeds_of(folder):
        workdirs.check_config(folder, config, assemble.complete)


def _way(folder: Path, config: ConfigDict, experiments: Sequence[Experiment], say: Callable[[str], None]) -> Way:
    """That of an earlier start, which goes on bit for bit, or the one that is asked for."""
    path = folder / SEEDS
    if not path.exists():
        return ways.choose(config.seeds_in, experiments)
    kept = json.loads(path.read_text())
    before, here = Way(kept["way"], kept["why"], _cores_of(kept, experiments)), len(machine.cores())
    if before.name != ways.PROCESSES and (obstacle := ways.why_not_stacked(experiments)):  # which the config began to ask for
        say(f"note: {obstacle}: what was begun goes on equal to rounding, no longer bit for bit")
        return ways.choose(config.seeds_in, experiments)
    if config.seeds_in in (ways.AUTO, before.name):
        if before.name != ways.PROCESSES and kept["seeds"] != [experiment.seed for experiment in experiments]:
            say(f"note: seeds were {kept['seeds']}: what was begun goes on equal to rounding, no longer bit for bit")
        if before.cores is not None and max(before.cores) > here:
            had = f"runs had up to {max(before.cores)} cores, and here are {here}"
            say(f"note: {had}: equal to rounding, no longer bit for bit")
            return before._replace(cores=ways.shares(here, len(experiments)))
        return before
    change = f"seeds_in {before.name!r} -> {config.seeds_in!r}"
    say(f"note: {change}: what was begun goes on equal to rounding, no longer bit for bit")
    return ways.choose(config.seeds_in, experiments)


def _cores_of(kept: dict[str, Any], experiments: Sequence[Experiment]) -> tuple[int, ...] | None:
    """Of each seed, as at an earlier start; those of seeds that have come since, and one number for all in early versions."""
    cores = kept["cores"]
    if cores is None:
        return None
    of_seed = dict(zip(kept["seeds"], cores if isinstance(cores, list) else [cores] * len(kept["seeds"]), strict=True))
    return tuple(of_seed.get(experiment.seed, min(of_seed.values())) for experiment in experiments)


def _write_record(folder: Path, config: ConfigDict, experiments: Sequence[Experiment], way: Way) -> None:
    whole = experiments[0].config.copy_and_resolve_references()
    whole.seeds, whole.seeds_in = config.seeds, config.seeds_in
    workdirs.write_record(folder, whole, experiments[0].card)
    record = {"seeds": [e.seed for e in experiments], "way": way.name, "why": way.why, "cores": way.cores}
    write_whole(folder / SEEDS, lambda partial: partial.write_text(json.dumps(record, indent=1) + "\n"))


def has_ended(experiment: Experiment, folder: Path) -> bool:
    """Whether the run of an experiment in a folder has nothing left to do."""
    return start.has_ended(folder, experiment.optimisation.total_steps)


def _stacked(
    experiments: Sequence[Experiment], folders: Sequence[Path], way: Way, following: Following,
    say: Callable[[str], None], stop: Stop,
) -> dict[int, str]:  # fmt: skip
    """Trains all in this process; returns {seed: why} of those that failed."""
    failed: dict[int, str] = {}

    def fails(number: int, error: Exception) -> None:
        failed[experiments[number].seed] = " ".join(str(error).split()) or type(error).__name__
        following.failed.add(experiments[number].seed)
        following.sayer(experiments[number].seed)(f"failed: {error}")

    members = [
        loop.Member(
            experiment, own, following.sayer(experiment.seed), [following.poll], training.watch_of(experiment, say),
            following.console(experiment.seed),
        )
        for experiment, own in zip(experiments, folders, strict=True)
    ]  # fmt: skip
    loop.train_together(members, ways.stack(way.name), stop=stop, failed=fails)
    if stop.signal is None:
        for experiment, own in zip(experiments, folders, strict=True):
            training.report_of(experiment, own, following.sayer(experiment.seed))
    return failed


def _in_processes(
    experiments: Sequence[Experiment], folder: Path, way: Way, following: Following, stop: Stop
) -> dict[int, str]:
    """Trains each in a process on its own cores; returns {seed: why} of those that failed."""
    todo = [Point(f"seed_{e.seed}", e.seed, {}, {}) for e in experiments if not has_ended(e, folder_of_seed(folder, e.seed))]
    given = {experiment.seed: experiment for experiment in experiments}
    cores = {e.seed: count for e, count in zip(experiments, way.cores or [1] * len(experiments), strict=True)}
    failed: dict[str, str] = {}

    def command_of(point: Point) -> list[str]:
        own = folder_of_seed(folder, point.seed)
        own.mkdir(exist_ok=True)
        experiment = given[point.seed]
        if "code" in experiment.card:  # with a copy of it, for it may be one that the workdir has brought
            workdirs.write_record(own, experiment.config, experiment.card)
        else:
            text = json.dumps(to_plain(experiment.config), indent=1) + "\n"
            write_whole(own / workdirs.CONFIG, lambda partial: partial.write_text(text))
        # Whoever started this one has allowed the code that the config names.
        return [sys.executable, "-m", "imgrec_jax.main", f"--workdir={own}", "--allow_code"]

    def ended(point: Point, why: str) -> None:
        following.ended.add(point.seed)  # the lines of the others go on without it
        if why:
            following.failed.add(point.seed)

    try:
        with stop.raising():
            for count, of_count in itertools.groupby(todo, lambda point: cores[point.seed]):
                at_once = list(of_count)
                places = runs.Places(max(min(len(machine.cores()) // count, len(at_once)), 1), count, [])
                done = len(experiments) - len(todo) + todo.index(at_once[0])
                failed |= runs.run_all(
                    command_of, at_once, folder, places, len(experiments), done, prepared=True, meanwhile=following.poll,
                    ended=ended, stopping=stop.answered,
                )  # fmt: skip
    except Interrupted:
        stop.kept = all(checkpoint.saved(folder_of_seed(folder, experiment.seed)) for experiment in experiments)
        return {}
    stop.kept = not failed
    return {int(name.removeprefix("seed_")): why for name, why in failed.items()}


def _finish(
    experiments: Sequence[Experiment], folder: Path, ended: set[int], failed: set[int], seconds: float,
    say: Callable[[str], None], stop: Stop,
) -> None:  # fmt: skip
    """Writes what the runs come to so far and, once all that have not failed have ended, the ensemble's evaluation of these and
    the report."""
    seeds, show = [experiment.seed for experiment in experiments], experiments[0].show
    points = [Point(f"seed_{seed}", seed, {}, {}) for seed in seeds]
    done = runs.finished(folder)
    for point in points:
        values = runs.final_values(folder_of_seed(folder, point.seed))
        if point.seed in ended and done.get(point.name, {}).get("splits") != values:
            runs.record(folder, point, seconds)
    if stop.signal is not None or not ended or len(ended | failed) < len(seeds):
        over_seeds.write(folder, seeds, ended, failed)
        if stop.signal is not None:
            say(f"{stop.word}; the same command goes on from there")
        return
    whole = [experiment for experiment in experiments if experiment.seed in ended]
    try:
        with stop.raising():
            together = _ensemble(whole, folder, say, stop) if len(whole) > 1 else []
    except Interrupted:
        stop.answered()
        say(f"{stop.word} before the ensemble was evaluated; the same command does that")
        return
    over_seeds.write(folder, seeds, ended, failed, together)
    summarise(folder, points, list(show))
    records = {e.seed: over_seeds.read(folder_of_seed(folder, e.seed) / workdirs.METRICS) for e in whole}
    if text := over_seeds.summary(records, together, show):
        say(text)
    if failed:
        say(f"{len(failed)} of {len(seeds)} seeds are missing here: {', '.join(map(str, sorted(failed)))}")
    if len(whole) > 1:
        _report(whole, folder, together, say)


def _ensemble(experiments: Sequence[Experiment], folder: Path, say: Callable[[str], None], stop: Stop) -> list[dict[str, Any]]:
    """Records of the ensembles of the last and of the best checkpoints; those of ensemble.json where they are of the same."""
    folders = [folder_of_seed(folder, experiment.seed) for experiment in experiments]
    steps = {
        "last": [checkpoint.saved(own, checkpoint.LAST)[-1].step for own in folders],
        "best": [found[-1].step for own in folders if (found := checkpoint.saved(own, checkpoint.BEST))],
    }
    asked = {"seeds": [experiment.seed for experiment in experiments], "steps": steps}
    path = folder / ENSEMBLE
    with contextlib.suppress(OSError, ValueError, KeyError):
        kept = json.loads(path.read_text())
        if {name: kept[name] for name in asked} == asked:
            return kept["records"]
    evals = list(experiments[0].data.evals)
    splits = {"last": evals, "best": [split for split in evals if split != "validation"]}  # which has chosen them
    records, results = [], dict[str, dict[str, Any]]()
    for which, prefix in (("last", "ensemble_"), ("best", "ensemble_best_")):
        if len(steps[which]) < len(folders):
            continue
        step = max(steps[which])
        epoch = step / experiments[0].data.train.steps_per_epoch
        if which == "last" or steps["best"] != steps["last"]:  # else they are the same networks
            results = evaluate_ensemble(experiments, folders, which, splits[which], stop)
        for split in (split for split in results if split in splits[which]):
            values = results[split]
            records.append({"step": step, "epoch": epoch, "split": prefix + split, "seeds": asked["seeds"], **values})
            say(f"ensemble of {len(folders)}  {prefix}{split}: {headline(values, experiments[0].show)}")
    text = json.dumps(to_json({**asked, "records": records})) + "\n"
    write_whole(path, lambda partial: partial.write_text(text))
    return json.loads(text)["records"]


def _report(
    experiments: Sequence[Experiment], folder: Path, ensemble: list[dict[str, Any]], say: Callable[[str], None]
) -> None:
    """The comparison of the runs, where the config wants a report."""
    if not experiments[0].config.log.report:
        return
    from imgrec_jax.pages import report

    try:
        folders = [folder_of_seed(folder, experiment.seed) for experiment in experiments]
        say(f"wrote {report.compare(folders, say, out=folder / 'report', allow_code=True, ensemble=ensemble)}")
    except Exception as error:  # the runs are whole without it
        say(f"note: no report ({' '.join(str(error).split())[:300]}); imgrec report {folder} tries again")


def evaluate(
    config: ConfigDict,
    folder: Path,
    say: Callable[[str], None] = emit,
    *,
    which: str | int = "last",
    allow_changes: bool = False,
    stop: Stop | None = None,
) -> None:
    """Evaluates a checkpoint of each seed, as `saved.evaluate_workdir` does, and their ensemble."""
    experiments = assemble.replicas(config)
    folders = [folder_of_seed(folder, experiment.seed) for experiment in experiments]
    found: dict[int, list[dict[str, Any]]] = {}
    for experiment, own in zip(experiments, folders, strict=True):
        said = partial(_say_of_seed, say, experiment.seed)
        results = saved.evaluate_workdir(experiment, own, said, which=which, allow_changes=allow_changes, stop=stop)
        found[experiment.seed] = [{"step": 0, "epoch": 0, "split": split, **values} for split, values in results.items()]
    ensemble = evaluate_ensemble(experiments, folders, which, list(experiments[0].data.evals), stop)
    say(over_seeds.summary(found, [{"split": f"ensemble_{s}", **v} for s, v in ensemble.items()], experiments[0].show))


def _say_of_seed(say: Callable[[str], None], seed: int, line: str) -> None:
    say(f"seed {seed}  {line}")
