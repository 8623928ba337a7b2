"""torchvision's released detectors on val2017: AP 0.369 (v1) and 0.467 (v2), as torchvision publishes, within 0.001.

    python experiments/020_released_detectors/published.py --data=/data/coco

DIR holds val2017/ and annotations/instances_val2017.json. The weights are downloaded where the network allows; where it does
not, the program says which file to put where. `train_split` is set to `val`, too, so that train2017 need not be there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PUBLISHED = {"released": 0.369, "released_v2": 0.467}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    data = parser.parse_args().data
    for variant, published in PUBLISHED.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [
                sys.executable, "-m", "imgrec_jax.main", f"--config={ROOT}/configs/coco_faster_rcnn.py:folder,{variant}",
                f"--config.data.manual_dir={data}", "--config.data.train_split=val", "--config.data.allow_overlap=true",
                "--mode=eval", f"--workdir={folder}/run",
            ]  # fmt: skip
            if subprocess.run(command, check=False).returncode:
                raise SystemExit(1)
            found = json.loads(Path(folder, "run", "eval.json").read_text())["validation"]["AP"]
        assert abs(found - published) <= 0.001, f"{variant}: AP {found:.4f}, published {published}"
        print(f"{variant}: AP {found:.4f}, published {published}")


if __name__ == "__main__":
    main()
