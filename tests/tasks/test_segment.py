"""The segmentation task: contract, void pixels, auxiliary head, valid networks, windows, and metrics in any batch size."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imgrec_jax import metrics
from imgrec_jax.models.unet import UNet
from imgrec_jax.segmentation.losses import segmentation_loss
from imgrec_jax.step import eval_key, eval_variables, init_state, make_eval_step, make_train_step, train_key
from imgrec_jax.tasks import segment

CLASSES = 3


class Pointwise(nn.Module):
    """Logits of each pixel from its own colour, with an auxiliary head on request."""

    aux: bool = False

    @nn.compact
    def __call__(self, x, *, train=False):
        outputs = {"logits": nn.Conv(CLASSES, (1, 1), name="head")(x)}
        if self.aux:
            outputs["aux_logits"] = nn.Conv(CLASSES, (1, 1), name="aux_head")(x)
        return outputs


class Valid(nn.Module):
    """As narrow at the border as a U-Net of depth 1 with padding="valid" (8 pixels on each side), in one convolution."""

    padding: str = "valid"
    depth: int = 1

    @nn.compact
    def __call__(self, x, *, train=False):
        return {"logits": nn.Conv(CLASSES, (17, 17), padding="VALID", name="head")(x)}


def make_task(model, **options):
    loss_fn = options.pop("loss_fn", segmentation_loss)
    return segment.make_task(model=model, loss_fn=loss_fn, num_classes=CLASSES, mean=(0.5,), std=(0.25,), **options)


def make_batch(size=2, height=12, width=16, seed=0):
    """Class 1 where the first channel is bright, class 2 where the second is, else class 0; a tenth is void."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size, height, width, 3)).astype(np.uint8)
    segmentation = np.where(image[..., 0] > 170, 1, np.where(image[..., 1] > 170, 2, 0)).astype(np.int32)
    return {
        "image": image,
        "segmentation": segmentation,
        "pixel_valid": rng.random(segmentation.shape) < 0.9,
        "example_valid": np.ones(size, bool),
        "index": np.arange(size, dtype=np.int32),
    }


def initial(task, batch):
    spec = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in batch.items()}
    return jax.jit(lambda key: task.init(key, spec))(jax.random.PRNGKey(0))


def test_contract():
    task, batch = make_task(Pointwise()), make_batch()
    variables = initial(task, batch)
    value, aux = jax.jit(task.loss, static_argnums=3)(variables, batch, jax.random.PRNGKey(1), True)
    assert value.shape == () and value.dtype == jnp.float32
    values = metrics.compute(jax.device_get(aux.metrics))
    assert values["loss"] == pytest.approx(float(value), rel=1e-6) == values["loss_cross_entropy"]
    predictions = jax.jit(task.predict)(variables, batch)
    assert predictions["segmentation"].shape == (2, 12, 16) and predictions["segmentation"].dtype == jnp.int32
    np.testing.assert_allclose(predictions["probs"].sum(-1), 1, atol=1e-5)


def test_training_learns_and_evaluates_to_the_same_loss():
    loss_fn = partial(segmentation_loss, cross_entropy=1.0, dice=1.0)
    task, batch = make_task(Pointwise(), loss_fn=loss_fn), make_batch()
    tx = optax.adam(0.3)
    state = init_state(initial(task, batch), tx, with_ema=False)
    step = jax.jit(partial(make_train_step(task, tx, schedule=lambda step: 0.3), train_key(0)))
    losses = []
    for _ in range(60):
        state, sums = step(state, batch)
        losses.append(metrics.compute(jax.device_get(sums))["loss"])
    assert losses[-1] < 0.3 * losses[0]
    values = metrics.compute(jax.device_get(jax.jit(make_eval_step(task))(eval_key(0), eval_variables(state), batch)))
    assert values["pixel_accuracy"] > 0.9 and values["loss"] == pytest.approx(losses[-1], rel=0.1)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float16, jnp.int32])
def test_parts_of_a_batch_are_weighed_by_whatever_a_task_counts_in(dtype):
    task, batch = make_task(Pointwise()), make_batch()
    tx = optax.sgd(0.1)

    def counted(*args):
        value, aux = task.loss(*args)
        return value, aux._replace(count=aux.count.astype(dtype))

    with jax.enable_x64(dtype == jnp.float64):
        state = init_state(initial(task, batch), tx, with_ema=False)
        params = [
            jax.jit(make_train_step(made, tx, schedule=lambda step: 0.1, accumulate=2))(train_key(0), state, batch)[0].params
            for made in (task, task._replace(loss=counted))
        ]
        jax.tree.map(np.testing.assert_array_equal, *params)


def test_void_and_padding_change_nothing():
    task, batch = make_task(Pointwise()), make_batch()
    variables = initial(task, batch)
    garbage = {**batch, "segmentation": np.where(batch["pixel_valid"], batch["segmentation"], 99)}
    padded = {name: np.concatenate([value, value[:1]]) for name, value in garbage.items()}
    padded["example_valid"] = np.array([True, True, False])
    step = jax.jit(partial(make_eval_step(task), eval_key(0)))
    expected, *others = (metrics.compute(jax.device_get(step(variables, b))) for b in (batch, garbage, padded))
    assert expected["confusion"] == others[0]["confusion"] == others[1]["confusion"]
    for other in others:
        assert other["loss"] == pytest.approx(expected["loss"], rel=1e-6)


def test_batch_size_1_and_7_and_a_padded_last_batch():
    task, everything = make_task(Pointwise(), loss_fn=partial(segmentation_loss, dice=1.0)), make_batch(10)
    everything["instances"] = np.where(everything["segmentation"] > 0, 1, 0).astype(np.int32)
    variables = initial(task, everything)
    step = jax.jit(partial(make_eval_step(task), eval_key(0)))
    results = []
    for size in (1, 7):
        merged = None
        for start in range(0, 10, size):
            rows = np.arange(start, start + size) % 10
            batch = {name: value[rows] for name, value in everything.items()}
            batch["example_valid"] = np.arange(start, start + size) < 10
            merged = metrics.merge(merged, jax.device_get(step(variables, batch)))
        results.append(metrics.compute(merged))
    one, seven = results
    losses = {name for name in one if name.startswith("loss")}
    assert {name: one[name] for name in one if name not in losses} == {n: seven[n] for n in seven if n not in losses}
    assert {name: one[name] for name in losses} == pytest.approx({name: seven[name] for name in losses}, rel=1e-5)
    assert one["examples_count"] == 10 and {"loss_dice", "mean_iou", "object_f1", "pixel_accuracy"} <= set(one)


def test_auxiliary_head_is_trained_with_its_weight():
    task, batch = make_task(Pointwise(aux=True), aux_weight=0.5), make_batch()
    variables = initial(task, batch)
    loss = jax.jit(jax.value_and_grad(lambda v: task.loss(v, batch, jax.random.PRNGKey(0), True), has_aux=True))
    (value, aux), grads = loss(variables)
    values = metrics.compute(jax.device_get(aux.metrics))
    assert float(value) == pytest.approx(values["loss_cross_entropy"] + 0.5 * values["loss_aux_cross_entropy"])
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads["params"]["aux_head"]))


def test_a_valid_network_trains_on_its_centre_and_predicts_everywhere():
    model = Valid()
    task, batch = make_task(model), make_batch(1, 24, 28)
    variables = initial(task, batch)
    logits = jax.jit(model.apply)(variables, (batch["image"] / 255.0 - 0.5) / 0.25)["logits"]
    assert logits.shape == (1, 8, 12, CLASSES)
    inner = (slice(None), slice(8, 16), slice(8, 20))
    expected = jax.jit(segmentation_loss)(logits, batch["segmentation"][inner], batch["pixel_valid"][inner]).value()
    value, _ = jax.jit(task.loss, static_argnums=3)(variables, batch, jax.random.PRNGKey(0), True)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    probs = jax.jit(task.predict)(variables, batch)["probs"]
    assert probs.shape == (1, 24, 28, CLASSES)
    np.testing.assert_allclose(probs[inner], jax.nn.softmax(logits), atol=1e-5)


@pytest.mark.parametrize(("depth", "size"), [(1, (23, 30)), (2, (17, 64)), (4, (100, 130))])
def test_a_valid_unet_predicts_images_of_any_size(depth, size):
    task = make_task(UNet(CLASSES, depth=depth, width=2, padding="valid"))
    spec = {"image": jax.ShapeDtypeStruct((1, 188, 188, 3), jnp.uint8)}  # a size that every depth up to 4 accepts
    variables = jax.eval_shape(lambda key: task.init(key, spec), jax.random.PRNGKey(0))
    image = {"image": jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)}
    assert jax.eval_shape(task.predict, variables, image)["probs"].shape == (1, *size, CLASSES)


def test_windows_of_a_valid_network_equal_its_whole_prediction():
    """Windows bring their true surroundings, so where they meet does not matter."""
    model = Valid()
    batch = make_batch(1, 24, 32)
    variables = initial(make_task(model), batch)
    tasks = make_task(model), make_task(model, window=(12, 16), overlap=0)
    whole, windowed = (jax.jit(task.predict)(variables, batch)["probs"] for task in tasks)
    np.testing.assert_allclose(windowed, whole, atol=1e-5)


def test_windows_and_test_time_versions_reach_the_metrics():
    batch = make_batch(1, 16, 24)
    plain = make_task(Pointwise())
    variables = initial(plain, batch)
    rich = make_task(Pointwise(), window=(8, 8), overlap=0.5, test_time="d4")
    probs = [jax.jit(task.predict)(variables, batch)["probs"] for task in (plain, rich)]
    np.testing.assert_allclose(*probs, atol=1e-5)  # a pointwise network cannot tell the difference
    with pytest.raises(ValueError, match="test_time='spin'"):
        make_task(Pointwise(), test_time="spin")
