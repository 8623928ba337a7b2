import time

import numpy as np
import pytest
from ml_collections import ConfigDict

from imgrec_jax.assemble import preprocess
from imgrec_jax.assemble.lookup import ConfigError
from imgrec_jax.config import base
from imgrec_jax.data import batch as batch_lib
from imgrec_jax.data.ops import mixing, photometric
from imgrec_jax.data.pipeline import Pipeline, ahead, rng_for, sequential_order, shuffled_order
from imgrec_jax.data.source import ArraySource, SourceInfo

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 6, 6, 1), dtype=np.uint8)
SOURCE = ArraySource({"image": IMAGES, "label": np.arange(50)}, SourceInfo("numbers"))


def noisy(example, rng):
    return {**example, "image": example["image"] + rng.normal(size=example["image"].shape).astype(np.float32)}


def pipeline(**kwargs):
    options = {"source": SOURCE, "order": shuffled_order(50, 8, 3, "drop"), "seed": 3} | kwargs
    return Pipeline(**options)


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_an_epoch_holds_every_example_once_and_epochs_differ():
    p = pipeline(order=shuffled_order(50, 8, 0, "pad"))
    assert p.steps_per_epoch == 7
    epochs = []
    for epoch in range(2):
        rows = [p.batch(epoch * 7 + i) for i in range(7)]
        seen = np.concatenate([b["index"][b["example_valid"]] for b in rows])
        assert sorted(seen) == list(range(50))
        assert rows[-1]["example_valid"].sum() == 2
        epochs.append(seen.tolist())
    assert epochs[0] != epochs[1]


def test_drop_leaves_whole_batches_of_distinct_examples():
    p = pipeline()
    assert p.steps_per_epoch == 6
    seen = np.concatenate([p.batch(i)["index"] for i in range(6)])
    assert len(set(seen)) == 48


@pytest.mark.parametrize("threads", [0, 3])
def test_a_batch_is_a_function_of_seed_and_step_alone(threads):
    p = pipeline(ops=[noisy], threads=threads)
    whole = list(p.batches(0, 10))
    resumed = list(pipeline(ops=[noisy], threads=2).batches(4, 10))
    assert all(equal(a, b) for a, b in zip(whole[4:], resumed, strict=True))
    assert not equal(whole[0], pipeline(ops=[noisy], seed=4).batch(0))


def test_an_example_is_augmented_differently_each_time_it_comes():
    one = ArraySource({"image": IMAGES[:1], "label": np.zeros(1)}, SourceInfo("one"))
    p = Pipeline(one, shuffled_order(1, 1, 0, "pad"), seed=0, ops=[noisy])
    assert not np.array_equal(p.batch(0)["image"], p.batch(1)["image"])


def test_processes_share_a_batch_without_overlap_and_augment_alike():
    whole = pipeline(ops=[noisy]).batch(5)
    parts = [pipeline(ops=[noisy], process_index=i, process_count=4).batch(5) for i in range(4)]
    for key in whole:
        np.testing.assert_array_equal(whole[key], np.concatenate([part[key] for part in parts]))


def test_evaluation_sees_each_example_once_in_order():
    p = Pipeline(SOURCE, sequential_order(50, 16), seed=0)
    batches = list(p.batches(0, p.steps_per_epoch))
    assert np.concatenate([b["index"][b["example_valid"]] for b in batches]).tolist() == list(range(50))
    assert {b["image"].shape for b in batches} == {(16, 6, 6, 1)}


def test_bad_remainder_and_too_few_examples_are_named():
    with pytest.raises(ValueError, match="data.remainder is 'wrap'"):
        shuffled_order(50, 8, 0, "wrap")
    with pytest.raises(ValueError, match="50 training examples do not fill one batch of 64"):
        shuffled_order(50, 64, 0, "drop")


def test_images_of_different_sizes_are_named():
    with pytest.raises(ValueError, match="differ in the shape of 'image'"):
        batch_lib.stack([{"image": np.zeros((2, 3, 1))}, {"image": np.zeros((3, 3, 1))}])


def test_a_batch_that_does_not_divide_names_the_nearest():
    assert batch_lib.examples_per_process(64, 2, 8) == 32
    with pytest.raises(ValueError, match=r"batch size 30 does not divide among 8 devices; the nearest are \[24, 32\]"):
        batch_lib.examples_per_process(30, 1, 8)


def labelled_batch(valid=True, dtype=np.uint8):
    image = np.stack([np.full((8, 8, 1), v, np.uint8) for v in (0, 100, 200, 40)])
    image = image if dtype == np.uint8 else (image / 255).astype(dtype)
    example_valid = np.array([True, True, True, valid])
    return {"image": image, "label": np.arange(4), "example_valid": example_valid}


def mixed_by(*mixes, batch, seed=1):
    partners = {name: np.roll(array, -1, 0) for name, array in batch.items()}
    return mixing.mix_batch(mixes)(batch, partners, [rng_for(seed, "batch", row) for row in range(4)])


@pytest.mark.parametrize("mix", [mixing.mixup(alpha=1.0), mixing.cutmix(alpha=1.0)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_the_weight_of_a_mix_is_the_share_of_the_image(mix, dtype):
    batch = labelled_batch(dtype=dtype)
    mixed = mixed_by(mix, batch=batch)
    assert mixed["image"].dtype == dtype
    value = batch["image"][:, 0, 0, 0].astype(float)
    expected = mixed["mix"] * value + (1 - mixed["mix"]) * value[mixed["label_b"]]
    np.testing.assert_allclose(mixed["image"].mean((1, 2, 3)), expected, atol=0.51 if dtype == np.uint8 else 1e-6)
    assert (mixed["mix"] < 1).any()


def test_padding_lends_nothing_to_a_mix():
    mixed = mixed_by(mixing.mixup(alpha=1.0), batch=labelled_batch(valid=False))
    lone = mixed["label_b"] == 3
    assert lone.sum() == 1 and np.all(mixed["mix"][lone] == 1.0)
    np.testing.assert_array_equal(mixed["image"][lone], labelled_batch()["image"][lone])


def test_of_two_mixes_each_example_gets_one_whole_and_either_half_of_the_time():
    """A mixed-up image is one value in between; a cut one is one of the two in each pixel, and its weight says how often."""
    batch, cut = labelled_batch(), []
    for seed in range(200):
        mixed = mixed_by(mixing.mixup(alpha=1.0), mixing.cutmix(alpha=1.0), batch=batch, seed=seed)
        for row in range(4):
            own, other = (int(batch["image"][i % 4, 0, 0, 0]) for i in (row, row + 1))
            values, weight = set(np.unique(mixed["image"][row]).tolist()), mixed["mix"][row]
            assert mixed["label_b"][row] == (row + 1) % 4
            assert mixed["image"][row].mean() == pytest.approx(weight * own + (1 - weight) * other, abs=0.51)
            cut.append(values <= {own, other})
            assert cut[-1] or len(values) == 1
    assert 0.43 < np.mean(cut) < 0.57  # four standard deviations of 800 draws


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_what_a_row_is_mixed_with_does_not_depend_on_the_number_of_processes(processes):
    mixes = [mixing.mix_batch([mixing.mixup(alpha=1.0), mixing.cutmix(alpha=1.0)])]
    options = {"order": shuffled_order(50, 8, 3, "pad"), "ops": [photometric.erase(probability=1.0)], "batch_ops": mixes}
    whole = pipeline(**options)
    parts = [pipeline(**options, process_index=index, process_count=processes) for index in range(processes)]
    for step, lent in ((0, 8), (6, 1)):  # two rows of step 6 are valid, so one lends
        batch, shares = whole.batch(step), [part.batch(step) for part in parts]
        for key in batch:
            np.testing.assert_array_equal(batch[key], np.concatenate([share[key] for share in shares]))
        assert 0 < (batch["mix"] < 1).sum() <= lent + (step == 6)
    assert not equal(whole.batch(0), whole.batch(7))


@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_mixes_are_for_labels_of_whole_images(task):
    config = base()
    config.task, config.data.train_ops = task, ConfigDict({"cutmix": {"alpha": 1.0}})
    with pytest.raises(ConfigError, match=rf"train_ops.cutmix is for classification, not for {task}"):
        preprocess.check(config)


def test_erase_fills_a_rectangle_of_the_drawn_area():
    example = {"image": np.full((20, 20, 3), 255, np.uint8)}
    out = photometric.erase(probability=1.0, area=(0.1, 0.1), ratio=1.0)(example, np.random.default_rng(0))["image"]
    assert (out == 0).all(axis=2).sum() == round(np.sqrt(40)) ** 2
    assert example["image"].min() == 255  # the input is left alone


def test_colour_jitter_without_strength_changes_nothing_and_hue_wraps():
    image = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    out = photometric.colour_jitter()({"image": image}, np.random.default_rng(0))["image"]
    np.testing.assert_array_equal(out, image)
    turned = photometric.colour_jitter(hue=0.5)({"image": image}, rng_for(0, "t"))["image"]
    assert turned.shape == image.shape and not np.array_equal(turned, image)
    grey = image[..., :1]
    np.testing.assert_array_equal(
        photometric.colour_jitter(saturation=0.5, hue=0.5)({"image": grey}, rng_for(0, "t"))["image"], grey
    )


def test_channels():
    grey = {"image": np.full((2, 2, 1), 7, np.uint8)}
    assert photometric.to_channels(3)(grey, None)["image"].shape == (2, 2, 3)
    colour = {"image": np.array([[[255, 0, 0]]], np.uint8)}
    assert photometric.to_channels(1)(colour, None)["image"].item() == 76  # 0.299 * 255
    with pytest.raises(ValueError, match="4 channels"):
        photometric.to_channels(3)({"image": np.zeros((2, 2, 4), np.uint8)}, None)


def test_batches_are_made_ahead_in_order_and_no_further_than_twice_the_threads():
    made = []

    def make(step):
        time.sleep(0.01 * (step % 3))  # later ones are ready first
        made.append(step)
        return {"step": np.array(step)}

    batches = ahead(make, range(3, 40), 2)
    assert [int(next(batches)["step"]) for _ in range(5)] == [3, 4, 5, 6, 7]
    time.sleep(0.2)
    assert sorted(made) == list(range(3, 12))  # five taken, four waiting
    batches.close()
    assert len(made) == 9


def test_what_goes_wrong_in_a_thread_is_raised_at_its_batch():
    def make(step):
        if step == 2:
            raise ValueError("no image")
        return {"step": np.array(step)}

    batches = ahead(make, range(5), 3)
    assert [int(next(batches)["step"]) for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="no image"):
        next(batches)
