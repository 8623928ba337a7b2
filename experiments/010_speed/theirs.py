"""PyTorch's side of the benchmark, written for it: the same networks, losses and optimisers, eager, as a user would write them.

As a program (`python theirs.py WORK THREADS`), which needs torch alone: see `ours.py`.
"""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from case import SHAPES
from protocol import peak_of_process, serve
from torch import nn
from torch.nn import functional as F


class FrozenNorm(nn.Module):
    """torchvision.ops.FrozenBatchNorm2d."""

    def __init__(self, width: int):
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((width,), value))

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


class Block(nn.Module):
    """torchvision's BasicBlock and Bottleneck."""

    def __init__(self, inside: int, width: int, stride: int, deep: bool, norm: Callable):
        super().__init__()
        outside = width * (4 if deep else 1)
        plan = (
            ((inside, width, 1, 1), (width, width, 3, stride), (width, outside, 1, 1))
            if deep
            else ((inside, width, 3, stride), (width, width, 3, 1))
        )
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, s, k // 2, bias=False) for i, o, k, s in plan)
        self.norms = nn.ModuleList(norm(o) for _, o, _, _ in plan)
        self.shortcut = None
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), norm(outside))

    def forward(self, x):
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            if i + 1 < len(self.convs):
                y = F.relu(y, inplace=True)
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)), inplace=True)


class ResNet(nn.Module):
    """torchvision's resnet18 or resnet50; `classes` None: the four maps."""

    def __init__(self, depth: int, classes: int | None, norm: Callable = nn.BatchNorm2d):
        super().__init__()
        deep = depth == 50
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), norm(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
        stages, inside = [], 64
        for i, size in enumerate((3, 4, 6, 3) if deep else (2, 2, 2, 2)):
            width = 64 * 2**i
            blocks = []
            for j in range(size):
                blocks.append(Block(inside, width, 2 if i and not j else 1, deep, norm))
                inside = width * (4 if deep else 1)
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.fc = None if classes is None else nn.Linear(inside, classes)

    def forward(self, x):
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps if self.fc is None else self.fc(x.mean((2, 3)))


class BodyFPN(nn.Module):
    """torchvision's resnet50 body with its feature pyramid and LastLevelMaxPool."""

    def __init__(self):
        super().__init__()
        self.body = ResNet(50, None, FrozenNorm)
        self.inner = nn.ModuleList(nn.Conv2d(c, 256, 1) for c in (256, 512, 1024, 2048))
        self.layer = nn.ModuleList(nn.Conv2d(256, 256, 3, padding=1) for _ in range(4))

    def forward(self, x):
        laterals = [conv(x) for conv, x in zip(self.inner, self.body(x), strict=True)]
        merged = laterals[-1:]
        for lateral in laterals[-2::-1]:
            merged.insert(0, lateral + F.interpolate(merged[0], size=lateral.shape[-2:], mode="nearest"))
        out = [conv(x) for conv, x in zip(self.layer, merged, strict=True)]
        return [*out, F.max_pool2d(out[-1], 1, 2, 0)]


def _double(inside: int, width: int) -> nn.Sequential:
    layers = []
    for i in (inside, width):
        layers += [nn.Conv2d(i, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Depth 4, batch norm, 2x2 transposed convolutions."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        widths = [width * 2**i for i in range(5)]
        self.down = nn.ModuleList(_double(i, o) for i, o in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in widths[-2::-1])
        self.merge = nn.ModuleList(_double(2 * w, w) for w in widths[-2::-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        skips = []
        for i, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], 1))
        return self.head(x)


def _vgg16() -> nn.Sequential:
    layers, inside = [], 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(inside, width, 3, padding=1), nn.ReLU(inplace=True)]
            inside = width
        layers.append(nn.MaxPool2d(2))
    dense = [
        nn.AdaptiveAvgPool2d(7),
        nn.Flatten(),
        nn.Linear(25088, 4096),
        nn.ReLU(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Linear(4096, 1000),
    ]
    return nn.Sequential(*layers, *dense)


def _seed_a() -> nn.Sequential:
    pool = nn.MaxPool2d(2)
    return nn.Sequential(
        nn.Conv2d(1, 10, 5), nn.ReLU(), pool, nn.Conv2d(10, 20, 5), nn.ReLU(), pool,
        nn.Flatten(), nn.Linear(320, 50), nn.ReLU(), nn.Linear(50, 10),
    )  # fmt: skip


def _seed_b() -> nn.Sequential:
    pool = nn.MaxPool2d(2)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), pool, nn.Conv2d(32, 64, 3), nn.ReLU(), pool, nn.Conv2d(64, 64, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(576, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def train_of(model: nn.Module, shape: tuple[int, ...], loss_of: Callable, optimiser: torch.optim.Optimizer | None = None):
    """shape: [B, H, W, C]."""
    optimiser = optimiser or torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = _image(shape)
    model.train()

    def run(n: int) -> None:
        for _ in range(n):
            optimiser.zero_grad()
            loss_of(model(x)).backward()
            optimiser.step()

    return run


def _image(shape: tuple[int, ...]) -> torch.Tensor:
    batch, height, width, channels = shape
    return torch.randn(batch, channels, height, width)


def labels_loss(logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the labels 0, 1, ... in turn; logits [B, K, ...]."""
    cells = logits[:, 0]
    return F.cross_entropy(logits, (torch.arange(cells.numel()) % logits.shape[1]).reshape(cells.shape))


def _forward(model: nn.Module, shape: tuple[int, ...]):
    x = _image(shape)
    model.eval()

    @torch.inference_mode()
    def run(n: int) -> None:
        for _ in range(n):
            model(x)

    return run


def _seed_b_train():
    model = _seed_b()
    return train_of(model, SHAPES["seed"], labels_loss, torch.optim.Adam(model.parameters(), 1e-3))


def _seed_a_train():
    model = _seed_a()
    return train_of(model, SHAPES["seed"], labels_loss, torch.optim.SGD(model.parameters(), 0.01, 0.5))


def _squares(maps: list[torch.Tensor]) -> torch.Tensor:
    return sum((x * x).mean() for x in maps)


WORKS: dict[str, Callable[[], Callable[[int], None]]] = {
    "seed_a_train": _seed_a_train,
    "seed_b_train": _seed_b_train,
    "resnet18_32_train": lambda: train_of(ResNet(18, 10), SHAPES["32"], labels_loss),
    "resnet18_128_train": lambda: train_of(ResNet(18, 1000), SHAPES["128"], labels_loss),
    "resnet18_224_train": lambda: train_of(ResNet(18, 1000), SHAPES["224"], labels_loss),
    "resnet50_224_train": lambda: train_of(ResNet(50, 1000), SHAPES["224"], labels_loss),
    "resnet50_224_forward": lambda: _forward(ResNet(50, 1000), SHAPES["224"]),
    "resnet50_224_forward_1": lambda: _forward(ResNet(50, 1000), SHAPES["224, one"]),
    "vgg16_224_forward": lambda: _forward(_vgg16(), SHAPES["224"]),
    "unet_128_train": lambda: train_of(UNet(4, 32), SHAPES["unet"], labels_loss),
    "body_fpn_800_train": lambda: train_of(BodyFPN(), SHAPES["800"], _squares),
    "body_fpn_800_forward": lambda: _forward(BodyFPN(), SHAPES["800"]),
}


def main(works: Mapping[str, Callable[[], Callable[[int], None]]], version: str) -> None:
    """WORK and THREADS from the command line; SPEED_DEVICE is where everything is made."""
    device: Any = os.environ.get("SPEED_DEVICE", "cpu")
    torch.set_num_threads(int(sys.argv[2]))
    torch.set_default_device(device)

    def make() -> Callable[[int], None]:
        run = works[sys.argv[1]]()

        def finished(n: int) -> None:
            run(n)
            if device == "cuda":
                torch.cuda.synchronize()

        return finished

    def peak() -> float:
        return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else peak_of_process()

    serve(make, version, peak=peak)


if __name__ == "__main__":
    main(WORKS, "torch " + torch.__version__)
