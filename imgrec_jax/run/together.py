"""How the states of runs that advance together lie on the devices: one of its own, or several stacked in one compiled step.

The loop asks for a batch of each run and hands them over; what it gets back are sums for each. It reads a state only where it
evaluates or saves.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from imgrec_jax import parallel
from imgrec_jax.experiment import Experiment
from imgrec_jax.step import (
    TrainState,
    eval_key,
    eval_variables,
    init_state,
    make_eval_step,
    make_train_step,
    named_key,
    train_key,
)  # fmt: skip

Batch = dict[str, Any]
SEEDS = "seeds"  # the axis of the devices that stacked states are shared out among


class ShapesDifferError(ValueError):
    """Batches of several runs that cannot be stacked: says which and what to do."""


def create_state(experiment: Experiment, initialise: Callable | None = None) -> tuple[TrainState, Any]:
    """A fresh state, as the layout keeps it, and its optimiser.

    initialise: changes the variables before the optimiser sees them.
    """
    dtype, layout, optimisation = experiment.compute.dtype, experiment.compute.layout, experiment.optimisation

    def make(key: jax.Array) -> dict[str, Any]:
        variables = experiment.task.init(key, experiment.data.batch_spec)
        return jax.tree.map(lambda v: v.astype(dtype) if jnp.issubdtype(v.dtype, jnp.floating) else v, variables)

    key = named_key(experiment.seed, "init")
    variables = layout.create(make, key)
    variables = layout.place(initialise(variables)) if initialise else variables
    schedule = optimisation.make_schedule(optimisation.total_steps)
    tx = optimisation.make_optimizer(schedule, params=variables["params"])
    state = layout.create(lambda variables: init_state(variables, tx, optimisation.ema_decay > 0), variables)
    return layout.put_state(state), tx


def initialiser(experiment: Experiment, say: Callable[[str], None]) -> Callable | None:
    """What changes the fresh variables, as `create_state` wants it; None where there is nothing to change."""
    change = experiment.optimisation.initialise
    if change is None:
        return None

    def initialise(variables: dict) -> dict:
        variables, report = change(variables)
        say(report)
        return variables

    return initialise


def compile_eval_step(experiment: Experiment, state: TrainState) -> parallel.Step | None:
    """The step for the splits to evaluate; None where there are none."""
    layout, evals = experiment.compute.layout, experiment.data.evals
    if not evals:
        return None
    step, first = make_eval_step(experiment.task, axis_name=layout.axis_name), next(iter(evals.values())).batch(0)
    return layout.compile_eval_step(step, eval_variables(state), first, eval_key(experiment.seed))


def step_options(experiment: Experiment) -> dict[str, Any]:
    """Of `step.make_train_step`, all but those that the layout gives."""
    optimisation = experiment.optimisation
    return {
        "schedule": optimisation.make_schedule(optimisation.total_steps),
        "ema_decay": optimisation.ema_decay,
        "accumulate": optimisation.accumulate,
        "remat": experiment.compute.remat,
    }


def compile_train_step(experiment: Experiment, state: TrainState, tx: Any) -> parallel.Step:
    """The step of training; tx: as `create_state` returns it."""
    layout = experiment.compute.layout
    step = make_train_step(experiment.task, tx, axis_name=layout.axis_name, gather=layout.gather, **step_options(experiment))
    return layout.compile_train_step(step, state, experiment.data.batch_spec, train_key(experiment.seed))


class Together(Protocol):
    """Runs that advance together; they are numbered from 0."""

    step: parallel.Step

    def put(self, states: Sequence[TrainState]) -> None:
        """Gives each run its state, as its layout keeps it."""

    def state(self, number: int) -> TrainState:
        """Of one run, as its layout keeps it."""

    def feed(self, number: int, start: int, stop: int) -> Iterator[tuple[int, Batch]]:
        """(step, batch for `advance`) of one run."""

    def prepare(self, batches: Sequence[Batch | None], stop: parallel.Asked) -> None:
        """Until the program for these batches is compiled; `stop` is asked while waiting."""

    def advance(self, batches: Sequence[Batch | None]) -> Any:
        """A step of every run that brings a batch -> sums, of which `to_host` reads those of a run."""

    def to_host(self, number: int) -> Callable[[list[Any]], list[Any]]:
        """What reads a run's part of what `advance` returned, of several steps in one transfer."""

    def wait(self) -> None:
        """Until the last step is done."""


class Alone:
    """One run, on all devices."""

    def __init__(self, experiment: Experiment, state: TrainState, tx: Any):
        self._experiment, self._state = experiment, state
        self.step = compile_train_step(experiment, state, tx)

    def put(self, states: Sequence[TrainState]) -> None:
        [self._state] = states

    def state(self, number: int) -> TrainState:
        return self._state

    def feed(self, number: int, start: int, stop: int) -> Iterator[tuple[int, Batch]]:
        data, layout = self._experiment.data, self._experiment.compute.layout
        return parallel.feed(data.train, start, stop, layout, on_device=data.on_device)

    def prepare(self, batches: Sequence[Batch | None], stop: parallel.Asked) -> None:
        [batch] = batches
        assert batch is not None
        self.step.prepare(self._state, batch, stop)

    def advance(self, batches: Sequence[Batch | None]) -> Any:
        [batch] = batches
        assert batch is not None
        self._state, sums = self.step(self._state, batch)
        return sums

    def to_host(self, number: int) -> Callable[[list[Any]], list[Any]]:
        return self._experiment.compute.layout.to_host

    def wait(self) -> None:
        jax.block_until_ready(self._state)


class _Sums:
    """What a step of several runs reports; read by each of them, and fetched once."""

    def __init__(self, on_device: Any):
        self._on_device = on_device

    @functools.cached_property
    def host(self) -> Any:
        return jax.device_get(self._on_device)


class Stacked:
    """Runs that differ in their seeds alone, stacked along a leading axis: one compiled step advances all of them.

    Each device has as many places as are needed for all; a place without a run, or whose run has ended, computes what nobody
    reads. So the program, and with it every bit, is the same however many of the runs have ended.

    Shape letters: N places, B batch.
    """

    def __init__(self, experiments: Sequence[Experiment], states: Sequence[TrainState], txs: Sequence[Any],
                 devices: Sequence[Any]):  # fmt: skip
        """devices: that share the runs out among them; as many of them are used as there are runs at most."""
        self._experiments = tuple(experiments)
        devices = devices[: len(experiments)]
        self._each = -(-len(experiments) // len(devices))
        self._fill = [0] * (self._each * len(devices) - len(experiments))  # whose copies lie in places without a run
        self._mesh = Mesh(np.array(devices), (SEEDS,))
        self._placed = NamedSharding(self._mesh, PartitionSpec(SEEDS))
        keys = [train_key(experiment.seed) for experiment in experiments]
        keys = self._stack([*keys, *(keys[i] for i in self._fill)])
        self._last: list[Batch] = [{} for _ in experiments]
        self._now: tuple[Any, Batch] | None = None
        self.put(states)
        one = make_train_step(experiments[0].task, txs[0], **step_options(experiments[0]))
        specs = {
            name: jax.ShapeDtypeStruct(
                (self._each * len(devices), *rows.shape), jax.dtypes.canonicalize_dtype(rows.dtype), sharding=self._placed
            )
            for name, rows in experiments[0].data.batch_spec.items()
        }
        jitted = jax.jit(self._of_all(one), donate_argnums=1, compiler_options=parallel.compiler_options())
        self.step = parallel.Step(jitted, (self._states, specs), jitted.eval_shape(keys, self._states, specs), (keys,))

    def _of_all(self, one: Callable) -> Callable:
        """(key, state, batch) -> (state, sums) of one run -> the same of all."""

        def on_a_device(keys: jax.Array, states: TrainState, batches: Batch) -> tuple[TrainState, Any]:
            if self._each > 1:
                return jax.vmap(one)(keys, states, batches)
            inner = jax.tree.map(lambda x: x[0], (keys, states, batches))  # the program of a run alone
            return jax.tree.map(lambda x: x[None], one(*inner))

        if self._mesh.size == 1:
            return on_a_device
        places = PartitionSpec(SEEDS)
        return jax.shard_map(on_a_device, mesh=self._mesh, in_specs=places, out_specs=places, check_vma=False)

    def _stack(self, trees: Sequence[Any]) -> Any:
        return jax.tree.map(lambda *leaves: jax.device_put(np.stack(leaves), self._placed), *jax.device_get(list(trees)))

    def put(self, states: Sequence[TrainState]) -> None:
        self._states = self._stack([*states, *(states[i] for i in self._fill)])

    def state(self, number: int) -> TrainState:
        def own(leaf: jax.Array) -> jax.Array:
            [shard] = [s for s in leaf.addressable_shards if (s.index[0].start or 0) // self._each == number // self._each]
            return shard.data[number % self._each]

        return self._experiments[number].compute.layout.put_state(jax.tree.map(own, self._states))

    def feed(self, number: int, start: int, stop: int) -> Iterator[tuple[int, Batch]]:
        return zip(range(start, stop), self._experiments[number].data.train.batches(start, stop), strict=True)

    def prepare(self, batches: Sequence[Batch | None], stop: parallel.Asked) -> None:
        for number, batch in enumerate(batches):
            self._last[number] = batch or self._last[number]
        some = next(batch for batch in batches if batch is not None)
        rows = [batch or some for batch in self._last]
        rows += [rows[i] for i in self._fill]
        shapes = {name: {batch[name].shape for batch in rows} for name in some}
        if different := [f"{name} {sorted(found)}" for name, found in shapes.items() if len(found) > 1]:
            raise ShapesDifferError(
                f"config.seeds_in: batches of the seeds have different shapes ({'; '.join(different)}) and cannot be stacked; "
                "expected one shape (data.canvases, data.pad_to), or seeds_in='processes'"
            )
        stacked = {name: np.stack([batch[name] for batch in rows]) for name in some}
        self._now = (self._states, jax.device_put(stacked, self._placed))
        self.step.prepare(*self._now, stop)

    def advance(self, batches: Sequence[Batch | None]) -> Any:
        assert self._now is not None  # `prepare` comes before every step
        self._states, sums = self.step(*self._now)
        self._now = None
        return _Sums(sums)

    def to_host(self, number: int) -> Callable[[list[Any]], list[Any]]:
        return lambda pending: [jax.tree.map(lambda leaf: leaf[number], sums.host) for sums in pending]

    def wait(self) -> None:
        jax.block_until_ready(self._states)
