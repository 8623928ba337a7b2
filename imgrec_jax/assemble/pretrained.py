"""Pretrained weights: of other frameworks or of a run of this project, merged into the fresh variables of a model."""

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from imgrec_jax.assemble import as_trained
from imgrec_jax.assemble.lookup import ConfigError, choice
from imgrec_jax.models.resnet import RESNETS
from imgrec_jax.models.zoo import ARCHITECTURES
from imgrec_jax.pretrained import fetch, files, fit, merge, names, torch_file
from imgrec_jax.pretrained.known import (
    COCO_91,
    KNOWN,
    Known,
    Preprocessing,
    by_layout,
    forbids_commercial_use,
    options_of,
)
from imgrec_jax.run import checkpoint, start, workdir

FORMATS = ("auto",)
HEADS = ("keep", "new", "match")
ADAPTATIONS = ("positions", "channels")
PREPROCESSINGS = ("auto", "none")
ALLOWANCES = ("allow_missing", "allow_unexpected", "allow_wrong_shape")


class Loaded(NamedTuple):
    """Weights that were read.

    Attributes:
      tensors: {name: array} under today's names.
      source: what they are, for people; sha256: of the file, or of no file "".
      licence: "" where nothing is said of it.
      preprocessing: of their training, None where it follows from the layout.
      classes: the names of their outputs; () where they are not known.
      architecture: what timm calls their network; "" where nothing is said of it.
      released: the name in KNOWN of the file that they are, whatever it is called; "" for none.
      model: of the run of this project that they are of, or were written from; None of others.
    """

    tensors: dict[str, np.ndarray]
    source: str
    sha256: str
    licence: str
    preprocessing: Preprocessing | None
    classes: tuple[str, ...]
    architecture: str = ""
    released: str = ""
    model: ConfigDict | None = None


def check(config: ConfigDict) -> None:
    """Raises ConfigError for what cannot be, without reading or downloading anything."""
    section = config.pretrained
    choice("pretrained.format", section.format, FORMATS)
    choice("pretrained.head", section.head, HEADS)
    choice("pretrained.preprocessing", section.preprocessing, PREPROCESSINGS)
    for adaptation in section.adapt:
        choice("pretrained.adapt", adaptation, ADAPTATIONS)
    if fetch.is_name(section.path):
        try:
            fetch.look_up(section.path)
        except fetch.FetchError as error:
            raise ConfigError(f"config.pretrained.path: {error}") from error
    for key in ALLOWANCES:
        for pattern in section[key]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"config.pretrained.{key}: {pattern!r} is no regular expression: {error}") from error


def check_file(config: ConfigDict) -> None:
    """Raises ConfigError where the weights to begin with are not there; a run that has begun needs nothing of them any more."""
    section = config.pretrained
    if fetch.is_name(section.path) or not section.path:
        return
    if not files.file_in(_path(section)).is_file() and not workdir.exists(_path(section)):
        raise ConfigError(
            f"config.pretrained.path={section.path!r} is no file; give a .pth, .safetensors, .keras, .h5 or .onnx file, the "
            f"folder of a tfjs model or of a run, a name such as {next(iter(KNOWN))}, or ''"
        )


def settle(config: ConfigDict) -> None:
    """Sets what the config leaves open of the preprocessing to what the weights were trained with; in place.

    What cannot be read is left for `make_initialise` to report.
    """
    section = config.pretrained
    if not section.path or section.preprocessing == "none":
        return
    known = KNOWN.get(section.path)
    try:
        preprocessing = known.preprocessing if known else preprocessing_of(load(section))
    except (ValueError, OSError):
        return
    if preprocessing is not None:
        as_trained.settle(config, preprocessing)


def preprocessing_of(loaded: Loaded) -> Preprocessing | None:
    """That of the weights; where they do not say, what is usual for their names."""
    if loaded.preprocessing is not None:
        return loaded.preprocessing
    kinds = {
        "pytorch": r"^_conv_stem\.", "detector": r"^(roi_heads|head\.(classification|regression)_head)\.",
        "fcn": r"^backbone\.", "keras": r"/(kernel|gamma)$",
        "timm": r"^(conv_stem|stem\.0|patch_embed\.proj|pre_logits\.fc1)\.",
    }  # fmt: skip
    layout = next(
        (kind for kind, pattern in kinds.items() if any(re.search(pattern, name) for name in loaded.tensors)), "torchvision"
    )
    families = {
        "vgg": r"^block1_conv1", "densenet": r"^conv2_block1", "efficientnet": r"^block1a_", "vit": r"^(cls_token|class_token)",
    }  # fmt: skip
    family = next((f for f, pattern in families.items() if any(re.search(pattern, name) for name in loaded.tensors)), "")
    return by_layout(layout, family)


def load(section: ConfigDict) -> Loaded:
    """Reads the weights that `config.pretrained` names, downloading them where they are released ones.

    Raises:
      ValueError, FileNotFoundError: when they cannot be had or read.
    """
    path = section.path
    if fetch.is_name(path):
        fetched = fetch.fetch(path)
        loaded = _read(str(fetched.path), fetched.path.stat().st_mtime_ns)
        loaded = _as_known(loaded._replace(source=f"{path} ({fetched.known.url})"), fetched.known)
    else:
        file = files.file_in(_path(section))
        loaded = _read(str(file), file.stat().st_mtime_ns)
        loaded = _as_known(loaded, KNOWN[loaded.released]) if loaded.released else loaded
    return loaded._replace(licence=section.licence or loaded.licence, classes=tuple(section.class_names) or loaded.classes)


def _as_known(loaded: Loaded, known: Known) -> Loaded:
    own = known.preprocessing if known.preprocessing.resize_shorter or known.preprocessing.bgr else None
    return loaded._replace(licence=known.licence, preprocessing=own or loaded.preprocessing, classes=known.classes)


@functools.lru_cache(maxsize=2)
def _read(path: str, changed: int) -> Loaded:
    """changed: when, so that another file of the same name is read anew."""
    file = Path(path)
    if workdir.exists(file):
        return _read_run(file)
    tensors = fit.with_todays_names(files.read(file))
    stated, digest = fetch.stated(file, torch_file.read_metadata(file)), fetch.sha256(*files.parts(file))
    released = next((name for name, known in KNOWN.items() if known.sha256 and digest.startswith(known.sha256)), "")
    return Loaded(
        tensors,
        path,
        digest,
        stated.licence,
        stated.preprocessing,
        _with_background(stated.classes, fit.is_of_detector(tensors)),
        architecture=stated.architecture,
        released=released,
        model=ConfigDict(stated.model) if stated.model else None,
    )


def _read_run(folder: Path) -> Loaded:
    """The best checkpoint of a run, or its last."""
    try:
        card, config = workdir.read_card(folder), workdir.read_config(folder)
        which = "best" if checkpoint.saved(folder, checkpoint.BEST) else "last"
        found, _ = start.choose(folder, which, lambda line: None)
        variables = checkpoint.read_variables(found)
    except (workdir.WorkdirError, checkpoint.CheckpointError) as error:
        raise ValueError(str(error)) from error
    flat = {"/".join(key[1:]): np.asarray(value) for key, value in traverse_util.flatten_dict(variables).items()}
    classes = tuple(card.get("class_names", ()))
    classes = _with_background(classes, config.task == "detection")
    shape = card.get("image_shape", ())
    side = shape[0] if config.task == "classification" and len(shape) == 3 and shape[0] == shape[1] else None
    preprocessing = Preprocessing(None, side, mean=tuple(config.data.mean), std=tuple(config.data.std))
    kept = card.get("pretrained") or {}
    return Loaded(flat, f"{found} of {folder}", "", kept.get("licence", ""), preprocessing, classes, model=config.model)


def _with_background(classes: tuple[str, ...], detector: bool) -> tuple[str, ...]:
    """The names of a detector's outputs, from those of the classes that it detects."""
    return (fit.BACKGROUND, *classes) if detector and classes else classes


def record(config: ConfigDict) -> dict[str, Any] | None:
    """What the run's folder keeps of the weights; None without any, or where they are not at hand any more."""
    if not config.pretrained.path:
        return None
    try:
        loaded = load(config.pretrained)
    except (ValueError, OSError):
        return None
    preprocessing = preprocessing_of(loaded)
    return {
        "source": loaded.source,
        "sha256": loaded.sha256,
        "licence": loaded.licence,
        "preprocessing": preprocessing._asdict() if preprocessing else None,
    }


def make_initialise(config: ConfigDict, class_names: Sequence[str] = ()) -> Callable[[dict], tuple[dict, str]] | None:
    """fresh variables -> (variables with the file's values, what was loaded, as text); None without a file.

    class_names: of the data, for `head="match"`; of detection without the background.

    The function raises ConfigError when the file cannot be read or does not fit.
    """
    section = config.pretrained
    if not section.path:
        return None
    ours = _with_background(tuple(class_names), config.task == "detection")

    def initialise(variables: dict[str, Any]) -> tuple[dict[str, Any], str]:
        check_file(config)
        try:
            return _initialise(config, variables, ours)
        except (ValueError, FileNotFoundError) as error:
            remedy = _REMEDY if section.head == "keep" and isinstance(error, merge.MergeError) else ""
            raise ConfigError(f"config.pretrained with {section.path}: {error}{remedy}") from error

    return initialise


_REMEDY = (
    '. config.pretrained.head="new" leaves heads as they are drawn, for another number of classes or another task; '
    '"match" takes the classes by name'
)


# Options that say what the layers of a network compute and leave no trace in the names and shapes of their weights.
_MEANINGS = ("activation", "norm_epsilon", "padding", "plain", "pool_only")
# Options that names and shapes tell, and those of training, of outputs and of what is drawn.
_TOLD_OR_FREE = (
    "name", "backbone", "trunk", "num_classes", "kind", "head", "norm", "kernel_init", "dropout", "drop_path", "remat",
    "score_levels", "aux", "axis_name", "dtype",
)  # fmt: skip


def _check_options(
    model: ConfigDict, layout: str, source: str, architecture: str = "", trained: ConfigDict | None = None
) -> list[str]:
    """What to say of a network that differs from the one that the weights were trained in, in nothing that its layers compute.

    Args: of `options_of`; trained: the model of a run of this project that they are of.

    Raises:
      ValueError: where its layers would compute something else.
    """
    name, have = backbone_options(model)
    wanted = options_of(layout, name, source, architecture)
    theirs: dict[str, Any] = {}
    if trained is not None:
        backbone, options = backbone_options(trained)
        theirs = {**(trained if trained.name == model.name else {}), **(options if backbone == name else {})}
        wanted |= {key: value for key, value in options.items() if key in _MEANINGS and backbone == name}
    here = {**model, **have}
    others = [
        f"{key}={here[key]!r} (in their run {value!r})"
        for key, value in theirs.items()
        if key in here and key not in (*_MEANINGS, *_TOLD_OR_FREE) and _plain(here[key]) != _plain(value)
    ]
    other = {key: value for key, value in wanted.items() if key in have and have[key] != value}
    if not other:
        return [f"options     {', '.join(others)}: the network computes something else"] if others else []
    trunk = dict(model.get("trunk", {}))
    if name == model.name or name not in ARCHITECTURES or (name in RESNETS and "norm_epsilon" in model and not trunk):
        flags = " ".join(f"--config.model.{key}={value}" for key, value in other.items())
    else:
        flags = f'--config.model.trunk="{trunk | other}"'
    raise ValueError(
        f"these weights were trained with {', '.join(f'{k}={v}' for k, v in wanted.items())}, and the model has "
        f"{', '.join(f'{key}={have[key]}' for key in other)}: it would compute something else; give {flags}"
    )


def _plain(value: Any) -> Any:
    """Lists and tuples alike: a run's are read from JSON."""
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def backbone_options(model: ConfigDict) -> tuple[str, dict[str, Any]]:
    """(name, options that take effect) of a model's backbone: of the model or its `trunk`, or the architecture's own."""
    name, trunk = model.get("backbone") or model.name, dict(model.get("trunk", {}))
    if name not in ARCHITECTURES:
        return name, {key: value for key, value in {**model, **trunk}.items() if value is not None}
    options = {key: value.default for key, value in inspect.signature(ARCHITECTURES[name].make).parameters.items()}
    given = dict(model) if name == model.name else trunk
    handed = ("norm", "norm_epsilon") if name in RESNETS else ("norm",)  # by the model, where its trunk says nothing
    given = {**{key: model[key] for key in handed if key in model}, **given}
    return name, options | {key: value for key, value in given.items() if key in options and value is not None}


def _epsilon(model: ConfigDict) -> float:
    """Of the norms of the backbone."""
    return float(backbone_options(model)[1].get("norm_epsilon", 1e-5))


def _initialise(config: ConfigDict, variables: dict[str, Any], ours: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    section = config.pretrained
    loaded = load(section)
    fresh = {"/".join(key[1:]): value for key, value in traverse_util.flatten_dict(variables).items()}
    found = fit.find(loaded.tensors, fresh)
    have, layout = fit.unfold(loaded.tensors, found.names, _epsilon(config.model)), found.layout
    said = _check_options(config.model, layout, loaded.released or section.path, loaded.architecture, loaded.model)
    tensors = {
        path: have[name] if layout == "own" else names.to_ours(have[name], path, fresh[path].shape, layout)
        for path, name in found.names.items()
        if name in have
    }
    lines = [f"pretrained weights of {loaded.source}, names of {layout}", *_licence(loaded), *said]
    preprocessing = preprocessing_of(loaded)
    if preprocessing:
        lines.append(as_trained.describe(config, preprocessing))
    first = fit.first_convolution(tensors)
    if preprocessing and preprocessing.bgr and first:
        tensors[first] = tensors[first][:, :, ::-1]
    _adapt(section, tensors, fresh, first)
    missing, unexpected = [], set(have) - set(found.names.values())
    if section.head == "new":
        missing = [path for path in fresh if fit.HEAD.search(path)]
        tensors = {path: value for path, value in tensors.items() if path not in missing}
        if (
            "fc/kernel" not in fresh
            and layout in ("torchvision", "timm", "keras", "pytorch")
            or (layout == "own" and fit.is_of_backbone_only(found, have))
        ):
            missing += [path for path in fresh if not path.startswith(found.trunk)]
        unexpected -= fit.other_heads(found, have)
    allowed = [name for name in unexpected if any(_finds(pattern, name) for pattern in section.allow_unexpected)]
    if section.head == "match":
        lines.append(_match(tensors, fresh, ours, loaded.classes))
    merged, report = merge.merge(
        variables,
        {**tensors, **{name: have[name] for name in sorted(unexpected)}},
        source_names={path: name for path, name in found.names.items() if path in tensors},
        allow_missing=(*section.allow_missing, *(f"^{re.escape(path)}$" for path in missing)),
        allow_unexpected=tuple(f"^{re.escape(name)}$" for name in allowed),
        allow_wrong_shape=tuple(section.allow_wrong_shape),
    )
    return merged, "\n".join([*lines, str(report)])


def _finds(pattern: str, name: str) -> bool:
    """In a name as the file has it, or with our separators: `^fc/` finds fc.weight."""
    return bool(re.search(pattern, name) or re.search(pattern, name.replace(".", "/")))


def _licence(loaded: Loaded) -> list[str]:
    if not loaded.licence:
        return []
    note = ": it forbids commercial use" if forbids_commercial_use(loaded.licence) else ""
    return [f"licence     {loaded.licence}{note}"]


def _adapt(section: ConfigDict, tensors: dict[str, np.ndarray], fresh: dict[str, Any], first: str | None) -> None:
    """Positions and first-layer channels of another size, where asked for, in place."""
    if "positions" in section.adapt:
        for path in [path for path in tensors if path.endswith("pos_embedding")]:
            if tensors[path].shape != fresh[path].shape:
                tensors[path] = fit.resize_positions(tensors[path], fresh[path].shape[1])
    if "channels" in section.adapt and first and tensors[first].shape[2] != fresh[first].shape[2]:
        tensors[first] = fit.change_channels(tensors[first], fresh[first].shape[2])


def _match(tensors: dict[str, np.ndarray], fresh: dict[str, Any], ours: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    """Heads with the classes of the data, in place; what to say of it."""
    heads = [path for path in tensors if fit.HEAD.search(path)]
    each = {path: max(fresh[path].shape[-1] // max(len(ours), 1), 1) for path in heads}  # outputs of one class
    if not theirs and len(COCO_91) in {tensors[path].shape[-1] // each[path] for path in heads}:
        theirs = COCO_91
    if not ours or not theirs:
        raise ValueError(
            f"head='match' needs the names of the classes of {'the data' if not ours else 'the weights'}"
            + ("; give them, in the order of its outputs, as config.pretrained.class_names" if ours else "")
        )
    outputs = fit.match_classes(ours, theirs)
    new = [name for name, output in zip(ours, outputs, strict=True) if output is None]
    if {fit.fold(name) for name in ours if name not in new} <= ({fit.BACKGROUND} if len(ours) > 1 else set()):
        raise ValueError(f"none of the classes {list(ours)[:6]} is among those of the weights, {list(theirs)[:6]}, ...")
    for path in heads:
        tensors[path] = fit.select_classes(tensors[path], np.asarray(fresh[path]), path, ours, theirs)
    known = {fit.fold(name) for name in theirs}
    unclear = [name for name in new if fit.fold(name) in known]
    return "".join((
        f"classes     {len(ours) - len(new)} of {len(ours)} by name",
        f"; new: {', '.join(new[:8])}" if new else "",
        f" ({', '.join(unclear[:8])}: more than one class has that name, but for case)" if unclear else "",
    ))  # fmt: skip


def _path(section: ConfigDict) -> Path:
    return Path(section.path).expanduser()
