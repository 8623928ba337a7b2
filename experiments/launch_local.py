"""Starts several processes of the program on this host, joined over loopback, and ends them all when one fails.

python experiments/launch_local.py --processes=2 -- --config=configs/mnist.py --workdir=runs/two
python experiments/launch_local.py --processes=2 --cpu_devices=4 -- --config=...     4 fake devices each, to try things out

On a host with several GPUs one process that sees them all is simpler and as fast; several are for trying out what will run on
several hosts (see launch_slurm.sh).
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def start(flags: Sequence[str], processes: int = 1, cpu_devices: int = 0, logs: Path | None = None) -> list[subprocess.Popen]:
    """Starts the processes; `logs` is a folder for their output, None sends it to this terminal."""
    environment = dict(os.environ)
    if cpu_devices:
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={cpu_devices}"
    port = _free_port()
    started = []
    for index in range(processes):
        place = [f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={processes}", f"--process_id={index}"]
        command = [sys.executable, "-m", "imgrec_jax.main", *flags, *(place if processes > 1 else [])]
        out = None if logs is None else (logs / f"{index}.log").open("w")
        started.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT if out else None)
        )
    return started


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait(processes: list[subprocess.Popen], patience: float = 60.0) -> int:
    """Until all have ended; the first failure gives the others `patience` seconds. Returns the worst exit status."""
    failed_at = None
    while any(process.poll() is None for process in processes):
        failed = [index for index, process in enumerate(processes) if process.poll()]
        if failed_at is None and failed:
            failed_at = time.monotonic()
            status = processes[failed[0]].returncode
            print(f"process {failed[0]} ended with status {status}; the others have {patience:.0f} s to end", file=sys.stderr)
        if failed_at is not None and time.monotonic() - failed_at > patience:
            for process in processes:
                process.kill()
        time.sleep(0.1)
    return max(abs(process.returncode) for process in processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cpu_devices", type=int, default=0, help="fake CPU devices of each process")
    parser.add_argument("flags", nargs="+", help="flags of imgrec_jax.main, after --")
    args = parser.parse_args()
    processes = start(args.flags, args.processes, args.cpu_devices)
    try:
        status = wait(processes)
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()
        status = wait(processes)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
