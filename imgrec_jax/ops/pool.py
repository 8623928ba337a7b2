"""Pooling that is fast on every backend."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


def max_pool(x: jax.Array, window: int = 2) -> jax.Array:
    """Max over non-overlapping `window` x `window` cells; a remainder at the bottom and right is dropped.

    By reshape, because the gradient of `nn.max_pool` (select-and-scatter) costs as much as a whole small network on the CPU.
    Where values tie, the gradient is shared among them. [B, H, W, C] -> [B, H // window, W // window, C].
    """
    return _cell_max(x, window)


def avg_pool(x: jax.Array, window: int = 2) -> jax.Array:
    """Mean over the same cells. [B, H, W, C] -> [B, H // window, W // window, C]."""
    return jnp.mean(_cells(x, window), axis=(2, 4))


def _cells(x: jax.Array, window: int) -> jax.Array:
    batch, height, width, channels = x.shape
    h, w = height // window, width // window
    if not h or not w:
        raise ValueError(f"cannot pool {height}x{width} pixels by {window}: the image is too small for this network")
    return x[:, : h * window, : w * window].reshape(batch, h, window, w, window, channels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _cell_max(x, window):
    return jnp.max(_cells(x, window), axis=(2, 4))


def _cell_max_backward(window, x, dy):
    """Finds the maxima again, in one and the same copy of x where the backend keeps barriers (the CPU's does not).

    The gradient of `jnp.max` compares x with the maximum of the forward pass, and XLA may compute x twice, for the one and for
    the other, rounded differently: then nothing is equal to the maximum, and the share of dy is 0 / 0. (`settled` holds on the
    CPU, too, but costs the smallest networks a sixth of their step; here every tap is compared with the maximum of the taps.)
    """
    cells = _cells(lax.optimization_barrier(x), window)
    taps = [cells[:, :, i, :, j] for i in range(window) for j in range(window)]
    highest = functools.reduce(jnp.maximum, taps)
    share = dy / functools.reduce(jnp.add, ((tap == highest).astype(dy.dtype) for tap in taps))
    dx = jnp.where(cells == highest[:, :, None, :, None], share[:, :, None, :, None], 0)
    dx = dx.reshape(x.shape[0], cells.shape[1] * window, cells.shape[3] * window, x.shape[3])
    return (jnp.pad(dx, [(0, 0), *((0, n - have) for n, have in zip(x.shape[1:3], dx.shape[1:3], strict=True)), (0, 0)]),)


_cell_max.defvjp(lambda x, window: (_cell_max(x, window), x), _cell_max_backward)


def max_pool_overlapping(x: jax.Array, window: int, stride: int, padding: int) -> jax.Array:
    """Max pooling with torch's symmetric padding by -inf; where values tie, the first takes the gradient.

    On the CPU as a maximum of shifted images: XLA's gradient (select-and-scatter) was a fifth of a ResNet-18's train step
    (8 x 112 x 112 x 64, one AVX-512 core, jax 0.10.2: forward and backward 238 ms of CPU, this way 35).
    [B, H, W, C] -> [B, H', W', C].
    """
    if any(jax.export.is_symbolic_dim(n) for n in x.shape[1:]):
        return _library_pool(x, window, stride, padding)
    return _pool(x, window, stride, padding)


def _library_pool(x, window, stride, padding):
    return nn.max_pool(x, (window, window), (stride, stride), ((padding, padding), (padding, padding)))


def _shifted_pool(x, window, stride, padding):
    return functools.reduce(jnp.maximum, _taps(x, window, stride, padding))


def _taps(x, window, stride, padding) -> list[jax.Array]:
    """What each cell of the window sees, row by row; [B, H', W', C] each."""
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), *((padding, padding, 0),) * 2, (0, 0, 0)))
    ends = [n - window + 1 for n in x.shape[1:3]]
    return [x[:, i : i + ends[0] : stride, j : j + ends[1] : stride] for i in range(window) for j in range(window)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _pool(x, window, stride, padding):
    return _pooled(x, window, stride, padding)


def _pooled(x, *how):
    return lax.platform_dependent(x, cpu=lambda x: _shifted_pool(x, *how), default=lambda x: _library_pool(x, *how))


def _pool_forward(x, *how):
    y = _pooled(x, *how)
    return y, (x, y)


def _pool_backward(window, stride, padding, saved, dy):
    how = (window, stride, padding)
    return (
        lax.platform_dependent(
            *saved, dy,
            cpu=lambda x, y, dy: _to_first_maximum(x, y, dy, *how),
            default=lambda x, y, dy: jax.vjp(lambda x: _library_pool(x, *how), x)[1](dy)[0],
        ),
    )  # fmt: skip


_pool.defvjp(_pool_forward, _pool_backward)


def _to_first_maximum(x, y, dy, window, stride, padding) -> jax.Array:
    """The gradient of x: every dy goes to the first cell of its window that has the maximum y."""
    taps = _taps(x, window, stride, padding)
    first = jnp.full(y.shape, len(taps) - 1, jnp.uint8 if len(taps) <= 256 else jnp.int32)
    for t in reversed(range(len(taps) - 1)):
        first = jnp.where(taps[t] == y, jnp.asarray(t, first.dtype), first)
    batch, height, width, channels = x.shape
    rows, columns = -(-height // stride), -(-width // stride)

    def taps_of(residue: int) -> list[tuple[int, int]]:
        """(tap, what it adds to a cell's number) of the inputs stride * a + residue: cell a + shift sees it by the tap."""
        return [(i, (residue + padding - i) // stride) for i in range((residue + padding) % stride, window, stride)]

    def part(residue_h: int, residue_w: int) -> jax.Array:
        total = jnp.zeros((batch, rows, columns, channels), dy.dtype)
        for i, down in taps_of(residue_h):
            for j, right in taps_of(residue_w):
                given = jnp.where(first == i * window + j, dy, 0)
                around = [
                    (-n, size + n - have, 0)
                    for n, size, have in zip((down, right), (rows, columns), dy.shape[1:3], strict=True)
                ]
                total += lax.pad(given, jnp.zeros((), dy.dtype), ((0, 0, 0), *around, (0, 0, 0)))
        return total

    whole = jnp.stack([jnp.stack([part(r, q) for q in range(stride)], axis=3) for r in range(stride)], axis=2)
    return whole.reshape(batch, rows * stride, columns * stride, channels)[:, :height, :width]
