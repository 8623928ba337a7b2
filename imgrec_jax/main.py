"""Command line: python -m imgrec_jax.main --config=configs/mnist.py

Any value of the config can be changed from the command line:
  --config=configs/mnist.py:fast --config.optim.learning_rate=0.02 --workdir=runs/fast_0.02
A run that was stopped goes on when the same command is given again.
"""

import difflib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import app, flags, logging

FLAGS = flags.FLAGS


def define_flags() -> None:
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config", None, "The experiment: configs/NAME.py or configs/NAME.py:VARIANT.", lock_config=True
    )
    flags.DEFINE_string("workdir", None, "Where the run lives; default runs/NAME[_VARIANT].")
    flags.DEFINE_string("coordinator_address", None, "Of several processes: address:port of process 0, the same for all.")
    flags.DEFINE_integer("num_processes", None, "Of several processes: how many there are.")
    flags.DEFINE_integer("process_id", None, "Of several processes: which one this is, from 0.")
    flags.DEFINE_enum(
        "mode", "train", ["train", "eval", "check"],
        "train; eval: evaluate the last checkpoint of the workdir; check: report what is wrong with the data, train nothing.",
    )  # fmt: skip


def default_workdir(config_path: str) -> Path:
    """configs/mnist.py:fast -> runs/mnist_fast."""
    path, _, variant = config_path.partition(":")
    return Path("runs") / "_".join(filter(None, [Path(path).stem, variant]))


def run(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if FLAGS.config is None:
        raise app.UsageError("--config is missing; try --config=configs/mnist.py")
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    # JAX is imported only now: --help and a misspelt key answer at once
    from jax import process_count
    from jax.errors import JaxRuntimeError

    from imgrec_jax import distributed

    settle_durations(FLAGS.config, FLAGS["config"].override_values)
    try:
        distributed.initialize(distributed.place(FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id))
    except distributed.PlaceError as error:
        raise SystemExit(f"error: {error}") from error
    try:
        act(FLAGS.config, Path(FLAGS.workdir or default_workdir(FLAGS["config"].config_filename)))
    except JaxRuntimeError as error:
        if process_count() == 1:
            raise
        distributed.leave(error)


def act(config, workdir: Path) -> None:
    """Does what --mode says, in this process."""
    import jax

    from imgrec_jax import build, distributed, parallel, train
    from imgrec_jax.checkpoint import CheckpointError

    say = print if parallel.is_lead() else lambda line: None
    if config.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    if config.parallel.compilation_cache:
        parallel.keep_compiled(config.parallel.compilation_cache)
    try:
        if FLAGS.mode == "check":
            return check_data(build.reports(config))
        with distributed.lead_first("data"):
            experiment = build.build(config)
    except (ValueError, FileNotFoundError) as error:  # what a config can get wrong; --verbosity=1 shows where
        if FLAGS.verbosity > 0:
            raise
        raise SystemExit(f"error: {error}") from error
    try:
        if FLAGS.mode == "eval":
            train.evaluate_workdir(experiment, workdir, say)
            return
        if parallel.is_lead():
            open_workdir(workdir, config)
            print(summary(config, experiment, workdir), flush=True)
        distributed.wait("workdir")
        train.train(experiment, workdir, say)
    except (build.ConfigError, CheckpointError, train.NonFiniteError) as error:
        raise SystemExit(f"error: {error}") from error


def check_data(reports: Iterable) -> None:
    """Prints each report as soon as it is there; ends the program with status 1 where data must not be trained on."""
    errors = 0
    for report in reports:
        print(report.table(), flush=True)
        errors += len(report.bad())
    if errors:
        raise SystemExit(f"error: {errors} errors in the data, listed above")


def open_workdir(workdir: Path, config) -> None:
    """Makes the workdir, or checks that it belongs to this config; writes what the run is made of."""
    from imgrec_jax.config import difference, flatten

    path = workdir / "config.json"
    flat = flatten(config)
    if path.exists():
        changed = difference(json.loads(path.read_text()), flat)
        if changed:
            raise SystemExit(
                f"{workdir} holds a run of another config:\n  "
                + "\n  ".join(changed)
                + "\nGive another --workdir, or the config it began with."
            )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        _write_whole(path, json.dumps(flat, indent=1) + "\n")
        _write_whole(workdir / "environment.json", json.dumps(environment(), indent=1) + "\n")
    except OSError as error:
        raise SystemExit(f"cannot write to {workdir}: {error}; choose another --workdir") from error


def _write_whole(path: Path, text: str) -> None:
    """A kill leaves the old file or the new one, never half of one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def environment() -> dict[str, object]:
    """Command, versions, devices and commit of this run."""
    from importlib import metadata

    import jax

    packages = (
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "grain",
        "tensorflow-datasets",
        "numpy",
        "imgrec-jax",
    )
    versions = {}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    here = Path(__file__).parent
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, check=False)
    return {
        "command": [sys.executable, *sys.argv],
        "python": platform.python_version(),
        "packages": versions,
        "devices": [str(device) for device in jax.devices()],
        "device_kind": jax.devices()[0].device_kind,
        "commit": git.stdout.strip() or None,
    }


def summary(config, experiment, workdir: Path) -> str:
    """A short table of what will run."""
    import jax

    from imgrec_jax.parallel import parameter_count

    devices = jax.devices()
    image = "x".join(map(str, experiment.batch_spec["image"].shape[1:]))
    splits = ", ".join(f"{name} {len(p.source):,}" for name, p in {"train": experiment.train, **experiment.evals}.items())
    rows = [
        ("task", config.task),
        ("model", f"{config.model.name}, {parameter_count(experiment.variable_shapes['params']):,} parameters, {config.dtype}"),
        ("data", f"{config.data.name}, {image}: {splits}"),
        ("optimiser", f"{config.optim.name}, learning rate {_rate(config)} ({config.schedule.name})"),
        (
            "steps",
            f"{experiment.total_steps:,} of {experiment.batch_size} examples, {experiment.train.steps_per_epoch:,} an epoch",
        ),
        ("devices", f"{len(devices)} x {devices[0].device_kind}"),
        ("workdir", str(workdir)),
    ]
    return "\n".join(f"  {name:<10}{value}" for name, value in rows)


def _rate(config) -> str:
    from imgrec_jax.build import learning_rate

    given, used, base = config.optim.learning_rate, learning_rate(config), config.optim.base_batch_size
    return f"{used:g} = {given:g} x {config.data.batch_size} / {base}" if base else f"{used:g}"


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with an answer to a misspelt config key that lists the right ones."""
    import importlib.util

    from imgrec_jax.config import flatten

    chosen = [arg.split("=", 1)[1] for arg in argv if arg.startswith("--config=")]
    if chosen:
        path, _, variant = chosen[-1].partition(":")
        if not Path(path).is_file():
            known = sorted(str(p) for p in Path(path).parent.glob("*.py"))
            raise SystemExit(f"error: there is no config {path}; there are {known or 'none in that folder'}")
        spec = importlib.util.spec_from_file_location("config_to_check", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        try:
            config = module.get_config(*([variant] if variant else []))
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise SystemExit(f"error: {path}: {error}") from error
        for arg in argv:
            if arg.startswith("--config."):
                _check_override(arg.removeprefix("--config.").split("=")[0], flatten(config))
    try:
        return app.parse_flags_with_usage(argv)
    except (TypeError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


def _check_override(key: str, known: dict[str, object]) -> None:
    if key in known or any(name.startswith(f"{key}.") for name in known):
        return
    section = key.rpartition(".")[0]
    valid = [name for name in known if name.startswith(f"{section}.")] if section else []
    valid = valid or sorted({name.split(".")[0] for name in known})
    close = difflib.get_close_matches(key, known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise SystemExit(f"error: the config has no key {key!r}{hint} Keys there: {', '.join(valid)}")


def settle_durations(config, overridden: Iterable[str]) -> None:
    """A duration given on the command line replaces the config's, whatever the unit of either."""
    units = ("_steps", "_epochs", "_examples")
    for key in overridden:
        section, _, name = key.rpartition(".")
        unit = next((u for u in units if name.endswith(u)), None)
        others = [name.removesuffix(unit) + u for u in units if u != unit] if unit else []
        if section and all(other in config[section] for other in others):
            for other in others:
                config[section][other] = None


def main() -> None:
    define_flags()
    app.run(run, flags_parser=parse_flags)


if __name__ == "__main__":
    main()
