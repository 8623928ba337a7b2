"""Where half precision ends."""

import jax
import jax.numpy as jnp


def single(x: jax.Array) -> jax.Array:
    """x in single precision, or in double where it is: half precision is for maps, not for sums, logarithms and outputs."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
