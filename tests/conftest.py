"""Every test runs with strict dtype and rank promotion, and with checked shapes of the pure functions."""

import contextlib
import gc
import math
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import install_import_hook

# Tracing creates many long-lived objects, and scanning them repeatedly took a tenth of the time. Compiled programs are
# only freed by garbage collection, so it is not disabled.
gc.set_threshold(100_000, 10, 10)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests compile far more than they compute, and so do the processes that they start.
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"

# The hook must be there before the modules are first imported.
install_import_hook(["densezoo.ops", "densezoo.losses", "densezoo.metrics"], "beartype.beartype")


def pytest_addoption(parser):
    what = "a Python file, or a page whose first Python block is one, that registers a family: it is tested too"
    parser.addoption("--family", action="append", default=[], metavar="FILE", help=what)


def pytest_configure(config):
    for file in config.getoption("--family"):
        text = Path(file).read_text()
        code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1] if file.endswith(".md") else text
        exec(compile(code, file, "exec"), {"__name__": Path(file).stem})


def resident_bytes():
    """The memory of this process; 0 if the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


limit = 1.2e9


def pytest_runtest_logfinish():
    """Clears traced and compiled programs when they use much memory. Clearing after each file would cost more time."""
    global limit
    if resident_bytes() > limit:
        jax.clear_caches()
        gc.collect()
        limit = max(limit, resident_bytes() + 3e8)


@pytest.fixture(scope="session")
def compilations():
    """A context that counts compilations: a list with an entry for each program."""

    @contextlib.contextmanager
    def counting():
        found = []

        def listen(event, duration_secs, **_):
            if event == "/jax/core/compile/backend_compile_duration":
                found.append(duration_secs)

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            yield found
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)

    return counting


class Recorder:
    """An array that notes how much of it is read at once."""

    def __init__(self, array):
        self.array, self.shape, self.largest = array, array.shape, 0

    def __getitem__(self, index):
        part = self.array[index]
        self.largest = max(self.largest, part.shape[0] * part.shape[1])
        return part


@pytest.fixture(scope="session")
def recorder():
    """A class that wraps an array and notes how much of it is read at once."""
    return Recorder


@pytest.fixture(scope="session")
def with_statistics():
    """Variables of a model with nontrivial norms: random scales, biases, means and variances."""

    def initialise(model, images):
        rng = np.random.default_rng(0)  # numbers of `init` would have to be compiled

        def fill(path, x):
            noise = rng.uniform(size=x.shape)
            kernel = rng.normal(0, (2 / max(1, math.prod(x.shape[:-1]))) ** 0.5, x.shape)
            by_name = {"var": 0.5 + noise, "mean": noise, "scale": 0.5 + noise, "bias": noise}
            return jnp.asarray(by_name.get(path[-1].key, kernel), x.dtype)

        return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(model.init, jax.random.key(0), images))

    return initialise
