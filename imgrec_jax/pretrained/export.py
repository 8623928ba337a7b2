"""Variables of a model as another framework's state dict: the way back through the tables of `names.py`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from imgrec_jax.models.transformer import relative_position_index
from imgrec_jax.pretrained import fit, names

_WINDOW = 7  # of Swin-T


def torchvision_state(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{torchvision's name: array}, complete for `load_state_dict(strict=True)`.

    A batch norm's `num_batches_tracked`, which torchvision counts and does not use, is 0.

    Raises:
      ValueError: for an architecture that has no torchvision names here, or takes no colours.
    """
    flat = {"/".join(key[1:]): np.asarray(value) for key, value in traverse_util.flatten_dict(dict(variables)).items()}
    table = _table(set(flat))
    first = fit.first_convolution(flat)
    if first and (channels := flat[first].shape[2]) != 3:
        raise ValueError(f"torchvision's networks take images of 3 channels, and this one of {channels}")
    state = {name: np.ascontiguousarray(names.to_theirs(flat[path], path, name, "torchvision")) for path, name in table.items()}
    for path, name in table.items():
        if path.endswith("/mean"):
            if not _frozen(path, variables):
                state[name.replace("running_mean", "num_batches_tracked")] = np.zeros((), np.int64)
        elif path.endswith("relative_position_bias_table"):
            state[name.replace("bias_table", "index")] = relative_position_index(_WINDOW).reshape(-1)
    return dict(sorted(state.items()))


def _frozen(path: str, variables: Mapping[str, Any]) -> bool:
    """Whether the norm's scale is no parameter: torchvision's FrozenBatchNorm2d does not count batches."""
    node: Any = variables["params"]
    for part in path.split("/")[:-1]:
        node = node.get(part, {})
    return "scale" not in node


def _table(paths: set[str]) -> dict[str, str]:
    if any(path.startswith(("roi_heads/", "head/classification_head/")) for path in paths):
        table = names.of_whole("detector", paths)
        if ("backbone/body/", ("resnet",)) in fit.trunks(paths):
            return table
    elif any(path.startswith("classifier_") for path in paths):
        return names.of_whole("fcn", paths)
    elif "fc/kernel" in paths:
        for trunk, families in fit.trunks(paths):
            for family in families:
                table = (
                    names.of_classifier(family, "torchvision", paths, trunk) if "torchvision" in names.TABLES[family] else {}
                )
                if table and len(table) == len(paths) and _fits(family, paths, trunk):
                    return table
    raise ValueError(
        "torchvision has no network of this architecture; it has classifiers of the zoo but for MobileNetV1 and "
        "EfficientNet-Lite, detectors over a ResNet with an FPN, and fcn_resnet50/101"
    )


def _fits(family: str, paths: set[str], trunk: str) -> bool:
    """Tells networks of inverted residual blocks apart: what their blocks and embeddings have."""
    squeezes = any("/se_reduce/" in path for path in paths)
    dense, conv = "embedding/dense/kernel" in paths, "embedding/conv/kernel" in paths
    if family == "mobilenet_v3":
        return squeezes and dense
    if family == "efficientnet":
        return squeezes and not dense
    if family == "mobilenet_v2":
        # EfficientNet-Lite has other kernels and depths: 16 blocks of five stages of them
        blocks = {path.removeprefix(trunk).split("/")[0] for path in paths if path.startswith(f"{trunk}blocks_")}
        return not squeezes and conv and len(blocks) == 17
    return True
