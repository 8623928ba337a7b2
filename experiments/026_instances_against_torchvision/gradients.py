"""Losses and gradients of torchvision's detectors and of ours, on pairs of photographs and with the same samples."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

TRAINING = {"rpn_pre_nms_top_n_train": 500, "rpn_post_nms_top_n_train": 200, "box_batch_size_per_image": 64}
LOSSES = {"classification": "loss_classification", "bbox_regression": "loss_bbox_regression"}  # theirs: ours


@contextlib.contextmanager
def watched_samples(model):
    """{"theirs": [...], "ours": [...]}, the RoIs [S, 4] that either side samples for its heads, an image each, as they come."""
    import jax

    from imgrec_jax.tasks import two_stage

    seen = {"theirs": [], "ours": []}
    select, targets_of = model.roi_heads.select_training_samples, two_stage.proposal_targets

    def theirs_(*args):
        answer = select(*args)
        seen["theirs"] += [rois.detach().numpy() for rois in answer[0]]
        return answer

    def ours_(*args, **options):
        targets = targets_of(*args, **options)
        jax.debug.callback(lambda rois, valid: seen["ours"].append(rois[valid]), targets.rois, targets.valid)
        return targets

    model.roi_heads.select_training_samples, two_stage.proposal_targets = theirs_, ours_
    try:
        yield seen
    finally:
        model.roi_heads.select_training_samples, two_stage.proposal_targets = select, targets_of


def unequal(seen: dict[str, list[np.ndarray]]) -> int:
    """How many RoIs one side sampled and the other did not, to 1e-2 px; empties the lists."""
    here, there = np.concatenate(seen["ours"]), np.concatenate(seen["theirs"])
    far = np.abs(here[:, None] - there[None]).max(-1)
    for rows in seen.values():
        rows.clear()
    return int((far.min(0) > 1e-2).sum() + (far.min(1) > 1e-2).sum())


def photographs(truth, ids: Sequence[int], folder: Path) -> tuple[list[np.ndarray], list[tuple[np.ndarray, ...]]]:
    """Images [H, W, 3] in 0..1 and (boxes, labels, masks) of each, resized by torchvision; crowds are left out."""
    import torch
    from PIL import Image
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    categories = {category: n + 1 for n, category in enumerate(sorted(truth.getCatIds()))}
    resize = GeneralizedRCNNTransform(128, 192, [0.0] * 3, [1.0] * 3)
    images, data = [], []
    for image in truth.loadImgs(list(ids)):
        picture = np.asarray(Image.open(folder / "val2017" / image["file_name"]).convert("RGB"))
        rows = [a for a in truth.loadAnns(truth.getAnnIds(image["id"])) if not a["iscrowd"]]
        x, y, w, h = np.array([a["bbox"] for a in rows], np.float32).reshape(-1, 4).T
        target = {
            "boxes": torch.from_numpy(np.stack([x, y, x + w, y + h], -1)),
            "labels": torch.tensor([categories[a["category_id"]] for a in rows], dtype=torch.int64),
            "masks": torch.from_numpy(np.stack([truth.annToMask(a) for a in rows])),
        }
        pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255
        batch, (target,) = resize([pixels], [target])
        height, width = batch.image_sizes[0]
        images.append(batch.tensors[0, :, :height, :width].permute(1, 2, 0).numpy())
        data.append(tuple(target[key].numpy() for key in ("boxes", "labels", "masks")))
    return images, data


def losses(
    model, kind: str, folder: Path, seen: dict[str, list[np.ndarray]] | None, pairs: Sequence[list[int]] | None = None
) -> dict:
    """Largest relative difference of a loss, and of a parameter's gradient, over pairs of images resized by torchvision.

    Of pairs for whose heads both sides sample the same RoIs; the others are counted. For a detector of masks objects of which
    no pixel is left are no target: torchvision teaches an empty mask for them, this package none.

    pairs: of images' ids; None for all. In float64 where the weights of `model` are.
    """
    import jax
    from pycocotools.coco import COCO

    from imgrec_jax.models.norm import FrozenBatchNorm
    from imgrec_jax.pretrained.merge import merge
    from tests import torchvision_names
    from tests.detection import parity
    from tests.goldens import make_mask_rcnn, make_retinanet

    truth = COCO(str(folder / "annotations" / "instances_val2017.json"))
    mask = kind.startswith("mask")
    hyper = TRAINING if mask else {}
    task = parity.task(kind, hyper, num_classes=81, norm=FrozenBatchNorm)
    spec = {"image": jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)}
    converted = torchvision_names.detector({name: value.numpy() for name, value in model.state_dict().items()})
    empty = jax.eval_shape(task.init, jax.random.key(0), spec)
    variables = merge(empty, converted.tensors, source_names=converted.source_names)[0]
    kind_of_number = next(iter(model.parameters())).detach().numpy().dtype
    variables = jax.tree.map(lambda value: np.asarray(value, kind_of_number), variables)

    def loss(params, batch):
        return task.loss({**variables, "params": params}, batch, jax.random.key(0), True)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    golden = make_mask_rcnn if mask else make_retinanet
    # A norm that stands still has no gradient here.
    still = {f"{name}.weight" for name, module in model.named_modules() if "BatchNorm2d" in type(module).__name__}
    names = [n for n in golden.GRADIENTS[kind] if dict(model.named_parameters())[n].requires_grad and n not in still]
    found, ids, others, undrawn = [], truth.getImgIds(), [], {}
    pairs = list(zip(ids[::2], ids[1::2], strict=True)) if pairs is None else pairs
    for pair in pairs:
        images, data = photographs(truth, pair, folder)
        images = [image.astype(kind_of_number) for image in images]
        if mask:
            drawn = [masks.any((1, 2)) for *_, masks in data]
            undrawn |= {image: int((~kept).sum()) for image, kept in zip(pair, drawn, strict=True) if not kept.all()}
            data = [tuple(array[kept] for array in arrays) for arrays, kept in zip(data, drawn, strict=True)]
        model.zero_grad()
        there, gradients = torch_losses(model, images, data, names, mask)
        truths = [(b, label, drawn.astype(bool)) if mask else (b, label) for b, label, drawn in data]
        batch = parity.batch(images, truths)
        batch["image"] = batch["image"].astype(kind_of_number)
        (_, aux), here = jax.device_get(step(variables["params"], batch))
        jax.effects_barrier()
        if seen and (apart := unequal(seen)):
            others.append({"pair": list(pair), "rois_of_one_side_alone": apart})
        for name, value in there.items():
            mine = float(aux.metrics[LOSSES.get(name, name)].compute()[""])
            apart = abs(mine - value) / max(abs(value), 1e-12)
            found.append({"pair": list(pair), "loss": name, "value": value, "relative": apart})
        for name in names:
            mine = parity.by_torch_name(here, name, tuple(gradients[name].shape))
            size = float(np.linalg.norm(gradients[name]))
            found.append({"pair": list(pair), "gradient": name, "size": size,
                          "relative": float(np.linalg.norm(mine - gradients[name])) / max(size, 1e-12)})  # fmt: skip
    left_out = [other["pair"] for other in others]
    kept = [r for r in found if r["pair"] not in left_out]
    result = {"pairs": len(pairs), "other_samples": others, "objects_without_a_pixel": undrawn, "rows": found}
    if kept:
        worst = {what: max((r["relative"], r[what]) for r in kept if what in r) for what in ("loss", "gradient")}
        result |= {f"largest_{what}": {"relative": w[0], "name": w[1]} for what, w in worst.items()}
        result["median_gradient"] = float(np.median([r["relative"] for r in kept if "gradient" in r]))
    return result


def by_pair(rows: list[dict]) -> list[dict]:
    """The largest relative difference of each pair's losses and gradients, and whose it is."""
    found: dict[tuple, dict] = {}
    for row in rows:
        what = "loss" if "loss" in row else "gradient"
        pair = found.setdefault(tuple(row["pair"]), {"pair": row["pair"]})
        if row["relative"] >= pair.get(what, 0.0):
            pair |= {what: float(f"{row['relative']:.3g}"), f"{what}_of": row[what]}
    return list(found.values())


def torch_losses(model, images, data, names, mask):
    import torch

    model.train()
    resize, model.transform.resize = model.transform.resize, lambda image, target=None: (image, target)  # they are resized
    targets = [
        {"boxes": torch.from_numpy(b).to(next(model.parameters()).dtype), "labels": torch.from_numpy(label)}
        | ({"masks": torch.from_numpy(m)} if mask else {})
        for b, label, m in data
    ]
    values = model([torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))) for image in images], targets)
    sum(values.values()).backward()
    model.transform.resize = resize
    parameters = dict(model.named_parameters())
    return {k: v.item() for k, v in values.items()}, {name: parameters[name].grad.numpy() for name in names}
