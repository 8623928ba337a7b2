"""Classifiers by name, with the options that a config may give."""

from collections.abc import Callable

from imgrec_jax.models import convnet, mlp, zoo

CLASSIFIERS: dict[str, Callable] = {
    "linear": mlp.Mlp,
    "mlp": mlp.Mlp,
    "convnet": convnet.ConvNet,
    "pytorch_cnn": convnet.pytorch_cnn,
    "keras_cnn": convnet.keras_cnn,
    "wide_cnn": convnet.wide_cnn,
    **{name: zoo.classifier(name) for name in zoo.ARCHITECTURES},
}
# What factories that take **options build, for the names of those options.
FIELDS: dict[Callable, Callable] = dict.fromkeys((convnet.pytorch_cnn, convnet.keras_cnn, convnet.wide_cnn), convnet.ConvNet)
