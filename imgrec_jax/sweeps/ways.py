"""How several seeds of one config are trained side by side: which ways there are here, and which is the fastest.

  vmap       stacked in one compiled step: matrix products of several nets fill a machine that those of one do not
  devices    the same, shared out among several devices
  processes  a process each, pinned to cores of its own

On accelerators there is nothing to choose: one device stacks, several share out. On the CPU convolutions with a kernel for each
seed are slower than one seed after the other (experiments/025_seeds_in_one_program), so nets that have any go to processes, and
all others are measured: a few steps stacked, and a few of one run on one core.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

from imgrec_jax import compiled, machine
from imgrec_jax.assemble.lookup import ConfigError
from imgrec_jax.config import SEEDS_IN
from imgrec_jax.experiment import Experiment
from imgrec_jax.parallel import Sharded
from imgrec_jax.run.stop import Stop
from imgrec_jax.run.together import Alone, Stacked, Together, create_state

AUTO, VMAP, DEVICES, PROCESSES = SEEDS_IN
LOOKED_AT = 3  # first batches whose shapes are compared
MOST_STEPS, MOST_SECONDS = 10, 1.0  # of a measurement
START_SECONDS = 5.0  # of a process, where the system does not tell how long this one took


class Way(NamedTuple):
    """name: one of SEEDS_IN but AUTO; why: for people; cores: of the process of each seed."""

    name: str
    why: str
    cores: tuple[int, ...] | None = None


def stack(name: str) -> partial:
    """What `loop.train_together` takes for VMAP and DEVICES."""
    return partial(Stacked, devices=jax.devices() if name == DEVICES else jax.devices()[:1])


def choose(asked: str, experiments: Sequence[Experiment]) -> Way:
    """The way that is asked for, or the fastest.

    Raises:
      ConfigError: where it is not there on this machine, or cannot be had for this config.
    """
    on_cpu, several = jax.default_backend() == "cpu", jax.device_count() > 1
    processes = partial(Way, PROCESSES, cores=shares(len(machine.cores()), len(experiments)))
    if asked == PROCESSES and not on_cpu:
        raise ConfigError(
            f"config.seeds_in={asked!r} is for the CPU, because an accelerator's memory is held by one process; expected "
            f"{VMAP!r} or {DEVICES!r}, or imgrec sweep --seeds=N --devices=0,1"
        )
    if asked == PROCESSES:
        return processes("as asked")
    obstacle = why_not_stacked(experiments)
    if obstacle and (asked != AUTO or not on_cpu):
        remedy = f"seeds_in={PROCESSES!r}" if on_cpu else "imgrec sweep --seeds=N --devices=0,1, which makes a process a run"
        raise ConfigError(f"config.seeds_in={asked!r}: {obstacle}, so that the seeds cannot be stacked; use {remedy}")
    if asked != AUTO:
        return Way(asked, "as asked")
    if obstacle:
        return processes(obstacle)
    if several:
        return Way(DEVICES, f"{jax.device_count()} devices")
    if not on_cpu:
        return Way(VMAP, f"one {jax.devices()[0].device_kind}")
    if has_convolutions(experiments[0]):
        return processes("convolutions, on the CPU")
    return measured(experiments, processes)


def shares(cores: int, count: int) -> tuple[int, ...]:
    """How many of so many cores each of `count` processes has: as many as all can have at once, and the last of them, where not
    all can run at once and some are left over, what there is: 5 on 2 cores have 1, 1, 1, 1 and 2."""
    each = max(cores // count, 1)
    left = count % (cores // each)
    return (*[each] * (count - left), *[cores // left for _ in range(left)])


def why_not_stacked(experiments: Sequence[Experiment]) -> str:
    """What keeps these runs from being one program; "" for nothing."""
    config = experiments[0].config
    if not isinstance(experiments[0].compute.layout, Sharded) or config.parallel.fsdp != 1:
        return "parallel.mode and parallel.fsdp lay out the state of one run"
    if config.log.writers or config.profile.first_step is not None:
        return "log.writers and profile.first_step are of one run a process"
    steps = range(min(LOOKED_AT, experiments[0].optimisation.total_steps))
    shapes = {
        tuple((name, value.shape) for name, value in sorted(batch.items()))
        for experiment in experiments
        for batch in (experiment.data.train.batch(step) for step in steps)
    }
    return "batches have different shapes" if len(shapes) > 1 else ""


def has_convolutions(experiment: Experiment) -> bool:
    """Whether a parameter is a kernel [H, W, in, out]."""
    return any(len(leaf.shape) == 4 for leaf in jax.tree.leaves(experiment.variable_shapes["params"]))


def measured(experiments: Sequence[Experiment], processes: partial) -> Way:
    """VMAP or PROCESSES, whichever would be done first."""
    count, total = len(experiments), experiments[0].optimisation.total_steps
    state, tx = create_state(experiments[0])
    together = seconds_a_step(stack(VMAP)(experiments, [state] * count, [tx] * count), count)
    with on_one_core(), compiled.of_one_core():
        alone = seconds_a_step(Alone(experiments[0], state, tx), 1)
    rounds = -(-count // len(machine.cores()))
    stacked, apart = total * together, rounds * (total * alone + since_start())
    found = (
        f"{total:,} steps stacked {stacked:.0f} s, in processes {apart:.0f} s, by a step of {1e3 * together:.1f} and of "
        f"{1e3 * alone:.1f} ms"
    )
    return Way(VMAP, found) if stacked <= apart else processes(found)


def seconds_a_step(together: Together, count: int) -> float:
    """Of one step of all runs with the making of its batches, once it is compiled; the states are spent."""
    feeds = [together.feed(number, 0, MOST_STEPS + 2) for number in range(count)]

    def step() -> None:
        batches = [next(feed)[1] for feed in feeds]
        together.prepare(batches, Stop())
        together.advance(batches)
        together.wait()

    step()
    seconds: list[float] = []
    while len(seconds) < MOST_STEPS and sum(seconds) < MOST_SECONDS:
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[len(seconds) // 2]


@contextlib.contextmanager
def on_one_core() -> Iterator[None]:
    """Within it all threads of this process run on one core, where the system can do that."""
    tasks = Path("/proc/self/task")
    if not (hasattr(os, "sched_setaffinity") and tasks.is_dir()):
        yield
        return
    before = {int(task.name): os.sched_getaffinity(int(task.name)) for task in tasks.iterdir()}
    core = {min(os.sched_getaffinity(0))}
    try:
        for thread in before:
            _set_affinity(thread, core)
        yield
    finally:
        whole = os.sched_getaffinity(0) | set().union(*before.values())
        for task in tasks.iterdir():  # also of threads that were begun within
            _set_affinity(int(task.name), before.get(int(task.name), whole))


def _set_affinity(thread: int, cores: set[int]) -> None:
    with contextlib.suppress(OSError):  # it has ended
        os.sched_setaffinity(thread, cores)


def since_start() -> float:
    """Seconds since this process began: what another one will take until it trains."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return START_SECONDS
