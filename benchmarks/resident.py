"""The resident memory of a process on Linux. Needs neither jax nor torch, because every side measures with it."""

import ctypes
from pathlib import Path


def resident_bytes(field: str = "VmRSS") -> int:
    """Resident bytes of this process: now (VmRSS), or at most since `forget_peak` (VmHWM).

    Raises:
        OSError: if the system has no /proc.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def forget_peak() -> int:
    """Returns free memory to the system and resets the peak; returns the resident bytes.

    Raises:
        OSError: if the system does not support it.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident_bytes()
