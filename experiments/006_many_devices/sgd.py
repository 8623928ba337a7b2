"""A config of `configs/` with plain SGD at a constant rate: --config=experiments/006_many_devices/sgd.py:NAME/VARIANT"""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def get_config(variant: str) -> ConfigDict:
    """variant: "mnist/" or "scenes_detection/faster,tiny"."""
    name, _, variant = variant.partition("/")
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(variant)
    config.optim.name, config.optim.options, config.optim.lr_multiplier = "sgd", ConfigDict(), ()
    config.schedule.name = "constant"
    return config
