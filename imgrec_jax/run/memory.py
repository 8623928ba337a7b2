"""What to say when memory runs out."""

import os
import re

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def wanted_bytes(text: str) -> int | None:
    """The bytes that an allocation asked for, by the message of XLA or numpy; None where it does not say."""
    found = re.search(r"allocat\w* ([\d.]+) ?([KMGTP]?)(?:iB|B| ?bytes)", text)
    return round(float(found[1]) * _UNITS[found[2]]) if found else None


def free_bytes() -> int | None:
    """What the first device could still give: of its own memory, or of the machine's where it has none; None if unknown."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        with open("/proc/meminfo") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        names = getattr(os, "sysconf_names", {})
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if "SC_AVPHYS_PAGES" in names else None


def describe(error: BaseException, batch_size: int, eval_batch_size: int) -> str:
    """One line: the bytes asked for and there, the batch, and what to try."""
    wanted, free = wanted_bytes(str(error)), free_bytes()
    said = str(error).strip() or type(error).__name__
    asked = f"{wanted / 1e9:.2f} GB asked for at once" if wanted else said.splitlines()[0]
    there = f", {free / 1e9:.2f} GB free" if free is not None else ""
    return (
        f"out of memory: {asked}{there}, with data.batch_size={batch_size} and data.eval_batch_size={eval_batch_size}. Lower "
        "them, or try optim.accumulate=2, parallel.remat=everything or dtype=bfloat16"
    )
