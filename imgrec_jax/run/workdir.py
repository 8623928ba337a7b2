"""The folder a run lives in: what it holds, who may write to it, and whether it belongs to this config and these data.

  config.json        the config, as nested JSON (`config.from_plain` reads it)
  run.json           the format of this folder, class names, input, a fingerprint of each split, and of code of the user's own
  code/              copies of that code
  environment.json   command, versions, machine and commit of every start that trained
  metrics.jsonl      every report of training and every evaluation
  checkpoints/, best/, damaged/   see `checkpoint`
  .lock              held by the process that trains; the operating system lets go of it when that process ends, however it ends

Nothing in a workdir is deleted or cut that a run could not write again; `restart` moves what is there into `before_restart_N/`.
"""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from imgrec_jax import machine
from imgrec_jax.config import (
    MAY_CHANGE,
    data_folders,
    difference,
    flatten,
    from_plain,
    modernise,
    own_names,
    to_plain,
    with_whole_paths,
)  # fmt: skip
from imgrec_jax.data.files import write_whole
from imgrec_jax.data.source import Fingerprint
from imgrec_jax.run import checkpoint, start
from imgrec_jax.run.writers import aside, emit

FORMAT = 2  # 1 had no run.json and a flat config.json
CONFIG, CARD, ENVIRONMENT, METRICS, LOCK, CODE = (
    "config.json", "run.json", "environment.json", "metrics.jsonl", ".lock", "code",
)  # fmt: skip
PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy",
    "opencv-contrib-python-headless", "imgrec-jax",
)  # fmt: skip
# Of these may depend what a step computes, to the last bit.
_BITS = ("jax", "jaxlib", "flax", "optax", "numpy", "opencv-contrib-python-headless")
LOCK_PATIENCE_SECONDS = 2.0  # a killed process may take a moment to let go


class WorkdirError(Exception):
    """A workdir that does not fit: says what differs and what to do."""


def resolve(path: str | os.PathLike) -> Path:
    """`~` expanded; WorkdirError for an address that is no local folder."""
    text = os.fspath(path)
    if "://" in text:
        raise WorkdirError(
            f"--workdir={text}: workdirs are local folders; mount the bucket, or copy the folder there afterwards"
        )
    folder = Path(text).expanduser()
    if folder.exists() and not folder.is_dir():
        raise WorkdirError(f"--workdir={folder} is a file; give a folder")
    return folder


def exists(folder: Path) -> bool:
    """Whether a run was begun there."""
    return (folder / CONFIG).exists()


def was_trained(folder: Path) -> bool:
    """Whether anything in it would be lost if it were taken for another run's."""
    file = folder / METRICS
    return checkpoint.any_ever(folder) or (file.exists() and file.stat().st_size > 0)


def has_begun(folder: Path) -> bool:
    """Whether it holds a run that the next start goes on with."""
    return exists(folder) and was_trained(folder)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise WorkdirError(
            f"{path} is not valid JSON ({error}); put the file back as it was, give another --workdir, or begin anew in this "
            "one with --restart, which keeps its files under another name"
        ) from error
    except OSError as error:
        raise WorkdirError(f"{path} cannot be read: {error}") from error


def read_card(folder: Path) -> dict[str, Any]:
    """run.json; of a workdir of format 1, which has none, only the format.

    Raises:
      WorkdirError: for a file that is no JSON, or of a newer format than this version knows.
    """
    if not (folder / CARD).exists():
        return {"format": 1}
    card = _read(folder / CARD)
    if not isinstance(card, dict) or not isinstance(card.get("format"), int):
        raise WorkdirError(f"{folder / CARD} has no 'format'; put the file back as it was, or give another --workdir")
    if card["format"] > FORMAT:
        raise WorkdirError(
            f"{folder} was made by a newer imgrec_jax (format {card['format']}, this one knows {FORMAT}); update this one"
        )
    return card


def read_config(folder: Path) -> ConfigDict:
    """The config of a workdir.

    Raises:
      WorkdirError: where there is none, or it cannot be read.
    """
    if not exists(folder):
        raise WorkdirError(f"there is no run in {folder}: no {CONFIG} there; train first, or give the right --workdir")
    stored = _read(folder / CONFIG)
    if not isinstance(stored, dict):
        raise WorkdirError(f"{folder / CONFIG} is no config; put the file back as it was, or give another --workdir")
    try:
        return from_plain(stored, read_card(folder)["format"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WorkdirError(f"{folder / CONFIG} is no config ({error}); put the file back as it was") from error


def config_changes(
    folder: Path,
    config: ConfigDict,
    settle: Callable[[ConfigDict], ConfigDict],
    may_change: tuple[str, ...] = MAY_CHANGE,
) -> list[str]:
    """Lines `key: old -> new` where the config differs from the workdir's in what a run computes.

    settle: fills in the options that a config leaves out; may_change: as of `config.difference`.
    """
    stored, config = read_config(folder), modernise(config)
    named = flatten(config)
    if only_there := own_names(stored).items() - own_names(config).items():
        return [f"{key}: {name} -> {named.get(key, '(absent)')}" for key, name in only_there]  # code is not run to compare
    return difference(settle(stored), settle(config), may_change)


def data_changes(folder: Path, card: dict[str, Any]) -> list[str]:
    """Lines that say how the splits of an experiment's card differ from those of the workdir."""
    kept, splits = read_card(folder).get("splits", {}), card["splits"]
    lines = []
    for split in sorted(kept.keys() & splits.keys()):
        lines += [f"split {split!r}: {line}" for line in _fingerprint(kept[split]).differences(_fingerprint(splits[split]))]
    return lines


def code_changes(folder: Path, card: dict[str, Any]) -> list[str]:
    """Lines that say where the code of the user's own is another than the workdir's."""
    kept, given = read_card(folder).get("code", {}), card.get("code", {})
    return [
        f"{name}: {given[name]['file']} is another than at the start"
        + (f"; as it was then it lies in {folder / kept[name]['copy']}" if kept[name].get("copy") else "")
        for name in sorted(kept.keys() & given.keys())
        if kept[name]["sha256"] != given[name]["sha256"]
    ]


def _fingerprint(stored: dict[str, Any]) -> Fingerprint:
    return Fingerprint(stored["examples"], tuple(stored["class_names"]), stored["identity"])


def check_config(folder: Path, config: ConfigDict, settle: Callable[[ConfigDict], ConfigDict]) -> None:
    """Raises WorkdirError when the folder holds what a run of another config left; needs no data. settle: see above."""
    if config.get("seeds", 1) == 1 and (seeds := start.seeds_of(folder)):
        raise WorkdirError(
            f"{folder} holds a run for each of the seeds {', '.join(map(str, seeds))}; go on with --config.seeds={len(seeds)}, "
            f"with one of them by --workdir={start.folder_of_seed(folder, seeds[0])}, or give another --workdir"
        )
    if exists(folder):
        changed = config_changes(folder, config, settle)
        if changed and was_trained(folder):
            raise WorkdirError(
                f"{folder} holds a run of another config:\n  " + "\n  ".join(changed) + "\nGive another --workdir, or the "
                "config it began with (--restart begins anew and keeps the old files under another name)."
            )
    elif was_trained(folder):
        raise WorkdirError(
            f"{folder} holds checkpoints or metrics, but no {CONFIG} that says whose; put it back, or give another --workdir "
            "(--restart begins anew and keeps the old files under another name)"
        )


def check_card(folder: Path, card: dict[str, Any]) -> None:
    """Raises WorkdirError when data or code are not those that the run in the folder has been trained with."""
    if not has_begun(folder):
        return
    if changed := data_changes(folder, card):
        raise WorkdirError(
            f"the data are not those of the run in {folder}:\n  " + "\n  ".join(changed) + "\nGive back the data it began "
            "with, or another --workdir (--mode=eval --allow_changes evaluates on these data and says so)."
        )
    if changed := code_changes(folder, card):
        raise WorkdirError(
            f"the code is not that of the run in {folder}:\n  " + "\n  ".join(changed) + "\nPut it back, or give another "
            "--workdir (--restart begins anew and keeps the old files under another name)."
        )


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder, made where it is not there, is this process's to write to.

    Raises:
      WorkdirError: when another process holds it, by name; or it cannot be written to.
    """
    key = os.path.realpath(folder)
    if key in _HELD:
        raise WorkdirError(f"{folder} is in use by another run of this process")
    _HELD.add(key)
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / LOCK).open("a+")
        except OSError as error:
            raise WorkdirError(f"cannot write to {folder}: {error}; choose another --workdir") from error
        with file:
            _lock(file, folder)
            try:
                file.truncate(0)
                command = " ".join(sys.argv)[:300]
                began = time.strftime("%Y-%m-%d %H:%M:%S")
                file.write(f"process {os.getpid()} on {platform.node()} since {began}: {command}\n")
                file.flush()
                yield
            finally:
                with contextlib.suppress(OSError):
                    file.truncate(0)
    finally:
        _HELD.discard(key)


# A POSIX lock does not keep two runs of one process apart, and is gone when any file handle of that file is closed: what is
# held is known before the file is opened.
_HELD: set[str] = set()


def _lock(file: Any, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no POSIX: one run a workdir is up to the user
        return
    until = time.monotonic() + LOCK_PATIENCE_SECONDS
    while True:
        try:
            # Of the process, not of the file description: a child that was forked does not keep it.
            return fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            if time.monotonic() > until:
                file.seek(0)
                holder = file.read().strip() or "a process that does not say its name"
                raise WorkdirError(f"{folder} is in use by {holder}. Wait for it, end it, or give another --workdir") from None
            time.sleep(0.1)
        except OSError as error:
            emit(f"note: {folder} cannot be locked ({error}); see to it that no other run writes there", sys.stderr)
            return None


def restart(folder: Path, config: ConfigDict) -> Path | None:
    """Moves everything into `before_restart_N/` of the same folder; returns it, or None where there was nothing.

    Data that the config reads stay, and what is hidden. Copies of code stay as well, named by what is in them: what begins anew
    may be made of them.

    Raises:
      WorkdirError: when another process holds a run within it, such as that of a seed, or it is itself the folder of the data;
        nothing is moved then.
    """
    read = [Path(place).resolve() for place in data_folders(config) if "://" not in place]
    if folder.resolve() in read:
        raise WorkdirError(
            f"{folder} is also a folder of the data, which --restart would move; give another --workdir, or move the run away"
        )
    content = [
        path
        for path in folder.iterdir()
        if not (path.name.startswith((".", "before_restart_")) or path.name == CODE)
        and not any(place.is_relative_to(path.resolve()) for place in read)
    ]
    if not content:
        return None
    number = 1
    while (kept := folder / f"before_restart_{number}").exists():
        number += 1
    with contextlib.ExitStack() as stack:
        for path in content:
            if (path / LOCK).exists():
                stack.enter_context(held(path))
        kept.mkdir()
        if (folder / CODE).exists():
            shutil.copytree(folder / CODE, kept / CODE)
        for path in content:
            path.rename(kept / path.name)
    return kept


def write_record(folder: Path, config: ConfigDict, card: dict[str, Any]) -> None:
    """Writes config.json and run.json: the folder is this run's from now on."""
    kept = read_card(folder) if has_begun(folder) else {}
    # What the run was trained on stays, also where it goes on without some split; so do the weights that it began with, of
    # which a later start reads nothing: their file may be another by now.
    new = {name: value for name, value in card.items() if name != "pretrained" or not kept}
    card = {**kept, **new, "format": FORMAT, "splits": {**kept.get("splits", {}), **card["splits"]}}
    if "code" in card:
        before = kept.get("code", {})
        card["code"] = {name: before.get(name) or _keep_code(folder, part) for name, part in card["code"].items()}
    _write_json(folder / CONFIG, to_plain(with_whole_paths(config)))
    _write_json(folder / CARD, card)


def _keep_code(folder: Path, part: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of code, with where its copy lies; copies it where it does not lie there yet."""
    if not part["kept"]:
        return part
    source = Path(part["file"])
    sha = part["sha256"][:8]
    copy = f"{CODE}/{source.stem.removesuffix(f'_{sha}')}_{sha}.py"  # what begins anew may be of a copy
    if not (folder / copy).exists():
        (folder / CODE).mkdir(exist_ok=True)
        data = source.read_bytes()
        write_whole(folder / copy, lambda partial: partial.write_bytes(data))
    return {**part, "copy": copy}


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1) + "\n"
    write_whole(path, lambda partial: partial.write_text(text))


def starts(folder: Path) -> list[dict[str, Any]]:
    """The entries of environment.json; [] where there is none or it cannot be read."""
    try:
        stored = json.loads((folder / ENVIRONMENT).read_text())
    except (OSError, ValueError):
        return []
    return stored if isinstance(stored, list) else [stored]


def append_start(folder: Path, entry: dict[str, Any]) -> None:
    """Adds what this start runs on to environment.json."""
    path = folder / ENVIRONMENT
    before = starts(folder)
    if path.exists() and not before:
        aside(path)
    _write_json(path, [*before, entry])


def environment(step: int) -> dict[str, Any]:
    """Command, versions, machine and commit of a start at `step`."""
    import jax

    from imgrec_jax.ops.conv import FORMS_VERSION

    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "step": step,
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": [sys.executable, *sys.argv],
        "python": platform.python_version(),
        "packages": versions,
        "devices": [str(device) for device in jax.devices()],
        "device_kind": jax.devices()[0].device_kind,
        "cpu": _cpu(),
        "threads": len(machine.cores()),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "convolutions": FORMS_VERSION,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Of the clone that this package lies in; None for an installed one, or without git."""
    clone = Path(__file__).resolve().parents[2]
    if not (clone / ".git").exists():
        return None
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=clone, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return git.stdout.strip() or None


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two starts of a run on which the last bits of its numbers depend; of what both say."""
    keys = ("device_kind", "cpu", "threads", "xla_flags", "convolutions")
    pairs = {key: (old[key], new[key]) for key in keys if key in old and key in new}
    pairs["devices"] = (len(old.get("devices", [])), len(new.get("devices", [])))
    packages = [entry.get("packages", {}) for entry in (old, new)]
    pairs |= {name: tuple(p[name] for p in packages) for name in _BITS if all(name in p for p in packages)}
    return [f"{key} {a!r} -> {b!r}" for key, (a, b) in pairs.items() if a != b]
