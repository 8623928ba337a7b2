"""What is inside a network: the output of every module by its path, without a change to any model.

A module's path is its names joined by "/", "backbone/layer2/block1/conv1"; a module that returns several maps has one entry
for each, "backbone:layer2". Works on any pure function that calls flax modules (`Task.predict`, `Task.logits`), under `jit`
and `grad` too, as long as the module is not called inside a loop or another transformation.
Shape letters: B rows of a batch, H W map, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend import core

Function = Callable[..., Any]


def watched(function: Function, names: tuple[str, ...] | None = None) -> Function:
    """function(*args) -> (its value, {path: output}); names: only these paths; None: all, in the order of their calls."""

    def run(*args: Any) -> tuple[Any, dict[str, jax.Array]]:
        found: dict[str, jax.Array] = {}

        def look(call: Function, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            output = call(*args, **kwargs)
            if context.method_name == "__call__":
                for name, value in _parts(context.module.path, output).items():
                    if names is None or name in names:
                        found[name] = value
            return output

        with nn.intercept_methods(look):
            return function(*args), found

    return run


def entering(function: Function, name: str) -> Function:
    """function(*args) -> (its value, what the module `name` was called with)."""

    def run(*args: Any) -> tuple[Any, jax.Array]:
        found: list[jax.Array] = []

        def look(call: Function, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            if context.method_name == "__call__" and "/".join(context.module.path) == name:
                found.append(args[0])
            return call(*args, **kwargs)

        with nn.intercept_methods(look):
            return function(*args), found[-1]

    return run


def added(function: Function) -> Function:
    """(shifts, *args) -> function(*args) with `shifts` {path: array} added to the outputs of these modules.

    The gradient by a shift of zeros is the gradient by the output itself.
    """

    def run(shifts: Mapping[str, jax.Array], *args: Any) -> Any:
        def shift(call: Function, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            output = call(*args, **kwargs)
            if context.method_name != "__call__":
                return output
            path = "/".join(context.module.path)
            if isinstance(output, Mapping):
                return {
                    key: value + shifts[f"{path}:{key}"] if f"{path}:{key}" in shifts else value
                    for key, value in output.items()
                }
            # A module that several maps share is called for each: the shift is of the map that has its shape.
            return output + shifts[path] if path in shifts and shifts[path].shape == output.shape else output

        with nn.intercept_methods(shift):
            return function(*args)

    return run


def _parts(path: tuple[str, ...], output: Any) -> dict[str, jax.Array]:
    name = "/".join(path)
    if not name and not isinstance(output, Mapping):
        return {}
    if isinstance(output, Mapping):
        return {f"{name}:{key}": value for key, value in output.items() if hasattr(value, "shape")}
    return {name: output} if hasattr(output, "shape") else {}


def shapes(function: Function, *args: Any) -> dict[str, tuple[int, ...]]:
    """{path: shape of its output} of every module that `function(*args)` calls, in the order of the calls; computes nothing."""
    order: list[str] = []

    def traced(*args: Any) -> dict[str, jax.Array]:
        found = watched(function)(*args)[1]
        order.extend(found)  # a pytree forgets it
        return found

    found = jax.eval_shape(traced, *args)
    return {name: tuple(found[name].shape) for name in order}


def maps(function: Function, *args: Any) -> dict[str, tuple[int, ...]]:
    """`shapes` of those that are maps of one row an image: [B, H, W, C] with H and W above 1."""
    rows = args[-1]["image"].shape[0]
    every = shapes(function, *args)
    return {name: shape for name, shape in every.items() if is_map(shape, rows)}


def reaching(function: Function, names: Iterable[str], *args: Any) -> set[str]:
    """Those of `names` whose output can have a part in function(*args): what it never enters has no gradient; computes nothing.

    A program within the program (a loop, a remat) counts as one step whose results depend on all that it is given.
    """
    names = sorted(names)  # as a dict's leaves
    found = jax.eval_shape(lambda *args: watched(function, tuple(names))(*args)[1], *args)
    program = jax.make_jaxpr(added(function))({name: found[name] for name in names}, *args).jaxpr
    of: dict[Any, frozenset[str]] = {variable: frozenset([name]) for variable, name in zip(program.invars, names, strict=False)}

    def behind(variables: Iterable[Any]) -> frozenset[str]:
        known = (of.get(variable, frozenset()) for variable in variables if not isinstance(variable, core.Literal))
        return frozenset[str]().union(*known)

    for equation in program.eqns:
        of |= dict.fromkeys(equation.outvars, behind(equation.invars))
    return set(behind(program.outvars))


def is_map(shape: tuple[int, ...], rows: int) -> bool:
    return len(shape) == 4 and shape[0] == rows and shape[1] > 1 and shape[2] > 1


def pooled(value: jax.Array) -> jax.Array:
    """[B, H, W, C] or [B, C] -> float32 [B, C], the mean over the map."""
    value = value.astype(jnp.float32)
    return value.mean(axis=tuple(range(1, value.ndim - 1))) if value.ndim > 2 else value
