"""The shape of every config: all keys, with their defaults. `configs/*.py` start from it and change values.

It is locked, so a misspelt key is an error where it is written. Durations take one of three units: of `x_steps`, `x_epochs`
and `x_examples` exactly one is set. `model`, `loss`, `optim.options`, `data.search`, `data.train_ops` and `data.eval_ops` are
the arguments of what they name and are checked by `build.py`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def base() -> ConfigDict:
    """A complete, locked config without a model."""
    config = ConfigDict()
    config.seed = 0
    config.task = "classification"
    config.model = ConfigDict({"name": ""})
    config.pretrained = ConfigDict()  # the weights that a fresh run starts from
    config.pretrained.path = ""  # a .pth or .safetensors file; "" starts from random weights
    config.pretrained.format = "torchvision"
    # Regexes of paths that may be in the model alone, in the file alone, or differ in shape; all else is an error.
    config.pretrained.allow_missing = ()
    config.pretrained.allow_unexpected = ()
    config.pretrained.allow_wrong_shape = ()
    # Of the computation. With "bfloat16", half the traffic, parameters stay float32; with "float64", for checks, they follow.
    config.dtype = "float32"
    config.loss = ConfigDict({"name": "softmax_cross_entropy"})

    config.data = ConfigDict()
    config.data.name = ""  # as TFDS names it: "mnist:3.0.1", "cifar10", ...
    config.data.data_dir = ""  # "" is $TFDS_DATA_DIR or ~/tensorflow_datasets
    config.data.manual_dir = ""  # files placed by hand
    config.data.train_split = "train"
    config.data.validation_split = ""  # what early stopping and the choice of the best checkpoint look at
    config.data.test_split = "test"  # reported after every evaluation, never selected on
    config.data.batch_size = 64  # global, over all devices
    config.data.eval_batch_size = 1000
    config.data.remainder = "drop"  # examples that fill no batch: "drop", or "pad" a last one
    config.data.mean = (0.0,)
    config.data.std = (1.0,)
    config.data.options = ConfigDict()  # of the kind of set: where its files lie, its classes, ...
    config.data.train_ops = ConfigDict()
    config.data.eval_ops = ConfigDict()
    config.data.in_memory = placeholder(bool)  # None: where it fits
    config.data.on_device = placeholder(bool)  # None: where it fits, on accelerators
    config.data.threads = 2

    # Segmentation
    config.data.pad_multiple = 1  # padded sides are multiples of it (the stride of the network)
    config.data.pad_to = ()  # (height, width) of every batch; () is the largest of each
    # Detection
    config.data.min_size = (800,)  # of the shorter side; in training one is drawn per image, evaluation takes the last
    config.data.max_size = 1333  # of the longer side
    config.data.canvases = ()  # the few (height, width) that batches are padded to; () chooses them by the two sizes
    config.data.max_boxes = 100
    config.data.max_proposals = 0  # external proposals per image (R-CNN, Fast R-CNN)
    config.data.search = ConfigDict()  # of the selective search that makes them; {} is OpenCV's fast mode
    config.data.drop_degenerate_boxes = False
    config.data.drop_extra_boxes = False
    config.detection = ConfigDict()  # thresholds and counts, with torchvision's names and defaults

    config.optim = ConfigDict()
    config.optim.name = "sgd"
    config.optim.options = ConfigDict()
    config.optim.learning_rate = 0.01
    config.optim.base_batch_size = placeholder(int)  # the rate is for this many examples, and scaled in proportion to more
    config.optim.weight_decay = ()  # (regex, value) rules; the first match wins
    config.optim.lr_multiplier = ()
    config.optim.frozen = ()  # regexes
    config.optim.clip_norm = placeholder(float)
    config.optim.ema_decay = 0.0
    config.optim.accumulate = 1

    config.schedule = ConfigDict()
    config.schedule.name = "constant"
    config.schedule.warmup_steps = placeholder(int)
    config.schedule.warmup_epochs = placeholder(float)
    config.schedule.warmup_examples = placeholder(int)
    config.schedule.warmup_factor = 0.0
    config.schedule.final_factor = 0.0
    config.schedule.boundaries_epochs = ()
    config.schedule.gamma = 0.1
    config.schedule.power = 0.9
    config.schedule.peak_fraction = 0.3
    config.schedule.div_factor = 25.0

    config.parallel = ConfigDict()
    config.parallel.mode = "jit"  # or "pmap"
    config.parallel.fsdp = 1  # pieces into which parameters, optimiser and averages are cut; "jit" only
    config.parallel.remat = "none"  # what the backward pass computes again: "none", all but "convolutions", "everything"
    config.parallel.compilation_cache = ""  # a folder that keeps compiled programs for the next run; "" for none

    config.train = ConfigDict()
    config.train.total_steps = placeholder(int)
    config.train.total_epochs = placeholder(float)
    config.train.total_examples = placeholder(int)

    config.eval = ConfigDict()
    config.eval.every_steps = placeholder(int)
    config.eval.every_epochs = placeholder(float)
    config.eval.every_examples = placeholder(int)
    config.eval.top_k = ()
    config.eval.window = ()  # segmentation: predict by windows of (height, width); () predicts images whole
    config.eval.overlap = 0.25
    config.eval.test_time = "none"  # segmentation: "flips", "rotations", "d4", "rotations7", "shifts"

    config.select = ConfigDict()  # the best checkpoint and the early stop
    config.select.metric = ""  # of the validation split: "accuracy", "loss", ...
    config.select.mode = "max"
    config.select.patience = placeholder(int)  # evaluations without an improvement; None never stops early

    config.checkpoint = ConfigDict()
    config.checkpoint.enabled = True
    config.checkpoint.every_steps = placeholder(int)
    config.checkpoint.every_epochs = placeholder(float)
    config.checkpoint.every_examples = placeholder(int)
    config.checkpoint.keep = 2

    config.log = ConfigDict()
    config.log.every_steps = 100
    config.log.show = ("loss", "accuracy")
    config.log.tensorboard = True

    config.profile = ConfigDict()  # a trace for TensorBoard or Perfetto, in the workdir's `profile`
    config.profile.first_step = placeholder(int)  # counted from this start of the program; None for no trace
    config.profile.steps = 5
    config.lock()
    return config


# A workdir may be resumed with other values of these: they change how long a run is and what it prints, not what it computes.
MAY_CHANGE = (
    "train.total_",
    "log.",
    "checkpoint.",
    "data.data_dir",
    "data.manual_dir",
    "data.threads",
    "data.in_memory",
    "data.on_device",
    "parallel.",
    "profile.",
)


def flatten(config: ConfigDict | dict, prefix: str = "") -> dict[str, object]:
    """{"optim.name": "sgd", ...}; an empty section is kept as {}."""
    flat: dict[str, object] = {}
    for key, value in (config.to_dict() if isinstance(config, ConfigDict) else config).items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = _plain(value)
    return flat


def _plain(value: object) -> object:
    """As JSON reads it back: tuples are lists."""
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def difference(old: dict[str, object], new: dict[str, object]) -> list[str]:
    """Lines `key: old -> new` for every value that decides what a run computes."""
    return [
        f"{key}: {old.get(key, '(absent)')} -> {new.get(key, '(absent)')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(MAY_CHANGE)
    ]
