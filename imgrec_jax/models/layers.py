"""The convolution of every network, activations and initialisers by name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from imgrec_jax.ops.conv import conv_general_dilated
from imgrec_jax.ops.relu import relu, relu6
from imgrec_jax.ops.sums import add_bias


class Conv(nn.Module):
    """A convolution of images: `flax.linen.Conv` with the same parameters and draws, by `ops.conv` and `ops.sums`."""

    features: int
    kernel_size: tuple[int, int]
    strides: int | tuple[int, int] = 1
    padding: str | int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]] = "SAME"
    kernel_dilation: int | tuple[int, int] = 1
    feature_group_count: int = 1
    use_bias: bool = True
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, H, W, C] -> [B, M, N, features]."""
        shape = (*self.kernel_size, x.shape[-1] // self.feature_group_count, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", self.bias_init, (self.features,)) if self.use_bias else None
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        padding: Any = self.padding
        if not isinstance(padding, str):
            padding = [(p, p) if isinstance(p, int) else tuple(p) for p in _two(padding)]
        y = conv_general_dilated(
            x,
            kernel,
            _two(self.strides),
            padding,
            rhs_dilation=_two(self.kernel_dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.feature_group_count,
        )
        return y if bias is None else add_bias(y, bias)


def _two(value: Any) -> tuple:
    return (value, value) if isinstance(value, int) else tuple(value)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": relu,
    "sigmoid": nn.sigmoid,
    "tanh": jnp.tanh,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "elu": nn.elu,
    "leaky_relu": nn.leaky_relu,
    "relu6": relu6,
    "hard_swish": nn.hard_swish,
    "hard_sigmoid": nn.hard_sigmoid,
    "identity": lambda x: x,
}

# max(f(x)) = f(max(x)): pooling first then costs a fraction of the activations.
MONOTONE = ("relu", "sigmoid", "tanh", "elu", "leaky_relu", "relu6", "hard_sigmoid", "identity")

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

# torchvision/models/resnet.py:208-211: kaiming_normal, fan_out, relu
kaiming_normal = _scaled(2.0, "fan_out", "normal")
torch_uniform = INITIALIZERS["torch"]
truncated_normal = nn.initializers.truncated_normal(0.02)


class Named(nn.Module):
    """Gives a map that no module returns the name of this one, so that features and explanations can be of it."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def exact_gelu(x: jax.Array) -> jax.Array:
    """GELU by the error function, as torch computes it; "gelu" above is the tanh approximation."""
    return nn.gelu(x, approximate=False)


def drop_path(x: jax.Array, rate: float, train: bool) -> jax.Array:
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382), in the calling module's scope: in training whole rows of
    x [B, ...] become 0 with probability `rate`, the others are scaled up; needs a "dropout" key then."""
    if rate == 0:
        return x
    return nn.Dropout(rate, broadcast_dims=tuple(range(1, x.ndim)), deterministic=not train)(x)


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
