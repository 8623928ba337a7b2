"""All keys of a config, with their defaults."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

FREE = (
    "model", "loss", "data.options", "data.train_ops", "data.eval_ops", "data.search", "data.test_sets", "detection",
    "eval.objects", "optim.options",
)  # fmt: skip


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
    # Segmentation: how the foreground becomes single objects, "components" or "distance" with options. They are numbered in
    # answers and, where the data have instances, scored. "" scores connected components and has none in answers.
    config.eval.objects = ConfigDict({"name": ""})
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


def check_keys(config: ConfigDict) -> None:
    """Raises ValueError for a config without a key that every one has, as where a section was replaced by one of a few keys."""
    have = set(_keys(config))
    if missing := next((key for key in _keys(base()) if key not in have), None):
        raise ValueError(f"the config has no {missing}; begin with imgrec_jax.config.base(), and change keys of it")


def unknown_keys(config: ConfigDict) -> list[str]:
    """Keys that no config has, outside of the sections that may hold any."""
    known = set(_keys(base()))
    return [key for key in _keys(config) if key not in known and not key.startswith(tuple(f"{free}." for free in FREE))]


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    """With those of sections, before the keys in them."""
    keys = []
    for key in config:
        keys += [f"{prefix}{key}", *(_keys(config[key], f"{prefix}{key}.") if isinstance(config[key], ConfigDict) else ())]
    return keys


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
