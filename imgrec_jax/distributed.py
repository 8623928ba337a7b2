"""Several processes: how they find each other, wait for each other, and end together.

JAX's distributed runtime does the work. A process is told its place by flags, by the environment variables
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or by the cluster it runs in (Slurm, Open MPI, GKE and TPU pods,
which JAX recognises).
"""

import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax

# A process that was silent for so long is dead, and the others stop. JAX's own 100 seconds keep a machine waiting for nothing.
HEARTBEAT_SECONDS = 30
START_SECONDS = 300

# Where a launcher says how many processes it started.
COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
# Comma-separated hosts of a TPU pod (also on GKE), or its coordinator.
HOSTS, TPU_COORDINATOR = "TPU_WORKER_HOSTNAMES", "MEGASCALE_COORDINATOR_ADDRESS"


class PlaceError(ValueError):
    """A process was told half of where it stands."""


def place(
    coordinator: str | None, count: int | None, index: int | None, environment: Mapping[str, str] = os.environ
) -> dict[str, Any] | None:
    """Arguments for `jax.distributed.initialize`: {} to let JAX find out, None for a single process.

    Args:
      coordinator: address:port of process 0, or None to look into `environment`.
      count: of processes; index: of this one. None likewise.

    Raises:
      PlaceError: when only some of the three are known, or index is out of range.
    """
    address = coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    total = count if count is not None else environment.get("JAX_NUM_PROCESSES")
    own = index if index is not None else environment.get("JAX_PROCESS_ID")
    if address is None and total is None and own is None:
        many = any(int(environment.get(name, "1")) > 1 for name in COUNTS)
        pod = "," in environment.get(HOSTS, "") or TPU_COORDINATOR in environment
        return {} if many or pod else None
    if address is None or total is None or own is None:
        known = {"coordinator_address": address, "num_processes": total, "process_id": own}
        missing = [name for name, value in known.items() if value is None]
        raise PlaceError(
            f"of several processes each needs coordinator_address, num_processes and process_id; missing: {missing}. Give them "
            "as flags or as JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        )
    total, own = int(total), int(own)
    if not 0 <= own < total:
        raise PlaceError(f"process_id={own}: expected 0 to {total - 1}")
    return {"coordinator_address": address, "num_processes": total, "process_id": own} if total > 1 else None


def initialize(arguments: dict[str, Any] | None) -> None:
    """Joins the other processes; `arguments` as `place` returns them."""
    if arguments is None:
        return
    faulthandler.disable()  # JAX ends a process whose peers are gone by abort(), and says why; a stack dump would bury it
    jax.distributed.initialize(**arguments, initialization_timeout=START_SECONDS, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)


@contextlib.contextmanager
def lead_first(what: str) -> Iterator[None]:
    """The body runs in process 0, then in the others: what it prepares on a shared disk they find there."""
    lead = jax.process_index() == 0
    if not lead:
        wait(what)
    yield
    if lead:
        wait(what)


def wait(what: str) -> None:
    """Until every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def termination(requested: Callable[[], bool]) -> Callable[[int], bool]:
    """A function (step) -> whether to end after this step, because a signal came to this or another process.

    Of several processes all get the same answer at the same step, and JAX's runtime watches for SIGTERM.

    Args:
      requested: whether a single process was asked to end.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point
    return lambda step: requested()


def terminate_on_interrupt() -> None:
    """Of several processes: Ctrl-C is answered as SIGTERM is."""
    with contextlib.suppress(ValueError):  # only a main thread may set a handler
        signal.signal(signal.SIGINT, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))


def leave(error: Exception) -> NoReturn:
    """Ends this process of several at once, because it cannot go on without another.

    An orderly exit would wait half a minute for all to come to JAX's last barrier.
    """
    first = str(error).strip().splitlines()[0][:300]
    print(
        f"error: process {jax.process_index()} of {jax.process_count()} stops: another one failed or cannot be reached "
        f"({first}). See its output; the same command goes on from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    os._exit(1)
