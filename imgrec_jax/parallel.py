"""Devices: one mesh, global arrays, and a compiled step. The step itself knows nothing of devices.

The mesh has the axis "data": batches are split over it, the train state is the same on every device.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imgrec_jax.data.pipeline import Pipeline

# Whole splits that are at most this large are kept on the device, and batches are gathered there.
MAX_BYTES_ON_DEVICE = 2**30

_COMPILERS = ThreadPoolExecutor(2, "compile")


def make_mesh() -> Mesh:
    """All devices along "data"."""
    return Mesh(np.array(jax.devices()), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_state(state: Any, mesh: Mesh) -> Any:
    return jax.device_put(state, replicated(mesh))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """One process's rows of a batch -> global arrays."""
    return {name: jax.make_array_from_process_local_data(split(mesh), value) for name, value in batch.items()}


def batch_specs(batch: dict[str, Any], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and placement of a batch like `batch` (arrays or shapes) on the devices."""
    dtype_of = jax.dtypes.canonicalize_dtype
    return {k: jax.ShapeDtypeStruct(v.shape, dtype_of(v.dtype), sharding=split(mesh)) for k, v in batch.items()}


def compile_train_step(step: Callable, mesh: Mesh, state: Any, batch: dict[str, Any]) -> "Step":
    """jit, with the old state's memory given to the new one. `state` and `batch` are as in `Step`."""
    jitted = jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh), compiler_options=compiler_options())
    return Step(jitted, mesh, state, batch)


def compile_eval_step(step: Callable, mesh: Mesh, variables: Any, batch: dict[str, Any]) -> "Step":
    """jit of (variables, batch) -> metric states."""
    return Step(jax.jit(step, out_shardings=replicated(mesh), compiler_options=compiler_options()), mesh, variables, batch)


class Step:
    """A jitted step whose compilation for the first shapes begins at once, in a thread; the first call waits for it.

    Attributes:
      out: shapes of the result, for these first shapes.
    """

    def __init__(self, jitted: Callable, mesh: Mesh, state: Any, batch: dict[str, Any]):
        """Args: the state or variables that the step will be given; batch: arrays or shapes of a batch."""
        traced = jitted.trace(state, batch_specs(batch, mesh))
        self.out = traced.out_info
        self._jitted, self._compiled = jitted, _COMPILERS.submit(lambda: traced.lower().compile())
        # XLA's CPU collectives share a thread pool as small as the machine: steps that pile up starve the rendezvous, which aborts.
        self._in_turn = mesh.devices.flat[0].platform == "cpu" and mesh.size > 1

    def __call__(self, state: Any, batch: dict[str, jax.Array]) -> Any:
        if self._compiled is not None:
            self._compiled.result()  # the executable is now in jit's own cache
            self._compiled = None
        out = self._jitted(state, batch)
        return jax.block_until_ready(out) if self._in_turn else out


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


def feed(pipeline: Pipeline, start: int, stop: int, mesh: Mesh, *, on_device: bool | None = None) -> Iterator[tuple[int, dict]]:
    """Yields (step, batch on the devices), one batch ahead of the loop.

    Args:
      on_device: keep the whole split on the devices and gather batches there; None does so on accelerators where it fits.
    """
    if on_device is None:
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        size = sum(array.nbytes for array in pipeline.source.arrays.values()) if pipeline.is_plain else np.inf
        on_device = not on_cpu and size <= MAX_BYTES_ON_DEVICE and jax.process_count() == 1
    if on_device and not pipeline.is_plain:
        raise ValueError("data.on_device=True needs a set that is kept in memory and no augmentation")
    batches = _gathered(pipeline, start, stop, mesh) if on_device else (
        put_batch(batch, mesh) for batch in pipeline.batches(start, stop)
    )  # fmt: skip
    ahead = None
    for step, batch in zip(range(start, stop), batches, strict=True):
        if ahead is not None:
            yield ahead
        ahead = (step, batch)
    if ahead is not None:
        yield ahead


def _gathered(pipeline: Pipeline, start: int, stop: int, mesh: Mesh) -> Iterator[dict]:
    arrays = jax.device_put(pipeline.source.arrays, replicated(mesh))

    def take(arrays, index):
        return {name: array[index] for name, array in arrays.items()}

    gather = jax.jit(take, out_shardings=split(mesh))
    for step in range(start, stop):
        index, valid, _ = pipeline.rows(step)
        placed = put_batch({"index": index.astype(np.int32), "example_valid": valid}, mesh)
        yield {**gather(arrays, placed["index"]), **placed}


def to_host(tree: Any) -> Any:
    """Replicated arrays -> numpy, in one transfer."""
    return jax.device_get(tree)


def is_lead() -> bool:
    """Whether this process prints and writes metrics."""
    return jax.process_index() == 0


def parameter_count(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
