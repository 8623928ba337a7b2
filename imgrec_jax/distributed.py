"""Several processes: how they find each other, wait for each other, and end together.

JAX's distributed runtime does the work. A process is told its place by flags, by the environment variables
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or by the cluster it runs in (Slurm, Open MPI, GKE and TPU pods,
which JAX recognises).
"""

import contextlib
import faulthandler
import itertools
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, cast

import jax
from jax._src.distributed import global_state  # the coordination service has no public client

# A process that was silent for so long is dead, and the others stop. JAX's own 100 seconds keep a machine waiting for nothing.
HEARTBEAT_SECONDS = 30
START_SECONDS = 300
# How often a process asks whether a signal came to another, and how long it waits for what all say of where they are.
ASK_SECONDS, AGREE_SECONDS = 0.5, 5
# What all processes look at, by names in the coordination service.
TOLD, GONE = "imgrec_jax/told", "imgrec_jax/gone"
FAILED = f"{TOLD}/failed"

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
        many = any(_whole(name, environment.get(name, "1")) > 1 for name in COUNTS)
        pod = "," in environment.get(HOSTS, "") or TPU_COORDINATOR in environment
        return {} if many or pod else None
    if address is None or total is None or own is None:
        known = {"coordinator_address": address, "num_processes": total, "process_id": own}
        missing = [name for name, value in known.items() if value is None]
        raise PlaceError(
            f"of several processes each needs coordinator_address, num_processes and process_id; missing: {missing}. Give them "
            "as flags or as JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        )
    total, own = _whole("num_processes", total), _whole("process_id", own)
    if not address.rpartition(":")[2].isdigit() or ":" not in address:
        raise PlaceError(f"coordinator_address={address!r}: expected the address and a port of process 0, as in 10.0.0.1:1234")
    if not 0 <= own < total:
        raise PlaceError(f"process_id={own}: expected 0 to {total - 1}")
    return {"coordinator_address": address, "num_processes": total, "process_id": own} if total > 1 else None


def _whole(name: str, value: int | str) -> int:
    try:
        return int(value)
    except ValueError:
        raise PlaceError(f"{name}={value!r}: expected a whole number") from None


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


_exchanges = itertools.count()


def largest(numbers: Sequence[int]) -> list[int]:
    """Of each number the largest that any process gives. All call it equally often and in one order, in their main threads.

    They meet on the host: what the devices compute meanwhile is not waited for, and a signal can end the waiting.
    """
    if jax.process_count() == 1:
        return list(numbers)
    client: Any = global_state.client
    key = f"imgrec_jax/largest/{(count := next(_exchanges))}"
    client.key_value_set(f"{key}/{jax.process_index()}", " ".join(map(str, numbers)))
    given = [_waited(client, f"{key}/{index}").split() for index in range(jax.process_count())]
    if count:  # who came here has read what was given before
        client.key_value_delete(f"imgrec_jax/largest/{count - 1}/{jax.process_index()}")
    return [max(map(int, column)) for column in zip(*given, strict=True)]


def _waited(client: Any, key: str) -> str:
    """A value that another process is going to give."""
    while True:
        try:
            return client.blocking_key_value_get(key, 200)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


class Agreement:
    """Of several processes: where all of them stop after a signal came to one.

    Each counts what it does together with the others (a step, a batch of an evaluation) just before it does it. A signal makes
    them exchange their counts, and who is behind goes on until it has done as much as the foremost: then none waits for another
    that has left. JAX's own (`reached_preemption_sync_point`) watches SIGTERM alone and stops no process that waits.
    """

    _made = itertools.count()

    def __init__(self, agreed: Callable[[int], None]):
        """agreed: called with the signal, in another thread, when it is known where to stop. Every process makes one."""
        self._client: Any = global_state.client
        number = next(self._made)
        self._key, self._folder, self._agreed = f"{TOLD}/signal/{number}", f"imgrec_jax/stop/{number}", agreed
        self._signal: int | None = None
        self._woken, self._closed = threading.Event(), False
        self._exchanging, self._held = threading.Condition(), False
        self._done, self._last = 0, cast(int | None, None)
        self._thread = threading.Thread(target=self._agree, daemon=True, name="stop together")
        self._thread.start()

    def ask(self, number: int) -> None:
        """A signal came to this process; called in its handler."""
        self._signal = self._signal or number
        self._woken.set()

    @property
    def is_made(self) -> bool:
        return self._last is not None

    def reached(self) -> bool:
        """Whether this process is where all of them stop."""
        return self._last is not None and self._done >= self._last

    def passing(self) -> bool:
        """Counts what all processes do together next, unless this is where they stop; returns whether it is."""
        with self._exchanging:
            self._exchanging.wait_for(lambda: not self._held)
            if self.reached():
                return True
            self._done += 1
            return False

    def close(self) -> None:
        self._closed = True
        self._woken.set()
        self._thread.join(1.0)

    def _agree(self) -> None:
        number = self._asked()
        if number is None:
            return
        with self._exchanging:
            self._held, own = True, self._done
        try:
            self._client.key_value_set(f"{self._folder}/{global_state.process_id}", str(own))
            self._client.wait_at_barrier(self._folder, AGREE_SECONDS * 1000)
            last = max(int(done) for _, done in self._client.key_value_dir_get(f"{self._folder}/"))
        except jax.errors.JaxRuntimeError:  # another is gone, and this one can go nowhere
            last = own
        with self._exchanging:
            self._last, self._held = last, False
            self._agreed(number)  # before anyone goes on: who stops knows why
            self._exchanging.notify_all()

    def _asked(self) -> int | None:
        """The signal that came to any process; None where none will be answered any more. Leaves where another one failed."""
        try:
            while not self._woken.wait(ASK_SECONDS):
                told = dict(self._client.key_value_dir_get(f"{TOLD}/"))
                failed = {key: text for key, text in told.items() if key.startswith(FAILED)}
                if failed and f"{FAILED}/{global_state.process_id}" not in failed:
                    leave(next(iter(failed.values())))
                if self._key in told:
                    return int(told[self._key])
            if self._closed:
                return None
            self._client.key_value_set(self._key, str(self._signal), allow_overwrite=True)
        except jax.errors.JaxRuntimeError:  # process 0 is gone
            pass
        return self._signal


def part() -> None:
    """The orderly end of a process of several, where nothing but its exit is left to do."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()


def fail(error: BaseException) -> NoReturn:
    """Ends this process of several, and the others, which would wait for it; `error` is what it says of that."""
    if isinstance(error, SystemExit):
        text = str(error.code)
        print(text, file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)
        text = f"{type(error).__name__}: {error}"
    client: Any = global_state.client
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        said = " ".join(text.removeprefix("error: ").split())
        client.key_value_set(f"{FAILED}/{global_state.process_id}", f"process {global_state.process_id}: {said}")
    _exit(1)


def _exit(status: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    let_leave()
    os._exit(status)


def let_leave() -> None:
    """Before an exit that is not orderly: process 0 is whom the others ask, and goes last."""
    client: Any = global_state.client
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        if global_state.process_id != 0:
            client.key_value_set(f"{GONE}/{global_state.process_id}", "", allow_overwrite=True)
            return
        until = time.monotonic() + AGREE_SECONDS
        while len(client.key_value_dir_get(f"{GONE}/")) < global_state.num_processes - 1 and time.monotonic() < until:
            time.sleep(0.05)


def leave(error: Exception | str) -> NoReturn:
    """Ends this process of several at once, because it cannot go on without another.

    An orderly exit would wait half a minute for all to come to JAX's last barrier.
    """
    first = str(error).strip().splitlines()[0][:300]
    print(
        f"error: process {global_state.process_id} of {global_state.num_processes} stops: another one failed or cannot be "
        f"reached ({first}). See its output; the same command goes on from the last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    _exit(1)
