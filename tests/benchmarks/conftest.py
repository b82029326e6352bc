"""What every test of the benchmarks needs."""

import jax
import pytest


@pytest.fixture(autouse=True)
def own_compilation_cache():
    """Benchmarks turn the compilation cache off or to a folder of their own; the setting is put back."""
    before = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)
