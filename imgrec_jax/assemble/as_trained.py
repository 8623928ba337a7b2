"""The preprocessing that weights were trained with: used where a config leaves it open, and what of it is used, in one line."""

from typing import Any

from ml_collections import ConfigDict

from imgrec_jax.pretrained.known import Preprocessing

_UNSET = (((0.0,), (1.0,)), ((), ()))  # nothing said of the mean and the standard deviation
_SIZED = ("random_affine", "random_resized_crop")  # ops of training that make images of the size that evaluation takes
_CROPPING = "resize_and_center_crop"
_MAX_OVER_MIN = 1333 / 800  # of torchvision's detectors: the longer side to the shorter one


def settle(config: ConfigDict, its: Preprocessing) -> None:
    """Sets what the config leaves open to what the weights were trained with; in place.

    Mean and standard deviation; where sizes are to be found in the data, too, the size of classifiers and detectors. With the
    weights' own classes (`head="keep"`), whose published scores are of it, evaluation also resizes and crops as they did.
    Other classes may differ at the border: for them images are taken whole.
    """
    data = config.data
    if _says_no_mean(data):
        data.mean, data.std = its.mean, its.std
        if "channels" in config.pretrained.adapt and data.train_ops.get("to_channels", {}).get("channels") == 1:
            data.mean, data.std = ((sum(v) / len(v),) for v in (its.mean, its.std))  # one for grey
    if config.task == "classification" and its.crop and "size" in data.options and data.options.size is None:
        _settle_size(config, its)
    if config.task == "detection" and (shorter := _of_detector(its)) and not data.min_size and data.max_size is None:
        data.min_size, data.max_size = (shorter,), int(shorter * _MAX_OVER_MIN)


def remembered(config: ConfigDict, before: ConfigDict) -> ConfigDict:
    """A copy with what weights brought to the run of the config `before`, where it leaves that open: they may be gone."""
    config = config.copy_and_resolve_references()
    ours, theirs = config.data, before.data
    locked = config.is_locked
    with config.unlocked():
        if config.pretrained.path and config.pretrained.preprocessing != "none" and _says_no_mean(ours):
            ours.mean, ours.std = tuple(theirs.mean), tuple(theirs.std)
        if (
            _CROPPING in theirs.eval_ops
            and _CROPPING not in ours.eval_ops
            and "resize" in ours.eval_ops
            and ours.eval_ops.resize.get("size") is None
        ):
            del ours.eval_ops["resize"]
            ours.eval_ops[_CROPPING] = theirs.eval_ops[_CROPPING].copy_and_resolve_references()
            for name in _unsized(ours):
                if name in theirs.train_ops:
                    ours.train_ops[name].size = theirs.train_ops[name].size
    if locked:
        config.lock()
    return config


def _says_no_mean(data: ConfigDict) -> bool:
    return (tuple(data.mean), tuple(data.std)) in _UNSET


def _unsized(data: ConfigDict) -> list[str]:
    return [name for name in _SIZED if name in data.train_ops and data.train_ops[name].get("size") is None]


def _settle_size(config: ConfigDict, its: Preprocessing) -> None:
    data, size = config.data, (its.crop, its.crop)
    if "resize" not in data.eval_ops or data.eval_ops.resize.get("size") is not None:
        return
    if config.pretrained.head != "keep" or its.resize_shorter is None:
        data.options.size = size  # the ops follow it
        return
    del data.eval_ops["resize"]
    data.eval_ops[_CROPPING] = ConfigDict(_cropping(its))
    data.options.size = ()
    for name in _unsized(data):
        data.train_ops[name].size = size


def _cropping(its: Preprocessing) -> dict[str, Any]:
    """Options of `resize_and_center_crop`."""
    size = (its.crop, its.crop)
    return {
        "shorter": its.resize_shorter, "size": size, "interpolation": its.interpolation, "antialias": its.antialias,
    }  # fmt: skip


def _of_detector(its: Preprocessing) -> int:
    """The shorter side that a detector was trained with; 0 of other weights."""
    return its.resize_shorter if its.resize_shorter and not its.crop and not its.antialias else 0


def describe(config: ConfigDict, its: Preprocessing) -> str:
    """What of it the config uses, and what not."""
    data = config.data
    used: list[str] = []
    other: list[str] = []
    same = [len(a) == len(b) and max(abs(x - y) for x, y in zip(a, b, strict=True)) < 1e-4
            for a, b in ((data.mean, its.mean), (data.std, its.std))]  # fmt: skip
    (used if all(same) else other).append("mean and standard deviation")
    if config.task == "classification" and its.crop:
        cropped, resized = (data.eval_ops.get(name, {}) for name in ("resize_and_center_crop", "resize"))
        side = f"{its.crop} x {its.crop} pixels"
        form = f"the middle {side} of {its.resize_shorter}, {its.interpolation}" if its.resize_shorter else side
        given = tuple((cropped or resized).get("size") or ())
        if cropped and all(cropped.get(key) == value for key, value in _cropping(its).items()):
            used.append(form)
        elif given == (its.crop, its.crop):
            used.append(side)
            other += [f"their crop ({form}): images are taken whole"] if its.resize_shorter else []
        else:
            other.append(form + (f" (here {given[0]} x {given[1]})" if given else ""))
    if its.other:
        other.append(its.other)
    if config.task == "detection" and (shorter := _of_detector(its)):
        (used if tuple(data.min_size)[-1:] == (shorter,) else other).append(f"a shorter side of {shorter} pixels")
    return f"preprocessing as trained: {', '.join(used) or 'nothing'}" + (f"; not used: {', '.join(other)}" if other else "")
