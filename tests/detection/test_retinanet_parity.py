"""RetinaNet R50-FPN, v1 and v2, against torchvision for the same weights."""

import functools

import jax
import numpy as np
import pytest

from tests.detection import parity
from tests.goldens import make_faster_rcnn as common
from tests.goldens import make_retinanet as golden
from tests.goldens import seeded


@functools.cache
def stored(case):
    shapes, arrays = seeded.read_golden(golden.PATH, case)
    return tuple(shapes.items()), arrays


@pytest.mark.slow
@pytest.mark.parametrize("case", golden.CASES)
def test_detections(case):
    shapes, arrays = stored(case)
    task, variables = parity.task(case, golden.HYPER), parity.variables(case, shapes)
    predictions = jax.device_get(jax.jit(task.predict)(variables, parity.batch(common.images(golden.SIZES))))
    for i in range(len(golden.SIZES)):
        ours = {name: value[i] for name, value in predictions.items()}
        theirs = {name: arrays[f"{name}{i}"] for name in ("boxes", "scores", "labels")}
        box_error, score_error = parity.compare(ours, theirs)
        assert box_error <= 1e-2 and score_error <= 1e-4
        assert len(theirs["scores"]) == 100


@pytest.mark.slow
@pytest.mark.parametrize("case", golden.CASES)
def test_training_losses_and_gradients(case):
    """v2 in float64, as its live norms are rough in float32 (see `test_faster_rcnn_parity`)."""
    shapes, arrays = stored(case)
    task, variables = parity.task(case, golden.HYPER), parity.variables(case, shapes)
    batch = parity.batch(common.images()[: golden.TRAINING_IMAGES], golden.ground_truth())
    with jax.enable_x64(case == "retina_v2"):
        if case == "retina_v2":
            variables = jax.tree.map(lambda v: jax.numpy.asarray(v, jax.numpy.float64), variables)

        def loss(params):
            return task.loss({**variables, "params": params}, batch, jax.random.key(0), True)

        (_, aux), gradients = jax.device_get(jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"]))
    for name in golden.LOSSES:
        np.testing.assert_allclose(aux.metrics[name].compute()[""], arrays[name], rtol=1e-4, err_msg=name)
    for name in golden.GRADIENTS[case]:
        value = parity.by_torch_name(gradients, name, dict(shapes)[name])
        expected = arrays[f"grad/{name}"]
        difference = np.linalg.norm(seeded.subsample(value) - expected) / np.linalg.norm(expected)
        through_live_norm = case == "retina_v2" and "backbone" in name
        assert difference <= (1e-2 if through_live_norm else 1e-3), (name, difference)


def test_parameter_counts():
    """torchvision's own numbers, retinanet.py (`num_params`)."""
    for case, count in (("retina_v1", 34_014_999), ("retina_v2", 38_198_935)):
        spec = {"image": jax.ShapeDtypeStruct((1, 128, 128, 3), np.float32)}
        variables = jax.eval_shape(parity.task(case, {}).init, jax.random.key(0), spec)
        assert sum(x.size for x in jax.tree.leaves(variables["params"])) == count
