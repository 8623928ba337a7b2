"""Tiny data sets that are the same everywhere: what the kept workdirs were trained on, and input for the tests of whole runs.

Drawn with numpy alone and stored without loss, so that no version of any library changes a pixel.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = tuple("0123456789")


def digits(data_dir: Path, sizes: dict[str, int] | None = None) -> Path:
    """A data_dir with a decoded `mnist:3.0.1`: a bright square in one of ten places, whose number is the label."""
    for seed, (split, count) in enumerate((sizes or {"train": 160, "test": 60}).items()):
        rng = np.random.default_rng(seed)
        label = rng.integers(0, 10, count)
        image = rng.integers(0, 60, (count, 28, 28, 1), np.uint8)
        for picture, number in zip(image, label, strict=True):
            row, column = divmod(int(number), 4)
            picture[2 + 8 * row : 8 + 8 * row, 1 + 7 * column : 7 + 7 * column] += 150
        folder = data_dir / "decoded" / "mnist" / "3.0.1" / split
        folder.mkdir(parents=True)
        np.save(folder / "image.npy", image)
        np.save(folder / "label.npy", label.astype(np.int64))
        (folder / "info.json").write_text(json.dumps({"class_names": NAMES}))
    return data_dir


def pictures(count: int, side: int, seed: int) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """uint8 [count, side, side, 3] with one square each, and (x, y, class) of the squares: 1 red, 2 blue."""
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 120, (count, side, side, 3), np.uint8)
    places = []
    for n, picture in enumerate(image):
        x, y = (int(v) for v in rng.integers(0, side - side // 3, 2))
        picture[y : y + side // 3, x : x + side // 3] = (220, 40, 40) if n % 2 else (40, 40, 220)
        places.append((x, y, 1 if n % 2 else 2))
    return image, places


def coco(root: Path, count: int = 6, side: int = 64) -> Path:
    """train/ and val/ with their json, in COCO's format; categories 1 red and 2 blue."""
    for seed, split in enumerate(("train", "val")):
        (root / split).mkdir(parents=True)
        data = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]}
        images, places = pictures(count, side, seed)
        for n, (image, (x, y, kind)) in enumerate(zip(images, places, strict=True), start=1):
            Image.fromarray(image).save(root / split / f"{n}.png")
            data["images"].append({"id": n, "file_name": f"{n}.png", "height": side, "width": side})
            box = {"bbox": [x, y, side // 3, side // 3], "area": (side // 3) ** 2, "iscrowd": 0}
            data["annotations"].append({"id": n, "image_id": n, "category_id": kind, **box})
        (root / f"{split}.json").write_text(json.dumps(data))
    return root


def masks(root: Path, count: int = 10, side: int = 32) -> Path:
    """images/ and masks/, the mask's value being the class 1 of the square."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    images, places = pictures(count, side, 0)
    for n, (image, (x, y, _)) in enumerate(zip(images, places, strict=True)):
        mask = np.zeros((side, side), np.uint8)
        mask[y : y + side // 3, x : x + side // 3] = 1
        Image.fromarray(image).save(root / "images" / f"{n}.png")
        Image.fromarray(mask).save(root / "masks" / f"{n}.png")
    return root


def voc(root: Path, count: int = 6, side: int = 64) -> Path:
    """JPEGImages/, Annotations/ and lists train and val, in Pascal VOC's format; classes red and blue."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    for seed, split in enumerate(("train", "val")):
        images, places = pictures(count, side, seed)
        for n, (image, (x, y, kind)) in enumerate(zip(images, places, strict=True), start=1):
            Image.fromarray(image).save(root / "JPEGImages" / f"{split}{n}.png")
            corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + side // 3, "ymax": y + side // 3}
            box = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items())
            (root / "Annotations" / f"{split}{n}.xml").write_text(
                f"<annotation><filename>{split}{n}.png</filename><size><width>{side}</width><height>{side}</height></size>"
                f"<object><name>{('red', 'blue')[kind - 1]}</name><difficult>0</difficult><bndbox>{box}</bndbox></object>"
                "</annotation>"
            )
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{split}{n}\n" for n in range(1, count + 1)))
    return root
