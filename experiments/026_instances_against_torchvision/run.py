"""Mask R-CNN and RetinaNet beside torchvision's on photographs: detections, masks, the COCO numbers, losses and gradients.

    python experiments/026_instances_against_torchvision/run.py overfit --kind=mask_v1 --coco=COCO --body=RUN --out=OUT
      three images of COCO/train2017 learned by heart at 128 pixels, on the body of a detector that learned them (of 020, of the
      any version), and exported as OUT/overfit.safetensors with torchvision's names.
    python experiments/026_instances_against_torchvision/run.py compare --kind=mask_v1 --coco=COCO --out=OUT [--seeded]
      (needs torch, torchvision, pycocotools) 24 images, those three among them, each from the JPEG file to masks on both sides;
      then losses and gradients on twelve pairs of them. --seeded: from random weights instead, as the golden files have them.
      --only double: losses and gradients of the pairs whose gradients were more than 1e-3 apart again, both in float64.

    python experiments/026_instances_against_torchvision/run.py table         writes the table of the README

--kind: mask_v1, mask_v2, retina_v1 or retina_v2. COCO: a folder of train2017/ and annotations/instances_train2017.json.
Norms use their running statistics in the losses; live norms are compared in tests/detection.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))
import gradients  # noqa: E402

NAMES = {
    "mask_v1": "maskrcnn_resnet50_fpn",
    "mask_v2": "maskrcnn_resnet50_fpn_v2",
    "retina_v1": "retinanet_resnet50_fpn",
    "retina_v2": "retinanet_resnet50_fpn_v2",
}
LEARNED = ("000000000030.jpg", "000000000092.jpg", "000000000471.jpg")
IMAGES = 24
SIZES = {"min_size": 128, "max_size": 192}
NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def subset(coco: Path, folder: Path) -> None:
    """IMAGES annotated images of one canvas, LEARNED first, with all categories; "val" are all, "train" those learned."""
    stored = json.loads((coco / "annotations" / "instances_train2017.json").read_text())
    annotated = {a["image_id"] for a in stored["annotations"]}
    images = [image for image in stored["images"] if image["id"] in annotated]
    images = [image for image in images if 1.28 < image["width"] / image["height"] <= 1.5]
    images = sorted(images, key=lambda image: image["file_name"] not in LEARNED)[:IMAGES]
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split, chosen in (("train", images[: len(LEARNED)]), ("val", images)):
        ids = {image["id"] for image in chosen}
        kept = {**stored, "images": chosen, "annotations": [a for a in stored["annotations"] if a["image_id"] in ids]}
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(kept))
        (folder / f"{split}2017").mkdir(exist_ok=True)
        for image in chosen:
            shutil.copy(coco / "train2017" / image["file_name"], folder / f"{split}2017")


def network(kind: str) -> list[str]:
    made = f"{ROOT}/configs/{'coco_mask_rcnn' if kind.startswith('mask') else 'coco_faster_rcnn'}.py"
    own = {"mask_v1": "kind=mask", "retina_v1": "kind=retina"}.get(kind, f"name={NAMES[kind]}")
    return [f"--config={made}{'' if kind.startswith('mask') else ':folder'}", f"--config.model.{own}"]


def overfit(arguments: argparse.Namespace) -> None:
    out, mask = Path(arguments.out), arguments.kind.startswith("mask")
    subset(Path(arguments.coco), out / "coco")
    others = "('^backbone/fpn', '^rpn', '^roi_heads', '^head')"
    command = [
        *network(arguments.kind), f"--config.data.manual_dir={out}/coco", "--config.model.norm=batch",
        *(f"--config.data.{name}={(value,) if name == 'min_size' else value}" for name, value in SIZES.items()),
        "--config.data.canvases=((128, 192),)", "--config.data.batch_size=3", "--config.data.train_ops={}",
        "--config.data.validation_split=", "--config.select.metric=", "--config.data.allow_overlap=true",
        f"--config.pretrained.path={arguments.body}", "--config.pretrained.head=new",
        f"--config.pretrained.allow_missing={others}", f"--config.pretrained.allow_unexpected={others}",
        f"--config.pretrained.allow_wrong_shape={others}", "--config.optim.frozen=('^backbone/body/',)",
        "--config.optim.name=adamw", "--config.optim.learning_rate=1e-3", "--config.optim.clip_norm=10.0",
        "--config.optim.weight_decay=()", "--config.schedule.name=one_cycle", "--config.schedule.warmup_steps=None",
        "--config.schedule.warmup_factor=0.0", "--config.schedule.boundaries_epochs=()", "--config.train.total_epochs=None",
        f"--config.train.total_steps={arguments.steps}", "--config.checkpoint.every_steps=20", f"--workdir={out}/overfit",
    ]  # fmt: skip
    if mask:
        command += [
            "--config.detection.rpn_pre_nms_top_n_train=300", "--config.detection.rpn_post_nms_top_n_train=100",
            "--config.detection.rpn_batch_size_per_image=64", "--config.detection.box_batch_size_per_image=64",
        ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "imgrec_jax.main", *command], check=True, cwd=ROOT)
    export = ["--format=torchvision", f"--workdir={out}/overfit", f"--out={out}/overfit.safetensors"]
    subprocess.run([sys.executable, "-m", "imgrec_jax.export", *export], check=True, cwd=ROOT)


def torch_model(kind: str, weights: Path | None):
    """torchvision's own, of 81 classes; its samples are drawn by a fixed order, as ours will be, and its norms stand still."""
    from tests.goldens import make_faster_rcnn, make_mask_rcnn, make_retinanet, seeded

    torchvision = seeded.import_torchvision()
    import torch
    from safetensors.torch import load_file
    from torchvision.models.detection import _utils, roi_heads

    options = {**SIZES, **(gradients.TRAINING if kind.startswith("mask") else {})}
    model = torchvision.models.get_model(NAMES[kind], weights=None, weights_backbone=None, num_classes=81, **options)
    if weights is None:
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        golden = make_mask_rcnn if kind.startswith("mask") else make_retinanet
        golden.CLASSES = 81
        state = {name: torch.from_numpy(value) for name, value in golden.weights(kind, shapes).items()}
    else:
        state = load_file(weights)
    model.load_state_dict(state, strict=True)
    if kind.startswith("mask"):
        roi_heads.roi_align = make_mask_rcnn.roi_align_of_masks  # crops the true masks, where the compiled operators are absent
        for part in (model.rpn, model.roi_heads):
            part.fg_bg_sampler.__class__ = make_faster_rcnn.fixed_sampler(_utils)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train = lambda mode=True: module  # noqa: B023  their statistics are not to move
            module.eval()
            module.training = False
    return model


def theirs(model, folder: Path) -> tuple[dict, dict[str, dict[str, float]]]:
    """({file name: detections, "masks28" the probabilities before they are pasted}, {kind of IoU: pycocotools' numbers})."""
    import torch
    from PIL import Image
    from pycocotools import mask as rle
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(folder / "annotations" / "instances_val2017.json"))
    categories = [0, *sorted(truth.getCatIds())]
    raw, paste = [], model.transform.postprocess
    model.transform.postprocess = lambda result, *sizes: raw.append(dict(result[0])) or paste(result, *sizes)
    model.eval()
    found, rows = {}, []
    for image in truth.loadImgs(truth.getImgIds()):
        picture = Image.open(folder / "val2017" / image["file_name"]).convert("RGB")
        pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).float() / 255
        with torch.no_grad():
            result = {key: value.numpy() for key, value in model([pixels])[0].items()}
        if "masks" in result:
            result |= {"masks28": raw[-1]["masks"].numpy()[:, 0], "masks": result["masks"][:, 0] > 0.5}
        found[image["file_name"]] = result
        for n, (x1, y1, x2, y2) in enumerate(result["boxes"].astype(float)):
            row = {"image_id": image["id"], "category_id": categories[result["labels"][n]], "score": float(result["scores"][n])}
            row["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            if "masks" in result:
                row["segmentation"] = rle.encode(np.asfortranarray(result["masks"][n].astype(np.uint8)))
            rows.append(row)
    numbers = {}
    for kind in ("bbox", "segm") if "masks" in result else ("bbox",):
        learned = [image["id"] for image in truth.loadImgs(truth.getImgIds()) if image["file_name"] in LEARNED]
        for name, images in (("", truth.getImgIds()), ("learned_", learned)):
            # loadRes takes the area of the box where there is one, of the mask otherwise; it adds to what it is given
            given = [{key: value for key, value in row.items() if kind == "bbox" or key != "bbox"} for row in rows]
            evaluation = COCOeval(truth, truth.loadRes(given), kind)
            evaluation.params.imgIds = images
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            numbers[name + kind] = dict(zip(NUMBERS, map(float, evaluation.stats), strict=True))
    return found, numbers


def ours(arguments: argparse.Namespace, weights: Path) -> tuple[dict, dict[str, dict[str, float]]]:
    """The same of this package."""
    import jax
    from pycocotools import mask as rle

    from imgrec_jax import assemble
    from imgrec_jax.overrides import configure
    from imgrec_jax.run import evaluate, loop
    from imgrec_jax.step import eval_variables

    out = Path(arguments.out)
    (_, file), (key, option) = (flag.removeprefix("--config.").split("=", 1) for flag in network(arguments.kind))
    found, numbers = {}, {}
    for prefix, split in (("", "val"), ("learned_", "train")):
        given = {
            key: option, "data.manual_dir": f"{out}/coco", "data.validation_split": split, "data.min_size": "(128,)",
            "data.max_size": "192", "data.resize": "torchvision", "data.eval_batch_size": "1", "pretrained.path": str(weights),
            "pretrained.head": "keep", "model.norm": "frozen", "optim.frozen": "()", "data.allow_overlap": "true",
        }  # fmt: skip
        made, _ = configure(file, given)
        experiment = assemble.build(made)
        state, _ = loop.create_state(experiment, lambda variables, e=experiment: e.optimisation.initialise(variables)[0])
        pipeline = experiment.data.evals["validation"]
        step = loop.compile_eval_step(experiment, state)
        layout, summarise = experiment.compute.layout, experiment.data.summarise["validation"]
        values = evaluate.evaluate(step, eval_variables(state), pipeline, layout, summarise=summarise)
        for kind, stem in (("bbox", ""), ("segm", "segm_")):
            if stem + "AP" in values:
                numbers[prefix + kind] = {n: -1.0 if values[stem + n] is None else values[stem + n] for n in NUMBERS}
        if prefix:
            continue
        predict = jax.jit(experiment.task.predict)
        for index in range(pipeline.steps_per_epoch):
            batch = pipeline.batch(index)
            predictions = jax.device_get(predict(eval_variables(state), batch))
            (row,) = experiment.task.records(predictions, batch)
            kept = predictions["valid"][0]
            one = {key: np.asarray(row[key]) for key in ("boxes", "scores", "labels")}
            if "masks" in predictions:
                one["masks28"] = predictions["masks"][0][kept]
                one["masks"] = np.stack([rle.decode(mask) for mask in row["masks"]]) > 0 if len(row["masks"]) else []
            found[pipeline.source[int(batch["index"][0])]["file_name"]] = one
    return found, numbers


def matched(there: dict, here: dict) -> dict:
    """Detections one to one: the same class, box to 1e-2 px and score to 1e-4; and how far those apart are."""
    worst = {"boxes_px": 0.0, "scores": 0.0, "mask_probability": 0.0, "mask_pixels": 0.0}
    total = partners = masks_pixels = different = 0
    for file, theirs_ in there.items():
        mine = here[file]
        free = list(range(len(mine["scores"])))
        total += len(theirs_["scores"])
        for n, (box, score, label) in enumerate(zip(theirs_["boxes"], theirs_["scores"], theirs_["labels"], strict=True)):
            same = [i for i in free if mine["labels"][i] == label]
            if not same:
                continue
            best = min(same, key=lambda i: np.abs(mine["boxes"][i] - box).max() + abs(mine["scores"][i] - score))
            far, gap = np.abs(mine["boxes"][best] - box).max(), abs(mine["scores"][best] - score)
            if far > 1e-2 or gap > 1e-4:
                continue
            free.remove(best)
            partners += 1
            worst["boxes_px"], worst["scores"] = max(worst["boxes_px"], far), max(worst["scores"], gap)
            if "masks" in theirs_:
                apart = np.abs(theirs_["masks28"][n] - mine["masks28"][best]).max()
                worst["mask_probability"] = max(worst["mask_probability"], apart)
                flipped = theirs_["masks"][n] != mine["masks"][best]
                worst["mask_pixels"] = max(worst["mask_pixels"], flipped.mean())
                different, masks_pixels = different + flipped.sum(), masks_pixels + flipped.size
    extra = sum(len(one["scores"]) for one in here.values()) - partners
    return {
        "detections": total, "matched": partners, "extra": extra, **{key: float(value) for key, value in worst.items()},
        "pixels_of_all_masks": float(different / max(1, masks_pixels)),
    }  # fmt: skip


def compare(arguments: argparse.Namespace) -> None:
    sys.path.insert(0, str(ROOT))
    from safetensors.torch import save_file

    out = Path(arguments.out)
    subset(Path(arguments.coco), out / "coco")
    weights = out / "overfit.safetensors"
    model = torch_model(arguments.kind, None if arguments.seeded else weights)
    if arguments.seeded:
        weights = out / "seeded.safetensors"
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, weights)
    result = {"kind": arguments.kind, "weights": "seeded" if arguments.seeded else "overfitted"}
    watched = gradients.watched_samples if arguments.kind.startswith("mask") else lambda model: contextlib.nullcontext()
    rows_file = HERE / f"{arguments.kind}_{result['weights']}_losses.jsonl"
    if "losses" in arguments.only:
        with watched(model) as seen:
            found = gradients.losses(model, arguments.kind, out / "coco", seen)
        rows_file.write_text("".join(json.dumps(pair) + "\n" for pair in gradients.by_pair(found.pop("rows"))))
        result["training"] = found
        print(json.dumps(found), flush=True)
    if "double" in arguments.only:
        import jax

        stored = map(json.loads, rows_file.read_text().splitlines())
        if pairs := [row["pair"] for row in stored if row["gradient"] > 1e-3]:
            with jax.enable_x64(True), watched(model.double()) as seen:
                result["training_float64"] = gradients.losses(model, arguments.kind, out / "coco", seen, pairs)
            del result["training_float64"]["rows"]
            print(json.dumps(result["training_float64"]), flush=True)
            model.float()
    if "detections" in arguments.only:
        there, numbers_there = theirs(model, out / "coco")
        here, numbers_here = ours(arguments, weights)
        result |= {"numbers_there": numbers_there, "numbers_here": numbers_here}
        result["largest_difference"] = max(
            abs(numbers_there[kind][name] - numbers_here[kind][name]) for kind in numbers_there for name in NUMBERS
        )
        result["detections"] = matched(there, here)
        print(json.dumps({key: result[key] for key in ("largest_difference", "detections")}), flush=True)
        print({kind: round(values["AP"], 4) for kind, values in numbers_there.items()})
    name = f"{arguments.kind}_{result['weights']}.json"
    file = HERE / name
    old = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(old | result, indent=1) + "\n")


def table() -> str:
    columns = (
        "detector, weights", "AP of boxes, masks (both sides)", "largest difference of the COCO numbers",
        "detections, one to one", "boxes, px", "scores", "mask probabilities", "pixels of a pasted mask", "losses",
        "gradients: median, largest", "largest in float64",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for weights in ("overfitted", "seeded"):
        for kind in NAMES:
            file = HERE / f"{kind}_{weights}.json"
            if not file.exists():
                continue
            made = json.loads(file.read_text())
            found, training, again = made["detections"], made["training"], made.get("training_float64")
            cells = [
                f"{kind}, {weights}",
                ", ".join(
                    f"{made['numbers_there'][one]['AP']:.3f}" for one in ("bbox", "segm") if one in made["numbers_there"]
                ),
                f"{made['largest_difference']:.0e}" if made["largest_difference"] else "0",
                f"{found['matched']:,} of {found['detections']:,}" + f", {found['extra']} more here" * bool(found["extra"]),
                f"{found['boxes_px']:.1e}",
                f"{found['scores']:.1e}",
                f"{found['mask_probability']:.1e}" if kind.startswith("mask") else "",
                f"{found['mask_pixels']:.1e}" if kind.startswith("mask") else "",
                f"{training['largest_loss']['relative']:.1e}",
                f"{training['median_gradient']:.1e}, {training['largest_gradient']['relative']:.1e}",
                f"{again['largest_gradient']['relative']:.1e}" if again and "largest_gradient" in again else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("overfit", "compare", "table"))
    parser.add_argument("--kind", choices=tuple(NAMES))
    parser.add_argument("--coco")
    parser.add_argument("--out")
    parser.add_argument("--body", help="overfit: the run whose body is taken")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeded", action="store_true")
    parser.add_argument(
        "--only", nargs="*", default=["losses", "double", "detections"], choices=("losses", "double", "detections")
    )
    arguments = parser.parse_args()
    if arguments.part == "table":
        sys.path.insert(0, str(ROOT / "experiments"))
        import runs

        runs.put(HERE / "README.md", table())
        return
    if missing := [f"--{name}" for name in ("kind", "coco", "out") if not getattr(arguments, name)]:
        parser.error(f"{arguments.part} wants {', '.join(missing)}")
    {"overfit": overfit, "compare": compare}[arguments.part](arguments)


if __name__ == "__main__":
    main()
