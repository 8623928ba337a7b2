"""R-CNN, Fast R-CNN and Faster R-CNN on digit scenes: AP, AR and time, several seeds each.

python experiments/005_scenes_detection/run.py --seeds 0 1 2

Appends to result.jsonl beside this file and prints the table. Every run is evaluated once, at its end. Training time is that of
the whole process, without the search for external proposals, which is kept beside the data. Inference is timed image by image,
with the search where the detector needs one.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runs

IMAGES = 100  # timed, of the test split


def inference(variant: str, workdir: Path) -> dict[str, float]:
    """Median milliseconds for an image: of the network with its selection of boxes, and of selective search."""
    import jax

    import imgrec_jax
    from imgrec_jax.assemble.data import make_search
    from imgrec_jax.data.proposals import selective_search

    config = imgrec_jax.load_config(f"scenes_detection:{variant}")
    config.data.eval_batch_size = 1
    run, test = imgrec_jax.load(workdir, "best"), imgrec_jax.build(config).data.evals["test"]
    variables = jax.device_put(run.variables)
    batches = [jax.device_put(test.batch(i)) for i in range(IMAGES)]
    predict = jax.jit(run.apply)
    jax.block_until_ready(predict(variables, batches[0]))
    network = [runs.milliseconds(lambda batch=batch: jax.block_until_ready(predict(variables, batch))) for batch in batches]
    search = [0.0]
    if config.data.max_proposals:
        options = make_search(config)
        search = [runs.milliseconds(lambda i=i: selective_search(test.source[i]["image"], options)) for i in range(IMAGES)]
    return {"network_ms": float(np.median(network)), "search_ms": float(np.median(search))}


COLUMNS = {
    "test AP": (runs.test_value("AP"), 3),
    "AP50": (runs.test_value("AP50"), 3),
    "AR100": (runs.test_value("AR100"), 3),
    "training, minutes": (runs.minutes, 1),
    "network, ms an image": (lambda record: record["network_ms"], 1),
    "search, ms an image": (lambda record: record["search_ms"], 0),
}

if __name__ == "__main__":
    runs.study(__file__, __doc__, "configs/scenes_detection.py", ("rcnn", "fast", "faster"), COLUMNS, inference)
