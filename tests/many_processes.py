"""Run by test_parallel.py as two processes: prints what each has of what they do together, as lines of JSON.

python tests/many_processes.py PORT INDEX
"""

import json
import os
import signal
import sys
import time

import numpy as np

from imgrec_jax import distributed
from imgrec_jax.data.ops.canvases import collate_maps
from imgrec_jax.data.pipeline import Pipeline, sequential_order
from imgrec_jax.data.source import SourceInfo
from imgrec_jax.run.stop import Interrupted, caught

SIZES = [(8, 8), (8, 8), (8, 8), (16, 8), (8, 24), (8, 8)]  # of two examples a batch, one of each process


class Pictures:
    info = SourceInfo("pictures")

    def __len__(self):
        return len(SIZES)

    def __getitem__(self, index):
        return {"image": np.full((*SIZES[index], 1), index, np.uint8), "segmentation": np.zeros(SIZES[index], np.int32)}


def shapes(index, threads):
    pipeline = Pipeline(
        Pictures(),
        sequential_order(len(SIZES), 2),
        0,
        collate=collate_maps(),
        process_index=index,
        process_count=2,
        threads=threads,
    )
    return [batch["image"].shape for batch in pipeline.batches(0, 3, distributed.largest)]


def stopped(index):
    """How much each has done when a signal to the foremost, which waits, has ended both."""
    done = 0
    with caught() as stop:
        stop.together()
        try:
            with stop.noting():
                while True:
                    stop.passing()
                    done += 1
                    if index == 0 and done == 3:
                        while stop.signal is None:
                            time.sleep(0.05)
                    if index == 1 and done == 5:
                        os.kill(os.getpid(), signal.SIGINT)
                        with stop.raising():
                            time.sleep(60)
        except Interrupted:
            return [done, stop.signal]


def main(port, index):
    distributed.initialize(distributed.place(f"127.0.0.1:{port}", 2, index))
    print(json.dumps({"shapes": [shapes(index, threads) for threads in (0, 2)], "stopped": stopped(index)}), flush=True)
    with caught(of_program=True) as stop:
        stop.together()
        if index == 1:
            distributed.fail(SystemExit("error: no data here"))
        time.sleep(60)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
