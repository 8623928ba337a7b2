"""What a train step and one image cost R-CNN, Fast R-CNN and Faster R-CNN, on one machine and with nothing else running.

python experiments/005_scenes_detection/speed.py

Untrained weights: shapes are static, so the work hardly depends on them. Prints a table and writes speed.json beside this
file: medians in milliseconds of 40 train steps of 8 scenes, of 100 single test images through the network with its selection
of boxes, and of selective search on them.
"""

import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import runs

STEPS, IMAGES = 40, 100


def inference(config) -> tuple[float, float]:
    import jax

    from imgrec_jax import build, train
    from imgrec_jax.build import detection
    from imgrec_jax.data.external_proposals import selective_search
    from imgrec_jax.step import eval_variables

    config.data.eval_batch_size = 1
    experiment = build.build(config)
    variables, test = eval_variables(train.create_state(experiment)[0]), experiment.evals["test"]
    batches = [jax.device_put(test.batch(i)) for i in range(IMAGES)]
    predict = jax.jit(experiment.task.predict)
    jax.block_until_ready(predict(variables, batches[0]))
    network = [runs.milliseconds(lambda batch=batch: jax.block_until_ready(predict(variables, batch))) for batch in batches]
    search = [0.0]
    if config.data.max_proposals:
        options = detection.make_search(config)
        search = [runs.milliseconds(lambda i=i: selective_search(test.source[i]["image"], options)) for i in range(IMAGES)]
    return statistics.median(network), statistics.median(search)


def main() -> None:
    result = {}
    for variant in ("rcnn", "fast", "faster"):
        step = runs.stepper(runs.config_of("scenes_detection", variant))
        times = [runs.milliseconds(step) for _ in range(STEPS)]
        network, search = inference(runs.config_of("scenes_detection", variant))
        row = {"train_step": statistics.median(times), "network": network, "search": search}
        result[variant] = {name: round(value, 1) for name, value in row.items()}
        print(variant, result[variant], flush=True)
    (Path(__file__).parent / "speed.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
