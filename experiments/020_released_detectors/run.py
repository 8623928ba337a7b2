"""A detector file in torchvision's released layout, evaluated here and by torchvision on the same JPEG files.

    python experiments/020_released_detectors/run.py overfit --coco=COCO --data=DIR --out=OUT
      copies three images of COCO/train2017 with their annotations to DIR, trains the detector on them from random weights (v2:
      --body=RUN takes the body of the run of v1) and exports OUT/overfit.safetensors with torchvision's names.
    python experiments/020_released_detectors/run.py reference --weights=OUT/overfit.safetensors --data=DIR --out=OUT
      (needs torch, torchvision, pycocotools) makes OUT/detector.pth, a file as references/detection/train.py saves it, with 91
      outputs and beside the weights `args`, from a run's `imgrec export --format=torchvision` (without --weights from seeded
      random ones), and OUT/released.pth, the weights alone, as torchvision releases them; and OUT/torchvision.json, what
      torchvision finds with it, and pycocotools' twelve numbers.
    python experiments/020_released_detectors/run.py ours --data=DIR --out=OUT
      evaluates the file with `--mode=eval`, without training, and predicts.
    python experiments/020_released_detectors/run.py compare --data=DIR --out=OUT
      compares: the twelve numbers, and detections one by one.

--kind=v1 or v2 (fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2); --file=detector.pth or released.pth.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
NAMES = {"v1": "fasterrcnn_resnet50_fpn", "v2": "fasterrcnn_resnet50_fpn_v2"}
NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def annotations(arguments: argparse.Namespace) -> Path:
    return Path(arguments.data) / "annotations" / "instances_val2017.json"


# Landscape images of one canvas; the last has an object of fewer than 32 x 32 pixels.
IMAGES = ("000000000030.jpg", "000000000092.jpg", "000000000471.jpg")


def subset(coco: Path, folder: Path) -> None:
    """A COCO folder of IMAGES alone, with all categories."""
    stored = json.loads((coco / "annotations" / "instances_train2017.json").read_text())
    images = [image for image in stored["images"] if image["file_name"] in IMAGES]
    ids = {image["id"] for image in images}
    kept = {**stored, "images": images, "annotations": [a for a in stored["annotations"] if a["image_id"] in ids]}
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "val2017").mkdir(exist_ok=True)
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(kept))
    for name in IMAGES:
        shutil.copy(coco / "train2017" / name, folder / "val2017" / name)


def overfit(arguments: argparse.Namespace) -> None:
    """Batch norms are live while it learns; the exported file has their statistics, which v1 takes as frozen ones."""
    subset(Path(arguments.coco), Path(arguments.data))
    body = [
        f"--config.pretrained.path={arguments.body}", "--config.pretrained.head=new",
        r"--config.pretrained.allow_missing=('^backbone/fpn', '^rpn', '^roi_heads')",
        r"--config.pretrained.allow_unexpected=('^backbone/fpn', '^rpn', '^roi_heads')",
        "--config.pretrained.allow_wrong_shape=('^backbone/fpn', '^rpn', '^roi_heads')",
        r"--config.optim.frozen=('^backbone/body/',)",
    ] if arguments.body else ["--config.optim.frozen=()"]  # fmt: skip
    command = [
        f"--config={ROOT}/configs/coco_faster_rcnn.py:folder", f"--config.data.manual_dir={arguments.data}",
        *NETWORK[arguments.kind], "--config.model.norm=batch", *sizes(arguments),
        "--config.data.train_split=val", "--config.data.allow_overlap=true",
        f"--config.data.canvases=(({arguments.min_size}, {-(-arguments.min_size * 3 // 2)}),)",
        f"--config.data.batch_size={len(IMAGES)}", "--config.data.train_ops={}", *body,
        "--config.detection.rpn_pre_nms_top_n_train=300", "--config.detection.rpn_post_nms_top_n_train=100",
        "--config.detection.rpn_batch_size_per_image=64", f"--config.detection.box_batch_size_per_image={arguments.rois}",
        "--config.optim.name=adamw", "--config.optim.learning_rate=1e-3", "--config.optim.clip_norm=10.0",
        "--config.optim.weight_decay=()", "--config.schedule.name=one_cycle",
        "--config.schedule.warmup_steps=None", "--config.schedule.warmup_factor=0.0", "--config.schedule.boundaries_epochs=()",
        "--config.train.total_epochs=None",
        f"--config.train.total_steps={arguments.steps}", "--config.data.validation_split=", "--config.select.metric=",
        "--config.checkpoint.every_steps=10",
        f"--workdir={arguments.out}/overfit",
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "imgrec_jax.main", *command], check=True)
    export = ["--format=torchvision", f"--workdir={arguments.out}/overfit", f"--out={arguments.out}/overfit.safetensors"]
    subprocess.run([sys.executable, "-m", "imgrec_jax.export", *export], check=True)


def as_91_outputs(state: dict, category_ids: list[int]) -> dict:
    """Heads of 80 classes and the background, as a file with an output for each of COCO's 90 ids; others are never found."""
    import torch

    rows = [0, *category_ids]
    out = dict(state)
    for name, size in (("cls_score", 1), ("bbox_pred", 4)):
        for leaf in ("weight", "bias"):
            key = f"roi_heads.box_predictor.{name}.{leaf}"
            old = state[key].reshape(len(rows), size, *state[key].shape[1:])
            new = torch.zeros(91, size, *state[key].shape[1:])
            if (name, leaf) == ("cls_score", "bias"):
                new[:] = -30.0
            new[rows] = old
            out[key] = new.reshape(91 * size, *state[key].shape[1:])
    return out


def reference(arguments: argparse.Namespace) -> None:
    sys.path.insert(0, str(ROOT))
    from tests.goldens import seeded

    torchvision = seeded.import_torchvision()
    import torch
    from PIL import Image
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    from safetensors.torch import load_file

    truth = COCO(str(annotations(arguments)))
    options = {
        "weights_backbone": None, "min_size": arguments.min_size, "max_size": arguments.max_size,
        "rpn_post_nms_top_n_test": arguments.proposals,
    }  # fmt: skip
    model = torchvision.models.get_model(NAMES[arguments.kind], weights=None, num_classes=91, **options)
    if arguments.weights:
        model.load_state_dict(as_91_outputs(load_file(arguments.weights), sorted(truth.getCatIds())), strict=True)
    else:
        drawn = seeded.weights({name: tuple(value.shape) for name, value in model.state_dict().items()})
        model.load_state_dict({name: torch.from_numpy(value) for name, value in drawn.items()})
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    args = argparse.Namespace(lr=0.02, aspect_ratio_group_factor=3, output_dir=Path("."), momentum=np.float64(0.9))
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.save({"model": state, "args": args, "epoch": 25, "shape": torch.Size([3, 800])}, out / "detector.pth")
    torch.save(model.state_dict(), out / "released.pth")
    model.eval()
    found, rows = {}, []
    for image in truth.loadImgs(truth.getImgIds()):
        picture = Image.open(Path(arguments.data) / "val2017" / image["file_name"]).convert("RGB")
        pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255
        with torch.no_grad():
            result = {key: value.numpy() for key, value in model([pixels])[0].items()}
        found[image["file_name"]] = {key: value.tolist() for key, value in result.items()}
        for box, score, label in zip(result["boxes"], result["scores"], result["labels"], strict=True):
            x1, y1, x2, y2 = map(float, box)
            rows.append(
                {"image_id": image["id"], "category_id": int(label), "score": float(score), "bbox": [x1, y1, x2 - x1, y2 - y1]}
            )
    evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    numbers = dict(zip(NUMBERS, map(float, evaluation.stats), strict=True))
    (out / "torchvision.json").write_text(json.dumps({"numbers": numbers, "found": found}))


NETWORK = {"v1": ["--config.model.norm_epsilon=1e-5"], "v2": ["--config.model.name=fasterrcnn_resnet50_fpn_v2"]}


def sizes(arguments: argparse.Namespace) -> list[str]:
    return [f"--config.data.min_size=({arguments.min_size},)", f"--config.data.max_size={arguments.max_size}"]


def flags(arguments: argparse.Namespace) -> list[str]:
    return [
        f"--config={ROOT}/configs/coco_faster_rcnn.py:folder", f"--config.data.manual_dir={arguments.data}",
        *NETWORK[arguments.kind], "--config.data.train_split=val", "--config.data.allow_overlap=true",
        "--config.data.resize=torchvision", *sizes(arguments),
        "--config.data.eval_batch_size=1", f"--config.detection.rpn_post_nms_top_n_test={arguments.proposals}",
        f"--config.pretrained.path={arguments.out}/{arguments.file}",
        "--config.pretrained.head=match", "--config.optim.frozen=()",
    ]  # fmt: skip


def ours(arguments: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "imgrec_jax.main", *flags(arguments), "--mode=eval", f"--workdir={arguments.out}/run"]
    subprocess.run(command, check=True)
    sys.path.insert(0, str(ROOT))
    import jax

    from imgrec_jax import assemble, config
    from imgrec_jax.assemble.components import switch
    from imgrec_jax.run import loop
    from imgrec_jax.step import eval_variables

    made = config.load(f"{ROOT}/configs/coco_faster_rcnn.py:folder")
    given = dict(flag.removeprefix("--config.").split("=", 1) for flag in flags(arguments)[1:])
    if "model.name" in given:
        switch(made, "model.name", given["model.name"])
    made = assemble.complete(made)
    for key, value in given.items():
        config.override(made, key, value)
    experiment = assemble.build(made)
    state, _ = loop.create_state(experiment, lambda variables: experiment.optimisation.initialise(variables)[0])
    predict, found = jax.jit(experiment.task.predict), {}
    pipeline = experiment.data.evals["validation"]
    for step in range(pipeline.steps_per_epoch):
        batch = pipeline.batch(step)
        rows = experiment.task.records(predict(eval_variables(state), batch), batch)
        for index, row in zip(batch["index"], rows, strict=True):
            names = np.array(pipeline.source.info.class_names)
            found[pipeline.source[int(index)]["file_name"]] = {
                "boxes": row["boxes"].tolist(), "scores": row["scores"].tolist(), "names": names[row["labels"] - 1].tolist(),
            }  # fmt: skip
    (Path(arguments.out) / "ours.json").write_text(json.dumps(found))


def compare(arguments: argparse.Namespace) -> None:
    out = Path(arguments.out)
    theirs, mine = (json.loads((out / name).read_text()) for name in ("torchvision.json", "ours.json"))
    evaluated = json.loads((out / "run" / "eval.json").read_text())["validation"]
    worst = max(abs(theirs["numbers"][name] - (-1 if evaluated[name] is None else evaluated[name])) for name in NUMBERS)
    print(
        "AP there",
        round(theirs["numbers"]["AP"], 4),
        "here",
        round(evaluated["AP"], 4),
        "; largest difference of twelve",
        worst,
    )
    names = {c["id"]: c["name"] for c in json.loads(annotations(arguments).read_text())["categories"]}
    total = matched = 0
    offset = gap = 0.0
    for file, there in theirs["found"].items():
        here = mine[Path(file).name] if Path(file).name in mine else mine[file]
        free = list(range(len(here["scores"])))
        for box, score, label in zip(there["boxes"], there["scores"], there["labels"], strict=True):
            total += 1
            same = [i for i in free if here["names"][i] == names.get(label)]
            if not same:
                continue
            best = min(same, key=lambda i: np.abs(np.subtract(here["boxes"][i], box)).max() + abs(here["scores"][i] - score))
            distance, difference = np.abs(np.subtract(here["boxes"][best], box)).max(), abs(here["scores"][best] - score)
            if distance <= 1e-2 and difference <= 1e-4:
                matched += 1
                free.remove(best)
                offset, gap = max(offset, distance), max(gap, difference)
    extra = sum(len(found["scores"]) for found in mine.values()) - matched
    print(f"{matched} of {total} detections found, {extra} more here; boxes to {offset:.2g} px, scores to {gap:.2g}")
    there, here = theirs["numbers"], {name: evaluated[name] for name in NUMBERS}
    result = {"file": arguments.file, "proposals": arguments.proposals, "numbers_there": there, "numbers_here": here,
              "largest": worst, "detections": total, "matched": matched, "extra": extra, "boxes_px": offset,
              "scores": gap}  # fmt: skip
    (Path(__file__).parent / f"result_{arguments.kind}.json").write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("overfit", "reference", "ours", "compare"))
    parser.add_argument("--kind", choices=sorted(NAMES), default="v1")
    parser.add_argument("--weights")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--coco", help="overfit: a COCO folder with train2017/ and annotations/")
    parser.add_argument("--body", default="", help="overfit: a run to take the body of")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rois", type=int, default=64, help="overfit: that the box head learns from, an image")
    parser.add_argument("--file", choices=("detector.pth", "released.pth"), default="detector.pth")
    parser.add_argument("--proposals", type=int, default=1000, help="that the box head sees, an image, on both sides")
    parser.add_argument("--min_size", type=int, default=128)
    parser.add_argument("--max_size", type=int, default=192)
    arguments = parser.parse_args()
    parts = {"overfit": overfit, "reference": reference, "ours": ours, "compare": compare}
    parts[arguments.part](arguments)


if __name__ == "__main__":
    main()
