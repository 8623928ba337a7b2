"""Command line: python -m imgrec_jax.main --config=configs/mnist.py   (or, once installed: imgrec --config=mnist)

Any value of the config can be changed from the command line:
  --config=mnist:fast --config.optim.learning_rate=0.02 --workdir=runs/fast_0.02
A run that was stopped goes on when the same command is given again; --workdir alone is enough, too.
"""

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict

from imgrec_jax.config import MAY_CHANGE, override
from imgrec_jax.data import walking
from imgrec_jax.overrides import configure, default_workdir, settle_durations
from imgrec_jax.run import memory
from imgrec_jax.run.stop import Interrupted, Stop, caught
from imgrec_jax.run.writers import emit, open_closed, pass_over_closed_loops, silence

FLAGS = flags.FLAGS
# Modules of this package that are commands of `imgrec` beside training.
COMMANDS: tuple[str, ...] = ("explain", "export", "predict", "report", "serve", "sweep")


# Flags that have a meaning in some modes alone; in others nothing would come of them.
MODES_OF = {
    "checkpoint": ("eval",),
    "allow_changes": ("eval",),
    "restart": ("train", "check", "browse"),
    "out": ("browse",),
    "split": ("browse",),
    "limit": ("browse",),
}


def define_flags() -> None:
    flags.DEFINE_string(
        "config",
        None,
        "The experiment: a config that comes with the package (mnist, mnist:fast), or a file, PATH.py or PATH.py:VARIANT. "
        "--config.KEY=VALUE changes a value of it. Without it a --workdir goes on with its own.",
    )
    flags.DEFINE_string("workdir", None, "Where the run lives; default runs/NAME[_VARIANT].")
    flags.DEFINE_bool("restart", False, "Begin anew; what the workdir holds is kept in it under another name.")
    flags.DEFINE_string("checkpoint", "last", "For --mode=eval: last, best, or a step.")
    flags.DEFINE_bool(
        "allow_changes",
        False,
        "For --mode=eval: evaluate although config or data are not the run's own; the result, eval_changed.json, says so.",
    )
    flags.DEFINE_bool("allow_code", False, "Run the Python files that the workdir carries, where its config names some.")
    flags.DEFINE_string("coordinator_address", None, "Of several processes: address:port of process 0, the same for all.")
    flags.DEFINE_integer("num_processes", None, "Of several processes: how many there are.")
    flags.DEFINE_integer("process_id", None, "Of several processes: which one this is, from 0.")
    flags.DEFINE_enum(
        "mode", "train", ["train", "eval", "check", "browse"],
        "train; eval: evaluate a checkpoint of the workdir; check: report what is wrong with the data; browse: a page shows "
        "the data, before and after augmentation. The last two train nothing.",
    )  # fmt: skip
    flags.DEFINE_string("out", None, "For --mode=browse: the folder; a split is written there as files, too (PNG, CSV, COCO).")
    flags.DEFINE_string("split", "test", "For --mode=browse --out: which split is written: train, validation or test.")
    flags.DEFINE_integer("limit", None, "For --mode=browse --out: write the first so many examples.")


def run(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise SystemExit(f"error: unexpected argument {argv[1]!r}; flags are written --name=value, see --help")
    for name, modes in MODES_OF.items():
        if FLAGS[name].present and FLAGS.mode not in modes:
            onwards = "; a run goes on from its last checkpoint" if name == "checkpoint" and FLAGS.mode == "train" else ""
            raise SystemExit(f"error: --{name} is for --mode={' or '.join(modes)}, and this is --mode={FLAGS.mode}{onwards}")
    if FLAGS.config is None and not FLAGS.workdir:
        raise SystemExit("error: --config is missing; try --config=mnist, or a --workdir to go on in")
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # libraries warn of what no user can act on
        pass_over_closed_loops()
    if folder := OVERRIDES.get("data.manual_dir"):
        walking.begin(folder)  # there may be many files, and what is imported next takes seconds
    config, notes = choose_config()
    # JAX is imported only now: --help and a misspelt key answer at once
    from jax.errors import JaxRuntimeError

    from imgrec_jax import distributed

    try:
        place = distributed.place(FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id)
        distributed.initialize(place)
    except distributed.PlaceError as error:
        raise SystemExit(f"error: {error}") from error
    try:
        if place is not None:
            STOP.together()
        act(config, notes, STOP)
    except (SystemExit, Exception) as error:
        if place is None or (isinstance(error, SystemExit) and not error.code):
            raise
        if isinstance(error, JaxRuntimeError):  # another process may be gone
            distributed.leave(error)
        distributed.fail(error)


def choose_config() -> tuple[ConfigDict | None, list[str]]:
    """(the config of the flags, with every option of its components and the values of the command line; what to say of it).

    None where a workdir brings its own.
    """
    if FLAGS.config is None:
        if others := [key for key in OVERRIDES if not key.startswith(MAY_CHANGE)]:
            raise SystemExit(
                f"error: --config.{others[0]} needs a --config whose value it changes; a run goes on with its own, but for "
                f"{', '.join(MAY_CHANGE)}"
            )
        return None, []
    try:
        return configure(FLAGS.config, OVERRIDES)
    except ValueError as error:  # ConfigFileError, OverrideError, ConfigError
        raise SystemExit(f"error: {error}") from error


def act(config: ConfigDict | None, notes: Sequence[str], stop: Stop) -> None:
    """Does what --mode says, in this process."""
    from imgrec_jax.assemble import own
    from imgrec_jax.run import workdir

    files = {}
    try:
        folder = workdir.resolve(FLAGS.workdir or default_workdir(FLAGS.config))
        if config is None:
            config = workdir.read_config(folder)
            for key, text in OVERRIDES.items():
                override(config, key, text)
            settle_durations(config, OVERRIDES)
            files = own.of_workdir(folder, config, workdir.read_card(folder).get("code", {}), FLAGS.allow_code)
    except Exception as error:
        raise _one_line(error) from error
    with own.carried(files):
        _act(config, folder, notes, stop)


def _act(config: ConfigDict, folder: Path, notes: Sequence[str], stop: Stop) -> None:
    import jax

    from imgrec_jax import assemble, compiled, distributed, parallel
    from imgrec_jax.assemble import values
    from imgrec_jax.config import replica
    from imgrec_jax.pages import training
    from imgrec_jax.run import saved, workdir
    from imgrec_jax.sweeps import seeds

    say = emit if parallel.is_lead() else lambda line: None
    goes_on = False
    try:
        for note in (*notes, *(values.without_effect(config) if FLAGS.config and FLAGS.mode == "train" else ())):
            say(note)
        if config.dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        compiled.keep(config.parallel.compilation_cache)
        if FLAGS.mode == "check":
            assemble.pretrained.check_file(config)
            return check_data(assemble.reports(config, tell=True))
        # A run goes on with what it found in its data when it began.
        begun = workdir.has_begun(folder) if FLAGS.mode == "train" else workdir.exists(folder)
        if begun and not FLAGS.restart:
            given, config = config, assemble.remembered(config, workdir.read_config(folder))
            goes_on = given != config
        else:
            assemble.pretrained.check_file(config)
        untrained = FLAGS.mode == "eval" and not workdir.exists(folder) and bool(config.pretrained.path)
        # What needs no data is compared first: a wrong config costs a second, not a preparation.
        if (
            FLAGS.mode == "eval"
            and not untrained
            and not FLAGS.allow_changes
            and (changed := workdir.config_changes(folder, config, assemble.complete))
        ):
            raise workdir.WorkdirError(
                f"the run in {folder} was trained with another config:\n  "
                + "\n  ".join(changed)
                + "\nGive its own (or none), "
                "or --allow_changes to evaluate with this one; the result then says so"
            )
        if FLAGS.mode == "eval" and not untrained:
            workdir.read_config(folder)
        elif FLAGS.mode == "train" and not FLAGS.restart:
            workdir.check_config(folder, config, assemble.complete)
        several = config.seeds != 1 and FLAGS.mode in ("train", "eval") and not untrained
        with distributed.lead_first("data"):
            experiment = None if several else assemble.build(replica(config, config.seed))
    except Exception as error:
        if goes_on and type(error) is ValueError:
            error = ValueError(
                f"{error} (classes, sizes and splits were found when the run in {folder} began; for other data give another "
                "--workdir)"
            )
        if jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
            raise  # another process may be gone
        raise _one_line(error, config) from error
    try:
        if FLAGS.mode == "browse":
            return browse(experiment, folder, say)
        if untrained and experiment is not None:
            saved.evaluate_pretrained(experiment, folder, say, stop=stop)
            return
        if FLAGS.mode == "eval":
            evaluate = saved.evaluate_workdir if experiment is not None else seeds.evaluate
            options = {"which": FLAGS.checkpoint, "allow_changes": FLAGS.allow_changes, "stop": stop}
            evaluate(experiment if experiment is not None else config, folder, say, **options)
            return
        if experiment is None:
            seeds.train(config, folder, say, restart=FLAGS.restart, stop=stop, describe=summary)
        else:
            say(summary(experiment, folder))
            training.train(experiment, folder, say, restart=FLAGS.restart, stop=stop)
        if config.checkpoint.enabled:
            inside = "checkpoints, metrics.jsonl, config.json" if experiment is not None else "a folder a seed, metrics.jsonl"
            say(f"in {folder}: {inside}; to evaluate: imgrec --workdir={shlex.quote(str(folder))} --mode=eval")
    except Interrupted:
        say(f"{stop.word}; nothing of this is kept, and the same command starts again")
    except Exception as error:
        if jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
            raise  # another process may be gone
        raise _one_line(error, config) from error
    if stop.signal is not None:  # An orderly exit would wait for programs that are being compiled in other threads.
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        compiled.confirm()
        distributed.part()
        os._exit(stop.status)


# What a user can get wrong, named by whoever found it; anything else may be a fault of the program.
NAMED = ("ConfigError", "WorkdirError", "CheckpointError", "NonFiniteError", "ValueError", "FileNotFoundError", "OSError")


def _one_line(error: Exception, config: ConfigDict | None = None) -> BaseException:
    """The end of the program in one line; --verbosity=1 shows where."""
    if FLAGS.verbosity > 0:
        return error
    text = str(error).strip() or type(error).__name__
    kinds = [kind.__name__ for kind in type(error).__mro__]
    # A checkpoint that could not be written says why itself: tensorstore calls a full disk RESOURCE_EXHAUSTED, too.
    if config is not None and "CheckpointError" not in kinds and memory.is_out_of_memory(error):
        return SystemExit(f"error: {memory.describe(error, config.data.batch_size, config.data.eval_batch_size)}")
    if any(kind in NAMED for kind in kinds):
        return SystemExit(f"error: {text}")
    from imgrec_jax.assemble import own

    return SystemExit(f"error: {type(error).__name__}: {text.splitlines()[0]}{own.where(error)} (--verbosity=1 shows where)")


def check_data(reports: Iterable) -> None:
    """Prints each report as soon as it is there; ends the program with status 1 where data must not be trained on."""
    errors = 0
    for report in reports:
        emit(report.table())
        errors += len(report.bad())
    if errors:
        raise SystemExit(f"error: {errors} errors in the data, listed above")


def browse(experiment, folder: Path, say: Callable[[str], None]) -> None:
    """Writes the page that shows the data, and with --out a split as files beside it."""
    from imgrec_jax import assemble
    from imgrec_jax.pages import browse

    out = Path(FLAGS.out).expanduser() if FLAGS.out else folder / "browse"
    reports = assemble.reports(experiment.config)
    options = {"split": FLAGS.split, "files": bool(FLAGS.out), "limit": FLAGS.limit, "reports": reports}
    say(f"wrote {browse.write(experiment, out, say, **options)}")


def summary(experiment, workdir: Path) -> str:
    """A short table of what will run."""
    import jax

    from imgrec_jax.data import pieces
    from imgrec_jax.parallel import parameter_count

    config, data = experiment.config, experiment.data
    devices = jax.devices()
    image = "x".join(map(str, data.batch_spec["image"].shape[1:]))
    splits = ", ".join(f"{name} {len(pieces.whole(p.source)):,}" for name, p in {"train": data.train, **data.evals}.items())
    parameters = parameter_count(experiment.variable_shapes["params"])
    rows = [
        ("task", config.task),
        ("model", f"{config.model.name}, {parameters:,} parameters, {config.dtype}"),
        ("data", f"{config.data.name}, {image}: {splits}"),
        ("optimiser", f"{config.optim.name}, learning rate {_rate(config)} ({config.schedule.name})"),
        (
            "steps",
            f"{experiment.optimisation.total_steps:,} of {data.batch_size} examples, {data.train.steps_per_epoch:,} an epoch",
        ),
        ("devices", f"{len(devices)} x {devices[0].device_kind}"),
        ("workdir", str(workdir)),
    ]
    return "\n".join(f"  {name:<10}{value}" for name, value in rows)


def _rate(config) -> str:
    from imgrec_jax.assemble.optimizer import learning_rate

    given, used, base = config.optim.learning_rate, learning_rate(config), config.optim.base_batch_size
    return f"{used:g} = {given:g} x {config.data.batch_size} / {base}" if base else f"{used:g}"


OVERRIDES: dict[str, str] = {}  # of the command line: key of the config -> text


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, one line for what it cannot parse, and --config.KEY=VALUE taken out beforehand."""
    rest, words = [], iter(argv)
    for word in words:
        if match := re.match(r"--?(no)?config\.([^=]+)(?:=(.*))?$", word, re.S):
            negated, key, text = match.groups()
            if text is None:
                text = "false" if negated else next(words, None)
            if text is None:
                raise SystemExit(f"error: --config.{key} has no value; write --config.{key}=VALUE")
            OVERRIDES[key] = text
        else:
            rest.append(word)
    try:
        return FLAGS(rest)
    except flags.Error as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}; --help lists the flags") from error
    except BrokenPipeError:  # `--help | head`
        silence(sys.stdout)
        raise SystemExit(0) from None


STOP = Stop()  # of the process; `main` catches its signals


def main() -> None:
    global STOP
    open_closed()
    with caught(of_program=True) as STOP:
        define_flags()
        app.run(run, flags_parser=parse_flags)


def imgrec() -> None:
    """Entry point of the `imgrec` script: `imgrec --config=…` trains; `imgrec NAME …` is `python -m imgrec_jax.NAME …`."""
    if sys.argv[1:2] in (["--help"], ["-h"], ["help"]):  # absl's own looks for the flags of the script, which has none
        define_flags()
        commands = f"Commands beside training: {', '.join(COMMANDS)}; imgrec NAME --help"
        try:
            print(f"{__doc__}\n{commands}\n{FLAGS.module_help(define_flags.__module__)}", flush=True)
        except BrokenPipeError:  # `--help | head`
            silence(sys.stdout)
        return None
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        import importlib

        name = sys.argv[1]
        if name not in COMMANDS:
            from imgrec_jax.config import did_you_mean

            known = f"; commands: {', '.join(COMMANDS)}{did_you_mean(name, COMMANDS) or '.'}"
            raise SystemExit(f"error: imgrec knows no command {name!r}{known} To train: imgrec --config=mnist")
        del sys.argv[1]
        return importlib.import_module(f"imgrec_jax.{name}").main()
    return main()


if __name__ == "__main__":
    main()
