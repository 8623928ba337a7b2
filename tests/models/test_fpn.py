"""FPN against torchvision's, on maps of odd sizes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgrec_jax.models.fpn import FPN, BackboneWithFPN
from imgrec_jax.models.norm import BatchNorm
from imgrec_jax.models.resnet import small_resnet
from imgrec_jax.pretrained.merge import merge
from tests import torchvision_names as names
from tests.goldens import make_backbones, seeded

GOLDENS = Path(__file__).parents[1] / "goldens" / "backbones.npz"


def ours(case: str) -> dict[str, np.ndarray]:
    shapes, _ = seeded.read_golden(GOLDENS, case)
    model = FPN(16, norm=BatchNorm if case == "fpn_bn" else None)
    maps = {name: seeded.image(*shape) for name, shape in make_backbones.FPN_MAPS.items()}
    abstract = jax.eval_shape(model.init, jax.random.key(0), maps)
    variables, _ = merge(abstract, names.convert(seeded.weights(shapes)).tensors)
    return jax.device_get(jax.jit(model.apply)(variables, maps))


@pytest.mark.parametrize("case", ["fpn", "fpn_bn"])
def test_matches_torchvision(case):
    _, golden = seeded.read_golden(GOLDENS, case)
    outputs = ours(case)
    assert set(outputs) == {"layer1", "layer2", "layer3", "layer4", "pool"}
    seeded.assert_matches(outputs, golden)


def test_matches_torchvision_everywhere():
    seeded.import_torchvision()
    _, expected = make_backbones.CASES["fpn"]()
    outputs = ours("fpn")
    for name, value in expected.items():
        np.testing.assert_allclose(outputs[name], value, rtol=1e-5, atol=1e-4, err_msg=name)


def test_backbone_with_fpn_is_a_backbone():
    model = BackboneWithFPN(small_resnet(widths=(4, 6, 8), blocks=1), FPN(5), levels=("layer2", "layer3"))
    maps, variables = jax.eval_shape(lambda k: model.init_with_output(k, jnp.zeros((1, 32, 48, 3))), jax.random.key(0))
    assert model.strides == {"layer2": 2, "layer3": 4, "pool": 8}
    assert {n: m.shape for n, m in maps.items()} == {
        name: (1, 32 // stride, 48 // stride, 5) for name, stride in model.strides.items()
    }
    assert set(variables["params"]) == {"body", "fpn"}
    assert set(variables["params"]["fpn"]) == {f"{kind}_blocks_{i}_0" for kind in ("inner", "layer") for i in (0, 1)}
