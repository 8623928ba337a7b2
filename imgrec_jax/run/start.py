"""How a run starts: fresh, resumed or done; never from step 0 where there were checkpoints, unless told to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from imgrec_jax.run import checkpoint
from imgrec_jax.run.checkpoint import BEST, LAST, CheckpointError, DamagedError, Found

# What of the work after a step is done and recorded; see `loop`.
STEP, EVALUATED, WHOLE = "step", "evaluated", "whole"

FRESH: dict[str, Any] = {
    "step": 0,
    "phase": WHOLE,
    "window": None,
    "metrics_position": 0,
    "metrics_crc": None,
    "selection": None,
    "results": {},
    "stopped": False,
    "total_steps": None,
}


class Start(NamedTuple):
    """A checkpoint to go on from and its clock, and the damaged ones before which it was found."""

    found: Found
    clock: dict[str, Any]
    damaged: list[tuple[Found, DamagedError]]


SEEDS = "seeds.json"  # of a workdir that holds a run for each of several seeds, see `sweeps.seeds`


def seeds_of(workdir: Path) -> list[int]:
    """The seeds that a workdir holds a run each for; [] for one that is a run itself."""
    try:
        return list(json.loads((Path(workdir) / SEEDS).read_text())["seeds"])
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CheckpointError(f"{Path(workdir) / SEEDS} cannot be read ({error}); put it back as it was") from error


def folder_of_seed(workdir: Path, seed: int) -> Path:
    return Path(workdir) / f"seed_{seed}"


def find(workdir: Path) -> Start | None:
    """The newest checkpoint that is whole: of the last ones, or, where none of these is, the best; None where there are none.

    Changes nothing.

    Raises:
      CheckpointError: when there are or were checkpoints, and none of them is whole.
    """
    damaged: list[tuple[Found, DamagedError]] = []
    for kind in (LAST, BEST):
        for found in reversed(checkpoint.saved(workdir, kind)):
            try:
                return Start(found, {**FRESH, **checkpoint.verify(found)}, damaged)
            except DamagedError as error:
                if found.path.exists():  # the run that writes here may have replaced it while a reader looked
                    damaged.append((found, error))
    if damaged:
        listed = "\n  ".join(f"{found.path}: {error}" for found, error in damaged)
        raise CheckpointError(
            f"no checkpoint in {workdir} is whole:\n  {listed}\nNothing was changed. Put them back from a copy, or begin anew "
            "with --restart, which keeps the old files under another name"
        )
    if checkpoint.any_ever(workdir):
        raise CheckpointError(
            f"the checkpoints of {workdir} were all set aside as damaged, in {workdir / checkpoint.DAMAGED}; put one back from "
            "a copy, or begin anew with --restart, which keeps the old files under another name"
        )
    return None


def at_end(clock: dict[str, Any], total_steps: int | None = None) -> bool:
    """Whether nothing is left to do after a checkpoint; total_steps: of the config now, None for those it was saved with."""
    total = clock["total_steps"] if total_steps is None else total_steps
    past = total is not None and clock["step"] >= total
    return clock["phase"] == WHOLE and (clock["stopped"] or (past and not is_cut_here(clock, total)))


def is_cut_here(clock: dict[str, Any], total_steps: int | None) -> bool:
    """Whether a run was planned to go on from a checkpoint and is to end there now: what comes at the end is to be made."""
    planned = clock["total_steps"]
    return planned is not None and planned > clock["step"] == total_steps and not clock["stopped"]


def has_ended(workdir: Path, total_steps: int | None = None) -> bool:
    """Whether the run of a workdir has nothing left to do; total_steps as in `at_end`.

    Raises:
      CheckpointError: as `find`.
    """
    found = find(workdir) if checkpoint.saved(workdir) else None
    return found is not None and at_end(found.clock, total_steps)


def set_damaged_aside(workdir: Path, start: Start, say: Callable[[str], None]) -> None:
    """Reports what `find` passed over, and moves it so that its steps can be saved again."""
    for found, error in start.damaged:
        target = checkpoint.set_aside(workdir, found)
        say(f"{found} is damaged ({error}); it is kept in {target}, and an earlier one is used")


def choose(workdir: Path, which: str | int, say: Callable[[str], None] = print) -> tuple[Found, dict[str, Any]]:
    """The checkpoint that a reader asks for, and its clock; changes nothing.

    Args:
      which: "last"; "best"; or a step, of either kind.
      say: told of damaged checkpoints that were passed over.

    Raises:
      CheckpointError: where it is not there, or is damaged.
    """
    if seeds := seeds_of(workdir):
        raise CheckpointError(
            f"{workdir} holds a run for each of the seeds {', '.join(map(str, seeds))}; give one of them, e.g. "
            f"{folder_of_seed(workdir, seeds[0])}"
        )
    if which == "last":
        start = find(workdir)
        if start is None:
            raise CheckpointError(f"no checkpoint in {workdir}; train first, with the same --workdir")
        for found, error in start.damaged:
            say(f"note: {found} is damaged ({error}); an earlier one is used")
        return start.found, start.clock
    if which != "best" and not str(which).isdigit():
        raise CheckpointError(f"checkpoint {which!r} is unknown; choose 'last', 'best' or a step")
    everything = [*checkpoint.saved(workdir, LAST), *checkpoint.saved(workdir, BEST)]
    if which == "best":
        candidates = checkpoint.saved(workdir, BEST)[-1:]
    else:
        candidates = [found for found in everything if found.step == int(which)][:1]
    if not candidates:
        steps = ", ".join(map(str, everything)) or "none"
        raise CheckpointError(f"there is no checkpoint {which!r} in {workdir}; there are: {steps}")
    try:
        return candidates[0], {**FRESH, **checkpoint.verify(candidates[0])}
    except DamagedError as error:
        raise CheckpointError(f"{candidates[0].path} is damaged: {error}; ask for the 'last' checkpoint instead") from error
