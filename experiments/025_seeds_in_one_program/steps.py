"""Steps of several seeds in one program against steps of one: milliseconds, and how far the parameters are apart.

python experiments/025_seeds_in_one_program/steps.py time mnist:mlp
python experiments/025_seeds_in_one_program/steps.py apart mnist:mlp --steps=1,20,200 [--dtype=float64]
"""

import argparse
import time

import jax
import numpy as np

from imgrec_jax import assemble, compiled
from imgrec_jax.config import load
from imgrec_jax.run.stop import Stop
from imgrec_jax.run.together import Alone, Together, create_state
from imgrec_jax.sweeps import ways

REPEATS = 15


def step(together: Together, feeds: list) -> None:
    batches = [next(feed)[1] for feed in feeds]
    together.prepare(batches, Stop())
    together.advance(batches)


def milliseconds(together: Together, count: int) -> float:
    """The median of a step with the making of its batches."""
    feeds = [together.feed(number, 0, REPEATS + 1) for number in range(count)]
    step(together, feeds)
    together.wait()
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        step(together, feeds)
        together.wait()
        seconds.append(time.perf_counter() - began)
    return 1e3 * float(np.median(seconds))


def farthest(a, b) -> tuple[float, str]:
    """The largest difference of a parameter relative to the largest entry of its array, and whose."""
    found = []
    pairs = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True)
    for (path, x), y in pairs:
        x, y = np.asarray(x), np.asarray(y)
        found.append((float(np.abs(x - y).max() / max(np.abs(x).max(), 1e-30)), jax.tree_util.keystr(path)))
    return max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "apart"])
    parser.add_argument("config")
    parser.add_argument("--seeds", type=int, help="default 5 for time, 2 for apart")
    parser.add_argument("--steps", default="1,20")
    parser.add_argument("--dtype", default="float32")
    flags = parser.parse_args()
    if flags.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    compiled.keep(compiled.AUTO)
    config = load(flags.config)
    config.seeds, config.dtype = flags.seeds or {"time": 5, "apart": 2}[flags.what], flags.dtype
    experiments = assemble.replicas(config)
    made = [create_state(experiment) for experiment in experiments]
    stacked = ways.stack(ways.VMAP)(experiments, [state for state, _ in made], [tx for _, tx in made])
    alone = Alone(experiments[-1], *made[-1])
    if flags.what == "time":
        one, all_of_them = milliseconds(alone, 1), milliseconds(stacked, config.seeds)
        print(f"{flags.config}: a step of one {one:.1f} ms, of {config.seeds} stacked {all_of_them:.1f} ms")
        return
    steps = [int(step) for step in flags.steps.split(",")]
    feeds = [stacked.feed(number, 0, max(steps)) for number in range(config.seeds)], [alone.feed(0, 0, max(steps))]
    for number in range(1, max(steps) + 1):
        step(stacked, feeds[0])
        step(alone, feeds[1])
        if number in steps:
            far, name = farthest(alone.state(0).params, stacked.state(config.seeds - 1).params)
            print(f"{flags.config}, {flags.dtype}, after {number} steps: {far:.1e} ({name})", flush=True)


if __name__ == "__main__":
    main()
