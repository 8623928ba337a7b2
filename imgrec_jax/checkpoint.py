"""Checkpoints: the train state (orbax, asynchronous) and the clock beside it, as one unit.

The clock is a small JSON dict: where the metrics file ends, what the loop has summed since its last report, and the memory
of the early stop. State + clock + step (which is the data position) are all that a run is; restoring them resumes it exactly.
"""

import logging
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imgrec_jax import distributed


class CheckpointError(Exception):
    """A checkpoint that could not be written or read: says which, why, and what to do."""


def saved_steps(workdir: Path) -> list[int]:
    """Steps of the last checkpoints of a workdir, ascending; answers without orbax."""
    folder = Path(workdir) / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.exists() else []


class Checkpointer:
    """The checkpoints of a workdir: the last few in `checkpoints/`, the best in `best/`."""

    def __init__(self, workdir: Path, *, keep: int = 2):
        """Args: workdir; keep: how many of the last checkpoints stay, at least 2, so that a damaged one has a predecessor."""
        import orbax.checkpoint as ocp  # slow to import, and unused by a run that keeps nothing

        logging.getLogger("absl").setLevel(logging.CRITICAL)  # its errors are raised, and reported in our words
        self._ocp, self._workdir = ocp, Path(workdir).absolute()
        self._last = self._manager("checkpoints", max(keep, 2))
        self._best = self._manager("best", 1)

    def _manager(self, name: str, keep: int):
        options = self._ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        try:
            return self._ocp.CheckpointManager(self._workdir / name, options=options)
        except OSError as error:
            raise CheckpointError(f"cannot keep checkpoints in {self._workdir}: {error}; choose another --workdir") from error

    def save(self, step: int, state: Any, clock: dict[str, Any], *, best: bool = False) -> None:
        """Starts writing a checkpoint; returns when the state may change again.

        Raises:
          CheckpointError: when this or an earlier write failed, e.g. on a full disk; older checkpoints stay as they are.
        """
        manager = self._best if best else self._last
        if jax.default_backend() == "cpu":
            # There a host copy is a view of the very buffer that the next step may reuse while orbax still writes it.
            state = jax.tree.map(jnp.copy, state)
        clock = {**clock, "crc32": checksum(state)}
        args = self._ocp.args.Composite(state=self._ocp.args.StandardSave(state), clock=self._ocp.args.JsonSave(clock))

        def write() -> None:
            # A killed run may have left checkpoints from what is now the future again.
            later = [s for s in manager.all_steps() if s >= step]
            if later:
                manager.wait_until_finished()
            for s in later:
                manager.delete(s)
            manager.save(step, args=args, force=True)

        self._guard(write, step)

    def wait(self) -> None:
        """Returns when everything is written; raises CheckpointError as `save`."""
        for manager in (self._last, self._best):
            self._guard(manager.wait_until_finished, manager.latest_step())

    def _guard(self, action: Callable[[], Any], step: int | None) -> None:
        try:
            action()
        except Exception as error:  # orbax and tensorstore raise many kinds
            good = [s for s in self.steps() if s != step]
            raise CheckpointError(
                f"checkpoint {step} could not be written to {self._workdir}: {_first_line(error)}. "
                f"Earlier checkpoints are intact: {good}. Free space or make the folder writable, and start again"
            ) from error

    def steps(self) -> list[int]:
        """Steps of the last checkpoints on disk, ascending."""
        return saved_steps(self._workdir)

    def restore(self, like: Any, report: Callable[[str], None] = print) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint that can be read whole, or None when there is none.

        Damaged ones are reported and moved to `damaged/`, so that their step can be saved again.

        Args:
          like: a state of the same shapes and shardings.
          report: called with a line for each damaged checkpoint.

        Raises:
          CheckpointError: when there are checkpoints but none can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._read(self._last, step, like)
            except Exception as error:
                report(f"checkpoint {step} is damaged ({_first_line(error)}); trying the one before")
                self._set_aside(step)
        if steps:
            raise CheckpointError(f"none of the checkpoints {steps} in {self._workdir / 'checkpoints'} can be read")
        return None

    def restore_best(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The best checkpoint, or None."""
        self.wait()
        step = self._best.latest_step()
        return None if step is None else self._read(self._best, step, like)

    def _read(self, manager: Any, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        args = self._ocp.args.Composite(state=self._ocp.args.StandardRestore(abstract), clock=self._ocp.args.JsonRestore())
        restored = manager.restore(step, args=args)
        if restored.clock is None or int(restored.state.step) != step:
            raise CheckpointError(f"it holds step {int(restored.state.step)}, not {step}")
        if restored.clock.pop("crc32") != checksum(restored.state):
            raise CheckpointError("its arrays are not those that were saved")
        return restored.state, restored.clock

    def _set_aside(self, step: int) -> None:
        target = self._workdir / "damaged" / str(step)
        if jax.process_index() == 0:
            target.parent.mkdir(exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            (self._workdir / "checkpoints" / str(step)).rename(target)
        distributed.wait("damaged checkpoint set aside")
        self._last.reload()

    def close(self) -> None:
        self.wait()
        self._last.close()
        self._best.close()


def checksum(state: Any) -> int:
    """crc32 over all arrays, because orbax does not notice a flipped bit; the same whatever devices hold them.

    Of several processes all must call it: what lies in pieces on them is gathered, one array at a time.
    """
    value = 0
    for leaf in jax.tree.leaves(state):
        if leaf.is_fully_addressable or leaf.is_fully_replicated:
            whole = jax.device_get(leaf)
        else:
            from jax.experimental import multihost_utils

            whole = multihost_utils.process_allgather(leaf, tiled=True)
        value = zlib.crc32(np.ascontiguousarray(whole), value)
    return value


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"
