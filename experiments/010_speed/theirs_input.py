"""PyTorch's side of the input benchmark: ImageFolder, torchvision's preset for training, DataLoader; see `ours.py`."""

import contextlib
import itertools
import sys
from functools import partial

import photos
import torch
from protocol import serve

with contextlib.suppress(ImportError):  # where the wheel of torchvision finds no CUDA, it needs a helper of this name first
    import torchvision_on_cpu  # noqa: F401
from torchvision import datasets, transforms

BATCH = 32


def work(height: int, width: int, workers: int):
    # torchvision, references/classification/presets.py, ClassificationPresetTrain
    preset = transforms.Compose([
        transforms.RandomResizedCrop(224, interpolation=transforms.InterpolationMode.BILINEAR, antialias=True),
        transforms.RandomHorizontalFlip(0.5),
        transforms.PILToTensor(),
        transforms.ConvertImageDtype(torch.float),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])  # fmt: skip
    images = datasets.ImageFolder(photos.folder(height, width), preset)
    loader = torch.utils.data.DataLoader(images, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def run(n: int) -> None:
        for _ in range(n):
            assert next(batches)[0].shape == (BATCH, 3, 224, 224)

    return run


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    height, width = map(int, sys.argv[1].split("_")[1].split("x"))
    workers = 0 if sys.argv[2] == "1" else int(sys.argv[2])
    serve(partial(work, height, width, workers), "torch " + torch.__version__)
