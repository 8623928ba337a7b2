"""The shape of every config: all keys, with their defaults. `configs/*.py` start from it and change values.

It is locked, so a misspelt key is an error where it is written. Durations take one of three units: of `x_steps`, `x_epochs`
and `x_examples` exactly one is set. The sections in FREE are the arguments of what they name and are checked by `assemble`.

A run keeps its config as JSON (`to_plain`, `from_plain`). A key that such a file lacks has the default that it had when the
file was written, and names that changed since are known by both (`modernise`).
"""

import ast
import difflib
import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

FREE = (
    "model", "loss", "data.options", "data.train_ops", "data.eval_ops", "data.search", "data.test_sets", "detection",
    "optim.options",
)  # fmt: skip

# What a key or a value was called before: {old key: new key}, {key: {old value: new value}}.
RENAMED_KEYS = {"model.classes": "model.num_classes"}
RENAMED_VALUES = {
    "model.name": {"seed_a": "pytorch_cnn", "seed_b": "keras_cnn", "seed_c": "wide_cnn"},
    "pretrained.format": {"torchvision": "auto"},
}

# Workdirs are of format 2 since they keep a `run.json`; see `run.workdir`. A default that changes is listed here with the
# last format that had the old one, so that a file without the key keeps its meaning: {key: [(last format, old default)]}.
OLD_DEFAULTS: dict[str, list[tuple[int, object]]] = {}


def base() -> ConfigDict:
    """A complete, locked config without a model."""
    config = ConfigDict()
    config.seed = 0
    config.seeds = 1  # runs, of seed, seed + 1, ..., each in a folder of its own in the workdir
    # "vmap" stacks them in one compiled step, "devices" shares them out, "processes" gives each its cores; "auto" chooses.
    config.seeds_in = "auto"
    config.task = "classification"
    config.model = ConfigDict({"name": ""})
    config.pretrained = _pretrained()
    # Of the computation. With "bfloat16", half the traffic, parameters stay float32; with "float64", for checks, they follow.
    config.dtype = "float32"
    config.loss = ConfigDict({"name": "softmax_cross_entropy"})
    config.data = _data()
    _segmentation(config)
    _detection(config)
    config.optim, config.schedule = _optim(), _schedule()
    config.parallel = _parallel()
    config.train, config.eval = ConfigDict(), ConfigDict()
    _duration(config.train, "total")
    _duration(config.eval, "every")
    config.eval.top_k = ()  # classification
    config.eval.intervals = False  # classification: of 95 %, by images and by groups; of two classes also the ROC's area
    config.eval.positive = ""  # of two classes, the one that is looked for; "" is the second
    config.eval.threshold = "youden"  # of two classes, chosen on the validation split: "youden" or "f1"
    # (height, width) of windows: segmentation predicts by them alone, detection looks at whole pictures, too; () at these alone
    config.eval.window = ()
    config.eval.overlap = 0.25
    config.eval.test_time = "none"  # segmentation: "flips", "rotations", "d4", "rotations7", "shifts"

    config.select = ConfigDict()  # the best checkpoint and the early stop
    config.select.metric = ""  # of the validation split: "accuracy", "loss", ...
    config.select.mode = "max"
    config.select.patience = placeholder(int)  # evaluations without an improvement; None never stops early

    config.checkpoint = ConfigDict()
    config.checkpoint.enabled = True
    _duration(config.checkpoint, "every")
    config.checkpoint.keep = 2

    config.log = ConfigDict()
    config.log.every_steps = 100
    config.log.show = ("loss", "accuracy")
    config.log.tensorboard = True
    config.log.writers = ()  # more places for curves and pictures: "mlflow", "wandb"
    config.log.pictures = True  # answers and plots beside the curves, wherever these are shown
    config.log.samples = 8  # images of the data that the workdir keeps, so that exports can be checked without the data
    config.log.report = False  # write the report, as `imgrec report` does, at the end of training

    config.profile = ConfigDict()  # a trace for TensorBoard or Perfetto, in the workdir's `profile`
    config.profile.first_step = placeholder(int)  # counted from this start of the program; None for no trace
    config.profile.steps = 5
    config.lock()
    return config


def _duration(section: ConfigDict, name: str) -> None:
    """Three keys, of which one is set."""
    for unit, kind in (("steps", int), ("epochs", float), ("examples", int)):
        section[f"{name}_{unit}"] = placeholder(kind)


def _pretrained() -> ConfigDict:
    """The weights that a fresh run starts from."""
    section = ConfigDict()
    # A file (.pth, .safetensors, .keras, .h5, .onnx), the folder of a tfjs model or of a run, or released weights by name:
    # "torchvision/resnet50.IMAGENET1K_V2", "hf:timm/resnet18.a1_in1k", "pypi:..."; "" starts from random weights.
    section.path = ""
    section.format = "auto"  # whose names they are is found
    # What tells the classes apart: "keep" the file's, "new" as drawn, for other classes or another task, "match" by name.
    section.head = "keep"
    section.class_names = ()  # of the file's outputs, for "match", where it does not tell them
    section.adapt = ()  # "positions" of a ViT to other image sizes, "channels" of the first layer to other images
    # "auto": data.mean and data.std, where they are not given, are those that the weights were trained with; or "none".
    section.preprocessing = "auto"
    section.licence = ""  # of a file that does not tell its own; kept with the run
    # Regexes of paths that may be in the model alone, in the file alone, or differ in shape; all else is an error.
    section.allow_missing = ()
    section.allow_unexpected = ()
    section.allow_wrong_shape = ()
    return section


def _data() -> ConfigDict:
    section = ConfigDict()
    section.name = ""  # as TFDS names it: "mnist:3.0.1", "cifar10", ...
    section.data_dir = ""  # "" is $TFDS_DATA_DIR or ~/tensorflow_datasets
    section.manual_dir = ""  # files placed by hand
    section.train_split = "train"
    section.validation_split = ""  # what early stopping and the choice of the best checkpoint look at
    section.test_split = "test"  # reported after every evaluation, never selected on
    section.examples_per_class = placeholder(int)  # classification: so many of each class are trained on, drawn by the seed
    section.allow_overlap = False  # splits that share examples are an error
    section.batch_size = 64  # global, over all devices
    section.eval_batch_size = 1000
    section.remainder = "drop"  # examples that fill no batch: "drop", or "pad" a last one
    section.mean = (0.0,)
    section.std = (1.0,)
    section.options = ConfigDict()  # of the kind of set: where its files lie, its classes, ...
    section.train_ops = ConfigDict()
    section.eval_ops = ConfigDict()
    section.in_memory = placeholder(bool)  # None: where it fits
    section.on_device = placeholder(bool)  # None: where it fits, on accelerators
    section.threads = 2
    section.max_pixels = 200_000_000  # of an image; a larger one is refused before it is decoded
    _own_data(section)
    return section


def _own_data(section: ConfigDict) -> None:
    """Of the user's own files; see configs/README.md."""
    section.group = ""  # a regex over the path, or a column of the table: what must stay in one split
    section.test_sets = ConfigDict()  # {name: folder} of more test sets, all reported, none of which chooses
    section.fold = ""  # "2/5": the second of five folds is held out
    section.bad_files = "stop"  # files that cannot be used: "stop" with the list, or "skip"
    section.multi_label = False  # several labels an image
    section.prepare = False  # turn larger sets into an ArrayRecord set once
    section.balance = 0.0  # of skewed classes: the power, 0 to 1, of the inverse frequency
    section.balance_by = "loss"  # weighs the loss, or "sampling" draws examples


def _segmentation(config: ConfigDict) -> None:
    config.data.pad_multiple = 1  # padded sides are multiples of it (the stride of the network)
    config.data.pad_to = ()  # (height, width) of every batch; () is the largest of each


def _detection(config: ConfigDict) -> None:
    config.data.min_size = (800,)  # of the shorter side; in training one is drawn per image, evaluation takes the last
    config.data.max_size = 1333  # of the longer side
    # "fast": resized as uint8 and padded to one of the canvases; "torchvision": as float, padded to the next multiple of 32.
    config.data.resize = "fast"
    config.data.canvases = ()  # the few (height, width) that batches are padded to; () chooses them by the two sizes
    config.data.max_boxes = 100
    config.data.max_proposals = 0  # external proposals per image (R-CNN, Fast R-CNN)
    config.data.search = ConfigDict()  # of the selective search that makes them; {} is OpenCV's fast mode
    config.data.drop_degenerate_boxes = False
    config.data.drop_extra_boxes = False
    config.detection = ConfigDict()  # thresholds and counts, with torchvision's names and defaults


def _optim() -> ConfigDict:
    section = ConfigDict()
    section.name = "sgd"
    section.options = ConfigDict()
    section.learning_rate = 0.01
    section.base_batch_size = placeholder(int)  # the rate is for this many examples, and scaled in proportion to more
    section.weight_decay = ()  # (regex, value) rules; the first match wins
    section.lr_multiplier = ()
    section.frozen = ()  # regexes
    _duration(section, "unfreeze_after")  # what is frozen is trained from then on; without one, never
    section.layer_decay = 1.0  # factor on the rate from each block of the backbone to the one before it
    section.clip_norm = placeholder(float)
    section.ema_decay = 0.0
    section.accumulate = 1
    return section


def _schedule() -> ConfigDict:
    section = ConfigDict()
    section.name = "constant"
    _duration(section, "warmup")
    section.warmup_factor = 0.0
    section.final_factor = 0.0
    section.boundaries_epochs = ()
    section.gamma = 0.1
    section.power = 0.9
    section.peak_fraction = 0.3
    section.div_factor = 25.0
    return section


def _parallel() -> ConfigDict:
    section = ConfigDict()
    section.mode = "jit"  # or "pmap"
    section.fsdp = 1  # pieces into which parameters, optimiser and averages are cut; "jit" only
    section.remat = "none"  # what the backward pass computes again: "none", all but "convolutions", "everything"
    section.compilation_cache = "auto"  # where compiled programs are kept: the user's cache folder, or another; "" for none
    return section


SEEDS_IN = ("auto", "vmap", "devices", "processes")


def replica(config: ConfigDict, seed: int) -> ConfigDict:
    """The config of the run of one seed alone."""
    made = config.copy_and_resolve_references()
    made.seed, made.seeds, made.seeds_in = seed, 1, SEEDS_IN[0]
    return made


def replicas_of(config: ConfigDict) -> list[ConfigDict]:
    """The configs of the runs that a config with `seeds` stands for."""
    return [replica(config, seed) for seed in range(config.seed, config.seed + config.seeds)]


# A workdir may be resumed with other values of these: they change how long a run is and what it prints, not what it computes.
MAY_CHANGE = (
    "seeds",
    "train.total_",
    "log.",
    "checkpoint.",
    "data.data_dir",
    "data.manual_dir",
    "data.prepare",
    "data.test_sets",
    "data.threads",
    "data.in_memory",
    "data.on_device",
    "data.max_pixels",
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


def to_plain(config: ConfigDict) -> dict[str, object]:
    """The config as nested dicts of what JSON can hold; `from_plain` reads it back."""
    return {key: _plain(value) for key, value in config.to_dict().items()}


def from_plain(stored: dict[str, object], stored_format: int = 2) -> ConfigDict:
    """What `to_plain` wrote, also of early versions, as a complete, locked config.

    Args:
      stored: nested, or flat with dots as early versions wrote it.
      stored_format: of the workdir it lies in.
    """
    nested: dict = {}
    for key, value in stored.items():
        *sections, name = key.split(".")
        section = nested
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = _tuples(value)
    config = base()
    with config.unlocked(), config.ignore_type():
        for key, history in OLD_DEFAULTS.items():
            old = [default for last, default in history if stored_format <= last]
            if old:
                _set(config, key, old[0])
        _fill(config, nested, "")
    return modernise(config)


# Where a config may name code of the user's own: "my_file.py:Name" or "package.module:Name"; not "mnist:3.0.1".
NAME_KEYS = ("model.name", "loss.name", "optim.name", "data.name")
OP_SECTIONS = ("data.train_ops", "data.eval_ops")
_OWN = re.compile(r".+\.py:[A-Za-z_]\w*|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_own(name: object) -> bool:
    """Whether a name means code of the user's own."""
    return isinstance(name, str) and _OWN.fullmatch(name) is not None


def own_names(config: ConfigDict) -> dict[str, str]:
    """{key: name} of all code of the user's own that a config names."""
    flat = flatten(config)
    ops = (key for key in flat if key.startswith(OP_SECTIONS) and key.endswith(".op"))
    return {key: str(flat[key]) for key in (*NAME_KEYS, *ops) if is_own(flat.get(key))}


def _fill(config: ConfigDict, values: dict, prefix: str) -> None:
    for name, value in values.items():
        if isinstance(value, dict) and f"{prefix}{name}" not in FREE and isinstance(config.get(name), ConfigDict):
            _fill(config[name], value, f"{prefix}{name}.")
        else:
            config[name] = ConfigDict(value) if isinstance(value, dict) else value


def _set(config: ConfigDict, key: str, value: object) -> None:
    *sections, name = key.split(".")
    for section in sections:
        config = config[section]
    config[name] = value


def modernise(config: ConfigDict) -> ConfigDict:
    """A copy with today's names of keys and values, locked as the config was."""
    config = config.copy_and_resolve_references()
    locked, flat = config.is_locked, flatten(config)
    with config.unlocked():
        for old, new in RENAMED_KEYS.items():
            if old in flat:
                section = config[old.rpartition(".")[0]] if "." in old else config
                _set(config, new, section[old.rpartition(".")[2]])
                del section[old.rpartition(".")[2]]
        for key, values in RENAMED_VALUES.items():
            if flat.get(key) in values:
                _set(config, key, values[str(flat[key])])
    if locked:
        config.lock()
    return config


def _plain(value: object) -> object:
    """As JSON reads it back: tuples are lists."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _tuples(value: object) -> object:
    if isinstance(value, dict):
        return {key: _tuples(v) for key, v in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def difference(old: ConfigDict, new: ConfigDict, may_change: tuple[str, ...] = MAY_CHANGE) -> list[str]:
    """Lines `key: old -> new` for every value that decides what a run computes; may_change: beginnings of keys that do not."""
    a, b = ({k: v for k, v in flatten(modernise(c)).items() if not (k in FREE and v == {})} for c in (old, new))
    absent = "(absent)"
    return [
        f"{key}: {a.get(key, absent)} -> {b.get(key, absent)}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key, absent) != b.get(key, absent) and not key.startswith(may_change)
    ]


class ConfigFileError(ValueError):
    """A config file that is not there or cannot be used: says which, why, and what there is."""


def shipped() -> dict[str, Path]:
    """The configs that come with the package, by name: those of the wheel, or the clone's `configs/`."""
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        found = {path.stem: path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"}
        if found:
            return found
    return {}


def find_file(name: str) -> Path:
    """The file that `--config` names: a path, or the name of a config that comes with the package."""
    path, known = Path(name).expanduser(), shipped()
    if path.is_file():
        return path
    if name in known:
        return known[name]
    beside = sorted(map(str, path.parent.glob("*.py"))) if path.parent != Path() and path.parent.is_dir() else []
    there = f"; in {path.parent} there are {beside}" if beside else ""
    raise ConfigFileError(
        f"there is no config {name}{there}; those that come with the package: {', '.join(known) or 'none'}"
        + did_you_mean(name, known)
    )


def load_file(path: Path, variant: str = "") -> ConfigDict:
    """What `get_config(variant)` of a config file returns."""
    try:
        spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise ValueError("a config is a Python file, whose name ends in .py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        made = module.get_config(*([variant] if variant else []))
        if not isinstance(made, ConfigDict):
            raise ValueError(
                f"get_config returns {type(made).__name__}; expected a ConfigDict made from imgrec_jax.config.base()"
            )
        return made
    except Exception as error:  # whatever a user's file does
        raise ConfigFileError(f"{path}: {f'{type(error).__name__}: ' * (type(error) is not ValueError)}{error}") from error


def load(name: str) -> ConfigDict:
    """A config as `--config` names it: "mnist", "mnist:fast", "path/to/file.py:VARIANT"; change it as you like."""
    path, _, variant = name.partition(":")
    return load_file(find_file(path), variant)


class OverrideError(ValueError):
    """A value given for a key of the config cannot be one: says which, the value, and what is expected."""


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets a key from text, as the type that it has: `0.1`, `true`, `(64, 64)`, `None`, `{"erase": {}}` for a section.

    `data.train_ops.NAME` and `data.eval_ops.NAME` may also be new: the options of an op, `{}` for none.

    Raises:
      OverrideError: for a key that does not exist, with those that do; or text of another type.
    """
    known = flatten(config)
    *sections, name = key.split(".")
    section = config
    for part in sections:
        section = section[part] if isinstance(section, ConfigDict) and part in section else None
    adds = ".".join(sections) in OP_SECTIONS and name not in section
    if not isinstance(section, ConfigDict) or (name not in section and not adds):
        raise OverrideError(_no_key(key, known))
    kind = ConfigDict if adds else section.get_type(name)
    if kind is type(None):  # a key without a value has the type that `base` gives it
        kind = _base_type(key) or kind
    try:
        value = _parse(text, kind)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        expected = {ConfigDict: "a section, e.g. {}", tuple: "a tuple, e.g. (1, 2)"}.get(
            kind, getattr(kind, "__name__", str(kind))
        )
        raise OverrideError(f"config.{key}={text!r}; expected {expected}") from error
    with config.unlocked(), config.ignore_type():
        if isinstance(value, dict):
            section[name] = ConfigDict(value)
        elif value is None or not isinstance(section.get(name), ConfigDict):
            section[name] = value


def _base_type(key: str) -> type | None:
    section, (*sections, name) = base(), key.split(".")
    for part in sections:
        if not isinstance(section, ConfigDict) or part not in section:
            return None
        section = section[part]
    return section.get_type(name) if isinstance(section, ConfigDict) and name in section else None


def _parse(text: str, kind: type) -> object:
    if kind is str:
        return text
    if kind is bool and text != "None":
        truth = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        return truth[text.lower()] if text.lower() in truth else _raise(text)
    if text.strip() in ("None", "none", "null") and kind not in (ConfigDict, tuple):
        return None
    if kind is int:
        return int(text)
    if kind is float:
        return float(text)
    value = ast.literal_eval(text)
    if kind is ConfigDict:
        return value if isinstance(value, dict) else _raise(text)
    if kind is tuple:
        return _tuples(value) if isinstance(value, tuple | list) else (value,)
    return _tuples(value)


def _raise(text: str) -> object:
    raise ValueError(text)


def _no_key(key: str, known: dict[str, object]) -> str:
    section = key.rpartition(".")[0]
    valid = [name for name in known if name.startswith(f"{section}.")] if section else []
    valid = valid or sorted({name.split(".")[0] for name in known})
    close = f"; did you mean {RENAMED_KEYS[key]!r}?" if RENAMED_KEYS.get(key) in known else did_you_mean(key, known)
    return f"the config has no key {key!r}{close or '.'} Keys there: {', '.join(valid)}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'adam'?", or "" where nothing known is like the word."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""
