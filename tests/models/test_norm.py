"""Norms against numpy, and what they keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax.models.norm import make_norm
from tests.goldens import seeded

X = seeded.image(4, 5, 6, 8) * 3 + 1


def apply(norm, x, train, **kwargs):
    variables = seeded.variables(norm, x, train=False)
    y, state = norm.apply(variables, x, train=train, mutable=["batch_stats"], **kwargs)
    flat = {**variables.get("params", {}), **variables.get("batch_stats", {})}
    return np.asarray(y), state, flat


@pytest.mark.parametrize(("name", "epsilon"), [("batch", 1e-5), ("frozen", 1e-5), ("frozen", 0.0)])
def test_running_statistics_are_used_outside_training(name, epsilon):
    y, _, v = apply(make_norm(name, epsilon=epsilon)(), X, train=False)
    expected = (X - v["mean"]) / np.sqrt(v["var"] + epsilon) * v["scale"] + v["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_batch_norm_in_training_and_its_momentum():
    y, state, v = apply(make_norm("batch")(), X, train=True)
    mean, var = X.mean((0, 1, 2)), X.var((0, 1, 2))
    np.testing.assert_allclose(y, (X - mean) / np.sqrt(var + 1e-5) * v["scale"] + v["bias"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state["batch_stats"]["mean"], 0.9 * v["mean"] + 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(state["batch_stats"]["var"], 0.9 * v["var"] + 0.1 * var, rtol=1e-4)


def test_masked_batch_norm_has_the_statistics_of_the_subset():
    mask = np.array([True, False, True, True])
    y, state, _ = apply(make_norm("batch")(), X, train=True, mask=mask[:, None, None, None])
    subset_y, subset_state, _ = apply(make_norm("batch")(), X[mask], train=True)
    np.testing.assert_allclose(y[mask], subset_y, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state, subset_state)


def test_a_batch_of_which_nothing_counts_changes_no_running_statistics():
    nothing = np.zeros((4, 1, 1, 1), bool)
    y, state, v = apply(make_norm("batch")(), X, train=True, mask=nothing)
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(state["batch_stats"]["mean"], v["mean"])
    np.testing.assert_array_equal(state["batch_stats"]["var"], v["var"])


def test_a_device_of_which_nothing_counts_takes_the_statistics_of_the_others():
    norm, synchronised = make_norm("batch")(), make_norm("batch", axis_name="shard")()
    variables, mask = seeded.variables(norm, X, train=False), np.array([True, True, False, False])[:, None, None, None]

    def update(x, mask):
        return synchronised.apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])[1]

    _, whole = norm.apply(variables, X, train=True, mask=mask, mutable=["batch_stats"])
    each = jax.vmap(update, axis_name="shard")(X.reshape(2, 2, 5, 6, 8), mask.reshape(2, 2, 1, 1, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, np.stack([b, b]), rtol=1e-5, atol=1e-7), each, whole)


def test_batch_norm_over_a_mapped_axis_is_that_of_the_whole_batch():
    norm, synchronised = make_norm("batch")(), make_norm("batch", axis_name="shard")()
    variables = seeded.variables(norm, X, train=False)
    whole, _ = norm.apply(variables, X, train=True, mutable=["batch_stats"])
    shard = jax.vmap(lambda x: synchronised.apply(variables, x, train=True, mutable=["batch_stats"])[0], axis_name="shard")
    np.testing.assert_allclose(shard(X.reshape(2, 2, 5, 6, 8)).reshape(X.shape), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("groups", "channels"), [(2, 8), (32, 8), (32, 12)])
def test_group_norm_uses_a_number_of_groups_that_divides_the_channels(groups, channels):
    x = seeded.image(2, 3, 4, channels) * 2 + 1
    y, _, v = apply(make_norm("group", num_groups=groups)(), x, train=True)
    used = {(2, 8): 2, (32, 8): 8, (32, 12): 4}[groups, channels]
    grouped = x.reshape(2, -1, used, channels // used)
    centred = grouped - grouped.mean((1, 3), keepdims=True)
    expected = (centred / np.sqrt(centred.var((1, 3), keepdims=True) + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(y, expected * v["group"]["scale"] + v["group"]["bias"], rtol=1e-4, atol=1e-4)


def test_no_norm_changes_nothing_and_bfloat16_stays():
    y, _, variables = apply(make_norm("none")(), X, train=True)
    np.testing.assert_array_equal(y, X)
    assert not variables
    for name in ("batch", "frozen", "group"):
        norm = make_norm(name)(dtype=jnp.bfloat16)
        assert norm.apply(seeded.variables(norm, X, train=False), X, train=False).dtype == jnp.bfloat16


def test_frozen_norm_gives_its_input_a_gradient_and_its_statistics_none():
    norm = make_norm("frozen")()
    variables = seeded.variables(norm, X, train=True)
    gradients, input_gradient = jax.grad(lambda v, x: norm.apply(v, x, train=True).sum(), argnums=(0, 1))(variables, X)
    assert all(np.abs(g).max() == 0 for g in jax.tree.leaves(gradients))
    v = variables["batch_stats"]
    np.testing.assert_allclose(input_gradient[0, 0, 0], v["scale"] / np.sqrt(v["var"] + 1e-5), rtol=1e-5)


def test_unknown_norm_is_named():
    with pytest.raises(ValueError, match="'layer' is unknown.*batch"):
        make_norm("layer")
