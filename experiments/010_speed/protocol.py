"""How `run.py` speaks to its two sides: numbers of repetitions to stdin, seconds from stdout, one JSON line each."""

import json
import resource
import sys
import time
from collections.abc import Callable


def peak_of_process() -> float:
    """MiB of memory that the process had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def serve(make: Callable[[], Callable], version: str, warm: int = 2, peak: Callable[[], float] = peak_of_process) -> None:
    """Makes the work, says so, then times it as often as it is asked; what it returns, if anything, is told beside the time.

    warm: repetitions, after the first one, before it is asked; peak: MiB at most so far.
    """
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    run = make()
    began = time.perf_counter()
    run(1)  # compiles
    first = time.perf_counter() - began
    if warm:
        run(warm)
    print(json.dumps({"version": version, "first": first}), file=out, flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        result = run(int(line))
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        if result is not None:
            seconds["result"] = result
        print(json.dumps({**seconds, "peak_mib": round(peak())}), file=out, flush=True)
