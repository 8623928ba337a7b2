"""Convolution that is fast on every backend, as a drop-in for flax's `conv_general_dilated` argument.

On accelerators it is `lax.conv_general_dilated` and nothing else. On the CPU the forward pass, the gradient of the input and
that of the kernel are each computed in the form that was the fastest where it was measured, a function of shape alone
(experiments/010_speed/shapes.py measures again). All forms are exact: they differ from `lax` by rounding. Whoever changes what
a shape gets raises FORMS_VERSION, for a run that goes on with other forms goes on with other rounding.

Derivatives of any order in reverse mode, and forward over reverse, are supported; forward mode alone (`jax.jvp` of a model) is
not, and says so.

Shape letters: B batch, H W input map, h w kernel, M N output map, C input channels, D output channels.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from imgrec_jax.ops.settle import settled

FORMS_VERSION = 3
NHWC = ("NHWC", "HWIO", "NHWC")
# Input channels up to which output columns are computed in groups.
FEW_CHANNELS = 4
# Channels up to which a gradient of the input, of images at most three kernels wide, is computed row by row.
NARROW = 16
# A matrix of patches beyond this many bytes leaves the caches, and its pages are new at every step.
MAX_PATCH_BYTES = 2**24
# Cells from which a sum over them of products is taken in parts, where it is one of so many.
MANY_CELLS, MANY_SUMS = 2**12, 2**13


class Spec(NamedTuple):
    """What a convolution is beside its two arrays; pads ((top, bottom), (left, right)) are not negative."""

    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    groups: int = 1
    precision: object = None


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    precision=None,
    **kwargs,
) -> jax.Array:
    """`lax.conv_general_dilated`, with forms of its own for NHWC images on the CPU.

    The batch may be symbolic (`jax.export`); with a symbolic height or width, dilation or further arguments it is `lax`'s.

    Args: as `jax.lax.conv_general_dilated`; lhs [B, H, W, C], rhs [h, w, C / groups, D].
    Returns: [B, M, N, D].
    """

    def direct():
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
            feature_group_count, precision=precision, **kwargs,
        )  # fmt: skip

    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    if lhs.ndim != 4 or dilated or kwargs or not _is_nhwc(dimension_numbers, lhs, rhs) or lhs.dtype != rhs.dtype:
        return direct()
    if not jnp.issubdtype(lhs.dtype, jnp.floating) or any(jax.export.is_symbolic_dim(n) for n in (*lhs.shape[1:], *rhs.shape)):
        return direct()
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    spec = Spec(tuple(map(int, window_strides)), pads, feature_group_count, precision)
    if min(map(min, pads)) < 0 or min(_sizes(lhs.shape, rhs.shape, spec)) < 1 or lhs.shape[3] != rhs.shape[2] * spec.groups:
        return direct()
    return _conv(lhs, rhs, spec)


def _is_nhwc(numbers, lhs, rhs) -> bool:
    return lax.conv_dimension_numbers(lhs.shape, rhs.shape, numbers) == lax.conv_dimension_numbers(lhs.shape, rhs.shape, NHWC)


def _sizes(x_shape: tuple, w_shape: tuple, spec: Spec) -> tuple[int, int]:
    """(M, N)."""
    sizes = zip(x_shape[1:3], w_shape[:2], spec.strides, spec.pads, strict=True)
    return tuple((n + sum(pad) - k) // s + 1 for n, k, s, pad in sizes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, w: jax.Array, spec: Spec) -> jax.Array:
    return _forward(x, w, spec)


def _forward(x, w, spec):
    return lax.platform_dependent(
        x, w, cpu=functools.partial(forward, spec=spec), default=functools.partial(lax_forward, spec=spec)
    )


def _backward(spec, saved, dy):
    x, w = saved
    dx = lax.platform_dependent(
        dy, w,
        cpu=functools.partial(input_gradient, x_shape=x.shape, spec=spec),
        default=functools.partial(lax_input_gradient, x_shape=x.shape, spec=spec),
    )  # fmt: skip
    dw = lax.platform_dependent(
        x, dy,
        cpu=functools.partial(kernel_gradient, w_shape=w.shape, spec=spec),
        default=functools.partial(lax_kernel_gradient, w_shape=w.shape, spec=spec),
    )  # fmt: skip
    return dx, dw


_conv.defvjp(lambda x, w, spec: (_forward(x, w, spec), (x, w)), _backward)


# What a shape gets on the CPU. Times in comments: one AVX-512 core, jax 0.10.2, the compiler options of `parallel`, ms of CPU.


def forward(x: jax.Array, w: jax.Array, spec: Spec) -> jax.Array:
    """x [B, H, W, C], w [h, w, C / groups, D] -> [B, M, N, D]."""
    w, spec = live(x.shape, w, spec)
    if spec.groups > 1:
        return by_taps(x, w, spec) if _is_depthwise(w.shape, spec) else lax_forward(x, w, spec)
    if w.shape[:2] == (1, 1):
        return by_product(x, w, spec)
    if any(size < k for size, k in zip(x.shape[1:3], w.shape[:2], strict=True)):
        # XLA's plain loops: 3x3, 256 -> 256, 64 x 2 x 2 cells 97, patches 2.5
        return by_patches(x, w, spec)
    if group := _columns(x.shape, w.shape, spec):
        return by_columns(
            x, w, spec, group
        )  # 3x3, 3 -> 32, 8 x 128 x 128: lax 9.3, columns 5.3; 5x5, 1 -> 10, 64 x 28 x 28: 2.3, 0.44
    return lax_forward(x, w, spec)


def _columns(x_shape: tuple, w_shape: tuple, spec: Spec) -> int:
    """How many output columns to compute together, 0 for none."""
    if x_shape[3] > FEW_CHANNELS or spec.strides[1] > 2 or jax.export.is_symbolic_dim(x_shape[0]):
        return 0
    m, n = _sizes(x_shape, w_shape, spec)
    group = 2 if w_shape[3] >= 32 else 4
    row = w_shape[0] * ((group - 1) * spec.strides[1] + w_shape[1]) * x_shape[3]
    return group if 4 * x_shape[0] * m * -(-n // group) * row <= MAX_PATCH_BYTES else 0


def input_gradient(dy: jax.Array, w: jax.Array, *, x_shape: tuple, spec: Spec) -> jax.Array:
    """dy [B, M, N, D] -> [B, H, W, C], x_shape."""
    w, spec = live(x_shape, w, spec)
    if spec.groups > 1 and not _is_depthwise(w.shape, spec):
        return lax_input_gradient(dy, w, x_shape=x_shape, spec=spec)
    small = any(size < k for size, k in zip(dy.shape[1:3], w.shape[:2], strict=True))
    if spec.groups == 1 and not small and spec.strides != (1, 1):
        return lax_input_gradient(dy, w, x_shape=x_shape, spec=spec)
    narrow = x_shape[3] <= NARROW and x_shape[2] <= 3 * w.shape[1]
    if spec == Spec((1, 1), ((0, 0), (0, 0)), 1, spec.precision) and narrow and not small:
        return input_gradient_by_rows(dy, w, x_shape=x_shape, spec=spec)  # 5x5, 10 -> 20, 64 x 12 x 12: lax 3.0, rows 1.0
    return by_residues(dy, w, x_shape=x_shape, spec=spec)


def kernel_gradient(x: jax.Array, dy: jax.Array, *, w_shape: tuple, spec: Spec) -> jax.Array:
    """x [B, H, W, C], dy [B, M, N, D] -> w_shape, [h, w, C / groups, D]."""
    (top, left), (kh, kw), inner = _live(x.shape, w_shape, spec)
    shape = (kh, kw, *w_shape[2:])
    dw = _kernel_gradient(x, dy, shape, inner)
    around = ((top, w_shape[0] - kh - top, 0), (left, w_shape[1] - kw - left, 0), (0, 0, 0), (0, 0, 0))
    return lax.pad(dw, jnp.zeros((), dw.dtype), around)


def _kernel_gradient(x, dy, shape, spec):
    if spec.groups > 1:
        # 3x3, 16 x 112 x 112 x 32: lax 121, rows 29; 16 x 56 x 56 x 144: 330 and 32; 7x7, 8 x 14 x 14 x 384: products of whole
        # shifted maps 89, rows 7.8
        if _is_depthwise(shape, spec):
            return kernel_gradient_by_rows(x, dy, shape, spec)
        return lax_kernel_gradient(x, dy, w_shape=shape, spec=spec)
    if shape[:2] == (1, 1):
        # 1x1 stride 2, 256 -> 512, 8 x 56 x 56: lax 51.6, product 13.9; stride 1, 64 -> 256: 13.0 and 8.5
        x = _shifted(_padded(x, spec), 0, 0, dy.shape[1:3], spec.strides)
        return _rows_product(x, dy, spec.precision)[None, None]
    if x.shape[3] == 1 and (group := _columns(x.shape, shape, spec)):
        return kernel_gradient_by_columns(x, dy, shape, spec, group)  # 3x3, 1 -> 32, 64 x 28 x 28: lax 1.9, groups of 2 0.7
    if x.shape[0] == 1 and dy.shape[1] >= 16:
        # XLA convolves with the batch in place of channels. On two cores, 3x3, 256 -> 256: 1 x 100 x 136 134, padded first 86;
        # with stride 2 74, and of four parts 54.
        return kernel_gradient_in_parts(x, dy, shape, spec, parts=1 if spec.strides == (1, 1) else 4)
    return lax_kernel_gradient(x, dy, w_shape=shape, spec=spec)


def _is_depthwise(w_shape: tuple, spec: Spec) -> bool:
    """One input and one output channel a group."""
    return w_shape[2] == 1 and w_shape[3] == spec.groups


# The taps of a kernel that ever meet the input. A 3x3 kernel on a map of one cell is a 1x1 kernel.


def _live(x_shape: tuple, w_shape: tuple, spec: Spec) -> tuple[tuple[int, ...], tuple[int, ...], Spec]:
    """(first live tap, how many, spec for them alone) of both axes."""
    firsts, counts, pads = [], [], []
    sizes = _sizes(x_shape, w_shape, spec)
    for n, m, k, s, (low, high) in zip(x_shape[1:3], sizes, w_shape[:2], spec.strides, spec.pads, strict=True):
        taps = [i for i in range(k) if any(0 <= s * o + i - low < n for o in range(m))] or [0, k - 1]
        firsts.append(taps[0])
        counts.append(taps[-1] - taps[0] + 1)
        pads.append((low - taps[0], high - (k - 1 - taps[-1])))
    return tuple(firsts), tuple(counts), spec._replace(pads=tuple(pads))


def live(x_shape: tuple, w: jax.Array, spec: Spec) -> tuple[jax.Array, Spec]:
    """The kernel without the taps that only ever meet padding, and what then remains to be padded."""
    (top, left), (kh, kw), spec = _live(x_shape, w.shape, spec)
    return w[top : top + kh, left : left + kw], spec


# Forms. Each is equal to `lax_forward` or to one of its two gradients.


def lax_forward(x, w, spec):
    return lax.conv_general_dilated(
        x, w, spec.strides, spec.pads, dimension_numbers=NHWC, feature_group_count=spec.groups, precision=spec.precision
    )


def lax_input_gradient(dy, w, *, x_shape, spec):
    return jax.linear_transpose(lambda x: lax_forward(x, w, spec), jax.ShapeDtypeStruct(x_shape, dy.dtype))(dy)[0]


def lax_kernel_gradient(x, dy, *, w_shape, spec):
    return jax.linear_transpose(lambda w: lax_forward(x, w, spec), jax.ShapeDtypeStruct(w_shape, dy.dtype))(dy)[0]


def by_product(x, w, spec):
    """A 1x1 kernel as one matrix product."""
    x = _shifted(_padded(x, spec), 0, 0, _sizes(x.shape, w.shape, spec), spec.strides)
    return lax.dot_general(x, w[0, 0], (((3,), (0,)), ((), ())), precision=spec.precision)


def by_patches(x, w, spec):
    """One matrix product of the patches under the kernel."""
    kh, kw, _, features = w.shape
    sizes, x = _sizes(x.shape, w.shape, spec), _padded(x, spec)
    patches = [_shifted(x, i, j, sizes, spec.strides) for i in range(kh) for j in range(kw)]
    columns = jnp.concatenate(patches, axis=-1)
    return lax.dot_general(columns, w.reshape(-1, features), (((3,), (0,)), ((), ())), precision=spec.precision)


def by_taps(x, w, spec):
    """Depthwise: the sum over taps of the shifted image times the tap's weights."""
    sizes, padded, wide = _sizes(x.shape, w.shape, spec), _padded(x, spec), _wide(x.dtype)
    total: Any = 0
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            shifted = _shifted(padded, i, j, sizes, spec.strides)
            total += shifted.astype(wide) * w[i, j, 0].astype(wide)
    return settled(total.astype(x.dtype))  # or XLA computes the sum again in each of its readers


def by_columns(x, w, spec, group: int):
    """Output columns in groups: patches h x (group's span) against a banded (Toeplitz) matrix of `group` * D columns.

    A matrix product of D columns alone is narrow where D is small, and one of h * w * C rows short where C is.
    """
    kh, kw, c, d = w.shape
    stride, (m, n) = spec.strides[1], _sizes(x.shape, w.shape, spec)
    patches, span = _column_patches(x, w.shape, (m, n), spec, group)
    bands = [jnp.pad(w, ((0, 0), (t * stride, span - kw - t * stride), (0, 0), (0, 0))) for t in range(group)]
    matrix = jnp.stack(bands, axis=3).reshape(kh * span * c, group * d)
    out = lax.dot_general(patches, matrix, (((3,), (0,)), ((), ())), precision=spec.precision)
    return out.reshape(x.shape[0], m, -1, d)[:, :, :n]


def kernel_gradient_by_columns(x, dy, shape, spec, group: int):
    """The gradient of `by_columns`' matrix, of which the kernel's is the sum over the bands."""
    kh, kw, c, d = shape
    stride, (b, m, n, _) = spec.strides[1], dy.shape
    patches, span = _column_patches(x, shape, (m, n), spec, group)
    dy = jnp.pad(dy, ((0, 0), (0, 0), (0, -n % group), (0, 0))).reshape(b, m, -1, group * d)
    matrix = _rows_product(patches, dy, spec.precision).reshape(kh, span, c, group, d)
    return sum(matrix[:, t * stride : t * stride + kw, :, t] for t in range(group))


def _column_patches(x, w_shape, sizes, spec, group: int):
    """([B, M, groups of columns, h * span * C], span): what each group of output columns sees."""
    kh, kw, c, _ = w_shape
    stride, (m, n) = spec.strides[1], sizes
    span, groups = (group - 1) * stride + kw, -(-n // group)
    x = _padded(x, spec)
    missing = (groups - 1) * group * stride + span - x.shape[2]
    x = jnp.pad(x, ((0, 0), (0, 0), (0, max(missing, 0)), (0, 0)))
    starts = [g * group * stride for g in range(groups)]
    columns = jnp.stack([x[:, :, start : start + span] for start in starts], axis=2)
    columns = columns.reshape(*columns.shape[:3], span * c)
    last = (m - 1) * spec.strides[0] + 1
    return jnp.concatenate([columns[:, i : i + last : spec.strides[0]] for i in range(kh)], axis=-1), span


def by_residues(dy, w, *, x_shape, spec):
    """The input's gradient: a stride-1 convolution of dy for each residue of the input's position by the stride.

    x[s a + r] met dy[a + (r + low - i) / s] by the taps i that leave no remainder.
    """
    sh, sw = spec.strides
    flipped = jnp.flip(w, (0, 1))
    if spec.groups == 1:
        flipped = flipped.swapaxes(2, 3)
    (top, height), (left, width) = (
        _residues(n, m, k, s, low)
        for n, m, k, s, (low, _) in zip(x_shape[1:3], dy.shape[1:3], w.shape[:2], spec.strides, spec.pads, strict=True)
    )
    rows = []
    for pad_h, taps_h in top:
        row = []
        for pad_w, taps_w in left:
            if pad_h is None or pad_w is None:
                row.append(jnp.zeros((dy.shape[0], height, width, x_shape[3]), dy.dtype))
                continue
            part = flipped[taps_h, taps_w]
            row.append(_stride_one(dy, part, (pad_h, pad_w), spec))
        rows.append(row)
    if (sh, sw) == (1, 1):
        return rows[0][0]
    out = jnp.stack([jnp.stack(row, axis=3) for row in rows], axis=2)  # [B, height, sh, width, sw, C]
    return out.reshape(dy.shape[0], height * sh, width * sw, x_shape[3])[:, : x_shape[1], : x_shape[2]]


def _residues(n: int, m: int, k: int, s: int, low: int) -> tuple[list, int]:
    """For each residue r < s: (padding of dy, slice of the flipped kernel's taps), or (None, None) without a tap."""
    size = -(-n // s)
    parts: list[tuple[Any, Any]] = []
    for r in range(s):
        first = (r + low) % s  # the smallest tap
        taps = range(first, k, s)
        if not taps:
            parts.append((None, None))
            continue
        start = (r + low - taps[-1]) // s  # the largest tap meets the smallest position of dy
        parts.append(((-start, size - 1 + start + len(taps) - m), slice(k - 1 - taps[-1], k - first, s)))
    return parts, size


def _stride_one(dy, part, pads, spec):
    """A stride-1 convolution of dy; what negative padding cuts off is cut off first."""
    cut = [slice(max(-low, 0), n - max(-high, 0)) for n, (low, high) in zip(dy.shape[1:3], pads, strict=True)]
    dy = dy[:, cut[0], cut[1]]
    pads = tuple((max(low, 0), max(high, 0)) for low, high in pads)
    inner = Spec((1, 1), pads, spec.groups, spec.precision)
    return forward(dy, part, inner)


def input_gradient_by_rows(dy, w, *, x_shape, spec):
    """Each row of dy against the banded matrix of a whole row; what it adds to h rows of x is shifted and summed.

    Stride 1, no padding.
    """
    kh, kw, c, d = w.shape
    b, m, n, _ = dy.shape
    bands = jnp.stack([jnp.pad(w, ((0, 0), (o, n - 1 - o), (0, 0), (0, 0))) for o in range(n)])  # [N, h, W, C, D]
    matrix = bands.transpose(0, 4, 1, 2, 3).reshape(n * d, kh * x_shape[2] * c)
    rows = lax.dot_general(dy.reshape(b, m, n * d), matrix, (((2,), (0,)), ((), ())), precision=spec.precision)
    rows = rows.reshape(b, m, kh, x_shape[2] * c)
    total: Any = sum(jnp.pad(rows[:, :, i], ((0, 0), (i, kh - 1 - i), (0, 0))) for i in range(kh))
    return total.reshape(b, *x_shape[1:])


def kernel_gradient_in_parts(x, dy, shape, spec, parts: int):
    """Rows of one image as if they were several images."""
    b, m, n, d = dy.shape
    rows = -(-m // parts)
    stride, reach = spec.strides[0], (-(-m // parts) - 1) * spec.strides[0] + shape[0]
    x = _padded(x, spec)
    missing = (parts - 1) * rows * stride + reach - x.shape[1]
    x = jnp.pad(x, ((0, 0), (0, max(missing, 0)), (0, 0), (0, 0)))
    dy = jnp.pad(dy, ((0, 0), (0, parts * rows - m), (0, 0), (0, 0))).reshape(b * parts, rows, n, d)
    x = jnp.stack([x[:, p * rows * stride : p * rows * stride + reach] for p in range(parts)], axis=1)
    x = x.reshape(b * parts, *x.shape[2:])
    return lax_kernel_gradient(x, dy, w_shape=shape, spec=spec._replace(pads=((0, 0), (0, 0))))


def kernel_gradient_by_rows(x, dy, shape, spec):
    """Depthwise: row by row of dy, each tap's products summed over the images while they are computed.

    What is left for the end are the columns; a row of all images stays in the caches.
    """
    (kh, kw), (_, m, n, c), (down, right), wide = shape[:2], dy.shape, spec.strides, _wide(dy.dtype)
    x = _padded(x, spec)

    def add(row, total):
        ahead = lax.dynamic_index_in_dim(dy, row, 1, keepdims=False).astype(wide)
        sums = []
        for i in range(kh):
            behind = lax.dynamic_index_in_dim(x, row * down + i, 1, keepdims=False).astype(wide)
            sums += [(behind[:, j : j + (n - 1) * right + 1 : right] * ahead).sum(0) for j in range(kw)]
        return total + jnp.stack(sums)

    total = lax.fori_loop(0, m, add, jnp.zeros((kh * kw, n, c), wide))
    return total.sum(1).reshape(shape).astype(x.dtype)


def _rows_product(x, dy, precision):
    """x [B, M, N, C], dy [B, M, N, D] -> [C, D], the sum over cells.

    Many cells in two parts, and the map with fewer channels first: 256 -> 64, 8 x 56 x 56, two cores: 16 ms in one product,
    5.3 so; 64 -> 256: 7.2 and 4.8; 512 -> 128, 8 x 28 x 28: 7.2 and 3.9.
    """
    c, d = x.shape[3], dy.shape[3]
    few = jax.export.is_symbolic_dim(x.shape[0]) or math.prod(x.shape[:3]) < MANY_CELLS or c * d < MANY_SUMS
    if few or math.prod(x.shape[:3]) % 2:
        return lax.dot_general(x, dy, (((0, 1, 2), (0, 1, 2)), ((), ())), precision=precision)
    x, dy = x.reshape(2, -1, c), dy.reshape(2, -1, d)
    numbers = (((1,), (1,)), ((0,), (0,)))
    if c > d:
        return lax.dot_general(dy, x, numbers, precision=precision).sum(0).T
    return lax.dot_general(x, dy, numbers, precision=precision).sum(0)


def _padded(x, spec):
    if not any(map(any, spec.pads)):
        return x
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *((*pad, 0) for pad in spec.pads), (0, 0, 0)))


def _shifted(x, i: int, j: int, sizes: tuple[int, int], strides: tuple[int, int]):
    """What tap (i, j) sees of the padded image: [B, M, N, C]."""
    ends = [start + (n - 1) * s + 1 for start, n, s in zip((i, j), sizes, strides, strict=True)]
    return x[:, i : ends[0] : strides[0], j : ends[1] : strides[1]]


def _wide(dtype):
    """Sums of half precision are taken in single."""
    return jnp.promote_types(dtype, jnp.float32)
