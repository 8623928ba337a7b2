"""Names and layouts of other frameworks' tensors: tables from our parameter paths to theirs, read in both directions.

A path of ours is the "/"-joined names of a variable, without its collection: `backbone/layer1_0/conv1/kernel`. What a file is
to contain is told from the paths of the model: every rule below rewrites a path, relative to the module that the table is of,
into the name that the layout gives it. So one table serves to read a file and to write one, and what a file lacks or has too
much is known by name.

  layout       whose names
  torchvision  torchvision's state dicts; timm's are the same for ResNets and DenseNets
  timm         timm's models, as safetensors on Hugging Face
  pytorch      of the package efficientnet-lite-pytorch: `_conv_stem`, `_blocks.0._depthwise_conv`
  keras        layers of keras.applications, in .keras, .h5 and tfjs files: `block1_conv1/kernel`

Layouts of arrays. Torch: convolutions OIHW, dense (out, in), the dense layer after a flattened (C, 7, 7) map in that order.
Keras: as ours, but depthwise kernels (h, w, C, 1). Sizes of 1 come and go as ours has them.
"""

import re
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np

Rules = Sequence[tuple[str, str | Callable[[re.Match], str]]]


class Blocks(NamedTuple):
    """The inverted residual blocks among some paths.

    Attributes:
      number: of the block S_I, counted through all stages from 0.
      parts: of the block S_I, in order: "expand", "depthwise", "se", "project", those that it has.
      stages: how many.
    """

    number: dict[str, int]
    parts: dict[str, tuple[str, ...]]
    stages: int


_BLOCK = re.compile(r"blocks_(\d+_\d+)/(expand|depthwise|se|project)_")


def _blocks(paths: Collection[str]) -> Blocks:
    found: dict[str, set[str]] = {}
    for path in paths:
        if match := _BLOCK.match(path):
            found.setdefault(match[1], set()).add(match[2])
    order = sorted(found, key=lambda name: tuple(map(int, name.split("_"))))
    known = ("expand", "depthwise", "se", "project")
    parts: dict[str, tuple[str, ...]] = {n: tuple(p for p in known if p in found[n]) for n in order}
    return Blocks({name: i for i, name in enumerate(order)}, parts, len({name.split("_")[0] for name in order}))


def _mbconv(block: Callable[[Blocks, str, str, str], str], outside: Callable[[Blocks], Rules]) -> Callable:
    """block: (blocks, "S_I", part, member) -> name, e.g. of part "expand" and member "conv" or "bn"."""

    def rules(paths: Collection[str]) -> Rules:
        blocks = _blocks(paths)
        inside = (_BLOCK.pattern + r"(\w+)", lambda m: block(blocks, m[1], m[2], m[3]))
        return (inside, *outside(blocks))

    return rules


_SE = {"reduce": "fc1", "expand": "fc2"}
_POSITION = {"conv": "0", "bn": "1"}


def _torchvision_block(blocks: Blocks, name: str, part: str, member: str) -> str:
    """`features.2.block.0.0` of MobileNetV3 and, with two numbers, EfficientNet."""
    where = f"block.{blocks.parts[name].index(part)}"
    return f"{where}.{_SE[member] if part == 'se' else _POSITION[member]}"


def _torchvision_v2_block(blocks: Blocks, name: str, part: str, member: str) -> str:
    index = blocks.parts[name].index(part)
    inner = str(index + (member == "bn")) if part == "project" else f"{index}.{_POSITION[member]}"
    return f"features.{blocks.number[name] + 1}.conv.{inner}"


def _torchvision_outside(last: Callable[[Blocks], int], head: str) -> Callable[[Blocks], Rules]:
    return lambda blocks: (
        ("^stem_conv", "features.0.0"),
        ("^stem_bn", "features.0.1"),
        ("^embedding/conv", f"features.{last(blocks)}.0"),
        ("^embedding/bn", f"features.{last(blocks)}.1"),
        ("^embedding/dense", "classifier.0"),
        ("^fc/", f"classifier.{head}/"),
    )


def _timm_block(blocks: Blocks, name: str, part: str, member: str) -> str:
    expands = "expand" in blocks.parts[name]
    words = {"expand": "pw", "depthwise": "dw", "project": "pwl" if expands else "pw"}
    if part == "se":
        inner = f"se.conv_{member}"
    elif member == "conv":
        inner = f"conv_{words[part]}"
    else:
        inner = f"bn{[p for p in blocks.parts[name] if p != 'se'].index(part) + 1}"
    return f"blocks.{name.replace('_', '.')}.{inner}"


def _timm_outside(blocks: Blocks) -> Rules:
    return (
        ("^stem_conv", "conv_stem"),
        ("^stem_bn", "bn1"),
        ("^embedding/conv", "conv_head"),
        ("^embedding/bn", "bn2"),
        ("^fc/", "classifier/"),
    )


def _timm_v3_outside(blocks: Blocks) -> Rules:
    return (
        ("^stem_conv", "conv_stem"),
        ("^stem_bn", "bn1"),
        ("^embedding/conv", f"blocks.{blocks.stages}.0.conv"),
        ("^embedding/bn", f"blocks.{blocks.stages}.0.bn1"),
        ("^embedding/dense", "conv_head"),
        ("^fc/", "classifier/"),
    )


def _pytorch_block(blocks: Blocks, name: str, part: str, member: str) -> str:
    number = {"bn": [p for p in blocks.parts[name] if p != "se"].index(part) if part != "se" else 0}
    number["bn"] += "expand" not in blocks.parts[name]  # _bn0 is the expansion's
    inner = f"_se_{member}" if part == "se" else f"_{part}_conv" if member == "conv" else f"_bn{number['bn']}"
    return f"_blocks.{blocks.number[name]}.{inner}"


def _pytorch_outside(blocks: Blocks) -> Rules:
    return (
        ("^stem_conv", "_conv_stem"),
        ("^stem_bn", "_bn0"),
        ("^embedding/conv", "_conv_head"),
        ("^embedding/bn", "_bn1"),
        ("^fc/", "_fc/"),
    )


def _keras_v1_block(blocks: Blocks, name: str, part: str, member: str) -> str:
    word = {"depthwise": "dw", "project": "pw"}
    return f"conv_{word.get(part, part)}_{blocks.number[name] + 1}" + ("_bn" if member == "bn" else "")


def _keras_v2_block(blocks: Blocks, name: str, part: str, member: str) -> str:
    number = blocks.number[name]
    prefix = "expanded_conv" if number == 0 else f"block_{number}"
    return f"{prefix}_{part}" + ("_BN" if member == "bn" else "")


def _keras_efficientnet_block(blocks: Blocks, name: str, part: str, member: str) -> str:
    stage, index = map(int, name.split("_"))
    word = {("expand", "conv"): "expand_conv", ("expand", "bn"): "expand_bn", ("depthwise", "conv"): "dwconv",
            ("depthwise", "bn"): "bn", ("se", "reduce"): "se_reduce", ("se", "expand"): "se_expand",
            ("project", "conv"): "project_conv", ("project", "bn"): "project_bn"}[part, member]  # fmt: skip
    return f"block{stage + 1}{'abcdefghijk'[index]}_{word}"


def _fixed(*rules: tuple[str, str | Callable[[re.Match], str]]) -> Callable[[Collection[str]], Rules]:
    return lambda paths: rules


def _numbers(path: str) -> str:
    """`layer1_0/conv1` -> `layer1.0/conv1`: the rule of what torchvision numbers and our modules keep."""
    return re.sub(r"_(\d+)(?=_|/|$)", r".\1", path)


_NUMBERED = (r"^(?!embedding/|fc/).*", lambda m: _numbers(m[0]))


def _keras_vgg(paths: Collection[str]) -> Rules:
    """`features_5` is the first convolution of the second stage: pooling takes a number, too."""
    numbers = sorted({int(m[1]) for path in paths if (m := re.match(r"features_(\d+)/kernel", path))})
    names, stage, index, before = {}, 1, 1, None
    for number in numbers:
        if before is not None and number - before > 2:
            stage, index = stage + 1, 1
        names[number], before, index = f"block{stage}_conv{index}", number, index + 1
    return (
        (r"^features_(\d+)", lambda m: names.get(int(m[1]), m[0])),
        ("^embedding/fc6", "fc1"),
        ("^embedding/fc7", "fc2"),
        ("^fc/", "predictions/"),
    )


def _keras_densenet(paths: Collection[str]) -> Rules:
    transitions = {"norm": "bn", "conv": "conv"}
    return (
        (r"^conv0", "conv1_conv"),
        (r"^norm0", "conv1_bn"),
        (
            r"^denseblock(\d)_denselayer(\d+)/(conv|norm)(\d)",
            lambda m: f"conv{int(m[1]) + 1}_block{m[2]}_" + (f"{m[4]}_conv" if m[3] == "conv" else f"{int(m[4]) - 1}_bn"),
        ),
        (r"^transition(\d)_(norm|conv)", lambda m: f"pool{int(m[1]) + 1}_{transitions[m[2]]}"),
        ("^embedding/norm5", "bn"),
        ("^fc/", "predictions/"),
    )


_VIT_MLP = {"fc1": "mlp.0", "fc2": "mlp.3"}
_CONVNEXT_MEMBERS = {
    "depthwise": "block.0",
    "norm": "block.2",
    "fc1": "block.3",
    "fc2": "block.5",
    "layer_scale": "layer_scale",
}
_CONVNEXT_TIMM = {"depthwise": "conv_dw", "norm": "norm", "fc1": "mlp.fc1", "fc2": "mlp.fc2", "layer_scale": "gamma"}
_SWIN_TIMM = {"qkv": "attn.qkv", "proj": "attn.proj", "relative_position_bias_table": "attn.relative_position_bias_table",
              "fc1": "mlp.fc1", "fc2": "mlp.fc2"}  # fmt: skip
_SWIN_MEMBERS = {**_SWIN_TIMM, "fc1": "mlp.0", "fc2": "mlp.3"}
_VIT_TIMM = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


def _vit_member(m: re.Match) -> str:
    words = {"norm1": "ln_1", "norm2": "ln_2", "proj": "self_attention.out_proj", **_VIT_MLP}
    return f"encoder.layers.encoder_layer_{m[1]}." + words.get(m[2], m[2])


_last_of_stages = lambda blocks: blocks.stages + 1  # noqa: E731
_last_of_blocks = lambda blocks: len(blocks.number) + 1  # noqa: E731

# {family: {layout: paths relative to the trunk -> rules}}; "embedding/" and "fc/" are those of the classifier.
TABLES: dict[str, dict[str, Callable[[Collection[str]], Rules]]] = {
    "resnet": {"torchvision": _fixed(_NUMBERED)},
    "vgg": {
        "torchvision": _fixed(
            _NUMBERED, ("^embedding/fc6", "classifier.0"), ("^embedding/fc7", "classifier.3"), ("^fc/", "classifier.6/")
        ),
        "timm": _fixed(
            _NUMBERED, ("^embedding/fc6", "pre_logits.fc1"), ("^embedding/fc7", "pre_logits.fc2"), ("^fc/", "head.fc/")
        ),
        "keras": _keras_vgg,
    },
    "mobilenet_v1": {
        "timm": _mbconv(_timm_block, _timm_outside),
        "keras": _mbconv(
            _keras_v1_block,
            lambda blocks: (("^stem_conv", "conv1"), ("^stem_bn", "conv1_bn"), ("^fc/", "conv_preds/")),
        ),
    },
    "mobilenet_v2": {
        "torchvision": _mbconv(_torchvision_v2_block, _torchvision_outside(_last_of_blocks, "1")),
        "timm": _mbconv(_timm_block, _timm_outside),
        "keras": _mbconv(
            _keras_v2_block,
            lambda blocks: (
                ("^stem_conv", "Conv1"), ("^stem_bn", "bn_Conv1"), ("^embedding/conv", "Conv_1"),
                ("^embedding/bn", "Conv_1_bn"), ("^fc/", "predictions/"),
            ),
        ),  # fmt: skip
    },
    "mobilenet_v3": {
        "torchvision": _mbconv(
            lambda blocks, name, *rest: f"features.{blocks.number[name] + 1}." + _torchvision_block(blocks, name, *rest),
            _torchvision_outside(_last_of_blocks, "3"),
        ),
        "timm": _mbconv(_timm_block, _timm_v3_outside),
    },
    "efficientnet": {
        "torchvision": _mbconv(
            lambda blocks, name, *rest: f"features.{int(name.split('_')[0]) + 1}.{name.split('_')[1]}."
            + _torchvision_block(blocks, name, *rest),
            _torchvision_outside(_last_of_stages, "1"),
        ),
        "timm": _mbconv(_timm_block, _timm_outside),
        "pytorch": _mbconv(_pytorch_block, _pytorch_outside),
        "keras": _mbconv(
            _keras_efficientnet_block,
            lambda blocks: (
                ("^embedding/conv", "top_conv"), ("^embedding/bn", "top_bn"), ("^fc/", "predictions/"),
            ),
        ),  # fmt: skip
    },
    "densenet": {
        "torchvision": _fixed(
            (r"^(denseblock\d)_(denselayer\d+)", r"features.\1.\2"),
            (r"^(transition\d)_", r"features.\1."),
            (r"^(conv0|norm0)", r"features.\1"),
            ("^embedding/norm5", "features.norm5"),
            ("^fc/", "classifier/"),
        ),
        "keras": _keras_densenet,
    },
    "convnext": {
        "torchvision": _fixed(
            (r"^blocks_(\d)_(\d+)/(\w+)", lambda m: f"features.{2 * int(m[1]) + 1}.{m[2]}.{_CONVNEXT_MEMBERS[m[3]]}"),
            ("^stem_conv", "features.0.0"),
            ("^stem_norm", "features.0.1"),
            (r"^down(\d)_norm", lambda m: f"features.{2 * int(m[1])}.0"),
            (r"^down(\d)_conv", lambda m: f"features.{2 * int(m[1])}.1"),
            ("^embedding/norm", "classifier.0"),
            ("^fc/", "classifier.2/"),
        ),
        "timm": _fixed(
            (r"^blocks_(\d)_(\d+)/(\w+)", lambda m: f"stages.{m[1]}.blocks.{m[2]}.{_CONVNEXT_TIMM[m[3]]}"),
            ("^stem_conv", "stem.0"),
            ("^stem_norm", "stem.1"),
            (r"^down(\d)_norm", r"stages.\1.downsample.0"),
            (r"^down(\d)_conv", r"stages.\1.downsample.1"),
            ("^embedding/norm", "head.norm"),
            ("^fc/", "head.fc/"),
        ),
    },
    "vit": {
        "torchvision": _fixed(
            (r"^blocks_(\d+)/qkv/kernel", r"encoder.layers.encoder_layer_\1.self_attention.in_proj_weight"),
            (r"^blocks_(\d+)/qkv/bias", r"encoder.layers.encoder_layer_\1.self_attention.in_proj_bias"),
            (r"^blocks_(\d+)/(\w+)", _vit_member),
            ("^patch_embed", "conv_proj"),
            ("^pos_embedding", "encoder.pos_embedding"),
            ("^norm/", "encoder.ln/"),
            ("^fc/", "heads.head/"),
        ),
        "timm": _fixed(
            (r"^blocks_(\d+)/(\w+)", lambda m: f"blocks.{m[1]}.{_VIT_TIMM.get(m[2], m[2])}"),
            ("^patch_embed", "patch_embed.proj"),
            ("^pos_embedding", "pos_embed"),
            ("^class_token", "cls_token"),
            ("^fc/", "head/"),
        ),
    },
    "swin": {
        "torchvision": _fixed(
            (r"^blocks_(\d)_(\d+)/(\w+)", lambda m: f"features.{2 * int(m[1]) + 1}.{m[2]}." + _SWIN_MEMBERS.get(m[3], m[3])),
            ("^patch_embed", "features.0.0"),
            ("^patch_norm", "features.0.2"),
            (r"^merge(\d)_(norm|reduction)", lambda m: f"features.{2 * int(m[1])}.{m[2]}"),
            ("^embedding/norm", "norm"),
            ("^fc/", "head/"),
        ),
        "timm": _fixed(
            (r"^blocks_(\d)_(\d+)/(\w+)", lambda m: f"layers.{m[1]}.blocks.{m[2]}." + _SWIN_TIMM.get(m[3], m[3])),
            ("^patch_embed", "patch_embed.proj"),
            ("^patch_norm", "patch_embed.norm"),
            (r"^merge(\d)_(norm|reduction)", r"layers.\1.downsample.\2"),
            ("^embedding/norm", "norm"),
            ("^fc/", "head.fc/"),
        ),
    },
}  # fmt: skip

# Whole networks that are no classifiers, by torchvision's names; the parts of their backbones go by the first rule.
WHOLE: dict[str, Rules] = {
    "detector": (
        (r"(box|mask)_head/(conv|norm)_(\d)", lambda m: f"{m[1]}_head.{m[3]}.{'0' if m[2] == 'conv' else '1'}"),
        (r"box_head/fc/", "box_head.5/"),
        (r"extra_blocks_(p\d)/", r"extra_blocks.\1/"),
        (r"_head/conv_(\d)_1/group/", r"_head.conv.\1.1/"),
        (".*", lambda m: _numbers(m[0])),
    ),
    "fcn": ((".*", lambda m: _numbers(m[0])),),
}
# What a VGG classifier's dense layers become in networks that begin with a VGG.
VGG_ELSEWHERE: Rules = (
    ("^roi_heads/box_head/fc6", "classifier.0"),
    ("^roi_heads/box_head/fc7", "classifier.3"),
    ("^fc6", "classifier.0"),
    ("^fc7", "classifier.3"),
)
# Old names of the same tensors: (regex, replacement) on names of files.
OLD_NAMES: Rules = (
    (r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),  # torchvision before 0.15
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
    (
        r"^(head\.(?:classification|regression)_head\.conv)\.(\d)\.(weight|bias)$",
        lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}",
    ),
    (r"mask_head\.mask_fcn(\d)\.(weight|bias)$", lambda m: f"mask_head.{int(m[1]) - 1}.0.{m[2]}"),
    (r"(denselayer\d+\.(?:norm|conv))\.(\d)\.", r"\1\2."),  # DenseNet's released files
    (r"(encoder_layer_\d+\.mlp)\.linear_1\.", r"\1.0."),
    (r"(encoder_layer_\d+\.mlp)\.linear_2\.", r"\1.3."),
    (r"^linear\.(weight|bias)$", r"fc.\1"),  # ResNets for CIFAR
    (r"/depthwise_kernel$", "/kernel"),  # Keras 2
)
# Buffers that a file may hold and no network of ours keeps.
IGNORED = re.compile(r"num_batches_tracked$|^normalization(_\d+)?/|relative_position_index$|attn_mask$")

_TORCH_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_KERAS_NORM = {"scale": "gamma", "bias": "beta", "mean": "moving_mean", "var": "moving_variance"}
_AFTER_FLATTEN = re.compile(r"(embedding/fc6|box_head/fc6|box_head/fc)/kernel$")
_TRANSPOSED = re.compile("conv5_mask/kernel$")  # a transposed convolution: torch has (in, out, h, w)
# Dense layers of ours that a layout has as convolutions of the whole map.
_CONVOLVED = re.compile(r"^conv_head\.weight$|^pre_logits\.fc\d\.weight$|^conv_preds/")
_SIDE = 7  # torchvision pools to 7x7 before every flatten: vgg.py:42, faster_rcnn.py:251


def apply(rules: Rules, path: str) -> str:
    """The path after the first rule whose regex is found in it; unchanged where there is none."""
    for pattern, replacement in rules:
        if re.search(pattern, path):
            return re.sub(pattern, replacement, path, count=1)
    return path


def _leaf(name: str, path: str, paths: Collection[str], layout: str) -> str:
    """`name` (of `path`, partly rewritten) with its dots and the layout's word for the leaf."""
    module, _, leaf = name.rpartition("/")
    if not module:
        return name
    if layout == "keras":
        normed = f"{path.rpartition('/')[0]}/scale" in paths
        return f"{module}/{_KERAS_NORM.get(leaf, leaf) if normed else leaf}"
    return f"{module}/{_TORCH_LEAVES.get(leaf, leaf)}".replace("/", ".")


def of_classifier(family: str, layout: str, paths: Collection[str], trunk: str) -> dict[str, str]:
    """{our path: name in the layout} of what a classifier's file holds, as far as the paths have it.

    Args:
      family, layout: of TABLES.
      paths: of the model's variables.
      trunk: what precedes the backbone's own names in them: "backbone/", or "backbone/body/" of a detector.
    """
    within = {path: path.removeprefix(trunk) for path in paths if path.startswith(trunk)}
    outside = {path: path for path in paths if re.match(r"(embedding|fc)/", path) and path not in within}
    relative = {**within, **outside}
    rules = TABLES[family][layout](set(relative.values()))
    names = {path: _leaf(apply(rules, inner), path, paths, layout) for path, inner in relative.items()}
    if family == "vgg" and layout == "torchvision":
        for path in set(paths) - relative.keys():
            if (name := apply(VGG_ELSEWHERE, path)) != path:
                names[path] = _leaf(name, path, paths, layout)
    return names


def of_whole(kind: str, paths: Collection[str]) -> dict[str, str]:
    """{our path: torchvision's name} of a detector or an FCN."""
    return {path: _leaf(apply(WHOLE[kind], path), path, paths, "torchvision") for path in paths}


def to_ours(value: np.ndarray, path: str, shape: Sequence[int], layout: str) -> np.ndarray:
    """A tensor of a file in our layout of axes; its shape is `shape` unless it does not fit."""
    shape = tuple(shape)
    if layout == "keras":
        if path.endswith("kernel") and value.ndim == 4 and value.shape[3] == 1 and len(shape) == 4 and shape[2] == 1:
            value = value.swapaxes(2, 3)
    elif path.endswith("kernel"):
        value = _kernel_from_torch(value, path, shape)
    if value.shape != shape and value.size == np.prod(shape, dtype=int) and _squeezed(value.shape) == _squeezed(shape):
        value = value.reshape(shape)
    return value


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)


def _kernel_from_torch(value: np.ndarray, path: str, shape: tuple[int, ...]) -> np.ndarray:
    if (
        value.ndim == 2 and len(shape) == 4 and value.shape[1] == np.prod(shape[:3], dtype=int)
    ):  # a dense layer as a convolution
        value = value.reshape(value.shape[0], shape[2], *shape[:2])
    if value.ndim == 4:
        if _TRANSPOSED.search(path):
            return value.transpose(2, 3, 0, 1)
        value = value.transpose(2, 3, 1, 0)
        return value.reshape(-1, value.shape[-1]) if len(shape) == 2 else value  # a convolution of the whole map is dense
    if value.ndim == 2 and _AFTER_FLATTEN.search(path) and value.shape[1] % _SIDE**2 == 0:
        maps = value.reshape(value.shape[0], -1, _SIDE, _SIDE)
        return maps.transpose(2, 3, 1, 0).reshape(-1, value.shape[0])
    return value.T if value.ndim == 2 else value


def to_theirs(value: np.ndarray, path: str, name: str, layout: str) -> np.ndarray:
    """The inverse of `to_ours`: a tensor of ours, which the layout calls `name`, in its layout of axes."""
    kernel = path.endswith("kernel")
    if layout == "keras":
        if kernel and value.ndim == 4 and "depthwise" in path:
            return value.swapaxes(2, 3)
        return value.reshape(1, 1, *value.shape) if kernel and value.ndim == 2 and _CONVOLVED.search(name) else value
    if path.endswith("layer_scale") and layout == "torchvision":
        return value.reshape(-1, 1, 1)
    if not kernel:
        return value
    if value.ndim == 2 and _CONVOLVED.search(name):
        side = _SIDE if _AFTER_FLATTEN.search(path) else 1
        value = value.reshape(side, side, -1, value.shape[-1])
    if value.ndim == 4:
        return value.transpose((2, 3, 0, 1) if _TRANSPOSED.search(path) else (3, 2, 0, 1))
    if _AFTER_FLATTEN.search(path):
        maps = value.reshape(_SIDE, _SIDE, -1, value.shape[-1])
        return maps.transpose(3, 2, 0, 1).reshape(value.shape[-1], -1)
    return value.T
