"""A program of primitives computes what the function does that it was made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import imgrec_jax
from imgrec_jax.inference import artefact, primitives


def names(program):
    found = set()
    for equation in program.jaxpr.eqns:
        found.add(equation.primitive.name)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                if hasattr(inner, "jaxpr"):
                    found |= names(inner)
    return found


SLOW = [pytest.param(task, marks=pytest.mark.slow) for task in ("detection", "segmentation")]


@pytest.mark.parametrize("task", ["classification", *SLOW])
def test_a_run_is_the_same_without_its_calls(finished, task):
    run = imgrec_jax.load(finished[task])
    images = np.random.default_rng(0).integers(0, 256, (2, *run.image_shape), np.uint8)
    function = artefact.answers_of(run, run.image_shape)
    program = primitives.flat(function, jax.ShapeDtypeStruct(images.shape, jnp.uint8))
    assert not names(program) & {*primitives.CALLS, *primitives.SAME, "platform_index", "cond"}
    found = jax.jit(lambda images: primitives.called(program, images))(images)
    for value, wanted in zip(found, jax.tree.leaves(jax.jit(function)(images)), strict=True):
        np.testing.assert_allclose(value, wanted, atol=1e-4)


def test_loops_of_several_examples_end_each_at_its_own_time():
    def halvings(x):  # how often until it is at most 1; the truth value beside it becomes true
        return jax.lax.while_loop(lambda s: s[0] > 1, lambda s: (s[0] / 2, s[1] + 1, ~s[2] | True), (x, 0, x < 0))

    x = jnp.array([0.5, 8.0, 3.0])
    program = primitives.flat(jax.vmap(halvings), x)
    values, counts, any_step = primitives.called(program, x)
    np.testing.assert_array_equal(counts, [0, 3, 2])
    np.testing.assert_array_equal(values, [0.5, 1.0, 0.75])
    np.testing.assert_array_equal(any_step, [False, True, True])


def test_padding_of_a_batch_of_any_size():
    def padded(x):
        return jax.lax.pad(x, 7.0, ((0, 0, 0), (2, -1, 0), (0, 1, 0)))

    (size,) = jax.export.symbolic_shape("batch")
    program = primitives.flat(padded, jax.ShapeDtypeStruct((size, 3, 2), jnp.float32))
    assert "pad" not in names(program)
    x = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    exported = jax.export.export(jax.jit(lambda x: primitives.called(program, x)))(
        jax.ShapeDtypeStruct((size, 3, 2), jnp.float32)
    )
    np.testing.assert_array_equal(exported.call(x)[0], padded(x))


def test_max_pooling_one_axis_after_the_other():
    def pooled(x):
        return nn.max_pool(x, (3, 2), (2, 2), ((1, 1), (0, 1)))

    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3)).astype(np.float32)
    program = primitives.flat(pooled, x)
    assert all(len(e.invars[0].aval.shape) == 3 for e in program.jaxpr.eqns if e.primitive.name == "reduce_window_max")
    np.testing.assert_array_equal(primitives.called(program, x)[0], pooled(x))
