"""Describes the machine of a benchmark and measures its limits."""

import functools
import importlib.metadata
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

import densezoo as dz
from benchmarks.timing import compile_apart, measure
from densezoo.compiling import Jitted

HUGE_PAGES = "glibc.malloc.hugetlb=1"
MIB = 2**20

console = Console(stderr=True, soft_wrap=True)
"""For messages while a benchmark runs; its result goes to stdout."""


class Refused(Exception):
    """Invalid options; the message gives the reason. Command lines exit with code 2."""


def choose_platform(name: str | None, *, beside_others: bool = False) -> str:
    """Makes jax use cpu, gpu or tpu; None leaves the choice to jax. Returns the platform's name.

    Raises:
        Refused: if jax sees no such device.
    """
    if beside_others:
        # Otherwise jax reserves three quarters of a GPU's memory when it starts.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    # A cache would hide the compile time.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        if name == "cpu" and jax.config.jax_platforms != "cpu":  # pyright: ignore[reportAttributeAccessIssue]
            jax.config.update("jax_platforms", "cpu")
        found = jax.default_backend()
    except RuntimeError as error:
        raise Refused(f"jax cannot start: {str(error).splitlines()[0]}") from error
    if name is not None and found != name:
        raise Refused(f"--platform {name}: jax sees no such device here, only {found}")
    return found


def reexec_with_hugetlb(malloc: str) -> None:
    """Restarts this program once with a malloc that requests huge pages, where this is supported.

    glibc reads the setting when a process starts. Without it, large buffers that are freed and allocated again cost a
    page fault for every 4 KiB, in jax and in torch.

    Args:
        malloc: "hugetlb", or "default" to keep the default.
    """
    linux = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if malloc != "hugetlb" or not linux or jax.default_backend() != "cpu" or "glibc.malloc.hugetlb" in tunables:
        return
    environment = os.environ | {"GLIBC_TUNABLES": ":".join(filter(None, (tunables, HUGE_PAGES)))}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def malloc_setting() -> str:
    """Says "hugetlb" if malloc asks for huge pages in this process, else "default"."""
    return "hugetlb" if HUGE_PAGES in os.environ.get("GLIBC_TUNABLES", "").split(":") else "default"


def describe() -> dict[str, Any]:
    """Device, processor, versions and settings of this process, as a JSON object."""
    device = jax.local_devices()[0]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": device.platform,
        "device_kind": _cpu_model() if device.platform == "cpu" else device.device_kind,
        "cpu": _cpu_model(),
        "cores": usable,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("jax", "jaxlib", "flax")} | {"densezoo": dz.__version__},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "compiler_options": dict(compiler_options()),
        "malloc": malloc_setting(),
        "glibc_tunables": os.environ.get("GLIBC_TUNABLES", ""),
        "huge_pages": _huge_pages(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "busy_cores": busy_cores(),
    }


def busy_cores(seconds: float = 0.5) -> float | None:
    """How many cores other processes use while this one sleeps; None if the system does not report it."""
    try:
        before = _ticks()
        time.sleep(seconds)
        after = _ticks()
    except OSError:
        return None
    passed = [b - a for a, b in zip(before, after, strict=True)]
    idle = sum(passed[3:5])  # idle, and waiting for I/O
    return round((1 - idle / max(1, sum(passed))) * (os.cpu_count() or 1), 2)


def measure_limits(*, quick: bool = False) -> dict[str, Any]:
    """Measures the machine's limits: bytes per second of a copy, floating-point operations per second.

    The copy reads a float32 array and writes it scaled; both are counted. It is measured with new memory and in place,
    and the better result counts, because the former includes the allocation. Small arrays that fit into caches are
    measured too; the limit is the largest array's. The matrix product has random inputs, and is compiled with
    densezoo's options and without, also in bfloat16 if the hardware supports it. A limit cannot be exceeded, so the
    fastest sample counts instead of the median.

    Returns:
        copy_bandwidth, copy_bandwidth_by_mib, and matmul_peak by dtype; bytes and FLOPs per second.
    """
    accelerator = jax.default_backend() != "cpu"
    times = {"rounds": 5 if quick else 15, "min_seconds": 0.01 if quick else 0.05}
    sizes = (4, 256, 2048) if accelerator else (4, 32, 256)
    by_size = {mib: _bandwidth(mib, times) for mib in sizes}
    side = 8192 if accelerator else 1024 if quick else 2048
    dtypes = ("float32", "bfloat16") if accelerator or has_bfloat16() else ("float32",)
    return {
        "copy_bandwidth": by_size[sizes[-1]],
        "copy_bandwidth_by_mib": {str(mib): value for mib, value in by_size.items()},
        "matmul_peak": {dtype: _matmul_peak(side, dtype, times) for dtype in dtypes},
    }


def peak_flops(limits: dict[str, Any], dtype: str) -> float:
    """The peak of the matrix product for a dtype, or float32's if it has none of its own (bfloat16 on CPU)."""
    return limits["matmul_peak"].get(dtype, limits["matmul_peak"]["float32"])


def roofline_share(limits: dict[str, Any], dtype: str, bytes_moved: float, flops: float, seconds: float) -> float:
    """The minimum time for the bytes and FLOPs at the machine's limits, divided by the measured time.

    Example:
        >>> limits = {"copy_bandwidth": 100.0, "matmul_peak": {"float32": 1000.0}}
        >>> roofline_share(limits, "float32", 200.0, 500.0, 4.0)
        0.5
    """
    return max(bytes_moved / limits["copy_bandwidth"], flops / peak_flops(limits, dtype)) / seconds


def has_bfloat16() -> bool:
    """Whether the processor supports bfloat16 products (AVX512-BF16 or AMX); otherwise they are emulated."""
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(flags.split()))


def memory_stats() -> dict[str, int]:
    """The device's memory statistics; empty on CPU. The peak covers the whole process so far."""
    return jax.local_devices()[0].memory_stats() or {}


def compiler_options() -> dict[str, Any]:
    """The compiler options that densezoo recommends for this platform."""
    return dz.compiler_options()


def _bandwidth(mib: int, times: dict[str, Any]) -> float:
    # The compiler does not remove this factor, and over many calls the values barely change.
    scale = lambda x: x * jnp.float32(1 + 2**-23)  # noqa: E731
    x = jnp.ones(mib * MIB // 4, jnp.float32)
    copy = compile_apart(scale, x).call
    update = compile_apart(jax.jit(scale, donate_argnums=0), x).call
    own = [x + 0]

    def in_place():
        own[0] = update(own[0])
        return own[0]

    timings = measure({"copy": lambda: copy(x), "in place": in_place}, **times)
    return 2 * mib * MIB / min(timing.seconds.minimum for timing in timings.values())


def _matmul_peak(side: int, dtype: str, times: dict[str, Any]) -> float:
    a, b = (jax.random.normal(key, (side, side), dtype) for key in jax.random.split(jax.random.key(0)))
    calls = {}
    for name, jit in (("default", jax.jit), ("densezoo's options", Jitted)):
        multiply = compile_apart(jit(jnp.matmul), a, b).call
        calls[name] = functools.partial(multiply, a, b)
    timings = measure(calls, **times)
    return 2 * side**3 / min(timing.seconds.minimum for timing in timings.values())


def _ticks() -> list[int]:
    line = Path("/proc/stat").read_text().splitlines()[0]
    return [int(field) for field in line.split()[1:9]]


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _huge_pages() -> str | None:
    try:
        return Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().strip()
    except OSError:
        return None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
