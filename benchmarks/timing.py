"""Times candidates in turn, excluding compilation, and reports the spread of the numbers."""

import dataclasses
import gc
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Spread:
    """A median with its quartiles and the minimum."""

    median: float
    q1: float
    q3: float
    minimum: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Computes the spread of some values, with quartiles by linear interpolation.

        Example:
            >>> Spread.of([1.0, 2.0, 3.0, 4.0, 5.0])
            Spread(median=3.0, q1=2.0, q3=4.0, minimum=1.0)
        """
        q1, median, q3 = (float(value) for value in np.percentile(values, (25, 50, 75)))
        return cls(median, q1, q3, float(min(values)))


@dataclasses.dataclass(frozen=True)
class Timing:
    """One candidate's samples.

    Attributes:
        samples: seconds per call, one sample for every round, in the order of the rounds.
        calls: the number of calls that a sample averages.
    """

    samples: tuple[float, ...]
    calls: int

    @property
    def seconds(self) -> Spread:
        """Seconds per call."""
        return Spread.of(self.samples)

    def ratio_to(self, baseline: "Timing") -> Spread:
        """This candidate's time over the baseline's, round by round, so that shared disturbances cancel out.

        Raises:
            ValueError: if the two were not measured in the same rounds.

        Example:
            >>> slow, fast = Timing((2.0, 4.0, 9.0), 1), Timing((1.0, 2.0, 3.0), 1)
            >>> slow.ratio_to(fast).median
            2.0
        """
        if len(self.samples) != len(baseline.samples):
            raise ValueError(
                f"ratios are computed round by round, but one has {len(self.samples)} rounds and the other"
                f" {len(baseline.samples)}: measure both in one call of measure"
            )
        return Spread.of([a / b for a, b in zip(self.samples, baseline.samples, strict=True)])


def wait_for(result: Any) -> None:
    """Returns when the device has computed a result, jax's or torch's."""
    # jax ignores foreign objects, so torch's kernels on a GPU could still be running.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()
    jax.block_until_ready(result)


class Sampler(Protocol):
    """A candidate that times itself, such as one in another process."""

    def sample(self, calls: int) -> float:
        """Mean seconds per call over several calls, after an uncounted one."""
        ...


def measure(
    candidates: Mapping[str, Callable[[], Any] | Sampler],
    *,
    rounds: int = 30,
    min_seconds: float = 0.02,
    max_seconds: float = math.inf,
    pause: float = 0.0,
    seed: int = 0,
    wait_each_call: bool | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times candidates in turn, in a different order in each round, so that clock drift or other programs affect all.

    A sample is the mean over as many calls as fill `min_seconds`, after an uncounted call that fills the caches and
    wakes the threads. Garbage is collected before, not during, the measurement.

    Args:
        candidates: by name, functions without arguments, whose results are waited for, or objects that time
            themselves.
        rounds: number of samples for each.
        min_seconds: minimum duration of a sample.
        max_seconds: time limit of the whole measurement; slow candidates have fewer rounds, but at least 3.
        pause: seconds of sleep before each sample, until the previous candidate's threads have stopped spinning.
        seed: seed of the orders.
        wait_each_call: wait after every call (True) or once per sample (False: an accelerator's queue stays filled).
            None waits after each call on CPU, where unsynchronised calls would run concurrently.
        clock: returns seconds; replaced in tests.

    Returns:
        A timing for each candidate.

    Raises:
        ValueError: if there are no candidates, or fewer than one round.

    Example:
        >>> timings = measure({"sum": lambda: sum(range(100))}, rounds=3, min_seconds=1e-4)
        >>> len(timings["sum"].samples)
        3
    """
    if not candidates or rounds < 1:
        raise ValueError(f"expected candidates and at least one round, got {sorted(candidates)} and {rounds=}")
    if wait_each_call is None:
        wait_each_call = jax.default_backend() == "cpu"

    def sample(candidate: Callable[[], Any] | Sampler, calls: int) -> float:
        if pause:
            time.sleep(pause)
        if not callable(candidate):
            return candidate.sample(calls)
        wait_for(candidate())
        start = clock()
        for _ in range(calls):
            result = candidate()
            if wait_each_call:
                wait_for(result)
        if not wait_each_call:
            wait_for(result)
        return (clock() - start) / calls

    calls = {}
    cost = 0.0
    for name, candidate in candidates.items():
        once = max(min(sample(candidate, 1) for _ in range(2)), 1e-7)
        calls[name] = max(1, math.ceil(min_seconds / once))
        cost += once * (calls[name] + 1) + pause
    rounds = min(rounds, max(3, int(max_seconds / cost))) if math.isfinite(max_seconds) else rounds

    samples: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    shuffle = random.Random(seed).shuffle
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                samples[name].append(sample(candidates[name], calls[name]))
    finally:
        if was_enabled:
            gc.enable()
    return {name: Timing(tuple(values), calls[name]) for name, values in samples.items()}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A function compiled ahead of time.

    Attributes:
        call: the executable; it takes the arguments that it was compiled for.
        trace_seconds: from Python to the compiler's input.
        compile_seconds: from there to the executable.
    """

    call: Callable[..., Any]
    trace_seconds: float
    compile_seconds: float

    def costs(self) -> dict[str, float | None]:
        """XLA's own numbers, None if the platform has none: FLOPs, bytes accessed, and bytes in memory."""
        try:
            analysis: Any = self.call.cost_analysis() or {}  # pyright: ignore[reportFunctionMemberAccess]
        except (NotImplementedError, RuntimeError):
            analysis = {}
        try:
            memory: Any = self.call.memory_analysis()  # pyright: ignore[reportFunctionMemberAccess]
        except (NotImplementedError, RuntimeError):
            memory = None
        analysis = analysis[0] if isinstance(analysis, list) else analysis
        sizes = {
            part: None if memory is None else getattr(memory, f"{part}_size_in_bytes", None)
            for part in ("temp", "argument", "output", "alias")
        }
        known = [size for size in sizes.values() if size is not None]
        # Buffers that are updated in place are counted among both the arguments and the outputs.
        peak = sum(known) - 2 * (sizes["alias"] or 0) if known else None
        return {
            "xla_flops": analysis.get("flops"),
            "xla_bytes": analysis.get("bytes accessed"),
            "temp_bytes": sizes["temp"],
            "argument_bytes": sizes["argument"],
            "output_bytes": sizes["output"],
            "peak_bytes": peak,
        }


def compile_apart(function: Any, *arguments: Any) -> Compiled:
    """Traces and compiles a function for given arguments, and times both.

    Args:
        function: a function for `jax.jit`, or the result of `jax.jit` with compiler options.
        *arguments: arrays, or `jax.ShapeDtypeStruct`s instead of them.

    Example:
        >>> import jax.numpy as jnp
        >>> compiled = compile_apart(lambda x: 2 * x, jnp.ones(3))
        >>> compiled.call(jnp.ones(3)).tolist()
        [2.0, 2.0, 2.0]
    """
    jitted = function if hasattr(function, "lower") else jax.jit(function)
    start = time.perf_counter()
    lowered = jitted.lower(*arguments)
    traced = time.perf_counter()
    executable = lowered.compile()
    return Compiled(executable, traced - start, time.perf_counter() - traced)


def geometric_mean(values: Sequence[float]) -> float:
    """The geometric mean, which suits ratios: that of 2 and 1/2 is 1."""
    return statistics.geometric_mean(values)
