"""What this process may use of its machine, and the machine's name."""

import hashlib
import os
import platform
from pathlib import Path

_TELLING = ("model name", "flags", "cpu part", "features")  # lines of /proc/cpuinfo, on x86 and ARM


def cores() -> list[int]:
    """The numbers of the cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def processor() -> str:
    """A short name of the processor's instruction set."""
    try:
        lines = set(Path("/proc/cpuinfo").read_text().splitlines())
        said = "".join(sorted(line for line in lines if line.lower().startswith(_TELLING)))
    except OSError:
        said = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
