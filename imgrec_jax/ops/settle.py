"""Keeps XLA's CPU backend from computing a map again for each of its readers."""

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_jvp
def settled(x: jax.Array) -> jax.Array:
    """x, which the CPU computes once and writes down, whoever reads it; on accelerators nothing changes.

    XLA fuses what is cheap into every reader, the readers in the backward pass too, if it is a chain of operations of one large
    operand; a choice between two it writes down (an `optimization_barrier` is gone by then).
    """
    return lax.platform_dependent(x, cpu=lambda x: jnp.where(x != x, jnp.asarray(jnp.nan, x.dtype), x), default=lambda x: x)


settled.defjvps(lambda tangent, y, x: tangent)
