"""Does a classifier look at the digit? python experiments/015_where_it_looks/run.py WORKDIR

WORKDIR is a run of configs/scenes_classification.py. Of every test scene with its one digit, the peak of each explanation is
held against the digit's box, which the classifier never saw. Results go to `result.json`, a picture to `peaks.jpg`.
"""

import argparse
import json
from pathlib import Path

import cv2
import numpy as np

import imgrec_jax
from imgrec_jax import assemble
from imgrec_jax.assemble.data import open_sources
from imgrec_jax.attribution import explain
from imgrec_jax.inference.inputs import Picture

HERE = Path(__file__).resolve().parent
METHODS = ("gradcam", "gradcam++", "hirescam")
SHOWN = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdir", type=Path)
    run = imgrec_jax.load(parser.parse_args().workdir)
    sources = open_sources(assemble.complete(run.config))[1]
    result = {split: looked(run, sources[split], HERE / "peaks.jpg") for split in ("validation", "test")}
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def looked(run, source, picture: Path) -> dict:
    """How often the peak lies in the box; the first scenes go to `picture`."""
    annotations = source.info.meta["annotations"]
    inside = {method: np.zeros(len(source), bool) for method in METHODS}
    right, pictures = np.zeros(len(source), bool), []
    for index in range(len(source)):
        example = source[index]
        at = explain.prepare(run, Picture(str(index), lambda image=example["image"]: image), explain.Options())
        right[index] = at.target.text.split()[0] == run.class_names[int(example["label"])]
        box = annotations.targets(index)["boxes"][0]
        for method in METHODS:
            heat, _ = explain.explain(at, method, explain.Options())
            y, x = np.unravel_index(heat.argmax(), heat.shape)
            inside[method][index] = box[0] <= x + 0.5 <= box[2] and box[1] <= y + 0.5 <= box[3]
            if method == METHODS[0] and index < SHOWN:
                pictures.append(shown(at.image, heat, box, (x, y)))
    rows = [np.concatenate(pictures[n : n + 4], axis=1) for n in range(0, SHOWN, 4)]
    cv2.imwrite(str(picture), np.concatenate(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    area = annotations.boxes
    return {
        "scenes": len(source),
        "accuracy": float(right.mean()),
        "box_share_of_image": float(
            np.mean((area[:, 2] - area[:, 0]) * (area[:, 3] - area[:, 1])) / np.prod(source[0]["image"].shape[:2])
        ),
        "peak_in_box": {method: float(found.mean()) for method, found in inside.items()},
        "peak_in_box_where_right": {method: float(found[right].mean()) for method, found in inside.items()},
    }


def shown(image: np.ndarray, heat: np.ndarray, box: np.ndarray, peak: tuple[int, int]) -> np.ndarray:
    """The image under its heat, with the box in white and a cross at the peak; uint8 RGB."""
    picture = np.array(explain.overlay(image, heat, ""))
    scale = picture.shape[1] / image.shape[1]
    corners = [tuple(int(v * scale) for v in corner) for corner in (box[:2], box[2:])]
    cv2.rectangle(picture, *corners, (255, 255, 255), 2)
    cv2.drawMarker(picture, tuple(int((v + 0.5) * scale) for v in peak), (255, 255, 255), cv2.MARKER_CROSS, 16, 2)
    return cv2.resize(picture, (160, round(160 * picture.shape[0] / picture.shape[1])), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    main()
