"""Every test runs with strict dtype and rank promotion, and with the shapes of the pure functions checked."""

import gc

import jax
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
