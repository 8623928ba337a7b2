"""Whatever happens to a file of the data: the run begins, or one line that names the file says why not.

Each number is one damage: a value of a json or an xml that is dropped or replaced, or a file that is cut, changed, replaced or
emptied. `assemble.build` and the reading of every batch then either work or raise an error that the command line prints.
"""

import json
import random
import shutil
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from PIL import Image

from imgrec_jax import assemble
from tests import small_runs
from tests.goldens import small_data

NAN, INF = float("nan"), float("inf")
VALUES = (
    None, "", "text", "7", " ", "\x00", "\ud800", "../1.png", "/etc/passwd", 0, 1, 2, -1, 3.5, 64.0, 1e300, 10**30, 2**40, NAN,
    INF, -INF, True, False, [], {}, [1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, NAN], [1, 2, 3, 4, 5, 6, 7, 8], [[1, 2, 3, 4, 5, 6]],
    [[]], {"size": [64, 64], "counts": [10, 4086]}, {"size": [64, 64], "counts": "PPPPPP"}, {"counts": 3},
)  # fmt: skip
TEXTS = ("", " ", "text", "nan", "inf", "-1", "0", "1", "64", "1e400", "7.5", "١", "red", "\N{BLACK STAR}")
LIST = "ImageSets/Main/train.txt"


def damage_bytes(path: Path, rng: random.Random) -> None:
    """Cut, flip bits, overwrite a stretch, replace, empty."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    kind = rng.choice(("cut", "bits", "zeros", "garbage", "empty", "text"))
    if kind == "cut":
        data = data[:at]
    elif kind == "bits":
        for _ in range(rng.choice((1, 1, 8))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "zeros":
        data[at : at + rng.choice((1, 40, 400))] = bytes(min(len(data) - at, 40))
    elif kind == "garbage":
        data = bytearray(rng.randbytes(rng.choice((1, 7, 3000))))
    else:
        data = bytearray() if kind == "empty" else bytearray(b"404 Not Found\n" * 20)
    path.write_bytes(data)


def damage_json(path: Path, rng: random.Random) -> None:
    """A key of an entry dropped or replaced, an entry or a list replaced, dropped or doubled."""
    content = json.loads(path.read_text())
    key = rng.choice(sorted(content))
    entries, n = content[key], rng.randrange(len(content[key]))
    kind = rng.choice(("drop key", "value", "value", "value", "new value", "entry", "drop", "double", "list", "drop list"))
    if kind in ("drop key", "value"):
        name = rng.choice(sorted(entries[n]))
        for entry in entries if rng.random() < 0.2 else [entries[n]]:
            entry.pop(name)
            entry.update({name: rng.choice(VALUES)} if kind == "value" else {})
    elif kind == "new value":
        entries[n][rng.choice(("segmentation", "iscrowd", "area", "extra"))] = rng.choice(VALUES)
    elif kind == "entry":
        entries[n] = rng.choice(VALUES)
    elif kind in ("drop", "double"):
        content[key] = entries[:n] + entries[n + 1 :] if kind == "drop" else [*entries, entries[n]]
    elif kind == "list":
        content[key] = rng.choice(VALUES)
    else:
        del content[key]
    path.write_text(json.dumps(content), encoding=rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16")))


def damage_xml(path: Path, rng: random.Random) -> None:
    """An element dropped, emptied, renamed or given another text."""
    tree = ElementTree.parse(path)
    parents = [element for element in tree.iter() if len(element)]
    parent = rng.choice(parents)
    child = rng.choice(list(parent))
    kind = rng.choice(("drop", "text", "text", "text", "tag", "root", "double"))
    if kind == "drop":
        parent.remove(child)
    elif kind == "text":
        child.text = rng.choice(TEXTS)
    elif kind == "double":
        parent.append(child)
    else:
        (child if kind == "tag" else tree.getroot()).tag = "other"
    tree.write(path, encoding="utf-8")


def as_jpeg(root: Path, rng: random.Random) -> Path:
    """A random image of the COCO folder, kept as JPEG under its name: files are told by their content."""
    path = root / rng.choice(("train", "val")) / f"{rng.randint(1, 6)}.png"
    with Image.open(path) as image:
        image.save(path, format="JPEG", quality=95)
    return path


def coco_json(root, rng):
    return root / f"{rng.choice(('train', 'val'))}.json"


def coco_image(root, rng):
    return root / rng.choice(("train", "val")) / f"{rng.randint(1, 6)}.png"


def voc_xml(root, rng):
    return root / "Annotations" / f"{rng.choice(('train', 'val'))}{rng.randint(1, 6)}.xml"


def voc_list(root, rng):
    return root / LIST


def mask_or_image(root, rng):
    return root / rng.choice(("masks", "masks", "images")) / f"{rng.randint(0, 9)}.png"


# name: (data set, which file, what happens to it)
DAMAGES: dict[str, tuple[str, Callable, Callable]] = {
    "values of a COCO json": ("coco", coco_json, damage_json),
    "bytes of a COCO json": ("coco", coco_json, damage_bytes),
    "bytes of a PNG": ("coco", coco_image, damage_bytes),
    "bytes of a JPEG": ("coco", as_jpeg, damage_bytes),
    "values of a VOC xml": ("voc", voc_xml, damage_xml),
    "bytes of a VOC xml": ("voc", voc_xml, damage_bytes),
    "bytes of a VOC list": ("voc", voc_list, damage_bytes),
    "bytes of a mask or its image": ("masks", mask_or_image, damage_bytes),
}
OFTEN = ("values of a COCO json", "values of a COCO json", "values of a VOC xml", *DAMAGES)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    makers = {"coco": small_data.coco, "voc": small_data.voc, "masks": small_data.masks}
    return {name: make(tmp_path_factory.mktemp("data") / name) for name, make in makers.items()}


def config_of(kind: str, root: Path) -> ConfigDict:
    if kind == "masks":
        return small_runs.config_of("segmentation", root)
    options = (
        {"data__name": "voc_folder", "data__options": ConfigDict({"class_names": ("red", "blue")})} if kind == "voc" else {}
    )
    config = small_runs.config_of("detection", root, **options)
    config.data.test_split, config.data.validation_split = "", "val"
    return config


def outcome(config: ConfigDict) -> str:
    """What a run meets: "" or the message of an error that the command line prints in one line."""
    try:
        data = assemble.build(config).data
        for pipeline in (data.train, *data.evals.values()):
            for step in range(pipeline.steps_per_epoch):
                pipeline.batch(step)
    except (ValueError, OSError) as error:
        return str(error) or repr(error)
    return ""


def try_damage(originals: dict[str, Path], folder: Path, number: int) -> str:
    rng = random.Random(number)
    name = OFTEN[number % len(OFTEN)]
    kind, choose, damage = DAMAGES[name]
    root = folder / str(number)
    shutil.copytree(originals[kind], root)
    path = choose(root, rng)
    damage(path, rng)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # numpy's, of numbers that were let through
        said = outcome(config_of(kind, root))
    shutil.rmtree(root)
    named = path.stem if path.suffix == ".xml" else path.name  # an xml and its image share their name
    assert not said or named in said, f"{number} ({name}): {path.name} is not named in: {said}"
    assert "\n" not in said, f"{number} ({name}): more than one line: {said}"
    return said


def test_sixty_damages(originals, tmp_path):
    said = [try_damage(originals, tmp_path, number) for number in range(60)]
    assert 20 <= sum(map(bool, said)) <= 59


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 1600, 100))
def test_six_hundred_damages(originals, tmp_path, start):
    for number in range(start, start + 100):
        try_damage(originals, tmp_path, number)
