"""Classification: names to models, losses and sources."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from imgrec_jax import losses, metrics
from imgrec_jax.build.lookup import ConfigError, Parts, check_options, choice, make_model, open_splits, options_of
from imgrec_jax.data import prepare
from imgrec_jax.data.batch import stack
from imgrec_jax.data.pipeline import sequential_order, shuffled_order
from imgrec_jax.models import convnet, mlp
from imgrec_jax.tasks import classify

MODELS: dict[str, Callable] = {
    "linear": mlp.Mlp,
    "mlp": mlp.Mlp,
    "convnet": convnet.ConvNet,
    "seed_a": convnet.seed_a,
    "seed_b": convnet.seed_b,
    "seed_c": convnet.seed_c,
}
# What factories that take **options build, for the names of those options.
_FIELDS = {convnet.seed_a: convnet.ConvNet, convnet.seed_b: convnet.ConvNet, convnet.seed_c: convnet.ConvNet}

LOSSES: dict[str, Callable] = {
    "softmax_cross_entropy": losses.softmax_cross_entropy,
    "negative_log_likelihood": losses.negative_log_likelihood,
    "binary_cross_entropy": losses.binary_cross_entropy,
    "mean_squared_error": losses.mean_squared_error,
}


def check(config: ConfigDict) -> None:
    model = make_model(config, MODELS, fields=_FIELDS)
    try:  # names inside (activation, initialiser, norm) are looked up when a model is traced; a small image shows them all
        jax.eval_shape(model.init, jax.random.PRNGKey(0), jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model {config.model.name}: {error}") from error
    make_loss(config)


def parts(config: ConfigDict, eval_batch_size: Callable[[dict], int], axis_name: str | None) -> Parts:
    data = config.data
    places = {"data_dir": data.data_dir, "manual_dir": data.manual_dir, "in_memory": data.in_memory}
    train, evals = open_splits(config, partial(prepare.open_classification, data.name, **places))
    model, names = make_model(config, MODELS, axis_name, _FIELDS), train.info.class_names
    if names and len(names) != model.classes:
        raise ConfigError(f"model.classes={model.classes}, but {train.info.name} has {len(names)} classes")
    task = classify.make_task(
        model=model,
        loss_fn=make_loss(config),
        classes=model.classes,
        mean=data.mean,
        std=data.std,
        top_k=config.eval.top_k,
        outputs_are_probabilities=config.loss.name == "mean_squared_error",
        axis_name=axis_name,
    )
    eval_batch = eval_batch_size(evals)
    return Parts(
        task=task,
        train=train,
        evals=evals,
        train_order=lambda source: shuffled_order(len(source), data.batch_size, config.seed, data.remainder),
        eval_order=lambda source: sequential_order(len(source), eval_batch),
        train_ops=[],
        eval_ops=[],
        train_collate=stack,
        eval_collate=stack,
        summarise=dict.fromkeys(evals, metrics.compute),
    )


def make_loss(config: ConfigDict) -> Callable:
    options = options_of(config.loss)
    loss = LOSSES[choice("loss.name", options.pop("name"), LOSSES)]
    check_options("loss", options, loss, skip=2)
    return partial(loss, **options)
