"""A function as one list of JAX's primitives, for converters that know those and no more.

What is called inside (`jit`, functions with derivatives of their own) is put in place. Of what each platform has its own of
(`lax.platform_dependent`, see `ops/conv.py`) the default is taken. What says nothing of values is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "remat2")
_POOL = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
SAME = ("stop_gradient", "optimization_barrier", "copy", "copy_p", "sharding_constraint")


def flat(function: Callable[..., Any], *specs: Any) -> core.ClosedJaxpr:
    """The primitives of function(*specs), in order; its outputs are the leaves of what the function returns."""
    return _inlined(jax.make_jaxpr(function)(*specs))


def called(program: core.ClosedJaxpr, *values: Any) -> list[Any]:
    """The outputs of a program of primitives: nothing but their `bind` is called, so that a tracer meets only them."""
    return _evaluate(program, values)


def _inlined(program: core.ClosedJaxpr) -> core.ClosedJaxpr:
    return jax.make_jaxpr(lambda *values: _evaluate(program, values))(*map(_spec, program.in_avals))


def _spec(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)


def _evaluate(program: core.ClosedJaxpr, values: Sequence[Any]) -> list[Any]:
    known: dict[Any, Any] = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    known |= zip(program.jaxpr.invars, values, strict=True)

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else known[variable]

    for equation in program.jaxpr.eqns:
        outputs = _outputs(equation, [read(variable) for variable in equation.invars])
        known |= zip(equation.outvars, outputs, strict=True)
    return [read(variable) for variable in program.jaxpr.outvars]


def _outputs(equation: Any, values: list[Any]) -> list[Any]:
    """Of one equation."""
    name, params = equation.primitive.name, equation.params
    if name == "platform_index":
        return [params["platforms"].index(None)]
    if name == "cond" and isinstance(values[0], int):  # of such an index
        return _evaluate(params["branches"][values[0]], values[1:])
    if name in CALLS:
        inner = next(params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params)
        return _evaluate(inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ()), values)
    if name in SAME:
        return values
    if name == "while":
        return _loop(params, values)
    if name == "select_n" and len(values) == 3:
        return [_select(*values)]
    if name == "pad" and not all(isinstance(size, int) for size in values[0].shape):
        return [_pad(values[0], values[1], params["padding_config"])]
    if name == "reduce_window_max" and len(values[0].shape) == 4 and {params["window_dimensions"][n] for n in (0, 3)} == {1}:
        return [_max_pool(values[0], params)]
    found = equation.primitive.bind(*values, **{key: _parameter(value) for key, value in params.items()})
    return list(found) if equation.primitive.multiple_results else [found]


def _parameter(value: Any) -> Any:
    """Programs inside (of a scan, of branches) are flat, too."""
    if isinstance(value, core.ClosedJaxpr):
        return _inlined(value)
    return tuple(map(_parameter, value)) if type(value) is tuple else value


def _loop(params: dict[str, Any], values: list[Any]) -> list[Any]:
    """`while`, whose condition is one value: where `vmap` made it one an example, a loop goes on while any does, and what is
    finished stays as it is."""
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    go_consts, step_consts, start = values[:first], values[first:second], tuple(values[second:])
    rank = params["cond_jaxpr"].out_avals[0].ndim

    def go(state: Any) -> Any:
        return _evaluate(params["cond_jaxpr"], [*go_consts, *state])[0]

    def step(state: Any) -> Any:
        return tuple(_evaluate(params["body_jaxpr"], [*step_consts, *state]))

    def step_those_that_go(state: Any) -> Any:
        going = go(state)
        return tuple(_select(going, old, new) for old, new in zip(state, step(state), strict=True))

    if not rank:
        return list(lax.while_loop(go, step, start))
    return list(lax.while_loop(lambda state: lax.reduce_or(go(state), tuple(range(rank))), step_those_that_go, start))


def _select(which: Any, no: Any, yes: Any) -> Any:
    """Of truth values by logic: ONNX Runtime's Where takes none."""
    if which.ndim < yes.ndim:
        which = lax.broadcast_in_dim(which, yes.shape, tuple(range(which.ndim)))
    if yes.dtype != bool:
        return lax.select_n(which, no, yes)
    return lax.bitwise_or(lax.bitwise_and(which, yes), lax.bitwise_and(lax.bitwise_not(which), no))


def _pad(x: Any, value: Any, config: Sequence[tuple[int, int, int]]) -> Any:
    """Padding without gaps by concatenation: jax2onnx's has no batch of any size."""
    if any(gap for _, _, gap in config):
        raise NotImplementedError("padding between values, of a batch of any size")
    for axis, (low, high, _) in enumerate(config):
        sides = [
            [lax.broadcast(value, (*x.shape[:axis], count, *x.shape[axis + 1 :]))] if count > 0 else [] for count in (low, high)
        ]
        x = lax.slice_in_dim(x, max(-low, 0), x.shape[axis] - max(-high, 0), axis=axis) if min(low, high) < 0 else x
        x = lax.concatenate([*sides[0], x, *sides[1]], axis) if max(low, high) > 0 else x
    return x


def _max_pool(x: Any, params: dict[str, Any]) -> Any:
    """Of [B, H, W, C], one axis after the other: ONNX Runtime's MaxPool, as jax2onnx calls it, takes three axes."""
    for axis in (1, 2):
        flat = (x.shape[0], x.shape[1], x.shape[2] * x.shape[3]) if axis == 1 else (x.shape[0] * x.shape[1], *x.shape[2:])
        window, strides, inner, spread = ((1, params[key][axis], 1) for key in _POOL)
        padding = ((0, 0), params["padding"][axis], (0, 0))
        lowest = np.array(-np.inf, x.dtype)
        pooled = lax.reduce_window(lax.reshape(x, flat), lowest, lax.max, window, strides, padding, inner, spread)
        x = lax.reshape(pooled, (*x.shape[:axis], pooled.shape[1], *x.shape[axis + 1 :]))
    return x
