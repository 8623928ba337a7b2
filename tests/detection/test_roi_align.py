import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgrec_jax.detection.roi_align import roi_align, roi_level, roi_pool
from tests.detection import reference
from tests.goldens import seeded


@functools.partial(jax.jit, static_argnames=("stride", "output_size", "sampling_ratio", "aligned"))
def one_level(features, rois, stride=4, **options):
    return roi_align([features], [stride], rois, **options)


def test_a_ramp_gives_the_bin_centres():
    ramp = jnp.arange(8.0)[None, :, None] + jnp.zeros((8, 8, 1))
    out = roi_align([ramp], [1], jnp.array([[1.0, 1.0, 5.0, 5.0]]), output_size=(2, 2))
    assert out[0, :, :, 0].tolist() == [[2.0, 4.0], [2.0, 4.0]]
    aligned = roi_align([ramp], [1], jnp.array([[1.0, 1.0, 5.0, 5.0]]), output_size=(2, 2), aligned=True)
    assert aligned[0, 0, :, 0].tolist() == [1.5, 3.5]


def test_border_rule():
    ones = jnp.ones((4, 4, 1))
    # Samples at x = -1.5, -0.5: the first is more than one cell outside and counts 0, the second takes the border.
    out = roi_align([ones], [1], jnp.array([[-2.0, 0.0, 0.0, 2.0]]), output_size=(1, 1))
    assert out.item() == 0.5
    # Samples at 4.25 and 4.75 lie beyond x = W = 4.
    assert roi_align([ones], [1], jnp.array([[4.0, 0.0, 5.0, 1.0]]), output_size=(1, 1)).item() == 0.0
    # A box without width is taken one cell wide: x = 2.25 and 2.75 on the ramp.
    ramp = jnp.arange(4.0)[None, :, None] + jnp.zeros((4, 4, 1))
    assert roi_align([ramp], [1], jnp.array([[2.0, 1.0, 2.0, 1.0]]), output_size=(1, 1)).item() == 2.5


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.sampled_from([(9, 13), (1, 5)]),
    aligned=st.booleans(),
    output=st.sampled_from([(7, 7, 2), (2, 3, 1), (3, 2, 3)]),
)
def test_equals_the_definition(seed, size, aligned, output):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(*size, 3)).astype(np.float32)
    rois = reference.random_boxes(rng, 6, size=60.0)  # many reach far outside
    options = {"output_size": output[:2], "sampling_ratio": output[2], "aligned": aligned}
    expected = reference.roi_align(features, rois, 4, **options)
    np.testing.assert_allclose(one_level(features, rois, **options), expected, atol=2e-4)


def test_eager_equals_jit_and_vmap_equals_a_loop():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2, 9, 13, 3)).astype(np.float32)
    rois = np.stack([reference.random_boxes(rng, 6), reference.random_boxes(rng, 6)])
    options = {"output_size": (2, 2), "sampling_ratio": 1}
    eager = np.stack([roi_align([f], [4], r, **options) for f, r in zip(features, rois, strict=True)])
    np.testing.assert_allclose(one_level(features[0], rois[0], **options), eager[0], atol=1e-6)
    np.testing.assert_allclose(jax.vmap(functools.partial(one_level, **options))(features, rois), eager, atol=1e-6)


@pytest.mark.parametrize("batched", [False, True])
def test_gradient_is_the_transpose(batched):
    """roi_align is linear in the features: <A f, g> = <f, A' g>, and A' g is the gradient."""
    rng = np.random.default_rng(1)
    shape = (2,) if batched else ()
    fine = rng.normal(size=(*shape, 16, 20, 3)).astype(np.float32)
    coarse = rng.normal(size=(*shape, 8, 10, 3)).astype(np.float32)
    rois = reference.random_boxes(rng, 10, size=60.0).reshape(*shape, -1, 4)

    def crop(features, rois):
        return roi_align(features, (4, 8), rois, output_size=(3, 3))

    crops = jax.jit(jax.vmap(crop) if batched else crop)
    out, transpose = jax.vjp(lambda features: crops(features, rois), [fine, coarse])
    g = rng.normal(size=out.shape).astype(np.float32)
    (gradient,) = transpose(g)
    inner = sum(float(np.vdot(a, b)) for a, b in zip([fine, coarse], gradient, strict=True))
    np.testing.assert_allclose(inner, float(np.vdot(out, g)), rtol=1e-4)
    assert all(np.isfinite(part).all() for part in gradient)


def test_no_gradient_reaches_the_boxes():
    features = jnp.ones((4, 4, 1)) * jnp.arange(4.0)[:, None, None]
    gradient = jax.grad(lambda r: roi_align([features], [1], r).sum())(jnp.array([[0.5, 0.5, 3.0, 3.0]]))
    assert not gradient.any()


def test_bfloat16_features_stay_bfloat16():
    features = jnp.ones((4, 4, 2), jnp.bfloat16)
    roi = jnp.array([[0.5, 0.5, 3.0, 3.0]])
    assert roi_align([features], [1], roi).dtype == jnp.bfloat16
    assert jax.grad(lambda f: roi_align([f], [1], roi).sum())(features).dtype == jnp.bfloat16


def test_sampling_ratio_must_be_fixed():
    with pytest.raises(ValueError, match="sampling_ratio=0"):
        roi_align([jnp.ones((4, 4, 1))], [1], jnp.zeros((1, 4)), sampling_ratio=0)


def test_levels_by_hand():
    sides = jnp.array([1.0, 111.0, 112.0, 223.0, 224.0, 447.0, 448.0, 5000.0, 0.0])
    rois = jnp.stack([jnp.zeros(9), jnp.zeros(9), sides, sides], axis=1)
    assert roi_level(rois, (4, 8, 16, 32)).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 0]


def test_equal_to_torchvisions_pooler():
    torch = pytest.importorskip("torch")
    tv = seeded.import_torchvision()
    rng = np.random.default_rng(2)
    strides = (4, 8, 16, 32)
    maps = [rng.normal(size=(512 // s, 640 // s, 2)).astype(np.float32) for s in strides]
    rois = reference.random_boxes(rng, 60, size=500.0, shortest=2.0, longest=600.0)
    pooler = tv.ops.MultiScaleRoIAlign(list("0123"), 7, 2)
    named = {str(i): torch.tensor(f.transpose(2, 0, 1)[None]) for i, f in enumerate(maps)}
    theirs = pooler(named, [torch.tensor(rois)], [(512, 640)]).numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(jax.jit(roi_align, static_argnums=1)(maps, strides, rois), theirs, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), output=st.sampled_from([(7, 7), (2, 3)]), size=st.sampled_from([(9, 13), (24, 5)]))
def test_roi_pool_equals_the_definition(seed, output, size):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(*size, 3)).astype(np.float32)
    limit = np.array([size[1], size[0]] * 2, np.float32) * 4
    rois = np.clip(reference.random_boxes(rng, 6, size=limit.max()), 0, limit)
    pooled = jax.jit(roi_pool, static_argnums=1, static_argnames="output_size")(features, 4, rois, output_size=output)
    np.testing.assert_array_equal(pooled, reference.roi_pool(features, rois, 4, output).astype(np.float32))


def test_roi_pool_gradient_goes_to_the_maximum():
    features = jnp.arange(16.0).reshape(4, 4, 1)
    roi = jnp.array([[0.0, 0.0, 3.0, 3.0]])
    gradient = jax.jit(jax.grad(lambda f: roi_pool(f, 1, roi, output_size=(2, 2)).sum()))(features)
    assert gradient[:, :, 0].tolist() == [[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]]
