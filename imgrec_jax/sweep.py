"""Command line: python -m imgrec_jax.sweep --config=mnist:fast --grid optim.learning_rate=0.01,0.02 --seeds=3

Runs every point of a grid (or of a random sample) with every seed. Each is an ordinary run in a workdir of its own, equal to
one that was started by hand with the same flags and as many cores; a sweep that was stopped goes on when the same command is
given again. Its folder holds sweep.json (what was asked for), results.jsonl (a line a finished run), table.md, table.csv and,
over the first key that has numbers, plot.png.
"""

import json
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imgrec_jax import machine
from imgrec_jax.config import MAY_CHANGE, did_you_mean, to_plain
from imgrec_jax.data.files import write_whole
from imgrec_jax.inference.command import Parser, ending_in_one_line, note
from imgrec_jax.overrides import configure, default_workdir
from imgrec_jax.run.writers import emit
from imgrec_jax.sweeps.points import Point, grid, points, sample, seeds_of
from imgrec_jax.sweeps.runs import Places, command, final_values, finished, run_all
from imgrec_jax.sweeps.table import summarise

ASKED = "sweep.json"
# Where runs that stand in one row of the table may have other values.
MAY_DIFFER = tuple(key for key in MAY_CHANGE if key not in ("train.total_", "data.manual_dir", "data.test_sets"))


def _path(text: str) -> Path:
    return Path(text).expanduser()  # of --folder=~/x the shell expands nothing


def parser() -> Parser:
    made = Parser("sweep", __doc__)
    made.add_argument("--config", required=True, metavar="NAME", help="as of imgrec; --config.KEY=VALUE holds for every point")
    made.add_argument("--grid", action="append", default=[], metavar="KEY=V1,V2", help="values; several --grid multiply")
    made.add_argument("--random", type=int, metavar="N", help="N points drawn by --sample in place of a grid")
    made.add_argument("--sample", action="append", default=[], metavar="KEY=LOW:HIGH[:log|:int]",
                      help="with --random: from LOW to HIGH, evenly or evenly in its logarithm; or KEY=V1,V2")  # fmt: skip
    made.add_argument("--sample_seed", type=int, default=0, help="of the random points (default 0)")
    made.add_argument("--seeds", default="1", metavar="N", help="N: seeds 0 to N-1; or a list, 3,5,8 (default 1)")
    made.add_argument("--folder", type=_path, help="of the sweep (default runs/sweep_CONFIG)")
    made.add_argument("--jobs", type=int, help="runs at a time (default: as many as devices, or cores / --cores)")
    made.add_argument("--cores", type=int, default=1, help="cores of each run (default 1); pinned where the system can")
    made.add_argument("--devices", metavar="0,1", help="GPUs, one a run (CUDA_VISIBLE_DEVICES)")
    made.add_argument("--metrics", metavar="A,B", help="of the table (default: what the config shows on the terminal)")
    made.add_argument("--dry_run", action="store_true", help="only list the points")
    made.add_argument("--slurm", type=_path, metavar="FILE", help="run nothing; write an sbatch array script, a task a point")
    made.add_argument("--only", type=int, metavar="I", help="run point I alone (what the array script does)")
    made.add_argument("--verbosity", type=int, default=0, help="1 shows where an error happened")
    return made


def slurm_script(folder: Path, argv: Sequence[str], count: int) -> str:
    """An array of `count` tasks, each the same command for its point."""
    words, rest = [], iter(argv)
    for word in rest:
        if word == "--slurm":
            next(rest, None)
        elif not word.startswith("--slurm="):
            words.append(word)
    line = shlex.join([sys.executable, "-m", "imgrec_jax.sweep", *words])
    return "\n".join([
        "#!/usr/bin/env bash",
        f"#SBATCH --job-name={folder.name}",
        f"#SBATCH --array=0-{count - 1}",
        f"#SBATCH --output={folder.absolute()}/slurm_%a.log",
        "#SBATCH --signal=B:TERM@60",  # without B: Slurm signals the steps of srun alone, and here the script is the run
        "# Add what the cluster needs: --partition, --gres=gpu:1, --time. A task that was ended goes on when it is submitted",
        "# again; the same command without --only makes the table.",
        f"exec {line} --only=$SLURM_ARRAY_TASK_ID",
        "",
    ])  # fmt: skip


def check_asked(folder: Path, asked: dict[str, Any]) -> None:
    """Raises ValueError where the folder holds another sweep; more points or seeds of the same config are no other one."""
    path = folder / ASKED
    if path.exists():
        before = json.loads(path.read_text())
        theirs, ours = (
            " ".join([d["config"], *(f"--config.{k}={v}" for k, v in sorted(d["common"].items()))]) for d in (before, asked)
        )
        if theirs != ours:
            raise ValueError(f"{folder} holds a sweep of --config={theirs}, not of {ours}; give another --folder")


def run(argv: Sequence[str]) -> int:
    """Does what the flags say; returns the exit status."""
    common, rest, words = {}, [], iter(argv)
    for word in words:
        if match := re.match(r"--config\.([^=]+)(?:=(.*))?$", word, re.S):
            value = match[2] if match[2] is not None else next(words, None)
            if value is None:
                raise ValueError(f"--config.{match[1]} has no value; write --config.{match[1]}=VALUE")
            common[match[1]] = value
        else:
            rest.append(word)
    flags = parser().parse(rest)
    if bool(flags.sample) != (flags.random is not None) or (flags.grid and flags.random is not None):
        raise ValueError("give --grid, or --random N with --sample")
    combinations = sample(flags.sample, flags.random, flags.sample_seed) if flags.random is not None else grid(flags.grid)
    if flags.random is not None and len(combinations) < flags.random:
        note(f"{flags.random} draws gave {len(combinations)} different points; a point that is drawn again is made once")
    every = points(combinations, seeds_of(flags.seeds), common)
    if seeds := {"seeds", "seeds_in"} & {*common, *every[0].values}:
        raise ValueError(f"--config.{sorted(seeds)[0]}: a sweep makes every seed a run of its own; give --seeds=N")
    if varied := set(common) & {*every[0].values, "seed"}:
        raise ValueError(f"--config.{sorted(varied)[0]} is given for every point, and the sweep varies it; give it once")
    for name in ("jobs", "cores"):
        if (value := getattr(flags, name)) is not None and value < 1:
            raise ValueError(f"--{name}={value}; expected 1 or more")
    named = default_workdir(flags.config)
    folder = flags.folder or named.with_name(f"sweep_{named.name}")
    configs = _configs(flags.config, every, folder)
    metrics = flags.metrics.split(",") if flags.metrics else list(configs[every[-1].name].log.show)
    asked = {"config": flags.config, "common": common, "points": [point._asdict() for point in every]}
    if flags.dry_run:
        print("\n".join(point.name for point in every))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    check_asked(folder, asked)
    text = json.dumps(asked, indent=1) + "\n"
    if not (folder / ASKED).exists() or (folder / ASKED).read_text() != text:  # tasks of an array start at the same time
        write_whole(folder / ASKED, lambda partial: partial.write_text(text))
    if flags.slurm:
        flags.slurm.write_text(slurm_script(folder, argv, len(every)))
        note(f"{len(every)} tasks in {flags.slurm}; submit it with sbatch {flags.slurm}")
        return 0
    chosen = every if flags.only is None else every[flags.only : flags.only + 1]
    if not chosen:
        raise ValueError(f"--only={flags.only}; there are points 0 to {len(every) - 1}")
    done = finished(folder)
    for point in chosen:
        if point.name in done and done[point.name]["values"] != point.values:
            raise ValueError(
                f"{folder / point.name} is done with {done[point.name]['values']}, not {point.values}; give another --folder"
            )
        if point.name in done and (changed := _changes(folder / point.name, configs[point.name])):
            raise ValueError(
                f"{folder / point.name} is done with another config:\n  "
                + "\n  ".join(changed)
                + "\nGive another --folder, or "
                "the config it was made with"
            )
    todo = [point for point in chosen if point.name not in done]
    devices = flags.devices.split(",") if flags.devices else []
    cores = len(machine.cores())
    jobs = min(flags.jobs or len(devices) or max(cores // flags.cores, 1), max(len(todo), 1))
    note(f"{len(chosen)} runs, {len(chosen) - len(todo)} of them done, {jobs} at a time, in {folder}")
    look = metrics_check(folder, every, metrics if flags.metrics else ())
    look()
    try:
        failed = run_all(
            lambda point: command(flags.config, point, folder), todo, folder, Places(jobs, flags.cores, devices), len(chosen),
            len(chosen) - len(todo), meanwhile=look,
        )  # fmt: skip
    except KeyboardInterrupt:
        note("stopped; the runs have saved, and the same command goes on")
        return 130
    if flags.only is None:
        emit(summarise(folder, every, metrics))
        note(f"in {folder}: table.md, table.csv, plot.png, and a workdir a run")
    if failed:
        some = ", ".join(list(failed)[:5])
        note(f"error: {len(failed)} of {len(chosen)} runs failed or are unfinished: {some}; the .log beside a workdir says why")
    return 1 if failed else 0


def _configs(config: str, every: Sequence[Point], folder: Path) -> dict[str, ConfigDict]:
    """{name: config} of the points, each of which was found sound and is another than the others."""
    from imgrec_jax import assemble
    from imgrec_jax.run import workdir

    made: dict[str, ConfigDict] = {}
    known: dict[str, str] = {}
    for point in every:
        one, _ = configure(config, point.overrides)
        same = known.setdefault(json.dumps(to_plain(one), sort_keys=True), point.name)
        if same != point.name or point.name in made:
            raise ValueError(f"{point.name} is the same run as {same}: one run counts once; give each value once")
        made[point.name] = one
        try:
            assemble.check(assemble.complete(one))
            if not workdir.exists(folder / point.name):
                assemble.pretrained.check_file(one)
        except ValueError as error:
            raise ValueError(f"point {point.name}: {error}") from error
    return made


def _changes(own: Path, config: ConfigDict) -> list[str]:
    """How the config of a point that is done differs now from that of its workdir, where it is still there: a file may have
    been edited. Nothing goes on there, so that its length and its data count, too."""
    from imgrec_jax import assemble
    from imgrec_jax.run import workdir

    if not workdir.exists(own):
        return []
    now = assemble.remembered(config, workdir.read_config(own))
    return workdir.config_changes(own, now, assemble.complete, MAY_DIFFER)


def metrics_check(folder: Path, every: Sequence[Point], metrics: Sequence[str]) -> Callable[[], None]:
    """A function that, once one of the runs has evaluated, raises ValueError for a metric of the table that does not exist."""
    open_names = set(metrics)

    def look() -> None:
        if not open_names or not (splits := next(filter(None, (final_values(folder / p.name) for p in every)), {})):
            return
        known = sorted({name for values in splits.values() for name in values} - {"step", "epoch"})
        if unknown := sorted(open_names - set(known)):
            hint = did_you_mean(unknown[0], known)
            raise ValueError(f"--metrics={','.join(unknown)}: no evaluation has it{hint}; there are {', '.join(known)}")
        open_names.clear()

    return look


def main(argv: Sequence[str] | None = None) -> None:
    def terminated(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminated)
    with ending_in_one_line():
        raise SystemExit(run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    main()
