"""RetinaNet R50-FPN, v1 and v2, against torchvision for the same weights."""

import functools

import jax
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
    parity.check_training(golden, case, stored(case), images=common.images()[: golden.TRAINING_IMAGES], live=("backbone",))


def test_parameter_counts():
    """torchvision's own numbers, retinanet.py (`num_params`)."""
    for case, count in (("retina_v1", 34_014_999), ("retina_v2", 38_198_935)):
        parity.check_parameter_count(case, count)
