"""Fixtures for all tests of the benchmarks."""

import jax
import pytest


@pytest.fixture(autouse=True)
def own_compilation_cache():
    """Benchmarks disable the compilation cache or move it to their own folder; this restores the setting."""
    before = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)
