"""MNIST digits."""

from ml_collections import ConfigDict

from imgrec_jax.config import base


def get_config(variant: str = "") -> ConfigDict:
    config = base()
    config.data.name = "mnist:3.0.1"
    config.data.mean, config.data.std = (0.1307,), (0.3081,)
    config.data.remainder = "pad"
    config.model = ConfigDict({"name": "seed_a", "activation": "relu", "kernel_init": "torch", "dropout": 0.0, "norm": "none"})
    config.optim.name = "sgd"
    config.optim.options = ConfigDict({"momentum": 0.5, "nesterov": False})
    config.optim.learning_rate = 0.01
    config.train.total_epochs = 10.0
    config.eval.every_epochs = 1.0
    return config
