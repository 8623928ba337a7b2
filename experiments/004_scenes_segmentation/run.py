"""U-Net and the three FCNs on digit scenes: test mIoU and time, several seeds each.

python experiments/004_scenes_segmentation/run.py --seeds 0 1 2

Appends to result.jsonl beside this file and prints the table. Every run is evaluated once, at its end.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runs

COLUMNS = {
    "test mIoU": (runs.test_value("mean_iou"), 3),
    "pixel accuracy": (runs.test_value("pixel_accuracy"), 3),
    "minutes": (runs.minutes, 1),
}

if __name__ == "__main__":
    runs.study(__file__, __doc__, "configs/scenes_segmentation.py", ("unet", "fcn32s", "fcn16s", "fcn8s"), COLUMNS)
