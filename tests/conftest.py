"""Every test runs with strict dtype and rank promotion, and with the shapes of the pure functions checked."""

import gc
import re
import zlib
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

# Tracing makes many objects that stay; to look through them again and again took a tenth of the time. All the same
# what is compiled is only freed by looking, at times.
gc.set_threshold(100_000, 10, 10)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Tests compile far more than they compute.
jax.config.update("jax_disable_most_optimizations", True)

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


@pytest.fixture(scope="session")
def with_statistics():
    """Variables of a model whose norms do something: random scales, biases, means and variances."""
    key = jax.random.key(0)

    def initialise(model, images):
        variables = jax.jit(model.init)(key, images)

        def disturb(path, x):
            noise = jax.random.uniform(
                jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode())), x.shape
            )
            return {"var": 0.5 + noise, "mean": noise, "scale": 0.5 + noise, "bias": noise}.get(path[-1].key, x)

        return jax.tree_util.tree_map_with_path(disturb, variables)

    return initialise
