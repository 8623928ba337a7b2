"""ReLU and ReLU6, so that XLA's CPU backend computes each map once.

XLA fuses an operation of one operand, as max(x, 0) is, into every reader of it, and whatever is cheap in front of it, too. In
a residual network that is much: each block's output is the sum of a chain as long as its stage, which three readers of every
block computed again. A choice between two operands is written down once. ResNet-50, train step of 8 x 224 x 224: 2.65 s with
max(x, 0), 1.95 s so (2 AVX-512 cores, jax 0.10.2). Accelerators get max(x, 0).
"""

import jax
import jax.numpy as jnp
from jax import lax


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0), NaN where x is; the gradient at 0 is 0."""
    return lax.platform_dependent(
        x, cpu=lambda x: jnp.where(x <= 0, jnp.zeros((), x.dtype), x), default=lambda x: jnp.maximum(x, 0)
    )


@jax.custom_jvp
def relu6(x: jax.Array) -> jax.Array:
    """min(max(x, 0), 6), NaN where x is; the gradient at 0 and at 6 is 0."""

    def chosen(x):
        return jnp.where(x <= 0, jnp.zeros((), x.dtype), jnp.where(x >= 6, jnp.asarray(6, x.dtype), x))

    return lax.platform_dependent(x, cpu=chosen, default=lambda x: jnp.clip(x, 0, 6))


relu.defjvps(lambda gradient, y, x: jnp.where(y > 0, gradient, jnp.zeros((), gradient.dtype)))
relu6.defjvps(lambda gradient, y, x: jnp.where((y > 0) & (y < 6), gradient, jnp.zeros((), gradient.dtype)))
