"""Segmentation losses against torch, hand-computed numbers, and themselves on split batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax.segmentation.losses import DiceTerm, focal, segmentation_loss

CLASSES = 4


def random_batch(seed=0, size=3):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(size, 5, 6, CLASSES)).astype(np.float32)
    label = rng.integers(0, CLASSES, (size, 5, 6)).astype(np.int32)
    valid = rng.random((size, 5, 6)) < 0.8
    weight = rng.uniform(0.5, 3, (size, 5, 6)).astype(np.float32)
    return logits, label, valid, weight


def test_cross_entropy_with_class_weights_equals_torch():
    torch = pytest.importorskip("torch")
    logits, label, valid, _ = random_batch()
    class_weights = (0.5, 1.0, 2.0, 4.0)
    label_torch = torch.tensor(np.where(valid, label, 255)).long()
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits).permute(0, 3, 1, 2), label_torch, torch.tensor(class_weights), ignore_index=255
    )
    sums = segmentation_loss(logits, np.where(valid, label, 255), valid, class_weights=class_weights)
    assert float(sums.value()) == pytest.approx(float(expected), rel=1e-6)


def test_pixel_weights_weigh_pixels():
    logits, label, valid, weight = random_batch()
    log_probs = jax.nn.log_softmax(logits.astype(np.float64))
    values = -np.take_along_axis(np.asarray(log_probs), label[..., None], -1)[..., 0]
    expected = (values * weight * valid).sum() / (weight * valid).sum()
    assert float(segmentation_loss(logits, label, valid, weight).value()) == pytest.approx(expected, rel=1e-5)


def test_dice_of_a_case_by_hand():
    # Two pixels, certain and right: overlap 1 and mass 2 for class 1; class 2 is absent and unpredicted: (0 + 1) / (0 + 1).
    logits = np.array([[[[0.0, 99.0, 0.0], [99.0, 0.0, 0.0]]]], np.float32)
    label, valid = np.array([[[1, 0]]]), np.ones((1, 1, 2), bool)
    assert float(DiceTerm.of(logits, label, valid).value()) == pytest.approx(0.0, abs=1e-6)
    # The foreground pixel is missed: class 1 has overlap 0, mass 1 and Dice (0 + 1) / (1 + 1); the loss is the mean of 1/2, 0.
    missed = np.array([[[[99.0, 0.0, 0.0], [99.0, 0.0, 0.0]]]], np.float32)
    assert float(DiceTerm.of(missed, label, valid).value()) == pytest.approx(0.25, abs=1e-6)


def test_focal_without_focus_is_cross_entropy():
    logits, label, valid, _ = random_batch()
    plain = segmentation_loss(logits, label, valid).value()
    unfocused = segmentation_loss(logits, label, valid, cross_entropy=0, focal_loss=1, gamma=0.0).value()
    assert float(unfocused) == pytest.approx(float(plain))


def test_focal_by_hand():
    # p = 0.9 and p = 0.25: (1 - p)^2 times -log p.
    logits = np.log(np.array([[0.9, 0.1], [0.75, 0.25]], np.float32))
    expected = [0.01 * -np.log(0.9), 0.5625 * -np.log(0.25)]
    np.testing.assert_allclose(focal(logits, np.array([0, 1])), expected, rtol=1e-5)


def test_a_sum_of_terms_and_its_parts():
    logits, label, valid, weight = random_batch()
    sums = segmentation_loss(logits, label, valid, weight, cross_entropy=1.0, focal_loss=0.5, dice=2.0)
    values = sums.compute()
    assert values[""] == pytest.approx(values["cross_entropy"] + 0.5 * values["focal"] + 2 * values["dice"])
    assert values[""] == pytest.approx(float(sums.value()), rel=1e-6)


def test_aux_is_added_with_its_weight():
    logits, label, valid, _ = random_batch()
    main, aux = segmentation_loss(logits, label, valid), segmentation_loss(2 * logits, label, valid)
    both = main.with_aux(aux, 0.5)
    assert float(both.value()) == pytest.approx(float(main.value() + 0.5 * aux.value()))
    assert set(both.compute()) == {"", "cross_entropy", "aux_cross_entropy"}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_void_pixels_have_no_value_and_no_gradient(bad):
    logits, label, valid, weight = random_batch()
    loss = jax.jit(lambda x, y: segmentation_loss(x, y, valid, weight, cross_entropy=1, dice=1).value())
    changed = np.where(valid[..., None], logits, bad).astype(np.float32)
    assert loss(changed, np.where(valid, label, 255)) == loss(logits, label)
    grads = jax.grad(loss)(np.where(valid[..., None], logits, 7.0), label)
    assert np.all(np.asarray(grads)[~valid] == 0) and np.all(np.asarray(grads)[valid].any(-1))


def test_merged_sums_are_the_loss_of_the_whole():
    batch = random_batch(size=7)
    options = {"cross_entropy": 1.0, "focal_loss": 1.0, "dice": 1.0, "class_weights": (1, 2, 3, 4)}
    sums = jax.jit(lambda *batch: segmentation_loss(*batch, **options))
    whole = sums(*batch)
    parts = [jax.device_get(sums(*(x[i : i + 1] for x in batch))) for i in range(7)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert merged.compute() == pytest.approx(whole.compute(), rel=1e-5)


def test_devices_values_add_up_and_so_do_their_gradients():
    logits, label, valid, weight = random_batch(size=4)
    options = {"cross_entropy": 1.0, "dice": 1.0}
    of_all = jax.value_and_grad(lambda x: segmentation_loss(x, label, valid, weight, **options).value())
    whole, whole_grad = jax.jit(of_all)(logits)

    def local(x, label, valid, weight):
        return jax.value_and_grad(lambda x: segmentation_loss(x, label, valid, weight, **options).value("d"))(x)

    split = [jnp.asarray(x).reshape(2, 2, *x.shape[1:]) for x in (logits, label, valid, weight)]
    values, grads = jax.jit(jax.vmap(local, axis_name="d"))(*split)
    assert float(values.sum()) == pytest.approx(float(whole), rel=1e-6)
    np.testing.assert_allclose(grads.reshape(logits.shape), whole_grad, atol=1e-6)


def test_errors_name_the_key():
    logits, label, valid, _ = random_batch()
    with pytest.raises(ValueError, match="class_weights has 2"):
        segmentation_loss(logits, label, valid, class_weights=(1.0, 2.0))
    with pytest.raises(ValueError, match="give one a weight"):
        segmentation_loss(logits, label, valid, cross_entropy=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_gradients_are_finite_where_the_answer_is_certain(gamma):
    """And those of void pixels are 0, whatever was answered there."""
    logits = jnp.array([[[[40.0, 0.0], [0.0, 1.0], [jnp.inf, 0.0]]]])
    label, valid = jnp.zeros((1, 1, 3), int), jnp.array([[[True, True, False]]])
    value, gradient = jax.value_and_grad(
        lambda x: segmentation_loss(x, label, valid, cross_entropy=0.0, focal_loss=1.0, gamma=gamma).value()
    )(logits)
    assert np.isfinite(value) and np.isfinite(gradient).all() and not np.any(gradient[0, 0, 2])
    if gamma == 0:
        assert value == pytest.approx(float(jnp.log1p(jnp.e) / 2), rel=1e-6)  # the cross-entropy of the second pixel
