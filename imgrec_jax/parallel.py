"""Devices: how a state and a batch lie on them, and how a step is compiled for them. The step itself knows nothing of it.

Two layouts run the same step function:

`Sharded` (mode "jit"): global arrays on a mesh with the axes "data" and "fsdp". Batches are split over both; the train state is
the same everywhere along "data" and cut into pieces along "fsdp" (ZeRO, Rajbhandari et al. 2019, arXiv 1910.02054: parameters,
optimiser and averages are stored in pieces and gathered to be used).
`Mapped` (mode "pmap"): every device runs the step on its own rows and sums over the mapped axis.

`whole` turns either's state into the plain arrays that checkpoints hold, so a run may go on with another layout.

Shape letters: B global batch, D devices of this process.
"""

import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imgrec_jax import distributed
from imgrec_jax.data.pipeline import Pipeline

MODES = ("jit", "pmap")
DATA, FSDP = "data", "fsdp"
# Whole splits that are at most this large are kept on the device, and batches are gathered there.
MAX_BYTES_ON_DEVICE = 2**30

_COMPILERS = ThreadPoolExecutor(2, "compile")


class Sharded:
    """Global arrays under `jit`.

    Attributes:
      mesh: all devices, [devices / fsdp, fsdp].
      axis_name: None: what a step computes is global already.
    """

    axis_name = None

    def __init__(self, fsdp: int = 1):
        """Raises ValueError when `fsdp` does not divide the number of devices."""
        devices = np.array(jax.devices())
        if fsdp < 1 or devices.size % fsdp:
            raise ValueError(f"parallel.fsdp={fsdp} does not divide the {devices.size} devices")
        self.mesh = Mesh(devices.reshape(-1, fsdp), (DATA, FSDP))
        self._replicated = NamedSharding(self.mesh, PartitionSpec())
        self._rows = NamedSharding(self.mesh, PartitionSpec((DATA, FSDP)))
        # Splits on the devices, as long as anyone holds their source: each is asked for again at every evaluation.
        self._splits: weakref.WeakKeyDictionary[Any, dict[str, jax.Array]] = weakref.WeakKeyDictionary()
        self._take = jax.jit(_take, out_shardings=self._rows)

    def placement(self, leaf: Any) -> NamedSharding:
        """Of one array of the state: its largest axis that divides among "fsdp", the last of equals, is cut."""
        pieces = self.mesh.shape[FSDP]
        axes = [axis for axis, size in enumerate(leaf.shape) if size % pieces == 0 and size]
        if pieces == 1 or not axes:
            return self._replicated
        axis = max(axes, key=lambda axis: (leaf.shape[axis], axis))
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, FSDP))

    def create(self, make: Callable, *args: Any) -> Any:
        """`make(*args)`, a state or a part of one, born in its pieces: no device ever holds the whole of what is cut."""
        return _run_once(self.lower_create(make, *args), *args)

    def lower_create(self, make: Callable, *args: Any) -> Any:
        """The program of `create`, not compiled yet."""
        places = jax.tree.map(self.placement, jax.eval_shape(make, *args))
        return jax.jit(make, out_shardings=places).lower(*args)

    def place(self, variables: Any) -> Any:
        """Plain arrays -> as `create` leaves them."""
        return self.put_state(variables)

    def put_state(self, state: Any) -> Any:
        """Plain or whole arrays -> as this layout keeps them."""
        return jax.tree.map(lambda leaf: _put(leaf, self.placement(leaf)), state)

    def whole(self, state: Any) -> Any:
        """The state as checkpoints hold it: every array once, whatever the number of devices."""
        return state

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """One process's rows of a batch [B / processes, ...] -> global arrays [B, ...]."""
        return {name: jax.make_array_from_process_local_data(self._rows, value) for name, value in batch.items()}

    def to_host(self, tree: Any) -> Any:
        """What a step reports -> numpy, in one transfer."""
        return jax.device_get(tree)

    def gather(self, params: Any) -> Any:
        """Inside a step: parameters in pieces -> whole ones on every device."""
        if self.mesh.shape[FSDP] == 1:
            return params
        return jax.lax.with_sharding_constraint(params, self._replicated)

    def compile_train_step(self, step: Callable, state: Any, batch: dict[str, Any], *given: Any) -> "Step":
        """`step(*given, state, batch) -> (state, report)`, with the old state's memory given to the new one.

        Args:
          step: made with this layout's `axis_name` and `gather`.
          state: as `put_state` returns it.
          batch: arrays or shapes of one process's rows of the first batch.
          given: small arrays, the same at every call; being no part of the program, they may differ between runs that share it.
        """
        jitted = jax.jit(
            step, donate_argnums=len(given),
            out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), self._replicated),
            compiler_options=compiler_options(),
        )  # fmt: skip
        return self._step(jitted, state, batch, given)

    def compile_eval_step(self, step: Callable, variables: Any, batch: dict[str, Any], *given: Any) -> "Step":
        """`step(*given, variables, batch) -> report`."""
        jitted = jax.jit(step, out_shardings=self._replicated, compiler_options=compiler_options())
        return self._step(jitted, variables, batch, given)

    def _step(self, jitted: Any, state: Any, batch: dict[str, Any], given: tuple) -> "Step":
        specs = {
            name: jax.ShapeDtypeStruct((rows[0] * jax.process_count(), *rows[1:]), dtype, sharding=self._rows)
            for name, rows, dtype in _canonical(batch)
        }
        given = tuple(_put(value, self._replicated) for value in given)
        return Step(jitted, (state, specs), jitted.eval_shape(*given, state, specs), given)

    def gathered(self, pipeline: Pipeline, start: int, stop: int) -> Iterator[dict]:
        """Batches of a split that lies on every device whole, gathered there.

        The split goes to the devices once, and stays there as long as its source lives.
        """
        arrays = self._splits.get(pipeline.source)
        if arrays is None:
            arrays = self._splits[pipeline.source] = jax.device_put(pipeline.arrays, self._replicated)
        for step in range(start, stop):
            index, valid, _ = pipeline.rows(step)
            placed = self.put_batch({"index": index.astype(np.int32), "example_valid": valid})
            yield {**self._take(arrays, placed["index"]), **placed}


class Mapped:
    """Per-device arrays with a leading axis D under `pmap`.

    Attributes:
      axis_name: of the mapped axis, for the sums in the step, the losses and batch normalisation.
    """

    axis_name = DATA

    def __init__(self, fsdp: int = 1):
        """Raises ValueError for fsdp > 1, which needs global arrays."""
        if fsdp != 1:
            raise ValueError(f"parallel.fsdp={fsdp} needs parallel.mode='jit': pmap keeps a whole state on every device")
        self._replicated = NamedSharding(Mesh(np.array(jax.devices()), (DATA,)), PartitionSpec())
        self._local = NamedSharding(Mesh(np.array(jax.local_devices()), (DATA,)), PartitionSpec(DATA))

    def create(self, make: Callable, *args: Any) -> Any:
        return _run_once(jax.jit(make).lower(*args), *args)

    def place(self, variables: Any) -> Any:
        return variables

    def put_state(self, state: Any) -> Any:
        copies = jax.local_device_count()
        return jax.tree.map(lambda leaf: jax.device_put(np.stack([_host(leaf)] * copies), self._local), state)

    def whole(self, state: Any) -> Any:
        return jax.tree.map(lambda leaf: _put(_first(leaf), self._replicated), state)

    def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        return {name: jax.device_put(_over_devices(value), self._local) for name, value in batch.items()}

    def to_host(self, tree: Any) -> Any:
        return jax.tree.map(_first, tree)

    def gather(self, params: Any) -> Any:
        return params

    def compile_train_step(self, step: Callable, state: Any, batch: dict[str, Any], *given: Any) -> "Step":
        return self._step(self._mapped(step, given, donate_argnums=len(given)), state, batch, given)

    def compile_eval_step(self, step: Callable, variables: Any, batch: dict[str, Any], *given: Any) -> "Step":
        return self._step(self._mapped(step, given), variables, batch, given)

    def _mapped(self, step: Callable, given: tuple, **options: Any) -> Callable:
        return jax.pmap(step, axis_name=self.axis_name, in_axes=(*[None] * len(given), 0, 0), **options)

    def _step(self, mapped: Callable, state: Any, batch: dict[str, Any], given: tuple) -> "Step":
        devices = jax.local_device_count()
        specs = {
            name: jax.ShapeDtypeStruct((devices, rows[0] // devices, *rows[1:]), dtype)
            for name, rows, dtype in _canonical(batch)
        }
        whole = jax.eval_shape(mapped, *given, state, specs)
        out = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[1:], s.dtype), whole)
        return Step(mapped, (state, specs), out, given)


Layout = Sharded | Mapped


def make_layout(mode: str = "jit", fsdp: int = 1) -> Layout:
    """The layout of `mode`, one of MODES."""
    layouts: dict[str, type[Layout]] = {"jit": Sharded, "pmap": Mapped}
    return layouts[mode](fsdp)


class Asked(Protocol):
    """Whether to stop, such as `run.stop.Stop`; both raise what ends the work."""

    def check(self) -> None:
        """While waiting."""

    def passing(self) -> None:
        """Before what all processes do together."""


class Step:
    """A compiled step. Compilation for the first shapes begins at once; a call with other shapes waits for theirs.

    All of it happens in a thread, so that a signal can end the waiting.

    Attributes:
      out: shapes of the result for these first shapes, as one program on global arrays sees them.
    """

    def __init__(self, jitted: Any, args: tuple, out: Any, given: tuple = ()):
        """jitted: of `given`, the same at every call, and of what `args` has the shapes of."""
        self.out, self._given = out, given
        # XLA's CPU collectives share a thread pool as small as the machine: steps that pile up starve the rendezvous, which
        # aborts. There each call ends before the next begins.
        self._jitted, self._in_turn = jitted, jax.default_backend() == "cpu" and jax.device_count() > 1
        self._compiling: dict[tuple, Future] = {}
        self._ready: set[tuple] = set()
        self._begin(args)

    def _begin(self, args: tuple) -> tuple:
        """The key of the shapes of a batch, whose compilation has begun."""
        key = tuple((name, tuple(leaf.shape)) for name, leaf in sorted(args[1].items()))
        if key not in self._compiling:
            self._compiling[key] = _COMPILERS.submit(lambda: self.lower(*args).compile())
        return key

    def lower(self, state: Any, batch: dict[str, Any]) -> Any:
        """The program for a state and a batch, or for their shapes, not compiled yet."""
        return self._jitted.lower(*self._given, state, batch)

    def wait(self, seconds: float | None = None) -> bool:
        """Until the first shapes are compiled, or so many seconds; returns whether they are."""
        first = next(iter(self._compiling.values()))
        if not wait([first], timeout=seconds).done:
            return False
        first.result()
        return True

    def prepare(self, state: Any, batch: dict[str, jax.Array], stop: Asked | None = None) -> None:
        """Until the program for this batch is compiled; it is in jit's own cache then. `stop` is asked while waiting."""
        key = self._begin((state, batch))
        if key not in self._ready:
            while not wait([self._compiling[key]], timeout=0.05).done:
                if stop is not None:
                    stop.check()
            self._compiling[key].result()
            if stop is not None:
                stop.passing()
            # Processes meet in the first collective within half a minute or not at all, and compilation may take longer.
            distributed.wait("compiled")
            self._ready.add(key)
        if stop is not None:
            stop.passing()

    def __call__(self, state: Any, batch: dict[str, jax.Array]) -> Any:
        self.prepare(state, batch)
        out = self._jitted(*self._given, state, batch)
        return jax.block_until_ready(out) if self._in_turn else out


def _run_once(lowered: Any, *args: Any) -> Any:
    """Compiles and runs what runs only once, with as little optimisation as there is.

    XLA's CPU backend would spend seconds on the random bits of each shape (the parameters of PyTorch's MNIST example: 7.5 s
    against 1.0).
    """
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return lowered.compile(options)(*args)


def _canonical(batch: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...], Any]]:
    """(name, shape, the dtype it has on a device); shapes as every process has them once batches are collated together."""
    sizes = iter(distributed.largest([size for _, value in sorted(batch.items()) for size in value.shape]))
    shapes = {name: tuple(next(sizes) for _ in value.shape) for name, value in sorted(batch.items())}
    return ((name, shapes[name], jax.dtypes.canonicalize_dtype(value.dtype)) for name, value in batch.items())


def _host(leaf: Any) -> np.ndarray:
    """A plain, replicated or wholly addressable array on the host."""
    return np.asarray(jax.device_get(leaf))


def _first(leaf: jax.Array) -> np.ndarray:
    """The first device's part of a mapped array [D, ...] -> [...]."""
    return np.asarray(leaf.addressable_shards[0].data).reshape(leaf.shape[1:])


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """The same values on every process -> a global array."""
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
        return leaf
    value = _host(leaf)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _take(arrays: dict[str, jax.Array], index: jax.Array) -> dict[str, jax.Array]:
    return {name: array[index] for name, array in arrays.items()}


def _over_devices(value: np.ndarray) -> np.ndarray:
    devices = jax.local_device_count()
    return value.reshape(devices, len(value) // devices, *value.shape[1:])


@cache
def compiler_options() -> dict[str, str] | None:
    """What XLA should do differently on this backend; None where there is nothing, or where this XLA does not know it.

    On the CPU XLA hands convolutions to YNNPACK, which runs them on one thread. Without it (jax 0.10.2, 2 AVX2 cores, forward +
    backward of a 3x3 convolution): 128x14x14x32->48 29 ms against 72, 32x32x32x32->32 26 against 95.
    """
    if jax.default_backend() != "cpu":
        return None
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda x: x, compiler_options=options)(0.0)
    except Exception:  # an option this XLA does not have
        return None
    return options


def feed(
    pipeline: Pipeline, start: int, stop: int, layout: Layout, *, on_device: bool | None = None
) -> Iterator[tuple[int, dict]]:
    """Yields (step, batch on the devices), one batch ahead of the loop.

    Args:
      on_device: keep the whole split on the devices and gather batches there; None does so on accelerators where it fits.
    """
    if on_device is None:
        size = sum(array.nbytes for array in pipeline.arrays.values()) if pipeline.is_plain else np.inf
        fits = size <= MAX_BYTES_ON_DEVICE and jax.process_count() == 1 and isinstance(layout, Sharded)
        on_device = fits and jax.default_backend() != "cpu"
    largest = distributed.largest if jax.process_count() > 1 else None
    batches: Iterator[dict] = map(layout.put_batch, pipeline.batches(start, stop, largest))
    if on_device:
        if not (pipeline.is_plain and isinstance(layout, Sharded)):
            raise ValueError("data.on_device=True needs a set that is kept in memory, no augmentation and parallel.mode='jit'")
        batches = layout.gathered(pipeline, start, stop)
    ahead = None
    for step, batch in zip(range(start, stop), batches, strict=True):
        if ahead is not None:
            yield ahead
        ahead = (step, batch)
    if ahead is not None:
        yield ahead


def is_lead() -> bool:
    """Whether this process prints and writes metrics."""
    return jax.process_index() == 0


def parameter_count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def bytes_per_device(tree: Any) -> int:
    """Bytes that the arrays of `tree` take on the device that holds the most of them."""
    held: dict[Any, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values(), default=0)
