"""Devices: one mesh, global arrays, and a compiled step. The step itself knows nothing of devices.

The mesh has the axis "data": batches are split over it, the train state is the same on every device.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imgrec_jax.data.pipeline import Pipeline

# Whole splits that are at most this large are kept on the device, and batches are gathered there.
MAX_BYTES_ON_DEVICE = 2**30


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


def compile_train_step(step: Callable, mesh: Mesh) -> Callable:
    """jit, with the old state's memory given to the new one."""
    compiled = jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh), compiler_options=compiler_options())
    return _in_turn(compiled, mesh)


def compile_eval_step(step: Callable, mesh: Mesh) -> Callable:
    return _in_turn(jax.jit(step, out_shardings=replicated(mesh), compiler_options=compiler_options()), mesh)


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


def _in_turn(compiled: Callable, mesh: Mesh) -> Callable:
    """On several CPU devices waits for each call.

    XLA's CPU collectives share a thread pool as small as the machine: steps that pile up starve the rendezvous, which aborts.
    """
    if mesh.devices.flat[0].platform != "cpu" or mesh.size == 1:
        return compiled
    return lambda *args: jax.block_until_ready(compiled(*args))


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
