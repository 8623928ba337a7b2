"""Activations and initialisers by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
    "tanh": jnp.tanh,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "elu": nn.elu,
    "leaky_relu": nn.leaky_relu,
    "identity": lambda x: x,
}

# max(f(x)) = f(max(x)): pooling first then costs a fraction of the activations.
MONOTONE = ("relu", "sigmoid", "tanh", "elu", "leaky_relu", "identity")

_scaled = nn.initializers.variance_scaling
INITIALIZERS: dict[str, Callable] = {
    "normal": nn.initializers.normal(0.01),
    "uniform": lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -0.05, 0.05),
    "lecun_normal": nn.initializers.lecun_normal(),
    "lecun_uniform": nn.initializers.lecun_uniform(),
    "he_normal": nn.initializers.he_normal(),
    "he_uniform": nn.initializers.he_uniform(),
    "glorot_normal": nn.initializers.glorot_normal(),
    "glorot_uniform": nn.initializers.glorot_uniform(),
    "orthogonal": nn.initializers.orthogonal(),
    "zeros": nn.initializers.zeros,
    # torch's default for Linear and Conv2d: uniform in +-1 / sqrt(fan_in) (torch/nn/modules/linear.py, reset_parameters).
    "torch": _scaled(1 / 3, "fan_in", "uniform"),
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function; ValueError with the known names otherwise."""
    return _lookup(ACTIVATIONS, name, "activation")


def initializer(name: str) -> Callable:
    """The kernel initialiser; ValueError with the known names otherwise."""
    return _lookup(INITIALIZERS, name, "initialiser")


def _lookup(table: dict, name: str, what: str):
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}; choose one of {sorted(table)}")
    return table[name]
