"""Checkpoints: the train state (orbax, asynchronous), the clock beside it and a manifest of every byte, as one unit.

  checkpoints/STEP/, best/STEP/
    state/         the arrays, as orbax writes them
    clock.json     where the metrics file ends, what the loop has summed since its last report, the early stop's memory
    manifest.json  size and CRC-32 of every other file, and a CRC-32 of itself

State + clock + step (which is the data position) are all that a run is; restoring them resumes it exactly. A checkpoint takes
its name only when all of it is on the disk. Whether it is damaged is decided by its bytes alone (`verify`), never by what a
reader thinks of them: another config, another version of a library or a failing machine damages nothing.
"""

import contextlib
import errno
import functools
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imgrec_jax import distributed
from imgrec_jax.run.writers import emit

LAST, BEST, DAMAGED = "checkpoints", "best", "damaged"
# Ends of names that begin with a point: being written, giving way to a new one of the same step, being deleted.
PARTIAL, REPLACED, OLD = ".partial", ".replaced", ".old"
STATE, CLOCK, MANIFEST = "state", "clock.json", "manifest.json"
LEGACY_CLOCK = "clock/metadata"  # of workdirs without run.json
# Errors that say nothing of the bytes on the disk.
_MACHINE = (errno.EIO, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)


class CheckpointError(Exception):
    """A checkpoint that could not be written or read: says which, why, and what to do."""


class DamagedError(CheckpointError):
    """The bytes of a checkpoint are not those that were written."""


class Found(NamedTuple):
    """A checkpoint on the disk: kind LAST or BEST."""

    kind: str
    step: int
    path: Path

    def __str__(self) -> str:
        return f"{'best ' if self.kind == BEST else ''}checkpoint {self.step}"


def saved(workdir: Path, kind: str = LAST) -> list[Found]:
    """The checkpoints of a workdir, oldest first; answers without orbax."""
    folder = Path(workdir) / kind
    paths = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    found = {int(path.name): path for path in paths if path.name.isdigit()}
    for path in paths:  # of a writer that was killed when the one before had lost its name, and the new one had none yet
        if path.name.endswith(REPLACED) and (step := path.name[1:].removesuffix(REPLACED)).isdigit():
            found.setdefault(int(step), path)
    return [Found(kind, step, found[step]) for step in sorted(found)]


def any_ever(workdir: Path) -> bool:
    """Whether there are checkpoints in a workdir, or were before they were set aside."""
    folder = Path(workdir) / DAMAGED
    return bool(saved(workdir, LAST) or saved(workdir, BEST) or (folder.is_dir() and any(folder.iterdir())))


def verify(found: Found) -> dict[str, Any]:
    """The clock of a checkpoint whose every byte is as it was written.

    Raises:
      DamagedError: when a file is missing or differs.
      CheckpointError: when the machine could not read it, which says nothing of the checkpoint.
    """
    try:
        if (found.path / LEGACY_CLOCK).exists() and not (found.path / CLOCK).exists():
            return _verify_legacy(found)
        manifest = _read_manifest(found.path)
        for name, (size, crc) in manifest["files"].items():
            _verify_file(found.path, name, size, crc)
        clock = json.loads((found.path / CLOCK).read_text())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedError(f"{_relative(error.filename, found.path)} is missing") from error
    except (OSError, MemoryError) as error:
        raise CheckpointError(
            f"{found.path} cannot be read on this machine ({_first_line(error)}); nothing was changed. Start again when it can"
        ) from error
    if manifest["step"] != found.step or clock["step"] != found.step:
        raise DamagedError(f"it holds step {manifest['step']}, not {found.step}")
    return clock


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        crc = manifest.pop("crc32")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedError(f"{MANIFEST} is not what was written") from error
    if _sum_of(manifest) != crc:
        raise DamagedError(f"{MANIFEST} is not what was written")
    return manifest


def _verify_file(folder: Path, name: str, size: int, crc: int) -> None:
    found = (folder / name).stat().st_size
    if found != size:
        raise DamagedError(f"{name} has {found} bytes, not {size}")
    if _crc_of_file(folder / name) != crc:
        raise DamagedError(f"{name} is not what was written")


def _crc_of_file(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def _sum_of(manifest: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())


def _relative(path: str | None, folder: Path) -> str:
    if path is not None:
        with contextlib.suppress(ValueError, TypeError):
            return Path(path).relative_to(folder).as_posix()
    return str(path)


def _verify_legacy(found: Found) -> dict[str, Any]:
    """Of a checkpoint without a manifest: its clock holds the CRC-32 of all arrays, in the order of the state."""
    try:
        clock = json.loads((found.path / LEGACY_CLOCK).read_text())
        crc, step = clock.pop("crc32"), clock["step"]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedError("its clock is not what was written") from error
    try:
        arrays = _read_tree(found.path / STATE)
        value = 0
        for leaf in _in_order_of_saving(found.path / STATE, arrays):
            value = zlib.crc32(np.ascontiguousarray(leaf), value)  # type: ignore[arg-type]  # a buffer; stubs say so from 3.12 on
    except MemoryError:
        raise
    except Exception as error:  # orbax and tensorstore raise many kinds; what was expected played no part in this reading
        if isinstance(error, OSError) and error.errno in _MACHINE:
            raise
        raise DamagedError(_first_line(error)) from error
    if value != crc:
        raise DamagedError("its arrays are not those that were saved")
    if not step == found.step == int(arrays["step"]):
        raise DamagedError(f"it holds step {int(arrays['step'])}, not {found.step}")
    return {**clock, "phase": "whole", "total_steps": None, "metrics_crc": None}


def _in_order_of_saving(folder: Path, tree: Any) -> Iterator[np.ndarray]:
    """The leaves in the order in which orbax's metadata list them, which is the order of the saved state."""
    for entry in json.loads((folder / "_METADATA").read_text())["tree_metadata"].values():
        leaf = tree
        for key in entry["key_metadata"]:
            name = key["key"]
            leaf = leaf[int(name) if isinstance(leaf, list | tuple) else name]
        if hasattr(leaf, "dtype"):
            yield leaf


def load_orbax() -> Any:
    """orbax.checkpoint, quiet."""
    import orbax.checkpoint as ocp  # slow to import, and unused by a run that keeps nothing

    logging.getLogger("absl").setLevel(logging.CRITICAL)  # its errors are raised, and reported in our words
    return ocp


def _read_tree(folder: Path, sections: tuple[str, ...] | None = None) -> Any:
    """The saved arrays as nested dicts and lists of numpy arrays, without knowing what they are for."""
    ocp = load_orbax()
    with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
        tree = reader.metadata(folder.absolute()).item_metadata.tree
        tree = tree if sections is None else {name: tree[name] for name in sections}
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        args = ocp.args.PyTreeRestore(item=tree, restore_args=how, partial_restore=sections is not None)
        return reader.restore(folder.absolute(), args=args)


def read_arrays(found: Found) -> Any:
    """Everything that a verified checkpoint holds, as nested dicts and lists of numpy arrays."""
    return _read_tree(found.path / STATE)


def read_variables(found: Found, averaged: bool | None = None) -> dict[str, Any]:
    """The model's variables of a verified checkpoint, numpy: parameters and other collections, no optimiser state.

    averaged: take the parameter average; None: where there is one, as evaluation does.
    """
    folder = found.path / STATE
    ocp = load_orbax()
    with contextlib.closing(ocp.Checkpointer(ocp.PyTreeCheckpointHandler())) as reader:
        has_average = bool(reader.metadata(folder.absolute()).item_metadata.tree.get("ema"))
    if averaged and not has_average:
        raise CheckpointError(f"{found} of {found.path.parents[1]} holds no parameter average; leave `averaged` out")
    if averaged is not False and has_average:
        tree = _read_tree(folder, ("ema",))["ema"]
    else:
        tree = _read_tree(folder, ("params", "model_state"))
    return {"params": tree["params"], **(tree["model_state"] or {})}


def read_state(found: Found, like: Any) -> Any:
    """The state of a verified checkpoint.

    Args:
      like: a state of the same shapes and shardings.

    Raises:
      CheckpointError: when it has other arrays than `like`, or cannot be read; nothing is changed by that.
    """
    ocp = load_orbax()
    folder = (found.path / STATE).absolute()
    try:
        with contextlib.closing(ocp.StandardCheckpointer()) as reader:
            _check_structure(found, reader.metadata(folder).item_metadata.tree, like)
            abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
            state = reader.restore(folder, abstract)
    except CheckpointError:
        raise
    except Exception as error:  # orbax and tensorstore raise many kinds; the bytes are sound
        raise CheckpointError(
            f"{found} is whole but could not be read: {_first_line(error)}. Nothing was changed; was it written by another "
            "version of orbax or jax (see environment.json), or is the memory too small?"
        ) from error
    if int(state.step) != found.step:
        raise CheckpointError(f"{found.path} holds step {int(state.step)}; was it renamed?")
    return state


def _check_structure(found: Found, saved_tree: Any, like: Any) -> None:
    """CheckpointError that lists arrays by name where the saved state and the wanted one differ."""

    def described(tree: Any) -> dict[str, str]:
        leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(_key_data, tree))
        return {_name(path): f"{np.dtype(x.dtype).name}{list(x.shape)}" for path, x in leaves if hasattr(x, "shape")}

    have, want = described(saved_tree), described(like)
    lines = [f"{name}: {have.get(name, 'absent')} -> {want.get(name, 'absent')}" for name in sorted(have.keys() | want.keys())
             if have.get(name) != want.get(name)]  # fmt: skip
    if lines:
        shown = "\n  ".join(lines[:8]) + (f"\n  ... and {len(lines) - 8} more" if len(lines) > 8 else "")
        raise CheckpointError(
            f"{found} of {found.path.parents[1]} holds other arrays than this config, with this version of optax, asks for; "
            f"saved -> wanted:\n  {shown}\nNothing was changed. Give the config it was trained with, or another --workdir"
        )


def _key_data(leaf: Any) -> Any:
    """The numbers of a typed key, which an optimiser that draws noise has in its state: as such it is saved."""
    is_key = hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.eval_shape(jax.random.key_data, leaf) if is_key else leaf


def _name(path: tuple) -> str:
    """Attributes, dict keys and positions of a path alike."""
    return "/".join(str(getattr(part, "name", getattr(part, "key", getattr(part, "idx", part)))) for part in path)


def set_aside(workdir: Path, found: Found) -> Path:
    """Moves a damaged checkpoint to `damaged/`, beside those that are there, so that its step can be saved again."""
    base = Path(workdir) / DAMAGED / (f"best_{found.step}" if found.kind == BEST else str(found.step))
    target = base
    if jax.process_index() == 0:
        base.parent.mkdir(exist_ok=True)
        number = 2
        while target.exists():
            target, number = base.with_name(f"{base.name}_{number}"), number + 1
        found.path.rename(target)
    distributed.wait("damaged checkpoint set aside")
    return target


class Checkpointer:
    """Writes the checkpoints of a workdir: the last few to `checkpoints/`, the best to `best/`."""

    def __init__(self, workdir: Path, *, keep: int = 2, say: Callable[[str], None] = emit):
        """A writer.

        Args:
          workdir: of the run.
          keep: how many of the last checkpoints stay, at least 2, so that a damaged one has a predecessor.
          say: told of old ones that cannot be deleted.
        """
        self.workdir, self._keep, self._say = Path(workdir).absolute(), max(keep, 2), say
        self._finisher = ThreadPoolExecutor(1, "checkpoint")
        self._pending: tuple[Path, Future] | None = None
        try:
            (self.workdir / LAST).mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                for kind in (LAST, BEST):
                    self._tidy(self.workdir / kind)
        except OSError as error:
            raise CheckpointError(f"cannot keep checkpoints in {self.workdir}: {error}; choose another --workdir") from error
        distributed.wait("checkpoint folders")

    @functools.cached_property
    def _writer(self) -> Any:
        """Made when something is to be written: the first step need not wait for orbax."""
        ocp = load_orbax()
        return ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())

    @staticmethod
    def _tidy(folder: Path) -> None:
        """Finishes or removes what a killed writer left."""
        for path in folder.glob(f".*{REPLACED}"):
            final = folder / path.name[1:].removesuffix(REPLACED)
            if not final.exists():
                path.rename(final)
        for path in (path for end in (REPLACED, PARTIAL, OLD) for path in folder.glob(f".*{end}")):
            shutil.rmtree(path, ignore_errors=True)

    def save(self, step: int, state: Any, clock: dict[str, Any], *, best: bool = False) -> None:
        """Starts writing a checkpoint; returns once the state is copied and may change.

        Sums of the bytes, the clock and the manifest are made by the writer's thread, which gives the checkpoint its name.

        Raises:
          CheckpointError: when this or an earlier write failed, e.g. on a full disk; older checkpoints stay as they are.
        """
        self.wait()
        folder = self.workdir / (BEST if best else LAST)
        partial = folder / f".{step}{PARTIAL}"
        if jax.default_backend() == "cpu":
            # There a host copy is a view of the very buffer that the next step may reuse while orbax still writes it.
            state = jax.block_until_ready(jax.tree.map(jnp.copy, state))

        def start() -> None:
            if jax.process_index() == 0:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            distributed.wait("checkpoint begun")
            self._writer.save(partial / STATE, args=load_orbax().args.StandardSave(state))

        self._guard(start, folder / str(step))
        keep_best = clock["selection"]["best_step"] if clock.get("selection") else None
        self._pending = (folder / str(step), self._finisher.submit(self._finish, folder, partial, step, clock, best, keep_best))

    def _finish(
        self, folder: Path, partial: Path, step: int, clock: dict[str, Any], best: bool, keep_best: int | None
    ) -> list[str]:
        """Gives a checkpoint its name, and deletes those that nobody needs any more; returns what to say of that."""
        self._writer.wait_until_finished()
        if jax.process_index() != 0:
            return []
        _write(partial / CLOCK, json.dumps(clock))
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        table = {path.relative_to(partial).as_posix(): [path.stat().st_size, _crc_of_file(path)] for path in files}
        manifest = {"step": step, "files": table}
        _write(partial / MANIFEST, json.dumps({**manifest, "crc32": _sum_of(manifest)}))
        _take_name(partial, folder / str(step))
        if best:  # the one before stays until a last checkpoint remembers this one
            return []
        # A killed run may have left checkpoints from what is now the future again.
        names = saved(self.workdir, LAST)
        earlier = [found for found in names if found.step <= step][-self._keep :]
        stale = [found for found in names if found not in earlier]
        stale += [found for found in saved(self.workdir, BEST) if found.step != keep_best and keep_best is not None]
        return [line for found in stale if (line := _delete(found.path))]

    def wait(self) -> None:
        """Returns when everything is written; raises CheckpointError as `save`."""
        if self._pending is not None:
            (path, future), self._pending = self._pending, None
            for line in self._guard(future.result, path) or ():
                self._say(line)
            distributed.wait("checkpoint written")

    def _guard(self, action: Callable[[], Any], path: Path) -> Any:
        """path: of the checkpoint that the action writes."""
        try:
            return action()
        except Exception as error:  # orbax and tensorstore raise many kinds
            good = [str(found) for kind in (LAST, BEST) for found in saved(self.workdir, kind) if found.path != path]
            raise CheckpointError(
                f"checkpoint {path.name} could not be written to {path.parent}: {_reason(error)}. "
                + (f"Earlier ones are intact: {', '.join(good)}. " if good else "There is none from before. ")
                + "Free space or make the folder writable, and start again"
            ) from error

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self._finisher.shutdown(wait=True)
            with contextlib.suppress(Exception):
                if "_writer" in self.__dict__:
                    self._writer.close()


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _take_name(partial: Path, final: Path) -> None:
    """`partial` becomes `final`; at no moment are both the old and the new one without a name that is found again."""
    replaced = final.with_name(f".{final.name}{REPLACED}")
    if final.exists():
        final.rename(replaced)
    partial.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)


def _delete(path: Path) -> str:
    """Deletes a checkpoint that is not needed any more; returns what to say of one that stays, "" where all went well."""
    old = path.with_name(f".{path.name.removesuffix(REPLACED).lstrip('.')}{OLD}")
    shutil.rmtree(old, ignore_errors=True)
    try:
        path.rename(old)  # half of it is none that a run could go on from
        shutil.rmtree(old)
    except OSError as error:
        return f"note: the old checkpoint {path} could not be deleted ({_first_line(error)}); the run does not need it"
    return ""


def _reason(error: BaseException) -> str:
    """What the system said of a write, where the libraries wrap it in names of their own."""
    of_disk = next((code for code in (errno.ENOSPC, errno.EDQUOT) if os.strerror(code) in str(error)), None)
    return _first_line(error) if of_disk is None else os.strerror(of_disk)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"
