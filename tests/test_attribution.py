"""Explanations against what can be computed by hand, and whether they notice a destroyed model."""

import dataclasses
import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from ml_collections import ConfigDict
from PIL import Image

import imgrec_jax
from imgrec_jax import explain as command
from imgrec_jax.attribution import explain, merit, methods, targets
from imgrec_jax.data.ops import canvases
from imgrec_jax.inference import layers, similarity
from imgrec_jax.inference.inputs import Picture
from imgrec_jax.inference.predictor import Predictor
from imgrec_jax.models import zoo
from imgrec_jax.models.convnext import ConvNeXt, PooledNorm
from imgrec_jax.models.detectors import make_small_detector
from imgrec_jax.models.transformer import ClassToken, Swin, ViT
from imgrec_jax.tasks import classify
from tests.goldens import make_captum

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(8, 8, 3)).astype(np.float32)
IMAGE = RNG.random((8, 8, 3), np.float32)


def linear(images):
    return jnp.sum(images * WEIGHTS, axis=(1, 2, 3))


def test_gradients_of_a_linear_score_are_its_weights():
    np.testing.assert_allclose(methods.gradients(linear, IMAGE), WEIGHTS, rtol=1e-6)
    np.testing.assert_allclose(methods.smoothgrad(linear, IMAGE, draws=40), WEIGHTS, rtol=1e-5)


def test_integrated_gradients_add_up_and_are_exact_for_polynomials():
    def cubic(images):
        return jnp.sum(WEIGHTS * images**3, axis=(1, 2, 3))

    found = methods.integrated_gradients(cubic, IMAGE, baseline=0.25)
    want = WEIGHTS * (IMAGE**3 - 0.25**3)  # of a sum of functions of one value each, the difference of each
    np.testing.assert_allclose(found.attribution, want, atol=1e-5)
    assert found.gap < 1e-4 and found.steps == 50 and found.difference == pytest.approx(want.sum(), rel=1e-4)


def test_methods_of_many_calls_keep_one_calls_images_in_memory_and_can_be_ended():
    seen, calls = set(), []

    def score(images):
        seen.add(images.shape[0])  # when it is traced
        return jnp.sum(jnp.sin(images) * WEIGHTS, axis=(1, 2, 3))

    pace = methods.Pace(pixels=5 * 64 + 1, between=lambda: calls.append(len(calls)))
    both = ((methods.smoothgrad, {"draws": 13}), (methods.integrated_gradients, {"steps": 13}))
    found = [method(score, IMAGE, **options, pace=pace) for method, options in both]
    assert seen == {5, 2}
    for (method, options), got in zip(both, found, strict=True):
        for a, b in zip(jax.tree.leaves(method(score, IMAGE, **options)), jax.tree.leaves(got), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)
    assert len(calls) == 3 + 1 + 3  # 5 of 13 images at a time; the two ends of the path
    assert methods.Pace().at_once((224, 224, 3)) == 32 and methods.Pace().at_once((2000, 2000, 3)) == 1

    def gone():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        methods.integrated_gradients(score, IMAGE, pace=methods.Pace(between=gone))


@pytest.mark.parametrize("name, value", [("masks", 0), ("masks", -3), ("window", -5), ("window", 0), ("draws", 0), ("box", -1)])
def test_numbers_that_cannot_be_are_named(name, value, capsys):
    with pytest.raises(SystemExit, match=f"--{name}={value}; expected [01] or more"):
        command.main(["--workdir=nowhere", f"--{name}={value}", "a.png"])


def test_occlusion_and_rise_of_a_linear_score():
    found = methods.occlusion(jax.jit(linear), IMAGE, window=1, stride=1)
    np.testing.assert_allclose(found, (IMAGE * WEIGHTS).sum(2), atol=1e-4)
    bright = jnp.zeros((8, 8, 3)).at[2, 5].set(1.0)
    spot = methods.rise(
        jax.jit(lambda images: jnp.sum(images * bright, axis=(1, 2, 3))), np.ones((8, 8, 3), np.float32), masks=400
    )
    assert np.unravel_index(spot.argmax(), spot.shape) in [(y, x) for y in (1, 2, 3) for x in (4, 5, 6)]


class Net(nn.Module):
    num_classes: int = 3

    @nn.compact
    def __call__(self, x, *, train=False):
        x = nn.relu(nn.Conv(6, (3, 3), name="conv1")(x))
        x = nn.Conv(4, (3, 3), strides=2, name="conv2")(x)
        return nn.Dense(self.num_classes, name="logits")(nn.relu(x).mean((1, 2)))


@pytest.fixture(scope="module")
def at():
    """A class of a small random network on a random image."""
    task = classify.make_task(model=Net(), loss_fn=None, num_classes=3, mean=(0.5,), std=(0.25,))
    variables = task.init(jax.random.PRNGKey(0), {"image": jnp.zeros((1, 8, 8, 3))})
    return targets.Explained(IMAGE, {"image": IMAGE[None]}, variables, targets.of_class(task, 1, "one"))


def test_the_watched_layer_and_its_gradient_are_those_of_the_network(at):
    looked = at.look("conv2")
    kernel = np.asarray(at.variables["params"]["logits"]["kernel"])
    # logit = mean over 4 x 4 places of relu(map) @ kernel
    np.testing.assert_allclose(looked.gradient, (looked.map > 0) * kernel[:, 1] / 16, atol=1e-6)
    weights = looked.gradient.mean((0, 1))
    np.testing.assert_allclose(methods.gradcam(looked), np.maximum((looked.map * weights).sum(2), 0), atol=1e-6)
    own = np.maximum(looked.map, 0) @ kernel[:, 1] / 16
    np.testing.assert_allclose(methods.hirescam(looked), np.maximum(own, 0), atol=1e-6)
    assert list(at.layers()) == ["conv1", "conv2"] and at.default_layer() == "conv2"
    with pytest.raises(ValueError, match="--layer=nose is no map of the model; it has .'conv1', 'conv2'"):
        at.look("nose")


def of_images(model, side, classes=3, channels=3, seed=0, spread=0.1):
    """A class of a model with random weights on a random image."""
    task = classify.make_task(model=model, loss_fn=None, num_classes=classes, mean=(0.5,), std=(0.25,))
    image = np.random.default_rng(seed).random((side, side, channels)).astype(np.float32)
    variables = jax.jit(task.init)(jax.random.PRNGKey(0), {"image": jnp.zeros((1, side, side, channels))})
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda v: v + spread * rng.standard_normal(v.shape).astype(np.float32), variables)
    return targets.Explained(image, {"image": image[None]}, variables, targets.of_class(task, 1, "one"))


def test_a_vit_is_explained_by_what_its_class_token_still_reads():
    """The tokens after the last block have no part in the answer: their explanation was zero everywhere."""
    at = of_images(zoo.Classifier(ViT(width=16, heads=2, patch=8, depth=2), ClassToken(), 3), 32)
    assert at.default_layer() == "backbone/before_last_block"
    for method in ("gradcam", "gradcam++", "hirescam"):
        heat, found = explain.explain(at, method, explain.Options())
        assert found.values.shape == (4, 4) and found.values.max() > 0 and heat.max() == 1, method
    for method in ("gradcam", "hirescam"):
        with pytest.raises(targets.NoGradient, match="no gradient of 'one' reaches layer backbone:tokens; take a --layer"):
            explain.explain(at, method, explain.Options(layer="backbone:tokens"))


def maps_of(model, side=32):
    image = {"image": jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)}
    variables = jax.eval_shape(lambda x: model.init_with_output(jax.random.PRNGKey(0), x)[1], image["image"])
    function = lambda v, b: model.apply(v, b["image"])  # noqa: E731
    found = layers.maps(function, variables, image)
    return found, layers.reaching(function, found, variables, image)


@pytest.mark.parametrize(
    ("backbone", "embedding", "want"),
    [
        (ConvNeXt((1, 1), (8, 16)), PooledNorm(1e-6), "backbone:stage1"),  # not the four times wider one inside the block
        (ViT(8, 1, 2, 8, plain=True), zoo.GlobalPool(), "backbone:tokens"),
        (Swin(8, (1, 1), (2, 2)), PooledNorm(1e-5, norm_first=True), "embedding/norm"),
    ],
)
def test_the_default_layer_of_a_classifier_is_the_last(backbone, embedding, want):
    found, reached = maps_of(zoo.Classifier(backbone, embedding, 3))
    assert set(found) - reached == {"backbone:stage0"} & set(found)  # the stage goes on; what is returned of it is not read
    assert targets.default_layer({name: found[name] for name in found if name in reached}, whole=True) == want


def test_the_default_layer_of_a_detector_is_of_its_backbone():
    """Whatever its heads' width, which grows with the classes."""
    anchors = ((16, 20, 25), (32, 40, 50), (64, 80, 100))
    model = make_small_detector(kind="retina", num_classes=91, anchor_sizes=anchors, aspect_ratios=(0.5, 1.0, 2.0))
    found, _ = maps_of(model, 64)
    assert targets.default_layer(found, whole=False) == "backbone/body:layer4"
    plain = {"down0": (1, 8, 8, 4), "down1": (1, 4, 4, 8), "up0": (1, 8, 8, 4), ":logits": (1, 8, 8, 30)}
    assert targets.default_layer(plain, whole=False) == "down1"  # of a U-Net the deepest
    assert (
        targets.default_layer({"backbone:layer4": (1, 2, 2, 8), "backbone/layer4_0/wide": (1, 2, 2, 32)}, False)[8:]
        == ":layer4"
    )


def test_what_is_padded_is_not_explained(finished):
    """Mirrored pixels beside an image are of no class that the run sees there."""
    run = imgrec_jax.load(finished["segmentation"])
    image = RNG.integers(0, 256, (40, 50, 3), np.uint8)

    def seen(rows, variables, batch):  # class 1 on what is padded, and on the image's first rows
        return {"segmentation": jnp.ones(batch["image"].shape[:3], int).at[:, rows:40, :50].set(0)}

    run.preprocess = dataclasses.replace(run.preprocess, collate=canvases.collate_maps(size=(64, 64)))
    run.task = run.task._replace(predict=functools.partial(seen, 3))
    at = explain.prepare(run, Picture("a.png", lambda: image), explain.Options())
    area = np.asarray(at.target.score.args[1])
    assert at.image.shape[:2] == (64, 64) and area[:3, :50].all() and area.sum() == 150
    run.task = run.task._replace(predict=functools.partial(seen, 0))
    with pytest.raises(ValueError, match="sees no pixel of class"):
        explain.prepare(run, Picture("a.png", lambda: image), explain.Options(class_name=run.class_names[1]))


def test_gradcam_plus_plus_is_its_formula_written_out():
    looked = methods.Looked(*(RNG.normal(size=(3, 2, 4)).astype(np.float32) for _ in range(2)))
    want = np.zeros((3, 2))
    for k in range(4):
        weight = 0.0
        for i in range(3):
            for j in range(2):
                g = float(looked.gradient[i, j, k])
                weight += g**2 / (2 * g**2 + looked.map[..., k].sum() * g**3) * max(g, 0)
        want += weight * looked.map[..., k]
    np.testing.assert_allclose(methods.gradcam_plus_plus(looked), np.maximum(want, 0), rtol=1e-4, atol=1e-5)


def test_a_random_last_layer_changes_the_explanation(at):
    found = explain.sanity(at, "gradients", explain.Options(seed=0), most=3)
    assert list(found) == ["logits", "conv2", "conv1"] and abs(found["conv1"]) < 0.5
    drawn = dict(merit.randomised(at.variables, ["conv1", "conv2", "logits"]))
    assert np.array_equal(drawn["logits"]["params"]["conv1"]["kernel"], at.variables["params"]["conv1"]["kernel"])
    assert not np.array_equal(drawn["conv1"]["params"]["conv1"]["kernel"], at.variables["params"]["conv1"]["kernel"])


def test_rank_correlation_is_scipys():
    from scipy.stats import spearmanr

    a, b = RNG.integers(0, 9, (2, 40)).astype(float)
    assert merit.rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert merit.rank_correlation(a, np.zeros(40)) == 0.0


def test_deletion_and_insertion_of_a_score_that_is_one_pixel():
    score = jax.jit(lambda images: images[:, 3, 4, 0])
    heat = np.zeros((8, 8), np.float32)
    heat[3, 4] = 1.0
    image = np.ones((8, 8, 1), np.float32)
    values = merit.deletion(score, image, heat, steps=64)
    assert values[0] == 1.0 and (values[1:] == 0).all() and merit.area(values) == pytest.approx(0.5 / 64)
    assert merit.area(merit.deletion(score, image, -heat, steps=64)) == pytest.approx(1 - 0.5 / 64)
    assert merit.insertion(score, image, heat, steps=64)[-1] == 1.0


@pytest.mark.parametrize(("task", "method"), [("classification", "ig"), ("detection", "hirescam"), ("segmentation", "gradcam")])
def test_the_command_explains_every_task(finished, tmp_path, capsys, task, method):
    shape = (28, 28) if task == "classification" else (64, 64, 3)
    Image.fromarray(RNG.integers(0, 256, shape, np.uint8)).save(tmp_path / "a.png")
    workdir = finished[task]
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        command.main(["--workdir", str(workdir), str(tmp_path), "--method", method, "--out", str(tmp_path / "out")])
    assert ended.value.code == 0
    line = json.loads(capsys.readouterr().out)
    assert line["method"] == method and Image.open(line["picture"]).size[0] >= 320
    values = np.load(line["picture"].replace(".png", ".npy"))
    assert np.isfinite(values).all()


def test_files_are_read_as_the_run_reads_them(finished, tmp_path, monkeypatch):
    """Else an answer to other pixels would be explained: of transparency, of 16 bits."""
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / name)
    (tmp_path / "pairs.csv").write_text("a.png,b.png\n")
    monkeypatch.chdir(tmp_path)
    reading = {"max_pixels": 10**6, "upright": True, "decode": lambda data, name: np.full((28, 28), 77, np.uint8)}
    monkeypatch.setattr(Predictor, "reading", lambda run, labelled=False: reading)
    seen = []

    def prepared(run, picture, *args):
        seen.append(picture.read())
        raise ValueError("seen")

    def extracted(run, pictures, *args, **options):
        seen.extend(picture.read() for picture in pictures)
        return {}

    monkeypatch.setattr(explain, "prepare", prepared)
    monkeypatch.setattr(similarity, "features", extracted)
    workdir = finished["classification"]
    with pytest.raises(SystemExit):
        command.main(["--workdir", str(workdir), "a.png", "--out", "out"])
    similarity.compare(imgrec_jax.load(workdir), "pairs.csv", None, far=0.1, out=None, say=print)
    assert len(seen) == 3 and all((pixels == 77).all() for pixels in seen)


def test_what_cannot_be_explained_is_named(finished):
    run = imgrec_jax.load(finished["classification"])
    picture = Picture("a.png", lambda: np.zeros((28, 28), np.uint8))
    with pytest.raises(ValueError, match="--class=cat is no class of the run"):
        explain.prepare(run, picture, explain.Options(class_name="cat"))
    at = explain.prepare(run, picture, explain.Options(class_name="3"))
    with pytest.raises(ValueError, match="take a method that needs none"):
        explain.explain(at, "gradcam", explain.Options())
    with pytest.raises(ValueError, match="--method=magic is unknown; choose of gradients"):
        explain.explain(at, "magic", explain.Options())
    narrow = SimpleNamespace(workdir="runs/a", config=ConfigDict({"task": "segmentation", "model": {"padding": "valid"}}))
    with pytest.raises(ValueError, match="runs/a: .* scores the middle alone"):
        explain.prepare(narrow, picture, explain.Options())


@pytest.mark.parametrize("number", [0, 1])
def test_methods_equal_captums_on_the_same_weights(number):
    task = classify.make_task(model=make_captum.MODEL, loss_fn=None, num_classes=4, mean=make_captum.MEAN, std=make_captum.STD)
    image, options = (
        make_captum.images()[number],
        explain.Options(layer=make_captum.LAYER, draws=make_captum.DRAWS, seed=make_captum.SEED),
    )
    target = targets.of_class(task, make_captum.LABEL, "two")
    at = targets.Explained(image, {"image": image[None]}, make_captum.variables(), target)
    score = jax.jit(at.score())
    found = {name: explain.explain(at, name, options)[1].values for name in ("smoothgrad", "gradcam", "hirescam")}
    found["saliency"] = explain.explain(at, "gradients", options)[1].values
    found["ig"] = methods.integrated_gradients(score, image, steps=make_captum.STEPS, bound=np.inf).attribution
    found["occlusion"] = methods.occlusion(score, image, window=make_captum.WINDOW, stride=make_captum.STRIDE)
    with np.load(make_captum.PATH) as stored:
        for name, values in found.items():
            want = stored[f"{name}_{number}"]
            assert np.abs(want).max() > 1e-2  # there is something to be equal to
            np.testing.assert_allclose(values, want, atol=1e-4, err_msg=name)
