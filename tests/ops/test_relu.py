"""ReLU as a choice, against its definition; narrow maps take another path than wide ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax.ops.relu import WIDE, relu, relu6
from imgrec_jax.ops.settle import settled

SPECIAL = np.array([-np.inf, -1.0, -0.0, 0.0, 1e-30, 3.0, 6.0, 7.0, np.inf, np.nan], np.float32)


@pytest.mark.parametrize("channels", [1, WIDE - 1, WIDE])
@pytest.mark.parametrize(("function", "top"), [(relu, np.inf), (relu6, 6.0)])
def test_it_is_what_its_name_says_and_not_a_number_stays_one(function, top, channels):
    x = np.repeat(SPECIAL[:, None], channels, axis=1)
    np.testing.assert_array_equal(jax.jit(function)(x), np.clip(x, 0, top))


@pytest.mark.parametrize("channels", [WIDE - 1, WIDE])
@pytest.mark.parametrize(("function", "top"), [(relu, np.inf), (relu6, 6.0)])
def test_its_gradient_is_one_between_the_corners_and_nothing_elsewhere(function, top, channels):
    finite = SPECIAL[np.isfinite(SPECIAL)]
    x = np.repeat(finite[:, None], channels, axis=1)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(function(x) * 2)))(x)
    np.testing.assert_array_equal(gradient, 2.0 * ((x > 0) & (x < top)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_types_stay(dtype):
    x = jnp.ones((2, WIDE), dtype)
    assert relu(x).dtype == relu6(x).dtype == settled(x).dtype == dtype
    assert jax.grad(lambda x: relu(x).sum())(x).dtype == dtype


def test_a_batch_may_be_symbolic():
    (batch,) = jax.export.symbolic_shape("b")
    exported = jax.export.export(jax.jit(relu))(jax.ShapeDtypeStruct((batch, WIDE), jnp.float32))
    x = np.linspace(-1, 1, 3 * WIDE, dtype=np.float32).reshape(3, WIDE)
    np.testing.assert_array_equal(exported.call(x), np.maximum(x, 0))


def test_settled_changes_no_number_and_no_gradient():
    np.testing.assert_array_equal(jax.jit(settled)(SPECIAL), SPECIAL)
    np.testing.assert_array_equal(jax.grad(lambda x: (settled(x) * np.arange(3.0)).sum())(jnp.ones(3)), np.arange(3.0))
    assert jax.jvp(settled, (jnp.ones(2),), (jnp.full(2, 5.0),))[1].tolist() == [5.0, 5.0]
