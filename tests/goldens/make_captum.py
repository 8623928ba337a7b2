"""Writes captum.npz: captum's attributions for a small seeded network on two random images, where no max-pool has ties.

python -m tests.goldens.make_captum    (needs torch and captum)
"""

from pathlib import Path
from unittest import mock

import numpy as np

from imgrec_jax.models.convnet import ConvNet
from tests.goldens import seeded

MODEL = ConvNet(convs=((6, 3, 1, 2), (8, 3)), dense=(12,), num_classes=4)
SIDE, MEAN, STD, LABEL, LAYER = 16, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), 2, "conv2"
DRAWS, NOISE, SEED, STEPS, WINDOW, STRIDE = 12, 0.15, 0, 30, 4, 2
PATH = Path(__file__).parent / "captum.npz"


def variables() -> dict:
    return seeded.variables(MODEL, np.zeros((1, SIDE, SIDE, 3), np.float32))


def images() -> np.ndarray:
    """float32 [2, H, W, C] in 0..1."""
    return np.random.default_rng(7).random((2, SIDE, SIDE, 3), np.float32)


def noise(image: np.ndarray) -> np.ndarray:
    """What `methods.smoothgrad` adds, [DRAWS, H, W, C]."""
    spread = NOISE * float(image.max() - image.min())
    return spread * np.random.default_rng(SEED).standard_normal((DRAWS, *image.shape), np.float32)


def network(params: dict):
    """The same network in torch, on [N, C, H, W] in 0..1."""
    import torch
    from torch.nn import functional

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = torch.nn.Conv2d(3, 6, 3), torch.nn.Conv2d(6, 8, 3)
            self.dense1, self.logits = torch.nn.Linear(200, 12), torch.nn.Linear(12, 4)
            for name, values in params.items():
                kernel = np.array(values["kernel"])
                turned = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
                getattr(self, name).weight.data = torch.from_numpy(turned.copy())
                getattr(self, name).bias.data = torch.from_numpy(np.array(values["bias"]))

        def forward(self, x):
            mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
            x = functional.relu(functional.max_pool2d(self.conv1((x - mean) / std), 2))
            x = functional.relu(self.conv2(x)).permute(0, 2, 3, 1).flatten(1)
            return self.logits(functional.relu(self.dense1(x)))

    return Net().eval()


def compute() -> dict[str, np.ndarray]:
    """{"saliency_0": [H, W, C] of the first image, "gradcam_1": [h, w], ...}."""
    import torch
    from captum import attr

    net, found = network(variables()["params"]), {}
    layer = getattr(net, LAYER)
    for n, image in enumerate(images()):
        x = torch.from_numpy(image.transpose(2, 0, 1)[None].copy())
        drawn = torch.from_numpy(noise(image).transpose(0, 3, 1, 2).copy())
        with mock.patch("torch.normal", lambda *args, given=drawn: given):
            smooth = attr.NoiseTunnel(attr.Saliency(net)).attribute(
                x, nt_type="smoothgrad", nt_samples=DRAWS, stdevs=1.0, target=LABEL, abs=False
            )
        maps = {
            "saliency": attr.Saliency(net).attribute(x, target=LABEL, abs=False),
            "smoothgrad": smooth,
            "ig": attr.IntegratedGradients(net).attribute(x, target=LABEL, n_steps=STEPS, method="gausslegendre"),
            "gradcam": attr.LayerGradCam(net, layer).attribute(x, target=LABEL, relu_attributions=True),
            "hirescam": attr.LayerGradientXActivation(net, layer).attribute(x, target=LABEL).sum(1, keepdim=True).relu(),
            "occlusion": attr.Occlusion(net).attribute(
                x, target=LABEL, sliding_window_shapes=(3, WINDOW, WINDOW), strides=(3, STRIDE, STRIDE), baselines=0.0
            )[:, :1],
        }
        found |= {f"{name}_{n}": value.detach().numpy()[0].transpose(1, 2, 0).squeeze() for name, value in maps.items()}
    return found


if __name__ == "__main__":
    np.savez_compressed(PATH, **compute())
