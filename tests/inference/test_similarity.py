"""Features, cosine similarity and its ROC."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from sklearn import metrics as reference

import imgrec_jax
from imgrec_jax.inference import inputs, similarity


def test_roc_is_scikit_learns():
    rng = np.random.default_rng(0)
    same = rng.random(200) < 0.4
    values = np.round(rng.normal(size=200) + same, 1)  # with ties
    curve = similarity.roc(values, same)
    assert curve.area == pytest.approx(reference.roc_auc_score(same, values), abs=1e-12)
    false, true, threshold = reference.roc_curve(same, values, drop_intermediate=False)
    np.testing.assert_allclose(curve.false_accept, false, atol=1e-12)
    np.testing.assert_allclose(curve.true_accept, true, atol=1e-12)
    np.testing.assert_array_equal(curve.threshold, threshold)
    limit, accepted = curve.at(0.1)
    assert (values[~same] >= limit).mean() <= 0.1 and (values[same] >= limit).mean() == pytest.approx(accepted)
    with pytest.raises(ValueError, match="of one kind"):
        similarity.roc(values, np.ones(200, bool))


def test_pairs_files_are_checked(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("a,b,same\nx.png,y.png,1\nx.png,z.png,0\n\n")
    assert similarity.read_pairs(path) == [("x.png", "y.png", 1), ("x.png", "z.png", 0)]
    for text, message in {"a.png\n": "line 1", "a,b,1\nc,d,maybe\n": "line 2", "a,b\nc,d,1\n": "some lines say"}.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            similarity.read_pairs(path)
    path.write_text("x.png,y.png,1\n", encoding="utf-16")
    assert similarity.read_pairs(path) == [("x.png", "y.png", 1)]
    path.write_bytes(b"caf\xe9.png,y.png\n")
    with pytest.raises(ValueError, match="--pairs=.* is no UTF-8 text"):
        similarity.read_pairs(path)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_an_embedding_does_not_depend_on_what_an_image_is_padded_with(stride):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(5, (stride, stride), strides=stride, name="map")(x)

    rng = np.random.default_rng(0)
    image = rng.random((1, 8, 12, 3), np.float32)
    wide = rng.random((1, 16, 16, 3), np.float32)
    wide[:, :8, :12] = image
    variables = Net().init(jax.random.PRNGKey(0), image)
    run = SimpleNamespace(task=SimpleNamespace(predict=lambda variables, batch: Net().apply(variables, batch["image"])))
    embed = similarity._embedding(run, {"map": (1, 8, 8, 5)})
    size = np.array([[8, 12]], np.int32)
    alone, padded = (embed(variables, {"image": one, "image_size": size}) for one in (image, wide))
    np.testing.assert_allclose(alone, padded, atol=1e-6)
    np.testing.assert_allclose(alone, np.asarray(Net().apply(variables, image)).mean((1, 2)), atol=1e-6)


def test_a_path_of_several_images_is_no_half_of_a_pair(tmp_path):
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name)
    one = similarity._one("x", inputs.of_path(str(tmp_path / "a.png")))
    assert one.name == "x" and one.read().shape == (4, 4, 3)
    with pytest.raises(ValueError, match="holds several images"):
        similarity._one(str(tmp_path), inputs.of_path(str(tmp_path))).read()


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_embeddings_and_named_maps_of_every_task(finished, task):
    run = imgrec_jax.load(finished[task])
    shape = (28, 28) if task == "classification" else (64, 64, 3)
    images = list(np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8))
    found = similarity.features(run, images)
    assert list(found) == ["image 0", "image 1", "image 2"] and len({v.shape for v in found.values()}) == 1
    alone = similarity.features(run, images[1])["image 0"]
    np.testing.assert_allclose(alone, found["image 1"], atol=1e-5)
    assert similarity.cosine(alone, found["image 1"]) == pytest.approx(1)
    names = similarity.feature_names(run)
    some = similarity.features(run, images[:1], names[1])["image 0"]
    assert some.dtype == np.float32 and some.size
    with pytest.raises(ValueError, match="--features=nose is no layer of the model; it has .'embedding'"):
        similarity.features(run, images, "nose")


def test_the_embedding_is_what_the_last_layer_takes(finished):
    run = imgrec_jax.load(finished["classification"])
    image = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    embedding = similarity.features(run, image)["image 0"]
    weights = run.variables["params"]["logits"]
    logits = embedding @ weights["kernel"] + weights["bias"]
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(), run.predict(image)[0].probs, atol=1e-5)
