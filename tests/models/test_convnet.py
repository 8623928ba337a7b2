import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax.models import convnet, layers, mlp
from imgrec_jax.parallel import parameter_count

MNIST = jnp.zeros((2, 28, 28, 1))


def count(model, image=MNIST):
    return parameter_count(jax.eval_shape(model.init, jax.random.PRNGKey(0), image)["params"])


def dense(inputs, outputs):
    return inputs * outputs + outputs


def conv(side, inputs, outputs):
    return side * side * inputs * outputs + outputs


def test_parameter_counts_by_hand():
    assert count(convnet.pytorch_cnn()) == conv(5, 1, 10) + conv(5, 10, 20) + dense(320, 50) + dense(50, 10) == 21_840
    keras_cnn = conv(3, 1, 32) + conv(3, 32, 64) + conv(3, 64, 64) + dense(3 * 3 * 64, 64) + dense(64, 10)
    assert count(convnet.keras_cnn()) == keras_cnn == 93_322
    wide_cnn = conv(3, 3, 64) + conv(3, 64, 128) + dense(16 * 16 * 128, 256) + dense(256, 4)
    assert count(convnet.wide_cnn(num_classes=4), jnp.zeros((1, 64, 64, 3))) == wide_cnn
    assert count(mlp.Mlp()) == dense(784, 10)
    assert count(mlp.Mlp(hidden=(512, 256))) == dense(784, 512) + dense(512, 256) + dense(256, 10)


@pytest.mark.parametrize(
    "model", [convnet.pytorch_cnn(), convnet.ConvNet(((4, 3, 2, 1), (8, 3, 1, 2)), norm="batch", head="gap")]
)
def test_every_parameter_receives_a_gradient(model):
    x = jax.random.normal(jax.random.PRNGKey(1), (4, 28, 28, 1))
    variables = model.init(jax.random.PRNGKey(0), x)

    def loss(params):
        logits, _ = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return -jax.nn.log_softmax(logits)[jnp.arange(4), jnp.arange(4)].mean()

    grads = jax.grad(loss)(variables["params"])
    assert all(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", sorted(layers.MONOTONE))
def test_pooling_before_a_monotone_activation_changes_nothing(name):
    x = jax.random.normal(jax.random.PRNGKey(0), (1, 4, 4, 3))
    act = layers.activation(name)
    pool = lambda y: y.reshape(1, 2, 2, 2, 2, 3).max((2, 4))  # noqa: E731
    np.testing.assert_allclose(act(pool(x)), pool(act(x)), rtol=1e-6)


def test_dropout_acts_in_training_alone():
    model = mlp.Mlp(hidden=(64,), dropout=0.5)
    variables = model.init(jax.random.PRNGKey(0), MNIST)
    x = jnp.ones_like(MNIST)
    rngs = [{"dropout": jax.random.PRNGKey(i)} for i in range(2)]
    trained = [model.apply(variables, x, train=True, rngs=r) for r in rngs]
    assert not np.allclose(*trained)
    np.testing.assert_array_equal(model.apply(variables, x), model.apply(variables, x))


def test_torch_initialiser_keeps_its_bounds():
    kernel = layers.initializer("torch")(jax.random.PRNGKey(0), (5, 5, 4, 8))
    bound = 1 / np.sqrt(5 * 5 * 4)
    assert np.abs(kernel).max() <= bound and np.abs(kernel).max() > 0.95 * bound


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match="unknown activation 'rlu'; choose one of .*'relu'"):
        layers.activation("rlu")
    with pytest.raises(ValueError, match="unknown initialiser 'xavier'; choose one of .*'glorot_uniform'"):
        layers.initializer("xavier")
