"""How long does a save hold up the step? A state of 100 million parameters and as much momentum, saved again and again.

python experiments/011_save_hold_up/run.py [--package=FOLDER_OF_ANOTHER_CHECKOUT]

Between saves a step changes every number, so that nothing compresses. Prints the seconds from the call of `save` to
its return (the step may then go on) and those until everything is on the disk.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", default=str(Path(__file__).resolve().parents[2]), help="the checkout that is measured")
    parser.add_argument("--parameters", type=float, default=100e6)
    parser.add_argument("--saves", type=int, default=5)
    args = parser.parse_args()
    sys.path.insert(0, args.package)
    import jax

    from imgrec_jax.step import TrainState

    try:
        from imgrec_jax.run.checkpoint import Checkpointer
    except ImportError:  # the layout of early versions
        from imgrec_jax.checkpoint import Checkpointer

    keys = jax.random.split(jax.random.PRNGKey(0), 20)
    leaves = [jax.random.normal(key, (int(args.parameters / 10),)) for key in keys]
    state = TrainState(jax.numpy.int32(0), leaves[:10], {}, leaves[10:], None)
    step = jax.jit(lambda s: jax.tree.map(lambda x: x * 1.01 + 1, s).replace(step=s.step + 1), donate_argnums=0)
    clock = {"window": None, "metrics_position": 0, "selection": None, "results": {}, "stopped": False}
    held, written = [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpointer = Checkpointer(Path(folder))
        for number in range(1, args.saves + 1):
            state = jax.block_until_ready(step(state))
            began = time.perf_counter()
            checkpointer.save(number, state, {**clock, "step": number})
            held.append(time.perf_counter() - began)
            checkpointer.wait()
            written.append(time.perf_counter() - began)
        checkpointer.close()
    result = {"package": args.package, "held_s": held, "written_s": written}
    print(
        json.dumps(
            {
                **result,
                "median_held_s": round(statistics.median(held), 3),
                "median_written_s": round(statistics.median(written), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
