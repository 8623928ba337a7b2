"""What the values of a config may be, and which keys which task, schedule or choice uses."""

import math
import re
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from imgrec_jax.assemble.lookup import ConfigError
from imgrec_jax.config import base, flatten
from imgrec_jax.run.boards import BOARDS
from imgrec_jax.stats import CRITERIA

Check = tuple[Callable[[Any], bool], str]


def _number(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> Check:
    """A finite number from low to high; above, below: without the limit itself."""

    def good(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return (value > low if above else value >= low) and (value < high if below else value <= high)

    bounds = f"{'more than' if above else 'at least'} {low:g}" + (
        f" and {'less than' if below else 'at most'} {high:g}" if high < math.inf else ""
    )
    return good, f"a number, {bounds}"


def _integer(low: int) -> Check:
    return lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= low, f"an integer, at least {low}"


def _or_none(check: Check) -> Check:
    return lambda v: v is None or check[0](v), f"{check[1]}, or None"


def _each(check: Check, least: int = 0) -> Check:
    return (
        lambda v: isinstance(v, tuple | list) and len(v) >= least and all(check[0](x) for x in v),
        f"a tuple{f' of at least {least}' if least else ''}, each {check[1]}",
    )


def _is_regex(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError):
        return False
    return isinstance(value, str)


_REGEX: Check = (_is_regex, "a regular expression")
_TEXT: Check = (lambda v: isinstance(v, str), "text")


def _rules(check: Check) -> Check:
    return _each((
        lambda v: isinstance(v, tuple | list) and len(v) == 2 and _is_regex(v[0]) and check[0](v[1]),
        f"a pair of a regular expression and {check[1]}",
    ))  # fmt: skip


def _size(length: int) -> Check:
    one = _integer(1)[0]
    return (
        lambda v: isinstance(v, tuple | list) and (not v or (len(v) == length and all(map(one, v)))),
        f"() or {length} integers, at least 1 each",
    )


VALUES: dict[str, Check] = {
    "seed": (lambda v: _integer(0)[0](v) and v < 2**32, "an integer from 0, less than 2**32"),
    "seeds": _integer(1),
    "data.batch_size": _integer(1),
    "data.eval_batch_size": _integer(1),
    "data.threads": _integer(0),
    "data.balance": _number(0, 1),
    "data.balance_by": (lambda v: v in ("loss", "sampling"), "'loss' or 'sampling'"),
    "data.mean": _each(_number(-math.inf), 1),
    "data.std": _each(_number(0, above=True), 1),
    "data.pad_multiple": _integer(1),
    "data.pad_to": _size(2),
    "data.min_size": _each(_integer(1), 1),
    "data.max_size": _integer(1),
    "data.canvases": _each((lambda v: bool(v) and _size(2)[0](v), "(height, width)")),
    "data.max_boxes": _integer(1),
    "data.max_proposals": _integer(0),
    "optim.learning_rate": _number(0),
    "optim.base_batch_size": _or_none(_integer(1)),
    "optim.weight_decay": _rules(_number(0)),
    "optim.lr_multiplier": _rules(_number(0)),
    "optim.frozen": _each(_REGEX),
    "optim.layer_decay": _number(0, 1, above=True),
    "optim.unfreeze_after_steps": _or_none(_integer(1)),
    "optim.unfreeze_after_epochs": _or_none(_number(0, above=True)),
    "optim.unfreeze_after_examples": _or_none(_integer(1)),
    "data.examples_per_class": _or_none(_integer(1)),
    "optim.clip_norm": _or_none(_number(0, above=True)),
    "optim.ema_decay": _number(0, 1, below=True),
    "optim.accumulate": _integer(1),
    "schedule.warmup_factor": _number(0, 1),
    "schedule.final_factor": _number(0),
    "schedule.boundaries_epochs": _each(_number(0)),
    "schedule.gamma": _number(0, above=True),
    "schedule.power": _number(0),
    "schedule.peak_fraction": _number(0, 1),
    "schedule.div_factor": _number(0, above=True),
    "pretrained.allow_missing": _each(_REGEX),
    "pretrained.allow_unexpected": _each(_REGEX),
    "pretrained.allow_wrong_shape": _each(_REGEX),
    "parallel.fsdp": _integer(1),
    "eval.top_k": _each(_integer(1)),
    "eval.threshold": (lambda v: v in CRITERIA, f"one of {CRITERIA}"),
    "eval.window": _size(2),
    "eval.objects.sigma": _number(0),
    "eval.objects.height": _number(0),
    "eval.objects.smallest": _integer(0),
    "eval.overlap": _number(0, 1, below=True),
    "select.patience": _or_none(_integer(1)),
    "checkpoint.keep": _integer(1),
    "log.every_steps": _integer(1),
    "log.show": _each(_TEXT),
    "log.writers": _each((lambda v: v in BOARDS, f"one of {', '.join(BOARDS)}")),
    "log.samples": _integer(0),
    "profile.first_step": _or_none(_integer(0)),
    "profile.steps": _integer(1),
    **{f"{name}_steps": _or_none(_integer(1)) for name in ("train.total", "eval.every", "checkpoint.every")},
    **{f"{name}_epochs": _or_none(_number(0, above=True)) for name in ("train.total", "eval.every", "checkpoint.every")},
    **{f"{name}_examples": _or_none(_integer(1)) for name in ("train.total", "eval.every", "checkpoint.every")},
    "schedule.warmup_steps": _or_none(_integer(0)),
    "schedule.warmup_epochs": _or_none(_number(0)),
    "schedule.warmup_examples": _or_none(_integer(0)),
}
# Options of whatever component has one of that name.
OPTIONS: dict[str, Check] = {
    "dropout": _number(0, 1, below=True),
    "label_smoothing": _number(0, 1, below=True),
    "num_classes": _integer(1),
    "hidden": (lambda v: _integer(1)[0](v) or _each(_integer(1))[0](v), "an integer or a tuple of integers, at least 1 each"),
    "width": _integer(1),
    "depth": _integer(1),
    "momentum": _or_none(_number(0, 1)),
    "probability": _number(0, 1),
    "flip": _number(0, 1),
    "sigma": _number(0),
    "alpha": _number(0, above=True),
    "padding": (
        lambda v: str(v) in ("SAME", "VALID", "same", "valid", "torch", "tf"),
        "'SAME' or 'VALID', of the zoo 'torch' (symmetric) or 'tf' (TensorFlow's SAME)",
    ),
    "aspect_ratios": _each(_number(0, above=True), 1),
    "anchor_sizes": _each(_each(_number(0, above=True), 1), 1),
    "widths": _each(_integer(1)),
}
_RANGE: Check = (
    lambda v: _each(_number(0, above=True), 2)[0](v) and len(v) == 2 and v[0] <= v[1],
    "(low, high), more than 0 and in that order",
)
_GREY = _number(0, 255)
_PIXELS: Check = (lambda v: bool(v) and _size(2)[0](v), "2 integers, at least 1 each")
_FITS = ("none", "inside", "cover", "stretch")
# Options of ops, by name or by "OP.NAME"; those that are in OPTIONS, too, hold likewise.
OPTIONS_OF_OPS: dict[str, Check] = {
    "scale": _RANGE,
    "area": _RANGE,
    "random_resized_crop.ratio": _RANGE,
    "erase.ratio": _number(1),
    "aspect": _number(1),
    "size": _PIXELS,
    "random_affine.size": _or_none(_PIXELS),
    "length": _integer(1),
    "shorter": _integer(1),
    "fill": (lambda v: _GREY[0](v) or _each(_GREY, 1)[0](v), "a number, or a tuple of them, from 0 to 255"),
    "vertical_flip": _number(0, 1),
    "rotate": _number(0),
    "shear": _number(0),
    "translate": _number(0),
    "channels": (lambda v: v in (1, 3) and v is not True, "1 or 3"),
    "fit": (lambda v: v in _FITS, f"one of {_FITS}"),
}
OP_KEY = ".op"
_OP = re.compile(r"^data\.(?:train|eval)_ops\.(\w+)\.(\w+)$")
_SHARE, _COUNT = _number(0, 1), _integer(1)
# Settings of detectors, by the end of their name.
DETECTION: dict[str, Check] = {
    "_thresh": _SHARE,
    "_fraction": _SHARE,
    "_per_img": _COUNT,
    "_per_image": _COUNT,
    "_train": _COUNT,
    "_test": _COUNT,
    "_top_n": _COUNT,
    "topk_candidates": _COUNT,
    "focal_alpha": _SHARE,
    "focal_gamma": _number(0),
    "_weights": (lambda v: _each(_number(0, above=True))[0](v) and len(v) == 4, "four numbers, more than 0"),
    "_beta": _number(0),
}
OR_NONE = ("crowd_thresh", "mask_batch_size_per_image")

# Of what a run may be chosen by: numbers of this project that are better the smaller, and the larger they are.
_LESS_IS_MORE = re.compile(r"(^|_)loss(_|$)|^calibration_error$")
_MORE_IS_BETTER = re.compile(r"(^|_)(accuracy|precision|recall|specificity|f1|auc|iou|dice|mAUC|m?A[PR][sml]?)(_|\d|$)")
_OF_RECORDS = ("best_", "ensemble_")  # beginnings of names of splits in the records of a run and of several seeds

# Keys that only some tasks use; elsewhere they must have their default.
_DETECTION = (
    "data.min_size", "data.max_size", "data.resize", "data.canvases", "data.max_boxes", "data.max_proposals", "data.search",
    "data.drop_degenerate_boxes", "data.drop_extra_boxes", "detection",
)  # fmt: skip
TASKS_OF_KEY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_DETECTION, ("detection",)),
    **dict.fromkeys(("data.pad_multiple", "data.pad_to", "eval.test_time", "eval.objects"), ("segmentation",)),
    "eval.window": ("segmentation", "detection"),
    "eval.top_k": ("classification",),
    "data.examples_per_class": ("classification",),
    "eval.intervals": ("classification",),
    **dict.fromkeys(("data.multi_label", "data.balance", "data.balance_by", "data.prepare"), ("classification",)),
    "eval.positive": ("classification",),
    "eval.threshold": ("classification",),
    "loss": ("classification", "segmentation"),
}
_WITH_WARMUP = ("constant", "step", "cosine", "polynomial")  # one_cycle has its own
# Keys of a schedule that only some of them use.
SCHEDULES_OF_KEY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("warmup_steps", "warmup_epochs", "warmup_examples", "warmup_factor"), _WITH_WARMUP),
    "final_factor": ("cosine", "polynomial", "one_cycle"),
    "boundaries_epochs": ("step",),
    "gamma": ("step",),
    "power": ("polynomial",),
    "peak_fraction": ("one_cycle",),
    "div_factor": ("one_cycle",),
}  # fmt: skip

# Keys that do something only while another one has a value; a section ends in a dot.
NEEDS: dict[str, str] = {
    "eval.overlap": "eval.window",
    "eval.positive": "eval.intervals",
    "eval.threshold": "eval.intervals",
    "data.balance_by": "data.balance",
    "pretrained.": "pretrained.path",
    "checkpoint.": "checkpoint.enabled",
    "profile.steps": "profile.first_step",
    "select.mode": "select.metric",
}


def switch_schedule(config: ConfigDict, name: str) -> str | None:
    """Brings the options that the schedule `name` does not take back to their defaults, in place; returns what to say."""
    default, before, dropped = base().schedule, config.schedule.name, []
    for key, names in SCHEDULES_OF_KEY.items():
        if name not in names and before in names and _differs(config.schedule, default, key):
            config.schedule[key] = default[key]
            dropped.append(key)
    return f"note: schedule.name={name} takes no {', '.join(dropped)}; dropped, as {before} had them" if dropped else None


def check(config: ConfigDict) -> None:
    """Raises ConfigError for the first value that cannot be: key, value, what is expected."""
    flat = flatten(config)
    for key, (good, expected) in VALUES.items():
        if key in flat and not good(flat[key]):
            raise ConfigError(f"config.{key}={flat[key]!r}; expected {expected}")
    own = {key.removesuffix(OP_KEY) for key in flat if key.endswith(OP_KEY)}  # ops of the user's own
    for key, value in flat.items():
        rule = None if key.rpartition(".")[0] in own else _rule(key, value)
        if rule and key not in VALUES and not rule[0](value):
            raise ConfigError(f"config.{key}={value!r}; expected {rule[1]}")
    for name in config.data.test_sets:
        if name.startswith(_OF_RECORDS):
            raise ConfigError(
                f"config.data.test_sets has {name!r}: records of such names are of the best checkpoint or of an ensemble; "
                f"expected a name that does not begin with {' or '.join(_OF_RECORDS)}"
            )
    if (
        config.task == "classification"
        and config.eval.top_k
        and max(config.eval.top_k) > config.model.get("num_classes", 10**9)
    ):
        raise ConfigError(f"config.eval.top_k={config.eval.top_k}: there are only {config.model.num_classes} classes")


def _rule(key: str, value: Any) -> Check | None:
    """What the option of a component must be, by its name."""
    section, _, name = key.partition(".")
    if section == "detection":
        return next(
            (_or_none(rule) if name in OR_NONE else rule for end, rule in DETECTION.items() if name.endswith(end)), None
        )
    if of_op := _OP.match(key):
        op, option = of_op.groups()
        return OPTIONS_OF_OPS.get(f"{op}.{option}") or OPTIONS_OF_OPS.get(option) or OPTIONS.get(option)
    if section == "loss" and isinstance(value, int | float) and not isinstance(value, bool) and name not in OPTIONS:
        return _number(0)
    if section == "model" and isinstance(value, int) and not isinstance(value, bool) and name not in OPTIONS:
        return _integer(1)
    return OPTIONS.get(key.rpartition(".")[2]) if key.startswith(("model.", "loss.", "optim.options.", "data.")) else None


def check_used(config: ConfigDict) -> None:
    """Raises ConfigError for a key that was given a value and that nothing in this config uses; says what would use it."""
    default = base()
    for key, tasks in TASKS_OF_KEY.items():
        if config.task not in tasks and _differs(config, default, key):
            raise ConfigError(
                f"config.{key}={_value(config, key)!r} is not used for {config.task}, but for {' and '.join(tasks)}; leave it "
                f"at {_value(default, key)!r}"
            )
    name = config.schedule.name
    for key, names in SCHEDULES_OF_KEY.items():
        if name not in names and _differs(config.schedule, default.schedule, key):
            given = f"config.schedule.{key}={config.schedule[key]!r}"
            raise ConfigError(f"{given} is not used by the schedule {name!r}, but by {', '.join(names)}")
    if config.select.mode == "max" and _LESS_IS_MORE.search(config.select.metric):
        raise ConfigError(
            f"config.select.metric={config.select.metric!r} is better the smaller it is, and config.select.mode='max' would "
            "keep the worst; set select.mode='min'"
        )
    more = _MORE_IS_BETTER.search(config.select.metric) and not _LESS_IS_MORE.search(config.select.metric)
    if config.select.mode == "min" and more:
        raise ConfigError(
            f"config.select.metric={config.select.metric!r} is better the larger it is, and config.select.mode='min' would "
            "keep the worst; set select.mode='max'"
        )
    if not config.select.metric and config.select.patience is not None:
        raise ConfigError(f"config.select.patience={config.select.patience} needs a config.select.metric to wait for")


def without_effect(config: ConfigDict) -> list[str]:
    """What to say of keys that were given a value and do nothing as long as another one has none."""
    default, lines = base(), []
    flat, before = flatten(config), flatten(default)
    for parent in dict.fromkeys(NEEDS.values()):
        if _value(config, parent) not in (None, False, "", (), 0.0) or (parent == "profile.first_step" and flat[parent] == 0):
            continue
        idle = [k for k in flat if k != parent and flat[k] != before.get(k) and NEEDS.get(k, NEEDS.get(_section(k))) == parent]
        if idle:
            lines.append(f"note: {', '.join(idle)} without effect: {parent} is {_value(config, parent)!r}")
    if config.schedule.name == "step" and not config.schedule.boundaries_epochs:
        lines.append("note: schedule.name='step' without effect: schedule.boundaries_epochs is ()")
    if config.select.metric and config.select.patience is None and not config.checkpoint.enabled:
        lines.append(
            f"note: select.metric={config.select.metric!r} without effect: checkpoint.enabled is False, no best state is kept"
        )
    return lines


def _section(key: str) -> str:
    return key.rpartition(".")[0] + "."


def check_channels(config: ConfigDict, channels: int) -> None:
    """Raises ConfigError when the normalisation is of another number of channels than the images."""
    for key in ("mean", "std"):
        if len(config.data[key]) not in (1, channels):
            given = f"config.data.{key}={tuple(config.data[key])}"
            raise ConfigError(
                f"{given}: the images have {channels} channel{'s' * (channels > 1)}; expected 1 number"
                + f" or {channels}" * (channels > 1)
            )


def _value(config: ConfigDict, key: str) -> Any:
    for part in key.split("."):
        config = config[part]
    return config.to_dict() if isinstance(config, ConfigDict) else config


def _differs(config: ConfigDict, default: ConfigDict, key: str) -> bool:
    return flatten({"": _value(config, key)}) != flatten({"": _value(default, key)})
